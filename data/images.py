"""Pictures: files in, uint8 arrays out, upright; or an error that tells a damaged file from a disk that has gone."""
import errno
import os
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}      # what is taken from any folder
ORIENTATION = 0x0112                                # EXIF's tag of how a picture is turned
TAKE_OFF = "fetch it again or take it off the list"
IF_GONE = "If it was there before: is its disk still mounted? Then run the same command again"


class PictureFolder:
    """Any pictures in a folder, whatever their names. A picture's ID is its name without the suffix; of two that would
    share it, or where it is another's whole name, the whole name."""

    def __init__(self, root):
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {root} (--images): name one that holds pictures")
        names = sorted(path.name for path in self.root.iterdir() if path.suffix.lower() in PICTURES and path.is_file()
                       and not path.name.startswith("."))
        if not names:
            raise ValueError(f"{root} (--images) holds no picture ({' '.join(sorted(PICTURES))}): put some there, or "
                             "name another folder")
        stems = Counter(Path(name).stem for name in names)
        self.files = {Path(n).stem if stems[Path(n).stem] == 1 and Path(n).stem not in names else n: n for n in names}

    def image_path(self, image_id):
        return self.root / self.files[image_id]


def picture_size(path):
    """Read the (H, W) of an upright picture from its header; errors as read_image."""
    with _opened(path) as picture:
        turned = picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) and picture.format != "TIFF"   # Pillow did that
        return picture.size if turned else picture.size[::-1]


def read_image(path):
    """Read a picture of any kind, turned as its EXIF data says: uint8 (H, W, 3). Transparency is dropped.

    Raises OSError where the file cannot be read now, ValueError where it is not a whole picture.
    """
    with decoded(path) as picture:
        if picture.mode.startswith("I"):                # 16-bit gray: Pillow's own conversion cuts at 255
            gray = np.rint(np.clip(np.asarray(picture) / 257, 0, 255)).astype(np.uint8)
            return np.stack([gray, gray, gray], axis=-1)
        picture.info.pop("transparency", None)          # Pillow would warn of it at palette pictures
        return np.array(picture.convert("RGB"))


@contextmanager
def decoded(path, remedy=TAKE_OFF):
    """Open and decode a picture, upright."""
    with _opened(path, remedy) as picture:
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        yield picture


@contextmanager
def _opened(path, remedy=TAKE_OFF):
    """Open a picture, not decoded; what is wrong with it is a ValueError, what hinders its reading an OSError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)     # from 89 to 178 million pixels: fine
            with Image.open(path) as picture:
                _check_size(picture, path)
                yield picture
    except Exception as error:      # Pillow names no set of what a damaged file may raise
        # Without a number it is Pillow's own word on the content; and a damaged file may send it to where no byte is.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise type(error)(f"{path} cannot be read now ({error.strerror}). {IF_GONE}") from None
        raise ValueError(f"{path} is truncated or not a picture: {remedy} ({type(error).__name__}: {error})") from None


def _check_size(picture, path):
    """Raise OSError where a PNG or JPEG is too short for the size it announces: Pillow would make room for it first."""
    depth = {"1": 1, "P": 1, "L": 2}.get(picture.mode, 8 * len(picture.getbands()))     # the least of bits a pixel
    least = {"PNG": depth / 1032, "JPEG": 2 / 64}.get(picture.format, 0)    # deflate's best; two codes a block of 8x8
    if picture.width * picture.height * least > 8 * os.path.getsize(path):
        raise OSError(f"it announces {picture.width}x{picture.height} pixels and is too short for them")
