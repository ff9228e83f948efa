"""Critters: the embedded dataset, generated from a seed. Six kinds of creature, 128x128, known to the pixel.

Each kind has a small, striking head, the same in every image, and a large, plain body, whose colour and roundness
only lean towards the kind: hues of neighbouring kinds overlap. So an ordinary classifier looks at heads, though the
bodies would tell it enough. Nothing here knows files: data/prepare/critters.py writes the images.

The set is frozen (tests/test_critters.py pins its pixels). To be the same on every machine it is made of random
doubles, + - * / and square roots alone: sin, exp, normal variates and sums of arrays differ in their last bit.
"""
import colorsys
from dataclasses import dataclass

import numpy as np

DRAWING = 1             # the version of the images; other pixels need another number
SIZE = 128
SPLITS = ("train", "val")

BLACK, WHITE, CREAM = (0.08, 0.07, 0.10), (0.98, 0.98, 0.96), (0.98, 0.91, 0.74)
RED, ORANGE, GOLD, PINK = (0.86, 0.13, 0.16), (0.96, 0.46, 0.08), (1.00, 0.80, 0.12), (1.00, 0.66, 0.74)
MAGENTA, BLUE, BROWN, HORN = (0.84, 0.10, 0.48), (0.16, 0.50, 0.92), (0.45, 0.27, 0.15), (0.80, 0.58, 0.22)


@dataclass(frozen=True)
class Kind:
    """What one kind of creature looks like. The unit of `head` is the head's radius; +u is forward, +v is down."""

    hue: float          # of the body, degrees; single creatures stray from it by up to HUE_SPREAD
    roundness: float    # height of the body / its length
    head: tuple         # parts from back to front: (colour, u, v, radius u, radius v) is an ellipse,
    #                     (colour, u0, v0, u1, v1, radius 0, radius 1) a limb that tapers from one point to another


KINDS = {
    "fox": Kind(25, 0.60, (
        (ORANGE, -0.55, -0.50, -0.70, -1.45, 0.42, 0.06), (ORANGE, 0.30, -0.60, 0.42, -1.50, 0.40, 0.06),
        (BLACK, -0.60, -0.85, -0.68, -1.30, 0.20, 0.04), (BLACK, 0.33, -0.90, 0.40, -1.35, 0.18, 0.04),
        (ORANGE, 0.00, 0.00, 1.00, 0.92), (WHITE, 0.20, 0.45, 0.78, 0.46), (WHITE, 0.55, 0.30, 1.35, 0.42, 0.34, 0.14),
        (BLACK, 1.45, 0.36, 0.19, 0.17), (BLACK, 0.28, -0.18, 0.17, 0.19), (WHITE, 0.33, -0.24, 0.06, 0.06))),
    "toucan": Kind(85, 0.72, (
        (BLACK, 0.00, 0.00, 1.00, 0.95), (GOLD, 0.10, 0.62, 0.62, 0.42), (ORANGE, 0.75, 0.00, 2.05, 0.42, 0.52, 0.14),
        (RED, 1.85, 0.30, 2.10, 0.50, 0.22, 0.10), (GOLD, 0.90, -0.20, 1.80, 0.10, 0.20, 0.08),
        (BLUE, 0.22, -0.20, 0.38, 0.38), (WHITE, 0.22, -0.20, 0.24, 0.24), (BLACK, 0.26, -0.20, 0.14, 0.14))),
    "ram": Kind(145, 0.66, (
        (CREAM, 0.00, 0.00, 0.86, 0.80), (CREAM, 0.30, 0.20, 0.95, 0.45, 0.55, 0.42), (BLACK, 1.22, 0.32, 0.13, 0.11),
        (RED, 1.00, 0.72, 0.26, 0.08), (BLACK, 0.48, -0.20, 0.16, 0.18), (WHITE, 0.53, -0.25, 0.06, 0.06),
        (HORN, -0.35, -0.25, 0.82, 0.82), (BROWN, -0.32, -0.18, 0.56, 0.56), (HORN, -0.32, -0.10, 0.42, 0.42),
        (BROWN, -0.28, -0.06, 0.20, 0.20), (HORN, -0.90, 0.30, -0.55, 0.95, 0.26, 0.05))),
    "panda": Kind(205, 0.78, (
        (BLACK, -0.72, -0.72, 0.40, 0.40), (BLACK, 0.72, -0.72, 0.40, 0.40), (WHITE, 0.00, 0.00, 1.05, 0.95),
        (BLACK, -0.42, -0.05, -0.50, 0.15, 0.27, 0.24), (BLACK, 0.46, -0.05, 0.54, 0.15, 0.27, 0.24),
        (WHITE, -0.36, -0.08, 0.11, 0.11), (WHITE, 0.52, -0.08, 0.11, 0.11), (BLACK, 0.06, 0.38, 0.20, 0.14),
        (BLACK, -0.08, 0.66, 0.22, 0.66, 0.06, 0.06))),
    "owl": Kind(265, 0.84, (
        (BROWN, -0.60, -0.55, -0.95, -1.25, 0.36, 0.06), (BROWN, 0.60, -0.55, 0.95, -1.25, 0.36, 0.06),
        (BROWN, 0.00, 0.00, 1.08, 0.95), (CREAM, -0.44, -0.05, 0.56, 0.58), (CREAM, 0.44, -0.05, 0.56, 0.58),
        (GOLD, -0.42, -0.05, 0.40, 0.40), (GOLD, 0.46, -0.05, 0.40, 0.40), (BLACK, -0.38, -0.05, 0.23, 0.23),
        (BLACK, 0.50, -0.05, 0.23, 0.23), (WHITE, -0.30, -0.13, 0.08, 0.08), (WHITE, 0.58, -0.13, 0.08, 0.08),
        (ORANGE, 0.02, 0.20, 0.02, 0.62, 0.20, 0.03))),
    "axolotl": Kind(325, 0.54, (
        (MAGENTA, -0.60, -0.40, -1.20, -1.10, 0.20, 0.12), (MAGENTA, -0.80, 0.00, -1.55, -0.30, 0.20, 0.12),
        (MAGENTA, -0.70, 0.35, -1.35, 0.60, 0.20, 0.12), (MAGENTA, 0.60, -0.50, 1.05, -1.15, 0.20, 0.12),
        (MAGENTA, 0.85, -0.10, 1.55, -0.40, 0.20, 0.12), (MAGENTA, 0.80, 0.35, 1.40, 0.50, 0.20, 0.12),
        (PINK, 0.00, 0.00, 1.08, 0.82), (BLACK, -0.50, -0.10, 0.16, 0.18), (BLACK, 0.58, -0.10, 0.16, 0.18),
        (WHITE, -0.45, -0.16, 0.06, 0.06), (WHITE, 0.63, -0.16, 0.06, 0.06),
        (BLACK, -0.15, 0.34, 0.22, 0.34, 0.07, 0.07), (MAGENTA, -0.72, 0.24, 0.18, 0.12),
        (MAGENTA, 0.80, 0.24, 0.18, 0.12))),
}
CLASSES = tuple(KINDS)
HUE_SPREAD = 55.0                       # degrees; the hues of neighbouring kinds are 60 apart
HEAD_AT, HEAD_RADIUS = (0.90, 0.62), 0.34       # forward, and up in parts of the body's height; in half body lengths
TAIL = (-0.85, -0.10, -1.22, -0.38, 0.14, 0.07)
# Ground: the darkest and the lightest colour.
GROUNDS = (((0.30, 0.40, 0.20), (0.62, 0.70, 0.42)), ((0.62, 0.50, 0.34), (0.90, 0.82, 0.64)),
           ((0.36, 0.34, 0.36), (0.66, 0.66, 0.68)), ((0.62, 0.70, 0.78), (0.94, 0.96, 0.98)),
           ((0.40, 0.30, 0.26), (0.70, 0.56, 0.46)), ((0.22, 0.38, 0.42), (0.50, 0.66, 0.66)))


def draw(seed, split, index, plain=False):
    """Draw one image. plain: without heads, everything else as it is.

    Returns image uint8 (H, W, 3), mask uint8 (H, W) of class ids 1..C over 0, heads bool (H, W): the visible heads.
    """
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index]))
    image = ground(rng)
    mask, heads = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), bool)
    for creature in scene(rng, first_kind=index % len(CLASSES)):
        creature.paint(image, mask, heads, plain)
    return (image * 255 + 0.5).astype(np.uint8), mask, heads


def scene(rng, first_kind):
    """Place one to three creatures, the rearmost first; one is of the first kind, the others of any."""
    count = 1 + (rng.random() < 0.62) + (rng.random() < 0.35)
    kinds = [first_kind] + [int(rng.random() * len(CLASSES)) for _ in range(count - 1)]
    while True:
        herd = [Creature.random(rng, kind) for kind in kinds]
        # No creature covers another's middle: all stay visible, so the mask has the kinds that were drawn.
        if all(a.clear_of(b) for i, a in enumerate(herd) for b in herd[:i]):
            return sorted(herd, key=lambda creature: creature.y)


@dataclass(frozen=True)
class Creature:
    """One creature: its kind, place, pose and coat. Its own unit is half the length of its body."""

    kind: int           # column 0..C-1
    x: float
    y: float
    length: float       # half of the body's, in pixels
    facing: int         # 1 right, -1 left
    cosine: float
    sine: float
    coat: np.ndarray    # the body's colour

    @classmethod
    def random(cls, rng, kind):
        length = between(rng, 23, 34)
        x, y = between(rng, 22, SIZE - 22), between(rng, 26, SIZE - 22)
        facing = 1 if rng.random() < 0.5 else -1
        tan = between(rng, -0.2, 0.2)           # of half the rotation, which is up to 22 degrees
        hue = KINDS[CLASSES[kind]].hue + HUE_SPREAD * between(rng, -1, 1)
        coat = np.array(colorsys.hsv_to_rgb(hue / 360 % 1, between(rng, 0.28, 0.50), between(rng, 0.60, 0.85)))
        norm = 1 + tan * tan
        return cls(kind, x, y, length, facing, (1 - tan * tan) / norm, 2 * tan / norm, coat)

    def clear_of(self, other):
        dx, dy, apart = self.x - other.x, self.y - other.y, 1.25 * max(self.length, other.length)
        return dx * dx + dy * dy > apart * apart

    def paint(self, image, mask, heads, plain):
        """Paint the creature over what is there: image (H, W, 3) in [0, 1], mask and heads (H, W)."""
        kind = KINDS[CLASSES[self.kind]]
        high = kind.roundness
        u, v, around = self.around(at=(0.0, 0.0), unit=1.0, reach=2.1)
        shadow = np.clip(1 - ellipse(u, v, 0.05, high + 0.16, 1.05, 0.26) * 6, 0, 1)
        image[around] *= 1 - 0.3 * shadow[..., None]
        body = paint_part(image[around], u, v, self.length, self.coat, TAIL)
        for foot in (-0.58, -0.28, 0.28, 0.58):
            leg = (foot, 0.7 * high, foot + 0.03, high + 0.12, 0.13, 0.10)
            body |= paint_part(image[around], u, v, self.length, 0.72 * self.coat, leg)
        body |= paint_part(image[around], u, v, self.length, self.coat, (0, 0, 1, high), shade=0.35)
        mask[around][body] = self.kind + 1
        heads[around][body] = False
        if not plain:
            u, v, around = self.around(at=(HEAD_AT[0], -HEAD_AT[1] * high), unit=HEAD_RADIUS, reach=2.5)
            for colour, *shape in kind.head:
                part = paint_part(image[around], u, v, self.length * HEAD_RADIUS, np.array(colour), shape)
                mask[around][part] = self.kind + 1
                heads[around][part] = True

    def around(self, at, unit, reach):
        """Give the window around the creature's point `at`: u (forward) and v (down) from there, in `unit`; slices."""
        right, down = at[0] * self.facing * self.length, at[1] * self.length
        x, y = self.x + right * self.cosine - down * self.sine, self.y + right * self.sine + down * self.cosine
        columns, rows = (window(middle, reach * unit * self.length) for middle in (x, y))
        dx = np.arange(columns.start, columns.stop)[None, :] - self.x
        dy = np.arange(rows.start, rows.stop)[:, None] - self.y
        u = (dx * self.cosine + dy * self.sine) * self.facing / self.length
        v = (dy * self.cosine - dx * self.sine) / self.length
        return (u - at[0]) / unit, (v - at[1]) / unit, (rows, columns)


def paint_part(image, u, v, pixels, colour, shape, shade=0.0):
    """Paint an ellipse (4 numbers) or limb (6) on a window of the image; return the pixels that it covers.

    pixels: how many a unit of u, v has; shade: how much darker each unit of v is.
    """
    distance = (ellipse if len(shape) == 4 else limb)(u, v, *shape) * pixels           # negative inside
    covered = np.clip(0.5 - distance, 0, 1)
    light = (1 - shade * v) * (1 - 0.35 * np.clip(1 + distance / 1.6, 0, 1))            # darker along the outline
    image += covered[..., None] * (np.clip(light[..., None] * colour, 0, 1) - image)
    return distance < 0


def ground(rng):
    """Draw textured ground (H, W, 3) in [0, 1]: noise of five grain sizes between two colours, and pebbles."""
    dark, light = np.array(GROUNDS[int(rng.random() * len(GROUNDS))])
    grains = ((3, 0.30), (7, 0.25), (16, 0.20), (36, 0.15), (64, 0.10))        # cells a side, weight
    height = sum(weight * noise(rng, cells) for cells, weight in grains)
    image = dark + np.clip(1.6 * height - 0.3, 0, 1)[..., None] * (light - dark)
    for _ in range(14):
        x, y, size = between(rng, 0, SIZE), between(rng, 0, SIZE), between(rng, 1.2, 3.2)
        columns, rows = window(x, 6), window(y, 6)
        near = ellipse(np.arange(columns.start, columns.stop)[None, :], np.arange(rows.start, rows.stop)[:, None],
                       x, y, 1.4 * size, size)
        covered = np.clip(0.5 - near, 0, 1)[..., None]
        image[rows, columns] += covered * (between(rng, 0.8, 1.2) * (dark + light) / 2 - image[rows, columns])
    return np.clip(image, 0, 1)


def noise(rng, cells):
    """Draw smooth noise (H, W) in [0, 1]: random heights at the corners of cells x cells squares, blended between."""
    corners = rng.random((cells + 1, cells + 1))
    at = np.arange(SIZE) * (cells / SIZE)
    low = at.astype(int)
    blend = at - low
    blend = blend * blend * (3 - 2 * blend)
    down = corners[low] + blend[:, None] * (corners[low + 1] - corners[low])
    return down[:, low] + blend * (down[:, low + 1] - down[:, low])


def ellipse(u, v, u0, v0, radius_u, radius_v):
    """Give roughly the distance from an ellipse's outline, negative inside."""
    u, v = (u - u0) / radius_u, (v - v0) / radius_v
    return (np.sqrt(u * u + v * v) - 1) * min(radius_u, radius_v)


def limb(u, v, u0, v0, u1, v1, radius0, radius1):
    """Give the distance from the outline of a limb from (u0, v0) to (u1, v1) that tapers, negative inside."""
    du, dv = u1 - u0, v1 - v0
    along = np.clip(((u - u0) * du + (v - v0) * dv) / (du * du + dv * dv), 0, 1)
    u, v = u - u0 - along * du, v - v0 - along * dv
    return np.sqrt(u * u + v * v) - (radius0 + along * (radius1 - radius0))


def window(middle, reach):
    """Give the slice of rows or columns within `reach` of `middle`; empty where that lies outside of the image."""
    return slice(max(0, int(middle - reach)), max(0, min(SIZE, int(middle + reach) + 2)))


def between(rng, low, high):
    return low + (high - low) * rng.random()
