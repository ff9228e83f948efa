"""Any photos: those of a folder, or one file, whatever their names."""
import os
import shlex
from collections import Counter
from pathlib import Path

from data.images import SUFFIXES

CONVERT = "is not read here: save it as JPEG or PNG"
NO_UTF8 = "is not in UTF-8 and cannot be written down: rename it"
UNREAD = {suffix: f"{suffix[1:].upper()} {CONVERT}" for suffix in (
    ".heic", ".heif", ".avif", ".jxl", ".svg", ".pdf", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".rw2", ".orf")}


class Photos:
    """The photos of a folder, or one file of it.

    files   {ID: file name}. An ID is the name without its suffix; with it if the ID would otherwise name two files.
    unread  {file name: why} of the folder's other files;  folders  a sentence that names the folders in it, or ""
    Raises FileNotFoundError where nothing is there, ValueError where nothing can be read.
    """

    def __init__(self, path):
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no folder or file {path} (--images): name a folder of images, or an image")
        self.root = path if path.is_dir() else path.parent
        if _in_utf8(str(self.root)) != str(self.root):
            raise ValueError(f"{_in_utf8(str(self.root))} (--images): this name {NO_UTF8}")
        there = sorted(p for p in self.root.iterdir() if not p.name.startswith("."))
        why = {p.name: _why_unread(p) for p in there if not p.is_dir()}
        images = [name for name, words in why.items() if not words]
        asked = set(why) if path.is_dir() else {path.name}
        self.unread = {_in_utf8(name): words for name, words in why.items() if words and name in asked}
        self.folders = _name_folders([p for p in there if p.is_dir()]) if path.is_dir() else ""
        # An ID depends on all files of the folder; one file alone gets the ID that it has among them.
        stems = Counter(Path(name).stem for name in images)
        self.files = {Path(n).stem if stems[Path(n).stem] == 1 and Path(n).stem not in images else n: n for n in images
                      if n in asked}
        if not self.files:
            what = [*([self.folders] if self.folders else []), *(f"{n}: {w}" for n, w in self.unread.items())][:3]
            raise ValueError(f"{_in_utf8(str(path))} (--images) holds no image ({' '.join(sorted(SUFFIXES))}): "
                             + ("; ".join(what) or "put some there, or name another folder"))

    def image_path(self, image_id):
        return self.root / self.files[image_id]


def _why_unread(path):
    """Say why a file is no image that is read here; "" if it may be one."""
    if _in_utf8(path.name) != path.name:
        return f"its name {NO_UTF8}"
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        return UNREAD.get(suffix, "no image that is read here")
    return "" if path.is_file() else "a pipe or device, not a file" if path.exists() else "a link to nowhere"


def _name_folders(paths):
    """Say which folders lie beside the photos, and how to read those of one."""
    if not paths:
        return ""
    names = ", ".join(_in_utf8(p.name) for p in paths[:10]) + (f" and {len(paths) - 10} others" * (len(paths) > 10))
    one = next((p for p in paths if _holds_images(p)), paths[0])
    return f"its folders are not read ({names}): --images {_in_utf8(shlex.quote(str(one)))} reads the photos of one"


def _holds_images(folder):
    try:
        return any(p.suffix.lower() in SUFFIXES for p in folder.iterdir())
    except OSError:
        return False


def _in_utf8(name):
    """Return a name as it can be written to a file: bytes that are not UTF-8 as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")

