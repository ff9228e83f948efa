"""Images for people: their sizes, that odd inputs do not stop a run, and the names of the paper's three cases."""
import numpy as np
import pytest
from PIL import Image

from tools.visualize import _case, draw_curve, erasing_figure, overlay


@pytest.mark.parametrize(("height", "width"), [(375, 500), (128, 128), (1, 1), (1, 300), (300, 1), (240, 240)])
def test_overlays_of_any_size(height, width):
    image = np.zeros((height, width, 3), np.uint8)
    drawn = overlay(image, np.linspace(0, 1, height * width).reshape(height, width), "person  (model_cse)")
    zoom = -(-240 // max(height, width))                        # the longer side reaches 240
    assert drawn.dtype == np.uint8 and drawn.shape[2] == 3
    assert drawn.shape[1] == max(zoom * width, 200) and drawn.shape[0] == zoom * height + 34


def test_an_overlay_is_blue_where_nothing_is_and_red_where_all_is():
    score = np.zeros((250, 250))
    score[:, 125:] = 1
    drawn = overlay(np.full((250, 250, 3), 100, np.uint8), score, "bird")
    nothing, everything = drawn[100, 10].astype(int), drawn[100, 240].astype(int)
    assert nothing[2] > nothing[0] and everything[0] > everything[2]


def test_scores_beyond_their_range_are_cut():
    image, score = np.zeros((250, 250, 3), np.uint8), np.full((250, 250), 1.0)
    np.testing.assert_array_equal(overlay(image, 7 * score, "x"), overlay(image, score, "x"))
    np.testing.assert_array_equal(overlay(image, -score, "x"), overlay(image, 0 * score, "x"))


def test_the_figure_of_the_erasing():
    rng = np.random.default_rng(0)
    names = ["bird", "cat", "dog"]
    for count, size in ((1, (1, 1)), (4, (24, 32))):
        images = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
        labels = np.ones((count, 3), np.float32)
        before, after = rng.random((2, count, 3))
        drawn = erasing_figure(list(images), list(images // 2), rng.random((count, *size)), labels,
                               np.arange(count) % 3, before, after, names)
        single = erasing_figure(images[:1], images[:1], np.zeros((1, *size)), labels[:1], np.zeros(1, int), before[:1],
                                after[:1], names)
        assert drawn.dtype == np.uint8 and drawn.shape[1:] == single.shape[1:]
        assert drawn.shape[0] - single.shape[0] == (count - 1) * 224


def test_the_tiles_are_picture_mask_and_rest():
    image, erased = (np.full((1, 16, 16, 3), v, np.uint8) for v in (200, 40))
    seen = np.ones((1, 3))
    drawn = erasing_figure(image, erased, np.full((1, 16, 16), 0.75), np.eye(3)[:1], [0], seen, seen, "abc")
    middle = drawn.shape[0] - 112
    assert drawn[middle, 112].tolist() == [200] * 3 and drawn[middle, 560].tolist() == [40] * 3
    assert drawn[middle, 336].tolist() == [63] * 3          # what is erased is dark


@pytest.mark.parametrize(("before", "after", "expected"), [
    ((0.9, 0.8, 0.1), (0.7, 0.8, 0.1), "too small: still seen"),
    ((0.9, 0.8, 0.1), (0.7, 0.2, 0.1), "too small: still seen"),
    ((0.9, 0.8, 0.1), (0.2, 0.3, 0.1), "too large: the rest is gone"),
    ((0.9, 0.8, 0.1), (0.2, 0.9, 0.1), "right"),
    ((0.9, 0.3, 0.1), (0.2, 0.1, 0.1), "right"),                        # the rest was not seen before either
    ((0.3, 0.8, 0.1), (0.2, 0.8, 0.1), "not seen before either"),
    ((0.9, 0.8, 0.9), (0.2, 0.8, 0.1), "right"),                        # a class without label tells nothing
])
def test_the_papers_cases(before, after, expected):
    assert _case(np.array(before), np.array(after), np.array([0, 1]), 0)[0] == expected


def test_a_curve_is_a_png(tmp_path):
    draw_curve(tmp_path / "a", [[0.1, 20.0], [0.2, 40.0]], "X: dict on train", [(0.2, 40.0, "best")])
    draw_curve(tmp_path / "b", [[0.1, 20.0]], "one point")
    for name in "ab":
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG" and picture.size == (720, 480)
