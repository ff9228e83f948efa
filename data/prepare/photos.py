"""The photos in a folder and its subfolders: found by the names that people give them, and named with IDs."""
import os
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

from data.photos import UNREAD

KEPT = {".jpg": ".jpg", ".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".png": ".png"}   # linked, under this ending
READ = (*KEPT, ".bmp", ".tif", ".tiff", ".webp")                                            # the others are converted
NOT_READ = {*UNREAD, ".gif", ".psd", ".raw", ".jp2", ".ppm", ".pgm", ".tga", ".mp4", ".mov"}


class Photos:
    """List the photos below a folder: files {path below it: Path}. Links are followed, hidden names are not read."""

    def __init__(self, folder):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder {folder} (--images): name the one that holds the photos")
        self.files, self.not_read = {}, Counter()
        for path in _walk(self.folder):
            suffix = path.suffix.lower()
            if suffix in READ:
                name = os.fsencode(path.relative_to(self.folder)).decode("utf-8", "backslashreplace")
                self.files[normal(name.replace(os.sep, "/"))] = path
            elif suffix in NOT_READ:
                self.not_read[suffix] += 1
        if not self.files:
            kinds = "".join(f"; {n} {suffix} files, which are not read: convert them" for suffix, n in
                            sorted(self.not_read.items()))
            raise ValueError(f"{folder} (--images) holds no photo ({' '.join(READ)}, in any case){kinds}")
        self.files = dict(sorted(self.files.items()))
        self._tails, self._folded = defaultdict(list), defaultdict(list)
        for name in self.files:
            for tail in _tails(name):
                self._tails[tail].append(name)
                self._folded[tail.casefold()].append(name)

    def find(self, written):
        """Return the photos that a name in a table may mean: with folders or without, with its ending or without."""
        if written in self.files:
            return [written]
        name = normal(written.strip().replace("\\", "/"))
        if name in self.files:
            return [name]
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            return []
        tails = ["/".join(parts[i:]) for i in range(len(parts))]
        if (suffix := PurePosixPath(name).suffix).lower() in READ:
            tails += [tail.removesuffix(suffix) for tail in tails]          # the table may name another ending
        for tail in tails:
            if found := self._tails.get(tail) or self._folded.get(tail.casefold()):
                return found
        return []


def _walk(folder, seen=frozenset()):
    real = os.path.realpath(folder)
    if real in seen:                                        # a link to a folder above it
        return
    with os.scandir(folder) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), seen | {real})
        else:
            yield Path(entry.path)


def _tails(name):
    """Give the ends of a path, with and without the suffix: a/b/1.jpg, b/1.jpg, 1.jpg, a/b/1, b/1, 1."""
    parts = name.split("/")
    tails = ["/".join(parts[i:]) for i in range(len(parts))]
    return tails + [tail[: -len(PurePosixPath(tail).suffix)] for tail in tails]


def normal(name):
    """Compose Unicode: macOS stores file names decomposed, tables hold them composed."""
    return unicodedata.normalize("NFC", name)


def name_ids(names):
    """Give each photo an ID: {photo: ID}; its name without the ending, with its folders where two would be the same.

    What an ID cannot hold becomes an underscore. IDs differ in more than case, for disks that ignore it.
    """
    stems = {name: _clean(PurePosixPath(name).stem) for name in names}
    counts = Counter(stem.casefold() for stem in stems.values())
    ids, taken = {}, set()
    for name in sorted(names, key=lambda name: (PurePosixPath(name).stem != stems[name], name)):    # fitting ones first
        first = stems[name] if counts[stems[name].casefold()] == 1 else _clean(name[: -len(PurePosixPath(name).suffix)])
        image_id, number = first, 2
        while image_id.casefold() in taken or (image_id != stems[name] and counts[image_id.casefold()]):
            image_id, number = f"{first}_{number}", number + 1
        taken.add(image_id.casefold())
        ids[name] = image_id
    return ids


def _clean(name):
    image_id = re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "_"
    while len(image_id.encode()) > 90:                      # an ID has at most 100 bytes; a number may be added
        image_id = image_id[:-1]
    return image_id
