"""Any photos: those of a folder, or one file, whatever their names."""
from collections import Counter
from pathlib import Path

from data.images import SUFFIXES

CONVERT = "is not read here: save it as JPEG or PNG"
UNREAD = {suffix: f"{suffix[1:].upper()} {CONVERT}" for suffix in (
    ".heic", ".heif", ".avif", ".jxl", ".svg", ".pdf", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".rw2", ".orf")}


class Photos:
    """The photos of a folder, or one file of it.

    files   {ID: file name}. An ID is the name without its suffix; with it if the ID would otherwise name two files.
    unread  {file name: why} of the folder's other files
    Raises FileNotFoundError where nothing is there, ValueError where nothing can be read.
    """

    def __init__(self, path):
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no folder or file {path} (--images): name a folder of images, or an image")
        self.root = path if path.is_dir() else path.parent
        there = sorted(p.name for p in self.root.iterdir() if not p.is_dir() and not p.name.startswith("."))
        images = [name for name in there if Path(name).suffix.lower() in SUFFIXES]
        asked = set(there) if path.is_dir() else {path.name}
        self.unread = {name: UNREAD.get(Path(name).suffix.lower(), "no image that is read here")
                       for name in there if name in asked and name not in images}
        # An ID depends on the whole folder: a file alone gets the same one.
        stems = Counter(Path(name).stem for name in images)
        self.files = {Path(n).stem if stems[Path(n).stem] == 1 and Path(n).stem not in images else n: n for n in images
                      if n in asked}
        if not self.files:
            what = "; ".join(f"{name}: {why}" for name, why in list(self.unread.items())[:3])
            raise ValueError(f"{path} (--images) holds no image ({' '.join(sorted(SUFFIXES))}): "
                             + (what or "put some there, or name another folder"))

    def image_path(self, image_id):
        return self.root / self.files[image_id]

