"""An experiment on disk: weights, starting weights, trainings, logs, configurations."""
import shutil
from collections import namedtuple

import config

import numpy as np
import pytest

import advice
from networks.pretrained import named_weights
from networks.weight_files import ENDINGS
from tests.conftest import make_file
from tools.experiment import WEIGHTS, Experiment
from tools.files import read_json, require_space, save_checkpoint
from tools.provenance import revision, versions


@pytest.fixture
def experiment(tmp_path):
    return advice.experiment_of(config.Evaluate("X", experiment_root=str(tmp_path / "experiment")))


@pytest.fixture
def trained(experiment):
    for epoch in (0, 1, 2, 10):
        make_file(experiment / f"ckpt/model_oc/{epoch:03d}.pth")
        experiment.log_epoch("train_model_oc", {"epoch": epoch, "miou": {1: 50.0, 2: 40.0}.get(epoch)})
    make_file(experiment / "ckpt/model_oc/last.pth")
    return experiment


@pytest.mark.parametrize(("which", "name"), [("last", "010"), ("2", "002"), ("002", "002"), (0, "000"),
                                             ("best", "001")])
def test_weights_of_an_epoch(trained, capsys, which, name):
    assert trained.weights("model_oc", which) == trained / f"ckpt/model_oc/{name}.pth"
    assert ("chosen on the ground truth" in capsys.readouterr().out) == (which == "best")


@pytest.mark.parametrize("which", ["3", "11", "latest", "-1"])
def test_weights_of_an_epoch_that_is_not_there(trained, which):
    with pytest.raises(ValueError, match=f"no epoch {which}; there are 000 to 010, 4 in all"):
        trained.weights("model_oc", which)


def test_weights_that_no_one_trained(experiment):
    with pytest.raises(ValueError, match="python train.py --name X --model model_cse"):
        experiment.weights("model_cse")
    make_file(experiment / "ckpt/model_cse/000.pth")
    with pytest.raises(ValueError, match="no epoch of X/model_cse was measured .*--val_every.*: name one of 000"):
        experiment.weights("model_cse", "best")


def test_weights_of_a_thousand_epochs(experiment):
    for epoch in (999, 1000):
        make_file(experiment / f"ckpt/model_oc/{epoch:03d}.pth")
    assert experiment.weights("model_oc").name == "1000.pth"


def test_starting_weights(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert trained.find_init("random", "er_init") is None
    assert trained.find_init("X/model_oc", "er_init") == trained / "ckpt/model_oc/010.pth"
    assert trained.find_init("X/model_oc/001", "er_init") == trained / "ckpt/model_oc/001.pth"
    file = make_file(tmp_path / "my/own.pth")
    assert trained.find_init(str(file), "er_init") == file
    named = named_weights("resnet38d")
    with pytest.raises(ValueError, match="resnet_38d.params is not there. pretrained/README.md .*--er_init random"):
        trained.find_init("imagenet", "er_init", named)
    with pytest.raises(ValueError, match="res38_cls.pth is not there.*; or train one"):
        trained.find_init("cam", "cl_init", named, "or train one")
    with pytest.raises(ValueError, match="resnet_38d.params is not there.*--init random"):
        trained.find_init("imagenet", "init", named)
    for name, source in (("resnet_38d.params", "imagenet"), ("res38_cls.pth", "cam")):
        make_file(tmp_path / "pretrained" / name)
        assert trained.find_init(source, "init", named).resolve() == tmp_path / "pretrained" / name
    with pytest.raises(ValueError, match="python train.py --name Y --model model_oc"):
        trained.find_init("Y/model_oc", "er_init")
    with pytest.raises(ValueError, match="python train.py --name X --model model_cse"):
        trained.find_init("X/model_cse", "er_init")
    for model, command in (("seg", "train_seg.py --name X"), ("aff_04_24", "train_aff.py --name X --low 4 --high 24")):
        with pytest.raises(ValueError, match=f"ckpt/{model} .*: python {command}"):
            trained.find_init(f"X/{model}", "er_init")
    with pytest.raises(ValueError, match="no epoch 7"):
        trained.find_init("X/model_oc/7", "er_init")
    with pytest.raises(ValueError, match="--er_init: no weights 'nonsense'.*random, .* a file, or EXPERIMENT/MODEL"):
        trained.find_init("nonsense", "er_init", named)
    assert WEIGHTS == ENDINGS
    with pytest.raises(ValueError, match="a folder; name a file in it: --er_init my/own.pth"):
        trained.find_init("my", "er_init", named)


def test_weights_say_what_network_they_are_of(experiment, tmp_path):
    open_training(experiment, {"lr": 1})
    weights = make_file(experiment / "ckpt/model_oc/000.pth")
    assert experiment.network_of(weights) == experiment / "ckpt/model_oc/network.json"
    assert read_json(experiment.network_of(weights)) == {"class": "CAMNet"}
    assert experiment.network_of(make_file(tmp_path / "own.pth")) is None
    (weights.parent / "network.json").unlink()
    other = Experiment(experiment.root, "Y", experiment.advice)
    with pytest.raises(ValueError, match="X/ckpt/model_oc/network.json.*python train.py --name X --model model_oc"):
        other.network_of(weights)


def test_a_missing_network_json_is_written_again_by_a_training_with_the_same_settings(experiment):
    open_training(experiment, {"lr": 1})
    path = experiment / "ckpt/model_oc/network.json"
    save_checkpoint(experiment / "ckpt/model_oc/last.pth", {"settings": {"lr": 1}})
    path.unlink()
    open_training(experiment, {"lr": 2}, {"class": "another"})          # fit refuses that one
    assert not path.exists()
    open_training(experiment, {"lr": 1})
    assert read_json(path) == {"class": "CAMNet"}
    open_training(experiment, {"lr": 2}, {"class": "another"})
    assert read_json(path) == {"class": "CAMNet"}


def open_training(experiment, record, description=None, overwrite=False, epochs=2, size=1):
    experiment.open_training("model_oc", record | {"device": "cpu"}, record, description or {"class": "CAMNet"}, epochs,
                             size, overwrite)


def test_training_opens_anew_only_if_asked(experiment):
    open_training(experiment, {"lr": 1})
    last = make_file(experiment / "ckpt/model_oc/last.pth")
    experiment.log_epoch("train_model_oc", {"epoch": 0})
    open_training(experiment, {"lr": 2})
    assert read_json(experiment / "config/train_model_oc.json")["settings"]["lr"] == 1 and last.exists()
    open_training(experiment, {"lr": 2}, overwrite=True)
    assert read_json(experiment / "config/train_model_oc.json")["settings"]["lr"] == 2
    assert not last.exists() and experiment.epochs("train_model_oc") == []


def test_overwrite_resumes_a_training_of_the_same_settings(experiment):
    """So the same command, --overwrite in it, resumes after a kill."""
    last = experiment / "ckpt/model_oc/last.pth"
    save_checkpoint(last, {"settings": {"lr": 1}})
    open_training(experiment, {"lr": 1}, overwrite=True)
    assert last.exists()
    open_training(experiment, {"lr": 2}, overwrite=True)
    assert not last.exists()
    for damaged in (b"", b"not a checkpoint"):
        last.parent.mkdir(exist_ok=True)
        last.write_bytes(damaged)
        open_training(experiment, {"lr": 1}, overwrite=True)
        assert not last.exists()


def test_later_lines_of_a_run_cut_off_are_dropped(experiment):
    for epoch, loss in ((0, 1.0), (1, 0.5), (2, 0.4), (1, 0.6)):
        experiment.log_epoch("train_model_oc", {"epoch": epoch, "loss": loss})
    assert experiment.epochs("train_model_oc") == [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.6}]
    assert experiment.epochs("train_model_cse") == []


@pytest.mark.parametrize("line", ['{"epo', "null", "{}", '{"epoch": "1"}', '{"epoch": true}', "[" * 100_000, "9" * 5000,
                                  '{"epoch": 1, "miou": "a"}', '{"epoch": 1, "miou": NaN}'])
def test_a_damaged_log_is_named(experiment, line):
    make_file(experiment / "log/train_model_oc.jsonl", f'{{"epoch": 0}}\n{line}')
    with pytest.raises(ValueError, match="train_model_oc.jsonl is damaged"):
        experiment.epochs("train_model_oc")


def test_a_configuration_says_what_made_it(experiment):
    experiment.save_config("train_model_oc", {"classes": ["Öre", "plant"]})
    record = read_json(experiment / "config/train_model_oc.json")
    assert record["settings"] == {"classes": ["Öre", "plant"]}
    assert record["versions"] == versions() and record["versions"]["numpy"] == np.__version__
    assert set(record) == {"settings", "versions", "revision", "command", "when"} and record["revision"] == revision()


def test_room_is_asked_for_before_writing(tmp_path, monkeypatch, capsys, experiment):
    usage = namedtuple("usage", "total used free")
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage(9 << 30, 6 << 30, 3 << 30))
    require_space(tmp_path / "not/there/yet", 2 << 30)
    assert "about 2.0 GiB to write, 3.0 GiB free" in capsys.readouterr().out and asked == [tmp_path]
    with pytest.raises(OSError, match=r"4.0 GiB.* 3.0 GiB free: make room"):
        require_space(tmp_path, 4 << 30)

    # A training: the weights of each epoch, and four times as much for last.pth.
    open_training(experiment, {}, epochs=8, size=1 << 28)
    with pytest.raises(OSError, match="ckpt/model_oc would take about 3.2 GiB"):
        open_training(experiment, {}, epochs=9, size=1 << 28)
    make_file(experiment / "ckpt/model_oc/000.pth")
    make_file(experiment / "ckpt/model_oc/last.pth")
    open_training(experiment, {}, epochs=9, size=1 << 28)
