"""The words of label tables: which column is which, what means yes, no, a split or no class at all."""
import re
from dataclasses import dataclass, field

from data.prepare.masks import plain

FILE = {"file", "filename", "filepath", "files", "image", "imagename", "imageid", "imagepath", "img", "imgname",
        "imgid", "imgpath", "photo", "picture", "path", "id", "name", "파일", "파일명", "이미지"}
LABEL = {"label", "labels", "class", "classes", "classname", "classnames", "tag", "tags", "category", "categories",
         "object", "objects", "라벨", "클래스"}
SPLIT = {"split", "set", "subset", "fold", "partition"}
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
COUNTING = {"idx", "index", "no", "nr", "num", "number", "row", "rowid", "key", "uid", "unnamed:0"}
YES, NO = {"1", "1.0", "true", "yes", "x", "t", "y"}, {"0", "0.0", "false", "no", "", "f", "n"}
NO_CLASS = {"nan", "none", "na", "null", "nil", "unknown", "noobject", "noobjects", "noclass", "nolabel", "nothing",
            "undefined"}


@dataclass
class Labels:
    """names: {photo as it is written: [class name, ...]}; classes in order; splits {photo: train|val|test}."""
    names: dict
    classes: list
    splits: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)


def key(name):
    return re.sub(r"[\s_\-.]", "", name).casefold()


def split_names(cell):
    """Split "fox; owl", "fox|owl", "fox,owl" or "['fox', 'owl']" into names."""
    cell = cell.strip()
    if cell.startswith("[") and cell.endswith("]"):
        cell = cell[1:-1]
    return [name for part in re.split(r"[;|,]", cell) if (name := part.strip().strip("'\"").strip())]


def split_of(value, place, column):
    """Return the split that a cell names; ValueError if it names none: a random split would ignore what is meant."""
    if str(value).casefold() not in SPLITS:
        raise ValueError(f"{place}: {str(value)[:60]!r} in the column {column!r} is no split: write train, val or test "
                         "for every photo, or rename the column if it means something else")
    return SPLITS[str(value).casefold()]


def check_class(name, place, instead):
    """Raise ValueError if a class name says that there is no class, or names a split.

    instead: how a photo without a class is written.
    """
    if plain(name) in NO_CLASS or (name.isascii() and not plain(name)):
        raise ValueError(f"{place}: {name!r} reads as no class. For a photo without a class {instead}; if it is a "
                         "class, give it another name")
    if name.casefold() in SPLITS.keys() - {"train", "training"}:        # a train is a class of VOC
        raise ValueError(f"{place}: {name!r} is the name of a split. Splits stand in a column named split of a CSV, or "
                         "in lists (--lists); if it is a class, give it another name")


def check_words(labels, path):
    """Refuse what reads in two ways: numbers, and "cat dog" where cat and dog are classes too."""
    classes = set(labels.classes)
    if classes and all(re.fullmatch(r"-?\d+(\.0)?", name) for name in classes):
        raise ValueError(f"{path}: the labels are numbers ({', '.join(labels.classes[:5])}), and which class a number "
                         "means is not said: write the names of the classes, or one column a class with 0 and 1")
    for name in labels.classes:
        if " " in name and classes.issuperset(name.split()):
            raise ValueError(f"{path}: {name!r} is one label, and so are {' and '.join(map(repr, name.split()))}: "
                             "separate several labels of a photo by ; and give them one spelling")
