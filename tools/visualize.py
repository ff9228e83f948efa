"""Images for people: overlays of activation, the figure of the erasing, curves."""
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

OVERLAY_SIDE = 2000         # pixels: of larger images the stages draw smaller overlays


def overlay(image, score, title, share=0.55):
    """Lay a score map over an image, with its name and a colour scale from 0 to 1 below.

    image uint8 (H, W, 3); score (H, W) in [0, 1] -> uint8 (H', W', 3); a small image is enlarged to be legible.
    """
    zoom = max(1, -(-240 // max(image.shape[:2])))
    blend = heated(image, score, share)
    blend = np.asarray(Image.fromarray(blend).resize((image.shape[1] * zoom, image.shape[0] * zoom), Image.NEAREST))
    width = max(blend.shape[1], 200)                                            # room for the title
    blend = np.pad(blend, ((0, 0), (0, width - blend.shape[1]), (0, 0)), constant_values=255)
    return np.concatenate([blend, _legend(width, title)])


def label_overlay(image, label_map, names, palette, share=0.55):
    """Lay a label map over an image, each class in its colour, and name below those that occur.

    image uint8 (H, W, 3); label_map (H, W) class ids; names in the order of the ids; palette: 256 colours as 768 bytes
    -> uint8 (H', W', 3); a small image is enlarged to be legible.
    """
    colours = np.frombuffer(palette, np.uint8).reshape(256, 3)
    object_ = (label_map > 0)[..., None]                                           # (H, W, 1)
    blend = np.where(object_, (1 - share) * image + share * colours[label_map], image).astype(np.uint8)
    height, width = (max(1, -(-240 // max(label_map.shape))) * extent for extent in label_map.shape)
    blend = np.asarray(Image.fromarray(blend).resize((width, height), Image.NEAREST))
    blend = np.pad(blend, ((0, 0), (0, max(0, 200 - width)), (0, 0)), constant_values=255)
    found = [c for c in np.unique(label_map).tolist() if 0 < c < len(names)]
    legend = Image.fromarray(np.full((22 * max(1, len(found)) + 6, blend.shape[1], 3), 255, np.uint8))
    draw = ImageDraw.Draw(legend)
    for i, c in enumerate(found):
        draw.rectangle((6, 22 * i + 6, 24, 22 * i + 22), fill=tuple(colours[c].tolist()))
        draw.text((32, 22 * i + 6), names[c], fill=(0, 0, 0), font=_font(14))
    if not found:
        draw.text((6, 6), f"{names[0]} only", fill=(0, 0, 0), font=_font(14))
    return np.concatenate([blend, np.asarray(legend)])


def heated(image, score, share=0.55):
    """Lay a score map (H, W) over an image uint8 (H, W, 3), in jet's colours."""
    heat = jet()[(np.clip(score, 0, 1) * 255).astype(np.uint8)]                # (H, W, 3)
    return ((1 - share) * image + share * heat).astype(np.uint8)


def titled(tile, title):
    """Put a line of text above an image uint8 (H, W, 3), with white around it -> (H + 30, W', 3)."""
    height, width = tile.shape[:2]
    canvas = Image.fromarray(np.full((height + 30, max(width, 130) + 6, 3), 255, np.uint8))
    canvas.paste(Image.fromarray(tile.astype(np.uint8)), (3, 24))
    ImageDraw.Draw(canvas).text((4, 3), title, fill=(0, 0, 0), font=_font(14))
    return np.asarray(canvas)


def erasing_figure(images, erased, masks, labels, targets, before, after, names):
    """Draw what the erasing did, a row an image: image, mask, what is left, what the ordinary classifier sees.

    images, erased uint8 (B, H, W, 3); masks (B, H, W); labels (B, C); targets (B,) columns; before, after (B, C)
    probabilities; names of the C classes -> uint8 (H', W', 3). Each row is named after the paper's three cases, unless
    targets is None: then no class was chosen.
    """
    size = 224
    rows = [_header(size, ("image", "mask (dark: erased)", "what is left", "seen by the classifier"))]
    for i in range(len(images)):
        tiles = [images[i], _gray(1 - masks[i]), erased[i]]
        tiles = [np.asarray(Image.fromarray(tile).resize((size, size), Image.BILINEAR)) for tile in tiles]
        present, words = np.flatnonzero(labels[i]), [("before  after", (120, 120, 120))]
        if targets is not None:
            target = int(targets[i])
            words = [_case(before[i], after[i], present, target), (f"erased: {names[target]}", (0, 0, 0)), *words]
        words += [(f"{before[i, c]:5.2f}  {after[i, c]:5.2f}   {names[c]}", (0, 0, 0)) for c in present]
        rows.append(np.concatenate([*tiles, _text_tile(size, size + 40, words)], axis=1))
    return np.concatenate(rows)


def _case(before, after, present, target):
    """Name the paper's case: a CAM that is too small leaves the class visible, one too large hides the others."""
    rest = [c for c in present if c != target and before[c] > 0.5]
    if before[target] < 0.5:
        return "not seen before either", (120, 120, 120)
    if after[target] > 0.5:
        return "too small: still seen", (190, 60, 0)
    if any(after[c] < 0.5 for c in rest):
        return "too large: the rest is gone", (170, 0, 120)
    return "right", (0, 130, 40)


def draw_curve(path, curve, title, marks=()):
    """Write a PNG of mIoU against threshold: curve [[t, mIoU], ...]; marks (t, mIoU, name) are pointed at."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="background threshold", ylabel="mIoU in percent", title=title)
    axes.plot([t for t, _ in curve], [m for _, m in curve])
    for t, miou, name in marks:
        axes.plot([t], [miou], "o", label=f"{name}: {miou:.1f} at {t:.2f}")
    if marks:
        axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, format="png")


def _legend(width, title):
    """Draw a strip (34, width, 3): the title, and the scale from 0 to 1."""
    strip = Image.fromarray(np.full((34, width, 3), 255, np.uint8))
    bar = min(90, width // 3)
    scale = jet()[np.linspace(0, 255, bar).astype(np.uint8)][None].repeat(12, 0)           # (12, bar, 3)
    strip.paste(Image.fromarray(scale), (width - bar - 20, 11))
    draw = ImageDraw.Draw(strip)
    draw.text((6, 8), title, fill=(0, 0, 0), font=_font(14))
    draw.text((width - bar - 32, 10), "0", fill=(0, 0, 0), font=_font(12))
    draw.text((width - 16, 10), "1", fill=(0, 0, 0), font=_font(12))
    return np.asarray(strip)


def _text_tile(height, width, words):
    tile = Image.fromarray(np.full((height, width, 3), 255, np.uint8))
    draw = ImageDraw.Draw(tile)
    for i, (text, colour) in enumerate(words):
        draw.text((10, 10 + 22 * i), text, fill=colour, font=_font(15))
    return np.asarray(tile)


def _header(size, names):
    canvas = Image.fromarray(np.full((26, 4 * size + 40, 3), 255, np.uint8))
    for i, name in enumerate(names):
        ImageDraw.Draw(canvas).text((i * size + 6, 5), name, fill=(0, 0, 0), font=_font(14))
    return np.asarray(canvas)


def _gray(score):
    """Turn a map (H, W) in [0, 1] into a gray image (H, W, 3)."""
    return (score[..., None] * 255).astype(np.uint8).repeat(3, axis=2)


@cache
def _font(size):
    return ImageFont.load_default(size)


@cache
def jet():
    """Return the colour map jet, the one of the field's figures: uint8 (256, 3)."""
    x = np.linspace(0, 1, 256)[:, None]
    return (np.clip(1.5 - np.abs(4 * x - np.array([3, 2, 1])), 0, 1) * 255).astype(np.uint8)
