"""What an image was when a run read it: its label, its file's size and time, and those of others' maps of it.

Nothing is decoded for it.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Signatures:
    """What tools.signatures compares, and the files that its messages name."""
    of: dict            # {ID: [its classes as text, size, time]}, with others' maps [..., their size, their time];
    list: str           # None for what is not there, or was not read
    labels: str
    photos: str
    maps: str = ""


def signatures(layout, ids, list_name="", labels=True, maps=None):
    """Read the signatures of images. labels=False: the run does not depend on them.

    maps  {folder that no stage wrote: {ID: path of the image's maps there}} that the run reads
    """
    table = layout.root / "labels.json"
    return Signatures({i: [_label(layout, i) if labels else None, *_photo(layout, i), *_maps(maps, i)] for i in ids},
                      str(list_name and layout.list_path(list_name)),
                      str(table if table.exists() else layout.root / "Annotations"), str(layout.root / "JPEGImages"),
                      " and ".join(map(str, maps or ())))


def signatures_of_photos(photos):
    """Read the signatures of data.photos.Photos: files without labels, of no list."""
    return Signatures({i: [None, *_photo(photos, i)] for i in photos.files}, "", "", str(photos.root))


def _label(layout, image_id):
    try:
        label = layout.label(image_id)
    except (ValueError, OSError):               # without labels; the stages that need them say so
        return None
    return ", ".join(name for name, there in zip(layout.classes, label) if there)


def _photo(layout, image_id):
    try:
        status = layout.image_path(image_id).stat()
    except (ValueError, OSError):
        return [None, None]
    return [status.st_size, status.st_mtime_ns]


def _maps(folders, image_id):
    """Return the size of an image's maps in all folders, and the time of the latest; nothing without folders."""
    try:
        found = [paths[image_id].stat() for paths in (folders or {}).values()]
    except (OSError, AttributeError):           # gone, or None: the stages that need them say so
        return [None, None]
    return [sum(s.st_size for s in found), max(s.st_mtime_ns for s in found)] if found else []
