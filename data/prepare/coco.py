"""Prepare COCO, or any data set in COCO's format: photos, image-level labels, lists and label maps.

Reads   --images       folders of photos, one for each annotation file, or one for all
        --annotations  instances_train2014.json, instances_val2014.json ... (or your own, in that format)
        --stuff        COCO-Stuff's stuffthingmaps; without it the masks of the instances are the ground truth
Writes  ROOT/JPEGImages/ID.jpg            links to the photos (--copy: copies)
        ROOT/classes.txt, labels.json     classes in the order of their COCO ids; a crowd of a class counts
        ROOT/ImageSets/Segmentation/      train.txt, the same as train_aug.txt: photos with an object; val.txt: all
        ROOT/SegmentationClass/ID.png     instance masks: larger objects first, crowds ignored (255)
        ROOT/made_by.json, prepared.json  what it was made from, and which ground truth it has
Run     python -m data.prepare coco --root data/COCO --images train2014 val2014 \\
            --annotations annotations/instances_train2014.json annotations/instances_val2014.json

Existing files are skipped, so the same command resumes; a second command may add val later. Images of train without an
object are left out and counted.
"""
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.prepare.coco_annotations import find_photos, read_annotations, read_classes
from data.prepare.coco_masks import find_stuff, stuff_of, write_mask
from data.prepare.parallel import FEW, cores, spread
from data.prepare.photos import KEPT
from data.prepare.writing import remove_leftovers, write_image, write_json, write_lines
from tools.words import counted

INSTANCES = "COCO's instance masks: larger objects first, crowds ignored"
STUFF = "COCO-Stuff's maps"
THINGS = 91                         # the highest number of a category that is no stuff
OWN_FILES = ("classes.txt", "labels.json", "ImageSets", "SegmentationClass")


def add_arguments(parser):
    parser.add_argument("--root", type=Path, default=Path("data/COCO"), help="folder to write")
    parser.add_argument("--images", type=Path, nargs="+", required=True, metavar="DIR", help="folders of the photos")
    parser.add_argument("--annotations", type=Path, nargs="+", required=True, metavar="FILE", help="instances_*.json")
    parser.add_argument("--stuff", type=Path, metavar="DIR", help="COCO-Stuff's stuffthingmaps")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="lists that the annotation files become; without it "
                        "train or val as in the file's name, else train")
    parser.add_argument("--val_share", type=float, default=0, help="share of train's images to hold out as val")
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    parser.add_argument("--skip_missing", action="store_true", help="leave out images whose photo is not there")
    parser.add_argument("--copy", action="store_true", help="copy the photos instead of linking to them")
    parser.add_argument("--num_workers", type=int, default=cores(), help="processes that draw masks")


def run(args):
    if not 0 <= args.val_share < 1 or args.seed < 0 or args.num_workers < 0:
        raise ValueError("--val_share lies from 0 to below 1, --seed and --num_workers start at 0")
    maps = find_stuff(args.stuff) if args.stuff else {}
    for split, images, annotations in sources(args):
        prepare(split, images, annotations, maps, args)
    if not (args.root / "ImageSets/Segmentation/val.txt").exists():
        print(f"There is no val.txt yet: infer_seg.py and evaluation.py then need another list (--infer_list train, "
              f"--list train). To have one: python -m data.prepare coco --root {args.root} --images val2014 "
              "--annotations instances_val2014.json, or --val_share 0.2 into another --root")


def sources(args):
    """Return [(split, folder of photos, annotation file), ...]."""
    files = args.annotations
    folders = args.images * len(files) if len(args.images) == 1 else args.images
    splits = args.split or [(re.search("train|val|test", path.name) or ["train"])[0] for path in files]
    if len(folders) != len(files):
        raise ValueError(f"{len(folders)} folders of --images for {len(files)} files of --annotations: give one for "
                         "each, in the same order, or one for all")
    if len(splits) != len(files) or len(set(splits)) != len(splits):
        raise ValueError(f"the annotation files become the lists {', '.join(splits)}: name a different one for each "
                         "with --split (train val)")
    for split in splits:
        if not re.fullmatch(r"\w[\w.-]*", split):
            raise ValueError(f"--split {split!r}: letters, digits and _ - . only")
    if args.val_share and splits != ["train"]:
        raise ValueError("--val_share holds images out of one annotation file that becomes the list train, and these "
                         f"become {', '.join(splits)}: give one file with --split train, or leave --val_share out")
    for path in (*folders, *files):
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there: --images names folders, --annotations COCO's "
                                    "instances_*.json (from annotations_trainval2014.zip)")
    return list(zip(splits, folders, files))


def prepare(split, folder, annotations, maps, args):
    """Write the images, labels, label maps and the list of one annotation file."""
    root, truth = args.root, STUFF if maps else INSTANCES
    table, sha256 = read_annotations(annotations)
    ids, classes = read_classes(table["categories"], annotations)
    photos = find_photos(table, ids, folder, annotations, args.skip_missing)
    if maps:
        assign_stuff(photos, maps, args.stuff, ids)
    lists, without = choose(split, photos, args)
    claim(root, split, classes, truth, {"annotations": sha256, "images": len(photos), "val_share": args.val_share,
                                        "seed": args.seed}, lists)

    for photo in tqdm(photos, "copying photos" if args.copy else "linking photos", unit="image", mininterval=1,
                      disable=len(photos) < FEW):
        write_image(root / "JPEGImages" / f"{photo.id}{KEPT[photo.source.suffix.lower()]}", photo.source, args.copy)
    masks = root / "SegmentationClass"
    remove_leftovers(masks)
    there = set(os.listdir(masks)) if masks.is_dir() else set()
    jobs = [(photo, path, ids) for photo in photos if (path := masks / f"{photo.id}.png").name not in there]
    boxes = sum(spread(write_mask, jobs, args.num_workers, f"label maps ({args.num_workers} processes)"))
    put_labels(root / "labels.json", {p.id: [classes[k - 1] for k in p.classes()] for p in photos})
    for name, chosen in lists.items():
        path = root / "ImageSets/Segmentation" / f"{name}.txt"
        if not path.exists():
            write_lines(path, chosen)

    said = f", {without} without an object left out" if without else ""
    sizes = [f"{counted(len(chosen), 'image')} in {name}" for name, chosen in lists.items()]
    print(f"{root}: {', '.join(sizes)}{said}")
    print(f"{root / 'SegmentationClass'}: {truth}" + ("" if maps else f" (--stuff takes {STUFF} instead)"))
    if boxes:
        print(f"{counted(boxes, 'object', 'has')} a box and no segmentation: the pixels of the box are ignored (255)")
    if split == "train":
        train = set(lists["train"])
        say_rare(classes, [photo for photo in photos if photo.id in train])


def say_rare(classes, photos):
    count = Counter(class_id for photo in photos for class_id in photo.classes())
    if none := [name for k, name in enumerate(classes, start=1) if not count[k]]:
        print(f"{len(none)} of {len(classes)} classes have no image in train: {', '.join(none[:5])}"
              f"{', ...' if len(none) > 5 else ''}")


def choose(split, photos, args):
    """Choose the images of each list: {name: IDs}; returns also how many are left out of train without an object."""
    names = [photo.id for photo in photos]
    if split != "train":
        return {split: names}, 0
    held = set()
    if args.val_share:
        count = round(args.val_share * len(names))
        held = {names[i] for i in np.random.default_rng(args.seed).permutation(len(names))[:count]}
    train = [photo.id for photo in photos if photo.id not in held and photo.classes()]
    if not train:
        raise ValueError(f"no image of {args.annotations[0]} has an object: nothing could be learned from it")
    lists = {"train": train, "train_aug": train} | ({"val": [i for i in names if i in held]} if held else {})
    return lists, len(names) - len(held) - len(train)


# ---- what lies there ----

def assign_stuff(photos, maps, folder, ids):
    if not all(0 < number <= THINGS for number in ids):
        raise ValueError(f"--stuff: {folder} has the categories 1..{THINGS} of COCO, the annotations have others: "
                         "leave --stuff out")
    for photo in photos:
        photo.stuff = stuff_of(photo, maps)
    if missing := [photo.id for photo in photos if photo.stuff is None]:
        raise FileNotFoundError(f"{len(missing)} of {len(photos)} images have no map in {folder} (--stuff): "
                                f"{', '.join(missing[:3])}. Fetch COCO-Stuff's stuffthingmaps, or leave --stuff out")


def claim(root, split, classes, truth, record, lists):
    """Write what `root` is prepared from before anything else; ValueError if it is there and something else."""
    prepared = root / "prepared.json"
    keep = "Nothing was changed: name another folder with --root"
    there = read_table(prepared)
    if not there and (strange := [name for name in OWN_FILES if (root / name).exists()]):
        raise ValueError(f"{root / strange[0]} is there and was not written by data.prepare coco. {keep}")
    old, splits = there.get("classes", classes), there.get("splits", {})
    if old != classes:
        raise ValueError(f"{root} has {len(old)} other classes than these annotations ({len(classes)}). {keep}")
    if there.get("ground_truth", truth) != truth:
        raise ValueError(f"{root} has {there['ground_truth']} as ground truth, these would be {truth}: one table can't "
                         f"hold both. {keep}")
    if splits.get(split, record) != record:
        raise ValueError(f"{root} has a list {split} of other annotations, photos or --val_share. {keep}")
    if split not in splits and (made := [n for n in lists if (root / "ImageSets/Segmentation" / f"{n}.txt").exists()]):
        raise ValueError(f"{root / 'ImageSets/Segmentation' / made[0]}.txt is there, of other annotations. {keep}")
    for name in {"train": ["val"], "val": ["train"]}.get(split, []):
        path = root / "ImageSets/Segmentation" / f"{name}.txt"
        if path.exists() and name not in lists and (both := set(path.read_text("utf-8").split()) & set(lists[split])):
            raise ValueError(f"{path} has {counted(len(both), 'image')} of {split} too ({min(both)}): what is "
                             f"trained on can't be measured. {keep}")
    remove_leftovers(root)
    if split not in splits:
        write_json(prepared, {"classes": classes, "ground_truth": truth, "splits": splits | {split: record}})
    if not (root / "classes.txt").exists():
        write_lines(root / "classes.txt", classes)
    if not (root / "made_by.json").exists():
        write_json(root / "made_by.json", {"stage": "data.prepare coco", "ground_truth": truth})


def put_labels(path, labels):
    """Write labels.json: the labels of this list beside those that are there, which stay."""
    there = read_table(path)
    if not labels.keys() <= there.keys():
        write_json(path, labels | there)


def read_table(path):
    """Read a JSON object that this command wrote; empty where there is none."""
    if not path.exists():
        return {}
    try:
        table = json.loads(path.read_text("utf-8"))
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise ValueError(f"{path} is not what data.prepare coco writes there: take another --root")
    return table
