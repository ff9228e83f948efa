"""Reading images: upright uint8 arrays, or an error that tells a damaged file from an unmounted disk."""
import errno
import math
import os
import stat
import threading
import warnings
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}    # of --images
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")     # by content; an EPS file would start Ghostscript
ORIENTATION = 0x0112                                # EXIF's tag of how the camera was held
LARGE, LARGEST = 50_000_000, 2_000_000_000      # pixels: see read_image; the most that anything here reads
TAKE_OFF = "fetch it again or take it off the list"
IF_GONE = "If it was there before: is its disk still mounted? Then run the same command again"

_limit_lock = threading.Lock()                      # of Pillow's limit; a process that is forked must not find it held
os.register_at_fork(before=_limit_lock.acquire, after_in_parent=_limit_lock.release,
                    after_in_child=_limit_lock.release)


def open_image(path):
    """Open an image with Pillow, whatever its name ends with: a file in one of FORMATS.

    Other formats can hold a program, and opening a pipe or device may never end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("a folder, pipe or device, not a file")
    return Image.open(path, formats=FORMATS)


def image_size(path):
    """Read the (H, W) of the upright image from the file's header; errors as read_image."""
    with _opened(path) as image:
        return image.size if _orientation(image) in (5, 6, 7, 8) else image.size[::-1]


def orientation(path):
    """Read how the EXIF data say that an image is to be turned: 1 (not at all) .. 8; errors as read_image."""
    with _opened(path) as image:
        return _orientation(image)


def _orientation(image):
    return 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)        # Pillow turns a TIFF itself


def mean_pixels(images, ids):
    """Estimate the mean number of pixels of images from the headers of ten. images: has image_path(ID)."""
    return np.mean([math.prod(image_size(images.image_path(i))) for i in ten_of(ids)])


def ten_of(ids):
    """Return ten of the IDs, or all if there are fewer, for an estimate."""
    return ids[:: -(-len(ids) // 10)]


def read_image(path, max_side=None):
    """Read an image of any format, turned as its EXIF data says: uint8 (H, W, 3). Transparency is dropped.

    max_side  the longer side to which the caller will shrink it: then an image above Pillow's limit is read too, and
              one above LARGE may come out smaller, yet no smaller than that. 0: the caller shrinks none, but has a flag
              --max_side for it; None: it has none
    Raises OSError if the file cannot be read now, ValueError if it is damaged, incomplete or no image.
    """
    return np.array(read_pillow(path, max_side))


def read_pillow(path, max_side=None):
    """Read an image as read_image does, as Pillow's image in RGB: what Pillow changes next needs no array."""
    with decoded(path, max_side=max_side) as image:
        if image.mode.startswith("I"):                # 16-bit gray: Pillow's own conversion cuts at 255
            gray = np.rint(np.clip(np.asarray(image) / 257, 0, 255)).astype(np.uint8)
            return Image.fromarray(np.stack([gray, gray, gray], axis=-1))
        image.info.pop("transparency", None)          # Pillow would warn of it in palette images
        return image if image.mode == "RGB" else image.convert("RGB")


def voc_palette():
    """Give VOC's 256 colours as 768 bytes: bit 3k + c of the id is bit 7 - k of colour channel c."""
    return bytes(sum((i >> (3 * k + c) & 1) << (7 - k) for k in range(3)) for i in range(256) for c in range(3))


@contextmanager
def decoded(path, remedy=TAKE_OFF, max_side=None):
    """Open an image, decode it and turn it upright. max_side: as of read_image."""
    with _opened(path, remedy, LARGEST if max_side else pillows_limit(), max_side) as image:
        if max_side and image.width * image.height > LARGE:
            image.draft(image.mode, (max_side, max_side))       # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        yield image


@contextmanager
def _opened(path, remedy=TAKE_OFF, most=LARGEST, max_side=None):
    """Open an image of at most so many pixels without decoding it.

    Damaged content is a ValueError, a failing disk an OSError.
    """
    image, too_large = None, None
    try:
        with _without_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)     # above half of the limit: fine
            image = open_image(path)
        with image:
            _check_size(image, path)
            if image.width * image.height > most:
                too_large = f"{image.width}x{image.height}"
                raise ValueError(too_large)
            yield image
    except Exception as error:      # Pillow names no set of what a damaged file may raise
        if too_large:
            raise ValueError(f"{path} is too large: {too_large} pixels, and at most {most // 1_000_000} million are "
                             f"read. {_remedy_of_large(most, max_side)}") from None
        if isinstance(error, MemoryError) and image and image.width * image.height > LARGE:
            raise
        # An OSError without errno, or with EINVAL, means damaged content, not a failing disk.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise type(error)(f"{path} cannot be read now ({error.strerror}). {IF_GONE}") from None
        raise ValueError(f"{path} is truncated or not an image: {remedy} ({type(error).__name__}: {error})") from None


def _remedy_of_large(most, max_side):
    smaller = "save it smaller (a longer side of 2000 pixels is plenty), or take it off the list"
    if max_side == 0 and most < LARGEST:
        return f"--max_side 1024 reads it smaller (with --overwrite where the stage has begun without); or {smaller}"
    elsewhere = "; infer.py, and infer_seg.py with --images, read it with --max_side 1024"
    return f"{smaller[0].upper()}{smaller[1:]}" + elsewhere * (max_side is None and most < LARGEST)


@contextmanager
def _without_limit():
    """Let Pillow open, not decode, images of any size: it would refuse large ones without saying how large they are.

    Pillow's limit holds for all threads, and those of tools.crf read images beside the network's: one changes it at a
    time.
    """
    with _limit_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def pillows_limit():
    """Return above how many pixels Pillow refuses an image."""
    with _limit_lock:
        return 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)       # tools/files.py lifts it, too


def _check_size(image, path):
    """Raise OSError if a PNG or JPEG is too short for the size in its header: Pillow would allocate that size first."""
    depth = {"1": 1, "P": 1, "L": 2}.get(image.mode, 8 * len(image.getbands()))     # at least, in bits a pixel
    least = {"PNG": depth / 1032, "JPEG": 2 / 64}.get(image.format, 0)    # deflate's best; two codes a block of 8x8
    if image.width * image.height * least > 8 * os.path.getsize(path):
        raise OSError(f"its header says {image.width}x{image.height} pixels, and the file is too short for them")
