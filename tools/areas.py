"""Which classes photos show and how large they are there: areas.json beside the label maps."""
import numpy as np

from tools.files import read_json, read_label_map, write_json


def write_areas(path, folder, files, names, not_read):
    """Write the areas of photos whose label maps lie in a folder; returns how many of `files` and of others those are.

    files  {ID: the photo's file name};  names  of the classes, the background first;  not_read  {file name: why}
    areas.json: {"classes": names, "images": {ID: {"file", "width", "height", "areas": {name: {"pixels", "percent"}}}},
    "not_read"}. What an earlier run wrote is kept where the map is no newer, and exists. Photos that this run does not
    name stay in it under the file names that they had, unless such a file now has another ID.
    """
    known, written = _read(path).get("images", {}), path.stat().st_mtime if path.exists() else 0
    earlier = {i: entry["file"] for i, entry in known.items() if i not in files}
    earlier = {i: file for i, file in earlier.items() if file and file not in files.values()}
    named, images = earlier | files, {}
    for image_id in named:
        place = folder / f"{image_id}.png"
        if place.exists():
            old, file = known.get(image_id), named[image_id]
            fresh = old and old["file"] == file and place.stat().st_mtime < written
            images[image_id] = old if fresh else _measure(file, read_label_map(place), names)
    areas = {"classes": names, "images": dict(sorted(images.items())), "not_read": not_read}
    if _read(path) != areas:
        write_json(path, areas)
    return sum(i in files for i in images), sum(i in earlier for i in images)


def _measure(file, labels, names):
    """Count the pixels of each class that a label map (H, W) holds."""
    pixels = np.bincount(labels.ravel(), minlength=len(names))
    height, width = labels.shape
    return {"file": file, "width": width, "height": height,
            "areas": {name: {"pixels": int(count), "percent": round(100 * int(count) / labels.size, 3)}
                      for name, count in zip(names, pixels) if count}}


def _read(path):
    """Read what an earlier run wrote; empty if that is damaged or absent: everything is measured again."""
    try:
        found = read_json(path) if path.exists() else {}
        whole = isinstance(found, dict) and isinstance(found.get("images"), dict)
        return found if whole and all(isinstance(e, dict) and "file" in e for e in found["images"].values()) else {}
    except (ValueError, OSError):
        return {}
