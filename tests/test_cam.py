"""CAMs of an image from eight views: the golden numbers of the authors' code, a slow twin, and what is promised."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.transforms import views
from methods.cam import background, image_cams, multi_scale_cam, predict_label
from networks.cam import CAMNet
from tests.conftest import assert_close, fill_golden
from tools import crf, engine


@pytest.fixture
def net():
    torch.manual_seed(0)
    return CAMNet(num_classes=5, width=0.125).eval()


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (33, 50, 3), dtype=np.uint8)


def all_labels(*columns):
    label = torch.zeros(5)
    label[list(columns)] = 1
    return label


# ---- golden set 04 ----

@pytest.mark.slow
def test_cams_are_the_authors(golden):
    stored = np.load(golden("set04_infer_msf.npz"))
    with torch.device("meta"):
        net = CAMNet()
    net = fill_golden(net.to_empty(device="cpu")).eval()
    label, size = torch.from_numpy(stored["label"]), stored["img"].shape[:2]
    ours = views(stored["img"], (0.5, 1.0, 1.5, 2.0))
    for mine, number in zip(ours, (0, 2, 4, 6), strict=True):
        theirs = stored[f"msf_{number}"]
        np.testing.assert_allclose(mine, np.stack([theirs, theirs[..., ::-1]]), atol=0.02)
    classes, scores = multi_scale_cam(net, ours, size, label)
    np.testing.assert_array_equal(classes, stored["keys"] + 1)
    np.testing.assert_allclose(scores, stored["cam_dict"], atol=2e-3)


# ---- properties ----

@torch.no_grad()
def slow_cam(net, views, size, label):
    """One pass a view, one class after the other, in plain words."""
    maps = {}
    for column in range(len(label)):
        if label[column] == 0:
            continue
        total = torch.zeros(size)
        for view in views:
            for mirrored in (0, 1):
                cam, _ = net(view[mirrored][None])
                cam = F.interpolate(cam[:, [column]], size, mode="bilinear", align_corners=False)[0, 0]
                cam = torch.clamp(cam, min=0) * label[column]
                total += torch.flip(cam, [1]) if mirrored else cam
        maps[column + 1] = total / (total.max() + 1e-5)
    return maps


@pytest.mark.parametrize("columns", [(0,), (1, 3), (0, 1, 2, 3, 4)])
def test_equals_eight_separate_passes(net, image, columns):
    pictures, label = views(image), all_labels(*columns)
    classes, scores = multi_scale_cam(net, pictures, (33, 50), label)
    expected = slow_cam(net, pictures, (33, 50), label)
    assert classes.tolist() == list(expected) and classes.dtype == torch.int64
    assert scores.shape == (len(columns), 33, 50) and scores.dtype == torch.float32
    for map_, slow in zip(scores, expected.values()):
        assert_close(map_, slow, by=1e-4)


def test_each_class_reaches_one_and_none_is_negative(net, image):
    with torch.no_grad():
        net.fc8.weight.abs_()               # every class is seen somewhere
    _, scores = multi_scale_cam(net, views(image), (33, 50), all_labels(1, 2, 4))
    assert scores.min() >= 0
    torch.testing.assert_close(scores.amax((1, 2)), torch.ones(3), atol=1e-3, rtol=0)


def test_a_mirrored_picture_has_mirrored_cams(net, image):
    label = all_labels(0, 4)
    _, scores = multi_scale_cam(net, views(image), (33, 50), label)
    _, mirrored = multi_scale_cam(net, views(image[:, ::-1]), (33, 50), label)
    assert_close(scores.flip(-1), mirrored, by=1e-4)


def test_a_picture_of_no_class(net, image):
    classes, scores = multi_scale_cam(net, views(image), (33, 50), torch.zeros(5))
    assert classes.shape == (0,) and classes.dtype == torch.int64
    assert scores.shape == (0, 33, 50)


def test_a_label_is_a_weight(net):
    """Before the scaling: so a small one lets the 1e-5 in the divisor show."""
    flat = torch.full((2, 3, 8, 8), 0.1)
    with torch.no_grad():
        net.fc8.weight.abs_()
        cam, _ = net(flat)
    peak = 2 * F.interpolate(cam[:1, 2:3], (8, 8), mode="bilinear").max()
    for weight in (1.0, 1e-3):
        classes, scores = multi_scale_cam(net, [flat], (8, 8), torch.tensor([0, 0, weight, 0, 0]))
        assert classes.tolist() == [3]
        torch.testing.assert_close(scores.max(), weight * peak / (weight * peak + 1e-5))


def test_images_in_a_row_with_given_and_with_predicted_labels(net, image):
    pictures = [("a", views(image), (33, 50), all_labels(0)), ("b", views(image[:20]), (20, 50), all_labels())]
    (a, classes, scores), (b, nothing, empty) = image_cams(net, pictures)
    assert (a, classes.tolist(), scores.shape) == ("a", [1], (1, 33, 50))
    assert (b, nothing.tolist(), empty.shape) == ("b", [], (0, 20, 50))
    np.testing.assert_array_equal(scores, multi_scale_cam(net, views(image), (33, 50), all_labels(0))[1])

    unlabelled = [(name, seen, size, None) for name, seen, size, _ in pictures]
    for (_, classes, scores), (_, seen, _, _) in zip(image_cams(net, unlabelled, "predicted"), unlabelled):
        expected = predict_label(net, seen[2]).nonzero()[:, 0] + 1
        assert classes.tolist() == expected.tolist() and len(classes) == len(scores) >= 1


@pytest.mark.parametrize(("logits", "expected"), [
    ([[2, 0.8, 1, -3], [2, -2, 1, -3]], [1, 0, 1, 0]),          # of image and mirror image the mean counts
    ([[-2, -1, -4, -3], [-2, -1, -4, -3]], [0, 1, 0, 0]),       # none is likely: the likeliest
])
def test_predicted_labels(logits, expected):
    def net(view):
        return None, torch.tensor(logits, dtype=torch.float32)
    assert predict_label(net, None).tolist() == expected


def test_background():
    scores = torch.tensor([[[0.2, 1.0]], [[0.5, 0.0]]])
    torch.testing.assert_close(background(scores, 3), torch.tensor([[[0.125, 0.0]]]))
    assert background(scores, 0).tolist() == [[[1, 1]]]
    assert torch.equal(background(torch.zeros(0, 2, 3), 6), torch.ones(1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_placed_for_inference_gives_the_same_cams(precision):
    torch.manual_seed(2)
    plain, placed = (CAMNet(4, 0.125).eval() for _ in range(2))
    placed.load_state_dict(plain.state_dict())
    engine.to_device(placed, torch.device("cpu"), inference=True)
    assert placed.backbone.b2.conv_branch2a.weight.is_contiguous(memory_format=torch.channels_last)
    image = np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8)
    label = torch.tensor([1.0, 0, 1, 1])
    with engine.autocast(torch.device("cpu"), precision):
        _, fast = multi_scale_cam(placed, views(image), (45, 60), label)
    _, slow = multi_scale_cam(plain, views(image), (45, 60), label)
    assert fast.dtype == torch.float32
    assert (fast - slow).abs().max() < (1e-4 if precision == "fp32" else 0.05)


def test_the_background_is_the_same_with_torch_and_without():
    scores = np.random.default_rng(0).random((3, 5, 7), np.float32)
    for alpha in (1, 6, 24.5):
        np.testing.assert_allclose(background(torch.from_numpy(scores), alpha).numpy(),
                                   crf.background(scores, alpha), rtol=1e-5)
