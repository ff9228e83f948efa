"""Look at one image of a dataset and at its mask: can they be read, and do they fit each other?"""
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.images import decoded, image_size, orientation, pillows_limit
from data.layout import IGNORE, vocs_colours_elsewhere

LIMIT = pillows_limit()          # pixels that Pillow reads; above, an image is read with --max_side
MASK = "save it again, or remove it"


@dataclass
class Look:
    """What was found: wrong {kind: sentence}; ids in the mask, None without one; digest of the image's bytes."""
    image_id: str
    wrong: dict
    digest: bytes = b""
    pixels: int = 0
    orientation: int = 1
    ids: tuple | None = None
    ignored: float = 0.0                                        # share of the mask's pixels


def look(job, classes):
    """Read one image and its mask completely. job: (ID, path of the image, path of its mask or None)."""
    image_id, path, mask = job
    found = Look(image_id, {})
    size = None
    try:
        size = image_size(path)                                                                 # (H, W), upright
        found.digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
        found.pixels = size[0] * size[1]
        with decoded(path, max_side=512 if found.pixels > LIMIT else 0):
            pass
        found.orientation = orientation(path)
    except FileNotFoundError:
        found.wrong["unreadable"] = f"{path} is a link to nowhere: put the image there, or take the ID off the lists"
    except (ValueError, OSError) as error:
        found.wrong["unreadable"] = str(error)
    if mask is not None:
        _look_at_mask(found, mask, size, classes)
    return found


def _look_at_mask(found, path, size, classes):
    try:
        with decoded(path, MASK) as image:
            mode, shape = image.mode, image.size[::-1]
            counts = np.array(image.histogram()) if mode in ("P", "L") else None
            palette = image.getpalette("RGB") if mode == "P" else None
    except FileNotFoundError:
        found.wrong["mask"] = f"{path} is a link to nowhere: put the mask there, or remove the link"
        return
    except (ValueError, OSError) as error:
        found.wrong["mask"] = str(error)
        return
    if size and shape != size:
        if shape == size[::-1] and found.orientation in (5, 6, 7, 8):
            found.wrong["exif"] = (f"{path} is {shape[1]}x{shape[0]}, and its image {size[1]}x{size[0]} as its EXIF "
                                   f"orientation {found.orientation} turns it")
        else:
            found.wrong["size"] = f"{path} is {shape[1]}x{shape[0]}, and its image {size[1]}x{size[0]}"
    if counts is None:
        found.wrong["colour"] = f"{path} has the mode {mode}, and a label map is an 8-bit PNG of class ids"
        return
    values = np.flatnonzero(counts)
    if palette and vocs_colours_elsewhere(values, palette):
        found.wrong["palette"] = f"{path} has other colours at the ids {', '.join(map(str, values[:5]))}"
        found.ids = ()
        return
    found.ids, found.ignored = tuple(values.tolist()), counts[IGNORE] / counts.sum() if len(counts) > IGNORE else 0.0
    if unknown := [v for v in found.ids if classes < v != IGNORE]:
        found.wrong["ids"] = f"{path} holds {', '.join(map(str, unknown[:5]))}, ids are 0..{classes} and {IGNORE}"
