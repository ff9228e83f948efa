"""Annotation files in COCO's format: categories, photos and their objects, checked before anything is written."""
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

from data.labels import NOT_OBJECTS
from data.layout import IGNORE
from data.prepare.coco_masks import Photo
from data.prepare.masks import plain
from data.prepare.photos import KEPT, name_ids
from tools.files import require_file
from tools.words import counted

NO_OBJECTS = {"background": 0, "_background_": 0, "__background__": 0, "__ignore__": IGNORE, "_ignore_": IGNORE}


def read_annotations(path):
    """Read an instances_*.json; returns its content and its sha256."""
    require_file(path)
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
        numbers = {int(row["id"]): row["name"].strip() for row in categories}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise ValueError(f"{path}: a category has no id or no name: fix it there") from None
    names = [numbers[n] for n in sorted(numbers) if numbers[n].lower() not in NO_OBJECTS]
    for name in names:
        if not name or not name.isprintable() or len(name.encode()) > 100 or (
                plain(name).lstrip("0123456789") in NOT_OBJECTS):
            raise ValueError(f"{path}: {name[:100]!r} among the categories cannot be a class, which is an object and "
                             "has a name of at most 100 bytes without control characters: rename it there")
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
        elif source.suffix.lower() not in KEPT:
            raise ValueError(f"{source}: photos are {' '.join(KEPT)} here: convert it, and its name in {path}")
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
        print(f"{counted(len(renamed), 'photo', 'has')} another name in JPEGImages: {renamed[0].source.name} is "
              f"{renamed[0].id}")
    add_objects(photos, table, ids, path, bool(missing))
    return list(photos.values())


def add_objects(photos, table, ids, path, some_missing):
    """Add each annotation to its photo: (class id, is a crowd, segmentation, box)."""
    lost = 0
    for row in table["annotations"]:
        if odd := [key for key in ("category_id", "image_id") if isinstance(row[key], (list, dict))]:
            raise ValueError(f"{path}: an annotation has the {odd[0]} {str(row[odd[0]])[:50]}, and a number is "
                             "expected: fix it there")
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
        print(f"{path}: {counted(lost, 'annotation')} of images that are not in it, left out")
