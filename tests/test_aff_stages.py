"""train_aff.py and infer_aff.py on a dozen critters, as a person runs them; bad input; a stop and a start between."""
import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import config

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import infer_aff
from data.dataset import AffinitySet
from data.images import read_image, voc_palette
from data.layout import VOC_CLASSES, VOCLayout
from data.transforms import augment_mapped, denormalize, normalize
from methods.affinity import confident_labels, effective_radius, pair_affinity
from methods.random_walk import start_scores, transition, walk_cams
from networks import build
from networks.pretrained import load_weights, official_state
from tests.conftest import ROOT, assert_close
from tests.stages import (
    DEMO,
    add_to_list,
    assert_says,
    assert_stops_change_nothing,
    call,
    change_labels,
    copy_place,
    cut,
    files,
    in_two,
    own_data,
    parse,
    refusal,
    rows_of,
    slow_miou,
)
from tools import crf, engine, flags, interrupt
from tools.files import read_label_map
from tools.maps import read_cam, save_cam, save_crf

PAIR = ("--low", 2, "--high", 24)
TRAIN = (*DEMO, *PAIR, "--batch_size", 4, "--max_epochs", 2, "--crop", 72)
WALK = (*DEMO, *PAIR, "--dup", 3, "--crf_iterations", 0)
ELSEWHERE = ("--crf_dir", "experiment/X/crf", "--init", "X/model_cse")      # for another --name


@pytest.fixture(scope="module")
def walked(finished, tmp_path_factory):
    """Give a copy of `finished` with an AffinityNet and label maps of all images. Write nothing in it."""
    place, home = copy_place(finished, tmp_path_factory.mktemp("walked")), os.getcwd()
    os.chdir(place)
    try:
        call("train_aff", *TRAIN)
        call("infer_aff", *WALK)
    finally:
        os.chdir(home)
    return place


@pytest.fixture
def aff(walked, tmp_path, monkeypatch):
    """Give a copy of `walked` of one's own, and go there."""
    monkeypatch.chdir(copy_place(walked, tmp_path))
    return tmp_path


def label_maps(folder):
    return {path.stem: read_label_map(path) for path in folder.glob("*.png")}


# ---- what lies on disk ----

def test_the_files_of_training(walked):
    folder = walked / "experiment/X"
    assert sorted(p.name for p in (folder / "ckpt/aff_02_24").iterdir()) == ["000.pth", "001.pth", "last.pth",
                                                                             "network.json"]
    stored = json.loads((folder / "config/train_aff_02_24.json").read_text())["settings"]
    assert (stored["low"], stored["high"]) == (2, 24) and len(stored["inputs"]["init"]) == 64
    assert stored["inputs"]["crf low"] != stored["inputs"]["crf high"]
    weights = torch.load(folder / "ckpt/aff_02_24/001.pth", weights_only=True)
    network = build(folder / "ckpt/aff_02_24/network.json")
    assert list(official_state(network)) == list(weights) and "f8_3.weight" in weights
    before = torch.load(folder / "ckpt/model_cse/001.pth", weights_only=True)       # {name}/model_cse
    assert torch.equal(weights["bn7.running_mean"], before["bn7.running_mean"])
    assert torch.equal(weights["conv1a.weight"], before["conv1a.weight"])           # BatchNorm and conv1a, b2 are fixed
    assert not torch.equal(weights["b5.conv_branch2a.weight"], before["b5.conv_branch2a.weight"])
    groups = torch.load(folder / "ckpt/aff_02_24/last.pth", weights_only=True)["optimizer"]["param_groups"]
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.01, 0.02, 0.1, 0.2])
    assert [group["weight_decay"] for group in groups] == [5e-4, 0, 5e-4, 0]
    assert [len(group["params"]) for group in groups] == [13, 0, 4, 0]              # the third: f8_3, f8_4, f8_5, f9
    rows = rows_of(folder / "log/train_aff_02_24.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(np.isfinite(row["loss"]) and row["loss"] > 0 for row in rows)
    assert {"loss_bg", "loss_fg", "loss_neg", "affinity_same", "affinity_different"} <= set(rows[0])


def test_the_files_of_the_walk(walked):
    folder, layout = walked / "experiment/X", VOCLayout(walked / "data/critters")
    ids = layout.ids("train_aug")
    assert sorted(p.name for p in (folder / "rw/02_24").iterdir()) == [
        "made_by.images.json", "made_by.json", *(f"{i}.png" for i in ids)]
    for image_id in ids:
        with Image.open(folder / f"rw/02_24/{image_id}.png") as picture:
            assert picture.mode == "P" and picture.size == (64, 64)
            assert bytes(picture.getpalette())[:21] == voc_palette()[:21]
            assert set(np.unique(picture)) <= {0, *np.flatnonzero(layout.label(image_id)) + 1}
    assert any(len(np.unique(labels)) > 1 for labels in label_maps(folder / "rw/02_24").values())
    made = json.loads((folder / "rw/02_24/made_by.json").read_text())
    assert set(made["inputs"]) == {"ckpt/aff_02_24/001.pth", "dict"} and made["stage"] == "infer_aff"
    assert (made["settings"]["dup"], made["settings"]["beta"], made["settings"]["logt"]) == (3, 8, 4)


# ---- numbers ----

def test_a_training_item_is_the_authors(golden):
    """Through the stage's own changes: the draws are the manifest's, the maps those of the file."""
    stored = np.load(golden("set07_affdataset_merge.npz"))

    class Draws:
        """A generator that draws what the authors drew: two places of the crop, heads or tails, no jitter."""

        def __init__(self, starts, flip):
            self.starts, self.random = iter(starts), lambda: 0.1 if flip else 0.9

        def integers(self, high):
            return next(self.starts)

        def uniform(self, low, high, size):
            return np.zeros(size)

        def permutation(self, n):
            return np.arange(n)

    for number, size, starts, flip in ((0, 128, (7, 8), False), (1, 96, (57, 17), True)):
        maps = [stored[f"{name}_{number}"].astype(np.float32) for name in ("la", "ha")]
        image, maps = augment_mapped(stored[f"img_{number}"], maps, Draws(starts, flip), size, (0, 0, 0, 0))
        assert image.is_contiguous() and image.dtype == torch.float32
        np.testing.assert_allclose(image, stored[f"out_img_{number}"], atol=1e-2)
        np.testing.assert_array_equal(confident_labels(*maps), stored[f"merged_label_{number}"])


@pytest.fixture
def quarters(tmp_path):
    """Give a dataset of one image of 72x56: red is sure background, green an object, blue unknown; and its set."""
    (tmp_path / "JPEGImages").mkdir()
    colours = np.array([[0, 1, 2, 1, 2, 0, 1, 0, 1], [1, 0, 2, 2, 1, 0, 0, 1, 2]] * 4)[:7].repeat(8, 0).repeat(8, 1)
    Image.fromarray(255 * np.eye(3, dtype=np.uint8)[colours]).save(tmp_path / "JPEGImages/a.png")
    maps = {"low": np.stack([colours != 1, colours == 1]), "high": np.stack([colours == 0, colours > 0])}

    def dataset(crop, **other):
        change = partial(augment_mapped, crop_size=crop, jitter_amounts=(0, 0, 0, 0))
        return AffinitySet(VOCLayout(tmp_path), {"a": ("low", "high")}, 7,
                           lambda path, size: (np.array([0, 3]), maps[path].astype(np.float32)), change,
                           confident_labels)
    return dataset


def test_picture_and_labels_are_changed_alike(quarters):
    """A crop of whole cells, or one that pads: wherever a cell has one colour, its label is that colour's."""
    for crop in (56, 72, 112):
        dataset, flipped, seen = quarters(crop), set(), 0
        for epoch in range(12):
            item = dataset[epoch, 0]
            image = torch.from_numpy(denormalize(item["image"])).permute(2, 0, 1).float() / 255     # (3, S, S)
            cells = F.avg_pool2d(image, 8)                                                          # (3, h, w)
            for c, label in enumerate((0, 1, 255)):
                pure = cells[c] > 0.999
                assert (item["label_map"][pure] == label).all()
                seen += int(pure.sum())
            outside = cells.sum(0) < 1e-3           # black: the crop comes before the normalisation
            assert (item["label_map"][outside] == 255).all() and outside.any() == (crop > 56)
            flipped.add(item["image"].numpy().tobytes())
        assert seen > 20 and len(flipped) > 2


def test_an_item_depends_on_seed_epoch_and_index_alone(quarters):
    a, b = quarters(56), quarters(56)
    for item in (a[3, 0], a[4, 0]), (b[3, 0], b[4, 0]):
        assert not torch.equal(item[0]["image"], item[1]["image"])
    assert torch.equal(a[3, 0]["image"], b[3, 0]["image"]) and torch.equal(a[3, 0]["label_map"], b[3, 0]["label_map"])


def test_the_label_maps_are_those_of_a_slow_walk(walked):
    """An image cut to 43x61, which is no multiple of 8: the dense matrix squared, pixel by pixel."""
    folder, image_id = walked / "experiment/X", "train_0003"
    network = build(folder / "ckpt/aff_02_24/network.json").eval()
    load_weights(network, folder / "ckpt/aff_02_24/001.pth")
    image = normalize(read_image(VOCLayout(walked / "data/critters").image_path(image_id))[:43, :61])
    classes, scores = read_cam(folder / f"dict/{image_id}.npz")
    cams = torch.from_numpy(scores[:, :43, :61].copy())
    found = walk_cams(network, torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(), cams, 3, 8, 4)
    assert found.shape == (len(classes) + 1, 48, 64)

    padded, radius = torch.zeros(1, 3, 48, 64), effective_radius(6, 8)
    padded[0, :, :43, :61] = torch.from_numpy(image).permute(2, 0, 1)
    with torch.no_grad():
        affinity = pair_affinity(network(padded), radius)[0].double()
    matrix = transition(affinity, 6, 8, radius).to_dense().T
    for _ in range(4):
        matrix = matrix @ matrix
    slow = (start_scores(cams, 3).flatten(1).double() @ matrix).view(-1, 6, 8).float()
    slow = F.interpolate(slow[None], (48, 64), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, slow, rtol=0, atol=1e-5)


def test_what_is_written_is_what_wins(walked):
    """The stage's own PNG beside the walk of the same image, float16 CAMs and all."""
    folder, layout = walked / "experiment/X", VOCLayout(walked / "data/critters")
    network = build(folder / "ckpt/aff_02_24/network.json").eval()
    load_weights(network, folder / "ckpt/aff_02_24/001.pth")
    for image_id in layout.ids("train")[:3]:
        classes, scores = read_cam(folder / f"dict/{image_id}.npz")
        image = torch.from_numpy(normalize(read_image(layout.image_path(image_id))))
        scores = walk_cams(network, image.permute(2, 0, 1)[None].contiguous(), torch.from_numpy(scores), 3, 8, 4)
        labels = np.array([0, *classes])[scores.argmax(0)]
        assert (labels == read_label_map(folder / f"rw/02_24/{image_id}.png")).mean() > 0.999


def test_a_label_is_a_class_and_the_walk_gets_its_flags(tmp_path, monkeypatch):
    """An image of the classes 2 and 5, whose rows after the background are 1 and 2."""
    (tmp_path / "JPEGImages").mkdir()
    Image.new("RGB", (20, 12)).save(tmp_path / "JPEGImages/a.png")
    save_cam(tmp_path / "a.npz", [2, 5], np.full((2, 12, 20), 0.5))
    given, settings = [], parse(config.InferAff, [*map(str, WALK), "--beta", "5", "--logt", "7"])

    def walk(network, image, cams, *flags):
        given.append((tuple(image.shape), tuple(cams.shape), flags))
        return F.one_hot(torch.arange(24).expand(16, 24) % 3, 3).permute(2, 0, 1).float()

    monkeypatch.setattr(infer_aff, "walk_cams", walk)
    infer_aff.write_labels(settings, VOCLayout(tmp_path), None, torch.device("cpu"), tmp_path / "rw",
                           {"a": tmp_path / "a.npz"})
    np.testing.assert_array_equal(read_label_map(tmp_path / "rw/a.png"), np.array([0, 2, 5])[np.arange(20) % 3][None]
                                  .repeat(12, 0))
    assert given == [((1, 3, 12, 20), (2, 12, 20), (3, 5, 7, settings.radius_rule))]


def test_evaluation(aff):
    layout = VOCLayout("data/critters")
    call("evaluation", *DEMO, "--task", "png", "--dict_dir", "rw/02_24")
    found = json.loads((aff / "experiment/X/eval/png_rw_02_24_train.json").read_text())
    pairs = [(labels, layout.ground_truth(i)) for i, labels in label_maps(aff / "experiment/X/rw/02_24").items()]
    assert found["images"] == 12 and found["miou"] == pytest.approx(slow_miou(pairs, 6))
    assert_says(refusal("evaluation", *DEMO, "--task", "png", "--dict_dir", "rw/2.5_10"), "no folder rw/2.5_10",
                "python infer_aff.py --name X --low 2.5 --high 10 --infer_list train")


def test_overwrite_deletes_no_labels_before_the_weights_are_read(aff):
    cut(aff / "experiment/X/ckpt/aff_02_24/001.pth")
    assert_says(refusal("infer_aff", *WALK, "--beta", 3, "--overwrite"), "aff_02_24/001.pth", "damaged")


# ---- second runs ----

def test_nothing_is_done_twice(aff):
    before = files("experiment")
    assert "complete, 2 epochs; nothing to do" in call("train_aff", *TRAIN)
    assert "12 of 12 images are finished" in call("infer_aff", *WALK)
    assert files("experiment") == before
    (aff / "experiment/X/rw/02_24/train_0005.png").unlink()
    assert "11 of 12 images are finished" in call("infer_aff", *WALK)
    after = files("experiment")
    assert {k: v[1] for k, v in after.items()} == {k: v[1] for k, v in before.items()}
    assert {name for name in after if after[name][0] != before[name][0]} == {"X/rw/02_24/train_0005.png"}


@pytest.mark.parametrize("after", [2, 4])
def test_stopped_and_started_it_ends_as_if_nothing_had_been(aff, monkeypatch, after):
    assert_stops_change_nothing("train_aff", (*TRAIN, *ELSEWHERE), aff / "experiment", "aff_02_24", after, monkeypatch)


def test_a_walk_stopped_and_started(aff, monkeypatch):
    asked, folder = iter([False, False, True]), aff / "experiment/X"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(interrupt, "asked", lambda: next(asked))
        call("infer_aff", *WALK, "--rw_dir", "again")
    assert sorted(label_maps(folder / "again")) == ["train_0000", "train_0001", "train_0002"]
    assert "3 of 12 images are finished" in call("infer_aff", *WALK, "--rw_dir", "again")
    for path in (folder / "rw/02_24").glob("*.png"):
        assert (folder / "again" / path.name).read_bytes() == path.read_bytes()


def test_shards_and_single_pictures(aff):
    folder = aff / "experiment/X"
    for shard, count in (("1/2", 6), ("2/2", 12)):
        call("infer_aff", *WALK, "--rw_dir", "parts", "--shard", shard)
        assert len(label_maps(folder / "parts")) == count
    call("infer_aff", *WALK, "--rw_dir", "one", "--only", "train_0004")
    assert list(label_maps(folder / "one")) == ["train_0004"]
    for path in (folder / "rw/02_24").glob("*.png"):
        assert (folder / "parts" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_two_processes_do_what_one_does(aff, zygote):
    train, walk = (*TRAIN, *ELSEWHERE, "--device", "cpu"), (*WALK, "--dict_dir", "experiment/X/dict", "--device", "cpu")
    in_two(zygote, aff, "train_aff", *train, "--name", "two")
    call("train_aff", *train, "--name", "one")
    one, two = (torch.load(aff / f"experiment/{name}/ckpt/aff_02_24/001.pth", weights_only=True)
                for name in ("one", "two"))
    for name in one:
        assert_close(two[name], one[name], by=1e-4)
    logs = [rows_of(aff / f"experiment/{name}/log/train_aff_02_24.jsonl") for name in ("one", "two")]
    for a, b in zip(*logs):
        assert {k: v for k, v in a.items() if k.startswith("loss")} == pytest.approx(
            {k: v for k, v in b.items() if k.startswith("loss")}, rel=1e-4)
    in_two(zygote, aff, "infer_aff", *walk, "--name", "two")
    call("infer_aff", *walk, "--name", "one")
    one, two = (label_maps(aff / f"experiment/{name}/rw/02_24") for name in ("one", "two"))
    assert all((one[i] == two[i]).mean() > 0.99 for i in one) and len(two) == 12


# ---- choices ----

def test_other_settings_are_other_maps(aff):
    for words in (("--dup", 5), ("--beta", 2), ("--logt", 1), ("--crf_iterations", 1), ("--radius_rule", "aeft"),
                  ("--precision", "bf16"), ("--load_epo", 0)):
        name = "000.pth" if words[0] == "--load_epo" else words[0].removeprefix("--")
        assert_says(refusal("infer_aff", *WALK, *words), "rw/02_24 was made differently", name, "--overwrite")
    for words in (("--dup", 1), ("--beta", 1), ("--logt", 8), ("--load_epo", 0), ("--precision", "bf16")):
        call("infer_aff", *WALK, *words, "--overwrite", "--rw_dir", "other")
        here, there = label_maps(aff / "experiment/X/rw/02_24"), label_maps(aff / "experiment/X/other")
        assert here.keys() == there.keys() and any((here[i] != there[i]).any() for i in here), words


def test_the_network_is_made_with_the_flags_and_walks_without_dropout(aff, monkeypatch):
    seen = {}
    with monkeypatch.context() as patch:
        patch.setattr(engine, "run_training", lambda objective, network, groups, loader, run: seen.update(
            loader.args[0].augment.keywords, dropout=[m.p for m in network.modules() if isinstance(m, nn.Dropout2d)]))
        call("train_aff", *TRAIN, "--jitter", 0.1, 0.2, 0.3, 0.05, "--crop", 80, "--dropout", 0.6, 0.7)
    assert seen == {"crop_size": 80, "jitter_amounts": (0.1, 0.2, 0.3, 0.05), "dropout": [0.6, 0.6]}    # no b7

    path = aff / "experiment/X/ckpt/aff_02_24/network.json"
    stored = json.loads(path.read_text())
    stored["backbone"]["dropout"] = [0.9, 0.9]
    path.write_text(json.dumps(stored))
    call("infer_aff", *WALK, "--rw_dir", "again")
    for path in (aff / "experiment/X/rw/02_24").glob("*.png"):
        assert (aff / "experiment/X/again" / path.name).read_bytes() == path.read_bytes()


def test_what_the_crf_is_given_is_the_authors(tmp_path, golden):
    """But for their image's rounding: the label maps agree as the manifest asks."""
    pytest.importorskip("pydensecrf")
    stored, start = np.load(golden("set10_random_walk_aeft.npz")), np.load(golden("set10_random_walk_psa.npz"))
    Image.fromarray(start["img"]).save(tmp_path / "a.png")
    layout, classes = SimpleNamespace(classes=VOC_CLASSES), np.array([0, *start["keys"] + 1])
    layout.image_path = lambda image_id: tmp_path / f"{image_id}.png"
    for alpha in (16, 19):
        padded, scores = infer_aff.load_for_crf(layout, "a", classes, stored[f"alpha{alpha}_soft_up"])
        assert np.abs(padded.astype(int) - stored["img8_padded"]).max() <= 1
        np.testing.assert_array_equal(padded[90:], stored["img8_padded"][90:])
        np.testing.assert_array_equal(padded[:90, 125:], stored["img8_padded"][:90, 125:])
        assert scores.shape == (21, 96, 128)
        np.testing.assert_array_equal(np.flatnonzero(scores.any((1, 2))), classes)
        labels = crf.dense_crf(padded, scores, 1).argmax(0)[:90, :125]
        assert (labels == stored[f"alpha{alpha}_label_map"]).mean() >= 0.995


def test_one_crf_iteration(aff):
    pytest.importorskip("pydensecrf")
    call("infer_aff", *WALK, "--crf_iterations", 1, "--rw_dir", "sharp")
    plain, sharp = (label_maps(aff / f"experiment/X/{name}") for name in ("rw/02_24", "sharp"))
    assert plain.keys() == sharp.keys()
    agree = [(plain[i] == sharp[i]).mean() for i in plain]
    assert 0.5 < np.mean(agree) < 1
    call("infer_aff", *WALK, "--crf_iterations", 5, "--rw_dir", "sharper")
    sharper = label_maps(aff / "experiment/X/sharper")
    assert np.mean([(plain[i] == sharper[i]).mean() for i in plain]) < np.mean(agree)


def test_the_ordinary_classifiers_maps(aff):
    """Of --crf_dir and --dict_dir: what AffinityNet's own paper did."""
    there = "experiment/X/crf_model_oc", "experiment/X/dict_model_oc"
    call("train_aff", *TRAIN, "--name", "PSA", "--crf_dir", there[0], "--init", "X/model_oc")
    call("infer_aff", *WALK, "--name", "PSA", "--dict_dir", there[1])
    assert len(label_maps(aff / "experiment/PSA/rw/02_24")) == 12
    assert_says(refusal("infer_aff", *WALK, "--dict_dir", "dict_model_oc"), "made differently", "dict_model_oc")


@pytest.mark.slow
def test_the_recipe_voc(voc_place):
    """METHOD's settings but for width, crop, epochs and start: CAMs and CRF maps stand in for infer.py's."""
    layout = VOCLayout("data/VOC2012")
    for image_id in layout.ids("train_aug"):
        truth, classes = layout.ground_truth(image_id), np.flatnonzero(layout.label(image_id)) + 1
        cams = np.stack([0.9 * (truth == c) for c in classes])
        save_cam(f"experiment/X/dict/{image_id}.npz", classes, cams)
        for alpha, certain in (("04", 0.4), ("24", 0.6)):
            rows = np.concatenate([certain * (truth[None] == 0) + 1e-3, cams])
            save_crf(f"experiment/X/crf/{alpha}/{image_id}.npz", [0, *classes], rows / rows.sum(0))
    call("train_aff", "--name", "X", "--low", 4, "--high", 24, "--width", 0.0625, "--crop", 112, "--max_epochs", 2,
         "--init", "random", "--num_workers", 1)
    stored = json.loads((voc_place / "experiment/X/config/train_aff_04_24.json").read_text())["settings"]
    assert (stored["batch_size"], stored["momentum"], stored["norm"]) == (8, 5e-4, "frozen")
    assert flags.defaults(config.TrainAff, "voc")["crop"][0] == 448
    rows = rows_of(voc_place / "experiment/X/log/train_aff_04_24.jsonl")
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert [row["lr"] for row in rows] == pytest.approx([0.01 * 0.5**0.9, 0.01 * 0.25**0.9])
    call("infer_aff", "--name", "X", "--low", 4, "--high", 24, "--dup", 16)
    text = call("evaluation", "--name", "X", "--task", "png", "--dict_dir", "rw/04_24")
    assert "png of experiment/X/rw/04_24 on train: 4 images" in text


# ---- strange but honest images ----

def test_small_pictures_and_pictures_of_no_class(tmp_path, monkeypatch):
    """Smaller than any radius, or without an object: each is trained on and gets its label map."""
    monkeypatch.chdir(tmp_path)
    sizes = {"dot": (1, 1), "line": (1, 60), "flat": (16, 200), "high": (100, 20), "none": (30, 50), "plain": (80, 96)}
    data, rng = tmp_path / "data/critters", np.random.default_rng(0)
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (data / folder).mkdir(parents=True)
    (data / "classes.txt").write_text("cat\ndog\n")
    (data / "labels.json").write_text(json.dumps({i: [] if i == "none" else ["dog"] for i in sizes}))
    (data / "ImageSets/Segmentation/train_aug.txt").write_text("\n".join(sizes))
    for image_id, size in sizes.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(data / f"JPEGImages/{image_id}.png")
        classes = [] if image_id == "none" else [2]
        cams = np.zeros((len(classes), *size), np.float32)
        cams[:, :, size[1] // 2:] = 1
        save_cam(f"experiment/X/dict/{image_id}.npz", classes, cams)
        for alpha in ("02", "24"):
            save_crf(f"experiment/X/crf/{alpha}/{image_id}.npz", [0, *classes],
                     np.concatenate([1 - cams.max(0, keepdims=True, initial=0), cams]))
    save_cam("experiment/X/dict/none.npy", [], [], "npy")           # the authors' file of no class knows no size
    (tmp_path / "experiment/X/dict/none.npz").unlink()
    call("train_aff", *TRAIN, "--init", "random", "--batch_size", 3, "--crop", 72)
    for rule in ("psa", "aeft"):
        call("infer_aff", *WALK, "--radius_rule", rule, "--rw_dir", rule)
        found = label_maps(tmp_path / f"experiment/X/{rule}")
        assert {i: labels.shape for i, labels in found.items()} == sizes
        assert (found["none"] == 0).all() and (found["dot"] == 2).all()     # without pairs nothing walks
        assert set(np.unique(found["plain"])) <= {0, 2}
    psa, aeft = (label_maps(tmp_path / f"experiment/X/{rule}") for rule in ("psa", "aeft"))
    assert all((psa[i] == aeft[i]).all() for i in ("dot", "line", "none"))
    assert (psa["plain"] != aeft["plain"]).any()        # 10x12 cells: radius 5, or 4


# ---- bad input ----

def test_crf_maps_that_are_missing(aff):
    message = refusal("train_aff", *TRAIN, "--low", 6, "--high", 10)
    assert_says(message, "12 of the 12", "crf/06", "crf/10", "train_0000",
                "python infer.py --name X --model model_cse --crf --alphas 6 10 --infer_list train_aug")
    (aff / "experiment/X/crf/24/train_0003.npz").unlink()
    message = refusal("train_aff", *TRAIN)
    assert_says(message, "1 of the 12", "no CRF map in experiment/X/crf/24 (train_0003)",
                "--crf --alphas 24 --infer_list train_aug")
    assert "crf/02" not in message
    assert_says(refusal("train_aff", *TRAIN, "--crf_dir", "crf_model_oc", "--high", 30), "--model model_oc --crf")


def advice(message):
    """Return the stage and the words of the command that a message names."""
    stage, words = re.search(r"python (\w+)\.py (.*)$", message).groups()
    return stage, *shlex.split(words)


def test_the_commands_in_messages_make_what_is_missing(aff):
    """As printed, with the flags that were given; of another experiment's folder in that experiment."""
    (aff / "data").rename(aff / "my data")
    (aff / "experiment").rename(aff / "elsewhere")
    place = ("--recipe", "demo", "--data_root", "my data/critters", "--experiment_root", "elsewhere")
    line, folder = (*place, "--name", "X", *PAIR), aff / "elsewhere/X"
    for stage, words, missing in (
            ("train_aff", (), "crf/24/train_0003.npz"), ("infer_aff", (), "dict/train_0002.npz"),
            ("train_aff", ("--name", "Y", "--crf_dir", "elsewhere/X/crf_model_oc"), "crf_model_oc/02/train_0001.npz"),
            ("infer_aff", ("--name", "Y", "--dict_dir", "elsewhere/X/dict_model_oc"), "dict_model_oc/train_0004.npz")):
        content = (folder / missing).read_bytes()
        (folder / missing).unlink()
        call(*advice(refusal(stage, *line, *words)))
        assert (folder / missing).read_bytes() == content
    (folder / "crf/24").rename(folder / "crf_sharp")
    call(*advice(refusal("train_aff", *line, "--crf_dir", "mine")))
    assert len(list((folder / "mine/02").glob("*.npz"))) == len(list((folder / "mine/24").glob("*.npz"))) == 12

    (folder / "rw/02_24/train_0001.png").unlink()
    seg = (*place, "--name", "X", "--label_dir", "rw/02_24")
    evaluation = (*place, "--name", "X", "--task", "png", "--dict_dir", "rw/02_24")
    for stage, words in (("train_seg", seg), ("evaluation", evaluation)):
        assert advice(refusal(stage, *words)) == ("infer_aff", "--name", "X", *map(str, PAIR), "--infer_list", (
            "train_aug" if stage == "train_seg" else "train"), *place)
    for stage, words, trainer in (("infer_aff", (*PAIR, "--high", 30), "train_aff"), ("infer_seg", (), "train_seg"),
                                  ("infer", ("--name", "Y", "--dict"), "train")):
        found, *words = advice(refusal(stage, *line[:8], *words))
        assert found == trainer and tuple(words[-6:]) == place


def test_crf_maps_of_another_alpha(aff):
    (aff / "experiment/X/crf/24").rename(aff / "experiment/X/crf/10")
    assert_says(refusal("train_aff", *TRAIN, "--high", 10), "crf/10 ", "alpha 24, not 10", "--alphas 10")
    assert_says(refusal("train_aff", *TRAIN, "--low", 24, "--high", 2), "--low 24 must be below --high 2")


@pytest.mark.parametrize("spoil, words", [
    (lambda path: cut(path), ("cannot be read", "delete it")),
    (lambda path: save_crf(path, [0, 1], np.ones((2, 5, 6))), (
        "crf/02/train_0000.npz holds maps", "(5, 6)", "delete it", "python infer.py --name X", "--crf --alphas 2 24")),
    (lambda path: save_crf(path, [0, 6], np.full((2, 64, 64), 0.5)), ("holds maps of the classes", "[0, 6]")),
    (lambda path: save_crf(path, [0, 6], np.full((2, 64, 64), 0.6)), ("do not sum to 1", "no CRF maps")),
    (lambda path: save_cam(path, [1], np.ones((1, 64, 64))), ("no map of the background", "no CRF maps"))])
def test_a_bad_crf_map(aff, spoil, words):
    spoil(aff / "experiment/X/crf/02/train_0000.npz")
    for workers in (0, 1):
        assert_says(refusal("train_aff", *TRAIN, *ELSEWHERE, "--name", f"N{workers}", "--num_workers", workers),
                    "train_0000.npz", *words)


def test_crf_maps_of_a_class_that_the_dataset_lacks(aff):
    for alpha in ("02", "24"):
        save_crf(f"experiment/X/crf/{alpha}/train_0000.npz", [0, 7], np.full((2, 64, 64), 0.5))
    assert_says(refusal("train_aff", *TRAIN, *ELSEWHERE, "--name", "N"), "crf/02/train_0000.npz holds the class 7",
                "data/critters are 1..6", "classes.txt", "delete it", "python infer.py --name X")


def test_crf_maps_of_other_cams(aff):
    """The CAMs were made again, the CRF maps were not."""
    made = aff / "experiment/X/dict/made_by.json"
    made.write_text(made.read_text().replace('"precision": "fp32"', '"precision": "bf16"'))
    for stage, line in (("train_aff", (*TRAIN, *ELSEWHERE, "--name", "X", "--overwrite")), ("evaluation", (
            *DEMO, "--task", "png", "--dict_dir", "rw/02_24"))):
        assert_says(refusal(stage, *line), "is stale", "dict has changed")


def test_cams_that_do_not_fit(aff):
    folder, line = aff / "experiment/X/dict", (*WALK, "--rw_dir", "new")
    path = folder / "train_0002.npz"
    save_cam(path, [1], np.zeros((1, 40, 50)))
    assert_says(refusal("infer_aff", *line), "dict/train_0002.npz holds maps of size (40, 50)", "(64, 64)",
                "delete it", "python infer.py --name X --model model_cse --dict --infer_list train_aug")
    assert sorted(label_maps(aff / "experiment/X/new")) == ["train_0000", "train_0001"]     # what was done stays
    save_cam(path, [1, 7], np.zeros((2, 64, 64)))
    assert_says(refusal("infer_aff", *line), "train_0002.npz holds the class 7", "are 1..6", "classes.txt")
    save_cam(path, [0, 1], np.zeros((2, 64, 64)))
    assert_says(refusal("infer_aff", *line), "train_0002.npz holds CRF maps, not CAMs", "--task crf")
    save_cam(path, [1], np.full((1, 64, 64), 1.5))
    assert_says(refusal("infer_aff", *line), "train_0002.npz holds scores outside 0 .. 1")
    cut(path)
    assert_says(refusal("infer_aff", *line), "train_0002.npz cannot be read", "delete it", "python infer.py")
    path.unlink()
    assert_says(refusal("infer_aff", *line), "1 of the 12", "no CAMs in experiment/X/dict",
                "train_0002", "python infer.py --name X --model model_cse --dict --infer_list train_aug")
    call("infer", *DEMO, "--dict", "--only", "train_0002")
    assert "2 of 12 images are finished" in call("infer_aff", *line)


def test_a_cam_without_its_picture(aff):
    data = own_data(aff)
    change_labels(data, lambda table: table.update(ghost=["fox"]))
    add_to_list(data, "ghost")
    save_cam("experiment/X/dict/ghost.npz", [1], np.zeros((1, 8, 8)))
    assert_says(refusal("infer_aff", *WALK, "--rw_dir", "new"), "1 of the 13", "JPEGImages", "ghost")


def test_labels_that_were_changed(aff):
    data = own_data(aff)
    change_labels(data, lambda table: table.update(train_0001=["fox"]))
    for stage, line in (("infer_aff", WALK), ("train_aff", TRAIN)):
        assert_says(refusal(stage, *line), "is stale", "train_0001", "labels.json", "--overwrite")


def test_weights_that_are_not_there(aff):
    assert_says(refusal("infer_aff", *WALK, "--high", 30), "ckpt/aff_02_30 holds no weights",
                "python train_aff.py --name X --low 2 --high 30")
    assert_says(refusal("infer_aff", *WALK, "--load_epo", 7), "has no epoch 7")
    cut(aff / "experiment/X/ckpt/aff_02_24/001.pth")
    assert_says(refusal("infer_aff", *WALK, "--rw_dir", "new"), "aff_02_24/001.pth", "cut short")
    assert_says(refusal("train_aff", *TRAIN, *ELSEWHERE, "--name", "Y", "--init", "imagenet"),
                "pretrained/resnet_38d.params is not there", "--init random")


@pytest.mark.parametrize("stage, words, says_what", [
    ("infer_aff", ("--beta", 0), "--beta: must be above 0"),
    ("infer_aff", ("--logt", 13), "--logt: must be at most 12"),
    ("infer_aff", ("--logt", -1), "--logt: must be at least 0"), ("infer_aff", ("--dup", -1), "--dup: must be above 0"),
    ("infer_aff", ("--radius_rule", "irn"), "--radius_rule: invalid choice"),
    ("train_aff", ("--low", 0), "--low: must be above 0"), ("train_aff", ("--crop", 100), "take a multiple of 8"),
    ("train_aff", ("--crop", 64), "--crop: must be at least 72"),
    ("train_aff", ("--accumulate", 3), "--batch_size 4 cannot be cut into 3")])
def test_flags_that_cannot_be_meant(aff, stage, words, says_what):
    assert says_what in refusal(stage, *(WALK if stage == "infer_aff" else TRAIN), *words)


# ---- what it costs ----

@pytest.mark.slow
def test_a_large_picture_needs_no_dense_matrix(aff):
    """The stage on 1024x1024 pixels in less than 1.5 GB, torch included: the dense T alone has 2 GB."""
    data = own_data(aff)
    change_labels(data, lambda table: table.update(large=["fox"]))
    add_to_list(data, "large", "large")
    with Image.open(data / "JPEGImages/train_0000.png") as picture:
        picture.resize((1024, 1024)).save(data / "JPEGImages/large.png")
    save_cam("cams/large.npz", [1], np.linspace(0, 1, 1 << 20).reshape(1, 1024, 1024))
    words = (*WALK, "--infer_list", "large", "--dict_dir", "cams", "--rw_dir", "rw/new")
    script = ("import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
              "print(open('/proc/self/status').read())")
    done = subprocess.run([sys.executable, "-c", script, ROOT / "infer_aff.py", *map(str, words)], check=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True)
    assert read_label_map("experiment/X/rw/new/large.png").shape == (1024, 1024)
    assert int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) < 1.5 * 2**20
