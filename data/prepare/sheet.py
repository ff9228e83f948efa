"""The contact sheet: photos with their masks, to look at."""
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.images import open_image, read_image, voc_palette
from data.layout import IGNORE
from tools.aside import written_aside

TILE, TEXT, COLUMNS, SHOWN = 240, 34, 6, 24


def write_sheet(path, looks, labels, images, masks):
    """Draw 24 photos: first those with something wrong and those that EXIF turns, then evenly from the others."""
    odd = [i for i, each in looks.items() if each.wrong or each.orientation != 1][: SHOWN // 2]
    others = [i for i in looks if i not in set(odd)]
    step = max(1, len(others) / (SHOWN - len(odd)))
    chosen = odd + [others[int(k * step)] for k in range(min(SHOWN - len(odd), len(others)))]
    tiles = []
    for i in chosen:
        words = ", ".join([*looks[i].wrong, *sorted(labels.get(i, ()))])
        tiles.append(contact_tile(images[i][0], masks[i][0] if i in masks else None, i, words))
    try:
        with written_aside(path) as aside:
            contact_sheet(tiles).save(aside, format="PNG")
    except OSError as error:
        print(f"no contact sheet: {error}. --sheet FILE names another place")
    else:
        print(f"contact sheet: {path}")


def check_sheet(path, root):
    """Raise ValueError if a contact sheet may not be written to `path`: it replaces no file but another sheet."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--sheet {path}: a contact sheet is a PNG file: name one that ends in .png")
    if {root.resolve() / "JPEGImages", root.resolve() / "SegmentationClass"} & {*path.resolve().parents}:
        raise ValueError(f"--sheet {path}: {path.parent} holds the dataset's own images: name a file elsewhere")
    if path.is_file() and path.read_bytes()[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"--sheet {path}: this file is there and is no PNG: name another file")


def contact_sheet(tiles):
    """Lay out tiles of contact_tile in rows of six: an RGB image."""
    rows = max(1, -(-len(tiles) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + TEXT)), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % COLUMNS * TILE, i // COLUMNS * (TILE + TEXT)))
    return sheet


def contact_tile(image_path, mask_path, title, words):
    """Draw one photo, upright, its mask over it in VOC's colours, ignored pixels white. An unreadable one is grey."""
    tile = Image.new("RGB", (TILE, TILE + TEXT), "white")
    try:
        photo = Image.fromarray(read_image(image_path, max_side=TILE))
        photo.thumbnail((TILE - 8, TILE - 8))
        if mask_path is not None:
            photo = _covered(photo, mask_path)
    except (ValueError, OSError):
        photo = Image.new("RGB", (TILE - 8, TILE - 8), (200, 200, 200))
        words = f"cannot be read; {words}"
    tile.paste(photo, ((TILE - photo.width) // 2, (TILE - photo.height) // 2))
    draw = ImageDraw.Draw(tile)
    draw.text((5, TILE + 1), title[:40], fill=(0, 0, 0), font=_font())
    draw.text((5, TILE + 16), words[:42], fill=(90, 90, 90), font=_font())
    return tile


def _covered(photo, mask_path):
    with open_image(mask_path) as mask:
        labels = np.asarray(mask.resize(photo.size, Image.Resampling.NEAREST))
    if labels.ndim > 2 or labels.dtype != np.uint8:             # in colour: shown as it is
        return Image.blend(photo, Image.fromarray(labels).convert("RGB"), 0.6) if labels.dtype == np.uint8 else photo
    colours = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3).copy()
    colours[IGNORE] = 255
    pixels, covered = np.asarray(photo), (labels > 0)[..., None]                                       # (H, W, 1)
    return Image.fromarray(np.where(covered, 0.4 * pixels + 0.6 * colours[labels], pixels).astype(np.uint8))


@cache
def _font():
    return ImageFont.load_default(12)
