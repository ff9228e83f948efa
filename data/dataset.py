"""A dataset folder in VOC's layout: lists, image-level labels, pictures, ground truth. Files in, arrays out.

    ROOT/JPEGImages/ID.jpg                      or ID.png
    ROOT/ImageSets/Segmentation/SPLIT.txt       one ID a line
    ROOT/classes.txt                            object classes in id order 1..C; absent: the 20 of VOC
    ROOT/labels.json                            {ID: [class name, ...]}; absent: Annotations/ID.xml
    ROOT/SegmentationClass/ID.png               0 background, 255 ignore; read by evaluation alone
"""
import errno
import json
import os
import re
import warnings
from collections import Counter
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image, ImageOps

VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
               "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
IGNORE = 255                                        # in ground truth: a pixel that counts for no class
PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}      # what is taken from any folder
ORIENTATION = 0x0112                                # EXIF's tag of how a picture is turned
AUGMENT_STREAM, TARGET_STREAM = 1, 2                # last number of a sample's seed; 0 is the order of an epoch
TAKE_OFF = "fetch it again or take it off the list"
IF_GONE = "If it was there before: is its disk still mounted? Then run the same command again"


class VOCLayout:
    """Read the dataset at `root`. What is missing or wrong is a FileNotFoundError or ValueError with the remedy."""

    def __init__(self, root):
        self.root = Path(root)
        if not any((self.root / folder).is_dir() for folder in ("JPEGImages", "ImageSets", "SegmentationClass")):
            raise FileNotFoundError(
                f"no dataset at {self.root}: expected JPEGImages/ID.jpg, ImageSets/Segmentation/SPLIT.txt and "
                "labels.json (or Annotations/ID.xml) in it. Name another folder with --data_root, or draw the embedded "
                "set: python -m data.prepare critters --out data/critters")

    @cached_property
    def classes(self):
        """List the names of the object classes; the class with id k is at place k - 1."""
        path = self.root / "classes.txt"
        if not path.exists():
            return list(VOC_CLASSES)
        names = [line.strip() for line in _read_text(path).split("\n") if line.strip()]
        if longest := [name for name in names if len(name.encode()) > 100]:
            raise ValueError(f"{path}: {longest[0][:40]!r}... is too long for a file's name: take at most 100 bytes")
        if odd := [name for name in names if re.search("[\0-\x1f\x7f-\x9f]", name)]:
            raise ValueError(f"{path}: {odd[0]!r} has a control character in it: take it out")
        twice = _repeated(names)
        if not names or twice:
            wrong = f"names {twice[0]!r} twice" if twice else "is empty"
            raise ValueError(f"{path} {wrong}: write each object class once, one a line, in the order of the ids 1..C")
        if len(names) >= IGNORE:
            raise ValueError(f"{path} has {len(names)} classes; ids are stored in 8 bits, so 254 is the most")
        return names

    def ids(self, list_name):
        """Read the IDs of a split, named as in ImageSets/Segmentation (`train_aug`), or of a list file (`my/list.txt`).

        A line is "ID" or "/JPEGImages/ID.jpg /SegmentationClassAug/ID.png" (whatever the folders).
        """
        path = self.list_path(list_name)
        ids = []
        for number, line in enumerate(_read_text(path).split("\n"), start=1):
            if line.strip():
                ids.append(_parse_id(line, f"{path}, line {number}"))
        if not ids:
            raise ValueError(f"{path} lists no image: write one ID a line")
        if twice := _repeated(ids):
            raise ValueError(f"{path} lists {len(twice)} images more than once ({_some(twice)}): keep one line of each")
        return ids

    def chosen(self, list_name, only="", shard="1/1"):
        """Read a list whose pictures must be there; returns the IDs of a shard I/N of it, or the one that is `only`."""
        ids = self.ids(list_name)
        if only:
            if only not in ids:
                raise ValueError(f"--only {only}: it is not in the list {list_name}")
            ids = [only]
        self.check(ids, list_name)
        part, parts = (int(number) for number in shard.split("/"))
        return ids[part % parts :: parts]

    def list_path(self, list_name):
        """Find the file of a split or list."""
        splits = self.root / "ImageSets" / "Segmentation"
        for path in (splits / f"{list_name}.txt", Path(list_name)):
            if path.is_file():
                return path
        there = sorted(path.stem for path in splits.glob("*.txt"))
        raise FileNotFoundError(f"no list {list_name}: neither {splits / f'{list_name}.txt'} nor the file {list_name} "
                                f"exists. This dataset's splits: {', '.join(there) or 'none'}. Name one, or a file")

    def label(self, image_id):
        """Read the image-level label of one image: float32 (C,), 1 where the class is present."""
        names = self._names(image_id)
        return np.array([name in names for name in self.classes], dtype=np.float32)

    def labels(self, ids):
        """Read the image-level labels of `ids`: float32 (N, C)."""
        return np.stack([self.label(image_id) for image_id in ids])

    def _names(self, image_id):
        if self._label_table is None:
            return self._names_in_xml(image_id)
        if image_id not in self._label_table:
            raise ValueError(f"image without labels: {image_id} is not in {self.root / 'labels.json'}. "
                             f'Add "{image_id}": [class names] there, or take it off the list')
        return self._label_table[image_id]

    @cached_property
    def _label_table(self):
        """Read labels.json, {ID: set of class names}; None where there is no such file."""
        path = self.root / "labels.json"
        if not path.exists():
            return None
        text = _read_text(path)
        try:
            table = json.loads(text, object_pairs_hook=_once_each)
        except (ValueError, RecursionError) as error:       # not only JSONDecodeError: a number may be too long
            raise ValueError(f"{path} is not JSON ({error}): mend it there") from None
        if not isinstance(table, dict):
            raise ValueError(f"{path} is not of the form {{ID: [class name, ...]}}")
        for image_id, names in table.items():
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"{path}: the label of {image_id[:100]!r} is not a list of class names: mend it there")
            if unknown := set(names) - set(self.classes):
                raise ValueError(f"{path}: {image_id[:100]!r} has the class {min(unknown)[:100]!r}, which is none of "
                                 f"this dataset: mend it there, or add the class to {self.root / 'classes.txt'}")
            table[image_id] = set(names)
        return table

    def _names_in_xml(self, image_id):
        """Read the names of all objects, difficult ones too, from Annotations/ID.xml; parts of objects are not read."""
        path = self.root / "Annotations" / f"{image_id}.xml"
        try:
            tree = ElementTree.fromstring(path.read_bytes())
        except FileNotFoundError:
            raise ValueError(f"image without labels: {image_id} has no {path}, and there is no "
                             f"{self.root / 'labels.json'}. Add one of them, or take it off the list") from None
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise ValueError(f"{path} is not XML ({error}): fetch it again or mend it") from None
        return {(name.text or "").strip() for name in tree.iterfind("{*}object/{*}name")}

    def image_path(self, image_id):
        """Give the path of the picture: .jpg, else .png."""
        jpg, png = (self.root / "JPEGImages" / f"{image_id}{suffix}" for suffix in (".jpg", ".png"))
        if jpg.exists():
            return jpg
        if png.exists():
            return png
        raise FileNotFoundError(f"no picture for {image_id}: neither {jpg} nor {png} exists. "
                                f"Put it there, or take the ID off the list. {IF_GONE}")

    def sources(self):
        """List the files on which labels and, for drawn or prepared sets, pictures depend; those that are there."""
        return [path for name in ("classes.txt", "labels.json", "made_by.json") if (path := self.root / name).exists()]

    def check(self, ids, list_name="the list"):
        """Check that every image of `ids` exists, in one look at the folder; `list_name` is for the message."""
        folder = self.root / "JPEGImages"
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}, where the {len(ids)} pictures of {list_name} should be; "
                                    "--data_root names another dataset")
        with os.scandir(folder) as entries:
            there = {entry.name for entry in entries}
        missing = [image_id for image_id in ids if f"{image_id}.jpg" not in there and f"{image_id}.png" not in there]
        if missing:
            raise FileNotFoundError(f"{len(missing)} of the {len(ids)} images of {list_name} are not in {folder} as "
                                    f".jpg or .png ({_some(missing)}). Put them there, or take them off the list")

    def truth(self, image_id, gt_dir=None):
        """Read the ground truth of one image, uint8 (H, W): class ids, 0 background, 255 ignore."""
        path = self._truth_path(image_id, gt_dir)
        if not path.exists():
            raise FileNotFoundError(f"no ground truth {path}: without it the image cannot be scored; --gt_dir names "
                                    f"another folder. {IF_GONE}")
        remedy = "fetch it again, or, if a stage wrote it, delete it and run that again" if gt_dir else TAKE_OFF
        with _decoded(path, remedy) as picture:
            mode, truth = picture.mode, np.array(picture)
        if mode not in ("P", "L"):
            raise ValueError(f"{path} is a picture of mode {mode}: ground truth is a palette or 8-bit gray PNG whose "
                             "values are class ids; from colours they would have to be guessed. Convert it")
        unknown = truth[(truth > len(self.classes)) & (truth != IGNORE)]
        if unknown.size:
            raise ValueError(f"{path} holds the class id {unknown[0]}, but this dataset's ids are 0.."
                             f"{len(self.classes)} and {IGNORE}: convert it, or mend classes.txt")
        return truth

    def has_truth(self, image_id, gt_dir=None):
        """Tell whether the ground truth of an image is there."""
        return self._truth_path(image_id, gt_dir).exists()

    def _truth_path(self, image_id, gt_dir):
        return Path(gt_dir or self.root / "SegmentationClass") / f"{image_id}.png"


class TrainSet(torch.utils.data.Dataset):
    """The training images with their image-level labels, randomly changed by `augment(image, rng) -> (3, S, S)`.

    An item is asked for by (epoch, index) and depends on nothing but (seed, epoch, index), so it is the same for any
    number of processes and after a restart. `sample_target(label (B, C), generator) -> (B,)` adds the class to erase.
    """

    def __init__(self, layout, ids, seed, augment, sample_target=None):
        layout.check(ids)
        self.layout, self.ids, self.seed = layout, ids, seed
        self.augment, self.sample_target = augment, sample_target
        self.labels = torch.from_numpy(layout.labels(ids))                                  # (N, C)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, key):
        """Give {"image" float32 (3, S, S), "label" float32 (C,), "index" int}, and "target" int64 () if sampled."""
        epoch, index = key
        image = read_image(self.layout.image_path(self.ids[index]))                         # (H, W, 3)
        rng = np.random.default_rng([self.seed, epoch, index, AUGMENT_STREAM])
        item = {"image": self.augment(image, rng), "label": self.labels[index], "index": index}
        if self.sample_target is not None:
            rng = np.random.default_rng([self.seed, epoch, index, TARGET_STREAM])
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            item["target"] = self.sample_target(self.labels[index : index + 1], generator=generator)[0]
        return item


class SegSet(torch.utils.data.Dataset):
    """The training images with the label maps of a folder, changed alike by
    `augment(image, labels, rng) -> (3, S, S), (S, S)`. As of TrainSet, an item depends on (seed, epoch, index) alone.
    """

    def __init__(self, layout, ids, label_dir, seed, augment):
        layout.check(ids)
        self.layout, self.ids, self.label_dir, self.seed, self.augment = layout, ids, label_dir, seed, augment

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, key):
        """Give {"image" float32 (3, S, S), "labels" uint8 (S, S) class ids or 255, "index" int}."""
        epoch, index = key
        image = read_image(self.layout.image_path(self.ids[index]))                         # (H, W, 3)
        labels = self.layout.truth(self.ids[index], self.label_dir)                         # (H, W)
        rng = np.random.default_rng([self.seed, epoch, index, AUGMENT_STREAM])
        image, labels = self.augment(image, labels, rng)
        return {"image": image, "labels": labels, "index": index}


class AffinitySet(torch.utils.data.Dataset):
    """The training images with their CRF maps of two alphas, changed alike by
    `augment(image, maps, rng) -> (3, S, S), [(R, S, S), (R, S, S)]` and merged by `merge(low, high) -> (h, w)`.

    paths  {ID: (path of the lower alpha's maps, of the higher one's)};  read  path -> classes (R,), scores (R, H, W)
    As of TrainSet, an item depends on (seed, epoch, index) alone.
    """

    def __init__(self, layout, paths, seed, read, augment, merge):
        self.ids = list(paths)
        layout.check(self.ids)
        self.layout, self.paths, self.seed = layout, paths, seed
        self.read, self.augment, self.merge = read, augment, merge

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, key):
        """Give {"image" float32 (3, S, S), "label" int64 (h, w): rows of the maps or 255, "index" int}."""
        epoch, index = key
        image_id = self.ids[index]
        image = read_image(self.layout.image_path(image_id))                                # (H, W, 3)
        rng = np.random.default_rng([self.seed, epoch, index, AUGMENT_STREAM])
        image, maps = self.augment(image, self._read_maps(image_id, image.shape[:2]), rng)
        return {"image": image, "label": self.merge(*maps), "index": index}

    def _read_maps(self, image_id, size):
        """Read both CRF maps of a picture of size (H, W): [(R, H, W), (R, H, W)], of the same classes."""
        found = [self.read(path) for path in self.paths[image_id]]
        classes = found[0][0].tolist()
        for path, (own, scores) in zip(self.paths[image_id], found):
            if not len(own) or own[0] != 0:
                raise ValueError(f"{path}: no map of the background: these are not CRF maps")
            if own.max() > (most := len(self.layout.classes)):
                raise ValueError(f"{path} holds the class {own.max()}, but the object classes of {self.layout.root} "
                                 f"are 1..{most}: delete it and run infer.py again, or mend classes.txt")
            if scores.shape[1:] != size:
                raise ValueError(f"{path} holds maps of size {scores.shape[1:]}, its picture is of size {size}: delete "
                                 "it and run infer.py again")
            if own.tolist() != classes:
                raise ValueError(f"{path} holds maps of the classes {own.tolist()}, {self.paths[image_id][0]} those of "
                                 f"{classes}: delete both and run infer.py again")
        return [scores for _, scores in found]


class PictureFolder:
    """Any pictures in a folder, whatever their names. A picture's ID is its name without the suffix; of two that would
    share it, or where it is another's whole name, the whole name."""

    def __init__(self, root):
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {root} (--images): name one that holds pictures")
        names = sorted(path.name for path in self.root.iterdir() if path.suffix.lower() in PICTURES and path.is_file()
                       and not path.name.startswith("."))
        if not names:
            raise ValueError(f"{root} (--images) holds no picture ({' '.join(sorted(PICTURES))}): put some there, or "
                             "name another folder")
        stems = Counter(Path(name).stem for name in names)
        self.files = {Path(n).stem if stems[Path(n).stem] == 1 and Path(n).stem not in names else n: n for n in names}

    def image_path(self, image_id):
        return self.root / self.files[image_id]


def picture_size(path):
    """Read the (H, W) of an upright picture from its header; errors as read_image."""
    with _opened(path) as picture:
        turned = picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) and picture.format != "TIFF"   # Pillow did that
        return picture.size if turned else picture.size[::-1]


def read_image(path):
    """Read a picture of any kind, turned as its EXIF data says: uint8 (H, W, 3). Transparency is dropped.

    Raises OSError where the file cannot be read now, ValueError where it is not a whole picture.
    """
    with _decoded(path) as picture:
        if picture.mode.startswith("I"):                # 16-bit gray: Pillow's own conversion cuts at 255
            gray = np.rint(np.clip(np.asarray(picture) / 257, 0, 255)).astype(np.uint8)
            return np.stack([gray, gray, gray], axis=-1)
        picture.info.pop("transparency", None)          # Pillow would warn of it at palette pictures
        return np.array(picture.convert("RGB"))


@contextmanager
def _decoded(path, remedy=TAKE_OFF):
    """Open and decode a picture, upright."""
    with _opened(path, remedy) as picture:
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        yield picture


@contextmanager
def _opened(path, remedy=TAKE_OFF):
    """Open a picture, not decoded; what is wrong with it is a ValueError, what hinders its reading an OSError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)     # from 89 to 178 million pixels: fine
            with Image.open(path) as picture:
                _check_size(picture, path)
                yield picture
    except Exception as error:      # Pillow names no set of what a damaged file may raise
        # Without a number it is Pillow's own word on the content; and a damaged file may send it to where no byte is.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise type(error)(f"{path} cannot be read now ({error.strerror}). {IF_GONE}") from None
        raise ValueError(f"{path} is truncated or not a picture: {remedy} ({type(error).__name__}: {error})") from None


def _check_size(picture, path):
    """Raise OSError where a PNG or JPEG is too short for the size it announces: Pillow would make room for it first."""
    depth = {"1": 1, "P": 1, "L": 2}.get(picture.mode, 8 * len(picture.getbands()))     # the least of bits a pixel
    least = {"PNG": depth / 1032, "JPEG": 2 / 64}.get(picture.format, 0)    # deflate's best; two codes a block of 8x8
    if picture.width * picture.height * least > 8 * os.path.getsize(path):
        raise OSError(f"it announces {picture.width}x{picture.height} pixels and is too short for them")


def _parse_id(line, place):
    """Give the ID in a line of a list; `place` names the line in the error."""
    words = line.split()
    path = re.fullmatch(r"(?:.*/)?([^/]+)\.(?:jpg|png)", words[0])
    if path:
        image_id = path[1]
    elif len(words) == 1:
        image_id = words[0]
    else:
        raise ValueError(f"{place}: {line[:100]!r} is neither an ID alone nor a path ending in .jpg or .png")
    if len(image_id.encode()) > 100:
        raise ValueError(f"{place}: {image_id[:40]!r}... is too long for a file's name: take at most 100 bytes")
    if not re.fullmatch(r"[\w-][\w.-]*", image_id):
        raise ValueError(f"{place}: {image_id!r} is not an ID: letters, digits and _ - . only, and no dot in front. "
                         "Rename the picture, or mend the line")
    return image_id


def _read_text(path):
    try:
        return path.read_text(encoding="utf-8-sig")     # -sig: a byte order mark is no part of the text
    except OSError as error:
        raise type(error)(f"{path} cannot be read now ({error.strerror}). {IF_GONE}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def _once_each(pairs):
    """Make a JSON object's dict; Python's own takes the last of two entries of one name."""
    if twice := _repeated(name for name, _ in pairs):
        raise ValueError(f"{twice[0][:100]!r} is there twice")
    return dict(pairs)


def _repeated(names):
    return [name for name, count in Counter(names).items() if count > 1]


def _some(names):
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
