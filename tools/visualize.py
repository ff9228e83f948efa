"""Pictures for people: overlays of activation, the figure of the erasing, curves."""
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def overlay(image, score, title, share=0.55):
    """Lay a score map over a picture, with its name and a colour scale from 0 to 1 below.

    image uint8 (H, W, 3); score (H, W) in [0, 1] -> uint8 (H', W', 3); a small picture is enlarged to be legible.
    """
    zoom = max(1, -(-240 // min(image.shape[1], 240)))
    heat = _jet()[(np.clip(score, 0, 1) * 255).astype(np.uint8)]                # (H, W, 3)
    blend = ((1 - share) * image + share * heat).astype(np.uint8)
    blend = np.asarray(Image.fromarray(blend).resize((image.shape[1] * zoom, image.shape[0] * zoom), Image.NEAREST))
    return np.concatenate([blend, _legend(blend.shape[1], title)])


def erasing_figure(rows):
    """Draw what the erasing did, a row an image: picture, mask, erased picture, what the ordinary classifier sees.

    rows: dicts of "image", "erased" uint8 (H, W, 3), "mask" (H, W), "target" (a class name), "before" and "after"
    {class name: probability} of the labelled classes -> uint8 (H', W', 3)
    """
    size = 224
    lines = []
    for row in rows:
        tiles = [row["image"], ((1 - row["mask"][..., None]) * 255).astype(np.uint8).repeat(3, 2), row["erased"]]
        tiles = [np.asarray(Image.fromarray(t).resize((size, size), Image.BILINEAR)) for t in tiles]
        case, colour = _case(row)
        words = [(case, colour), (f"erased: {row['target']}", (0, 0, 0)), ("before  after", (120, 120, 120))]
        words += [(f"{row['before'][c]:5.2f}  {row['after'][c]:5.2f}   {c}", (0, 0, 0)) for c in row["before"]]
        lines.append(np.concatenate([*tiles, _text_tile(size, size + 40, words)], 1))
    head = _text_tile(26, lines[0].shape[1], [])
    canvas = Image.fromarray(head)
    for i, name in enumerate(("picture", "mask (dark: erased)", "what is left", "seen by the classifier")):
        ImageDraw.Draw(canvas).text((i * size + 6, 5), name, fill=(0, 0, 0), font=_font(14))
    return np.concatenate([np.asarray(canvas), *lines])


def _case(row):
    """Name the paper's case: a CAM that is too small leaves the class visible, one too large hides the others."""
    rest = [c for c in row["before"] if c != row["target"] and row["before"][c] > 0.5]
    if row["after"][row["target"]] > 0.5:
        return "too small: still seen", (190, 60, 0)
    if any(row["after"][c] < 0.5 for c in rest):
        return "too large: the rest is gone", (170, 0, 120)
    return "right", (0, 130, 40)


def draw_curve(path, curve, title, marks=()):
    """Write a PNG of mIoU against threshold: curve [[t, mIoU], ...]; marks (t, mIoU, name) are pointed at."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4), layout="constrained")
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
    scale = _jet()[np.linspace(0, 255, bar).astype(np.uint8)][None].repeat(12, 0)           # (12, bar, 3)
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


@cache
def _font(size):
    return ImageFont.load_default(size)


@cache
def _jet():
    """Return the colour map jet, the one of the field's figures: uint8 (256, 3)."""
    x = np.linspace(0, 1, 256)[:, None]
    return (np.clip(1.5 - np.abs(4 * x - np.array([3, 2, 1])), 0, 1) * 255).astype(np.uint8)
