"""Weights of other programs in the stages: a nested checkpoint starts a training, the authors' own file makes CAMs."""
import shutil
from pathlib import Path

import pytest
import torch

from tests.stages import CROP, DEMO, call, files, own_data, refusal, small

Y = ("--recipe", "demo", "--name", "Y", "--num_workers", 0)
TRAIN = (*Y, "--model", "model_cse", "--batch_size", 4, "--max_epochs", 1, "--val_every", 0, *CROP)


def weights_of(model):
    path = max(Path(f"experiment/X/ckpt/{model}").glob("[0-9]*.pth"))
    return torch.load(path, weights_only=True)


def nested(state):
    """As other programs save it: in a dict beside the optimizer, with a prefix, in half precision."""
    state = {f"module.{name}": value.half() if value.ndim else value for name, value in state.items()}
    return {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": []}}


def authors_file(name="014net_er.pth", folder="ckpt", form=lambda state: state):
    path = Path("experiment/Y") / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(form(weights_of("model_cse")), path)
    return path


def test_a_nested_checkpoint_starts_a_training(place):
    torch.save(nested(weights_of("model_cse")), "ours.pth.tar")
    Path("pretrained").mkdir()
    torch.save(nested(weights_of("model_oc")), "pretrained/od_cam.pth")
    text = call("train", *TRAIN, "--er_init", "ours.pth.tar", "--cl_init", "cam")
    assert "tensors from ours.pth.tar (those under state_dict); new: none" in text
    assert "from pretrained/od_cam.pth (those under state_dict); new: none" in text
    assert Path("experiment/Y/ckpt/model_cse/000.pth").exists()
    assert "nothing to do" in call("train", *TRAIN, "--er_init", "ours.pth.tar", "--cl_init", "cam")


def test_our_own_last_pth_starts_a_training(place):
    text = call("train", *TRAIN, "--er_init", "experiment/X/ckpt/model_cse/last.pth", "--cl_init", "X/model_oc")
    assert "last.pth (those under network); new: none; not used: 0 of" in text


@pytest.mark.parametrize(("folder", "form"), [("ckpt", dict), ("ckpt/model_cse", nested)])
def test_the_authors_own_file_makes_cams(place, folder, form):
    """Without a network.json: the tensors say what network it is."""
    path = authors_file(folder=folder, form=form)
    authors_file("003net_er.pth", folder)
    call("infer", *Y, "--load_epo", 14, "--dict")
    first = files("experiment/Y/dict")
    assert sum(name.endswith(".npz") for name in first) == 12 and str(path.relative_to("experiment/Y")) in Path(
        "experiment/Y/dict/made_by.json").read_text()
    assert "12 of 12" in call("infer", *Y, "--dict")        # last is 14
    assert files("experiment/Y/dict") == first
    assert "mIoU" in call("evaluation", *Y[:4], "--task", "cam", "--dict_dir", "dict")
    message = refusal("infer", *Y, "--load_epo", 4, "--dict")
    assert "no epoch 4 of model_cse" in message and "3, 14" in message
    message = refusal("infer", *Y, "--model", "model_oc", "--load_epo", 14, "--dict")
    assert "model_oc holds no weights" in message and "python train.py --name Y --model model_oc" in message


def test_our_own_weights_come_before_the_authors(place):
    authors_file()
    shutil.copytree("experiment/X/ckpt/model_cse", "experiment/Y/ckpt/model_cse")
    call("infer", *Y, "--dict", "--only", "train_0000")
    record = Path("experiment/Y/dict/made_by.json").read_text()
    assert "ckpt/model_cse/001.pth" in record and "014net_er" not in record
    call("infer", *Y, "--dict", "--only", "train_0000", "--load_epo", 14, "--overwrite")
    assert "014net_er" in Path("experiment/Y/dict/made_by.json").read_text()


def test_the_authors_file_starts_a_training(place):
    authors_file()
    call("train", "--name", "Z", *TRAIN[:2], *TRAIN[4:], "--er_init", "Y/model_cse/14", "--cl_init", "X/model_oc")
    assert Path("experiment/Z/ckpt/model_cse/000.pth").exists()


def test_weights_that_do_not_fit_are_named_with_the_way_on(place):
    torch.save(nested(weights_of("model_cse")), "w.pth")
    message = refusal("train", *TRAIN, "--er_init", "w.pth", "--width", 0.0625, "--cl_init", "X/model_oc")
    assert "w.pth" in message and "--width 0.125" in message
    classes = Path("data/critters/classes.txt").resolve().read_text().split()
    shutil.copytree(Path("data/critters").resolve(), "data/more")
    Path("data/more/classes.txt").write_text("\n".join([*classes, "yeti"]) + "\n")
    authors_file()
    message = refusal("infer", *Y, "--data_root", "data/more", "--load_epo", 14, "--dict")
    assert "014net_er.pth" in message and "6 classes" in message and "7" in message
    message = refusal("train", *TRAIN, "--data_root", "data/more", "--er_init", "random", "--cl_init", "w.pth")
    assert "w.pth" in message and "classes" in message and "python train.py --name Y --model model_oc" in message


def test_a_program_in_a_starting_file_does_not_run(place):
    from tests.conftest import Program
    torch.save({"state_dict": weights_of("model_oc"), "args": Program("ran")}, "w.pth")
    for flag in ("--er_init", "--cl_init"):
        other = ("--cl_init", "X/model_oc") if flag == "--er_init" else ("--er_init", "random")
        assert "holds a program" in refusal("train", *TRAIN, flag, "w.pth", *other)
    torch.save({"x": Program("ran")}, authors_file())
    assert "holds a program" in refusal("infer", *DEMO[:2], *Y[2:], "--load_epo", 14, "--dict")
    assert not Path("ran").exists()


def test_a_last_pth_of_classes_in_another_order_is_refused(place):
    shutil.copy("experiment/X/ckpt/model_oc/last.pth", "classifier.pth")
    data = own_data(place)
    names = (data / "classes.txt").read_text().split("\n")
    (data / "classes.txt").write_text("\n".join([names[1], names[0], *names[2:]]))
    message = refusal("train", *Y, *small("model_cse"), "--er_init", "random", "--cl_init", "classifier.pth")
    assert "classifier.pth" in message and "fox, toucan" in message and "toucan, fox" in message
