"""Image-level labels: the names of the classes that an image shows, from labels.json or Annotations/ID.xml."""
import json
import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np

from data.folders import prepare
from data.images import IF_GONE
from tools.files import require_file
from tools.words import some

NOT_OBJECTS = {"background", "bg", "backgroundclass", "ignore", "ignored", "ignorelabel", "void", "unlabeled",
               "unlabelled", "dontcare"}                # as _plain writes them: list object classes only


def read_label_table(path, classes):
    """Read labels.json, {ID: set of class names}. ValueError if it is of another form or names what is no class."""
    text = read_text(path)
    try:
        table = json.loads(text, object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:       # not only JSONDecodeError: a number may be too long
        table = "" if text.lstrip()[:1] in ("{", "[", "") else f". From a CSV file: {_to_prepare(path)}"
        raise ValueError(f"{path} is not JSON ({error}): fix it there{table}") from None
    if isinstance(table, dict) and "annotations" in table and table.keys() & {"images", "categories", "info"}:
        command = prepare("coco", root=f"{path.parent}_coco", images=path.parent / "JPEGImages", annotations=path)
        raise ValueError(f"{path} is a file of COCO's annotations, not {{ID: [class name, ...]}}. To make a dataset "
                         f"from its instances: {command}")
    if not isinstance(table, dict):
        raise ValueError(f"{path} is not of the form {{ID: [class name, ...]}}. To make a dataset from another form: "
                         f"{_to_prepare(path)}")
    for image_id, names in table.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            other = f", or make a dataset from another form: {_to_prepare(path)}" * isinstance(names, str | dict)
            raise ValueError(f"{path}: the label of {image_id[:100]!r} is not a list of class names, as [\"cat\"]: fix "
                             f"it there{other}")
    known = set(classes)
    unknown = Counter(name for names in table.values() for name in set(names) - known)
    if unknown:
        first = next(image_id for image_id, names in table.items() if not known.issuperset(names))
        name, meant = min(set(table[first]) - known), _matches(unknown, classes)
        others = f"; so are {_counted(unknown - Counter({name: unknown[name]}))}" if len(unknown) > 1 else ""
        raise ValueError(f"{path}: {first[:100]!r} has the class {name[:100]!r}, which is none of this dataset "
                         f"({_counted({name: unknown[name]})}{others}). "
                         + _remedy(path.parent, meant, unknown, classes))
    return {image_id: set(names) for image_id, names in table.items()}


def read_names_in_xml(path, image_id):
    """Read the names of all objects, difficult ones too, from Annotations/ID.xml; parts of objects are not read."""
    require_file(path)
    try:
        tree = ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"image without labels: {image_id} has no {path}, and there is no "
                         f"{path.parent.parent / 'labels.json'}. Add one of them, or take it off the list. From "
                         "cls_labels.npy, a CSV file or one folder a class, python -m data.prepare voc or folder makes "
                         "labels.json") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is not XML ({error}): fetch it again or fix it") from None
    return {(name.text or "").strip() for name in tree.iterfind("{*}object/{*}name")}


def left_out(names, classes, root):
    """Say in a sentence which names of annotated objects are no class, and so not in the labels; "" if none.

    names  a set of names for each image
    ValueError where they cannot be right: names that are classes but for their spelling (FOX for fox), no classes.txt,
    or not one name that is a class.
    """
    unknown = Counter(name for own in names for name in own if name not in classes)
    if not unknown:
        return ""
    meant = _matches(unknown, classes)
    without = not (root / "classes.txt").exists()
    if meant or without or not any(name in classes for own in names for name in own):
        wrong = {name: unknown[name] for name in meant} or unknown
        none = "" if any(name in classes for own in names for name in own) else "none of the names is a class: "
        raise ValueError(f"{root / 'Annotations'}: {none}{_counted(wrong)} {'is' if len(wrong) == 1 else 'are'} no "
                         f"class of this dataset. {_remedy(root, meant, unknown, classes)}")
    return f"left out, because they are no class: {_counted(unknown)}"


def check_learnable(labels, classes, list_name, root):
    """Raise ValueError if nothing can be learned from labels (N, C); return sentences on what hardly can."""
    images = labels.sum(0)
    if not images.any():
        raise ValueError(f"no image of {list_name} has a class: nothing can be learned. Look at "
                         f"{root / 'labels.json' if (root / 'labels.json').exists() else root / 'Annotations'} and at "
                         f"{root / 'classes.txt'}")
    notes = []
    if empty := int((labels.sum(1) == 0).sum()):
        notes.append(f"{empty} of {len(labels)} images have no class")
    if never := [name for name, count in zip(classes, images) if count == 0]:
        vocs = "" if (root / "classes.txt").exists() else (
            f". There is no {root / 'classes.txt'}, so VOC's 20 classes are taken: if these are not the classes of "
            "this dataset, write them there, one a line")
        notes.append(f"no image of {list_name} has {some(never, 5)}: that cannot be learned{vocs}")
    if always := [name for name, count in zip(classes, images) if count == len(labels)]:
        notes.append(f"warning: every image of {list_name} has {some(always, 5)}: there is nothing to tell it apart "
                     "from, so its maps will mean little. Add images without it")
    return notes


def check_classes(path, names):
    """Raise ValueError if a name of classes.txt stands for no object: with it all ids would be shifted."""
    if wrong := [name for name in names if _plain(name).lstrip("0123456789") in NOT_OBJECTS]:
        raise ValueError(f"{path} lists {wrong[0]!r}: list object classes only. The background has the id 0 and "
                         "ignored pixels 255 without a line; the first line is the class with the id 1")


def read_text(path):
    require_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")     # -sig: a byte order mark is no part of the text
    except OSError as error:
        raise type(error)(f"{path} cannot be read now ({error.strerror}). {IF_GONE}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def repeated(names):
    return [name for name, count in Counter(names).items() if count > 1]


def _to_prepare(path):
    return prepare("folder", images=path.parent / "JPEGImages", labels=path, root=f"{path.parent}_dataset")


def once_each(pairs):
    """Build a JSON object's dict. Python's default keeps the last of two entries with the same name."""
    if twice := repeated(name for name, _ in pairs):
        raise ValueError(f"{twice[0][:100]!r} is there twice")
    return dict(pairs)


def _matches(names, classes):
    """Find names that are classes but for case, spaces and marks: {name: class}."""
    near = {_plain(name): name for name in classes}
    return {name: near[_plain(name)] for name in names if _plain(name) in near}


def _plain(name):
    return re.sub(r"[\W_]", "", name.casefold())


def _remedy(root, meant, unknown, classes):
    if meant:
        return (", ".join(f"{right[:100]} is, where {name[:100]!r} stands" for name, right in list(meant.items())[:5])
                + f": fix the names there, or {root / 'classes.txt'}")
    if together := next((name for name in classes if {*re.split(r"\s*[;,|]\s*", name)} & {*unknown}), None):
        return f"{root / 'classes.txt'} has {together[:100]!r} in one line: write one class a line there"
    if nothing := next((name for name in unknown if _plain(name) in NOT_OBJECTS), None):
        return f"{nothing[:100]!r} is no object class: take it out of the labels"
    if not (root / "classes.txt").exists():
        return (f"There is no {root / 'classes.txt'}, so VOC's 20 classes are taken: write this dataset's there, one a "
                "line in the order of the ids 1..C")
    return f"Fix it there, or add the class to {root / 'classes.txt'}"


def _counted(names):
    return some([f"{name[:100]!r} ({count} image{'s' if count > 1 else ''})" for name, count in names.items()], 5)


def label_matrix(names, classes):
    """Turn a set of names for each image into labels: float32 (N, C), 1 where the class is present."""
    return np.array([[name in own for name in classes] for own in names], np.float32).reshape(len(names), len(classes))
