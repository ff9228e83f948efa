"""Weights as people bring them: nested, with prefixes, of other programs and formats; and what only looks like them."""
import argparse
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from networks import backbones, weight_files, weight_report
from networks.affinity import AffinityNet
from networks.cam import CAMNet
from networks.deeplab import LargeFOV
from networks.pretrained import (
    describe_file,
    find_classifier,
    find_imagenet,
    load_start,
    load_weights,
    official_state,
)
from networks.recognise import networks_in
from tests.conftest import Program, other_weights

WIDTH = 1 / 32


@pytest.fixture(scope="module")
def state():
    return other_weights(WIDTH)


@pytest.fixture
def net():
    return CAMNet(num_classes=4, width=WIDTH)


def before(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def own(state):
    return {name if name.startswith("fc8") else f"backbone.{name}": value for name, value in state.items()}


def assert_equal(net, state, by=0.0):
    now = official_state(net)
    assert all(torch.allclose(now[name].float(), state[name].float(), atol=by) for name in state)


def report_of(path, capsys, *words):
    weight_report.main([str(path), *map(str, words)])
    return capsys.readouterr().out


def refused(path, capsys, *words):
    with pytest.raises(SystemExit) as stop:
        weight_report.main([str(path), *map(str, words)])
    assert str(stop.value.code).startswith("error: ") and not capsys.readouterr().out
    return stop.value.code


# ---- nested states and prefixes ----

OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
FORMS = {
    "state_dict beside an optimizer": lambda s: {"epoch": 3, "state_dict": s, "optimizer": OPTIMIZER},
    "model": lambda s: {"model": s, "lr_scheduler": {"last_epoch": 3}, "best": 0.5},
    "network, as our last.pth": lambda s: {"network": own(s), "optimizer": OPTIMIZER, "step": 3, "settings": {"a": 1}},
    "net": lambda s: {"net": s, "acc": 91.2},
    "model_state_dict of own names": lambda s: {"model_state_dict": own(s)},
    "Lightning": lambda s: {"state_dict": before("model.", s), "hyper_parameters": {"lr": 0.1}, "callbacks": {}},
    "Lightning with own names": lambda s: {"state_dict": before("net.", own(s)), "loops": {"fit": {"step": 3}}},
    "module.": lambda s: before("module.", s),
    "model.": lambda s: before("model.", s),
    "model.module.": lambda s: before("model.module.", own(s)),
    "state_dict and module.": lambda s: {"state_dict": before("module.", s), "arch": "resnet38"},
    "an unknown prefix": lambda s: before("cam_net.encoder_of_mine.", s),
    "an unknown place": lambda s: {"checkpoint": {"generator": before("module.", own(s))}},
    "EMA beside": lambda s: {"state_dict_ema": before("", {n: v * 2 for n, v in s.items()}), "state_dict": s},
    "EMA beside, which counts batches": lambda s: {
        "ema": {n: v * 2 for n, v in s.items()},
        "state_dict": {n: v for n, v in s.items() if not n.endswith("tracked")}},
    "an optimizer that knows names": lambda s: {"model": s, "optimizer": before("momentum.", s)},
    "a compiled network": lambda s: before("_orig_mod.", own(s)),
    "OrderedDict": lambda s: {"state_dict": OrderedDict(s)},
    "flat, with numbers beside": lambda s: s | {"epoch": 3, "arch": "resnet38", "best": 0.5},
    "no num_batches_tracked": lambda s: {"state_dict": {n: v for n, v in s.items() if not n.endswith("tracked")}},
    "an args Namespace": lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1, nested=SimpleNamespace(a=1))},
    "numpy's numbers": lambda s: {"state_dict": s, "best": np.float64(3.5), "steps": np.int64(4)},
    "other containers": lambda s: {"state_dict": s, "log": defaultdict(list, a=[1, 2]), "seen": {1, 2}},
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_state_is_found_wherever_it_lies(net, state, tmp_path, form):
    torch.save(FORMS[form](state), tmp_path / "w.pth")
    report = load_weights(net, tmp_path / "w.pth")
    without = form.endswith(("tracked", "counts batches"))
    expected = [name for name in state if not without or not name.endswith("tracked")]
    assert report["loaded"] == expected and report["new"] == []
    assert_equal(net, {name: state[name] for name in expected if not name.endswith("tracked")})
    assert len(report["unused"]) == (len(state) if form.startswith("EMA") else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.pth.tar", "w.ckpt", "w.bin", "W.PTH", "w", "w.model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_ending_does_not_matter(net, state, tmp_path, name, zipped):
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert load_weights(net, tmp_path / name)["loaded"] == list(state)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_safetensors_under_any_name(net, state, tmp_path, name):
    from safetensors.torch import save_file
    save_file(before("model.", state), tmp_path / name)
    assert sorted(load_weights(net, tmp_path / name)["loaded"]) == sorted(state)
    assert_equal(net, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(net, state, tmp_path, dtype):
    torch.save({n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}, tmp_path / "w.pth")
    assert load_weights(net, tmp_path / "w.pth")["new"] == []
    assert net.fc8.weight.dtype == torch.float32
    assert_equal(net, state, by=0.01)


def test_two_networks_that_fit_are_asked_about(net, state, tmp_path, capsys):
    path = tmp_path / "w.pth"
    torch.save({"student": before("module.", state), "teacher": {n: v * 2 for n, v in state.items()}}, path)
    with pytest.raises(ValueError, match=r"w.pth holds 2 networks .*\(student.module, teacher\).*--take teacher"):
        load_weights(net, path)
    text = report_of(path, capsys)
    assert f"{path} --take student --to student.pth" in text and "--take teacher" in text
    report_of(path, capsys, "--take", "teacher", "--to", tmp_path / "t.pth")
    load_weights(net, tmp_path / "t.pth")
    assert_equal(net, {n: v * 2 for n, v in state.items() if v.ndim})
    assert "holds nothing under pupil; there are student, teacher" in refused(path, capsys, "--take", "pupil")
    assert "--take student" in refused(path, capsys, "--to", tmp_path / "u.pth")


def test_a_network_under_one_of_our_prefixes_can_be_taken(state, tmp_path, capsys):
    path = tmp_path / "w.pth"
    torch.save({"ema": state, "model": {n: v * 2 for n, v in state.items()}}, path)
    text = report_of(path, capsys)
    assert "--take ema --to ema.pth" in text and "--take model --to model.pth" in text
    assert "(ema, model)" in refused(path, capsys, "--to", tmp_path / "u.pth")


def test_what_was_taken_is_said(net, state, tmp_path, capsys):
    from functools import partial

    from tools.engine import start_from
    torch.save({"epoch": 3, "state_dict": before("module.", state), "optimizer": OPTIMIZER}, tmp_path / "w.pth")
    start_from(tmp_path / "w.pth", "er_init", partial(load_weights, net))
    assert f"{len(state)} tensors from {tmp_path / 'w.pth'} (those under state_dict); new: none; not used: 0" in (
        capsys.readouterr().out)
    torch.save(state, tmp_path / "w.pth")
    start_from(tmp_path / "w.pth", "er_init", partial(load_weights, net))
    assert "under" not in capsys.readouterr().out


def test_what_else_fits_is_said(net, state, tmp_path, capsys):
    path = tmp_path / "w.pth"
    torch.save({"ema": state, "model": {n: v * 2 for n, v in state.items()}}, path)
    said = load_weights(net, path).place
    assert_equal(net, {n: v * 2 for n, v in state.items() if v.ndim})
    assert said.startswith("those under model; ema would fit as well")
    file, *words = said.split("networks.pretrained ")[1].replace("ema.pth", str(tmp_path / "ema.pth")).split()
    report_of(file, capsys, *words)
    assert load_weights(net, tmp_path / "ema.pth").place == ""
    assert_equal(net, state)
    torch.save({"ema": state, "model": state}, path)
    assert "fit" not in load_weights(net, path).place


def test_another_class_count_starts_a_training_and_is_explained_elsewhere(state, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": before("module.", state)}, path)
    other = CAMNet(num_classes=6, width=WIDTH)
    with pytest.raises(ValueError, match="w.pth: fc8.weight .*another number of classes .4, needed are 6.*--er_init"):
        load_weights(other, path)
    report = load_start(other, {"backbone": {"name": "resnet38d"}}, path)
    assert report["new"] == ["fc8.weight"] and len(report["loaded"]) == len(state) - 1


@pytest.mark.parametrize(("classes", "new"), [("abcd", []), ("dcba", ["fc8.weight"]), ("wxyz", ["fc8.weight"])])
def test_as_many_other_classes_get_a_new_last_layer(state, tmp_path, classes, new):
    description = {"class": "CAMNet", "backbone": {"name": "resnet38d", "width": WIDTH}, "head": {}}
    torch.save(state, tmp_path / "000.pth")
    (tmp_path / "network.json").write_text(json.dumps(description | {"classes": list(classes)}))
    net = CAMNet(num_classes=4, width=WIDTH)
    fresh = net.fc8.weight.detach().clone()
    assert load_start(net, description | {"classes": list("abcd")}, tmp_path / "000.pth")["new"] == new
    assert torch.equal(net.fc8.weight, fresh) == bool(new)


# ---- why something does not fit ----

@pytest.mark.parametrize(("made", "words"), [
    (lambda: official_state(CAMNet(4, width=1 / 16)), ["ResNet38d of width 0.0625", "--width 0.0625"]),
    (lambda: before("model.", official_state(CAMNet(4, width=1 / 16))), ["--width 0.0625"]),
    (lambda: official_state(CAMNet(4, width=WIDTH, blocks=(1, 1, 1, 1, 1, 0))), ["--blocks 1 1 1 1 1 0"]),
    (lambda: backbones.build("resnet18", 16).model.model.state_dict(), ["resnet18", "--backbone resnet18"]),
    (lambda: {"fc.weight": torch.ones(3)}, ["python -m networks.pretrained", "w.pth"]),
    (dict, ["python -m networks.pretrained"]),
    (lambda: {"epoch": 3}, ["python -m networks.pretrained"]),
])
def test_a_misfit_says_what_the_file_holds(net, tmp_path, made, words):
    torch.save(made(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth") as caught:
        load_weights(net, tmp_path / "w.pth", head="skip")
    assert all(word in str(caught.value) for word in words)


def test_a_prefix_is_not_blamed_on_the_width(net, state, tmp_path):
    part = before("my.", state)
    del part["my.b4_3.conv_branch2a.weight"]
    torch.save(part, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="b4_3.conv_branch2a.weight is missing.*blocks|incomplete") as caught:
        load_weights(net, tmp_path / "w.pth")
    assert "another width" not in str(caught.value)


# ---- what networks are recognised ----

@pytest.mark.parametrize(("make", "head", "classes"), [
    (lambda: CAMNet(7, width=WIDTH), "CAMNet", 7), (lambda: AffinityNet(width=WIDTH), "AffinityNet", 0),
    (lambda: LargeFOV(7, width=WIDTH), "LargeFOV", 7)])
def test_our_networks_are_recognised(make, head, classes):
    for names in (official_state(make()), before("module.", make().state_dict())):
        found, = networks_in(names)
        assert (found.head, found.classes, found.backbone["width"]) == (head, classes, WIDTH)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "seresnet50", "tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_timms_networks_are_recognised(name):
    import timm
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    found, = networks_in(state)
    assert found.backbone["name"] == name and found.outputs == 1000 and not found.head
    assert f"--backbone {name}" in found.flags()


@pytest.mark.slow
def test_a_network_of_torchvision_goes_into_a_training(tmp_path, capsys, monkeypatch):
    from torchvision.models import resnet18
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained").mkdir()
    path = tmp_path / "pretrained/resnet18-f37072fd.pth"
    torch.save(resnet18().state_dict(), path)
    text = report_of(path, capsys)
    assert "resnet18 of 1000 classes" in text and "pretrained/resnet18.pth" in text
    assert f"--backbone resnet18 --output_stride 16 --er_init {path}" in text
    assert find_imagenet("resnet18").resolve() == path
    backbone = backbones.build("resnet18", 16, pretrained=True)
    assert torch.equal(backbone.model.model.conv1.weight, torch.load(path, weights_only=True)["conv1.weight"])


@pytest.mark.parametrize(("keys", "network", "head", "classes"), [
    ("set01_keys_occse.json", "Net_er", "CAMNet", 20), ("set01_keys_occse.json", "Net_cl", "CAMNet", 20),
    ("set01_keys_occse.json", "Net", "", 0), ("set01_keys_psa.json", "resnet38_cls", "CAMNet", 20),
    ("set01_keys_psa.json", "resnet38_aff", "AffinityNet", 0), ("set11_keys_aeft.json", "Net_gpp", "GPPNet", 20)])
def test_the_authors_networks_are_recognised(golden, keys, network, head, classes):
    tensors = json.loads(golden(keys).read_text())[network]
    found, = networks_in({name: torch.empty(shape, device="meta") for name, shape in tensors})
    assert found.backbone["name"] == "resnet38d" and found.flags() == "" and found.title == "ResNet38d"
    assert (found.head, found.classes) == (head, classes)


# ---- the report and the conversion ----

def test_the_report_of_a_checkpoint(state, tmp_path, capsys):
    path = tmp_path / "w b.pth.tar"
    half = {n: v.half() if v.ndim else v for n, v in state.items()}
    torch.save({"epoch": 3, "state_dict": before("module.", half), "optimizer": OPTIMIZER,
                "args": argparse.Namespace(lr=1)}, path)
    text = report_of(path, capsys)
    for word in ("torch.save's", weight_files.sha256(path), f"{len(state)} tensors", "float16", "epoch 3", "optimizer",
                 "args", "ResNet38d of width 0.03125", "CAMNet of 4 classes", "under state_dict.module",
                 "new: f8_3, f8_4, f8_5, f9; left over: fc8", f"--width 0.03125 --init '{path}'", "--cl_init",
                 "--network deeplabv3"):
        assert word in text, word
    assert max(map(len, text.splitlines())) < 300


def test_the_report_of_damaged_values_and_of_a_params(state, golden, tmp_path, capsys):
    bad = state | {"bn7.running_var": torch.full_like(state["bn7.running_var"], -1)}
    torch.save(bad, tmp_path / "w.pth")
    text = report_of(tmp_path / "w.pth", capsys)
    assert "bn7.running_var" in text and "ResNet38d" in text and "train.py" not in text and "  place" not in text
    for bad in (({n: v for n, v in state.items() if n != "bn7.weight"}, state | {"bn7.weight": torch.ones(3)})):
        torch.save(bad, tmp_path / "w.pth")
        text = report_of(tmp_path / "w.pth", capsys)
        assert "of its backbone 1 tensors are missing" in text and "bn7.weight" in text and "train.py" not in text
        assert "  place" not in text
    path = golden("set13_fullkeys_mxnet191.params")
    text = report_of(path, capsys)
    assert "MXNet's .params" in text and weight_files.sha256(path) in text


@pytest.mark.slow
@pytest.mark.parametrize("target", ["out.pth", "out.safetensors"])
@pytest.mark.parametrize("form", ["Lightning with own names", "an unknown place", "module.", "model.module."])
def test_conversion_is_plain_and_loads_everywhere(net, state, tmp_path, capsys, target, form):
    torch.save(FORMS[form]({n: v.half() if v.ndim else v for n, v in state.items()}), tmp_path / "w.ckpt")
    text = report_of(tmp_path / "w.ckpt", capsys, "--to", tmp_path / target)
    assert f"{len(state)} tensors" in text and weight_files.sha256(tmp_path / target) in text
    content = weight_files.read(tmp_path / target)
    assert sorted(content.tensors) == sorted(state) and not content.beside
    assert {t.dtype for t in content.tensors.values() if t.ndim} == {torch.float32}
    load_weights(net, tmp_path / target)
    assert_equal(net, state, by=0.01)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["w.ckpt", target])


def test_conversion_overwrites_nothing_and_says_what_it_cannot(state, tmp_path, capsys):
    path = tmp_path / "w.pth"
    torch.save(state, path)
    size = path.stat().st_size
    assert "is there already" in refused(path, capsys, "--to", path) and path.stat().st_size == size
    assert ".pth or .safetensors" in refused(path, capsys, "--to", tmp_path / "o.txt")
    assert "no folder" in refused(path, capsys, "--to", tmp_path / "none/o.pth")
    torch.save({"epoch": 3}, tmp_path / "e.pth")
    assert "no tensors" in refused(tmp_path / "e.pth", capsys, "--to", tmp_path / "o.pth")
    assert "there are no tensors" in report_of(tmp_path / "e.pth", capsys)
    assert "no file" in refused(tmp_path / "none.pth", capsys) and "is a folder" in refused(tmp_path, capsys)


# ---- files with a name ----

def test_the_ordinary_classifier_has_two_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pretrained"
    folder.mkdir()
    with pytest.raises(ValueError, match="res38_cls.pth is not there .nor od_cam.pth.*README"):
        find_classifier()
    for name in ("od_cam.pth", "OD_CAM.PTH", "od_cam.pth.tar", "od_cam.safetensors", "res38_cls.pth", "res38_cls.pt"):
        (folder / name).write_bytes(b"a")
        assert find_classifier().name == name
        (folder / name).unlink()
    (folder / "od_cam.pth").write_bytes(b"a")
    (folder / "res38_cls.pth").write_bytes(b"a")
    assert find_classifier().name == "res38_cls.pth"
    (folder / "od_cam.pth").write_bytes(b"b")
    with pytest.raises(ValueError, match="res38_cls.pth and .*od_cam.pth .*differ"):
        find_classifier()


def test_a_file_is_described_by_its_tensors(state, tmp_path):
    path, layout = tmp_path / "014net_er.pth", SimpleNamespace(classes=list("abcd"), root="R")
    torch.save(before("module.", state), path)
    found = describe_file(path, ("CAMNet",), layout)
    assert found["class"] == "CAMNet" and found["classes"] == list("abcd") and found["backbone"]["width"] == WIDTH
    mine = found | {"backbone": found["backbone"] | {"dilation": [1, 1, 1]}}
    assert describe_file(path, ("CAMNet",), layout, mine) is mine
    wider = found | {"backbone": found["backbone"] | {"width": 2 * WIDTH}}
    assert describe_file(path, ("CAMNet",), layout, wider) == found
    with pytest.raises(ValueError, match="014net_er.pth .* 4 classes, and R has 3"):
        describe_file(path, ("CAMNet",), SimpleNamespace(classes=list("abc"), root="R"))
    with pytest.raises(ValueError, match="needed is LargeFOV.*python -m networks.pretrained"):
        describe_file(path, ("LargeFOV",), layout)


# ---- what pretends to be weights ----

def pretender(path, kind, state):
    """Write a file of that kind to path."""
    plain = pickle.dumps({"x": np.ones(3)}, protocol=2)
    if kind == "TorchScript":
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("a/data.pkl", "a/constants.pkl", "a/code/x.py"):
                archive.writestr(name, b"x")
    elif kind == "a zip of weights":
        torch.save(state, path.with_suffix(".inner"))
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(path.with_suffix(".inner"), "net.pth")
    elif kind == "a tar":
        (path.parent / "x").write_bytes(b"1")
        with tarfile.open(path, "w") as archive:
            archive.add(path.parent / "x", "x")
    elif kind == "arrays in a dict":
        torch.save({"epoch": 3, "state_dict": {name: tensor.numpy() for name, tensor in state.items()}}, path)
    elif kind == "a whole network":
        torch.save(torch.nn.Linear(2, 2), path)
    else:
        path.write_bytes({"a web page": b"\n <!DOCTYPE html><html>virus scan</html>",
                          "a page in capitals": b"<HTML><head>", "Git LFS": b"version https://git-lfs.github.com/spec/v1",
                          "gzip": gzip.compress(b"weights"), "HDF5": b"\x89HDF\r\n\x1a\n1234", "a pickle": plain,
                          "an array": b"\x93NUMPY\x01\0", "empty": b"", "text": b"weights"}[kind])


@pytest.mark.parametrize(("kind", "word"), [
    ("TorchScript", "state_dict"), ("a zip of weights", "net.pth"), ("a tar", "unpack"),
    ("arrays in a dict", "torch.from_numpy"),
    ("a whole network", "torch.nn.modules.linear.Linear"), ("a web page", "browser"), ("a page in capitals", "browser"),
    ("Git LFS", "git lfs pull"), ("gzip", "unpack"), ("HDF5", "Keras"), ("a pickle", "not opened"),
    ("an array", "numpy"), ("empty", "fetch or save it again"), ("text", "fetch or save it again")])
def test_what_is_no_weights_is_named(net, state, tmp_path, kind, word):
    pretender(tmp_path / "w.pth", kind, state)
    with pytest.raises(ValueError, match=f"w.pth.*{word}"):
        load_weights(net, tmp_path / "w.pth")


@pytest.mark.parametrize("ending", [".params", ".safetensors"])
@pytest.mark.parametrize("kind", ["a web page", "gzip", "empty", "text"])
def test_and_under_other_endings(net, state, tmp_path, kind, ending):
    pretender(tmp_path / f"w{ending}", kind, state)
    with pytest.raises(ValueError, match=f"w{ending}"):
        load_weights(net, tmp_path / f"w{ending}")


def npz(array):
    file = io.BytesIO()
    np.savez(file, x=array)
    return file.getvalue()


PLANTED = {
    "torch.save": lambda path, bad: torch.save({"state_dict": {"x": torch.ones(1)}, "args": bad}, path),
    "an old torch.save": lambda path, bad: torch.save({"x": bad}, path, _use_new_zipfile_serialization=False),
    "in the optimizer": lambda path, bad: torch.save({"optimizer": {"state": {0: bad}}}, path),
    "as a key": lambda path, bad: torch.save({bad: torch.ones(1)}, path),
    "in a Namespace": lambda path, bad: torch.save({"args": argparse.Namespace(x=bad)}, path),
    "in numpy's array": lambda path, bad: torch.save({"x": np.array([bad], object)}, path),
    "a plain pickle": lambda path, bad: path.write_bytes(pickle.dumps(bad, protocol=2)),
    "a newer pickle": lambda path, bad: path.write_bytes(pickle.dumps(bad, protocol=4)),
    "an .npz": lambda path, bad: path.write_bytes(npz(np.array([bad], object))),
}


@pytest.mark.parametrize("ending", [".pth", ".ckpt", ".params", ".safetensors", ".pth.tar", ".npz"])
@pytest.mark.parametrize("where", PLANTED)
def test_a_program_never_runs(net, tmp_path, capsys, where, ending):
    path = tmp_path / f"w{ending}"
    PLANTED[where](path, Program(tmp_path / "ran"))
    with pytest.raises(ValueError, match=f"w{ending}"):
        load_weights(net, path)
    assert f"w{ending}" in refused(path, capsys)
    assert not (tmp_path / "ran").exists()


class Call:
    """Pickled, a call of a function."""

    def __init__(self, function, *given):
        self.made = function, given

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("function", [eval, exec, getattr, __import__, os.system, np.load, torch.load])
def test_no_function_is_called(net, tmp_path, function):
    torch.save({"x": Call(function, "1")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth: holds a program|w.pth: cut short"):
        load_weights(net, tmp_path / "w.pth")


def test_harmless_settings_stand_for_nothing(tmp_path):
    torch.save({"x": torch.ones(1), "a": argparse.Namespace(lr=1), "n": np.float32(1), "p": tmp_path,
                "v": np.ones(3)}, tmp_path / "w.pth")
    content = weight_files.read(tmp_path / "w.pth")
    assert list(content.tensors) == ["x"] and set(content.beside) == {"a", "n", "p", "v"}
    assert not any(content.beside.values())


def test_a_tensor_larger_than_its_file(net, tmp_path):
    torch.save({"x": torch.ones(1).expand(2**40)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth: entry 'x' announces more"):
        load_weights(net, tmp_path / "w.pth")


def test_a_header_larger_than_its_file(net, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**60) + b'{"x":1}')
    with pytest.raises(ValueError, match="w.safetensors.*fetch it again"):
        load_weights(net, tmp_path / "w.safetensors")


def test_a_dict_within_itself_ends(tmp_path):
    deep = {"x": torch.ones(1)}
    for _ in range(40):
        deep = {"a": deep}
    torch.save(deep, tmp_path / "w.pth")
    assert weight_files.read(tmp_path / "w.pth").tensors == {}
