"""An experiment on disk: weights, starting weights, trainings, logs, configurations."""
import shutil
from collections import namedtuple

import numpy as np
import pytest

from tests.conftest import make_file
from tools.experiment import Experiment
from tools.files import read_json, require_space, save_checkpoint
from tools.provenance import revision, versions


@pytest.fixture
def experiment(tmp_path):
    return Experiment(tmp_path / "experiment", "X")


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
    assert ("chosen on pixel truth" in capsys.readouterr().out) == (which == "best")


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
    assert trained.find_init("random") is None
    assert trained.find_init("X/model_oc") == trained / "ckpt/model_oc/010.pth"
    assert trained.find_init("X/model_oc/001") == trained / "ckpt/model_oc/001.pth"
    file = make_file(tmp_path / "my/own.pth")
    assert trained.find_init(str(file)) == file
    with pytest.raises(ValueError, match="resnet_38d.params is not there. pretrained/README.md .*--er_init random"):
        trained.find_init("imagenet")
    words = "res38_cls.pth is not there.*python train.py --name X --model model_oc.*--cl_init X/model_oc"
    with pytest.raises(ValueError, match=words):
        trained.find_init("cam", "cl_init")
    with pytest.raises(ValueError, match="resnet_38d.params is not there.*--init random"):
        trained.find_init("imagenet", "init")
    for name, source in (("resnet_38d.params", "imagenet"), ("res38_cls.pth", "cam")):
        make_file(tmp_path / "pretrained" / name)
        assert trained.find_init(source).resolve() == tmp_path / "pretrained" / name
    with pytest.raises(ValueError, match="python train.py --name Y --model model_oc"):
        trained.find_init("Y/model_oc")
    with pytest.raises(ValueError, match="python train.py --name X --model model_cse"):
        trained.find_init("X/model_cse")
    for model, command in (("seg", "train_seg.py --name X"), ("aff_04_24", "train_aff.py --name X --low 4 --high 24")):
        with pytest.raises(ValueError, match=f"ckpt/{model} holds no weights: python {command}"):
            trained.find_init(f"X/{model}")
    with pytest.raises(ValueError, match="no epoch 7"):
        trained.find_init("X/model_oc/7")
    with pytest.raises(ValueError, match="no weights 'nonsense'.*random, imagenet, cam, a file, or EXPERIMENT/MODEL"):
        trained.find_init("nonsense")


def test_settings_of_a_training(experiment, tmp_path):
    experiment.open_training("model_oc", {"max_epochs": 2, "width": 0.5}, 1, overwrite=False)
    weights = make_file(experiment / "ckpt/model_oc/000.pth")
    assert experiment.settings_of(weights, "width") == {"max_epochs": 2, "width": 0.5}
    with pytest.raises(ValueError, match="config/train_model_oc.json lacks classes, blocks:"):
        experiment.settings_of(weights, "classes", "width", "blocks")
    assert experiment.settings_of(None) is None
    assert experiment.settings_of(make_file(tmp_path / "own.pth")) is None
    for text in ("[]", "{}", '{"settings": 3}'):
        make_file(experiment / "config/train_model_oc.json", text)
        with pytest.raises(ValueError, match="config/train_model_oc.json holds no settings"):
            experiment.settings_of(weights)


def test_training_opens_anew_only_if_asked(experiment):
    first, second = {"max_epochs": 2, "lr": 1}, {"max_epochs": 2, "lr": 2}
    experiment.open_training("model_oc", first, 1, overwrite=False)
    last = make_file(experiment / "ckpt/model_oc/last.pth")
    experiment.log_epoch("train_model_oc", {"epoch": 0})
    experiment.open_training("model_oc", second, 1, overwrite=False)
    assert read_json(experiment / "config/train_model_oc.json")["settings"] == first and last.exists()
    experiment.open_training("model_oc", second, 1, overwrite=True)
    assert read_json(experiment / "config/train_model_oc.json")["settings"] == second
    assert not last.exists() and experiment.epochs("train_model_oc") == []


def test_overwrite_goes_on_with_a_training_of_the_same_settings(experiment):
    """So the same command, --overwrite in it, is the way on after a kill."""
    settings, content = {"max_epochs": 2, "lr": 1, "device": "cpu"}, {"lr": 1}
    last = experiment / "ckpt/model_oc/last.pth"
    save_checkpoint(last, {"settings": content})
    experiment.open_training("model_oc", settings, 1, True, content)
    assert last.exists()
    experiment.open_training("model_oc", settings, 1, True, {"lr": 2})
    assert not last.exists()
    for damaged in (b"", b"not a checkpoint"):
        last.parent.mkdir(exist_ok=True)
        last.write_bytes(damaged)
        experiment.open_training("model_oc", settings, 1, True, content)
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
    assert "about 2.00 GiB to write, 3 GiB free" in capsys.readouterr().out and asked == [tmp_path]
    with pytest.raises(OSError, match=r"would take about 4.0 GiB, the disk has 3.0 GiB free: make room"):
        require_space(tmp_path, 4 << 30)

    # A training: the weights of each epoch, and four times as much for last.pth.
    experiment.open_training("model_oc", {"max_epochs": 8}, 1 << 28, overwrite=False)
    with pytest.raises(OSError, match="ckpt/model_oc would take about 3.2 GiB"):
        experiment.open_training("model_oc", {"max_epochs": 9}, 1 << 28, overwrite=False)
    make_file(experiment / "ckpt/model_oc/000.pth")
    make_file(experiment / "ckpt/model_oc/last.pth")
    experiment.open_training("model_oc", {"max_epochs": 9}, 1 << 28, overwrite=False)
