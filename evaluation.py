"""Measure CAMs, CRF maps or label maps against the ground truth: mean intersection over union.

Reads   a folder of maps (--dict_dir, in the experiment or anywhere)   SegmentationClass/ of --data_root (or --gt_dir)
Writes  eval/TASK_DIR_LIST.json, .png (the curve)
Run     python evaluation.py --name X --task cam --dict_dir dict
        python evaluation.py --name X --task crf --dict_dir crf/06
        python evaluation.py --name X --task png --dict_dir rw/04_24
A CAM needs a background threshold. The best of a range is reported, as the papers do, so it is chosen on the ground
truth; the value at a fixed threshold stands beside it, and how well each class's own map covers its objects there.
"""
import re
from pathlib import Path

import config

from tools import flags

if __name__ == "__main__":      # --help and mistakes in the flags, before what reads images
    flags.check(config.Evaluate)

import numpy as np
from tqdm import tqdm

from advice import experiment_of, to_make, verify_maps
from data.folders import find_label_map
from data.layout import IGNORE, VOCLayout
from data.signatures import signatures
from pipeline import result_file
from tools.activation import FIGURES, Activation, in_words, percent
from tools.aside import written_aside
from tools.files import write_json
from tools.map_classes import compare_with_labels
from tools.maps import checked_cam, checked_crf, find_maps, lacking, require_kind
from tools.metrics import ConfusionMatrix, ThresholdHistogram, iou, threshold_range
from tools.provenance import digest
from tools.visualize import draw_curve
from tools.words import counted, some

WHOLE_RANGE = [t / 100 for t in range(101)]


def main():
    settings = flags.parse(config.Evaluate)
    settings.dict_dir = settings.dict_dir.rstrip("/") or "/"
    experiment, layout = experiment_of(settings), VOCLayout(settings.data_root)
    folder = experiment.find_folder(settings.dict_dir)
    if folder.name != Path(settings.dict_dir).name:             # crf/4 is crf/04
        settings.dict_dir = str(Path(settings.dict_dir).with_name(folder.name))
    ids = layout.ids(settings.list)
    paths = find_predictions(folder, ids, settings)
    require_truth(layout, ids, settings)
    verify_maps(settings, experiment, folder, layout, signatures(layout, ids), settings.list)
    if settings.task != "png" and (doubt := compare_with_labels(folder, paths, layout, settings.task)):
        print(doubt)

    result = (evaluate_cams if settings.task == "cam" else evaluate_labels)(settings, layout, paths)
    truth = settings.gt_dir or str(layout.root / "SegmentationClass")
    result |= {"images": len(ids), "list": settings.list, "truth": truth, "made_by": digest(folder)}
    if kind := layout.ground_truth_kind(settings.gt_dir):
        result["ground_truth"], truth = kind, f"{truth} ({kind})"
    print_report(result, f"{settings.task} of {folder} on {settings.list}: {counted(len(ids), 'image')}, ground "
                         f"truth {truth}")

    path = experiment / result_file(settings.task, settings.dict_dir, settings.list)
    write_json(path, result)
    if result["curve"]:
        with written_aside(path.with_suffix(".png")) as aside:
            draw_curve(aside, result["curve"], f"{settings.name}: {settings.dict_dir} on {settings.list}",
                       [(result["threshold"], result["miou"], "best"),
                        (result["fixed_threshold"], result["fixed_miou"], "fixed")])
    experiment.save_config(f"evaluation_{settings.task}", flags.as_json(settings))
    experiment.log("evaluation", f"{settings.task} {settings.dict_dir} {settings.list}: mIoU {result['miou']:.2f}")


def find_predictions(folder, ids, settings):
    """Return {ID: path}; raises FileNotFoundError with the count and first names of what is missing."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} (--dict_dir). {advice(settings)}")
    require_kind(folder, settings.task)
    if settings.task == "png":
        paths = {i: find_label_map(folder, i) for i in ids}
    else:
        paths = {i: find_maps(folder, i) for i in ids}
    missing = [i for i, p in paths.items() if p is None]
    if missing:
        raise FileNotFoundError(f"{lacking('prediction', folder, missing, ids, settings.list)}. "
                                f"{advice(settings)}")
    return paths


def advice(settings):
    """Name the command that makes what is missing."""
    folder, _, alpha = settings.dict_dir.rpartition("/")
    if settings.task != "crf" or not re.fullmatch(r"\d+\.?\d*", alpha):
        return to_make(settings, settings.dict_dir, settings.list, settings.task)
    return to_make(settings, folder, settings.list, "crf", [float(alpha)])


def require_truth(layout, ids, settings):
    missing = [i for i in ids if not layout.has_ground_truth(i, settings.gt_dir)]
    if missing:
        folder = settings.gt_dir or layout.root / "SegmentationClass"
        raise FileNotFoundError(f"{lacking('ground truth', folder, missing, ids, settings.list)}: "
                                f"{layout.without_map(folder, missing)}--gt_dir names another folder, --list a split "
                                "that has it")


def evaluate_cams(settings, layout, paths):
    """Count once, for all thresholds: those searched, the fixed one, and 0..1."""
    low, high, step = settings.thresholds
    if not (0 <= low <= high <= 1 and step >= 0.001):
        raise ValueError(f"--thresholds {low:g} {high:g} {step:g}: needs 0 <= LO <= HI <= 1 and STEP at least .001")
    if not 0 <= settings.threshold <= 1:
        raise ValueError(f"--threshold {settings.threshold:g}: scores lie in 0 .. 1")
    searched = threshold_range(low, high, step)
    remedy = advice(settings)
    histogram = ThresholdHistogram(len(layout.classes), [*searched, settings.threshold, *WHOLE_RANGE])
    activation = Activation(len(layout.classes), settings.threshold)

    def predict(image_id, truth):
        classes, scores = checked_cam(paths[image_id], layout, remedy=remedy)
        return classes, scores if len(classes) else np.zeros((0, *truth.shape), np.float32)     # an image of no class

    def add(cam, truth):
        histogram.add(*cam, truth)
        activation.add(*cam, truth)

    seen = count(settings, layout, paths, predict, add)
    mious = iou(histogram.matrices()).mean(-1).tolist()
    best, fixed = int(np.argmax(mious[:len(searched)])), len(searched)
    whole = len(searched) + 1 + int(np.argmax(mious[len(searched) + 1:]))
    result = describe(histogram.confusion(best), layout) | seen
    result |= {"threshold": searched[best], "fixed_threshold": settings.threshold, "fixed_miou": mious[fixed],
               "curve": [[t, m] for t, m in zip(searched, mious)],
               "at_an_end": len(searched) > 1 and best in (0, len(searched) - 1),
               "whole_range": [WHOLE_RANGE[whole - len(searched) - 1], mious[whole]]}
    result["fixed"] = {k: v for k, v in describe(histogram.confusion(fixed), layout).items() if k != "miou"}
    result["activation"] = activation.summary(layout.classes)
    return result


def evaluate_labels(settings, layout, paths):
    """Count the label maps: those of PNGs, or the row with the highest CRF score."""
    confusion, remedy = ConfusionMatrix(len(layout.classes)), advice(settings)

    def predict(image_id, truth):
        if settings.task == "png":
            return layout.read_label_map(image_id, paths[image_id].parent)       # the same format: a PNG of class ids
        classes, scores = checked_crf(paths[image_id], layout, remedy=remedy)
        return classes[scores.argmax(0)].reshape(scores.shape[1:])

    seen = count(settings, layout, paths, predict, lambda labels, truth: confusion.add(labels, truth))
    return describe(confusion, layout) | seen | {"threshold": None, "fixed_threshold": None, "fixed_miou": None,
                                                 "curve": []}


def count(settings, layout, paths, predict, add):
    """Call add(prediction, ground truth) for each image; return what GroundTruth.summary says.

    ValueError gives the count and names of predictions of another size.
    """
    wrong_size, truths = {}, GroundTruth(settings, layout, list(paths))
    for image_id, path in tqdm(paths.items(), "evaluation", mininterval=1):
        truth = truths.read(image_id)
        try:
            prediction = predict(image_id, truth)
            size = prediction[-1].shape[-2:] if isinstance(prediction, tuple) else prediction.shape
            if size == truth.shape:
                add(prediction, truth)
            else:
                wrong_size[image_id] = size, truth.shape
        except ValueError as error:
            raise ValueError(error if str(path) in str(error) else f"{path}: {error}") from None
    if wrong_size:
        raise ValueError(f"{len(wrong_size)} of {len(paths)} predictions do not have their ground truth's size "
                         f"{layout.other_sizes(wrong_size)}")
    return truths.summary()


class GroundTruth:
    """The ground truth of a list: reads it, and looks whether it can be this dataset's."""

    def __init__(self, settings, layout, ids):
        self.settings, self.layout, self.ids = settings, layout, ids
        self.folder = settings.gt_dir or layout.root / "SegmentationClass"
        self.pixels, self.ignored, self.empty, self.hidden, self.contrary = 0, 0, [], [], {}
        try:
            self.labels = dict(zip(ids, layout.labels(ids)))
        except (ValueError, OSError):           # evaluation needs no labels
            self.labels = {}

    def read(self, image_id):
        """Return the label map (H, W) of an image, and note what it shows."""
        truth = self.layout.ground_truth(image_id, self.settings.gt_dir)
        counts = np.bincount(truth.ravel(), minlength=IGNORE + 1)           # a third of np.unique's time
        self.pixels, self.ignored = self.pixels + truth.size, self.ignored + int(counts[IGNORE])
        shown = set(np.flatnonzero(counts).tolist()) - {0, IGNORE}
        said = set((np.flatnonzero(self.labels.get(image_id, ())) + 1).tolist())
        if not shown:
            self.empty.append(image_id)
            if counts[IGNORE] and (said or not self.labels):
                self.hidden.append(image_id)
        elif said and not shown & said:
            self.contrary[image_id] = said, shown
        return truth

    def summary(self):
        """Return {"ignored": percent of all pixels, "without_object", "against_label": images}.

        The last counts images that show none of the classes of their label. ValueError where no image shows an object;
        where more than a quarter show ignored pixels in its place (of VOC's images none does, of COCO's those whose
        objects are all in crowds); or where more than half of those that show one go against their label.
        """
        wrong = f"python -m data.prepare check --root {self.layout.root} lists what is wrong"
        if len(self.empty) == len(self.ids):
            raise ValueError(f"no object is left in the ground truth {self.folder} of {self.settings.list}: "
                             f"{100 * self.ignored / self.pixels:.1f}% of its pixels are {IGNORE}, which is ignored, "
                             "the others are background. Black and white masks have to be converted to class ids "
                             f"first; {wrong}")
        if 4 * len(self.hidden) > len(self.ids):
            raise ValueError(f"{len(self.hidden)} of the {len(self.ids)} images of {self.settings.list} show no object "
                             f"in the ground truth {self.folder}, but pixels of {IGNORE}, which are ignored "
                             f"({some(self.hidden)}). Black and white masks have to be converted to class ids first; "
                             f"{wrong}")
        if 2 * len(self.contrary) > len(self.ids) - len(self.empty):
            image_id, (said, shown) = next(iter(self.contrary.items()))
            said, shown = (", ".join(self.layout.classes[k - 1] for k in sorted(ids)) for ids in (said, shown))
            raise ValueError(f"the ground truth {self.folder} shows none of the classes of their labels in "
                             f"{len(self.contrary)} of {len(self.ids) - len(self.empty)} images ({image_id}: label "
                             f"{said}, ground truth {shown}), so its ids mean something else, such as numbers of "
                             f"objects, or another order of classes. Convert it to the ids of classes.txt; {wrong}")
        return {"ignored": 100 * self.ignored / self.pixels, "without_object": len(self.empty),
                "against_label": len(self.contrary)}


def describe(confusion, layout):
    """Sum up a confusion matrix: mIoU the authors' way, over the classes that occur, and per class, in percent."""
    names = ["background", *layout.classes]
    matrix, occurring = confusion.matrix, confusion.occurring()
    ious, hit = confusion.iou(), np.diagonal(matrix)
    precision = 100 * hit / np.maximum(matrix.sum(0), 1)
    recall = 100 * hit / np.maximum(matrix.sum(1), 1)
    return {"miou": confusion.miou(), "miou_occurring": float(ious[occurring].mean()) if occurring.any() else 0.0,
            "occurring": int(occurring.sum()), "per_class": table(names, ious), "precision": table(names, precision),
            "recall": table(names, recall)}


def table(names, values):
    return {n: float(v) for n, v in zip(names, values)}


def print_report(result, title):
    activation = result.get("activation")
    columns = "".join(f" {name:>10}" for name in FIGURES) if activation else ""
    print(f"\n{title}")
    if activation:
        print(f"{'':>45}  each class's own map at {activation['threshold']:g}:")
    print(f"{'class':>16} {'IoU':>8} {'precision':>10} {'recall':>8}{columns}")
    for name, value in result["per_class"].items():
        own = activation["per_class"].get(name, dict.fromkeys(FIGURES)) if activation else {}
        print(f"{name:>16} {value:7.3f}% {result['precision'][name]:9.3f}% {result['recall'][name]:7.3f}%"
              + "".join(f" {percent(own[figure], 10)}" for figure in own))
    print("=" * (46 + len(columns)))
    print(f"{'mIoU':>16} {result['miou']:7.3f}%" + (
        "" if result["threshold"] is None else f"  at threshold {result['threshold']:g}, the best of the range: "
        "chosen on the ground truth"))
    if result["threshold"] is not None:
        print(f"{'fixed':>16} {result['fixed_miou']:7.3f}%  at threshold {result['fixed_threshold']:g} (--threshold)")
        if result["at_an_end"]:
            t, miou = result["whole_range"]
            print("The best lies at an end of the range. "
                  f"Over 0 .. 1 it is {miou:.3f}% at {t:g} (--thresholds LO HI STEP)")
        print(f"{'activation':>16} {in_words(activation, result['images'])}")
    print(f"{'ignored':>16} {result['ignored']:7.3f}%  of the ground truth's pixels are {IGNORE}"
          + (f"; {result['without_object']} of {result['images']} images show no object" if result["without_object"]
             else "")
          + (f"; {result['against_label']} show no class of their label" if result["against_label"] else ""))
    missing = len(result["per_class"]) - result["occurring"]
    if missing:
        print(f"{'':>16} {result['miou_occurring']:7.3f}%  over the {result['occurring']} classes that occur; "
              f"{missing} occur in neither ground truth nor prediction and count 0 in the mean above, as the authors "
              "count")


if __name__ == "__main__":
    flags.run(main)
