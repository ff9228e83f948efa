"""The embedded images: frozen, labelled as drawn, the control alike but for heads; the folder complete or absent."""
import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data import critters, images, prepare
from data.images import read_image
from data.layout import VOCLayout
from tests.conftest import ROOT

VISIBLE = 800           # pixels of body; a whole one has 1000 to 3000
FROZEN = "2785756fd8bb97a01b70ce03221f04c3681cf650c4a63faf231ce647339c23cd"
FROZEN_PLAIN = "4867be88e9239e5046e1ef9ed2dd21400f62e7c81b030e57a84bc933d4043b3a"


@pytest.fixture(scope="module")
def drawn():
    """The first 24 training images of the frozen set, with and without heads: [(image, mask, heads), ...] twice."""
    return [[critters.draw(0, "train", i, plain) for i in range(24)] for plain in (False, True)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "critters"
    prepare.main(["critters", "--out", str(root), "--train", "6", "--val", "3"])
    return root


@pytest.mark.slow
def test_the_pictures_are_frozen(drawn):
    """Other pixels are another dataset: no result of this one would hold for it."""
    for pictures, frozen in zip(drawn, (FROZEN, FROZEN_PLAIN)):
        total = hashlib.sha256()
        for image, mask, heads in pictures:
            assert image.shape == (128, 128, 3) and image.dtype == mask.dtype == np.uint8 and heads.dtype == bool
            for array in (image, mask, heads):
                total.update(array.tobytes())
        assert total.hexdigest() == frozen


def test_seed_split_and_index_all_count():
    first = critters.draw(0, "train", 0)[0]
    for other in ((1, "train", 0), (0, "val", 0), (0, "train", 6)):
        assert not np.array_equal(critters.draw(*other)[0], first)


def test_every_creature_is_well_visible():
    """No two creatures hide a third: of each, a good piece of body shows, so the mask has all kinds of the scene."""
    for i in range(24):
        rng = np.random.Generator(np.random.PCG64([5, i]))
        herd = [replace(creature, kind=k) for k, creature in enumerate(critters.scene(rng, i % 6))]
        image, mask, heads = np.zeros((128, 128, 3)), np.zeros((128, 128), np.uint8), np.zeros((128, 128), bool)
        for creature in herd:
            creature.paint(image, mask, heads, plain=False)
        assert 1 <= len(herd) <= 3
        assert np.bincount(mask[~heads], minlength=4)[1 : len(herd) + 1].min() > VISIBLE


def test_heads_are_small_and_inside_the_mask(drawn):
    heads = sum(h.sum() for _, _, h in drawn[0])
    objects = sum((m > 0).sum() for _, m, _ in drawn[0])
    assert all((m[h] > 0).all() for _, m, h in drawn[0])
    assert 0.10 < heads / objects < 0.18


def test_plain_differs_in_the_heads_alone(drawn):
    """Without heads: the same bodies in the same places; where a head was, what it covered."""
    for (image, mask, heads), (plain_image, plain_mask, plain_heads) in zip(*drawn):
        assert not plain_heads.any()
        np.testing.assert_array_equal(mask[~heads], plain_mask[~heads])
        assert set(np.unique(mask)) == set(np.unique(plain_mask))
        fringe = heads.copy()                               # a head's soft edge reaches one pixel further
        for axis in (0, 1):
            for step in (-1, 1):
                fringe |= np.roll(fringe, step, axis)
        np.testing.assert_array_equal(image[~fringe], plain_image[~fringe])


def test_all_classes_in_both_splits(drawn):
    """They take turns, so that none is rare; with one kind an image and more, six images have them all."""
    for pictures in (drawn[0], [critters.draw(0, "val", i) for i in range(6)]):
        assert all(i % 6 + 1 in mask for i, (_, mask, _) in enumerate(pictures))
        assert max(mask.max() for _, mask, _ in pictures) == len(critters.CLASSES) == 6


def test_the_folder_is_a_dataset(root):
    layout = VOCLayout(root)
    assert layout.classes == list(critters.CLASSES)
    assert layout.ids("train_aug") == layout.ids("train")
    assert (len(layout.ids("train")), len(layout.ids("val"))) == (6, 3)
    for split in ("train", "val"):
        layout.check(layout.ids(split))
        for i, image_id in enumerate(layout.ids(split)):
            image, mask, heads = critters.draw(0, split, i)
            np.testing.assert_array_equal(read_image(layout.image_path(image_id)), image)
            np.testing.assert_array_equal(layout.ground_truth(image_id), mask)
            np.testing.assert_array_equal(np.array(Image.open(root / f"Heads/{image_id}.png")), heads)
            np.testing.assert_array_equal(layout.label(image_id), [k + 1 in mask for k in range(6)])


def test_truth_has_vocs_colours(root):
    palette = Image.open(root / "SegmentationClass/train_0000.png").getpalette()
    assert palette[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
    assert list(images.voc_palette()[-3:]) == [224, 224, 192]


def test_the_same_command_again_does_nothing(root, capsys):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    (root / "ImageSets/Segmentation/mine.txt").write_text("train_0000\n")       # an own list does no harm
    prepare.main(["critters", "--out", str(root), "--train", "6", "--val", "3"])
    assert "complete: nothing to do" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == then for path, then in before.items() if path.is_file())


@pytest.mark.parametrize("other", [["--seed", "1"], ["--plain"], ["--train", "5"]])
def test_another_set_is_refused(root, other):
    with pytest.raises(SystemExit, match="another set.*--out"):
        prepare.main(["critters", "--out", str(root), "--train", "6", "--val", "3", *other])
    assert json.loads((root / "made_by.json").read_text())["seed"] == 0


def test_a_damaged_set_and_a_strange_folder_are_refused(tmp_path):
    words = ["critters", "--out", str(tmp_path / "set"), "--train", "1", "--val", "1"]
    prepare.main(words)
    (tmp_path / "set/SegmentationClass/val_0000.png").unlink()
    with pytest.raises(SystemExit, match="incomplete"):
        prepare.main(words)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_text("mine")
    with pytest.raises(SystemExit, match="Nothing was changed"):
        prepare.main([*words[:2], str(tmp_path / "photos"), *words[3:]])
    assert (tmp_path / "photos/holiday.jpg").read_text() == "mine"


def test_cut_off_leaves_nothing(tmp_path, monkeypatch):
    """Whatever image is being drawn when it ends: the folder is not there, and nothing beside it."""
    draw = critters.draw

    def cut_off(seed, split, index, plain):
        assert not (tmp_path / "set").exists()
        if split == "val":
            raise KeyboardInterrupt
        return draw(seed, split, index, plain)

    monkeypatch.setattr(critters, "draw", cut_off)
    with pytest.raises(SystemExit, match="same command again"):
        prepare.main(["critters", "--out", str(tmp_path / "set"), "--train", "2", "--val", "1"])
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path):
    prepare.main(["critters", "--out", str(tmp_path), "--train", "1", "--val", "1", "--plain"])
    assert VOCLayout(tmp_path).ids("val") == ["val_0000"]


def test_command_line(tmp_path, monkeypatch, capsys):
    help_text = subprocess.run([sys.executable, "-m", "data.prepare", "critters", "--help"], cwd=ROOT, text=True,
                               capture_output=True, check=True).stdout
    assert all(flag in help_text for flag in ("--out", "--seed", "--plain", "--train", "--val"))
    monkeypatch.chdir(tmp_path)
    for more in [], ["--plain"]:
        prepare.main(["critters", "--train", "1", "--val", "1", *more])
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["critters", "critters_plain"]
    with pytest.raises(SystemExit, match="--seed starts at 0"):
        prepare.main(["critters", "--seed", "-1"])
