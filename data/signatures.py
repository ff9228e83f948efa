"""What an image was when a run read it: its label, its file's size, time and checksum, and those of others' maps of it.

Nothing is decoded for it, and of a large file only three parts are read.
"""
import os
import stat
import zlib
from dataclasses import dataclass, replace

PART = 4096                 # bytes of a file's start, middle and end of which the checksum is


@dataclass(frozen=True)
class Signatures:
    """What tools.signatures compares, and the files that its messages name."""
    of: dict            # {ID: [its classes as text, size, time, checksum]}, with others' maps [..., their size, time,
    list: str           # checksum]; None for what is not there, or was not read
    labels: str
    photos: str
    maps: str = ""

    def with_maps(self, maps):
        """Add the signatures of the images' maps that a run reads: {folder that no stage wrote: {ID: path there}}."""
        return replace(self, of={i: [*signature[:4], *_maps(maps, i)] for i, signature in self.of.items()},
                       maps=" and ".join(map(str, maps)))


def signatures(layout, ids, list_name="", labels=True):
    """Read the signatures of images. labels=False: the run does not depend on them."""
    table = layout.root / "labels.json"
    return Signatures({i: [_label(layout, i) if labels else None, *_photo(layout, i)] for i in ids},
                      str(list_name and layout.list_path(list_name)),
                      str(table if table.exists() else layout.root / "Annotations"), str(layout.root / "JPEGImages"))


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
        path = layout.image_path(image_id)
        status = path.stat()
    except (ValueError, OSError):
        return [None, None, None]
    return [status.st_size, status.st_mtime_ns, _checksum(path, status)]


def _maps(folders, image_id):
    """Return size and checksum of an image's maps in all folders, and the time of the latest; nothing without folders.
    """
    checksum = 0
    try:
        found = [(paths[image_id], paths[image_id].stat()) for paths in folders.values()]
    except (OSError, AttributeError):           # gone, or None: the stages that need them say so
        return [None, None, None]
    for path, status in found:
        checksum = _checksum(path, status, checksum)
    return [sum(s.st_size for _, s in found), max(s.st_mtime_ns for _, s in found), checksum] if found else []


def _checksum(path, status, before=0):
    """Return the CRC-32 of a file's start, middle and end; None if it cannot be read, or `before` is None."""
    if before is None or not stat.S_ISREG(status.st_mode):
        return None
    last = max(0, status.st_size - PART)
    try:
        with open(path, "rb", buffering=0) as file:
            for start in sorted({0, last // 2, last}):
                before = zlib.crc32(os.pread(file.fileno(), PART, start), before)
    except OSError:
        return None
    return before
