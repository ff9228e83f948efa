"""Which file of a dataset folder is an ID's image or label map, and what a folder holds that is no dataset."""
import os
import shlex
from functools import lru_cache
from itertools import islice
from pathlib import Path

JPEG_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif")
IMAGE_ENDINGS = (*JPEG_ENDINGS, ".png")           # of JPEGImages, in any case
OTHER_MAPS = (*JPEG_ENDINGS, ".bmp", ".gif", ".tif", ".tiff")
PARTS = ("JPEGImages", "ImageSets", "SegmentationClass")        # one of them makes a folder a dataset


def files_by_id(folder, endings=IMAGE_ENDINGS):
    """List the files of a folder that have one of these endings, in any case: {ID: [file name, ...]}."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, dot, ending = entry.name.rpartition(".")
            if stem and dot + ending.lower() in endings:
                found.setdefault(stem, []).append(entry.name)
    return {image_id: sorted(names) for image_id, names in found.items()}


def twice_there(folder, names):
    """Say which IDs have two images: names {ID: [file name, ...]}; "" if none has."""
    twice = [" and ".join(own) for own in names.values() if len(own) > 1]
    if not twice:
        return ""
    more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
    return (f"{folder} holds two images of one ID: {'; '.join(twice[:3])}{more}. Keep one file of each ID, or give the "
            "other an ID of its own")


def find_label_map(folder, image_id):
    """Return the path of an ID's label map, ID.png or .PNG; None if there is none."""
    path = Path(folder) / f"{image_id}.png"
    if path.exists():
        return path
    names = _listed(str(folder), (".png",)).get(image_id)
    return Path(folder) / names[0] if names else None


def other_map(folder, image_ids):
    """Name a file of one of these IDs that is a label map of another format; None if there is none."""
    there = _listed(str(folder), OTHER_MAPS)
    return next((Path(folder) / there[image_id][0] for image_id in image_ids if image_id in there), None)


def _listed(folder, endings):
    try:
        return _listing(folder, endings, os.stat(folder).st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=8)
def _listing(folder, endings, changed):
    return files_by_id(folder, endings)


def why_no_dataset(root):
    """Say how to get from a folder that is no dataset to one: it lies deeper or higher, or can be made from this."""
    root = Path(root)
    if not root.is_dir():
        return f"to fetch it: {prepare('voc', root=root)} --download" if root.name == "VOC2012" else ""
    inside = _subfolders(root)
    inside += [path for folder in inside[:300] for path in _subfolders(folder)]
    if found := [path for path in inside if _is_dataset(path)][:4]:
        return f"it lies deeper: {' or '.join(f'--data_root {shlex.quote(str(path))}' for path in found)}"
    for above in (root.absolute().parent, root.absolute().parent.parent):
        if _is_dataset(above):
            path = above if root.is_absolute() else os.path.relpath(above)
            return f"it begins further up: --data_root {shlex.quote(str(path))}"
    if found := sorted([*root.glob("instances*.json"), *root.glob("annotations/instances*.json")]):
        photos = root / found[0].stem.removeprefix("instances_")
        return ("it holds COCO's annotations. To make a dataset of them: "
                f"{prepare('coco', root=f'{root}_dataset', images=photos, annotations=found[0])}")
    if found := [path for path in sorted(root.glob("*.tar")) if "voc" in path.name.lower()]:
        return f"to unpack VOC's archive: {prepare('voc', root=root / 'VOC2012', archive=found[0])}"
    files = [path for folder in (root, *inside) for path in islice(folder.iterdir(), 300)]
    if found := [path for path in files if path.suffix.lower() in IMAGE_ENDINGS]:
        tables = sorted([*root.glob("*.csv"), *root.glob("labels.json")])
        labels = tables[0] if tables else "labels.csv" if found[0].parent == root else "from-subfolders"
        return ("it holds photos. To make a dataset of them: "
                f"{prepare('folder', images=root, labels=labels, root=f'{root}_dataset')}")
    return ""


def prepare(command, **flags):
    """Write the command of data.prepare that makes a dataset."""
    return shlex.join(["python", "-m", "data.prepare", command,
                       *(str(word) for name, value in flags.items() for word in (f"--{name}", value))])


def _is_dataset(path):
    return any((path / part).is_dir() for part in PARTS[:2])


def _subfolders(folder):
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
