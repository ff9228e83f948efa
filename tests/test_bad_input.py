"""Bad input: each stops its stage with words that name the file and the remedy, and costs nothing already written.
Strange but honest input: it works."""
import importlib
import json
import os
import shutil
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from data.layout import VOCLayout
from networks.cam import CAMNet
from networks.pretrained import official_state
from tests.conftest import write_params
from tests.stages import DEMO, add_to_list, assert_says, call, change_labels, cut, files, own_data, refusal, small
from tools import flags
from tools.maps import read_cam, read_crf

NEW = (*DEMO, *small("model_oc"), "--name", "NEW")
NARROW = (*NEW, "--width", 0.0625, "--max_epochs", 1)


def spoil_jpeg(data, image_id):
    """Put half a JPEG where the image was."""
    png = data / f"JPEGImages/{image_id}.png"
    with Image.open(png) as picture:
        picture.save(png.with_suffix(".jpg"))
    png.unlink()
    cut(png.with_suffix(".jpg"))


# ---- the dataset ----

@pytest.mark.parametrize("stage", ["train", "infer", "evaluation"])
def test_no_dataset(place, stage):
    words = ("--dict",) if stage == "infer" else ()
    assert_says(refusal(stage, *DEMO, *words, "--data_root", "nowhere"), "no dataset at nowhere", "--data_root",
                "python -m data.prepare critters")


def test_a_picture_that_is_not_there(place):
    data = own_data(place)
    change_labels(data, lambda table: table.update(ghost=["fox"]))
    for split in ("train_aug", "train", "val"):
        add_to_list(data, "ghost", split)
    assert_says(refusal("train", *NEW), "1 of the 13 images", "JPEGImages", "ghost", "take them off the list")
    assert_says(refusal("train", *DEMO, *small("model_cse"), "--name", "NEW", "--train_list", "val", "--er_init",
                        "X/model_oc", "--cl_init", "X/model_oc"), "1 of the 7 images", "ghost")
    assert_says(refusal("infer", *DEMO, "--dict", "--dict_dir", "new"), "1 of the 13 images of train", "ghost")


def test_an_image_without_labels(place):
    data = own_data(place)
    change_labels(data, lambda table: table.pop("train_0002"))
    for message in (refusal("train", *NEW), refusal("infer", *DEMO, "--dict", "--dict_dir", "new")):
        assert_says(message, "image without labels: train_0002", "labels.json", "take it off the list")


def test_an_unknown_class(place):
    data = own_data(place)
    change_labels(data, lambda table: table.update(train_0002=["wolf"]))
    assert_says(refusal("train", *NEW), "labels.json", "train_0002", "'wolf'", "classes.txt")


@pytest.mark.parametrize("line, words", [("../evil", ("'../evil'", "is not an ID", "line 13", "fix the line")),
                                         ("a/b", ("'a/b'", "is not an ID")),
                                         (".hidden", ("'.hidden'", "is not an ID")),
                                         ("two words", ("neither an ID alone",)),
                                         ("train_0001", ("more than once", "train_0001"))])
def test_a_bad_line_in_a_list(place, line, words):
    data = own_data(place)
    add_to_list(data, line)
    assert_says(refusal("train", *NEW), "train_aug.txt", *words)


def test_lists(place):
    (place / "none.txt").write_text("\n")
    assert_says(refusal("train", *NEW, "--train_list", "none.txt"), "none.txt lists no image")
    assert_says(refusal("infer", *DEMO, "--dict", "--infer_list", "nope"), "no list nope",
                "splits: train, train_aug, val")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_picture_in_training(place, workers):
    data = own_data(place)
    spoil_jpeg(data, "train_0003")
    message = refusal("train", *NARROW, "--num_workers", workers)
    assert_says(message, "train_0003.jpg is truncated", "off the list")
    assert "\n" not in message


def test_a_truncated_picture_in_inference(place):
    """What was done before it stays, and the same command resumes once it is fixed."""
    data = own_data(place)
    whole = (data / "JPEGImages/train_0003.png").read_bytes()
    spoil_jpeg(data, "train_0003")
    shutil.copy(data / "JPEGImages/train_0003.jpg", place / "kept.jpg")
    os.replace(data / "JPEGImages/train_0003.jpg", data / "JPEGImages/train_0003.png")
    line = (*DEMO, "--name", "X", "--dict", "--dict_dir", "new", "--infer_list", place / "four.txt")
    (place / "four.txt").write_text("train_0000\ntrain_0001\ntrain_0003\ntrain_0004\n")
    assert_says(refusal("infer", *line), "train_0003.png is truncated")
    (data / "JPEGImages/train_0003.png").write_bytes(whole)
    call("infer", *line)
    assert len(list(place.glob("experiment/X/new/*.npz"))) == 4


def test_a_truncated_truth(place):
    data = own_data(place)
    cut(data / "SegmentationClass/train_0005.png")
    assert_says(refusal("evaluation", *DEMO), "SegmentationClass/train_0005.png is truncated")
    # Measuring in training meets it too; the weights of the epoch are there for all that.
    assert_says(refusal("train", *DEMO, *small("model_cse"), "--name", "NEW", "--er_init", "X/model_oc", "--cl_init",
                        "X/model_oc", "--val_every", 1), "SegmentationClass/train_0005.png is truncated")


def test_truth_of_other_classes(place):
    data = own_data(place)
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(data / "SegmentationClass/train_0005.png")
    assert_says(refusal("evaluation", *DEMO), "train_0005.png", "class id 9", "0..6")
    (data / "SegmentationClass/train_0005.png").unlink()
    assert_says(refusal("evaluation", *DEMO), "1 of the 12", "no ground truth", "train_0005",
                "--gt_dir")


def test_other_classes_than_in_training(place):
    """The names, not only the number, must be those of the training."""
    data = own_data(place)
    names = (data / "classes.txt").read_text().split()
    (data / "classes.txt").write_text("\n".join([names[1], names[0], *names[2:]]))
    assert_says(refusal("infer", *DEMO, "--dict", "--dict_dir", "new"),
                "ckpt/model_cse/network.json", "was trained on other classes", "--data_root")
    assert_says(refusal("train", *DEMO, *small("model_oc")), "other settings", "classes: then ['fox'", "--overwrite")
    assert_says(refusal("train", *DEMO, *small("model_cse"), "--name", "NEW", "--cl_init", "X/model_oc", "--er_init",
                        "random"), "ckpt/model_oc/network.json", "was trained on other classes")


# ---- weights ----

class Program:
    def __reduce__(self):
        return os.mkdir, ("the_program_ran",)


def network(**other):
    shape = {"width": 0.125, "blocks": (1, 1, 1, 1, 1, 0), "dilation": (1, 1, 1)} | other
    return official_state(CAMNet(shape.pop("num_classes", 6), **shape))


def spoiled(kind, path):
    """Write a checkpoint with something wrong; returns what its message must say."""
    if kind == "cut":
        torch.save(network(), path)
        cut(path)
        return ("cut short",)
    if kind == "no checkpoint":
        path.write_bytes(b"<html>404</html>")
        return ("web page, not weights",)
    if kind == "width":
        torch.save(network(width=0.0625), path)
        return "conv1a.weight is of shape (4, 3, 3, 3)", "needs (8, 3, 3, 3)", "--width"
    if kind == "classes":
        torch.save(network(num_classes=5), path)
        return "fc8.weight is of shape (5,", "another number of classes"
    if kind == "nan":
        state = network()
        state["fc8.weight"][0] = float("nan")
        torch.save(state, path)
        return "fc8.weight has values that are not finite", "train it again"
    torch.save(Program(), path)
    return "holds a program", "not opened"


KINDS = ["cut", "no checkpoint", "width", "classes", "nan", "program"]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_weights(place, kind):
    words = spoiled(kind, place / "bad.pth")
    shutil.copy(place / "bad.pth", "experiment/X/ckpt/model_oc/077.pth")
    infer = ("infer", *DEMO, "--model", "model_oc", "--dict", "--dict_dir", "new", "--only", "train_0000")
    assert_says(refusal(*infer), "model_oc/077.pth", *words)
    call(*infer, "--load_epo", 9)       # nothing was written, so nothing is stale
    if kind != "classes":       # another head: --er_init starts its own
        assert_says(refusal("train", *NEW, "--er_init", "bad.pth"), "bad.pth", *words)
    if kind != "width":         # a classifier may have another one: the tensors tell
        assert_says(refusal("train", *NEW, "--model", "model_cse", "--er_init", "random", "--cl_init", "bad.pth"),
                    "bad.pth", *(["5 classes", "has 6"] if kind == "classes" else words))
    assert not (place / "the_program_ran").exists()


def test_weights_of_another_head_start_a_network(place):
    spoiled("classes", place / "five.pth")
    assert "new: fc8.weight" in call("train", *NEW, "--max_epochs", 1, "--er_init", "five.pth")


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("classes", "width")] + ["weights"])
def test_a_bad_last_pth(place, kind):
    """Whatever is wrong with last.pth, it is named, and the epochs' weights stay."""
    last = place / "experiment/X/ckpt/model_oc/last.pth"
    if kind == "weights":
        shutil.copy(last.with_name("009.pth"), last)
    else:
        spoiled(kind, last)
    message = refusal("train", *DEMO, *small("model_oc"))
    assert_says(message, "ckpt/model_oc/last.pth", "--overwrite")
    assert not (place / "the_program_ran").exists()


def test_a_cut_params_file(place):
    write_params(place / "imagenet.params", {"arg:conv1a_weight": np.zeros((8, 3, 3, 3), np.float32)})
    assert_says(refusal("train", *NEW, "--er_init", "imagenet.params"), "imagenet.params", "missing")
    cut(place / "imagenet.params")
    assert_says(refusal("train", *NEW, "--er_init", "imagenet.params"), "imagenet.params", "no complete .params file",
                "fetch it again")


def test_weights_that_are_not_there(place):
    infer = ("infer", *DEMO, "--dict")
    assert_says(refusal(*infer, "--load_epo", 9), "ckpt/model_cse has no epoch 9", "000 to 001")
    assert_says(refusal(*infer, "--load_epo", "nine"), "ckpt/model_cse has no epoch nine")
    assert_says(refusal(*infer, "--name", "Y"), "experiment/Y/ckpt/model_cse holds no weights",
                "python train.py --name Y --model model_cse")
    assert_says(refusal("train", *NEW, "--er_init", "typo.pth"), "no weights 'typo.pth'", "EXPERIMENT/MODEL")
    assert_says(refusal("train", *NEW, "--er_init", "X/model_oc/044"), "has no epoch 044")


# ---- flags ----

def test_other_settings_in_the_same_folder(place):
    line = (*DEMO, *small("model_oc"), "--lr", 0.05)
    assert_says(refusal("train", *line), "last.pth ", "lr: then 0.1, now 0.05",
                "--overwrite", "--name")
    call("train", *line, "--max_epochs", 1, "--overwrite")
    assert sorted(p.name for p in place.glob("experiment/X/ckpt/model_oc/*")) == ["000.pth", "last.pth",
                                                                                "network.json"]
    assert len((place / "experiment/X/log/train_model_oc.jsonl").read_text().splitlines()) == 1


def test_nothing_is_asked_for(place):
    assert_says(refusal("infer", *DEMO), "nothing is asked for", "--dict", "--crf", "--vis")
    assert_says(refusal("infer", *DEMO, "--dict", "--only", "val_0000"), "--only val_0000", "not in the list train")


def test_no_gpu(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for stage, words in (("train", ()), ("infer", ("--dict",))):
        assert_says(refusal(stage, *DEMO, *words, "--device", "cuda"), "--device cuda", "no GPU", "--device cpu")


@pytest.mark.parametrize("stage, words, says_what", [
    ("train", ("--precision", "fp16"), ("--precision", "'fp16'", "fp32", "bf16")),
    ("train", ("--recipe", "imagenet"), ("--recipe", "'imagenet'", "demo")),
    ("train", ("--lr", "nan"), ("--lr", "finite number")),
    ("train", ("--lr", "-1"), ("--lr", "at least 0")),
    ("train", ("--batch_size", "0"), ("--batch_size", "at least 1")),
    ("train", ("--resize", "448", "256"), ("--resize", "448 256")),
    ("train", ("--lr_new", "5"), ("--lr_new", "1", "10")),
    ("train", ("--name", "../X"), ("--name", "'../X'")),
    ("train", ("--learning_rate", "1"), ("unrecognized", "--learning_rate")),
    ("infer", ("--dict", "--scales", "0"), ("--scales",)),
    ("infer", ("--dict", "--scales", "-1"), ("--scales",)),
    ("infer", ("--crf", "--alphas", "-4"), ("--alphas", "at least 0")),
    ("evaluation", ("--thresholds", "0.4", "0.1", "0.01"), ("--thresholds", "LO <= HI")),
    ("evaluation", ("--thresholds", "0.1", "0.4", "0"), ("--thresholds", "STEP at least")),
    ("evaluation", ("--thresholds", "0", "1", "1e-4"), ("--thresholds", "STEP at least")),
    ("evaluation", ("--thresholds", "0.1", "nan", "0.01"), ("--thresholds", "finite number")),
    ("evaluation", ("--thresholds", "0", "1"), ("--thresholds", "expected 3")),
    ("evaluation", ("--threshold", "inf"), ("--threshold",)),
])
def test_flags_that_cannot_be_meant(place, stage, words, says_what):
    assert_says(refusal(stage, *DEMO, *words), *says_what)


def test_thresholds_stay_in_their_range(place):
    call("evaluation", *DEMO, "--thresholds", 0.1, 0.39, 0.1)
    curve = json.loads((place / "experiment/X/eval/cam_dict_train.json").read_text())["curve"]
    assert [t for t, _ in curve] == [0.1, 0.2, 0.3]


# ---- stale folders, and predictions that do not fit ----

def test_cams_of_another_epoch(place):
    line = (*DEMO, "--dict", "--load_epo", 0)
    message = refusal("infer", *line)
    assert_says(message, "experiment/X/dict was made differently", "ckpt/model_cse/000.pth", "ckpt/model_cse/001.pth",
                "--overwrite", "another folder")
    assert_says(refusal("infer", *DEMO, "--dict", "--precision", "bf16"), "precision: then fp32, now bf16")
    before = read_cam("experiment/X/dict/train_0001.npz")[1]
    call("infer", *line, "--overwrite")
    assert np.abs(read_cam("experiment/X/dict/train_0001.npz")[1] - before).max() > 0

    # The CRF maps are now older than their CAMs.
    assert_says(refusal("infer", *DEMO, "--crf", "--alphas", 2, "--load_epo", 0), "crf/02 was made differently",
                "dict: then")
    assert_says(refusal("evaluation", *DEMO, "--task", "crf", "--dict_dir", "crf/02"), "crf/02 is stale",
                "dict has changed", "--overwrite")
    call("evaluation", *DEMO, "--task", "cam")
    call("infer", *DEMO, "--crf", "--alphas", 2, "--load_epo", 0, "--overwrite")
    call("evaluation", *DEMO, "--task", "crf", "--dict_dir", "crf/02")


def test_cams_of_weights_that_were_trained_again(place):
    shutil.copy("experiment/X/ckpt/model_cse/000.pth", "experiment/X/ckpt/model_cse/001.pth")
    assert_says(refusal("evaluation", *DEMO), "dict is stale", "ckpt/model_cse/001.pth has changed", "--overwrite")
    assert_says(refusal("evaluation", *DEMO, "--task", "crf", "--dict_dir", "crf/24"), "stale", "001.pth has changed")
    assert_says(refusal("infer", *DEMO, "--dict"), "dict was made differently", "ckpt/model_cse/001.pth: then")


def test_labels_that_were_changed(place):
    data = own_data(place)
    change_labels(data, lambda table: table.update(train_0001=["owl"]))
    assert_says(refusal("train", *DEMO, *small("model_oc")), "last.pth was trained on other", "label of 1 image",
                "train_0001", "labels.json", "--overwrite", "--er_init X/model_oc")
    assert_says(refusal("infer", *DEMO, "--dict"), "dict is stale", "train_0001", "labels.json", "--overwrite")
    assert_says(refusal("evaluation", *DEMO), "dict is stale", "train_0001", "labels.json", "--overwrite",
                "python infer.py --name X --model model_cse --dict --infer_list train")


def test_cams_are_no_crf_maps(place):
    assert_says(refusal("evaluation", *DEMO, "--task", "crf", "--dict_dir", "dict"), "dict holds CAMs", "not CRF maps",
                "--task cam")


def test_weights_without_what_it_takes_to_go_on(place):
    (place / "experiment/X/ckpt/model_oc/last.pth").unlink()
    assert_says(refusal("train", *DEMO, *small("model_oc"), "--seed", 2), "holds weights", "no last.pth", "--overwrite")


def test_overwrite_deletes_nothing_that_is_not_its_own(place):
    assert_says(refusal("infer", *DEMO, "--dict", "--dict_dir", ".", "--overwrite"), "was not written by this stage")
    assert_says(refusal("infer", *DEMO, "--dict", "--dict_dir", place / "data/critters", "--overwrite"),
                "was not written by this stage")
    assert (place / "data/critters/classes.txt").exists()


def test_overwrite_deletes_nothing_before_the_weights_are_read(place):
    """The maps of before stay where the new ones cannot be made: refusal() compares all files."""
    cut(place / "experiment/X/ckpt/model_cse/001.pth")
    said = refusal("infer", *DEMO, "--dict", "--vis", "--crf", "--alphas", 2, "--scales", 1, "--overwrite")
    assert_says(said, "model_cse/001.pth", "damaged")
    own_data(place).joinpath("classes.txt").write_text("a\nb\nc\nd\ne\nf")
    (place / "data/critters/labels.json").unlink()
    said = refusal("infer", *DEMO, "--dict", "--labels", "predicted", "--load_epo", 0, "--overwrite")
    assert_says(said, "network.json", "other classes")


def test_what_a_killed_run_left_half_written_is_swept(place):
    halves = [place / "experiment/X" / name for name in ("dict/.a.npz.1.2.tmp", "ckpt/model_oc/.003.pth.1.2.tmp")]
    for half in halves:
        half.write_bytes(b"half")
    call("infer", *DEMO, "--dict")
    call("train", *DEMO, *small("model_oc"))
    assert not any(half.exists() for half in halves)


def test_a_folder_of_unknown_files(place):
    (place / "experiment/X/mine").mkdir()
    (place / "experiment/X/mine/notes.txt").write_text("precious")
    assert_says(refusal("infer", *DEMO, "--dict", "--dict_dir", "mine"), "no made_by.json",
                "another folder")


def test_predictions_that_are_missing_or_do_not_fit(place):
    folder = place / "experiment/X/dict"
    assert_says(refusal("evaluation", *DEMO, "--list", "val"), "6 of the 6", "no prediction",
                "val_0000, val_0001", "python infer.py --name X", "--infer_list val")
    assert_says(refusal("evaluation", *DEMO, "--task", "crf", "--dict_dir", "crf/07"), "no folder", "crf/07",
                "--crf --alphas 7 ")
    np.savez(folder / "train_0001.npz", classes=np.uint8([1]), scores=np.zeros((1, 5, 6), np.float16))
    assert_says(refusal("evaluation", *DEMO), "1 of 12", "size",
                "train_0001: (5, 6)", "(64, 64)")
    np.savez(folder / "train_0001.npz", classes=np.uint8([9]), scores=np.zeros((1, 64, 64), np.float16))
    assert_says(refusal("evaluation", *DEMO), "dict/train_0001.npz", "1..6")
    np.savez(folder / "train_0001.npz", classes=np.uint8([1]), scores=np.full((1, 64, 64), np.nan, np.float16))
    assert_says(refusal("evaluation", *DEMO), "dict/train_0001.npz", "NaN")
    cut(folder / "train_0001.npz")
    assert_says(refusal("evaluation", *DEMO), "dict/train_0001.npz cannot be read", "delete it", "python infer.py")
    assert "(train_0001.npz)" in call("infer", *DEMO, "--dict")
    assert read_cam(folder / "train_0001.npz", (64, 64))[1].max() <= 1        # it was made again
    (folder / "train_0001.npz").unlink()
    (folder / "train_0002.npz").unlink()
    assert_says(refusal("evaluation", *DEMO), "2 of the 12", "train_0001, train_0002")
    with open(folder / "train_0001.npy", "wb") as file:
        np.save(file, np.array(Program(), dtype=object), allow_pickle=True)
    call("infer", *DEMO, "--dict", "--only", "train_0002")
    assert_says(refusal("evaluation", *DEMO), "dict/train_0001.npy cannot be read", "not only arrays")
    assert not (place / "the_program_ran").exists()


def test_label_maps_that_do_not_fit(place):
    folder = place / "labels"
    shutil.copytree(place / "data/critters/SegmentationClass", folder)
    line = (*DEMO, "--task", "png", "--dict_dir", folder)
    call("evaluation", *line)
    Image.new("RGB", (64, 64)).save(folder / "train_0004.png")
    assert_says(refusal("evaluation", *line), "labels/train_0004.png", "mode RGB")
    Image.new("L", (32, 64)).save(folder / "train_0004.png")
    assert_says(refusal("evaluation", *line), "1 of 12 predictions", "train_0004: (64, 32) and (64, 64)")
    (folder / "train_0004.png").unlink()
    assert_says(refusal("evaluation", *line), "1 of the 12 images", "train_0004")


# ---- the disk ----

def test_a_full_disk(place, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    assert_says(refusal("infer", *DEMO, "--dict", "--infer_list", "val"), "0.0 MiB free", "make room",
                "--experiment_root")
    call("infer", *DEMO, "--dict")      # nothing is missing: nothing is written


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(place):
    (place / "shut").mkdir(mode=0o500)
    assert_says(refusal("train", *NEW, "--experiment_root", "shut"), "shut", "Permission denied")


def test_broken_json(place):
    cut(place / "experiment/X/dict/made_by.json")
    assert_says(refusal("infer", *DEMO, "--dict"), "dict/made_by.json is not complete JSON",
                "delete the folder experiment/X/dict")
    cut(place / "experiment/X/ckpt/model_cse/network.json")
    assert_says(refusal("infer", *DEMO, "--dict", "--dict_dir", "new"), "ckpt/model_cse/network.json is damaged",
                "delete it", "trained")


def test_the_description_of_a_network(place):
    path, line = place / "experiment/X/ckpt/model_cse/network.json", ("infer", *DEMO, "--dict", "--dict_dir", "new")
    content = path.read_text()
    for text, words in (("[]", "describes no network"), (content.replace("CAMNet", "AffinityNet"), "needed is CAMNet"),
                        (content.replace('"resnet38d"', '"resnet38e"'), "resnet38e"),
                        (content.replace('"fox"', '"wolf"'), "wolf")):
        path.write_text(text)
        assert_says(refusal(*line), words)
        assert not (place / "experiment/X/new").exists()
    path.unlink()
    assert_says(refusal(*line), f"no {path.relative_to(place)}", "python train.py --name X --model model_cse")
    # The command that trained it writes the file again.
    assert "nothing to do" in call("train", *DEMO, *small("model_cse")) and path.read_text() == content
    call(*line)

    path = place / "experiment/X/ckpt/model_oc/network.json"
    path.write_text(path.read_text().replace('"resnet38d"', '"resnet50"'))
    assert_says(refusal("train", *NEW, "--er_init", "X/model_oc"), "the backbone resnet50", "--backbone is resnet38d")
    path.unlink()
    assert_says(refusal("train", *NEW, "--model", "model_cse", "--er_init", "random", "--cl_init", "X/model_oc"),
                "ckpt/model_oc/network.json", "python train.py --name X --model model_oc")


# ---- as a person sees it ----

@pytest.mark.parametrize("words, code, message", [
    (("infer", "--recipe", "demo", "--name", "X"), 1, "error: nothing is asked for"),
    (("evaluation", "--recipe", "demo", "--name", "X", "--dict_dir", "dict_new"), 1, "error: no folder dict_new"),
    (("train", "--recipe", "demo"), 2, "--name"),
])
def test_exit_codes(place, zygote, words, code, message):
    result = zygote.run(*words, cwd=place)
    assert result.rc == code and message in result.output and "Traceback" not in result.output
    assert result.output.startswith(("error: ", "usage: "))         # nothing else is printed


def test_the_traceback_can_be_had(place):
    with pytest.raises(ValueError, match="nothing is asked for"):
        call("infer", *DEMO, "--traceback")


# ---- strange, but it works ----

@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """Give a folder with a dataset of images of every kind, "a zoo/größe", and an experiment that used it all."""
    place = tmp_path_factory.mktemp("a zoo")
    data = place / "größe und mehr"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (data / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures = {"plain.jpg": colour, "gray.png": colour.convert("L"), "cmyk.jpg": colour.convert("CMYK"),
                "palette.png": colour.quantize(16), "alpha.png": colour.convert("RGBA"),
                "deep.png": Image.fromarray(rng.integers(0, 1 << 16, (40, 56), dtype=np.uint16)),
                "turned.jpg": colour, "dot.png": colour.crop((0, 0, 1, 1)), "line.png": colour.crop((0, 0, 56, 1)),
                "größe_ñ-1.2.png": colour, "none.png": colour, "wide.png": colour.resize((90, 12))}
    labels = {}
    for number, (name, picture) in enumerate(pictures.items()):
        image_id = name.rsplit(".", 1)[0]
        picture.save(data / "JPEGImages" / name, **({"exif": turned} if image_id == "turned" else {}))
        labels[image_id] = [] if image_id == "none" else ["cat", "dog"][number % 2:][:1] + ["bird"] * (number % 3 == 0)
        size = picture.size[::-1] if image_id == "turned" else picture.size
        Image.new("L", size, number % 3).save(data / f"SegmentationClass/{image_id}.png")
    (data / "labels.json").write_text(json.dumps(labels))
    (data / "classes.txt").write_text("cat\ndog\nbird\nunicorn\n")
    for split in ("train_aug", "train"):
        (data / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(labels), encoding="utf-8")
    common = ["--data_root", data, "--experiment_root", place / "all experiments"]
    home, before = os.getcwd(), files(place)
    os.chdir(place)
    try:
        for model in ("model_oc", "model_cse"):
            call("train", *DEMO, *common, "--model", model, "--batch_size", 3, "--max_epochs", 1, "--width", 0.0625,
                 "--crop", 64, "--resize", 16, 24, "--num_workers", int(model == "model_oc"), "--val_every", 1)
        call("infer", *DEMO, *common, "--dict", "--crf", "--vis", "--alphas", 4)
    finally:
        os.chdir(home)
    return place, common, before


def test_pictures_of_every_kind(zoo):
    place, common, _ = zoo
    folder, layout = place / "all experiments/X", VOCLayout(common[1])
    for image_id in layout.ids("train"):
        size = layout.ground_truth(image_id).shape
        classes, scores = read_cam(folder / f"dict/{image_id}.npz")
        assert len(classes) == layout.label(image_id).sum() and 4 not in classes
        assert scores.shape[1:] == size and np.isfinite(scores).all()
        rows, refined = read_crf(folder / f"crf/04/{image_id}.npz")
        assert rows.tolist() == [0, *classes] and refined.shape[1:] == size
        np.testing.assert_allclose(refined.sum(0), 1, atol=2e-3)
        for c in classes:
            assert (folder / f"infer/{image_id}_cam_{layout.classes[c - 1]}.png").exists()
    assert (read_crf(folder / "crf/04/none.npz")[1] == 1).all()        # no class: background everywhere
    row = json.loads((folder / "log/train_model_cse.jsonl").read_text())
    assert np.isfinite(row["loss"]) and 0 <= row["miou"] <= 100


@pytest.mark.parametrize("task, name", [("cam", "dict"), ("crf", "crf/04")])
def test_evaluation_of_pictures_of_every_kind(zoo, task, name):
    place, common, _ = zoo
    text = call("evaluation", *DEMO, *common, "--task", task, "--dict_dir", name)
    found = json.loads((place / f"all experiments/X/eval/{task}_{name.replace('/', '_')}_train.json").read_text())
    assert found["images"] == 12 and found["per_class"]["unicorn"] == 0
    assert "over the" in text and "classes that occur" in text          # nothing is a unicorn


def test_the_dataset_is_left_as_it_was(zoo):
    place, _, before = zoo
    after = files(place)
    assert before and {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in set(after) - set(before)} == {"all experiments"}


def test_a_batch_without_any_class(place):
    """One image alone has a class, so two batches of three have none: training and inference go through."""
    data = own_data(place)
    change_labels(data, lambda table: table.update({i: [] for i in table if i != "train_0000"}))
    call("train", *DEMO, *small("model_cse"), "--name", "NEW", "--er_init", "X/model_oc", "--cl_init", "X/model_oc",
         "--max_epochs", 1)
    row = json.loads((place / "experiment/NEW/log/train_model_cse.jsonl").read_text())
    assert 0 < row["loss_cse"] < 1 and 0 < row["p_target_erased"] < 1 and row["loss"] < 2
    call("infer", *DEMO, "--name", "NEW", "--dict", "--crf", "--vis", "--alphas", 2, "--infer_list", "val")
    call("evaluation", *DEMO, "--name", "NEW", "--list", "val")
    found = json.loads((place / "experiment/NEW/eval/cam_dict_val.json").read_text())
    assert found["occurring"] == 7 and found["per_class"]["background"] > 50


def test_labels_that_the_network_predicts(place):
    data = own_data(place)
    (data / "labels.json").unlink()
    assert_says(refusal("infer", *DEMO, "--dict", "--infer_list", "val"), "image without labels: val_0000")
    call("infer", *DEMO, "--dict", "--vis", "--infer_list", "val", "--labels", "predicted", "--dict_dir", "seen",
         "--vis_dir", "seen_vis")
    assert all(len(read_cam(p)[0]) >= 1 for p in place.glob("experiment/X/seen/*.npz"))
    assert len(list(place.glob("experiment/X/seen/*.npz"))) == 6


def test_a_dataset_without_truth(place):
    data = own_data(place)
    shutil.rmtree(data / "SegmentationClass")
    text = call("train", *DEMO, *small("model_cse"), "--name", "NEW", "--er_init", "X/model_oc", "--cl_init",
                "X/model_oc", "--val_every", 1, "--max_epochs", 1)
    assert_says(text, "12 of 12", "no ground truth")
    assert "miou" not in json.loads((place / "experiment/NEW/log/train_model_cse.jsonl").read_text())
    assert_says(refusal("evaluation", *DEMO), "12 of the 12", "no ground truth", "--gt_dir", "--list")


def test_every_stage_has_its_help(capsys):
    for stage in ("train", "infer", "evaluation", "reproduce"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
            patch.setattr(sys, "argv", [f"{stage}.py", "--help"])
            flags.run(importlib.import_module(stage).main)
        assert caught.value.code == 0 and "--data_root" in capsys.readouterr().out
