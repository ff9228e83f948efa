"""Masks as people have them, in class ids or in colours, to label maps of class ids.

Colours are `voc` (the k-th class has the k-th colour of VOC's palette; a class that VOC has keeps VOC's colour) or a
file with one colour a line, in any of these forms; `background` and `ignore` are names too:

    128 0 0 fox          fox,128,0,0          #800000 fox          fox:128,0,0::          255 fox       (gray, or an id)
"""
import re
from collections import Counter
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import decoded, voc_palette
from data.labels import NOT_OBJECTS
from data.layout import IGNORE, VOC_CLASSES, vocs_colours_elsewhere
from data.prepare.photos import normal
from tools.files import require_file

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")         # .jpg changes colours, so it cannot hold a mask
IGNORED = NOT_OBJECTS - {"background"}
VOC_COLOURS = list(zip(*[iter(voc_palette())] * 3))                          # (r, g, b) of each id
ORDER = "name all classes in the order of the masks' ids with --classes A,B,C"
REMEDY = "save it again, or take it out of the folder of masks"


def read_colours(source, classes):
    """Return {(r, g, b): class id} of `voc` or of a file; names are compared without case."""
    if str(source) == "voc":
        own = set(classes) <= set(VOC_CLASSES)
        ids = [VOC_CLASSES.index(name) + 1 if own else k for k, name in enumerate(classes, start=1)]
        colours = {VOC_COLOURS[k]: i for i, k in enumerate(ids, start=1)}
        return {**colours, VOC_COLOURS[0]: 0, VOC_COLOURS[IGNORE]: IGNORE}
    ids = {name.casefold(): k for k, name in enumerate(classes, start=1)}
    colours = {}
    for number, line in enumerate(_lines(Path(source)), start=1):
        place, found = f"{source} (--mask_colours), line {number}", _parse(line)
        if found is None:
            if not line.strip() or line.startswith(("# ", "//")) or (not colours and not re.search(r"\d", line)):
                continue                                    # a comment or a header
            raise ValueError(f"{place}: {line[:80]!r} is no colour: write \"128 0 0 fox\" (red green blue name)")
        colour, name = found
        if name.casefold() not in ids and plain(name) not in NOT_OBJECTS:
            raise ValueError(f"{place}: {name!r} is no class; the classes are {', '.join(classes[:30])}, and there "
                             "are background and ignore")
        k = ids.get(name.casefold(), IGNORE if plain(name) in IGNORED else 0)
        if colours.setdefault(colour, k) != k:
            raise ValueError(f"{place}: the colour {colour} is given to two classes")
    if lacking := [name for k, name in enumerate(classes, start=1) if k not in colours.values()]:
        raise ValueError(f"{source} (--mask_colours) has no colour for {', '.join(lacking[:10])}: add a line for each")
    return colours


def plain(name):
    """Leave out marks and case: _background_ and Background are the same."""
    return re.sub(r"[\W_]", "", name.casefold())


def _lines(path):
    require_file(path)
    try:
        return path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise type(error)(f"{path} (--mask_colours) cannot be read ({error.strerror}): name a file with one colour "
                          "a line, as \"128 0 0 fox\", or voc") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} (--mask_colours) is not UTF-8 text: save it as UTF-8") from None


def _parse(line):
    """Return ((r, g, b), name) of a line, or None."""
    line, gap, end = line.strip(), r"[\s,;:]+", r"[\s,;:]*"
    number, value = r"(\d{1,3})", r"(\d{1,5})"
    three = gap.join([number] * 3)
    if found := re.fullmatch(rf"{three}{gap}(.*\S)", line):
        *colour, name = found.groups()
    elif found := re.fullmatch(rf"(.*?\S){gap}{three}{end}", line):
        name, *colour = found.groups()
    elif found := re.fullmatch(rf"#([0-9a-fA-F]{{6}}){gap}(.*\S)", line):
        colour, name = list(bytes.fromhex(found[1])), found[2]
    elif found := re.fullmatch(rf"(.*?\S){gap}#([0-9a-fA-F]{{6}}){end}", line):
        name, colour = found[1], list(bytes.fromhex(found[2]))
    elif found := re.fullmatch(rf"{value}{gap}(.*\S)", line) or re.fullmatch(rf"(.*?\S){gap}{value}{end}", line):
        gray, name = found.groups() if found[1].isdecimal() else found.groups()[::-1]
        colour = [gray] * 3
    else:
        return None
    colour = tuple(int(part) for part in colour)
    most = 65535 if len(set(colour)) == 1 and found.re.groups == 2 else 255         # a gray value may have 16 bits
    return (colour, name.strip(" \t,;:\"'")) if max(colour) <= most else None


def find_masks(folder, names):
    """Return {photo: path of its mask}: the same name, with or without its folders, maybe with _mask or _gt behind."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} (--masks): name the one that holds the masks")
    there = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            there.setdefault(normal(path.relative_to(folder).with_suffix("").as_posix()), path)
            there.setdefault(normal(path.stem), path)
    masks = {}
    for name in names:
        stem = name[: -len(Path(name).suffix)]
        for key in (stem, Path(stem).name):
            found = [there[key + end] for end in ("", "_mask", "_gt", "_label", "_seg", "-mask") if key + end in there]
            if found:
                masks[name] = found[0]
                break
    if not masks:
        raise ValueError(f"{folder} (--masks) holds no mask of these photos: {Path(next(iter(names))).stem}.png would "
                         f"be one ({' '.join(SUFFIXES)})")
    paths = Counter(masks.values())
    if shared := [path for path, n in paths.items() if n > 1]:
        raise ValueError(f"{shared[0]} would be the mask of {paths[shared[0]]} photos of the same name: put the masks "
                         "into the same subfolders as the photos")
    print(f"{len(masks)} of {len(names)} photos have a mask in {folder}")
    return masks


class Converter:
    """Read masks as label maps: uint8 (H, W), class ids, 0 background, 255 ignore.

    colours: {(r, g, b): id}, or None where masks hold ids. Errors are ValueErrors that name the file and the remedy.
    """

    def __init__(self, classes, colours=None):
        self.classes, self.colours = classes, colours

    def read(self, path, has_object=True):
        """Read one mask. has_object: the photo's label has a class, so a mask that only ignores is an error."""
        with decoded(path, REMEDY) as image:
            mode, gray = image.mode, image.mode in ("1", "L") or image.mode.startswith("I")
            palette = image.getpalette("RGB") if mode == "P" else None
            values = np.array(image.convert("L") if mode == "1" else image)
            rgb = None if gray or self.colours is None else np.array(image.convert("RGB"))
        if self.colours is None:
            if palette and vocs_colours_elsewhere(values, palette):
                raise ValueError(f"{path} has VOC's colours, but not at their class ids: it was saved with a new "
                                 "palette. Give --mask_colours voc, or a file with a line \"128 0 0 "
                                 f"{self.classes[0]}\" for each class")
            return self._ids(values, mode, path, has_object)
        if gray or (palette and self._are_ids(values, rgb)):
            return self._of_values(values, mode, path, has_object)
        return self._of_colours(rgb, path)

    def _are_ids(self, values, rgb):
        """Tell whether a file of gray values means the ids of a palette image, not the colours that it shows."""
        grays = all(len(set(colour)) == 1 for colour in self.colours)
        return grays and ((rgb != rgb[..., :1]).any() or (rgb == np.array(VOC_COLOURS)[values]).all())

    def _ids(self, labels, mode, path, has_object):
        if labels.ndim > 2 or labels.dtype.kind not in "ui":
            raise ValueError(f"{path} is in colour (mode {mode}): --mask_colours voc or FILE says which colour is "
                             "which class")
        odd = np.unique(labels[(labels > len(self.classes)) & (labels != IGNORE)])
        if odd.size:
            raise ValueError(f"{path} holds the values {', '.join(map(str, odd[:5].tolist()))}, but the ids of the "
                             f"{len(self.classes)} classes are 1..{len(self.classes)}, and {IGNORE} means ignore: "
                             f"{ORDER}, or write the lines \"0 background\", \"255 ignore\" and one for each class, as "
                             f"\"{odd[0]} {self.classes[0]}\", into a file and name it with --mask_colours")
        if has_object and set(np.unique(labels).tolist()) == {0, IGNORE} and len(self.classes) > 1:
            raise ValueError(f"{path} holds 0 and 255 alone, and 255 means ignore. Such masks cannot tell "
                             f"{len(self.classes)} classes apart: save masks of the ids 1..{len(self.classes)}, or "
                             "take these out of --masks")
        if has_object and set(np.unique(labels).tolist()) == {0, IGNORE}:
            raise ValueError(f"{path} holds 0 and 255 alone, and 255 means ignore: if 255 is {self.classes[0]}, write "
                             f"the lines \"0 background\" and \"255 {self.classes[0]}\" into a file and name it with "
                             "--mask_colours")
        return labels.astype(np.uint8)

    def _of_values(self, values, mode, path, has_object):
        table = np.full(65537, -1, np.int16)                                                  # by value, and one above
        for (value, *others), k in self.colours.items():
            if others == [value, value]:
                table[value] = k
        labels = table[np.clip(values, -1, 65536)]
        if (labels >= 0).all():
            return labels.astype(np.uint8)
        if any(len(set(colour)) > 1 for colour in self.colours):            # the masks hold colours, this one holds ids
            return self._ids(values, mode, path, has_object)
        odd = np.unique(values[labels < 0]).tolist()
        raise ValueError(f"{path} holds the values {', '.join(map(str, odd[:5]))}, which the file of --mask_colours "
                         f"does not name: add a line for each, as \"{odd[0]} {self._name(odd[0])}\"")

    def _name(self, value):
        return "background" if value == 0 else "ignore" if value == IGNORE else self.classes[0]

    def _of_colours(self, image, path):
        packed = image.astype(np.int32) @ np.array([65536, 256, 1], np.int32)                  # (H, W)
        labels = self._table[packed]
        if (labels < 0).any():
            odd = [(v >> 16, v >> 8 & 255, v & 255) for v in np.unique(packed[labels < 0]).tolist()]
            vocs = [k for k in VOC_COLOURS[1:IGNORE] if k in odd]
            name = "background" if odd[0] == (0, 0, 0) else "ignore"
            remedy = f"name it in a file for --mask_colours, as \"{' '.join(map(str, odd[0]))} {name}\""
            if len(odd) > 20:
                remedy = "was it saved as JPEG or resized with smoothing? Resize masks by nearest neighbour"
            elif vocs:
                k = VOC_COLOURS.index(vocs[0])
                remedy = f"as an id it is {k}, and there are {len(self.classes)} classes: {ORDER}, or {remedy}"
            raise ValueError(f"{path}: {100 * (labels < 0).mean():.1f}% of its pixels have colours of no class "
                             f"({', '.join(map(str, odd[:3]))}): {remedy}")
        return labels.astype(np.uint8)

    @cached_property
    def _table(self):
        table = np.full(1 << 24, -1, np.int16)                                                # by packed colour
        for (red, green, blue), k in self.colours.items():
            if red <= 255:                                                  # above: a value of a 16-bit gray mask
                table[red << 16 | green << 8 | blue] = k
        return table


def turned_with_photo(labels, size, orientation):
    """Turn a mask (H, W) of an EXIF-rotated photo as the photo is turned, if it is of the photo's size before that.

    size: (H, W) of the upright photo. Returns the mask, or None where no turning makes it fit.
    """
    if labels.shape == size:
        return labels
    method = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
              8: Image.Transpose.ROTATE_90}.get(orientation)
    if method is None or labels.shape != size[::-1]:
        return None
    return np.array(Image.fromarray(labels).transpose(method))
