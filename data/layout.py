"""A dataset folder in VOC's layout: classes, lists, image-level labels, paths of images, label maps.

    ROOT/JPEGImages/ID.jpg                      or .jpeg, .jpe, .jfif or .png, in any case
    ROOT/ImageSets/Segmentation/SPLIT.txt       one ID a line
    ROOT/classes.txt                            object classes in id order 1..C; absent: the 20 of VOC
    ROOT/labels.json                            {ID: [class name, ...]}; absent: Annotations/ID.xml
    ROOT/SegmentationClass/ID.png               0 background, 255 ignore; read for evaluation alone
"""
import json
import re
from functools import cached_property
from pathlib import Path

import numpy as np

from data.folders import (
    JPEG_ENDINGS,
    PARTS,
    files_by_id,
    find_label_map,
    other_map,
    prepare,
    twice_there,
    why_no_dataset,
)
from data.images import IF_GONE, TAKE_OFF, decoded, image_size, orientation, voc_palette
from data.labels import (
    check_classes,
    label_matrix,
    left_out,
    read_label_table,
    read_names_in_xml,
    read_text,
    repeated,
)
from tools.files import require_file
from tools.metrics import IGNORE
from tools.words import counted, some

VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
               "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")


class VOCLayout:
    """Read the dataset at `root`. What is missing or wrong is a FileNotFoundError or ValueError with the remedy."""

    def __init__(self, root):
        self.root = Path(root)
        if not any((self.root / folder).is_dir() for folder in PARTS):
            words = why_no_dataset(self.root)
            raise FileNotFoundError(f"no dataset at {self.root}: " + (
                f"{words}. Or name another folder with --data_root" if words else
                "expected JPEGImages/ID.jpg, ImageSets/Segmentation/SPLIT.txt and labels.json (or Annotations/ID.xml) "
                "in it. Name another folder with --data_root, or make one: python -m data.prepare folder --help; the "
                "embedded images: python -m data.prepare critters --out data/critters"))
        self._image_files = {}

    @cached_property
    def classes(self):
        """List the names of the object classes; classes[k - 1] has the id k."""
        path = self.root / "classes.txt"
        if not path.exists():
            return list(VOC_CLASSES)
        names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        if longest := [name for name in names if len(name.encode()) > 100]:
            raise ValueError(f"{path}: {longest[0][:40]!r}... is too long for a file name: take at most 100 bytes")
        if odd := [name for name in names if re.search("[\0-\x1f\x7f-\x9f]", name)]:
            raise ValueError(f"{path}: {odd[0]!r} contains a control character: remove it")
        twice = repeated(names)
        if not names or twice:
            wrong = f"names {twice[0]!r} twice" if twice else "is empty"
            raise ValueError(f"{path} {wrong}: write each object class once, one a line, in the order of the ids 1..C")
        check_classes(path, names)
        if len(names) >= IGNORE:
            raise ValueError(f"{path} has {len(names)} classes; ids are stored in 8 bits, so 254 is the most")
        return names

    def ids(self, list_name):
        """Read the IDs of a split, named as in ImageSets/Segmentation (`train_aug`), or of a list file (`my/list.txt`).

        A line is "ID" or "/JPEGImages/ID.jpg /SegmentationClassAug/ID.png" (whatever the folders).
        """
        path = self.list_path(list_name)
        ids = []
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if line.strip():
                ids.append(parse_id(line, f"{path}, line {number}"))
        if not ids:
            raise ValueError(f"{path} lists no image: write one ID a line")
        if twice := repeated(ids):
            raise ValueError(f"{path} lists {counted(len(twice), 'image')} more than once ({some(twice)}): keep "
                             "one line of each")
        return ids

    def chosen(self, list_name, only="", shard="1/1"):
        """Read a list whose images must exist; returns the IDs of its shard I/N, or only the ID `only`."""
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
            if path.exists() and not path.is_dir():
                return path
        there = sorted(path.stem for path in splits.glob("*.txt"))
        raise FileNotFoundError(f"no list {list_name}: neither {splits / f'{list_name}.txt'} nor the file {list_name} "
                                f"exists. {self._instead_of(list_name, there)}")

    def _instead_of(self, list_name, there):
        """Say what can be done without a list. there: names of those that exist."""
        words = (f"This dataset's splits: {', '.join(there)}. Name one, or a file" if there else
                 "This dataset has no list: write one, with one ID a line")
        if list_name != "train_aug":
            return words
        words += " (--train_list, of infer_aff.py --infer_list)" * bool(there)
        if (self.root / "classes.txt").exists():
            return f"train_aug, VOC's list, is what the training stages take unless another is named. {words}"
        return ("train_aug is VOC's train with the images of SBD, 10,582 in all, and no part of VOC's archive. To make "
                f"it: {prepare('voc', root=self.root)} --download (or --sbd benchmark.tgz, or --lists DIR). {words}")

    def label(self, image_id):
        """Read the image-level label of one image: float32 (C,), 1 where the class is present."""
        return label_matrix([self._names(image_id)], self.classes)[0]

    def labels(self, ids):
        """Read the image-level labels of `ids`: float32 (N, C). ValueError where names in Annotations/ cannot be right.

        `left_out` then says in a sentence which of them were left out, being no class; it is "" if none was.
        """
        names = [self._names(image_id) for image_id in ids]
        self.left_out = left_out(names, self.classes, self.root)
        return label_matrix(names, self.classes)

    def _names(self, image_id):
        if self._label_table is None:
            return read_names_in_xml(self.root / "Annotations" / f"{image_id}.xml", image_id)
        if image_id not in self._label_table:
            named = next((key for key in self._label_table if key.lower().startswith(f"{image_id.lower()}.")
                          or key.lower() == image_id.lower()), None)
            raise ValueError(f"image without labels: {image_id} is not in {self.root / 'labels.json'}. "
                             + (f"{named!r} is: write the ID alone there, as in the list" if named else
                                f'Add "{image_id}": [class names] there, or take it off the list'))
        return self._label_table[image_id]

    @cached_property
    def _label_table(self):
        """Read labels.json, {ID: set of class names}; None where there is no such file."""
        path = self.root / "labels.json"
        return read_label_table(path, self.classes) if path.exists() else None

    def image_path(self, image_id):
        """Return the path of the image: .jpg, .jpeg or .png, in any case."""
        folder = self.root / "JPEGImages"
        names = self._image_files.get(image_id, ())
        if len(names) != 1 or not (folder / names[0]).exists():
            if folder.is_dir():
                self._image_files = files_by_id(folder)
            names = self._image_files.get(image_id, ())
        if words := twice_there(folder, {image_id: names}):
            raise ValueError(words)
        if names and (path := folder / names[0]).exists():
            return path
        raise FileNotFoundError(f"no image for {image_id}: neither {folder / image_id}.jpg nor .jpeg nor .png exists. "
                                f"Put it there, or take the ID off the list. {IF_GONE}")

    def sources(self):
        """List the existing files on which labels and, in generated or prepared sets, images depend."""
        return [path for name in ("classes.txt", "labels.json", "made_by.json") if (path := self.root / name).exists()]

    def check(self, ids, list_name="the list"):
        """Raise an error unless each image of `ids` exists once; reads the folder once."""
        folder = self.root / "JPEGImages"
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}, where the {len(ids)} images of {list_name} should be; "
                                    "--data_root names another dataset")
        self._image_files = files_by_id(folder)
        if words := twice_there(folder, {i: self._image_files.get(i, ()) for i in ids}):
            raise ValueError(words)
        missing = [image_id for image_id in ids if image_id not in self._image_files]
        if missing:
            raise FileNotFoundError(f"{len(missing)} of the {len(ids)} images of {list_name} are not in {folder} as "
                                    f".jpg, .jpeg or .png ({some(missing)}). Put them there, or take them off the "
                                    "list")

    def ground_truth(self, image_id, gt_dir=None):
        """Read the ground truth of one image, from SegmentationClass/ or gt_dir: as read_label_map."""
        folder = Path(gt_dir or self.root / "SegmentationClass")
        if not find_label_map(folder, image_id):
            raise FileNotFoundError(f"no ground truth {folder / image_id}.png: without it the image cannot be scored; "
                                    f"{self.without_map(folder, [image_id])}--gt_dir names another folder. {IF_GONE}")
        return self.read_label_map(image_id, folder)

    def has_ground_truth(self, image_id, gt_dir=None):
        return find_label_map(gt_dir or self.root / "SegmentationClass", image_id) is not None

    def ground_truth_kind(self, gt_dir=None):
        """Say what kind of ground truth a prepared set has, where it is not usual: every table says so; else ""."""
        path = self.root / "made_by.json"
        try:
            require_file(path)
            kind = json.loads(path.read_text("utf-8")).get("ground_truth", "")
        except (OSError, ValueError, AttributeError):
            kind = ""
        return kind if isinstance(kind, str) and not gt_dir else ""

    def without_map(self, folder, ids):
        """Say what lies there in place of the label maps of these images, and how to convert it; "" if nothing does."""
        other = other_map(folder, ids)
        if not other:
            return ""
        if other.suffix.lower() in JPEG_ENDINGS:
            return f"{other} is there, but JPEG changes the values: label maps are PNG. "
        return f"{other} is there, but label maps are PNG. {self._to_convert(folder)}. "

    def read_label_map(self, image_id, folder):
        """Read a label map, whoever wrote it, uint8 (H, W): class ids, 0 background, 255 ignore."""
        path = find_label_map(folder, image_id) or Path(folder) / f"{image_id}.png"
        with decoded(path, f"{TAKE_OFF}, or, if a stage wrote it, delete it and run that stage again") as image:
            mode, labels, palette = image.mode, np.array(image), image.getpalette("RGB") if image.mode == "P" else None
        if palette and vocs_colours_elsewhere(labels, palette):
            raise ValueError(f"{path} has VOC's colours, but not at their class ids: its palette was made anew when it "
                             f"was saved. {self._to_convert(folder, coloured=True)}")
        if mode not in ("P", "L"):
            coloured = mode not in ("1", "F") and not mode.startswith("I")
            raise ValueError(f"{path} is an image of mode {mode}: a label map is a palette or 8-bit gray PNG whose "
                             f"values are class ids. {self._to_convert(folder, coloured)}")
        unknown = labels[(labels > len(self.classes)) & (labels != IGNORE)]
        if unknown.size:
            raise ValueError(f"{path} holds the class id {unknown[0]}, but this dataset's ids are 0.."
                             f"{len(self.classes)} and {IGNORE}: convert it, or fix classes.txt")
        return labels

    def _to_convert(self, folder, coloured=False):
        """Name the command that makes label maps of a folder of masks."""
        labels, classes = self.root / "labels.json", self.root / "classes.txt"
        command = prepare(
            "folder", images=self.root / "JPEGImages", labels=labels if labels.exists() else "labels.csv",
            **{"classes": classes} if classes.exists() else {}, masks=folder,
            **{"mask_colours": "voc"} if coloured else {}, root=f"{self.root}_converted")
        return f"To convert the masks: {command}" + (
            ". In place of voc, a file with lines like \"128 0 0 dog\" names other colours" if coloured else "")

    def other_sizes(self, sizes):
        """Say that maps are of another size, and why. sizes {ID: (the map's (H, W), the size that it should have)}."""
        few = "; ".join(f"{i}: {found} and {wanted}" for i, (found, wanted) in list(sizes.items())[:3])
        for image_id, pair in sizes.items():
            path = self._path_or_none(image_id)
            if path and tuple(pair[0]) == tuple(pair[1])[::-1] and orientation(path) in (5, 6, 7, 8):
                return (f"({few}): the EXIF data of {path} say how the photo is to be turned, and it is read so; the "
                        f"map of {image_size(path)[::-1]} was made without that. Turn that map as the photo, or save "
                        "the photo upright, without EXIF data, and make the maps again")
        return f"({few}): were they written for other images?"

    def _path_or_none(self, image_id):
        try:
            return self.image_path(image_id)
        except (ValueError, OSError):
            return None


def parse_id(line, place):
    """Return the ID in a line of a list; `place` names the line in errors."""
    words = line.split()
    path = re.fullmatch(r"(?i)(?:.*/)?([^/]+)\.(?:jpe?g|jpe|jfif|png)", words[0])
    if path:
        image_id = path[1]
    elif len(words) == 1:
        image_id = words[0]
    else:
        raise ValueError(f"{place}: {line[:100]!r} is neither an ID alone nor a path ending in .jpg, .jpeg or .png")
    if len(image_id.encode()) > 100:
        raise ValueError(f"{place}: {image_id[:40]!r}... is too long for a file name: take at most 100 bytes")
    if not re.fullmatch(r"[\w-][\w.-]*", image_id):
        raise ValueError(f"{place}: {image_id!r} is not an ID: letters, digits and _ - . only, and no dot in front. "
                         "Rename the image, or fix the line")
    return image_id


def vocs_colours_elsewhere(labels, palette):
    """Say whether a palette gives the ids in a label map colours that are all VOC's, but those of other ids."""
    ids, voc = np.unique(labels), np.frombuffer(voc_palette(), np.uint8).reshape(-1, 3)
    own = np.zeros((256, 3), np.uint8)
    own[:len(palette) // 3] = np.reshape(palette, (-1, 3))
    of_voc = {tuple(colour) for colour in voc[[*range(1, 21), IGNORE]].tolist()} | {(0, 0, 0)}
    return (own[ids] != voc[ids]).any() and all(tuple(colour) in of_voc for colour in own[ids].tolist())
