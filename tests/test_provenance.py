"""Folders answer for their content: who made them, from what, and whether that has changed since."""
import json
import os
import shutil

import numpy as np
import pytest

from tests.conftest import make_file
from tools.experiment import Experiment
from tools.files import read_json, save_animation, save_image, save_label_map
from tools.maps import save_cam, save_crf
from tools.provenance import digest, verify


@pytest.fixture
def experiment(tmp_path):
    return Experiment(tmp_path / "experiment", "X")


def test_the_same_claim_keeps_the_files(experiment):
    weights = make_file(experiment / "ckpt/model_cse/014.pth")
    for _ in range(2):
        folder = experiment.claim("dict", "infer model_cse", {"scales": (0.5, 1.0)}, [weights])
        (folder / "a.npz").touch()
    assert folder == experiment / "dict" and sorted(os.listdir(folder)) == ["a.npz", "made_by.json"]
    made_by = read_json(folder / "made_by.json")
    assert made_by == {"stage": "infer model_cse", "settings": {"scales": [0.5, 1.0]},
                       "inputs": {"ckpt/model_cse/014.pth": digest(weights)}}


@pytest.mark.parametrize("shared", [False, True])
def test_what_a_power_cut_left_is_made_again(experiment, capsys, shared):
    """Maps and images of each kind, empty or cut off; complete ones and the record stay. A shard alone does so too."""
    save = {"cam.npz": lambda path: save_cam(path, [1], np.ones((1, 9, 9))),
            "cam.npy": lambda path: save_cam(path, [1], np.ones((1, 9, 9)), "npy"),
            "crf.npz": lambda path: save_crf(path, [0, 1], np.ones((2, 9, 9))),
            "crf.npy": lambda path: save_crf(path, [0, 1], np.ones((2, 9, 9)), "npy"),
            "label.png": lambda path: save_label_map(path, np.eye(9), bytes(768)),
            "overlay.png": lambda path: save_image(path, np.zeros((9, 9, 3), np.uint8)),
            "strip.gif": lambda path: save_animation(path, [np.zeros((9, 9, 3), np.uint8)])}
    folder = experiment.claim("maps", "infer model_cse", {}, [])
    for name, write in save.items():
        for kind in ("complete", "empty", "cut"):
            write(folder / f"{kind}_{name}")
        (folder / f"empty_{name}").write_bytes(b"")
        (folder / f"cut_{name}").write_bytes((folder / f"cut_{name}").read_bytes()[:-5])
    experiment.release()
    experiment.claim("maps", "infer model_cse", {}, [], shared=shared)
    assert sorted(os.listdir(folder)) == sorted(["made_by.json", *(f"complete_{name}" for name in save)])
    assert "cut_cam.npz" in capsys.readouterr().out


@pytest.mark.parametrize(("stage", "settings", "text", "words"), [
    ("infer model_cse", {"scales": [1.0], "labels": "given"}, "some weights",
     r"scales: then \[0.5, 1.0\], now \[1.0\]"),
    ("infer model_cse", {"scales": [0.5, 1.0], "labels": "given", "new": 3}, "some weights", "new: then absent, now 3"),
    ("infer model_cse", {"scales": [0.5, 1.0]}, "some weights", "labels: then given, now absent"),
    ("infer model_cse", {"scales": [0.5, 1.0], "labels": "given"}, "other weights",
     r"ckpt/model_cse/014.pth: then [0-9a-f]{12}, now [0-9a-f]{12}\)"),
])
def test_another_claim_is_refused_by_name(experiment, stage, settings, text, words):
    weights = make_file(experiment / "ckpt/model_cse/014.pth")
    folder = experiment.claim("dict", "infer model_cse", {"scales": [0.5, 1.0], "labels": "given"}, [weights])
    (folder / "a.npz").touch()
    weights.write_text(text)
    with pytest.raises(ValueError, match=f"dict was made differently .*{words}.*--overwrite"):
        experiment.claim("dict", stage, settings, [weights])
    assert (folder / "a.npz").exists()

    experiment.claim("dict", stage, settings, [weights], overwrite=True)
    assert os.listdir(folder) == ["made_by.json"] and read_json(folder / "made_by.json")["stage"] == stage
    assert sorted(os.listdir(experiment.folder)) == [".lock", "ckpt", "dict"]           # nothing left aside
    experiment.claim("dict", stage, settings, [weights])


def test_a_folder_of_unknown_files_is_refused(experiment):
    make_file(experiment / "dict/a.npz")
    with pytest.raises(ValueError, match="no made_by.json"):
        experiment.claim("dict", "infer model_cse", {}, [])
    # --overwrite deletes what this stage made, never what it does not know.
    with pytest.raises(ValueError, match="was not written by this stage"):
        experiment.claim("dict", "infer model_cse", {}, [], overwrite=True)
    experiment.claim("other", "infer model_oc", {}, [])
    make_file(experiment / "other/a.npz")
    with pytest.raises(ValueError, match="was not written by this stage .*by infer model_oc, now infer model_cse"):
        experiment.claim("other", "infer model_cse", {}, [], overwrite=True)
    assert (experiment / "dict/a.npz").exists() and (experiment / "other/a.npz").exists()


def test_a_damaged_made_by_is_named(experiment):
    make_file(experiment / "dict/made_by.json", '{"stage": "inf')
    with pytest.raises(ValueError, match="made_by.json is not complete JSON .* delete the folder .*dict,"):
        experiment.claim("dict", "infer model_cse", {}, [])
    shutil.rmtree(experiment / "dict")          # without its record alone, the folder would be nobody's
    experiment.claim("dict", "infer model_cse", {}, [])


@pytest.mark.parametrize("text", ["null", "[]", "3", '{"settings": 1}', '{"inputs": []}', '{"settings": {"data": "x"}}',
                                  "[" * 100_000, "9" * 5000])
def test_a_made_by_of_another_form_is_named(experiment, text):
    make_file(experiment / "dict/made_by.json", text)
    make_file(experiment / "dict/a.npz")
    with pytest.raises(ValueError, match="dict/made_by.json is not"):
        experiment.claim("dict", "infer model_cse", {}, [])
    with pytest.raises(ValueError, match="dict/made_by.json is not"):
        verify(experiment / "dict", experiment.folder)


def test_a_made_by_of_many_words_is_refused_in_few(experiment):
    settings = {str(i) + "x" * 5000: "y" * 5000 for i in range(100)}
    make_file(experiment / "dict/made_by.json", json.dumps({"stage": "z" * 5000, "settings": settings}))
    make_file(experiment / "dict/a.npz")
    with pytest.raises(ValueError, match="dict was not written by this stage") as error:
        experiment.claim("dict", "infer model_cse", {}, [])
    assert len(str(error.value)) < 5000


@pytest.mark.parametrize("name", ["dict", "crf/06", "../X/dict"])
def test_a_folder_made_from_itself_is_refused(experiment, name):
    for folder in ("dict", "crf/06"):
        make_file(experiment / folder / "made_by.json", json.dumps({"inputs": {name: "x"}}))
    with pytest.raises(ValueError, match="made_by.json names the folder itself"):
        verify(experiment / name, experiment.folder)


def test_what_is_no_file_has_not_changed(experiment):
    """A device has no end to be read to, and some names cannot be."""
    inputs = {"/dev/zero": "x", "a\0b": "x", "x" * 5000: "x", "dict/made_by.json/a": "x"}
    make_file(experiment / "dict/made_by.json", json.dumps({"inputs": inputs}))
    verify(experiment / "dict", experiment.folder)


def test_a_stale_chain_is_found(experiment):
    weights = make_file(experiment / "ckpt/model_cse/014.pth")

    def infer():
        dict_ = experiment.claim("dict", "infer model_cse", {}, [weights], overwrite=True)
        return dict_, experiment.claim("crf/06", "infer crf", {"alpha": 6}, [dict_], overwrite=True)

    dict_, crf = infer()
    verify(dict_, experiment.folder)
    verify(crf, experiment.folder)
    verify(make_file(experiment / "foreign/a.npz").parent, experiment.folder)      # no made_by.json

    weights.write_text("weights trained anew")
    for folder in (dict_, crf):
        with pytest.raises(ValueError, match="dict is stale: .*014.pth has changed"):
            verify(folder, experiment.folder)
    experiment.claim("dict", "infer model_cse", {}, [weights], overwrite=True)
    verify(dict_, experiment.folder)
    with pytest.raises(ValueError, match="06 is stale: .*dict has changed"):
        verify(crf, experiment.folder)
    infer()
    verify(crf, experiment.folder)


def test_a_chain_from_another_experiment_is_found(experiment, tmp_path):
    elsewhere = make_file(tmp_path / "foreign/some.pth")
    folder = experiment.claim("dict", "infer model_cse", {}, [elsewhere])
    verify(folder, experiment.folder)
    elsewhere.write_text("other weights")
    with pytest.raises(ValueError, match="stale: .*some.pth"):
        verify(folder, experiment.folder)


# ---- the outputs of an inference stage ----

def test_outputs_are_claimed_in_order_and_recorded(experiment):
    weights = make_file(experiment / "ckpt/model_cse/014.pth")
    settings = {"shard": "1/2", "overwrite": False, "alphas": [4]}
    outputs = {"dict": ("dict", "infer", {"scales": [1.0]}, [weights]),
               4: ("crf/04", "infer crf", {"alpha": 4}, [experiment / "dict"])}
    sized = []
    folders = experiment.open_outputs("infer_x", settings, outputs, lambda found: sized.append(found) or 5, "9 images")
    assert folders == {"dict": experiment / "dict", 4: experiment / "crf/04"} == sized[0]
    assert read_json(experiment / "crf/04/made_by.json")["inputs"] == {"dict": digest(experiment / "dict")}
    assert read_json(experiment / "config/infer_x.json")["settings"] == settings
    assert (experiment / "log.txt").read_text().endswith("infer_x  9 images\n")
    assert (experiment / ".lock/dict, shard 1_2.lock").exists()
    with pytest.raises(OSError, match="dict would take about .*--experiment_root"):
        experiment.open_outputs("infer_x", settings, outputs, lambda _: 2**70, "")
    experiment.release()
