"""Transforms: the authors' numbers, torchvision's colours to the bit, and what random draws may change."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from data import transforms
from data.images import read_image, read_pillow
from tests.conftest import SHARED


def picture(height=60, width=80, seed=0):
    """Draw a smooth random image: uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def load(golden):
    """Give a function: name of a golden set -> the authors' arrays, and the parameters they were made with."""
    def arrays_and_params(name):
        sets = json.loads(golden("MANIFEST.json").read_text())["sets"]
        return np.load(golden(f"{name}.npz")), next(entry["params"] for entry in sets if entry["id"] == name)
    return arrays_and_params


@pytest.fixture
def official(load):
    return load("set12_transforms")


# --- the authors' numbers

@pytest.mark.parametrize("name", ["0", "1"])
def test_normalize_is_the_authors(official, name):
    arrays, _ = official
    result = transforms.normalize(arrays[f"img_{name}"])
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_allclose(result, arrays[f"normalized_{name}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["0_seed1", "0_seed2", "1_seed1", "1_seed2"])
def test_resize_is_the_authors(official, name):
    arrays, params = official
    result = transforms.resize_long(arrays[f"img_{name[0]}"], params[f"resize_{name}"]["drawn_long"])
    expected = arrays[f"resize_{name}"]
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected).max() <= 1     # 0 with the same Pillow


@pytest.mark.parametrize("name", ["0", "1", "2"])
def test_crop_is_the_authors(official, name):
    arrays, params = official
    size, offsets = params[f"crop_{name}"]["crop"], params[f"crop_{name}"]["cont_left_img_left_cont_top_img_top"]
    image = arrays["img_0"]
    result = transforms.crop(arrays["normalized_0"], size, offsets)
    assert result.shape == (size, size, 3)
    every = 4 if size >= 100 else 1                             # larger crops are stored subsampled
    np.testing.assert_array_equal(result[::every, ::every], arrays[f"crop_{name}"])
    assert result.sum(dtype=np.float64) == pytest.approx(float(arrays[f"crop_{name}_sum"]), abs=1e-3)
    np.testing.assert_allclose(transforms.normalized_crop(image, size, offsets).transpose(1, 2, 0), result, atol=1e-6)


def test_views_are_the_authors(load):
    arrays, params = load("set12_msf")
    views = transforms.views(arrays["img"])
    assert all(view.is_contiguous() and view.dtype == torch.float32 for view in views)
    items = [item.numpy() for view in views for item in view]                   # .5, .5 mirrored, 1, 1 mirrored, ...
    assert [list(item.shape) for item in items] == params["shapes"]
    np.testing.assert_allclose([item.sum(dtype=np.float64) for item in items], params["sums"], rtol=1e-3)
    for item, key in zip(items, ("scale0_5", "scale0_5_flip", "scale1", "scale1_flip")):
        np.testing.assert_allclose(item, arrays[key], rtol=0, atol=0.02)        # one grey level; 0 with the same Pillow


def test_views_are_what_the_authors_infer_from(load):
    arrays, params = load("set04_infer_msf")
    for k, view in enumerate(transforms.views(arrays["img"], params["scales"])):
        np.testing.assert_allclose(view[0].numpy(), arrays[f"msf_{2 * k}"], rtol=0, atol=0.02)
        assert torch.equal(view[1], view[0].flip(-1))


# --- properties

def test_resize_and_views_never_lose_a_side():
    line = np.zeros((1, 300, 3), dtype=np.uint8)
    assert transforms.resize_long(line, 40).shape == (1, 40, 3)
    assert transforms.resize_long(line.reshape(300, 1, 3), 40).shape == (40, 1, 3)
    assert [tuple(view.shape[2:]) for view in transforms.views(line)] == [(1, 150), (1, 300), (2, 450), (2, 600)]


def test_normalize_refuses_what_is_not_8_bit():
    with pytest.raises(ValueError, match="uint8"):
        transforms.normalize(np.zeros((4, 4, 3), dtype=np.float32))


def test_mirror_swaps_left_and_right():
    image = picture()
    np.testing.assert_array_equal(transforms.mirror(image), image[:, ::-1])
    np.testing.assert_array_equal(transforms.mirror(image[..., 0]), image[:, ::-1, 0])


def test_drawn_crops_cover_all_places_and_only_those():
    rng = np.random.default_rng(0)
    drawn = {transforms.draw_crop(7, 4, 5, rng) for _ in range(400)}            # height 7, width 4, square 5
    assert drawn == {(left, 0, 0, top) for left in (0, 1) for top in (0, 1, 2)}
    assert {transforms.draw_crop(5, 5, 5, rng) for _ in range(9)} == {(0, 0, 0, 0)}


def test_crop_keeps_label_maps_apart_from_the_fill():
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    result = transforms.crop(label, 5, (1, 0, 2, 0), fill=255)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[2:5, 1:5], label)
    assert (result[:2] == 255).all() and (result[:, 0] == 255).all()


@pytest.mark.parametrize("size", [40, 70, 100])
def test_normalising_the_window_alone_changes_no_bit(size):
    image, rng = picture(), np.random.default_rng(size)
    for _ in range(20):
        offsets = transforms.draw_crop(60, 80, size, rng)
        slow = transforms.crop(transforms.normalize(image), size, offsets).transpose(2, 0, 1)
        np.testing.assert_array_equal(transforms.normalized_crop(image, size, offsets), slow)


def test_jitter_is_torchvision_to_the_bit():
    slow = pytest.importorskip("torchvision.transforms.functional")
    amounts = (0.3, 0.3, 0.3, 0.1)
    steps = (slow.adjust_brightness, slow.adjust_contrast, slow.adjust_saturation, slow.adjust_hue)
    for seed in range(40):
        image = picture(seed=seed)
        rng = np.random.default_rng(seed)
        changes, order = rng.uniform(-1, 1, size=4), rng.permutation(4)
        expected = Image.fromarray(image)
        for i in order:
            neutral = 0 if i == 3 else 1                        # the hue is turned, the others are multiplied
            expected = steps[i](expected, neutral + amounts[i] * changes[i])
        result = transforms.jitter(image, np.random.default_rng(seed), *amounts)
        np.testing.assert_array_equal(result, np.array(expected))


def test_jitter_amounts():
    image = picture()
    np.testing.assert_array_equal(transforms.jitter(image, np.random.default_rng(0), 0, 0, 0, 0), image)
    rng = np.random.default_rng(0)
    brightness = [transforms.jitter(image // 2, rng, 0.3, 0, 0, 0).mean() / (image // 2).mean() for _ in range(200)]
    assert 0.68 < min(brightness) < 0.75 and 1.2 < max(brightness) < 1.31


def test_augment_is_the_plain_chain():
    image = picture(90, 130)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        slow = transforms.resize_long(image, rng.integers(80, 151))
        slow = slow[:, ::-1] if rng.random() < 0.5 else slow
        slow = transforms.jitter(np.ascontiguousarray(slow), rng)
        slow = transforms.crop(transforms.normalize(slow), 96, transforms.draw_crop(*slow.shape[:2], 96, rng))
        fast = transforms.augment(image, np.random.default_rng(seed), resize=(80, 150), crop_size=96)
        assert fast.is_contiguous() and fast.dtype == torch.float32
        np.testing.assert_array_equal(fast.numpy(), slow.transpose(2, 0, 1))


def test_augment_can_leave_the_jitter_out():
    def view(**settings):                                       # as large as the square: the crop draws nothing
        return transforms.augment(picture(80, 80), np.random.default_rng(0), (80, 80), 80, **settings)
    plain = torch.from_numpy(transforms.normalize(picture(80, 80))).permute(2, 0, 1)
    assert any(torch.equal(view(jitter_amounts=(0, 0, 0, 0)), p) for p in (plain, plain.flip(-1)))
    assert not any(torch.equal(view(), p) for p in (plain, plain.flip(-1)))


def test_only_the_picture_is_jittered():
    """Of what AffinityNet and DeepLab learn from: at the image's own size the colours are jitter's, to the bit."""
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 3, (24, 24), dtype=np.uint8)
    amounts = (0.3, 0.2, 0.1, 0.05)
    for seed in range(4):
        found, [scores] = transforms.augment_mapped(image, [labels[None].astype(np.float32)],
                                                    np.random.default_rng(seed), 24, amounts)
        expected = transforms.normalize(transforms.jitter(image, np.random.default_rng(seed), *amounts))
        flipped = not np.array_equal(scores[0], labels)
        np.testing.assert_array_equal(scores[0], labels[:, ::-1] if flipped else labels)
        np.testing.assert_array_equal(found.permute(1, 2, 0), expected[:, ::-1] if flipped else expected)

        rng = np.random.default_rng(seed)
        found, other = transforms.augment_labelled(image, labels, np.random.default_rng(seed), (1, 1), 24, amounts)
        rng.uniform(1, 1)
        flipped = rng.random() < 0.5
        expected = transforms.normalize(transforms.jitter(image[:, ::-1] if flipped else image, rng, *amounts))
        np.testing.assert_array_equal(other, labels[:, ::-1] if flipped else labels)
        np.testing.assert_array_equal(found.permute(1, 2, 0), expected)


def test_affinitynets_colours_change_before_anything_is_cut():
    """A contrast around the mean of the whole image: what is cut is a window of that."""
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    image[:, :8] = 255
    for seed in range(4):
        found, _ = transforms.augment_mapped(image, [], np.random.default_rng(seed), 20, (0, 0.5, 0, 0))
        whole = transforms.normalize(transforms.jitter(image, np.random.default_rng(seed), 0, 0.5, 0, 0))
        windows = [cut for top in range(5) for left in range(5) for cut in (
            whole[top:top + 20, left:left + 20], whole[top:top + 20, left:left + 20][:, ::-1])]
        assert sum(np.array_equal(found.permute(1, 2, 0), window) for window in windows) == 1


def test_denormalize_undoes_normalize():
    image = picture()
    tensor = torch.from_numpy(transforms.normalize(image)).permute(2, 0, 1).requires_grad_()
    np.testing.assert_array_equal(transforms.denormalize(tensor), image)
    extremes = torch.tensor([-9.0, 9.0]).expand(3, 1, 2)
    assert transforms.denormalize(extremes)[0, :, 0].tolist() == [0, 255]        # cut, not wrapped


def test_augment_draws_every_size_and_both_sides():
    image = np.zeros((20, 40, 3), dtype=np.uint8)
    image[:, :20] = 255                                         # white on the left
    sizes, sides = set(), set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        view = transforms.augment(image, rng, resize=(30, 33), crop_size=50, jitter_amounts=(0, 0, 0, 0))
        columns = torch.nonzero((view != 0).any(0).any(0))
        sizes.add(int(columns.max() - columns.min()) + 1)
        sides.add(bool(view[:, :, columns.min()].max() > 2))    # is the image's left edge white?
    assert sizes == {30, 31, 32, 33} and sides == {True, False}


def augmented(image, labels, seed):
    """Give the three training views of an image, drawn alike."""
    rngs = [np.random.default_rng(seed) for _ in range(3)]
    return [transforms.augment(image, rngs[0], (64, 96), 80),
            transforms.augment_labelled(image, labels, rngs[1], crop_size=64)[0],
            transforms.augment_mapped(image, [labels[None].astype(np.float32)], rngs[2], 64)[0]]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "photos"])
def test_pillows_image_and_the_array_are_augmented_alike(mode, tmp_path, monkeypatch):
    """And of Pillow's no array is made before its colours are changed."""
    paths = sorted((SHARED / "data/voc/JPEGImages").glob("*.jpg"))[:15] if mode == "photos" else [tmp_path / "a.png"]
    if mode != "photos":
        Image.fromarray(picture()).convert(mode).save(paths[0])
    plain = Image.fromarray

    def labels_alone(array):
        assert array.ndim == 2 or array.shape == (64, 64, 3), "the image was an array before its time"  # or cropped
        return plain(array)

    for seed, path in enumerate(paths):
        image, read = read_image(path), read_pillow(path)
        labels = image[..., 0].copy()
        expected = augmented(image, labels, seed)
        with monkeypatch.context() as patch:
            patch.setattr(Image, "fromarray", labels_alone)
            found = augmented(read, labels, seed)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_large_image_is_shrunk_as_either():
    image = picture()
    for side in (0, 31, 80, 200):
        shrunk = transforms.shrink(Image.fromarray(image), side)
        np.testing.assert_array_equal(np.asarray(shrunk), transforms.shrink(image, side))
        assert transforms.extent_of(shrunk) == transforms.shrink(image, side).shape[:2]
