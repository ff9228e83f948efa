"""mIoU against the authors' numbers, and the one-pass sweep against a twin that takes every threshold by itself."""
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import describe
from tools.metrics import ConfusionMatrix, ThresholdHistogram, iou, threshold_range, threshold_sweep


def label_map(classes, scores, threshold):
    """The slow way: a background plane in front, argmax, row numbers to class ids."""
    order = np.argsort(classes)
    plane = np.full((1, *scores.shape[1:]), threshold, np.float32)
    row = np.concatenate([plane, scores.astype(np.float32)[order]]).argmax(0)
    return np.concatenate([[0], np.asarray(classes, int)[order]])[row]


def golden_samples(path, kind):
    with np.load(path) as data:
        for name in sorted(name for name in data.files if name.startswith("gt_")):
            number = name.removeprefix("gt_")
            yield data[f"{kind}_keys_{number}"], data[f"{kind}_{number}"], data[name]


@pytest.mark.parametrize("threshold", ["0.05", "0.2", "0.5"])
def test_iou_of_cams_equals_the_authors(golden, threshold):
    path = golden("set06_evaluation.npz")
    confusion = ConfusionMatrix(20)
    for keys, scores, truth in golden_samples(path, "cam"):
        confusion.add(label_map(keys + 1, scores, float(threshold)), truth)
    with np.load(path) as data:
        np.testing.assert_allclose(confusion.iou(), data[f"cam_iou_t{threshold}"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(confusion.miou(), data[f"cam_miou_t{threshold}"], rtol=0, atol=1e-6)


def test_iou_of_crf_maps_equals_the_authors(golden):
    path = golden("set06_evaluation.npz")
    confusion = ConfusionMatrix(20)
    for keys, scores, truth in golden_samples(path, "crf"):
        confusion.add(keys[scores.argmax(0)], truth)
    with np.load(path) as data:
        np.testing.assert_allclose(confusion.iou(), data["crf_iou"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(confusion.miou(), data["crf_miou"], rtol=0, atol=1e-6)


def test_sweep_equals_the_authors_search(golden):
    path = golden("set06_evaluation.npz")
    samples = [(keys + 1, scores, truth) for keys, scores, truth in golden_samples(path, "cam")]
    with np.load(path) as data:
        curve = threshold_sweep(samples, 20, data["search_thresholds"])
        np.testing.assert_allclose(curve, data["search_miou"], rtol=0, atol=5e-4)
        assert data["search_thresholds"][curve.argmax()] == data["search_best_threshold"]
        np.testing.assert_allclose(curve.max(), data["search_best_miou"], rtol=0, atol=5e-4)


def test_the_range_of_thresholds():
    """What the authors type is thirty thresholds, both ends among them; steps that rounding makes too long, too."""
    assert threshold_range(0.1, 0.39, 0.01) == [number / 100 for number in range(10, 40)]
    assert threshold_range(0, 1, 0.25) == [0, 0.25, 0.5, 0.75, 1]
    assert threshold_range(0.1, 0.3, 0.1) == [0.1, 0.2, 0.3] and threshold_range(0.2, 0.29, 0.1) == [0.2]


@settings(deadline=None)
@given(st.data())
def test_sweep_is_bit_equal_to_one_threshold_at_a_time(data):
    some = st.lists(st.sampled_from([*np.arange(0.1, 0.4, 0.01).tolist(), 0.0, -0.1, 1.0]), min_size=1)
    even = st.builds(lambda first, step, count: [first + i * step for i in range(count)],
                     st.sampled_from([-0.1, 0.0, 0.1]), st.sampled_from([0.001, 0.01, 0.25]), st.integers(2, 20))
    thresholds = data.draw(some | even)
    t = np.asarray(thresholds, np.float32)
    values = np.concatenate([t, np.nextafter(t, np.float32(2)), np.nextafter(t, np.float32(-2)), [0, 0.5, 1]])
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype = data.draw(st.sampled_from([np.float32, np.float16]))
    samples = []
    for _ in range(data.draw(st.integers(1, 3))):
        shape = tuple(rng.integers(1, 7, 2))
        classes = rng.permutation(np.arange(1, 6))[:rng.integers(0, 6)]
        truth = rng.choice([0, 1, 2, 3, 4, 5, 255], shape).astype(np.uint8)
        samples.append((classes, rng.choice(values, (len(classes), *shape)).astype(dtype), truth))

    histogram = ThresholdHistogram(5, thresholds)
    for sample in samples:
        histogram.add(*sample)
    curve = threshold_sweep(iter(samples), 5, thresholds)
    for i, threshold in enumerate(thresholds):
        slow = ConfusionMatrix(5)
        for classes, scores, truth in samples:
            slow.add(label_map(classes, scores, threshold), truth)
        np.testing.assert_array_equal(histogram.confusion(i).matrix, slow.matrix)
        assert curve[i] == slow.miou()


def test_counts_of_two_processes_add_up():
    rng = np.random.default_rng(0)
    samples = [([3, 1], rng.random((2, 4, 5)), rng.integers(0, 4, (4, 5))) for _ in range(4)]
    halves = [ThresholdHistogram(3, [0.3, 0.6]) for _ in range(2)]
    for i, sample in enumerate(samples):
        halves[i % 2].add(*sample)
    halves[0].counts += halves[1].counts
    np.testing.assert_array_equal(iou(halves[0].matrices()).mean(-1), threshold_sweep(samples, 3, [0.3, 0.6]))


def test_a_hand_computed_case():
    confusion = ConfusionMatrix(3).add(np.array([[0, 1, 1], [2, 2, 0]]), np.array([[0, 1, 0], [2, 255, 1]]))
    np.testing.assert_array_equal(confusion.matrix[:3, :3], [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(confusion.iou(), [100 / 3, 100 / 3, 100, 0])
    assert confusion.miou() == pytest.approx(500 / 12)              # the absent class counts 0
    np.testing.assert_array_equal(confusion.occurring(), [True, True, True, False])


def test_precision_is_of_what_is_predicted_and_recall_of_what_is_there():
    confusion = ConfusionMatrix(2).add(np.array([[1, 1, 1, 0]]), np.array([[1, 0, 2, 0]]))
    found = describe(confusion, SimpleNamespace(classes=["cat", "dog"]))
    assert found["precision"] == pytest.approx({"background": 100, "cat": 100 / 3, "dog": 0})
    assert found["recall"] == pytest.approx({"background": 50, "cat": 100, "dog": 0})


def test_counters_do_not_wrap_at_32_bits():
    zeros = np.zeros((4, 4), np.uint8)
    confusion = ConfusionMatrix(1).add(zeros, zeros)
    confusion.matrix *= 2**40
    assert confusion.add(zeros, zeros).matrix[0, 0] == 2**44 + 16
    assert confusion.iou()[0] == 100
    histogram = ThresholdHistogram(1, [0.5]).add([], np.zeros((0, 4, 4)), zeros)
    histogram.counts *= 2**40
    assert histogram.confusion(0).matrix[0, 0] == 2**44


def test_strided_and_read_only_arrays():
    rng = np.random.default_rng(0)
    scores, truth = rng.random((2, 6, 8)).astype(np.float32), rng.integers(0, 3, (6, 8)).astype(np.uint8)
    strided = np.asfortranarray(scores)
    strided.setflags(write=False)
    expected = ThresholdHistogram(2, [0.5]).add([1, 2], scores, truth).counts
    np.testing.assert_array_equal(ThresholdHistogram(2, [0.5]).add([1, 2], strided, truth.copy("F")).counts, expected)
    np.testing.assert_array_equal(ConfusionMatrix(2).add(truth[::2, ::-1], truth[1::2]).matrix,
                                  ConfusionMatrix(2).add(truth[::2, ::-1].copy(), truth[1::2].copy()).matrix)


@pytest.mark.parametrize("prediction, truth, message", [
    ([[0, 3]], [[0, 0]], "prediction holds"),
    ([[0, 255]], [[0, 255]], "prediction holds"),
    ([[0, -1]], [[0, 0]], "prediction holds"),
    ([[0, 1]], [[0, 3]], "truth holds 3"),
    ([[0, 1]], [[0, 256]], "truth holds"),
    ([[0, 1]], [[0, -1]], "truth holds"),
    ([[0, 1]], [[0], [1]], r"\(1, 2\).*\(2, 1\)"),
    ([[0.0, 1.0]], [[0, 1]], "integers"),
    ([[0, 1]], [[0.0, 1.0]], "integers"),
])
def test_confusion_refuses(prediction, truth, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(2).add(np.array(prediction), np.array(truth))


@pytest.mark.parametrize("classes, scores, truth, message", [
    ([1], np.full((1, 2, 3), np.nan), np.zeros((2, 3), int), "NaN"),
    ([1], np.full((1, 2, 3), -np.inf), np.zeros((2, 3), int), "NaN"),
    ([1], np.zeros((1, 3, 2)), np.zeros((2, 3), int), "not"),
    ([1, 2], np.zeros((1, 2, 3)), np.zeros((2, 3), int), "not"),
    ([0], np.zeros((1, 2, 3)), np.zeros((2, 3), int), "list of classes"),
    ([3], np.zeros((1, 2, 3)), np.zeros((2, 3), int), "list of classes"),
    ([1, 1], np.zeros((2, 2, 3)), np.zeros((2, 3), int), "twice"),
    ([1], np.zeros((1, 2, 3)), np.full((2, 3), 7), "truth holds 7"),
])
def test_histogram_refuses(classes, scores, truth, message):
    with pytest.raises(ValueError, match=message):
        ThresholdHistogram(2, [0.5]).add(classes, scores, truth)


@pytest.mark.parametrize("thresholds", [[], [np.nan], [np.inf], 0.5])
def test_refuses_thresholds(thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        ThresholdHistogram(2, thresholds)


@pytest.mark.parametrize("num_classes", [0, 255])
def test_refuses_class_numbers_that_do_not_fit_one_byte(num_classes):
    with pytest.raises(ValueError, match="object classes"):
        ConfusionMatrix(num_classes)
