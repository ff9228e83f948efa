"""Prepare any photos with image-level labels: a CSV or JSON file, or a subfolder for each class.

Reads   --images DIR               photos, in subfolders too: .jpg .jpeg .jpe .jfif .png .bmp .tif .webp, in any case
        --labels labels.csv        file,label with fox;owl in a cell (or a line each), or one column a class (0 or 1)
                 labels.json       {"1.jpg": ["fox", "owl"]}
                 from-subfolders   DIR/fox/1.jpg; a photo that lies in two of them has both labels
        --masks DIR                ground truth, if there is some: NAME.png for NAME.jpg
Writes  ROOT/JPEGImages/  labels.json  classes.txt  ImageSets/Segmentation/{train,val,train_aug}.txt
        ROOT/SegmentationClass/    the masks, as class ids
        ROOT/names.csv             file,id: which photo has which name in ROOT (spaces become _)
        ROOT/made_by.json          what it was made from
Run     python -m data.prepare folder --images photos --labels labels.csv --root data/mine
        python -m data.prepare folder --images photos --labels from-subfolders --masks masks --root data/mine

JPEG and PNG files are linked (--copy: copied), others are converted to PNG. The same command again resumes. train_aug,
the list that training takes without --train_list, is train here. If a CSV has a column `split` with train, val and
test for every photo, that is taken instead of --val_share.
"""
import csv
import hashlib
import io
import json
import os
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from data.images import image_size, orientation, read_image
from data.layout import IGNORE
from data.prepare.masks import ORDER, Converter, find_masks, read_colours, turned_with_photo
from data.prepare.match import FROM_SUBFOLDERS, choose_classes, from_subfolders, match
from data.prepare.parallel import cores, spread
from data.prepare.photos import KEPT, Photos, name_ids
from data.prepare.splits import divide, listed, read_lists
from data.prepare.tables import read_labels
from data.prepare.writing import (
    remove,
    remove_leftovers,
    write_image,
    write_json,
    write_labels,
    write_lines,
)
from tools.files import save_image
from tools.words import counted, some

FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
LISTED = 10                                                     # of the problems that a message lists


def add_arguments(parser):
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the photos")
    parser.add_argument("--labels", required=True, metavar="FILE", help=f"labels.csv, labels.json or {FROM_SUBFOLDERS}")
    parser.add_argument("--root", type=Path, required=True, metavar="OUT", help="dataset folder to make")
    parser.add_argument("--classes", metavar="FILE", help="a file with one class a line, in the order of the ids 1..C, "
                        "or names separated by commas; without it the columns' order, or the alphabet's")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="folder of the ground truth; not all photos need one")
    parser.add_argument("--mask_colours", metavar="voc|FILE", help="masks hold colours, not ids: VOC's, or those of a "
                        "file with a line \"128 0 0 fox\" for each class")
    parser.add_argument("--val_share", type=float, default=0.2, metavar="SHARE", help="share of each class's "
                        "photos that goes to val; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--lists", type=Path, metavar="DIR", help="folder of lists, train.txt and val.txt, instead of "
                        "a split by --val_share and --seed")
    parser.add_argument("--copy", action="store_true", help="copy the photos instead of linking to them")
    parser.add_argument("--leave_out", action="store_true",
                        help="continue without photos and masks that cannot be used")
    parser.add_argument("--file_column", metavar="NAME", help="column of a CSV that names the photos, if it is "
                        "not found")
    parser.add_argument("--label_columns", nargs="+", default=[], metavar="NAME", help="column of a CSV that holds the "
                        "labels, or the columns of the classes, if they are not found")


def run(args):
    if not 0 <= args.val_share < 1:
        raise ValueError("--val_share takes a number from 0 to below 1")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: take 0 or a higher number")
    if args.root.resolve().is_relative_to(args.images.resolve()):
        raise ValueError(f"{args.root} (--root) lies in {args.images} (--images), so its files would be taken for "
                         "photos the next time: name a folder outside of it with --root")
    if args.mask_colours and not args.masks:
        raise ValueError("--mask_colours says how to read masks: name their folder with --masks")
    photos = Photos(args.images)
    if args.labels.replace("_", "-") == FROM_SUBFOLDERS:
        args.labels = FROM_SUBFOLDERS
        labels = from_subfolders(photos)
    else:
        labels = read_labels(Path(args.labels), lambda name: bool(photos.find(name)), args.file_column,
                             args.label_columns)
    for note in labels.notes:
        print(note)
    names, splits, problems = match(photos, labels, args.labels)
    lists = read_lists(args.lists, photos, names, problems) if args.lists else {}
    if lists and splits:
        print(f"the splits of {args.labels} are not read: --lists names others")
    classes = choose_classes(args.classes, labels, names)
    ids = name_ids(names)
    masks, converter = {}, None
    if args.masks:
        masks = find_masks(args.masks, names)
        converter = Converter(classes, args.mask_colours and read_colours(args.mask_colours, classes))

    claim(args.root, args, names, [splits, lists], classes, converter)
    jobs = [(name, photos.files[name], ids[name], masks.get(name), bool(names[name])) for name in names]
    made, turned = {}, 0
    for name, problem, found, was_turned in spread(partial(make_one, root=args.root, copy=args.copy,
                                                           converter=converter), jobs, cores(), "photos"):
        problems += [problem] if problem else []
        made[name] = found
        turned += was_turned
    problems_end(problems, args.leave_out, args.root)
    if turned:
        print(f"{counted(turned, 'mask', 'was')} turned as EXIF turns the photo: the sizes agreed before that")
    names = {name: names[name] for name in names if made[name] is not None}
    if args.masks:
        compare(names, {name: found for name, found in made.items() if found}, classes)
    splits = listed(lists, names, ids) if lists else divide(names, splits, ids, args.val_share, args.seed)
    write_tables(args, names, ids, classes, splits, made)


def compare(names, made, classes):
    """Refuse masks whose ids do not mean the classes of the labels."""
    seen = {name: {classes[k - 1] for k in found if 0 < k < IGNORE} for name, found in made.items()}
    seen = {name: found for name, found in seen.items() if found and names.get(name)}
    foreign = [name for name, found in seen.items() if not found & set(names[name])]
    if len(foreign) > len(seen) / 2:
        first = f"{foreign[0]}: label {', '.join(names[foreign[0]])}, mask {', '.join(sorted(seen[foreign[0]]))}"
        raise ValueError(f"{len(foreign)} of {len(seen)} masks show none of the classes of their photos' labels "
                         f"({first}), so the ids mean other classes: {ORDER}, or the masks' colours in a file for "
                         "--mask_colours")
    lacking = [name for name, found in seen.items() if found - set(names[name])]
    if len(lacking) > len(seen) / 2:
        first = f"{lacking[0]}: {', '.join(sorted(seen[lacking[0]] - set(names[lacking[0]])))}"
        raise ValueError(f"{len(lacking)} of {len(seen)} masks show a class that their photos' labels lack ({first}): "
                         "add it to the labels where the photos show it; if they do not, the masks' ids mean other "
                         f"classes: {ORDER}, or the masks' colours in a file for --mask_colours")
    fewer = sum(bool(set(names[name]) - found) for name, found in seen.items())
    if lacking or fewer:
        print(f"labels and masks differ: {counted(len(lacking), 'mask', 'shows')} a class that the label lacks, "
              f"{counted(fewer, 'label', 'has')} a class that the mask does not show")


# ---- writing ----

def claim(root, args, names, splits, classes, converter):
    """Say in ROOT what it is made from; a ROOT that was made from something else is refused."""
    content = hashlib.sha256(json.dumps([names, splits], sort_keys=True).encode()).hexdigest()
    colours = sorted([*c, k] for c, k in converter.colours.items()) if converter and converter.colours else None
    asked = {"stage": "data.prepare folder", "labels_sha256": content, "classes": classes, "masks": bool(args.masks),
             "mask_colours": colours, "val_share": args.val_share, "seed": args.seed}
    record = root / "made_by.json"
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is a file: name a folder with --root")
    if record.is_file():
        try:
            found = json.loads(record.read_text("utf-8"))
        except ValueError:
            found = None
        if found == asked:
            pass
        elif not (root / "classes.txt").exists():           # a run of this command that came to no end
            print(f"{root} was begun with other flags and is incomplete: it is begun anew")
            for folder in FOLDERS:
                remove(root / folder)
            write_json(record, asked)
        else:
            other = [key for key in asked if not isinstance(found, dict) or found.get(key) != asked[key]]
            raise ValueError(f"{root} is there and was made from something else ({', '.join(other)}). Nothing was "
                             f"changed: name another folder with --root, or delete {root} yourself and run this again")
    elif root.is_dir() and any(path.name != ".DS_Store" for path in root.iterdir()):
        raise ValueError(f"{root} is there and is no folder that this command began. Nothing was changed: name another "
                         "folder with --root")
    else:
        write_json(record, asked)


def make_one(job, root, copy, converter):
    """Put one photo, and its mask, into the dataset. Returns (photo, what is wrong, ids in its mask or (), turned).

    The ids are None where the photo cannot be used.
    """
    name, path, image_id, mask, has_object = job
    suffix = KEPT.get(path.suffix.lower())
    try:
        size = image_size(path)
        target = root / "JPEGImages" / f"{image_id}{suffix or '.png'}"
        if suffix:
            write_image(target, path, copy)
        elif not is_made_of(target, path):
            save_image(target, read_image(path))
            same_time(target, path)
    except ValueError as error:
        return name, str(error), None, False
    except FileNotFoundError:
        return name, f"{path} is not there (a link to nowhere?): put it there, or remove it", None, False
    if mask is None:
        return name, "", (), False
    try:
        labels, was_turned = converter.read(mask, has_object), False
        if labels.shape != size:
            labels, was_turned = turned_with_photo(labels, size, orientation(path)), True
            if labels is None:
                raise ValueError(f"{mask} is of another size than its photo {path} ({size[1]}x{size[0]}): resize it by "
                                 "nearest neighbour, or take it out of --masks")
        target = root / "SegmentationClass" / f"{image_id}.png"
        if not is_made_of(target, mask):
            write_labels(target, labels)
            same_time(target, mask)
        return name, "", tuple(np.unique(labels).tolist()), was_turned
    except ValueError as error:
        return name, str(error), (), False


def is_made_of(target, source):
    """Tell whether `target` was made from `source` as it is now: it then has the same time."""
    return target.is_file() and target.stat().st_mtime_ns == source.stat().st_mtime_ns


def same_time(target, source):
    os.utime(target, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))


def problems_end(problems, leave_out, root):
    if not problems:
        return
    for problem in problems[:LISTED]:
        print(f"- {problem}")
    if len(problems) > LISTED:
        print(f"- and {len(problems) - LISTED} more")
    if not leave_out:
        raise ValueError(f"{counted(len(problems), 'file')} cannot be used (see above), so {root} is not complete. Fix "
                         "that and run the same command again, or add --leave_out to do without")
    print(f"{counted(len(problems), 'file', 'is')} left out (--leave_out)")


def write_tables(args, names, ids, classes, splits, made):
    """Write what makes the folder a dataset, the lists last."""
    root, table = args.root, io.StringIO(newline="")
    for folder in ("", *FOLDERS):
        remove_leftovers(root / folder)
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("file", "id"))
    writer.writerows((name, ids[name]) for name in names)
    write_lines(root / "names.csv", table.getvalue().splitlines())
    write_lines(root / "classes.txt", classes)
    write_json(root / "labels.json", {ids[name]: labels for name, labels in names.items()})
    for split, members in splits.items():
        write_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", members)
    counts = {split: Counter(label for name in names if ids[name] in set_ for label in names[name])
              for split, set_ in ((split, set(members)) for split, members in splits.items()) if split != "train_aug"}
    renamed = sum(Path(name).stem != ids[name] for name in names)
    sizes = ", ".join(f"{split} {len(splits[split])}" for split in counts)
    print(f"{root}: {counted(len(names), 'photo')} of {counted(len(classes), 'class')}; {sizes}")
    for label in classes:
        print(f"  {label:24s} " + "  ".join(f"{split} {counts[split][label]}" for split in counts))
    if bare := [label for label in classes if not any(counts[split][label] for split in counts)]:
        print(f"{counted(len(bare), 'class', 'has')} no photo and cannot be learned: {', '.join(bare)}")
    if empty := [name for name, labels in names.items() if not labels]:
        print(f"{counted(len(empty), 'photo', 'has')} no class, so not in train ({some(empty)})")
    if renamed:
        print(f"{counted(renamed, 'photo', 'has')} another name there: names.csv says which")
    masked = sum(bool(made[name]) for name in names)
    print(f"masks: {masked} of {len(names)}" if args.masks else "no masks: evaluation needs some, training does not")
    print(f"To look through it: python -m data.prepare check --root {root}")
