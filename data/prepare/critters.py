"""Generate the embedded images, the critters: six kinds of creature, 128x128; in some ten seconds.

Writes  ROOT/JPEGImages/ID.png  SegmentationClass/ID.png  ImageSets/Segmentation/  classes.txt  labels.json
        ROOT/Heads/ID.png           critters' heads, black and white: for judging the set, read by no stage
        ROOT/made_by.json           what it was generated from, and a digest of all of it
Run     python -m data.prepare critters             (--plain: without heads)

The folder is complete or absent: it is written aside and renamed. An existing one is never changed.
"""
import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data import critters
from data.images import voc_palette
from data.prepare.writing import write_lines, write_whole
from tools.files import save_text

FOLDERS = ("JPEGImages", "SegmentationClass", "Heads")
LISTS = "ImageSets/Segmentation"


def add_arguments(parser):
    parser.add_argument("--out", type=Path, help="folder; without it data/critters, with --plain data/critters_plain")
    parser.add_argument("--seed", type=int, default=0, help="of what is generated; 0 is the frozen set")
    parser.add_argument("--plain", action="store_true", help="the same without heads: a control")
    parser.add_argument("--train", type=int, default=400, metavar="N", help="training images")
    parser.add_argument("--val", type=int, default=100, metavar="N", help="validation images")


def run(args):
    if args.seed < 0 or args.train < 1 or args.val < 1:
        raise ValueError("--seed starts at 0, --train and --val at 1")
    out = args.out or Path("data/critters_plain" if args.plain else "data/critters")
    made_by = {"stage": "data.prepare critters", "drawing": critters.DRAWING, "seed": args.seed, "plain": args.plain,
               "train": args.train, "val": args.val}
    splits = {split: [f"{split}_{i:04d}" for i in range(getattr(args, split))] for split in critters.SPLITS}
    if is_there(out, made_by, splits):
        print(f"{out} is there already, complete: nothing to do")
        return
    write_whole(out, lambda root: write_critters(root, made_by, splits))
    print(f"{out}: {args.train} train and {args.val} val images of {', '.join(critters.CLASSES)}")


def is_there(root, made_by, splits):
    """Tell whether `root` holds this very set, complete. Anything else in it is a ValueError."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "made_by.json").read_text("utf-8"))
        complete = found == {**made_by, "sha256": digest(root, splits)}
    except (OSError, ValueError):
        complete = False
    if not complete:
        raise ValueError(f"{root} is there and is another set, or incomplete. Nothing was changed: name another folder "
                         f"with --out, or delete {root} yourself and run this again")
    return True


def write_critters(root, made_by, splits):
    """Generate the splits {split: [ID, ...]} into the empty folder `root`."""
    for folder in (*FOLDERS, LISTS):
        (root / folder).mkdir(parents=True)
    labels = {}
    drawings = [(split, i, image_id) for split, ids in splits.items() for i, image_id in enumerate(ids)]
    for split, i, image_id in tqdm(drawings, desc="generating critters", unit="image"):
        image, mask, heads = critters.draw(made_by["seed"], split, i, made_by["plain"])
        labels[image_id] = [critters.CLASSES[k - 1] for k in np.unique(mask) if k]
        ground_truth = Image.fromarray(mask)
        ground_truth.putpalette(voc_palette())
        for folder, drawing in zip(FOLDERS, (Image.fromarray(image), ground_truth, Image.fromarray(heads))):
            drawing.save(root / folder / f"{image_id}.png")
    for name, ids in {**splits, "train_aug": splits["train"]}.items():
        write_lines(root / LISTS / f"{name}.txt", ids)
    write_lines(root / "classes.txt", critters.CLASSES)
    save_text(root / "labels.json", json.dumps(labels, indent=0) + "\n")
    save_text(root / "made_by.json", json.dumps({**made_by, "sha256": digest(root, splits)}, indent=1) + "\n")


def digest(root, splits):
    """Compute one sha256 of all files of the set; other files in the folder, such as own lists, do not matter."""
    files = [f"{folder}/{image_id}.png" for folder in FOLDERS for ids in splits.values() for image_id in ids]
    files += [f"{LISTS}/{name}.txt" for name in (*splits, "train_aug")] + ["classes.txt", "labels.json"]
    total = hashlib.sha256()
    for name in files:
        total.update(hashlib.sha256((root / name).read_bytes()).digest())
    return total.hexdigest()
