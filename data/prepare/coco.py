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
import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.layout import IGNORE
from data.prepare.coco_masks import Photo, find_stuff, stuff_of, write_mask
from data.prepare.parallel import FEW, cores, spread
from data.prepare.photos import name_ids
from data.prepare.writing import remove_leftovers, write_image, write_json, write_lines

SUFFIXES = {".jpg": ".jpg", ".jpeg": ".jpg", ".png": ".png"}
NO_OBJECTS = {"background": 0, "_background_": 0, "__background__": 0, "__ignore__": IGNORE, "_ignore_": IGNORE}
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
    if args.val_share and (len(files) > 1 or splits[0] == "val"):
        raise ValueError("--val_share holds images out of one annotation file, of train: give that alone")
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
        write_image(root / "JPEGImages" / f"{photo.id}{SUFFIXES[photo.source.suffix.lower()]}", photo.source, args.copy)
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
    print(f"{root}: {', '.join(f'{len(chosen)} images in {name}' for name, chosen in lists.items())}{said}")
    print(f"{root / 'SegmentationClass'}: {truth}" + ("" if maps else f" (--stuff takes {STUFF} instead)"))
    if boxes:
        print(f"{boxes} objects have a box and no segmentation: their boxes are ignored pixels (255)")
    if split == "train":
        say_rare(classes, [p for p in photos if p.id in set(lists["train"])])


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

def read_annotations(path):
    """Read an instances_*.json; returns its content and its sha256."""
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        table = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}): --annotations names COCO's instances_*.json"
                          ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not complete JSON ({error}): fetch it again") from None
    rows = [table.get(part) if isinstance(table, dict) else None for part in ("images", "categories", "annotations")]
    if not all(isinstance(part, list) and all(isinstance(row, dict) for row in part) for part in rows):
        raise ValueError(f"{path} is not in COCO's format: it needs images, annotations and categories. Take "
                         "instances_*.json; results, captions and image_info files do not have them")
    odd = [row for row in rows[2] if "category_id" not in row or "image_id" not in row]
    if odd or not rows[0] or not rows[1]:
        kind = "captions or panoptic annotations" if odd else "no image" if not rows[0] else "no category"
        raise ValueError(f"{path} holds {kind}: take COCO's instances_*.json")
    return table, sha256


def read_classes(categories, path):
    """Return {category's number: class id} in the order of the numbers, and the names of the classes."""
    try:
        numbers = {int(row["id"]): str(row["name"]).strip() for row in categories}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: a category has no id or no name: fix it there") from None
    names = [numbers[n] for n in sorted(numbers) if numbers[n].lower() not in NO_OBJECTS]
    if twice := [name for name, count in Counter(names).items() if count > 1] or (
            ["an id"] if len(numbers) != len(categories) else []):
        raise ValueError(f"{path}: {twice[0]} is there twice among the categories: fix it there")
    if not 0 < len(names) < IGNORE:
        raise ValueError(f"{path} has {len(names)} categories of objects: label maps hold 1 to {IGNORE - 1}")
    if dropped := sorted(set(numbers.values()) - set(names)):
        print(f"{path}: {', '.join(dropped)} is no class of objects and becomes background or ignored pixels")
    return {n: NO_OBJECTS[numbers[n].lower()] if numbers[n].lower() in NO_OBJECTS else names.index(numbers[n]) + 1
            for n in sorted(numbers)}, names


def find_photos(table, ids, folder, path, skip_missing):
    """Return the photos of an annotation file with their objects, in the order of the file."""
    rows, missing = {}, []
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    for row in table["images"]:
        name, number = row.get("file_name"), row.get("id")
        if not isinstance(name, str) or type(number) is not int or number in rows:
            raise ValueError(f"{path}: an image has no file_name, no id or the id of another ({str(row)[:100]})")
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\\" in name:
            raise ValueError(f"{path}: file_name {name[:100]!r} leaves the folder of the images: fix it there")
        source = folder / name
        if name not in there and not (len(parts) > 1 and source.exists()):
            source = folder / parts[-1]             # file_name may say train2014/ID.jpg, and --images train2014
        if source.name not in there and not source.exists():
            missing.append(name)
        elif source.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{source}: photos are .jpg, .jpeg or .png here: convert it, and its name in {path}")
        else:
            rows[number] = (row, source)
    if missing and not (skip_missing and rows):
        raise FileNotFoundError(f"{len(missing)} of the {len(table['images'])} images of {path} are not in {folder} "
                                f"({', '.join(missing[:3])}): fetch them, name their folder with --images, or take "
                                "--skip_missing. Nothing was written")
    if missing:
        print(f"{len(missing)} of {len(table['images'])} images are not in {folder} and are left out")
    if len({source for _, source in rows.values()}) < len(rows):
        twice, _ = Counter(source for _, source in rows.values()).most_common(1)[0]
        raise ValueError(f"{path} lists {twice.name} twice: fix it there")

    names, photos = name_ids([row["file_name"] for row, _ in rows.values()]), {}
    for number, (row, source) in rows.items():
        size = (row.get("height"), row.get("width"))
        photos[number] = Photo(names[row["file_name"]], source, size if all(type(s) is int and s > 0 for s in size)
                               else None, number)
    if renamed := [photo for photo in photos.values() if photo.id != photo.source.stem]:
        print(f"{len(renamed)} photos have another name in JPEGImages: {renamed[0].source.name} is {renamed[0].id}")
    add_objects(photos, table, ids, path, bool(missing))
    return list(photos.values())


def add_objects(photos, table, ids, path, some_missing):
    """Add each annotation to its photo: (class id, is a crowd, segmentation, box)."""
    lost = 0
    for row in table["annotations"]:
        if row["category_id"] not in ids:
            raise ValueError(f"{path}: an annotation has the category {str(row['category_id'])[:50]}, which is none of "
                             "its categories: fix it there")
        if row["image_id"] not in photos:
            lost += 1
            continue
        box = row.get("bbox")
        box = box if isinstance(box, list) and len(box) == 4 and all(
            isinstance(v, (int, float)) and abs(v) < 1e6 for v in box) else None
        photos[row["image_id"]].objects.append((ids[row["category_id"]], bool(row.get("iscrowd")),
                                                row.get("segmentation"), box))
    if lost and not some_missing:
        print(f"{path}: {lost} annotations are of images that are not in it, and are left out")


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
    for name in {"train": ["val"], "val": ["train"]}.get(split, []):
        path = root / "ImageSets/Segmentation" / f"{name}.txt"
        if path.exists() and name not in lists and (both := set(path.read_text("utf-8").split()) & set(lists[split])):
            raise ValueError(f"{len(both)} images of {split} are in {path} too ({min(both)}): what is trained on can't "
                             f"be measured. {keep}")
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
