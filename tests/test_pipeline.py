"""Every stage's main, one after the other, on a dozen critters and on a small tree in VOC's own layout."""
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import config

import numpy as np
import pytest
import torch
from PIL import Image

import reproduce
from data.layout import VOC_CLASSES, VOCLayout
from models import MODELS
from networks import build
from networks.cam import CAMNet
from networks.pretrained import official_state
from tests.conftest import ROOT, write_params
from tests.stages import (
    ALPHAS,
    DEMO,
    EPOCHS,
    call,
    commands_of,
    files,
    halve,
    parse,
    refusal,
    rows_of,
    slow_miou,
    small,
)
from tools import flags
from tools.maps import read_cam, read_crf

EVAL_KEYS = {"miou", "threshold", "fixed_threshold", "fixed_miou", "per_class", "curve", "images", "list"}
WALK = "rw/" + "_".join(f"{flags.defaults(config.InferAff, 'demo')[side][0]:02g}" for side in ("low", "high"))
ROW_KEYS = {"variant", "stage", "split", "miou", "threshold", "fixed_miou", "paper", "paper_source", "seconds",
            "command", "backbone", "init"}


# ---- what lies on disk ----

def test_the_files_of_training(finished):
    folder = finished / "experiment/X"
    for model, epochs in EPOCHS.items():
        ckpt = folder / f"ckpt/{model}"
        assert sorted(p.name for p in ckpt.iterdir()) == [*(f"{e:03d}.pth" for e in range(epochs)), "last.pth",
                                                        "network.json"]
        weights = torch.load(ckpt / f"{epochs - 1:03d}.pth", weights_only=True)
        assert {"conv1a.weight", "b2.bn_branch2a.running_mean", "b5.conv_branch1.weight", "b6.conv_branch2b2.weight",
                "bn7.bias", "fc8.weight"} <= set(weights)
        assert not [name for name in weights if "backbone" in name or "module" in name]
        assert weights["fc8.weight"].shape == (6, 256, 1, 1)

        stored = json.loads((folder / f"config/train_{model}.json").read_text())
        assert {"settings", "versions", "revision", "command", "when"} <= set(stored)
        assert stored["settings"]["max_epochs"] == epochs and stored["settings"]["model"] == model
        assert stored["settings"]["classes"] == VOCLayout(finished / "data/critters").classes

        rows = rows_of(folder / f"log/train_{model}.jsonl")
        assert [row["epoch"] for row in rows] == list(range(epochs))
        assert all(np.isfinite(row["loss"]) and row["seconds"] > 0 and row["lr"] > 0 for row in rows)
    assert {"loss_cls", "loss_cse", "p_target_erased", "p_rest_erased", "miou", "curve"} <= set(rows[1])
    text = (folder / "log.txt").read_text()
    assert "train_model_oc" in text and "train_model_cse" in text and "infer" in text
    with Image.open(folder / "train/000000.png") as figure:
        assert figure.mode == "RGB" and figure.width > 800


def test_the_weights_load_into_a_network_without_the_experiment(finished):
    weights = torch.load(finished / "experiment/X/ckpt/model_cse/001.pth", weights_only=True)
    network = build(finished / "experiment/X/ckpt/model_cse/network.json")
    assert list(official_state(network)) == list(weights)


@pytest.mark.parametrize("suffix", ["", "_model_oc"])
def test_the_files_of_inference(finished, suffix):
    folder, layout = finished / "experiment/X", VOCLayout(finished / "data/critters")
    ids = layout.ids("train")
    for image_id in ids:
        size = layout.ground_truth(image_id).shape
        present = [c + 1 for c in np.flatnonzero(layout.label(image_id))]
        with np.load(folder / f"dict{suffix}/{image_id}.npz") as cam:
            assert cam["classes"].dtype == np.uint8 and cam["classes"].tolist() == present
            assert cam["scores"].dtype == np.float16 and cam["scores"].shape == (len(present), *size)
            assert cam["scores"].min() >= 0 and cam["scores"].max() <= 1
        for alpha in ("02", "24"):
            with np.load(folder / f"crf{suffix}/{alpha}/{image_id}.npz") as crf:
                assert crf["classes"].dtype == np.uint8 and crf["classes"].tolist() == [0, *present]
                assert crf["scores"].shape == (len(present) + 1, *size)
                np.testing.assert_allclose(crf["scores"].astype(np.float32).sum(0), 1, atol=2e-3)
        for c in present:
            assert (folder / f"infer{suffix}/{image_id}_cam_{layout.classes[c - 1]}.png").exists()
    drawn = [p for p in (folder / f"infer{suffix}").iterdir() if p.suffix == ".png"]
    assert len(drawn) == layout.labels(ids).sum()
    for made in (f"dict{suffix}", f"crf{suffix}/02", f"crf{suffix}/24", f"infer{suffix}"):
        assert {"stage", "settings", "inputs"} <= set(json.loads((folder / made / "made_by.json").read_text()))


# ---- numbers ----

def test_evaluation_equals_a_slow_one(place):
    layout = VOCLayout("data/critters")
    ids = layout.ids("train")
    truths, folder = [layout.ground_truth(i) for i in ids], place / "experiment/X"

    call("evaluation", *DEMO, "--task", "cam", "--dict_dir", "dict")
    found = json.loads((folder / "eval/cam_dict_train.json").read_text())
    assert set(found) >= EVAL_KEYS and (folder / "eval/cam_dict_train.png").exists()
    assert found["images"] == 12 and found["list"] == "train"
    assert list(found["per_class"]) == ["background", *layout.classes]
    cams = [read_cam(folder / f"dict/{i}.npz") for i in ids]

    def at(t):
        return [np.array([0, *c])[np.stack([np.full_like(s[0], t), *s]).argmax(0)] for c, s in cams]

    assert [t for t, _ in found["curve"]] == [t / 100 for t in range(10, 40)]
    expected = [slow_miou(list(zip(at(t), truths)), 6) for t, _ in found["curve"]]
    np.testing.assert_allclose([m for _, m in found["curve"]], expected, atol=1e-9)
    assert found["miou"] == pytest.approx(max(expected))
    assert found["threshold"] == found["curve"][int(np.argmax(expected))][0]
    assert found["fixed_threshold"] == 0.2 and found["fixed_miou"] == pytest.approx(expected[10])
    assert np.mean(list(found["per_class"].values())) == pytest.approx(found["miou"])

    crfs = [read_crf(folder / f"crf/02/{i}.npz") for i in ids]
    call("evaluation", *DEMO, "--task", "crf", "--dict_dir", "crf/02")
    found = json.loads((folder / "eval/crf_crf_02_train.json").read_text())
    labels = [c[s.argmax(0)] for c, s in crfs]
    assert set(found) >= EVAL_KEYS and found["miou"] == pytest.approx(slow_miou(list(zip(labels, truths)), 6))
    assert found["threshold"] is None and found["fixed_miou"] is None and found["curve"] == []

    (folder / "rw/02_24").mkdir(parents=True)
    for image_id, label in zip(ids, labels):
        Image.fromarray(label.astype(np.uint8)).save(folder / f"rw/02_24/{image_id}.png")
    call("evaluation", *DEMO, "--task", "png", "--dict_dir", "rw/02_24")
    assert json.loads((folder / "eval/png_rw_02_24_train.json").read_text())["miou"] == found["miou"]


def test_the_ordinary_classifiers_maps_are_not_the_cgnets(finished):
    """Each --model has its own folders; the two networks differ after a few steps."""
    folder, image_id = finished / "experiment/X", VOCLayout(finished / "data/critters").ids("train")[0]
    a, b = (read_cam(folder / f"{name}/{image_id}.npz") for name in ("dict", "dict_model_oc"))
    assert a[0].tolist() == b[0].tolist() and np.abs(a[1] - b[1]).max() > 1e-3


def test_the_loss_falls(place):
    call("train", *DEMO, *small("model_oc"), "--name", "Y")
    rows = rows_of(place / "experiment/Y/log/train_model_oc.jsonl")
    assert min(row["loss"] for row in rows) < 0.8 * rows[0]["loss"]         # the last of an epoch's three steps vary
    assert rows[-1]["lr"] < 0.3 * rows[0]["lr"]


# ---- second runs ----

def test_nothing_is_done_twice(place):
    before = files("experiment")
    for model, epochs in EPOCHS.items():
        assert f"complete, {epochs} epochs; nothing to do" in call("train", *DEMO, *small(model))
        text = call("infer", *DEMO, "--model", model, "--vis", "--dict", "--crf", "--alphas", 2, 24)
        assert "12 of 12 images are finished" in text
    assert files("experiment") == before
    # What is missing, and that alone, is made again.
    for name in ("dict/train_0003.npz", "crf/24/train_0005.npz"):
        (place / "experiment/X" / name).unlink()
    (drawing := next(place.glob("experiment/X/infer/train_0007_*.png"))).unlink()
    text = call("infer", *DEMO, "--vis", "--dict", "--crf", "--alphas", 2, 24)
    assert "11 of 12 images are finished" in text and drawing.exists()
    after = files("experiment")
    assert set(after) == set(before)
    assert {name for name in after if after[name][0] != before[name][0]} == {
        "X/dict/train_0003.npz", "X/crf/24/train_0005.npz", f"X/infer/{drawing.name}"}
    assert {k: v[1] for k, v in after.items()} == {k: v[1] for k, v in before.items()}


def test_one_picture_alone(place):
    call("infer", *DEMO, "--name", "X", "--dict", "--dict_dir", "one", "--only", "train_0004")
    assert sorted(p.name for p in (place / "experiment/X/one").iterdir()) == [
        "made_by.images.json", "made_by.json", "train_0004.npz"]
    whole, one = (read_cam(place / f"experiment/X/{d}/train_0004.npz") for d in ("dict", "one"))
    np.testing.assert_array_equal(whole[1], one[1])


def test_the_authors_format(place):
    """--format npy writes what the authors' programs read, and evaluation finds the same number in it."""
    call("infer", *DEMO, "--dict", "--crf", "--alphas", 2, "--format", "npy", "--dict_dir", "theirs", "--crf_dir",
         "theirs_crf")
    table = np.load("experiment/X/theirs/train_0000.npy", allow_pickle=True).item()
    classes, scores = read_cam("experiment/X/dict/train_0000.npz")
    assert sorted(table) == [c - 1 for c in classes] and table[classes[0] - 1].dtype == np.float32
    np.testing.assert_allclose(table[classes[0] - 1], scores[0], atol=1e-3)
    assert 0 in np.load("experiment/X/theirs_crf/02/train_0000.npy", allow_pickle=True).item()
    mious = []
    for folder in ("theirs", "dict"):
        call("evaluation", *DEMO, "--dict_dir", folder)
        mious.append(json.loads((place / f"experiment/X/eval/cam_{folder}_train.json").read_text())["miou"])
    assert mious[0] == pytest.approx(mious[1], abs=0.1)


# ---- reproduce.py ----

def test_reproduce_dry_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = commands_of(call("reproduce", "--recipe", "demo", "--dry_run"))
    once = ["train.py", "infer.py", "evaluation.py", "train.py", "infer.py", *["evaluation.py"] * 5,
            "train_aff.py", "infer_aff.py", "evaluation.py", "train_seg.py",
            *["infer_seg.py", "evaluation.py"] * 2]
    assert lines[0][:3] == ["-m", "data.prepare", "critters"] and [line[0] for line in lines[1:]] == once
    assert all(line[line.index("--name") + 1] == "demo" for line in lines[1:])
    assert [line[line.index("--dict_dir") + 1] for line in lines if "--dict_dir" in line] == [
        "dict_model_oc", "dict", *(f"crf/{alpha:02d}" for alpha in ALPHAS), WALK, "seg", "seg"]
    lines = commands_of(call("reproduce", "--recipe", "voc", "--dry_run", "--seeds", 2))
    assert [line[0] for line in lines] == 2 * once and "voc_4243" in lines[len(once)]
    # AffinityNet needs the CRF maps of its two alphas on the whole training list.
    maps = lines[4]
    assert " ".join(maps).endswith("--crf --alphas 4 6 10 24 --infer_list train_aug")
    assert "rw/04_24" in lines[12] and "rw/04_24" in lines[13]
    lines = commands_of(call("reproduce", "--recipe", "demo", "--dry_run", "--from", "walk"))
    assert [line[0] for line in lines] == once[11:]
    lines = commands_of(call("reproduce", "--recipe", "demo", "--dry_run", "--data_root", "mine", "--train_list",
                              "train"))
    learning = [line for line in lines if line[0].startswith("train") or line[0] == "infer_aff.py" or "--crf" in line]
    assert len(learning) == 6 and all("_list train" in " ".join(line) for line in learning)
    assert not any("train_aug" in line for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_reproduce(tmp_path, monkeypatch):
    """The commands of the recipe demo, on fewer images and for one epoch; a second run trains and infers nothing."""
    monkeypatch.chdir(tmp_path)
    for model in ("model_oc", "model_cse"):
        monkeypatch.setitem(MODELS[model].RECIPES["demo"], "max_epochs", (1, "a test"))
    for stage in ("Train", "TrainAff", "TrainSeg"):
        monkeypatch.setitem(config.RECIPES["demo"][stage], "batch_size", (4, "a test"))
        monkeypatch.setitem(config.RECIPES["demo"][stage], "max_epochs", (1, "a test"))
    ran = []

    def run(words, message=None):
        ran.append(words)
        if words[0] == "-m" and not os.path.exists("data/critters"):
            importlib.import_module(words[1]).main([*words[2:], "--train", "12", "--val", "4"])
            halve(Path("data/critters"))
        elif words[0] != "-m":
            print(call(words[0].removesuffix(".py"), *words[1:]))
        return 0

    monkeypatch.setattr("reproduce.run_stage", run)
    monkeypatch.setattr("reproduce.print_estimate", lambda *_: None)      # see tests/test_own_photos.py
    words, short = ("--recipe", "demo", "--num_workers", 0), ("--", "--crop", 72, "--resize", 56, 80)
    text = call("reproduce", *words, *short)
    assert ran == commands_of(text)
    results = json.loads((tmp_path / "experiment/demo/results.json").read_text())
    rows = results["rows"]
    own = [json.loads((tmp_path / f"experiment/demo/eval/cam_{folder}_train.json").read_text())["activation"]
           for folder in ("dict_model_oc", "dict")]
    assert [row["stage"] for row in results["activation"]] == ["ordinary classifier, CAM", "CGNet, CAM"]
    assert [row["erased"] for row in results["activation"]] == [[found["erased"]] for found in own]
    assert "Each class's own map at threshold 0.2" in text and f" {own[0]['recall']:.1f} " in text
    assert [row["stage"] for row in rows] == ["ordinary classifier, CAM", "CGNet, CAM",
                                              *(f"CGNet, CAM + CRF, alpha {alpha}" for alpha in ALPHAS),
                                              "CGNet, random walk", "DeepLab", "DeepLab on its own images"]
    assert [row["split"] for row in rows] == ["train"] * (len(rows) - 2) + ["val", "train"]
    assert (tmp_path / "experiment/demo/report.html").stat().st_size > 20_000
    for row in rows:
        assert set(row) == ROW_KEYS and len(row["miou"]) == len(row["seconds"]) == 1
        assert row["paper"] is None and row["variant"] == "demo"
        assert row["backbone"] == "resnet38d, width 0.125, blocks 1 1 1 1 1 0, stride 8"
        assert row["init"] == {"ordinary classifier, CAM": "random"}.get(row["stage"], (
            "demo/model_oc" if row["stage"].startswith("CGNet, CAM") else "demo/model_cse"))
        assert row["command"].startswith("python evaluation.py ")
        folder = row["command"].split("--dict_dir ")[1].split()[0]
        task = row["command"].split("--task ")[1].split()[0]
        result = tmp_path / f"experiment/demo/eval/{task}_{folder.replace('/', '_')}_{row['split']}.json"
        found = json.loads(result.read_text())
        assert row["miou"] == [found["miou"]]
        assert any(line.startswith(row["stage"]) and f"{found['miou']:.1f}" in line for line in text.splitlines())

    made = (".lock/", "log.txt", "log/reproduce.json", "config/", "eval/", "results.json", "report.html")
    before = files("experiment", made)
    text = call("reproduce", *words, *short)
    assert text.count("nothing to do") == 4 and text.count("12 of 12 images are finished") == 4
    assert text.count("4 of 4 images are finished") == 1
    assert files("experiment", made) == before
    again = json.loads((tmp_path / "experiment/demo/results.json").read_text())["rows"]
    for row, earlier in zip(again, rows):       # the time is that of the run which did the work
        assert row["miou"] == earlier["miou"] and row["seconds"] >= earlier["seconds"]

    (tmp_path / "experiment/demo/eval/cam_dict_train.json").unlink()
    text = call("reproduce", *words, "--from", "deeplab", *short)
    assert [words[0] for words in commands_of(text)] == ["train_seg.py", *["infer_seg.py", "evaluation.py"] * 2,
                                                           "report.py"]
    assert "CGNet, CAM: left out, --from deeplab finds no " in text
    rows = json.loads((tmp_path / "experiment/demo/results.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == [row["stage"] for row in again if row["stage"] != "CGNet, CAM"]


def test_the_time_of_a_stage_is_that_of_the_work(tmp_path, monkeypatch):
    """Of a run that failed or was stopped and the one that resumed, the sum; of one that had nothing to do, nothing."""
    monkeypatch.chdir(tmp_path)
    clock, ends = [0.0], {}
    result = tmp_path / "experiment/X/eval/a.json"
    plan = [("classifier", "training", ["train.py"], None), ("classifier", "maps", ["infer.py"], None),
            ("classifier", "CAM", ["evaluation.py"], result)]

    def run(command, message=None):
        result.parent.mkdir(parents=True, exist_ok=True)
        result.touch()
        seconds, end = ends.get(command[0], (1, 0))
        clock[0] += seconds
        if end is SystemExit:
            raise SystemExit
        return end

    def seconds(*words, **how):
        ends.clear()
        ends.update({f"{name}.py": value for name, value in how.items()})
        settings = parse(config.Reproduce, ["--name", "X", *words])
        return [row[-1] for row in reproduce.run_stages(settings, "X", plan)]

    monkeypatch.setattr("reproduce.run_stage", run)
    monkeypatch.setattr(reproduce.time, "monotonic", lambda: clock[0])
    with pytest.raises(SystemExit):
        seconds(train=(1000, SystemExit))
    with pytest.raises(ValueError, match="maps stopped"):
        seconds(train=(500, 0), infer=(30, 1))
    assert seconds(infer=(70, 0)) == seconds() == seconds("--from", "report") == [1000 + 500 + 30 + 70 + 1]


def test_results_are_not_replaced_by_none(tmp_path, monkeypatch):
    """Of two seeds one has not been run: what the first one's run wrote stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("reproduce.run_stage", lambda *words: 0)
    path = tmp_path / "experiment/X/results.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"rows": "of one seed"}')
    assert "left out, --from report finds no" in call("reproduce", "--name", "X", "--from", "report", "--seeds", 2)
    assert path.read_text() == '{"rows": "of one seed"}'


@pytest.mark.slow
def test_reproduce_stops_with_the_stage_that_fails(tmp_path):
    """As a person runs it: the exit code is not 0, the message names the stage and what to do."""
    done = subprocess.run([sys.executable, "reproduce.py", "--recipe", "voc", "--data_root", str(tmp_path / "none"),
                           "--experiment_root", str(tmp_path / "experiment")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "no dataset at" in done.stderr and "ordinary classifier stopped" in done.stderr


# ---- the recipe voc, the faithful path ----

@pytest.mark.slow
def test_the_recipe_voc(voc_place):
    """Every stage on 16 images, nothing changed but the width, the crop, the epochs and where the weights come from.

    The CRF of 4 of them, those that are measured, takes long enough.
    """
    settings = parse(config.Train, ["--name", "X"])
    assert (settings.crop, settings.resize) == (384, (256, 448))
    small = ("--name", "X", "--width", 0.0625, "--max_epochs", 2, "--er_init", "random", "--num_workers", 0,
             "--crop", 96, "--resize", 64, 112)
    call("train", *small, "--model", "model_oc", "--max_epochs", 1)
    text = call("train", *small, "--model", "model_cse", "--cl_init", "X/model_oc")
    assert "from experiment/X/ckpt/model_oc/000.pth" in text
    stored = json.loads((voc_place / "experiment/X/config/train_model_cse.json").read_text())["settings"]
    assert stored["classes"] == list(VOC_CLASSES) and stored["recipe"] == "voc"
    assert (stored["batch_size"], stored["momentum"], stored["norm"]) == (8, 5e-4, "frozen")
    assert stored["inputs"]["er_init"] == "random" and len(stored["inputs"]["cl_init"]) == 64
    rows = rows_of(voc_place / "experiment/X/log/train_model_cse.jsonl")
    assert len(rows) == 2 and all(np.isfinite(row["loss"]) and 0 <= row["miou"] <= 100 for row in rows)
    # Two steps an epoch, four in all; the rate after the last step stays as it was in it.
    assert [row["lr"] for row in rows] == pytest.approx([0.01 * 0.5**0.9, 0.01 * 0.25**0.9])

    call("infer", "--name", "X", "--model", "model_cse", "--vis", "--dict", "--crf", "--alphas", 4, 24,
         "--num_workers", 0)
    assert len(list((voc_place / "experiment/X/crf/04").glob("2007_*.npz"))) == 4
    call("evaluation", "--name", "X", "--task", "cam", "--dict_dir", "dict")
    call("evaluation", "--name", "X", "--task", "crf", "--dict_dir", "crf/04")
    found = json.loads((voc_place / "experiment/X/eval/crf_crf_04_train.json").read_text())
    assert found["images"] == 4 and set(found["per_class"]) == {"background", *VOC_CLASSES}


def pretrained_files(folder):
    """Write the two files that the authors' defaults look for, at width 1/16: MXNet's .params and a .pth."""
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(official_state(CAMNet(20, width=0.0625)), folder / "res38_cls.pth")
    kinds = {"running_mean": "moving_mean", "running_var": "moving_var", "bias": "beta"}
    arrays = {}
    for name, tensor in official_state(CAMNet(20, width=0.0625).backbone).items():
        *layers, kind = name.split(".")
        if kind == "num_batches_tracked":
            continue
        is_bn = "bn" in name
        kind = kinds.get(kind, "gamma" if is_bn else kind)
        unit = layers[0]
        if unit.startswith("b") and unit != "bn7":
            group, _, number = unit[1:].partition("_")
            letter = f"b{number}" if number else "a"
            sort, branch = layers[1].split("_", 1)
            unit = f"{'bn' if sort == 'bn' else 'res'}{group}{letter}_{branch}"
        arrays[f"{'aux' if kind.startswith('moving') else 'arg'}:{unit}_{kind}"] = tensor.numpy()
    arrays["arg:linear1000_weight"] = np.zeros((1000, 512), np.float32)
    arrays["arg:linear1000_bias"] = np.zeros(1000, np.float32)
    write_params(folder / "resnet_38d.params", arrays)


@pytest.mark.slow
def test_the_authors_command_lines(voc_place):
    """Their README's lines, with the width, the crop and the epochs of a test; then the same line once more."""
    pretrained_files(voc_place / "pretrained")
    line = ("--name", "X", "--model", "model_cse", "--width", 0.0625, "--max_epochs", 1, "--num_workers", 1,
            "--crop", 96, "--resize", 64, 112)
    text = call("train", *line)
    assert "pretrained/resnet_38d.params; new: fc8.weight" in text and "pretrained/res38_cls.pth; new: none" in text
    assert "nothing to do" in call("train", *line)
    call("infer", "--name", "X", "--model", "model_cse", "--load_epo", 0, "--vis", "--dict", "--crf", "--alphas", 6, 10,
         24)
    for task, folder in (("cam", "dict"), ("crf", "crf/06"), ("crf", "crf/10"), ("crf", "crf/24")):
        text = call("evaluation", "--name", "X", "--task", task, "--dict_dir", folder)
        assert f"{task} of experiment/X/{folder} on train: 4 images" in text and "mIoU" in text
    assert len(list(voc_place.glob("experiment/X/infer/*_cam_*.png"))) >= 4


def test_missing_weights_are_named_with_their_remedy(voc_place):
    message = refusal("train", "--name", "X", "--model", "model_cse")
    assert "pretrained/resnet_38d.params is not there" in message and "pretrained/README.md" in message
    assert "--er_init random" in message
    message = refusal("train", "--name", "X", "--model", "model_cse", "--er_init", "random", "--width", 0.125)
    assert "pretrained/res38_cls.pth is not there" in message
    assert "python train.py --name X --model model_oc" in message and "--cl_init X/model_oc" in message
    message = refusal("train", "--name", "X", "--er_init", "random", "--width", 0.125, "--cl_init", "X/model_oc")
    assert "python train.py --name X --model model_oc" in message
    assert not os.path.exists("experiment")
