"""Photos without labels, and photos that are too large for the network or for Pillow."""
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data.images import image_size, read_image
from data.layout import VOCLayout
from tests.stages import DEMO, assert_says, call, files, own_data, refusal
from tools.maps import read_cam, read_crf


@pytest.mark.slow
def test_a_photo_above_pillows_limit_is_read_where_it_is_shrunk(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.new("L", (20000, 10000), 90).save(tmp_path / name)
        assert image_size(tmp_path / name) == (10000, 20000)
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
        image = read_image(tmp_path / name, max_side=512)
        assert image.shape[1] == 2 * image.shape[0] >= 1024 and (image == 90).all()
        assert Image.MAX_IMAGE_PIXELS == 89478485           # the limit holds for what is read next


def test_several_threads_read_images_at_a_time(tmp_path):
    """As infer.py --crf and infer_aff.py do; the limit of Pillow, which reading lifts, is one for all threads."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            images = list(threads.map(lambda _: read_image(tmp_path / "a.png"), range(1000)))
    finally:
        sys.setswitchinterval(interval)
    assert len(images) == 1000 and Image.MAX_IMAGE_PIXELS == 89478485


def test_a_large_photo_is_turned_as_its_exif_data_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9000, 6000)).save(tmp_path / "a.jpg", exif=exif)
    height, width, _ = read_image(tmp_path / "a.jpg", max_side=512).shape
    assert image_size(tmp_path / "a.jpg") == (9000, 6000) and height * 2 == width * 3 < 9000


def test_small_photos_are_the_same_pixels_with_and_without(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), read_image(tmp_path / "a.jpg", max_side=32))


def test_labels_predicted_need_none(place):
    """Photos without labels.json and Annotations: the network names the classes."""
    folder = own_data(place)
    (folder / "labels.json").unlink()
    (folder / "made_by.json").unlink()
    line = (*DEMO, "--vis", "--dict", "--crf", "--alphas", 6, "--dict_dir", "guessed", "--crf_dir", "guessed_crf",
            "--vis_dir", "guessed_vis")
    assert_says(refusal("infer", *line), "labels.json", "--labels predicted")
    call("infer", *line, "--labels", "predicted")
    for image_id in VOCLayout(folder).ids("train"):
        classes, scores = read_cam(place / f"experiment/X/guessed/{image_id}.npz")
        assert len(classes) and scores.max() > 0.5
        assert read_crf(place / f"experiment/X/guessed_crf/06/{image_id}.npz")[0].tolist() == [0, *classes]
        assert len(list(place.glob(f"experiment/X/guessed_vis/{image_id}_cam_*.png"))) == len(classes)
    before = files("experiment")
    call("infer", *line, "--labels", "predicted")
    assert files("experiment") == before


def test_max_side_shrinks_what_the_network_and_the_crf_see_and_no_map(place):
    folder, image_id = own_data(place), "train_0004"
    with Image.open(folder / f"JPEGImages/{image_id}.png") as image:
        image.resize((900, 600)).save(folder / f"JPEGImages/{image_id}.png")
        image.convert("RGB").resize((120, 80)).save(place / "small.png")
    line = (*DEMO, "--dict", "--crf", "--alphas", 4, "--only", image_id, "--vis")
    call("infer", *line, "--dict_dir", "d", "--crf_dir", "c", "--vis_dir", "v", "--max_side", 120)
    classes, scores = read_cam(f"experiment/X/d/{image_id}.npz")
    rows, refined = read_crf(f"experiment/X/c/04/{image_id}.npz")
    assert scores.shape[1:] == refined.shape[1:] == (600, 900) and rows.tolist() == [0, *classes]
    np.testing.assert_allclose(refined.sum(0), 1, atol=3e-3)
    # The CAMs are those of the small photo, enlarged.
    (place / "small.png").rename(folder / f"JPEGImages/{image_id}.png")
    call("infer", *line, "--dict_dir", "d2", "--crf_dir", "c2", "--vis_dir", "v2")
    small = read_cam(f"experiment/X/d2/{image_id}.npz")[1]
    centres = scores[:, 3::7, 4::7][:, :80, :120]
    assert small.shape[1:] == (80, 120) and abs(small.mean() - scores.mean()) < 0.02 and centres.max() <= 1.001
    # It is part of the record: other maps are not mixed with these.
    assert json.loads((place / "experiment/X/d/made_by.json").read_text())["settings"]["max_side"] == 120
    assert "max_side" not in json.loads((place / "experiment/X/d2/made_by.json").read_text())["settings"]
    assert_says(refusal("infer", *DEMO, "--dict", "--dict_dir", "d"), "d was made differently", "max_side",
                "--overwrite")
