"""infer_seg.py --images: any photos, from a checkpoint alone, in tiles, with the areas of what was found."""
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import infer_seg
from data.photos import Photos
from methods.segmentation import windows
from tests.stages import assert_says, call, files, refusal
from tests.test_seg_stages import INFER, label_map, seg, trained  # noqa: F401 (fixtures)

ALONE = ("--recipe", "demo", "--num_workers", 0, "--scales", 1)


@pytest.fixture
def photo(seg):  # noqa: F811
    """Leave ckpt/seg and a photo of three critters beside each other, and nothing else of the experiment."""
    shutil.copytree(seg / "experiment/X/ckpt/seg", seg / "net")
    (seg / "photos").mkdir()
    sources = sorted((seg / "data/critters/JPEGImages").glob("*.png"))[:3]
    row = np.concatenate([np.array(Image.open(path)) for path in sources], axis=1)
    Image.fromarray(row).save(seg / "photos/three.png")
    shutil.rmtree(seg / "data")
    shutil.rmtree(seg / "experiment")
    return seg / "photos/three.png"


def areas(folder):
    return json.loads((folder / "areas.json").read_text())


@pytest.mark.parametrize("weights", ["net/001.pth", "net", "net/000.pth"])
def test_from_a_checkpoint_alone(photo, weights):
    call("infer_seg", *ALONE, "--weights", weights, "--images", "photos/three.png", "--out", "found")
    found = label_map("found/masks/three.png")
    assert found.shape == (64, 192)
    with Image.open("found/overlays/three.png") as overlay, Image.open("found/masks/three.png") as mask:
        assert overlay.mode == "RGB" and mask.mode == "P"
    table = areas(photo.parents[1] / "found")
    entry = table["images"]["three"]
    assert (entry["file"], entry["width"], entry["height"]) == ("three.png", 192, 64)
    counts = {table["classes"][c]: int((found == c).sum()) for c in np.unique(found)}
    assert {name: area["pixels"] for name, area in entry["areas"].items()} == counts
    assert sum(area["percent"] for area in entry["areas"].values()) == pytest.approx(100, abs=0.01)
    assert not (photo.parents[1] / "experiment").exists()


def test_a_second_photo_joins_the_first(photo):
    line = (*ALONE, "--weights", "net", "--out", "found")
    call("infer_seg", *line, "--images", photo)
    Image.new("RGB", (40, 30)).save(photo.with_name("two.jpg"))
    call("infer_seg", *line, "--images", photo.with_name("two.jpg"))
    assert set(areas(photo.parents[1] / "found")["images"]) == {"three", "two"}
    before = files("found")
    assert "2 of 2 images are finished" in call("infer_seg", *line, "--images", photo.parent)
    assert files("found") == before


def test_a_photo_that_changed_is_segmented_again_and_a_folder_that_moved_is_the_same(photo):
    (photo.parent / "sub").mkdir()
    line = ("infer_seg", *ALONE, "--weights", "net", "--out", "found", "--images")
    call(*line, "photos")
    before = files("found")
    photo.parent.rename("moved")
    call(*line, "moved")
    assert files("found") == before
    Image.new("RGB", (40, 30)).save("moved/three.png")              # another photo of that name
    assert_says(call(*line, "moved"), "photo of 1 image (three)", "moved", "made again")
    assert label_map("found/masks/three.png").shape == (30, 40)
    assert files("found")["overlays/three.png"] != before["overlays/three.png"]
    assert areas(photo.parents[1] / "found")["images"]["three"]["width"] == 40


def test_other_photos_of_the_same_names_and_sizes_are_not_finished(photo):
    for name in ("one.bmp", "two.bmp", "three.bmp"):
        Image.new("RGB", (40, 30), (200, 30, 30)).save(photo.with_name(name))
    photo.unlink()
    line = ("infer_seg", *ALONE, "--weights", "net", "--out", "found", "--images")
    call(*line, "photos")
    shutil.copytree("photos", "copied", copy_function=shutil.copyfile)                      # with new times
    assert "3 of 3 images are finished" in call(*line, "copied")
    for path in photo.parent.iterdir():
        Image.new("RGB", (40, 30), (30, 200, 30)).save(path)
    assert_says(call(*line, "photos"), "the photos of 3 images (", "changed in photos", "0 of 3 images are finished")


def test_the_areas_are_of_files_that_have_a_name(photo):
    """Another photo of that name joins, which gives the first a new ID, and one is taken away."""
    line = ("infer_seg", *ALONE, "--weights", "net", "--out", "found", "--images", "photos")
    Image.new("RGB", (40, 30)).save(photo.with_name("two.png"))
    assert "the classes of 2 photos and their areas\n" in call(*line)
    Image.new("RGB", (40, 30)).save(photo.with_name("three.bmp"))
    photo.with_name("two.png").unlink()
    os.utime("found/masks/two.png")             # newer than the areas, so that it is measured again
    assert " areas, and 1 of earlier" in call(*line)
    found = areas(photo.parents[1] / "found")["images"]
    assert {i: entry["file"] for i, entry in found.items()} == {
        "three.bmp": "three.bmp", "three.png": "three.png", "two": "two.png"}


def test_names_that_are_not_utf8_folders_and_pipes_are_listed(photo):
    for name in (b"n\xe9.txt", b"n\xe9.jpg"):
        (photo.parent / os.fsdecode(name)).write_bytes(photo.read_bytes())
    os.mkfifo(photo.with_name("pipe.jpg"))
    photo.with_name("gone.jpg").symlink_to("nowhere.jpg")
    for name in ("empty", "2023"):
        photo.with_name(name).mkdir()
    shutil.copy(photo, photo.with_name("empty") / "a.png")
    line = ("infer_seg", *ALONE, "--weights", "net", "--out", "found", "--images")
    assert_says(call(*line, "photos"), "1 photo ", "n\\xe9.txt: its name is not in UTF-8", "pipe.jpg: a pipe",
                "gone.jpg: a link to nowhere", "(2023, empty): --images photos/empty reads")
    assert set(areas(photo.parents[1] / "found")["not_read"]) == {"n\\xe9.jpg", "n\\xe9.txt", "pipe.jpg", "gone.jpg"}
    photo.unlink()
    assert_says(refusal(*line, "photos"), "(2023, empty)", "--images photos/empty reads")
    assert_says(refusal(*line, "photos/pipe.jpg"), "pipe.jpg: a pipe")
    assert_says(refusal(*line, os.fsdecode(b"photos/n\xe9.jpg")), "n\\xe9.jpg: its name")


def test_weights_of_another_stage_are_told_whose_they_are(seg):  # noqa: F811
    said = refusal("infer_seg", *ALONE, "--weights", "experiment/X/ckpt/model_oc", "--images",
                   "data/critters/JPEGImages", "--out", "found")
    assert_says(said, "network of class CAMNet", "for infer.py")
    assert "delete" not in said


def test_what_cannot_be_read_is_listed(photo):
    (photo.parent / "beach.HEIC").write_bytes(b"ftypheic")
    (photo.parent / "notes.txt").write_text("a note")
    (photo.parent / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    Image.new("RGB", (40, 30)).save(photo.with_name("still.GIF"))
    line = ("infer_seg", *ALONE, "--weights", "net", "--images", photo.parent, "--out", "found")
    assert_says(refusal(*line), "1 of 3 images could not be read", "cut.jpg")
    assert set(areas(photo.parents[1] / "found")["not_read"]) == {"beach.HEIC", "cut.jpg", "notes.txt"}
    (photo.parent / "cut.jpg").unlink()
    text = call(*line)
    assert "beach.HEIC" in text and "JPEG" in text and "notes.txt" in text
    assert set(areas(photo.parents[1] / "found")["images"]) == {"three", "still"}
    assert_says(refusal(*line[:-3], photo.parent / "beach.HEIC", "--out", "found"), "beach.HEIC", "JPEG")


def test_what_is_missing_is_said(photo):
    line = ("infer_seg", *ALONE, "--images", photo)
    assert_says(refusal(*line), "--name", "--weights")
    assert_says(refusal(*line, "--weights", "net"), "--out", "--name")
    said = refusal(*line, "--weights", "nowhere.pth", "--out", "found")
    assert_says(said, "nowhere.pth", "a file, or EXPERIMENT/MODEL")
    assert "imagenet" not in said
    (photo.parents[1] / "other").mkdir()
    shutil.copy("net/001.pth", "other/net.pth")
    assert_says(refusal(*line, "--weights", "other", "--out", "found"), "--weights other/net.pth")
    (photo.parents[1] / "net/network.json").unlink()
    assert_says(refusal(*line, "--weights", "net/001.pth", "--out", "found"), "network.json", "ckpt/seg")
    assert_says(refusal("infer_seg", *ALONE, "--weights", "net", "--images", "no", "--out", "f"),
                "no folder or file no")


def test_with_an_experiment_and_a_folder_of_ones_own(seg):  # noqa: F811
    call("infer_seg", *INFER, "--images", "data/critters/JPEGImages", "--shard", "1/6", "--out", "found")
    assert len(list((seg / "found/masks").glob("*.png"))) == 3
    assert len(areas(seg / "found")["images"]) == 3
    call("infer_seg", *INFER, "--infer_list", "val", "--out", "listed")
    assert len(list((seg / "listed/masks").glob("val_*.png"))) == 6


# ---- large photos ----

@pytest.mark.parametrize("crf", [False, True])
def test_tiles_show_what_a_photo_of_that_part_alone_does(photo, crf, monkeypatch):
    if crf:
        pytest.importorskip("pydensecrf")
    words = ("--crf", "--crf_iterations", 1) if crf else ()
    line = ("infer_seg", *ALONE, "--weights", "net", "--images", photo, "--max_side", 0, *words)
    call(*line, "--out", "tiled", "--tile", 100)
    tiled, pixels = label_map("tiled/masks/three.png"), np.array(Image.open(photo))
    assert tiled.shape == (64, 192) and len(np.unique(tiled)) > 1
    (photo.parents[1] / "cuts").mkdir()
    spans = windows(192, 100, 25)
    for start, stop, *_ in spans:
        Image.fromarray(pixels[:, start:stop]).save(f"cuts/{start}.png")
    call(*line[:line.index(photo)], "cuts", *line[line.index(photo) + 1:], "--out", "apart")
    for start, _, first, last in spans:
        alone = label_map(f"apart/masks/{start}.png")
        np.testing.assert_array_equal(tiled[:, first:last], alone[:, first - start:last - start])
    assert_says(refusal(*line, "--out", "tiled", "--tile", 150), "tile")        # another number of them: other maps
    # Not a tile is cut where --max_side has shrunk the photo to less.
    monkeypatch.setattr("infer_seg.label_in_tiles", None)
    call(*line[:-len(words) or None], "--out", "small", "--tile", 50, "--max_side", 45)


def test_a_pixel_keeps_its_place_in_every_tile():
    """A network that sees single pixels: cut into tiles or not, the labels are the same."""
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    labels = [infer_seg.label_in_tiles(SimpleNamespace(tile=tile, scales=(1,), crf=False), network, image)
              for network in [torch.nn.Conv2d(3, 5, 1)] for tile in (64, 16)]
    np.testing.assert_array_equal(*labels)
    assert len(np.unique(labels[0])) > 2


@pytest.mark.parametrize("length, side, overlap", [(10, 10, 2), (5, 10, 2), (11, 10, 2), (100, 10, 3), (1001, 64, 16),
                                                   (12000, 1024, 256), (18, 10, 2), (19, 10, 2)])
def test_windows_decide_each_pixel_once_with_room_around_it(length, side, overlap):
    found = windows(length, side, overlap)
    assert [p for _, _, first, last in found for p in range(first, last)] == list(range(length))
    for start, stop, first, last in found:
        assert 0 <= start <= first < last <= stop <= length and stop - start == min(side, length)
        assert first == 0 or first - start >= overlap // 2
        assert last == length or stop - last >= overlap // 2


def test_a_photo_is_shrunk_for_the_network(photo):
    """Its map has its size, its overlay is of 2000 pixels at most. For more pixels see tests/test_large_images.py."""
    Image.new("RGB", (4000, 3000), (90, 160, 60)).save(photo.with_name("large.jpg"))
    call("infer_seg", *ALONE, "--weights", "net", "--images", photo.with_name("large.jpg"), "--out", "found",
         "--max_side", 128)
    assert label_map("found/masks/large.png").shape == (3000, 4000)
    with Image.open("found/overlays/large.png") as overlay:
        assert overlay.width == 2000


# ---- names ----

def test_a_photo_alone_is_named_as_in_its_folder(tmp_path):
    for name in ("a.jpg", "a.png", "b.JPEG", "c.tar.jpg", ".hidden.jpg", "d.heic"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    whole = Photos(tmp_path)
    assert whole.files == {"a.jpg": "a.jpg", "a.png": "a.png", "b": "b.JPEG", "c.tar": "c.tar.jpg"}
    for image_id, name in whole.files.items():
        assert Photos(tmp_path / name).files == {image_id: name}
        assert Photos(tmp_path / name).unread == {}
    assert set(whole.unread) == {"d.heic"}
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    assert "link" in Photos(tmp_path).files
