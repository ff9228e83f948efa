"""Mean intersection over union (mIoU): of label maps, and of class maps at many background thresholds in one pass.

Class ids are 0 = background, 1..C = objects; 255 in the ground truth is left out. IoU is in percent.
"""
import numpy as np

IGNORE = 255                # in a label map: a pixel that counts for no class


class ConfusionMatrix:
    """Count pixels by (ground truth, prediction) in `matrix`, int64 (C+1, C+1)."""

    def __init__(self, num_classes):
        _check_num_classes(num_classes)
        self.matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)    # 32 bits overflow on COCO

    def add(self, prediction, truth):
        """Count one image: two integer arrays of one shape. ValueError on ids but 0..C (ground truth: and 255)."""
        n = len(self.matrix)
        prediction, row = np.asarray(prediction), _truth_rows(truth, n - 1)
        if prediction.shape != row.shape:
            raise ValueError(f"the prediction is {prediction.shape}, the ground truth {row.shape}")
        _check_ids(prediction, 0, n - 1, "the prediction")
        index = row * np.int32(n) + prediction.astype(np.int32)
        self.matrix += np.bincount(index.ravel(), minlength=(n + 1) * n).reshape(n + 1, n)[:n]
        return self

    def iou(self):
        """Give the IoU of each class, (C+1,) percent; 0 for a class absent from both ground truth and prediction."""
        return iou(self.matrix)

    def miou(self):
        """Average over all C+1 classes, an absent one counting 0, as the authors do."""
        return float(self.iou().mean())

    def occurring(self):
        """Say which classes occur in ground truth or prediction: (C+1,) bool; average those: iou()[occurring()]."""
        return self.matrix.sum(0) + self.matrix.sum(1) > 0


def iou(matrix):
    """Give the IoU of each class from confusion matrices (..., n, n): (..., n) percent; 0 where a class is absent."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    union = matrix.sum(-1) + matrix.sum(-2) - hit
    return 100.0 * hit / np.maximum(union, 1)


def threshold_sweep(samples, num_classes, thresholds):
    """Give the mIoU at each background threshold, (len(thresholds),), reading the samples once.

    samples: (classes (K,) ids 1..C, scores (K, H, W), truth (H, W)). A pixel is the class of its highest score (the
    lower id on a tie) if that exceeds the threshold, else background: the argmax of [threshold, scores] in float32.
    """
    histogram = ThresholdHistogram(num_classes, thresholds)
    for sample in samples:
        histogram.add(*sample)
    return iou(histogram.matrices()).mean(-1)


def threshold_range(low, high, step):
    """List the thresholds low, low + step, ... up to high: .10 .39 .01 are thirty."""
    return [round(low + i * step, 6) for i in range(int((high - low) / step + 1e-6) + 1)]


class ThresholdHistogram:
    """Count pixels by (ground truth, class of the highest score, thresholds that score exceeds): enough for a confusion
    matrix at every threshold. `counts`, int64, of several processes may simply be added."""

    def __init__(self, num_classes, thresholds):
        _check_num_classes(num_classes)
        thresholds = np.asarray(thresholds, np.float32)
        if thresholds.ndim != 1 or len(thresholds) == 0 or not np.isfinite(thresholds).all():
            raise ValueError(f"thresholds must be a list of finite numbers, not {thresholds}")
        self.num_classes = num_classes
        self.edges, self.position = np.unique(thresholds, return_inverse=True)          # ascending; where each one went
        self.counts = np.zeros((num_classes + 1, num_classes + 1, len(self.edges) + 1), np.int64)

    def add(self, classes, scores, truth):
        """Count one image. ValueError where sizes differ, ids are not 1..C once each, or a score is not finite."""
        classes, scores, row = np.asarray(classes), np.asarray(scores), _truth_rows(truth, self.num_classes)
        if classes.ndim != 1 or scores.shape != (len(classes), *row.shape):
            raise ValueError(f"classes {classes.shape}, scores {scores.shape} and truth {row.shape} are not "
                             "(K,), (K, H, W) and (H, W)")
        if len(classes):
            _check_ids(classes, 1, self.num_classes, "the list of classes")
        if len(np.unique(classes)) != len(classes):
            raise ValueError(f"a class is listed twice: {classes}")
        scores = scores.astype(np.float32, copy=False)
        if not np.isfinite(scores).all():
            raise ValueError("the scores hold NaN or infinity")
        rows, columns, bins = self.num_classes + 2, *self.counts.shape[1:]                # one row more: ignored pixels
        index = row * np.int32(columns)                                                   # (H, W)
        if len(classes):
            best, winner = _best(classes, scores)                                         # (H, W), (H, W)
            index += winner
            index *= np.int32(bins)
            index += _exceeded(self.edges, best)
        else:
            index *= np.int32(bins)
        self.counts += np.bincount(index.ravel(), minlength=rows * columns * bins).reshape(rows, columns, bins)[:-1]
        return self

    def matrices(self):
        """Give the confusion matrix at each threshold, in the order they were given: (T, C+1, C+1) int64."""
        at_most = self.counts.cumsum(-1)[..., :-1]                                        # score <= edge: background
        matrices = self.counts.sum(-1, keepdims=True) - at_most                           # (C+1, C+1, edges)
        matrices[:, 0] += at_most.sum(1)
        return np.moveaxis(matrices, -1, 0)[self.position]

    def confusion(self, i):
        """Give the ConfusionMatrix at the i-th threshold."""
        confusion = ConfusionMatrix(self.num_classes)
        confusion.matrix += self.matrices()[i]
        return confusion


def _best(classes, scores):
    """Give the highest score and its class id, the lower id on a tie: (K,), (K, H, W) -> (H, W), (H, W) int32."""
    first, *others = np.argsort(classes)
    best, winner = scores[first].copy(), np.full(scores.shape[1:], classes[first], np.int32)
    for k in others:
        np.copyto(winner, classes[k], where=scores[k] > best)
        np.maximum(best, scores[k], out=best)
    return best, winner


def _exceeded(edges, best):
    """Count the edges, float32 ascending, that each score exceeds: (E,), (H, W) -> (H, W) int32.

    Those below the nearest edge are exceeded, those above it are not: where edges lie evenly this takes a fourth of the
    time of a search.
    """
    first, last, steps = edges[0], edges[-1], np.float32(len(edges) - 1)
    even = np.linspace(first, last, len(edges))
    if not steps or not np.allclose(edges, even, rtol=0, atol=(last - first) / steps / 4):
        return np.searchsorted(edges, best).astype(np.int32)
    nearest = np.rint((best.clip(first, last) - first) * (steps / (last - first))).astype(np.int32)
    nearest += best > edges.take(nearest)
    return nearest


def _truth_rows(truth, num_classes):
    """Number the rows of a ground truth map: ids 0..C as they are, 255 as C+1."""
    truth = np.asarray(truth)
    _check_ids(truth, 0, IGNORE, "the ground truth")
    row_of = np.full(IGNORE + 1, -1, np.int32)                      # a third of the time of int64
    row_of[:num_classes + 1] = np.arange(num_classes + 1)
    row_of[IGNORE] = num_classes + 1
    row = row_of.take(truth)
    if row.min() < 0:
        raise ValueError(f"the ground truth holds {truth[row < 0][0]}: neither 0..{num_classes} nor {IGNORE}")
    return row


def _check_ids(ids, low, high, what):
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{what} must hold integers, not {ids.dtype}")
    if ids.size == 0:
        raise ValueError(f"{what} is empty")
    if ids.min() < low or ids.max() > high:
        raise ValueError(f"{what} holds {ids.min()}..{ids.max()}: class ids are {low}..{high}")


def _check_num_classes(num_classes):
    if not 1 <= num_classes < IGNORE:
        raise ValueError(f"1 to {IGNORE - 1} object classes, not {num_classes}: ids are one byte and {IGNORE} is taken")
