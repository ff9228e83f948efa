"""train_seg.py and infer_seg.py on a dozen critters, as a person runs them; bad input; a stop and a start between."""
import json
import os
import shutil
import zipfile

import config

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.images import read_image, voc_palette
from data.layout import VOC_CLASSES, VOCLayout
from data.transforms import views
from methods.segmentation import multi_scale_scores
from networks import build
from networks.pretrained import load_weights, official_state
from tests.conftest import assert_close
from tests.stages import (
    DEMO,
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
from tools import crf, engine, interrupt
from tools.files import save_label_map, write_json
from tools.maps import read_crf

SEG = (*DEMO, "--label_dir", "rw/02_24", "--batch_size", 4, "--max_epochs", 2, "--crop", 64)
INFER = (*DEMO, "--scales", 1)
ELSEWHERE = ("--label_dir", "experiment/X/rw/02_24", "--init", "X/model_cse")      # for another --name
SERVER = "results/VOC2012/Segmentation/comp6_test_cls"


def write_labels(place, folder="rw/02_24"):
    """Write what infer_aff.py would: here the likeliest class of the CRF maps."""
    for path in (place / "experiment/X/crf/02").glob("*.npz"):
        classes, scores = read_crf(path)
        save_label_map(place / f"experiment/X/{folder}/{path.stem}.png", classes[scores.argmax(0)], voc_palette())


def see_many_classes(path):
    """Give weights that have hardly been trained an opinion, or an image would be background from edge to edge."""
    weights = torch.load(path, weights_only=True)
    weights["b9.weight"].normal_(generator=torch.Generator().manual_seed(2))
    weights["b9.weight"] -= weights["b9.weight"].mean(1, keepdim=True)      # of what all features say alike
    weights["b9.bias"].zero_()
    torch.save(weights, path)


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    """Give a copy of `finished` with label maps, a DeepLab and its maps of val. Write nothing in it."""
    place, home = tmp_path_factory.mktemp("trained"), os.getcwd()
    write_labels(copy_place(finished, place))
    os.chdir(place)
    try:
        said = call("train_seg", *SEG)
        see_many_classes("experiment/X/ckpt/seg/001.pth")
        call("infer_seg", *INFER, "--vis", "--zip")
    finally:
        os.chdir(home)
    (place / "said").write_text(said)
    return place


@pytest.fixture
def seg(trained, tmp_path, monkeypatch):
    """Give a copy of `trained` of one's own, and go there."""
    monkeypatch.chdir(copy_place(trained, tmp_path))
    return tmp_path


def label_map(path):
    with Image.open(path) as picture:
        return np.array(picture)


# ---- what lies on disk ----

def test_the_files_of_training(trained):
    folder = trained / "experiment/X"
    assert sorted(p.name for p in (folder / "ckpt/seg").iterdir()) == ["000.pth", "001.pth", "last.pth", "network.json"]
    stored = json.loads((folder / "config/train_seg.json").read_text())["settings"]
    assert stored["network"] == "largefov" and stored["classes"] == VOCLayout(trained / "data/critters").classes
    assert len(stored["inputs"]["init"]) == len(stored["inputs"]["labels"]) == 64
    weights = torch.load(folder / "ckpt/seg/001.pth", weights_only=True)
    network = build(folder / "ckpt/seg/network.json")
    assert list(official_state(network)) == list(weights) and weights["b9.weight"].shape[0] == 7
    before = torch.load(folder / "ckpt/model_cse/001.pth", weights_only=True)       # {name}/model_cse
    assert torch.equal(weights["bn7.running_mean"], before["bn7.running_mean"])
    assert not torch.equal(weights["conv1a.weight"], before["conv1a.weight"])
    groups = torch.load(folder / "ckpt/seg/last.pth", weights_only=True)["optimizer"]["param_groups"]
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.01, 0.02, 0.1, 0.2])
    assert [len(group["params"]) for group in groups] == [17, 0, 2, 2]              # the last: of b8 and b9
    assert [group["momentum"] for group in groups] == 4 * [0.9]
    assert [group["weight_decay"] for group in groups] == [5e-4, 0, 5e-4, 0]
    rows = rows_of(folder / "log/train_seg.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(np.isfinite(row["loss"]) and 0 < row["accuracy"] <= 1 for row in rows)
    assert rows[1]["lr"] == pytest.approx(0.01 * (1 - 5 / 6) ** 0.9)                # three steps an epoch


def test_the_histogram_of_the_labels(trained):
    lines = (trained / "said").read_text().splitlines()
    layout = VOCLayout(trained / "data/critters")
    maps = [label_map(trained / f"experiment/X/rw/02_24/{i}.png") for i in layout.ids("train")]
    for c, name in enumerate(["background", *layout.classes]):
        row = next(line.split() for line in lines if line.strip().startswith(f"{name} "))
        share = 100 * np.mean([m == c for m in maps])
        assert row[1] == f"{share:.3f}%" and int(row[2]) == sum((m == c).any() for m in maps)


def test_the_files_of_inference(trained):
    folder, layout = trained / "experiment/X", VOCLayout(trained / "data/critters")
    ids = layout.ids("val")
    assert sorted(p.name for p in (folder / "seg").iterdir()) == [
        "made_by.images.json", "made_by.json", *(f"{i}.png" for i in ids)]
    for image_id in ids:
        with Image.open(folder / f"seg/{image_id}.png") as picture:
            assert picture.mode == "P" and picture.size == (64, 64)
            assert bytes(picture.getpalette())[:21] == voc_palette()[:21]
            assert np.array(picture).max() <= 6 and len(np.unique(picture)) > 2
        with Image.open(folder / f"seg_vis/{image_id}.png") as picture:
            assert picture.mode == "RGB" and picture.width >= 240
    assert {"stage", "settings", "inputs"} <= set(json.loads((folder / "seg/made_by.json").read_text()))


def test_the_zip_for_the_test_server(trained):
    folder, ids = trained / "experiment/X", VOCLayout(trained / "data/critters").ids("val")
    with zipfile.ZipFile(folder / "results.zip") as archive:
        assert archive.testzip() is None and sorted(archive.namelist()) == sorted(f"{SERVER}/{i}.png" for i in ids)
        for image_id in ids:
            content = (folder / f"seg/{image_id}.png").read_bytes()
            assert archive.read(f"{SERVER}/{image_id}.png") == content
            assert (folder / SERVER / f"{image_id}.png").read_bytes() == content


def test_evaluation(seg):
    call("evaluation", *DEMO, "--task", "png", "--dict_dir", "seg", "--list", "val")
    layout = VOCLayout("data/critters")
    pairs = [(label_map(f"experiment/X/seg/{i}.png"), layout.ground_truth(i)) for i in layout.ids("val")]
    found = json.loads((seg / "experiment/X/eval/png_seg_val.json").read_text())
    assert found["images"] == 6 and found["miou"] == pytest.approx(slow_miou(pairs, 6))


def test_it_learns_its_labels(seg):
    """From images in which the colour is the class, it learns that, and tells the classes of others."""
    data, truth = own_data(seg), {}
    (data / "colours").mkdir()
    layout = VOCLayout(data)
    for image_id in layout.ids("train") + layout.ids("val"):
        truth[image_id] = np.random.default_rng(len(truth)).integers(0, 3, (2, 2), np.uint8).repeat(32, 0).repeat(32, 1)
        picture = Image.fromarray(truth[image_id])
        picture.putpalette(voc_palette())
        picture.save(data / f"colours/{image_id}.png")
        picture.convert("RGB").save(data / f"JPEGImages/{image_id}.png")
    call("train_seg", *SEG, "--label_dir", data / "colours", "--name", "Y", "--init", "random", "--norm", "train",
         "--max_epochs", 12, "--crop", 64, "--scale", 1, 1, "--lr", 0.02)
    rows = rows_of(seg / "experiment/Y/log/train_seg.jsonl")
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"] and rows[-1]["accuracy"] > 0.75
    call("infer_seg", *INFER, "--name", "Y")
    right = [np.mean(label_map(f"experiment/Y/seg/{i}.png") == truth[i]) for i in layout.ids("val")]
    assert np.mean(right) > 0.75


# ---- second runs ----

def test_overwrite_deletes_no_maps_before_the_weights_are_read(seg):
    cut(seg / "experiment/X/ckpt/seg/001.pth")
    assert_says(refusal("infer_seg", *DEMO, "--scales", 0.5, "--overwrite"), "seg/001.pth", "damaged")


def test_nothing_is_done_twice(seg):
    before = files("experiment")
    assert "complete, 2 epochs; nothing to do" in call("train_seg", *SEG)
    assert "6 of 6 images are finished" in call("infer_seg", *INFER, "--vis")
    assert files("experiment") == before
    for name in ("seg/val_0001.png", "seg_vis/val_0002.png"):
        (seg / "experiment/X" / name).unlink()
    assert "5 of 6 images are finished" in call("infer_seg", *INFER, "--vis")
    after = files("experiment")
    assert {k: v[1] for k, v in after.items()} == {k: v[1] for k, v in before.items()}
    assert {name for name in after if after[name][0] != before[name][0]} == {"X/seg/val_0001.png",
                                                                            "X/seg_vis/val_0002.png"}


@pytest.mark.parametrize("after", [2, 4])
def test_stopped_and_started_it_ends_as_if_nothing_had_been(seg, monkeypatch, after):
    assert_stops_change_nothing("train_seg", (*SEG, *ELSEWHERE), seg / "experiment", "seg", after, monkeypatch)


def test_inference_stopped_and_started(seg, monkeypatch):
    asked = iter([False, False, True])
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(interrupt, "asked", lambda: next(asked))
        call("infer_seg", *INFER, "--seg_dir", "again")
    folder = seg / "experiment/X"
    assert len(list((folder / "again").glob("*.png"))) == 3
    assert "3 of 6 images are finished" in call("infer_seg", *INFER, "--seg_dir", "again")
    for path in (folder / "seg").glob("*.png"):
        assert (folder / "again" / path.name).read_bytes() == path.read_bytes()


def test_shards_and_single_pictures(seg):
    folder = seg / "experiment/X"
    for shard, count in (("1/2", 3), ("2/2", 6)):
        call("infer_seg", *INFER, "--seg_dir", "parts", "--shard", shard)
        assert len(list((folder / "parts").glob("*.png"))) == count
        if count == 3:
            assert_says(refusal("infer_seg", *INFER, "--seg_dir", "parts", "--shard", shard, "--zip"),
                        "--zip: 3 of the 6", "no label map", "the other shards")
    call("infer_seg", *INFER, "--seg_dir", "one", "--only", "val_0004")
    assert [p.name for p in (folder / "one").glob("*.png")] == ["val_0004.png"]
    for path in (folder / "seg").glob("*.png"):
        assert (folder / "parts" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_two_processes_do_what_one_does(seg, zygote):
    line = (*SEG, *ELSEWHERE, "--device", "cpu")
    in_two(zygote, seg, "train_seg", *line, "--name", "two")
    call("train_seg", *line, "--name", "one")
    one, two = (torch.load(seg / f"experiment/{name}/ckpt/seg/001.pth", weights_only=True) for name in ("one", "two"))
    for name in one:
        assert_close(two[name], one[name], by=2e-3)
    in_two(zygote, seg, "infer_seg", *INFER, "--device", "cpu", "--seg_dir", "seg_two")
    for path in (seg / "experiment/X/seg").glob("*.png"):
        assert (seg / "experiment/X/seg_two" / path.name).read_bytes() == path.read_bytes()


# ---- choices ----

def test_the_crf_and_other_scales_are_other_maps(seg):
    message = refusal("infer_seg", *DEMO, "--scales", 1, 1.5)
    assert_says(message, "seg was made differently", "scales: then [1.0], now [1.0, 1.5]", "--overwrite")
    pytest.importorskip("pydensecrf")
    assert_says(refusal("infer_seg", *INFER, "--crf"), "seg was made differently", "crf")
    call("infer_seg", *INFER, "--crf", "--crf_iterations", 2, "--seg_dir", "seg_crf")
    made = json.loads((seg / "experiment/X/seg_crf/made_by.json").read_text())["settings"]["crf"]
    assert made == {"iterations": 2, "sxy": 32, "srgb": 13, "compat": 10}
    pairs = [(label_map(p), label_map(seg / f"experiment/X/seg/{p.name}"))
             for p in (seg / "experiment/X/seg_crf").glob("*.png")]
    assert len(pairs) == 6 and any((a != b).any() for a, b in pairs)


@pytest.mark.parametrize("words", [(), ("--crf", "--crf_iterations", 2)])
def test_the_maps_are_those_of_all_scales_without_dropout(seg, words):
    """Beside the same by hand: the network in eval mode, its views averaged, the CRF of a segmentation network."""
    if words:
        pytest.importorskip("pydensecrf")
    path = seg / "experiment/X/ckpt/seg/network.json"
    stored, layout = json.loads(path.read_text()), VOCLayout("data/critters")
    stored["backbone"]["dropout"] = [0.9, 0.9]
    path.write_text(json.dumps(stored))
    call("infer_seg", *DEMO, "--scales", 0.5, 1.25, *words, "--seg_dir", "other", "--only", "val_0003")
    network = build(path).eval()
    load_weights(network, seg / "experiment/X/ckpt/seg/001.pth")
    image = read_image(layout.image_path("val_0003"))
    scores = multi_scale_scores(network, views(image, (0.5, 1.25)), (64, 64)).numpy()
    plain = scores.argmax(0)
    if words:
        scores = crf.dense_crf(image, scores, 2, crf.DEEPLAB_BILATERAL)
    found = label_map(seg / "experiment/X/other/val_0003.png")
    assert (found == scores.argmax(0)).mean() > 0.999
    assert (found != label_map(seg / "experiment/X/seg/val_0003.png")).any() and bool(words) == (found != plain).any()


def test_the_flags_of_training_reach_their_places(seg, monkeypatch):
    seen = {}
    monkeypatch.setattr(engine, "run_training", lambda objective, network, groups, loader, run: seen.update(
        loader.args[0].augment.keywords, dropout=[m.p for m in network.modules() if isinstance(m, nn.Dropout2d)]))
    call("train_seg", *SEG, "--jitter", 0.1, 0.2, 0.3, 0.05, "--crop", 80, "--scale", 0.6, 1.1, "--dropout", 0.6, 0.7)
    assert seen == {"crop_size": 80, "scale": (0.6, 1.1), "jitter_amounts": (0.1, 0.2, 0.3, 0.05),
                    "dropout": [0.6, 0.6]}              # no b7


def test_labels_that_have_changed_are_other_labels(seg):
    path = seg / "experiment/X/rw/02_24/train_0003.png"
    labels = label_map(path)
    labels[:4] = 255
    save_label_map(path, labels, voc_palette())
    assert_says(refusal("train_seg", *SEG), "last.pth ", ": labels changed", "--overwrite",
                "--init X/seg", "--label_dir experiment/X/rw/02_24", "--name X_2")


@pytest.mark.slow
def test_torchvisions_network(seg):
    """From random, at a small crop: it trains, resumes, and tells its classes."""
    line = (*SEG, *ELSEWHERE, "--name", "V", "--network", "deeplabv3", "--backbone", "resnet18", "--init", "random",
            "--norm", "train", "--crop", 32, "--max_epochs", 1)
    call("train_seg", *line)
    assert "nothing to do" in call("train_seg", *line)
    call("infer_seg", *INFER, "--name", "V", "--only", "val_0000")
    assert (seg / "experiment/V/seg/val_0000.png").exists()
    assert "classifier.4.weight" in torch.load(seg / "experiment/V/ckpt/seg/000.pth", weights_only=True)
    assert_says(refusal("train_seg", *line, "--accumulate", 4), "one image alone", "--batch_size", "--accumulate")


# ---- any images ----

@pytest.fixture
def holidays(seg):
    """Write images of all sorts."""
    folder, rng = seg / "my holidays", np.random.default_rng(0)
    folder.mkdir()
    picture = Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.JPG", exif=exif)
    picture.convert("L").save(folder / "gray & old.png")
    picture.convert("RGBA").save(folder / "ü.png")
    picture.resize((1, 1)).save(folder / "dot.png")
    picture.resize((700, 400)).save(folder / "large.jpeg")
    return folder


def test_any_pictures(seg, holidays):
    shutil.rmtree(seg / "data")                 # no dataset is needed
    text = call("infer_seg", *INFER, "--images", "my holidays", "--max_side", 128)
    assert "0 of 5 images are finished" in text
    folder = seg / "experiment/X/seg_my holidays"
    sizes = {p.name: label_map(p).shape for p in folder.glob("*.png")}
    assert sizes == {"turned.png": (120, 90), "gray & old.png": (90, 120), "ü.png": (90, 120), "dot.png": (1, 1),
                     "large.png": (400, 700)}
    assert sorted(p.name for p in (seg / "experiment/X/seg_my holidays_vis").glob("*.png")) == sorted(sizes)
    before = files("experiment")
    assert "5 of 5 images are finished" in call("infer_seg", *INFER, "--images", holidays, "--max_side", 128)
    assert files("experiment") == before
    # An image that has changed is looked at again; so is a new one, and nothing else.
    Image.new("RGB", (50, 40)).save(holidays / "turned.JPG")
    Image.new("RGB", (20, 30)).save(holidays / "new.bmp")
    assert "4 of 6 images are finished" in call("infer_seg", *INFER, "--images", holidays, "--max_side", 128)
    assert label_map(folder / "turned.png").shape == (40, 50) and label_map(folder / "new.png").shape == (30, 20)
    changed = {name for name, value in files("experiment").items() if value != before.get(name)}
    assert changed == {f"X/seg_my holidays{vis}/{name}.png" for vis in ("", "_vis") for name in ("turned", "new")} | {
        "X/seg_my holidays_areas.json"}


@pytest.mark.parametrize("crf", [False, True])
def test_a_broken_picture_among_them(seg, holidays, crf):
    if crf:
        pytest.importorskip("pydensecrf")
    cut(holidays / "large.jpeg")
    line = (*INFER, "--images", holidays, "--max_side", 64, *(["--crf", "--crf_iterations", 1] if crf else []))
    assert_says(refusal("infer_seg", *line), "1 of 5 images could not be read", "large.jpeg")
    folder = seg / "experiment/X/seg_my holidays"
    assert sorted(p.stem for p in folder.glob("*.png")) == ["dot", "gray & old", "turned", "ü"]
    Image.new("RGB", (70, 40)).save(holidays / "large.jpeg")
    assert "4 of 5 images are finished" in call("infer_seg", *line)


def test_folders_that_are_none(seg):
    assert_says(refusal("infer_seg", *INFER, "--images", "nowhere"), "no folder or file nowhere", "--images")
    (seg / "empty").mkdir()
    (seg / "empty/notes.txt").write_text("no picture")
    assert_says(refusal("infer_seg", *INFER, "--images", "empty"), "empty (--images) holds no image", ".jpg")
    for flag in (("--zip",), ("--only", "a")):
        assert_says(refusal("infer_seg", *INFER, "--images", "data/critters/JPEGImages", *flag), flag[0], "of a list")


# ---- bad input ----

def test_no_labels(seg):
    assert_says(refusal("train_seg", *SEG, "--label_dir", "rw/04_24"), "neither experiment/X/rw/04_24 nor rw/04_24",
                "python infer_aff.py --name X --low 4 --high 24 --infer_list train_aug")
    for number in range(7):
        (seg / f"experiment/X/rw/02_24/train_{number:04d}.png").unlink()
    assert_says(refusal("train_seg", *SEG), "7 of the 12 images", "No stage wrote that folder")
    write_json(seg / "experiment/X/rw/02_24/made_by.json", {"stage": "infer_aff", "settings": {}, "inputs": {}})
    assert_says(refusal("train_seg", *SEG), "7 of the 12", "no label map in experiment/X/rw",
                "train_0000, train_0001, train_0002, train_0003, train_0004 ...",
                "python infer_aff.py --name X --low 2 --high 24")
    for name in ("mine", "rw/mine"):        # --rw_dir's: no alphas to name
        assert_says(refusal("train_seg", *SEG, "--label_dir", name), f"neither experiment/X/{name} nor {name}",
                    "the stage that writes this folder")
    assert "could not convert" not in refusal("train_seg", *SEG, "--init", "X/aff_mine")


def spoil(seg, change, image_id="train_0004"):
    path = seg / f"experiment/X/rw/02_24/{image_id}.png"
    change(label_map(path)).save(path)


def test_labels_of_other_ids(seg):
    spoil(seg, lambda labels: Image.fromarray(np.where(labels > 0, 7, labels).astype(np.uint8)))
    assert_says(refusal("train_seg", *SEG), "rw/02_24/train_0004.png", "class id 7", "0..6 and 255")


def test_labels_of_another_size(seg):
    for image_id in ("train_0004", "train_0006"):
        spoil(seg, lambda labels: Image.fromarray(labels[:32]), image_id)
    assert_says(refusal("train_seg", *SEG), "2 of 12 label maps in experiment/X/rw/02_24",
                "train_0004: (32, 64) and (64, 64)", "train_0006")


def test_labels_in_colours(seg):
    spoil(seg, lambda labels: Image.fromarray(labels).convert("RGB"))
    assert_says(refusal("train_seg", *SEG), "rw/02_24/train_0004.png", "mode RGB", "--mask_colours")


@pytest.mark.parametrize("value, words", [(0, "one class alone, background"), (3, "one class alone, ram"),
                                          (255, "no class")])
def test_labels_of_one_class(seg, value, words):
    for path in (seg / "experiment/X/rw/02_24").glob("*.png"):
        labels = np.full((64, 64), value, np.uint8)
        labels[0] = 255
        Image.fromarray(labels).save(path)
    assert_says(refusal("train_seg", *SEG), words, "nothing can be told apart", "rw/02_24")


def test_a_class_without_a_pixel_is_named(seg):
    for path in (seg / "experiment/X/rw/02_24").glob("*.png"):
        labels = label_map(path)
        labels[0, 1:7] = np.arange(1, 7)
        Image.fromarray(np.where(labels == 2, 0, labels).astype(np.uint8)).save(path)
    assert "no pixel is labelled toucan: DeepLab" in call("train_seg", *SEG, "--overwrite", "--max_epochs", 1)


def test_a_broken_label_map(seg):
    cut(seg / "experiment/X/rw/02_24/train_0004.png")
    for stage, words in (("train_seg", SEG), ("evaluation", (*DEMO, "--task", "png", "--dict_dir", "rw/02_24"))):
        message = refusal(stage, *words)
        assert_says(message, "rw/02_24/train_0004.png is truncated", "delete it and run that stage")
        assert message.count("train_0004.png is truncated") == message.count("experiment/X/rw") == 1


def test_stale_labels(seg):
    """Made of CAMs that are no longer those on disk."""
    folder = seg / "experiment/X/rw/02_24"
    record = {"stage": "infer_aff", "settings": {}, "inputs": {"dict": "0" * 64}}
    (folder / "made_by.json").write_text(json.dumps(record))
    again = "python infer_aff.py --name X --low 2 --high 24 --infer_list train"
    assert_says(refusal("train_seg", *SEG), "rw/02_24 is stale", "dict has changed", again)
    score = (*DEMO, "--task", "png", "--dict_dir")
    assert_says(refusal("evaluation", *score, "rw/02_24"), "rw/02_24 is stale", again)
    record = {"stage": "infer_seg", "settings": {"scales": [1.0]}, "inputs": {"ckpt/seg/001.pth": "0" * 64}}
    (seg / "experiment/X/seg").mkdir(exist_ok=True)
    for path in folder.glob("*.png"):
        shutil.copy(path, seg / "experiment/X/seg")
    (seg / "experiment/X/seg/made_by.json").write_text(json.dumps(record))
    assert_says(refusal("evaluation", *score, "seg"), "seg is stale", "001.pth has changed",
                "python infer_seg.py --name X --infer_list train --recipe demo --scales 1.0")


def test_no_weights(seg):
    assert_says(refusal("infer_seg", *INFER, "--name", "Y"), "experiment/Y/ckpt/seg holds no weights",
                "python train_seg.py --name Y")
    assert_says(refusal("infer_seg", *INFER, "--load_epo", 7), "ckpt/seg has no epoch 7")
    assert_says(refusal("evaluation", *DEMO, "--task", "png", "--dict_dir", "seg"), "12 of the 12 images of train",
                "python infer_seg.py --name X --infer_list train")
    assert_says(refusal("train_seg", *SEG, "--init", "imagenet"), "pretrained/resnet_38d.params is not there",
                "--init random")
    (seg / "experiment/X/ckpt/seg/network.json").unlink()
    assert_says(refusal("infer_seg", *INFER), "ckpt/seg/network.json", "python train_seg.py --name X")


def test_other_classes(seg):
    data = own_data(seg)
    names = (data / "classes.txt").read_text().replace("owl", "crow")
    (data / "classes.txt").write_text(names)
    change_labels(data, lambda table: table.update(
        {k: ["crow" if name == "owl" else name for name in names] for k, names in table.items()}))
    assert_says(refusal("infer_seg", *INFER), "was trained on other classes", "owl", "crow", "--data_root")


@pytest.mark.parametrize("stage, words, says", [
    ("train_seg", ("--network", "unet"), ("--network", "deeplabv3")),
    ("train_seg", ("--scale", 1.5, 0.5), ("--scale", "1.5 0.5")),
    ("train_seg", ("--scale", 0, 1), ("--scale", "above 0")),
    ("train_seg", ("--train_list", "nope"), ("no list nope",)),
    ("train_seg", ("--init", "typo.pth"), ("no weights 'typo.pth'",)),
    ("train_seg", ("--data_root", "nowhere"), ("no dataset at nowhere",)),
    ("infer_seg", ("--data_root", "nowhere"), ("no dataset at nowhere",)),
    ("infer_seg", ("--only", "train_0000"), ("--only train_0000", "not in the list val")),
    ("infer_seg", ("--scales", 0), ("--scales", "at least 0.1")),
])
def test_what_cannot_be_meant(seg, stage, words, says):
    assert_says(refusal(stage, *(SEG if stage == "train_seg" else INFER), *words), *says)


# ---- the recipe voc ----

@pytest.mark.slow
def test_the_recipe_voc(voc_place):
    """Nothing changed but the width, the crop, the epochs, and where weights come from; the labels are ground truth.
    """
    assert parse(config.TrainSeg, ["--name", "X"]).crop == 448
    call("train_seg", "--name", "X", "--width", 0.0625, "--crop", 112, "--max_epochs", 2, "--init", "random",
         "--num_workers", 0, "--label_dir", "data/VOC2012/SegmentationClass", "--precision", "fp32")
    stored = json.loads((voc_place / "experiment/X/config/train_seg.json").read_text())["settings"]
    assert stored["classes"] == list(VOC_CLASSES) and stored["recipe"] == "voc"
    assert (stored["scale"], stored["batch_size"], stored["momentum"], stored["lr"]) == ([0.5, 1.5], 10, 0.9, 0.001)
    call("infer_seg", "--name", "X", "--num_workers", 0, "--zip")
    call("evaluation", "--name", "X", "--task", "png", "--dict_dir", "seg", "--list", "val")
    found = json.loads((voc_place / "experiment/X/eval/png_seg_val.json").read_text())
    assert found["images"] == 2 and set(found["per_class"]) == {"background", *VOC_CLASSES}
