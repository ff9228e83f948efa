"""What an image was when a run read it: its label, and its file's size and time. Nothing is decoded for it."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Signatures:
    """What tools.signatures compares, and the files that its messages name."""
    of: dict            # {ID: [its classes as text, size, time]}; None for what is not there, or was not read
    list: str
    labels: str
    photos: str


def signatures(layout, ids, list_name="", labels=True):
    """Read the signatures of images. labels=False: the run does not depend on them."""
    table = layout.root / "labels.json"
    return Signatures({i: [_label(layout, i) if labels else None, *_photo(layout, i)] for i in ids},
                      str(list_name and layout.list_path(list_name)),
                      str(table if table.exists() else layout.root / "Annotations"), str(layout.root / "JPEGImages"))


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
