"""The figures with which papers on erasing explain themselves: how much of an object a class's map finds, how much of
what it finds is the object, how much it erases, and how much of it lies on objects of other classes.

Unlike in an mIoU, each class's map is looked at by itself: where two overlap, both are active.
"""
import numpy as np

from tools.metrics import IGNORE

FIGURES = ("precision", "recall", "erased", "intrusion")


class Activation:
    """Count what each class's CAM covers, image by image. A pixel is active where its score exceeds the threshold.

    precision   true activation / activation: of the active pixels, those of the class
    recall      true activation / ground truth: of the class's pixels, those that are active
    erased      mean of the soft mask (the CAM, in [0, 1]) over the pixels of its class
    intrusion   sum of the soft mask on objects of other classes / sum of the soft mask, over the images that show
                another class: elsewhere there is nothing to intrude on
    All pixels of a class are counted together; pixels that the ground truth ignores are left out.
    Source: the papers' own arguments, OC-CSE and AEFT.
    """

    def __init__(self, num_classes, threshold):
        self.threshold = float(threshold)
        n = self.num_classes = num_classes
        self.pixels = np.zeros(n + 1, np.int64)             # of each class in the ground truth; 0 = background
        self.active, self.hit, self.target = (np.zeros(n + 1, np.int64) for _ in range(3))
        self.on_target, self.on_others, self.mask = (np.zeros(n + 1) for _ in range(3))
        self.images_with_others = 0

    def add(self, classes, scores, truth):
        """Count one image: classes (K,) ids 1..C, scores (K, H, W) in [0, 1], truth (H, W) with 255, as
        tools.metrics.ThresholdHistogram takes and checks them."""
        truth = np.asarray(truth)
        area = np.bincount(truth.ravel(), minlength=IGNORE + 1)[:self.num_classes + 1]  # (C+1,)
        counted, objects = truth != IGNORE, (truth != IGNORE) & (truth != 0)            # (H, W)
        self.pixels += area
        touched = False
        for c, score in zip(classes, np.asarray(scores, np.float32)):
            own, active = truth == c, score > np.float32(self.threshold)
            self.active[c] += np.count_nonzero(active & counted)
            self.hit[c] += np.count_nonzero(active & own)
            self.target[c] += area[c]
            self.on_target[c] += _sum(score, own)
            if area[1:].sum() > area[c]:
                self.on_others[c] += _sum(score, objects & ~own)
                self.mask[c] += _sum(score, counted)
                touched = True
        self.images_with_others += touched
        return self

    def per_class(self):
        """Give each figure of the classes 1..C in percent, {name: (C,)}; nan where there is nothing to divide by."""
        parts = {"precision": (self.hit, self.active), "recall": (self.hit, self.pixels),
                 "erased": (self.on_target, self.target), "intrusion": (self.on_others, self.mask)}
        with np.errstate(invalid="ignore"):
            return {name: 100 * (part / whole)[1:] for name, (part, whole) in parts.items()}

    def summary(self, names):
        """Sum up for JSON, percent: {"threshold", each figure's mean over the classes that have it, "per_class":
        {name: {figure: value}}, "images_with_others"}. None stands for what could not be measured."""
        figures = self.per_class()
        return {"threshold": self.threshold,
                **{name: _number(np.mean(values[~np.isnan(values)])) if not np.isnan(values).all() else None
                   for name, values in figures.items()},
                "per_class": {name: {figure: _number(values[k]) for figure, values in figures.items()}
                              for k, name in enumerate(names)},
                "images_with_others": self.images_with_others}


def _sum(score, where):
    """Sum score (H, W) over the pixels of where, bool: rows in float32, their sums in float64."""
    return np.einsum("hw,hw->h", score, where.astype(np.float32)).sum(dtype=np.float64)


def _number(value):
    return None if np.isnan(value) else float(value)


def percent(value, width=0):
    """Write a figure; - for one that could not be measured."""
    return f"{'-' if value is None else f'{value:.3f}%':>{width}}"


def in_words(summary, images):
    """Write the means of a summary as a line, and why a figure is missing."""
    measured = ", ".join(f"{name} {percent(summary[name])}" for name in FIGURES if summary[name] is not None)
    reasons = {"precision": "nothing is active", "recall": "no class is shown", "erased": "no map is of a class shown",
               "intrusion": "no image with a map shows another class"}
    missing = [f"no {name}: {reasons[name]}" for name in FIGURES if summary[name] is None]
    words = "; ".join(filter(None, [measured, *missing]))
    if summary["intrusion"] is not None:
        words += f" (of the {summary['images_with_others']} of {images} images that show another class)"
    return words
