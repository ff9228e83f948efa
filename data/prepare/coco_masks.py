"""Label maps of COCO: from the instances' polygons and RLE masks, or from COCO-Stuff's maps."""
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import ORIENTATION, open_image
from data.layout import IGNORE
from data.prepare.writing import write_labels

STUFF_IDS = 182                     # in COCO-Stuff's maps: a category's id - 1 (things 1..91, stuff 92..182), or 255
TRAIN_IDS = "_labelTrainIds.png"    # the end of the name of maps with other numbers: things 0..79, stuff 80..170
STUFF_TRAIN_IDS = 171
# How Pillow turns an image whose EXIF data has this orientation.
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}


@dataclass
class Photo:
    """One image of an annotation file."""
    id: str
    source: Path
    size: tuple[int, int] | None            # (H, W) of the annotations; None: those of the image
    number: int                             # COCO's id
    objects: list = field(default_factory=list)     # (class id, is a crowd, segmentation, box)
    stuff: Path | None = None               # its map of COCO-Stuff

    def classes(self):
        """Return the ids of the classes that the image has; a crowd of a class counts."""
        return sorted({class_id for class_id, *_ in self.objects if 0 < class_id < IGNORE})


def write_mask(job):
    """Write the label map of one photo; returns how many of its objects have a box alone."""
    photo, path, ids = job
    stored, orientation = _header(photo.source)
    labels, boxes = (read_stuff(photo.stuff, ids), 0) if photo.stuff else draw_instances(
        photo.objects, photo.size or stored, photo.source)
    if labels.shape == stored:          # annotated as it is stored: the mask turns with the image
        labels = np.array(Image.fromarray(labels).transpose(TURNS[orientation])) if orientation in TURNS else labels
    elif not (orientation in (5, 6, 7, 8) and labels.shape == stored[::-1]):
        what = photo.stuff or "the annotations"
        raise ValueError(f"{photo.source} is {stored[1]}x{stored[0]} pixels, of {what} {labels.shape[1]}x"
                         f"{labels.shape[0]}: the photo was resized or is another one. Fetch it again")
    write_labels(path, labels)
    return boxes


def _header(path):
    """Read the (H, W) of an image as it is stored, and its EXIF orientation."""
    try:
        with open_image(path) as image:
            return image.size[::-1], 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is gone: is its disk still mounted? Then run the same command again") from None
    except Exception as error:      # Pillow names no set of what a damaged file may raise
        raise ValueError(f"{path} cannot be read as an image ({type(error).__name__}: {error}): fetch it again"
                         ) from None


# ---- instances ----

def _rle():
    """Return pycocotools' functions; imported here, as the other commands do without."""
    try:
        from pycocotools import mask
    except ImportError:
        raise ImportError("pycocotools is not installed: pip install -r requirements.txt") from None
    return mask


def draw_instances(objects, size, place):
    """Draw objects (class id, is a crowd, segmentation, box) into a label map (H, W): uint8 (H, W), and a count.

    Larger objects first, so that smaller ones lie on top. Crowds are ignored pixels, below all others, and so are the
    boxes of objects without a segmentation, which are counted.
    """
    labels, drawn, boxes = np.zeros(size, np.uint8), [], 0
    for class_id, crowd, segmentation, box in objects:
        rle = encode(segmentation, size, place)
        if rle is None and box:
            boxes += 1
            x, y, w, h = box
            labels[max(0, math.floor(y)):max(0, math.ceil(y + h)),
                   max(0, math.floor(x)):max(0, math.ceil(x + w))] = IGNORE
        elif rle is not None and crowd:
            labels[decode(rle)] = IGNORE
        elif rle is not None:
            drawn.append((class_id, rle))
    drawn.sort(key=lambda item: -int(_rle().area(item[1])))      # a stable sort: equal ones as they are listed
    for class_id, rle in drawn:
        labels[decode(rle)] = class_id
    return labels, boxes


def encode(segmentation, size, place):
    """Encode polygons [[x, y, x, y, ...], ...] or COCO's RLE as pycocotools' RLE; None if there is no area in them."""
    try:
        if isinstance(segmentation, dict):
            if list(segmentation["size"]) != list(size):
                raise ValueError(f"an RLE mask of size {segmentation['size']} in an image of {list(size)}")
            counts = segmentation["counts"]
            runs = counts if isinstance(counts, list) else unpack_runs(counts)
            if min(runs) < 0 or sum(runs) != size[0] * size[1]:     # pycocotools would leave the rest to chance
                raise ValueError("an RLE mask of more or fewer pixels than the image has")
            return _rle().frPyObjects({"size": list(size), "counts": runs}, *size)
        if not isinstance(segmentation, (list, type(None))):
            raise ValueError(f"a {type(segmentation).__name__}")
        polygons = [polygon for polygon in segmentation or [] if len(polygon) >= 6]       # fewer are no area
        if any(not -10 * max(size) < c < 10 * max(size) for polygon in polygons for c in polygon):
            raise ValueError("a polygon far outside the image")
        return _rle().merge(_rle().frPyObjects(polygons, *size)) if polygons else None
    except Exception as error:      # pycocotools names no set of what a damaged segmentation may raise
        raise ValueError(f"the annotations of {place.name} hold a damaged segmentation ({type(error).__name__}: "
                         f"{error}): fix them there") from None


def unpack_runs(text):
    """Unpack COCO's compressed RLE: 5 bits a letter; from the fourth on, a run's difference from the last but one."""
    runs, value, shift = [], 0, 0
    for letter in text.encode("ascii"):
        bits = letter - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:                                         # the last letter of a number
            value -= (bits & 0x10) << (shift - 4)                   # its sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs


def decode(rle):
    """Decode an RLE mask: bool (H, W)."""
    return _rle().decode(rle).astype(bool)


# ---- COCO-Stuff ----

def find_stuff(folder):
    """Find the label maps in COCO-Stuff's folder and those in it: {file name: path}."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} (--stuff): name that of COCO-Stuff's stuffthingmaps")
    maps = {path.name: path for path in folder.rglob("*.png")}
    if not maps:
        raise FileNotFoundError(f"{folder} (--stuff) holds no ID.png: name the folder of COCO-Stuff's stuffthingmaps")
    return maps


def stuff_of(photo, maps):
    """Return the path of a photo's map; None if there is none. The 2014 photos have the maps of 2017."""
    for stem in (photo.source.stem, photo.id, f"{photo.number:012d}"):
        for name in (f"{stem}.png", stem + TRAIN_IDS):
            if name in maps:
                return maps[name]
    return None


def read_stuff(path, ids):
    """Read a map of COCO-Stuff as a label map of things, uint8 (H, W): stuff is background, unlabelled is ignored."""
    try:
        with open_image(path) as image:
            mode, values = image.mode, np.array(image)
    except Exception as error:      # Pillow names no set of what a damaged file may raise
        raise ValueError(f"{path} cannot be read as an image ({type(error).__name__}: {error}): fetch it again"
                         ) from None
    if mode not in ("L", "P"):
        raise ValueError(f"{path} is an image of mode {mode}, no map of COCO-Stuff: take stuffthingmaps")
    table = np.zeros(256, np.uint8)
    table[IGNORE] = IGNORE
    if path.name.endswith(TRAIN_IDS):
        most = STUFF_TRAIN_IDS
        table[:len(ids)] = list(ids.values())
    else:
        most = STUFF_IDS
        table[np.array(list(ids)) - 1] = list(ids.values())
    if (values[values != IGNORE] >= most).any():
        raise ValueError(f"{path} holds the value {values[values != IGNORE].max()}; COCO-Stuff's stuffthingmaps have "
                         f"0..{most - 1} and 255. Maps of stuff alone (pixelmaps) know no things: take stuffthingmaps")
    return table[values]
