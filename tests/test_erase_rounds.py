"""Erase and infer: maps that a pencil can follow, a slow twin; the stage resumed, shared out, without ground truth."""
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data.layout import VOCLayout
from data.transforms import views
from methods.cam import multi_scale_cam
from methods.erase_rounds import erase_region, erase_rounds
from networks.cam import CAMNet
from tests.stages import DEMO, call, copy_place, files, in_two, refusal
from tools.maps import read_cam
from tools.rounds import draw_rounds, incomplete

pytestmark = pytest.mark.usefixtures("one_thread")     # as the processes of in_two

ERASE = (*DEMO, "--model", "model_oc", "--infer_list", "val", "--scales", 1, "--erase_rounds", 2)
HOME = "experiment/X/erase_model_oc"


class Looks(torch.nn.Module):
    """See in the first channel what there is of class 1, in the second of class 2."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        return image[:, :2], image[:, :2].mean((2, 3))


def seen(*rows):
    """Make the views of an image that Looks sees as these rows: class 1's, class 2's."""
    image = torch.tensor([*rows, [0.0] * len(rows[0])])[None, :, None]                  # (1, 3, 1, W)
    return [torch.cat([image, image.flip(-1)])], (1, len(rows[0]))


def test_by_hand():
    image, size = seen([4.0, 3, 1, 0.4], [0.0, 0, 0, 8])
    classes, maps = erase_rounds(Looks(), image, size, torch.tensor([1.0, 0]), rounds=3, threshold=.5)
    assert classes.tolist() == [1] and maps.shape == (4, 1, 1, 4)
    expected = [[1, .75, .25, .1], [0, 0, 1, .4], [0, 0, 0, 1], [0, 0, 0, 0]]
    np.testing.assert_allclose(maps[:, 0, 0], expected, atol=1e-4)


def test_each_class_has_an_erased_image_of_its_own():
    image, size = seen([4.0, 3, 0, 0], [2.0, 0, 1, 0])
    classes, maps = erase_rounds(Looks(), image, size, torch.ones(2), rounds=1, threshold=.6)
    assert classes.tolist() == [1, 2]
    np.testing.assert_allclose(maps[1, :, 0], [[0, 0, 0, 0], [0, 0, 1, 0]], atol=1e-4)


def test_a_score_at_the_threshold_stays():
    image, size = seen([4.0, 2, 0, 0], [0.0] * 4)
    _, maps = erase_rounds(Looks(), image, size, torch.tensor([1.0, 0]), 1, threshold=float(2 / np.float32(4 + 5e-6)))
    np.testing.assert_allclose(maps[1, 0, 0], [0, 1, 0, 0], atol=1e-4)


def test_no_class_and_no_round():
    image, size = seen([4.0, 3], [0.0, 0])
    classes, maps = erase_rounds(Looks(), image, size, torch.zeros(2), 2)
    assert classes.shape == (0,) and maps.shape == (3, 0, 1, 2)
    assert erase_rounds(Looks(), image, size, torch.ones(2), 0)[1].shape == (1, 2, 1, 2)


def test_a_region_is_erased_in_every_view_and_mirrored():
    region = torch.zeros(20, 30, dtype=torch.bool)
    region[:10, :6] = True
    ones = [torch.ones(2, 3, 20, 30), torch.ones(2, 3, 10, 15), torch.ones(2, 3, 40, 60)]
    for view in erase_region(ones, region):
        image, mirrored = view
        h, w = view.shape[2:]
        assert not image[:, :h // 2, :w // 5].any() and torch.equal(image.flip(-1), mirrored)
        assert image.sum() == 3 * (h * w - h // 2 * (w // 5))


def test_equals_one_class_and_one_round_after_the_other():
    torch.manual_seed(0)
    net, image = CAMNet(4, 0.125).eval(), np.random.default_rng(0).integers(0, 256, (33, 50, 3), np.uint8)
    label, pictures = torch.tensor([1.0, 0, 1, 0]), views(image, (1, 1.5))
    classes, maps = erase_rounds(net, pictures, (33, 50), label, 2, .4)
    torch.testing.assert_close(maps[0], multi_scale_cam(net, pictures, (33, 50), label)[1])
    for k, c in enumerate(classes):
        alone, left = torch.eye(4)[c - 1], pictures
        for found in maps[:, k]:
            scores = multi_scale_cam(net, left, (33, 50), alone)[1][0]
            torch.testing.assert_close(scores, found, atol=1e-5, rtol=0)
            left = erase_region(left, found > .4)


def test_a_strip_and_its_frames():
    image = np.full((40, 60, 3), 200, np.uint8)
    maps = np.zeros((3, 2, 40, 60), np.float32)
    maps[0, 0, :20] = 1
    strip, frames = draw_rounds(image, ["owl", "ram"], maps, .5)
    height, width = strip.shape[0] // 2, strip.shape[1] // 5
    assert len(frames) == 3 and frames[0].shape == (2 * height, 3 * width, 3) and strip.shape[2] == 3
    first, second = strip[24:, width:2 * width], strip[24:, 2 * width:3 * width]        # rounds 0 and 1 of the owl
    assert tuple(second[5, 10]) < tuple(first[30, 10])              # erased: grey below the blue of score 0
    np.testing.assert_array_equal(strip[:height, -width:], frames[2][:height, -width:])
    nothing, frames = draw_rounds(image, [], maps[:, :0], .5)
    assert nothing.shape == frames[0].shape


# ---- the stage ----

@pytest.fixture(scope="module")
def erased(finished, tmp_path_factory, one_thread):
    """Give a folder with what infer.py --erase_rounds 2 wrote and printed. Write nothing in it."""
    place = copy_place(finished, tmp_path_factory.mktemp("erased"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "printed").write_text(call("infer", *ERASE))
    return place


@pytest.fixture
def own(erased, tmp_path, monkeypatch):
    monkeypatch.chdir(copy_place(erased, tmp_path))
    return tmp_path


def test_maps_strips_and_numbers(erased, monkeypatch):
    monkeypatch.chdir(erased)
    layout, home = VOCLayout("data/critters"), erased / HOME
    ids, rows = layout.ids("val"), json.loads((home / "miou_val.json").read_text())["rounds"]
    folders = {name: home / name for name in ("round_0", "round_1", "round_2", "strips")}
    assert not incomplete(folders, ids) and len(list((home / "strips").glob("*.gif"))) == len(ids) == 6
    assert [row["round"] for row in rows] == [0, 1, 2]
    hits = np.zeros((3, 7, 7), int)
    for image_id in ids:
        found = [read_cam(home / f"round_{r}/{image_id}.npz") for r in range(3)]
        truth = layout.ground_truth(image_id)
        for r in range(3):
            scores = np.maximum.reduce([np.full((len(found[0][0]), *truth.shape), -1), *(s for _, s in found[:r + 1])])
            labels = np.array([0, *found[0][0]])[np.stack([np.full(truth.shape, np.float32(.2)), *scores]).argmax(0)]
            np.add.at(hits[r], (truth[truth != 255], labels[truth != 255]), 1)
    for row, hit in zip(rows, hits):
        both = np.diagonal(hit)
        expected = 100 * np.mean(both / np.maximum(hit.sum(0) + hit.sum(1) - both, 1))
        assert row["fixed_miou"] == pytest.approx(expected) and row["miou"] >= row["fixed_miou"]
    printed = (erased / "printed").read_text()
    assert all(f"{row['miou']:8.3f}%" in printed for row in rows) and "experiment/X/erase_model_oc/miou_" in printed
    with Image.open(home / f"strips/{ids[0]}.gif") as animation:
        assert animation.n_frames <= 3 and animation.info["loop"] == 0


def test_nothing_else_is_written(finished, erased):
    before, after = (files(place / "experiment/X") for place in (finished, erased))
    assert {name for name in after.keys() - before.keys() if not name.startswith("erase_model_oc/")} == set()
    record = json.loads((erased / HOME / "strips/made_by.json").read_text())
    assert record["settings"]["erase_t"] == .5 and record["settings"]["erase_rounds"] == 2


def test_existing_files_are_skipped_and_missing_ones_made_again(own, erased):
    home, image_id = own / HOME, VOCLayout("data/critters").ids("val")[3]
    before = files(home)
    assert "6 of 6 images are finished" in call("infer", *ERASE) and "mIoU" in call("infer", *ERASE)
    unlike = {name for name, state in files(home).items() if state != before[name]}
    assert unlike <= {"miou_val.json"}
    (home / f"round_1/{image_id}.npz").unlink()
    (home / f"strips/{image_id}.gif").unlink()
    assert "5 of 6 images are finished" in call("infer", *ERASE)
    assert {n: digest for n, (_, digest) in files(home).items()} == {
        n: digest for n, (_, digest) in files(erased / HOME).items()}


def test_more_rounds_keep_the_maps_of_the_first(own):
    more = (*ERASE[:-1], 3)
    assert "erase_rounds: then 2, now 3). --overwrite" in refusal("infer", *more)
    before = files(own / HOME / "round_2")
    call("infer", *more, "--overwrite")
    assert (own / HOME / "round_3").is_dir()
    assert {n: digest for n, (_, digest) in files(own / HOME / "round_2").items()} == {
        n: digest for n, (_, digest) in before.items()}
    assert "erase_t: then 0.5, now 0.4" in refusal("infer", *more, "--erase_t", .4)


def test_two_processes_and_shards_write_the_same(own, erased, zygote):
    expected = {n: digest for n, (_, digest) in files(erased / HOME).items()}
    shutil.rmtree(own / HOME)
    in_two(zygote, own, "infer", *ERASE, "--device", "cpu")
    assert {n: digest for n, (_, digest) in files(own / HOME).items()} == expected
    shutil.rmtree(own / HOME)
    for shard in ("1/2", "2/2"):
        assert "without --shard" in call("infer", *ERASE, "--shard", shard)
    assert not (own / HOME / "miou_val.json").exists()
    call("infer", *ERASE)
    assert {n: digest for n, (_, digest) in files(own / HOME).items()} == expected


def test_other_stages_read_the_maps_of_a_round(own):
    call("evaluation", *DEMO, "--task", "cam", "--dict_dir", "erase_model_oc/round_0", "--list", "val")
    advice = refusal("evaluation", *DEMO, "--task", "cam", "--dict_dir", "erase_model_oc/round_2", "--list", "train")
    line = advice.split("To make it, run: python ")[1].split()
    assert line[0] == "infer.py" and "--dict" not in line and "erase_model_oc" in line
    call("infer", *line[1:], "--scales", 1, "--num_workers", 0)
    call("evaluation", *DEMO, "--task", "cam", "--dict_dir", "erase_model_oc/round_2", "--list", "train")


def test_without_ground_truth_the_numbers_are_left_out_with_a_word(own):
    data = own / "data/critters"
    shared = data.resolve()
    data.unlink()
    shutil.copytree(shared, data)
    shutil.rmtree(data / "SegmentationClass")
    shutil.rmtree(own / HOME)
    assert "not measured: 6 of the 6" in call("infer", *ERASE)
    assert not (own / HOME / "miou_val.json").exists() and len(list((own / HOME / "strips").glob("*.png"))) == 6


def test_what_it_cannot_do_without_is_said(own):
    labels = own / "data/critters/labels.json"
    theirs = own / "theirs"
    theirs.mkdir()
    shutil.copy(own / f"{HOME}/round_0/val_0000.npz", theirs)
    assert "one of --dict_dir and --erase_rounds" in refusal(
        "infer", *ERASE, "--dict_dir", theirs, "--crf", "--only", "val_0000")
    data = own / "data/critters"
    shared = data.resolve()
    data.unlink()
    shutil.copytree(shared, data)
    table = json.loads(labels.read_text())
    del table["val_0000"]
    labels.write_text(json.dumps(table))
    said = refusal("infer", *ERASE, "--erase_dir", "other")
    assert "image without labels: val_0000" in said and "--labels predicted" in said
    call("infer", *ERASE, "--erase_dir", "other", "--labels", "predicted", "--only", "val_0000")
    assert (own / "experiment/X/other/strips/val_0000.png").exists()
