"""Precision, recall, erased fraction and intrusion: maps small enough for a pencil, a slow twin, what is missing."""
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.layout import VOCLayout
from tests.stages import DEMO, call
from tools.activation import FIGURES, Activation, in_words
from tools.maps import read_cam

TRUTH = np.array([[0, 1, 1, 255],
                  [0, 1, 2, 255]])
FIRST = [[.5, .9, .6, 1], [.1, .1, .8, 1]]          # active at .2: four counted pixels, two of them of class 1
SECOND = [[0, 0, .4, 1], [0, .3, .1, 1]]            # none on class 2 but .1, below the threshold


def summary(*samples, classes=3, threshold=.2):
    activation = Activation(classes, threshold)
    for sample in samples:
        activation.add(*(np.asarray(part) for part in sample))
    return activation.summary("abc"[:classes])


def test_by_hand():
    found = summary(([1, 2], [FIRST, SECOND], TRUTH))
    a, b, c = (found["per_class"][name] for name in "abc")
    assert a == pytest.approx({"precision": 50, "recall": 200 / 3, "erased": 100 * 1.6 / 3, "intrusion": 80 / 3})
    assert b == pytest.approx({"precision": 0, "recall": 0, "erased": 10, "intrusion": 100 * .7 / .8})
    assert set(c.values()) == {None}
    assert found["threshold"] == .2 and found["images_with_others"] == 1
    for figure in FIGURES:                          # over the classes that have it: not over c
        assert found[figure] == pytest.approx((a[figure] + b[figure]) / 2)


def test_a_score_at_the_threshold_is_not_active():
    assert summary(([1], [np.full((1, 2), np.float32(.2))], [[1, 1]]))["recall"] == 0


def test_pixels_of_all_images_count_together():
    """Not the mean over images: of 1 + 4 pixels the one of the first image is found."""
    found = summary(([1], [[[.9]]], [[1]]), ([1], [[[0, 0, 0, .4]]], [[1, 1, 1, 0]]))
    assert found["per_class"]["a"] == pytest.approx({"precision": 50, "recall": 25, "erased": 22.5, "intrusion": None})


def test_intrusion_is_of_the_images_that_show_another_class():
    alone = [1], [[[.9, .9]]], [[1, 0]]
    assert summary(alone)["intrusion"] is None and summary(alone)["images_with_others"] == 0
    beside = [1], [[[.6, .2]]], [[1, 2]]
    assert summary(alone, beside)["intrusion"] == pytest.approx(25)
    assert summary(alone, beside)["images_with_others"] == 1


def test_a_class_without_a_map_is_not_found_but_nothing_was_erased():
    found = summary((np.zeros(0, int), np.zeros((0, 1, 2)), [[1, 0]]))
    assert found["per_class"]["a"] == {"precision": None, "recall": 0, "erased": None, "intrusion": None}


def test_what_could_not_be_measured_is_said():
    nothing = summary((np.zeros(0, int), np.zeros((0, 1, 2)), [[0, 0]]))
    assert [nothing[figure] for figure in FIGURES] == [None] * 4
    assert "%" not in in_words(nothing, 1) and in_words(nothing, 1).count("no ") >= 4
    words = in_words(summary(([1], [[[.9, .9]]], [[1, 0]])), 1)
    assert "precision 50.000%" in words and "no intrusion: " in words


@settings(deadline=None)
@given(st.data())
def test_equals_pixel_after_pixel(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    samples = []
    for _ in range(data.draw(st.integers(1, 3))):
        classes = rng.permutation(3)[:rng.integers(0, 4)] + 1
        samples.append((classes, rng.random((len(classes), 3, 4), np.float32), rng.choice([0, 1, 2, 3, 255], (3, 4))))
    found = Activation(3, .5)
    for sample in samples:
        found.add(*sample)
    for c in (1, 2, 3):
        sums = dict.fromkeys(("active", "hit", "pixels", "target", "on_target", "mask", "on_others"), 0)
        for classes, scores, truth in samples:
            sums["pixels"] += (truth == c).sum()
            for y, x in np.argwhere(truth != 255) if c in classes else ():
                score, label = scores[list(classes).index(c), y, x], truth[y, x]
                others = set(truth.ravel().tolist()) - {0, c, 255}
                for name, amount in (("active", score > .5), ("hit", score > .5 and label == c), ("target", label == c),
                                     ("on_target", score * (label == c)), ("mask", score * bool(others)),
                                     ("on_others", score * (label in others))):
                    sums[name] += amount
        pairs = ("hit", "active"), ("hit", "pixels"), ("on_target", "target"), ("on_others", "mask")
        for figure, (part, whole) in zip(FIGURES, pairs):
            expected = 100 * sums[part] / sums[whole] if sums[whole] else np.nan
            assert found.per_class()[figure][c - 1] == pytest.approx(expected, nan_ok=True)


def test_evaluation_reports_it_of_cams_alone(place):
    layout, folder = VOCLayout("data/critters"), place / "experiment/X"
    printed = call("evaluation", *DEMO, "--task", "cam", "--dict_dir", "dict", "--threshold", .3)
    found = json.loads((folder / "eval/cam_dict_train.json").read_text())
    expected = Activation(6, .3)
    for image_id in layout.ids("train"):
        expected.add(*read_cam(folder / f"dict/{image_id}.npz"), layout.ground_truth(image_id))
    assert found["activation"] == expected.summary(layout.classes) and found["activation"]["threshold"] == .3
    row = next(line for line in printed.splitlines() if line.split()[:1] == [layout.classes[0]])
    assert row.split()[4] == f"{found['activation']['per_class'][layout.classes[0]]['precision']:.3f}%"
    assert f"precision {found['activation']['precision']:.3f}%, recall" in printed
    call("evaluation", *DEMO, "--task", "crf", "--dict_dir", "crf/02")
    assert "activation" not in json.loads((folder / "eval/crf_crf_02_train.json").read_text())
