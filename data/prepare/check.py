"""Look through a dataset folder: everything that is wrong with it, counts, and a contact sheet.

Reads   ROOT in the layout of data/layout.py: every list, label, image and mask; --data_root of the stages names it
Writes  ROOT/check.png             24 photos with their masks (--sheet names another file)
Run     python -m data.prepare check --root data/mine

An error is what stops a stage or makes its result mean nothing; a warning is what may be meant so. The exit status is 1
if there is an error.
"""
import json
import shlex
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from data.folders import files_by_id
from data.labels import check_learnable, left_out, read_label_table, read_names_in_xml, read_text, repeated
from data.layout import IGNORE, VOCLayout, parse_id
from data.prepare.look import LIMIT, look
from data.prepare.parallel import cores, spread
from data.prepare.sheet import check_sheet, write_sheet
from data.prepare.splits import learned_and_scored
from tools.words import counted

FIRST = 3                                           # of the names that a line gives
KINDS = {                                           # of what may be wrong with an image or its mask: see look()
    "unreadable": ("image", "", "cannot be read"),  # noun, verb, what it does or is
    "mask": ("mask", "", "cannot be read"),
    "exif": ("mask", "is", "not turned as EXIF turns the photo"),
    "size": ("mask", "is", "of another size than the image"),
    "colour": ("mask", "is", "in colour or of 16 bits"),
    "palette": ("mask", "has", "VOC's colours, but not at their class ids: the palette was made anew on saving"),
    "ids": ("mask", "holds", "values that are no class's id"),
}
REMEDIES = {
    "unreadable": "",                               # the sentence of each says what to do
    "mask": "",
    "exif": "To turn the masks: {turn}",
    "size": "Resize them by nearest neighbour, or remove them",
    "colour": "To convert masks in VOC's colours: {voc} -- in other colours: write a line \"128 0 0 NAME\" for each "
              "class into colours.txt and name that instead of voc",
    "palette": "To convert them: {voc}",
    "ids": "Write the missing classes into classes.txt, or, if a value stands for another class, write the lines \"0 "
           "background\", \"255 ignore\" and \"VALUE NAME\" for each class into colours.txt, and: {file}",
}


def add_arguments(parser):
    parser.add_argument("--root", type=Path, required=True, metavar="R", help="dataset folder")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="contact sheet to write; without it ROOT/check.png")


def run(args):
    layout, found = VOCLayout(args.root), Findings()
    check_sheet(args.sheet or args.root / "check.png", args.root)
    classes = found.tried(lambda: layout.classes) or []
    lists = read_lists(layout, found)
    images, masks = files_of(args.root / "JPEGImages"), files_of(args.root / "SegmentationClass")
    listed = list(dict.fromkeys(i for ids in lists.values() for i in ids)) or sorted(images)
    check_images(layout, lists, listed, images, found)
    jobs = [(i, images[i][0], masks[i][0] if i in masks else None) for i in listed if i in images]
    looks = {each.image_id: each for each in spread(partial(look, classes=len(classes) or IGNORE - 1), jobs, cores(),
                                                    "looking")}
    labels = read_labels(layout, classes, lists, listed, images, found)
    check_looks(layout, looks, found)
    check_masks(args.root, looks, labels, classes, lists, masks, images, found)
    check_splits(lists, labels, classes, looks, layout, found)

    print_counts(args.root, lists, listed, labels, classes, looks)
    write_sheet(args.sheet or args.root / "check.png", looks, labels, images, masks)
    found.end(args.root)


class Findings:
    """Collect errors and warnings; print them at the end, so that no progress bar runs through them."""

    def __init__(self):
        self.errors, self.warnings = [], []

    def error(self, text, names=()):
        self.errors.append(text + _first(names))

    def warning(self, text, names=()):
        self.warnings.append(text + _first(names))

    def tried(self, read):
        """Call read(); a ValueError or OSError becomes an error, and the result None."""
        try:
            return read()
        except (ValueError, OSError) as error:
            self.error(str(error))
            return None

    def end(self, root):
        for text in self.errors:
            print(f"- error: {text}")
        for text in self.warnings:
            print(f"- warning: {text}")
        if self.errors:
            raise ValueError(f"{root} has errors ({len(self.errors)}) and warnings ({len(self.warnings)}), all listed "
                             "above")
        print(f"{root}: " + (f"no errors, {counted(len(self.warnings), 'warning')}" if self.warnings else
                             "nothing is wrong"))


def _first(names):
    names = list(map(str, names))
    return f" ({', '.join(names[:FIRST])}{', ...' if len(names) > FIRST else ''})" if names else ""


# ---- lists and files ----

def read_lists(layout, found):
    """Read all lists of the dataset: {split: [ID, ...]}, without the lines that are wrong."""
    folder, lists = layout.root / "ImageSets" / "Segmentation", {}
    for path in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
        text = found.tried(lambda path=path: read_text(path))
        lines = [(n, line) for n, line in enumerate((text or "").split("\n"), start=1) if line.strip()]
        ids = [found.tried(lambda line=line, place=f"{path}, line {n}": parse_id(line, place)) for n, line in lines]
        ids = [image_id for image_id in ids if image_id]
        if twice := repeated(ids):
            found.error(f"{path} lists {counted(len(twice), 'image')} more than once: keep one line of each", twice)
        if text is not None and not lines:
            found.error(f"{path} lists no image: write one ID a line, or remove it")
        lists[path.stem] = list(dict.fromkeys(ids))
    if not lists:
        found.error(f"{folder} holds no list: write train.txt and val.txt there, one ID a line")
    elif "train_aug" not in lists:
        found.warning(f"there is no {folder / 'train_aug.txt'}, the list that training takes without --train_list: "
                      f"name another one with --train_list ({', '.join(lists)})")
    return lists


def files_of(folder):
    """List the images in a folder: {ID: [path, ...]}; more than one where an ID names two files."""
    there = files_by_id(folder) if folder.is_dir() else {}
    return {i: [folder / name for name in names] for i, names in sorted(there.items()) if not i.startswith(".")}


def check_images(layout, lists, listed, images, found):
    folder = layout.root / "JPEGImages"
    if not folder.is_dir():
        found.error(f"there is no folder {folder}: put the images there")
        return
    for split, ids in lists.items():
        if missing := [i for i in ids if i not in images]:
            found.error(f"{len(missing)} of the {len(ids)} images of {split} are not in {folder}: put them there, or "
                        "take them off the list", missing)
    if twice := [" and ".join(path.name for path in paths) for paths in images.values() if len(paths) > 1]:
        found.error(f"{counted(len(twice), 'image', 'is')} there twice: remove one of each", twice)
    if lists and (bare := sorted(images.keys() - set(listed))):
        found.warning(f"{counted(len(bare), 'image', 'is')} in no list, so nothing reads them", bare)


# ---- labels ----

def read_labels(layout, classes, lists, listed, images, found):
    """Read the image-level labels: {ID: set of classes}; a list named test needs none."""
    known = {i for split, ids in lists.items() if not split.startswith("test") for i in ids}
    needed = [i for i in listed if i in known] if lists else listed
    path = layout.root / "labels.json"
    if path.exists():
        table = found.tried(lambda: read_label_table(path, classes)) if classes else None
        if table is None:
            table = what_can_be_read(path, classes)
        if missing := [i for i in needed if i not in table] if table else []:
            found.error(f"{counted(len(missing), 'image', 'has')} no label in {path}: add them there, or take them "
                        "off the lists", missing)
        if ghosts := sorted(table.keys() - images.keys()):
            found.warning(f"{path} has {counted(len(ghosts), 'label')} of images that are not there", ghosts)
        return table
    table, wrong = {}, []
    for image_id in needed:
        try:
            table[image_id] = read_names_in_xml(layout.root / "Annotations" / f"{image_id}.xml", image_id)
        except (ValueError, OSError) as error:
            wrong.append(str(error))
    if wrong:
        found.error(f"the labels of {counted(len(wrong), 'image')} cannot be read. The first: {wrong[0]}")
    if classes and (words := found.tried(lambda: left_out(list(table.values()), classes, layout.root))):
        found.warning(words)
    return {image_id: names & set(classes) for image_id, names in table.items()}


def what_can_be_read(path, classes):
    """Read the labels of a labels.json that is wrong somewhere, so that the rest of the dataset is checked too."""
    try:
        table = json.loads(read_text(path))
        return {i: set(names) & set(classes) for i, names in table.items() if isinstance(names, list)}
    except (ValueError, TypeError, AttributeError, OSError, RecursionError):
        return {}


def check_splits(lists, labels, classes, looks, layout, found):
    """Compare the lists: images in two of them, the same photo under two names, classes that one of them lacks."""
    learned, scored = ({split: lists[split] for split in splits} for splits in learned_and_scored(lists))
    if learned.get("train") == learned.get("train_aug", ()):
        del learned["train_aug"]
    for train, ids in learned.items():
        for split, others in scored.items():
            if both := sorted(set(ids) & set(others)):
                found.error(f"{counted(len(both), 'image', 'is')} in {train} and in {split}: a score on {split} "
                            "would be too good. Take them off one", both)
        if labels and classes and (known := [i for i in ids if i in labels]):
            rows = np.array([[name in labels[i] for name in classes] for i in known], np.float32)
            notes = found.tried(lambda rows=rows, train=train: check_learnable(rows, classes, train, layout.root))
            for words in notes or ():
                found.warning(f"{train}: {words.removeprefix('warning: ')}")
    same = defaultdict(list)
    for image_id, each in looks.items():
        same[each.digest].append(image_id)
    of = {i: s for s, ids in (*learned.items(), *scored.items()) for i in ids}
    same = [ids for digest, ids in same.items() if digest and len(ids) > 1]
    crossing = [{of.get(i) in learned for i in ids if i in of} == {True, False} for ids in same]
    across, within = ([_equal(ids) for ids, crosses in zip(same, crossing) if crosses == wanted]
                      for wanted in (True, False))
    if across:
        found.error(f"{counted(len(across), 'photo', 'is')} in a list to learn from and in one to score, under two "
                    "names: take one off", across)
    if within:
        found.warning(f"{counted(len(within), 'photo', 'is')} there under two names", within)
    learned_classes = {c for ids in learned.values() for i in ids for c in labels.get(i, ())}
    for split, ids in scored.items() if learned and labels else ():
        lacking = [c for c in classes if c not in learned_classes and any(c in labels.get(i, ()) for i in ids)]
        if lacking:
            found.error(f"{split} has classes of which no list to learn from has an image: {', '.join(lacking)}. Move "
                        "some images")


def _equal(ids):
    return " = ".join(ids[:4]) + (f" = {len(ids) - 4} more" if len(ids) > 4 else "")


# ---- images and masks ----

def check_looks(layout, looks, found):
    for kind, (noun, verb, words) in KINDS.items():
        if wrong := [each.wrong[kind] for each in looks.values() if kind in each.wrong]:
            remedy = REMEDIES[kind].format(turn=convert(layout.root), voc=convert(layout.root, "voc"),
                                           file=convert(layout.root, "colours.txt"))
            first = "; ".join(wrong[:FIRST])
            found.error(f"{counted(len(wrong), noun, verb)} {words}. The first: {first}"
                        + (f". {remedy}" if remedy else ""))
    if large := [i for i, each in looks.items() if each.pixels > LIMIT]:
        found.warning(f"{counted(len(large), 'image', 'has')} more than {LIMIT // 1_000_000} million pixels: give the "
                      "stages --max_side 1024, or save smaller images", large)
    turned = [i for i, each in looks.items() if each.orientation != 1 and each.ids and "exif" not in each.wrong]
    if turned:
        found.warning(f"EXIF turns or mirrors {counted(len(turned), 'photo')} with a mask: look on the sheet "
                      "whether the masks are turned as well", turned)


def convert(root, colours=""):
    """Give the command that makes a dataset with converted masks from the one at `root`."""
    labels, classes = root / "labels.json", root / "classes.txt"
    words = ["python", "-m", "data.prepare", "folder", "--images", root / "JPEGImages",
             "--labels", labels if labels.exists() else "LABELS.csv",
             *(("--classes", classes) if classes.exists() else ()),
             "--lists", root / "ImageSets/Segmentation", "--masks", root / "SegmentationClass",
             *(("--mask_colours", colours) if colours else ()), "--root", f"{root}_converted"]
    return shlex.join(map(str, words))


def check_masks(root, looks, labels, classes, lists, masks, images, found):
    if foreign := sorted(masks.keys() - images.keys()):
        found.warning(f"{counted(len(foreign), 'mask', 'has')} no image", foreign)
    seen = {i: {classes[k - 1] for k in each.ids if 0 < k <= len(classes)} for i, each in looks.items() if each.ids}
    bare = [i for i in seen if not seen[i] and labels.get(i) and "ids" not in looks[i].wrong]
    binary = [i for i in bare if set(looks[i].ids) == {0, IGNORE}]
    if binary:
        words = (f"{counted(len(binary), 'mask', 'holds')} 0 and 255 alone, though there is a label: 255 means ignore, "
                 "so no object is left. ")
        words += (f"Such masks cannot tell {len(classes)} classes apart: put masks of the ids 1..{len(classes)} there, "
                  "or remove them" if len(classes) > 1 else
                  "If it stands for the object, write the lines \"0 background\" and \"255 "
                  f"{classes[0] if classes else 'NAME'}\" into colours.txt, and: {convert(root, 'colours.txt')}")
        (found.error if len(binary) > len(seen) / 2 else found.warning)(words, binary)
    if ignored := [i for i in bare if set(looks[i].ids) == {IGNORE}]:
        found.warning(f"{counted(len(ignored), 'mask', 'is')} ignored completely", ignored)
    known = [i for i in seen if seen[i] and labels.get(i)]
    if known:
        foreign = [i for i in known if not seen[i] & labels[i]]
        if len(foreign) > len(known) / 2:
            found.error(f"{len(foreign)} of {len(known)} masks show none of the classes of their labels: write the "
                        f"classes into {root / 'classes.txt'} in the order of the masks' ids", foreign)
        elif foreign:
            found.warning(f"{counted(len(foreign), 'mask', 'shows')} none of the classes that the label names", foreign)
        lacking = [i for i in known if seen[i] - labels[i]]
        if len(lacking) > len(known) / 2 >= len(foreign):
            found.error(f"{len(lacking)} of {len(known)} masks show a class that the label lacks: add it to the labels "
                        "where the images show it; if they do not, write the classes into "
                        f"{root / 'classes.txt'} in the order of the masks' ids", lacking)
        elif more := [i for i in lacking if i not in foreign]:
            found.warning(f"{counted(len(more), 'mask', 'shows')} a class that the label lacks", more)
        if fewer := [i for i in known if labels[i] - seen[i] and i not in foreign]:
            found.warning(f"{counted(len(fewer), 'label', 'names')} a class that the mask does not show", fewer)
    for split in lists:
        without = [i for i in lists[split] if i in images and i not in masks]
        if masks and split.startswith("val") and without:
            found.warning(f"{split}: {counted(len(without), 'image', 'has')} no mask, so evaluation stops "
                          "there", without)


# ---- what is printed and drawn ----

def print_counts(root, lists, listed, labels, classes, looks):
    masks = sum(each.ids is not None for each in looks.values())
    print(f"{root}: {counted(len(listed), 'image')}, {masks} with a mask, {counted(len(classes), 'class')}")
    splits = [split for split in lists if split != "train_aug" or lists[split] != lists.get("train")]
    width = max([len(name) for name in classes] + [12])
    counts = {split: Counter(c for i in lists[split] for c in labels.get(i, ())) for split in splits}
    print(f"  {'':{width}s}" + "".join(f" {split[:9]:>9s}" for split in splits))
    print(f"  {'images':{width}s}" + "".join(f" {len(lists[split]):9d}" for split in splits))
    for name in classes:
        print(f"  {name:{width}s}" + "".join(f" {counts[split][name]:9d}" for split in splits))
    if masks:
        share = np.mean([each.ignored for each in looks.values() if each.ids is not None])
        print(f"  of the masks' pixels {100 * share:.1f}% are ignored (255)")
