"""Prepare PASCAL VOC 2012: labels.json and train_aug.txt beside its photos, which --download fetches.

Reads   ROOT/JPEGImages/ID.jpg     VOC's folder, or what --download or --archive unpacks there
        ROOT/Annotations/ID.xml    image-level labels; or cls_labels.npy (--labels, or in --lists or ROOT)
        SBD                        --sbd: its folder or benchmark.tgz, for the lists train.txt and val.txt
        lists                      --lists: a folder with train_aug.txt, train.txt, val.txt, test.txt; instead of SBD
Writes  ROOT/labels.json           {ID: [class name, ...]} of every image in ROOT that has labels
        ROOT/ImageSets/Segmentation/   train_aug.txt: VOC's train with SBD's train and val, without VOC's val
        ROOT/SegmentationClassAug/ID.png   with --masks: SBD's masks, and VOC's own where it has one
Run     python -m data.prepare voc --root data/VOC2012 --download
        python -m data.prepare voc --root data/VOC2012 --sbd benchmark.tgz        (or --lists LISTS)

Existing files are skipped, so the same command resumes; no existing file is changed. Test images need no labels.
"""
import hashlib
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.folders import IMAGE_ENDINGS
from data.labels import left_out, read_label_table, read_names_in_xml
from data.layout import VOCLayout
from data.prepare import sbd
from data.prepare.archives import download, unpack
from data.prepare.label_arrays import read_label_arrays
from data.prepare.writing import remove, write_json, write_lines
from tools.words import counted, some

FOLDERS = ("JPEGImages", "Annotations", "ImageSets", "SegmentationClass", "SegmentationObject")
SPLITS = ("train", "val", "train_aug", "test")
ALIASES = {"trainaug": "train_aug", "train_aug_id": "train_aug", "val_id": "val", "train_id": "train"}
# train_aug as the field shares it: 10,582 IDs, sorted, one a line.
FIELDS_LIST = "855dff350b7f447bf43cb98ea626a32e0d0b3b7c5786e03b2712a21355b635bf"
VOC_TRAIN, TRAIN_AUG = 1464, 10582


def add_arguments(parser):
    parser.add_argument("--root", type=Path, default=Path("data/VOC2012"), help="VOC's folder, with JPEGImages in it")
    parser.add_argument("--download", action="store_true", help="fetch VOC 2012 (2 GB) if ROOT has no photos, and SBD "
                        "(1.4 GB) unless --sbd or --lists is given")
    parser.add_argument("--archive", type=Path, nargs="+", default=[], metavar="FILE", help="unpack VOC's archives "
                        "(VOCtrainval_11-May-2012.tar, VOC2012test.tar, a zip) into ROOT")
    lists = parser.add_mutually_exclusive_group()
    lists.add_argument("--sbd", type=Path, metavar="PATH", help="SBD's folder or its archive benchmark.tgz")
    lists.add_argument("--lists", type=Path, metavar="DIR", help="folder of the lists that the field shares")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="cls_labels.npy, instead of ROOT/Annotations")
    parser.add_argument("--masks", action="store_true", help="write SBD's masks to SegmentationClassAug (needs --sbd "
                        "or --download)")


def run(args):
    root, source = args.root, args.sbd
    aside = root.parent / f".{root.name}.download"
    for archive in args.archive:
        unpack(existing(archive, "--archive"), root, FOLDERS)
    if args.download and not has_photos(root):
        unpack(download(*_voc(), aside), root, FOLDERS)
    check_root(root)
    if args.download and not (args.lists or args.sbd):
        source = download(*_sbd(), aside)
    if args.masks and not source:
        raise ValueError("--masks: the masks are SBD's. Name its folder or archive with --sbd, or take --download")

    layout = VOCLayout(root)
    lists = find_lists(layout, args.lists, source)
    photos = photos_of(root)
    labels, origin = find_labels(layout, args)
    labels = {image_id: names for image_id, names in labels.items() if image_id in photos}
    lists = check_lists(layout, lists, photos, labels, origin, args)

    put_labels(root / "labels.json", labels, origin, layout.classes)
    if bare := len(photos) - len(labels):
        print(f"{counted(bare, 'photo', 'has')} no labels: test images need none, "
              "nothing can be learned from the others")
    for split, (ids, words) in lists.items():
        put_list(layout, split, ids, words)
    if args.masks:
        sbd.write_masks(existing(source, "--sbd"), root, lists["train_aug"][0], layout.classes)
    remove(aside)
    if "train_aug" not in lists:
        others = ", ".join(sorted(p.stem for p in (root / "ImageSets/Segmentation").glob("*.txt"))) or "none"
        print(f"There is no train_aug.txt (lists: {others}): give every training stage another list with --train_list, "
              f"or make it: python -m data.prepare voc --root {root} --sbd benchmark.tgz (or --lists DIR)")


def _voc():
    from torchvision.datasets.voc import DATASET_YEAR_DICT
    year = DATASET_YEAR_DICT["2012"]
    return year["url"], year["md5"], year["filename"]


def _sbd():
    from torchvision.datasets import SBDataset
    return SBDataset.url, SBDataset.md5, SBDataset.filename


def existing(path, flag):
    if not path.exists():
        raise FileNotFoundError(f"{path} ({flag}) is not there: name an existing one")
    return path


def has_photos(root):
    return (root / "JPEGImages").is_dir() and (root / "ImageSets").is_dir()


def check_root(root):
    if has_photos(root) or (root / "JPEGImages").is_dir():
        return
    inside = [p for name in ("VOC2012", "VOCdevkit/VOC2012") if (p := root / name).joinpath("JPEGImages").is_dir()]
    if inside:
        raise FileNotFoundError(f"{root} has no JPEGImages, but {inside[0]} has: python -m data.prepare voc --root "
                                f"{inside[0]}")
    raise FileNotFoundError(f"no photos in {root / 'JPEGImages'}: --download fetches VOC 2012, --archive "
                            "VOCtrainval_11-May-2012.tar unpacks it, --root names another folder. Photos of your own: "
                            "python -m data.prepare folder --help")


def photos_of(root):
    with os.scandir(root / "JPEGImages") as entries:
        return {Path(entry.name).stem for entry in entries
                if entry.name.lower().endswith(IMAGE_ENDINGS) and not entry.name.startswith(".")}


# ---- lists ----

def find_lists(layout, folder, source):
    """Return {split: (IDs, where from)}: the root's own, those of --lists, and train_aug of SBD's (`source`)."""
    here = layout.root / "ImageSets" / "Segmentation"
    lists = {split: (layout.ids(split), str(path)) for split in SPLITS if (path := here / f"{split}.txt").is_file()}
    if folder:
        found = {ALIASES.get(path.stem, path.stem): path for path in (
            [existing(folder, "--lists")] if folder.is_file() else sorted(folder.glob("*.txt")))}
        found = {split: path for split, path in found.items() if split in SPLITS}
        if not found:
            raise ValueError(f"{folder} (--lists) holds none of {', '.join(f'{s}.txt' for s in SPLITS)}: name the "
                             "folder with the field's lists")
        for split, path in found.items():
            ids = layout.ids(str(path.resolve()))
            if split in lists and set(ids) != set(lists[split][0]):
                npy = folder / "cls_labels.npy"
                own = f" To keep the root's own lists and take the labels alone: python -m data.prepare voc --root " \
                      f"{layout.root} --labels {npy}" if npy.is_file() else ""
                raise ValueError(f"{lists[split][1]} lists {len(lists[split][0])} images, {path} others "
                                 f"({len(ids)}): nothing was changed. Rename the one that is not wanted.{own}")
            lists.setdefault(split, (ids, str(path)))
    if source:
        for split in ("train", "val"):
            if split not in lists:
                raise FileNotFoundError(f"no list {here / f'{split}.txt'}, which train_aug is made of: it comes with "
                                        "VOC's archive (--archive, --download)")
        ids = sbd.ids(existing(source, "--sbd"))
        added = (set(lists["train"][0]) | set(ids)) - set(lists["val"][0])
        if "train_aug" in lists and set(lists["train_aug"][0]) != added:
            raise ValueError(f"{lists['train_aug'][1]} lists {len(lists['train_aug'][0])} images, VOC's and SBD's "
                             f"lists make {len(added)} others: rename that file, and run the same command again")
        lists["train_aug"] = lists.get("train_aug", (sorted(added), f"VOC's train and {source}, without VOC's val"))
    return lists


def check_lists(layout, lists, photos, labels, origin, args):
    """Check the lists against each other, the photos and the labels. Returns them, less a test list without photos."""
    if {"train_aug", "val"} <= lists.keys():
        if both := sorted(set(lists["train_aug"][0]) & set(lists["val"][0])):
            raise ValueError(f"{lists['train_aug'][1]} and {lists['val'][1]} share {len(both)} images ({some(both)}): "
                             "what is trained on can't be measured. Fetch the field's list, or take the images off one")
        ids = lists["train_aug"][0]
        field = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest() == FIELDS_LIST
        if not field and "train" in lists and len(lists["train"][0]) == VOC_TRAIN:
            raise ValueError(f"train_aug ({lists['train_aug'][1]}) has {len(ids)} images; of VOC's {VOC_TRAIN} train "
                             f"images and SBD's it has {TRAIN_AUG}: fetch the lists again")
        if not field:
            print(f"train_aug has {len(ids)} images. VOC 2012's, which papers use, has {TRAIN_AUG}: results of this "
                  "one can't be compared with theirs")
    if "test" in lists and (missing := [i for i in lists["test"][0] if i not in photos]):
        print(f"test is left out: {len(missing)} of its {len(lists['test'][0])} photos are not in "
              f"{layout.root / 'JPEGImages'}. VOC's test archive has them (--archive VOC2012test.tar)")
        lists = {split: found for split, found in lists.items() if split != "test"}
    for split, (ids, words) in lists.items():
        if missing := [i for i in ids if i not in photos]:
            raise FileNotFoundError(f"{len(missing)} of the {len(ids)} images of {split} ({words}) are not in "
                                    f"{layout.root / 'JPEGImages'} ({some(missing)}): put them there, or take them "
                                    "off the list. Nothing was written")
        if split != "test" and (missing := [i for i in ids if i not in labels]):
            raise ValueError(f"{len(missing)} of the {len(ids)} images of {split} have no labels in {origin} "
                             f"({some(missing)}): add them there, or take them off the list. Nothing was written")
    return lists


def put_list(layout, split, ids, words):
    path = layout.root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if path.exists():
        print(f"{path}: {counted(len(ids), 'image')}, there already")
        return
    write_lines(path, ids)
    field = ", the field's list" if split == "train_aug" and len(ids) == TRAIN_AUG else ""
    print(f"{path}: {counted(len(ids), 'image')}{field}, from {words}")


# ---- labels ----

def find_labels(layout, args):
    """Return {ID: class names in the order of the ids} and where they come from: --labels, Annotations, any other."""
    folder = layout.root / "Annotations"
    if not args.labels and folder.is_dir() and any(folder.glob("*.xml")):
        return from_annotations(folder, layout.classes), str(folder)
    folders = [args.lists] if args.lists and args.lists.is_dir() else []
    for path in [args.labels] if args.labels else [p / "cls_labels.npy" for p in (
            layout.root, layout.root / "ImageSets/Segmentation", *folders)]:
        if args.labels or path.is_file():
            return from_arrays(existing(path, "--labels"), layout.classes), str(path)
    path = layout.root / "labels.json"
    if path.is_file():
        return {i: [name for name in layout.classes if name in own] for i, own in
                read_label_table(path, layout.classes).items()}, str(path)
    raise FileNotFoundError(f"no labels: neither {folder}/ID.xml nor a cls_labels.npy is there. --labels names a "
                            "cls_labels.npy; --archive or --download brings VOC's annotations")


def from_annotations(folder, classes):
    """Read the names of all objects in each ID.xml, difficult ones too."""
    names = {path.stem: read_names_in_xml(path, path.stem) for path in
             tqdm(sorted(folder.glob("*.xml")), "reading Annotations", unit="file", mininterval=1)}
    if note := left_out(names.values(), classes, folder.parent):
        print(f"{folder}: {note}")
    return {image_id: [name for name in classes if name in own] for image_id, own in names.items()}


def from_arrays(path, classes):
    """Read cls_labels.npy: {ID: 0 or 1 for each class}."""
    labels = {}
    for image_id, vector in read_label_arrays(path).items():
        vector = np.asarray(vector)
        if vector.dtype.kind not in "fiub" or vector.shape != (len(classes),):
            raise ValueError(f"{path}: the label of {image_id} has the shape {vector.shape}, this dataset has "
                             f"{len(classes)} classes: it belongs to another dataset, or classes.txt does")
        if not np.isin(vector, (0, 1)).all():
            raise ValueError(f"{path}: the label of {image_id} holds other values than 0 and 1: it is no label")
        labels[image_id] = [classes[k] for k in np.flatnonzero(vector)]
    return labels


def put_labels(path, labels, origin, classes):
    """Write labels.json, unless it is there with the same labels."""
    if not any(labels.values()):
        raise ValueError(f"no image of {path.parent / 'JPEGImages'} has a class in {origin}: do they belong together?")
    there = {}
    if path.exists():
        there = {i: sorted(names, key=classes.index) for i, names in read_label_table(path, classes).items()}
        if wrong := [i for i, names in there.items() if names != labels.get(i, names)]:
            raise ValueError(f"{path} is there, with other labels than {origin} ({some(wrong)}): rename it if it is "
                             "not wanted, and run the same command again. Nothing was changed")
        if labels.keys() <= there.keys():
            print(f"{path}: labels of {counted(len(there), 'image')}, there already")
            return
    write_json(path, there | labels)
    print(f"{path}: labels of {counted(len(labels), 'image')}, from {origin}")
