"""What lies on disk: files are whole or absent, folders answer for their content, foreign pickles run nothing."""
import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections import namedtuple

import numpy as np
import pytest
import torch

from tools.experiment import (
    Experiment,
    alpha_name,
    alpha_pair,
    digest,
    find_maps,
    lacking,
    load_checkpoint,
    pair_alphas,
    read_cam,
    read_crf,
    read_json,
    require_space,
    revision,
    save_cam,
    save_checkpoint,
    save_crf,
    save_image,
    versions,
    write_json,
    written_aside,
)


@pytest.fixture
def experiment(tmp_path):
    return Experiment(tmp_path / "experiment", "X")


@pytest.fixture
def maps():
    """Give classes 1..C and scores of a picture."""
    return np.array([2, 7, 20]), np.random.default_rng(0).random((3, 9, 11), np.float32)


def make_file(path, text="some weights"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---- whole or absent ----

def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "new/file.txt"
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half of")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with written_aside(path) as aside:
        aside.write_text("whole")
        assert aside.parent == path.parent and not path.exists()        # beside it: a rename, not a copy
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["file.txt"]
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half of another")
        raise RuntimeError
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("save", [
    lambda path: save_cam(path, [1, 2], [np.zeros((2, 2)), "no map"]),
    lambda path: save_crf(path, [0, 1], [np.zeros((2, 2)), "no map"], "npy"),
    lambda path: save_checkpoint(path, {"x": torch.zeros(9), "y": lambda: 0}),
    lambda path: write_json(path, {"x": object()}),
    lambda path: save_image(path, np.zeros((2, 2, 7), np.uint8)),
])
def test_what_cannot_be_written_leaves_nothing(tmp_path, save):
    with pytest.raises(Exception):              # noqa: B017  each writer has its own
        save(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


# ---- folders that answer for their files ----

def test_the_same_claim_keeps_the_files(experiment):
    weights = make_file(experiment / "ckpt/model_cse/014.pth")
    for _ in range(2):
        folder = experiment.claim("dict", "infer model_cse", {"scales": (0.5, 1.0)}, [weights])
        (folder / "a.npz").touch()
    assert folder == experiment / "dict" and sorted(os.listdir(folder)) == ["a.npz", "made_by.json"]
    made_by = read_json(folder / "made_by.json")
    assert made_by == {"stage": "infer model_cse", "settings": {"scales": [0.5, 1.0]},
                       "inputs": {"ckpt/model_cse/014.pth": digest(weights)}}


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
    with pytest.raises(ValueError, match="holds files but no made_by.json"):
        experiment.claim("dict", "infer model_cse", {}, [])
    # --overwrite deletes what this stage made, never what it does not know.
    with pytest.raises(ValueError, match="was not made by this stage"):
        experiment.claim("dict", "infer model_cse", {}, [], overwrite=True)
    experiment.claim("other", "infer model_oc", {}, [])
    make_file(experiment / "other/a.npz")
    with pytest.raises(ValueError, match="was not made by this stage .*by infer model_oc, now infer model_cse"):
        experiment.claim("other", "infer model_cse", {}, [], overwrite=True)
    assert (experiment / "dict/a.npz").exists() and (experiment / "other/a.npz").exists()


def test_a_damaged_made_by_is_named(experiment):
    make_file(experiment / "dict/made_by.json", '{"stage": "inf')
    with pytest.raises(ValueError, match="made_by.json is not whole JSON"):
        experiment.claim("dict", "infer model_cse", {}, [])


@pytest.mark.parametrize("text", ["null", "[]", "3", '{"settings": 1}', '{"inputs": []}', '{"settings": {"data": "x"}}',
                                  "[" * 100_000, "9" * 5000])
def test_a_made_by_of_another_form_is_named(experiment, text):
    make_file(experiment / "dict/made_by.json", text)
    make_file(experiment / "dict/a.npz")
    with pytest.raises(ValueError, match="dict/made_by.json is not"):
        experiment.claim("dict", "infer model_cse", {}, [])
    with pytest.raises(ValueError, match="dict/made_by.json is not"):
        experiment.verify(experiment / "dict")


def test_a_made_by_of_many_words_is_refused_in_few(experiment):
    settings = {str(i) + "x" * 5000: "y" * 5000 for i in range(100)}
    make_file(experiment / "dict/made_by.json", json.dumps({"stage": "z" * 5000, "settings": settings}))
    make_file(experiment / "dict/a.npz")
    with pytest.raises(ValueError, match="dict was not made by this stage") as error:
        experiment.claim("dict", "infer model_cse", {}, [])
    assert len(str(error.value)) < 5000


@pytest.mark.parametrize("name", ["dict", "crf/06", "../X/dict"])
def test_a_folder_made_from_itself_is_refused(experiment, name):
    for folder in ("dict", "crf/06"):
        make_file(experiment / folder / "made_by.json", json.dumps({"inputs": {name: "x"}}))
    with pytest.raises(ValueError, match="made_by.json names the folder itself"):
        experiment.verify(experiment / name)


def test_what_is_no_file_has_not_changed(experiment):
    """A device has no end to be read to, and some names cannot be."""
    inputs = {"/dev/zero": "x", "a\0b": "x", "x" * 5000: "x", "dict/made_by.json/a": "x"}
    make_file(experiment / "dict/made_by.json", json.dumps({"inputs": inputs}))
    experiment.verify(experiment / "dict")


def test_a_stale_chain_is_found(experiment):
    weights = make_file(experiment / "ckpt/model_cse/014.pth")

    def infer():
        dict_ = experiment.claim("dict", "infer model_cse", {}, [weights], overwrite=True)
        return dict_, experiment.claim("crf/06", "infer crf", {"alpha": 6}, [dict_], overwrite=True)

    dict_, crf = infer()
    experiment.verify(dict_)
    experiment.verify(crf)
    experiment.verify(make_file(experiment / "foreign/a.npz").parent)       # no made_by.json: nothing to compare with

    weights.write_text("weights trained anew")
    for folder in (dict_, crf):
        with pytest.raises(ValueError, match="dict is stale: .*014.pth has changed"):
            experiment.verify(folder)
    experiment.claim("dict", "infer model_cse", {}, [weights], overwrite=True)
    experiment.verify(dict_)
    with pytest.raises(ValueError, match="06 is stale: .*dict has changed"):
        experiment.verify(crf)
    infer()
    experiment.verify(crf)


def test_a_chain_from_another_experiment_is_found(experiment, tmp_path):
    elsewhere = make_file(tmp_path / "foreign/some.pth")
    folder = experiment.claim("dict", "infer model_cse", {}, [elsewhere])
    experiment.verify(folder)
    elsewhere.write_text("other weights")
    with pytest.raises(ValueError, match="stale: .*some.pth"):
        experiment.verify(folder)


# ---- maps ----

@pytest.mark.parametrize("format", ["npz", "npy"])
def test_maps_come_back(tmp_path, maps, format):
    classes, scores = maps
    save_cam(tmp_path / f"cam.{format}", classes, scores, format)
    save_crf(tmp_path / f"crf.{format}", [0, *classes[:2]], scores, format)
    for (found, values), expected in ((read_cam(tmp_path / f"cam.{format}"), [2, 7, 20]),
                                      (read_crf(tmp_path / f"crf.{format}"), [0, 2, 7])):
        assert found.dtype == np.int64 and found.tolist() == expected
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, scores, atol=0 if format == "npy" else 5e-4)


def test_on_disk_they_are_as_said(tmp_path, maps):
    classes, scores = maps
    save_cam(tmp_path / "a.npz", classes, scores)
    save_cam(tmp_path / "a.npy", classes, scores, "npy")
    save_crf(tmp_path / "b.npy", [0, 2, 7], scores, "npy")
    with np.load(tmp_path / "a.npz") as file:
        assert sorted(file) == ["classes", "scores"]
        assert (file["classes"].dtype, file["scores"].dtype) == (np.uint8, np.float16)
    cam, crf = (pickle.loads((tmp_path / f"{name}.npy").read_bytes()[128:]).item() for name in "ab")
    assert list(cam) == [1, 6, 19] and list(crf) == [0, 2, 7]           # the authors' keys
    assert all(m.dtype == np.float32 and m.shape == (9, 11) for m in (*cam.values(), *crf.values()))


@pytest.mark.parametrize("format", ["npz", "npy"])
def test_a_picture_of_no_class(tmp_path, format):
    save_cam(tmp_path / f"a.{format}", np.zeros(0, np.int64), np.zeros((0, 4, 5), np.float32), format)
    classes, scores = read_cam(tmp_path / f"a.{format}")
    assert classes.shape == (0,) and scores.shape == ((0, 4, 5) if format == "npz" else (0, 0, 0))


def test_npy_files_as_numpy_itself_writes_them(tmp_path, maps):
    """The authors' np.save(path, dict), also with keys and maps as older numpys pickle them."""
    _, scores = maps
    table = np.array({np.int64(6): scores[0], 1: scores[1]}, dtype=object)
    np.save(tmp_path / "a.npy", table, allow_pickle=True)
    with open(tmp_path / "old.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(pickle.dumps(table, protocol=3).replace(b"numpy._core.", b"numpy.core."))
    for name in ("a", "old"):
        classes, found = read_cam(tmp_path / f"{name}.npy")
        assert classes.tolist() == [2, 7]
        np.testing.assert_array_equal(found, scores[[1, 0]])


class Program:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrapped", [lambda p: p, lambda p: {0: p}, lambda p: {0: np.array([p, None], object)}])
def test_a_pickle_with_a_program_is_refused_and_not_run(tmp_path, wrapped):
    np.save(tmp_path / "a.npy", np.array(wrapped(Program(tmp_path / "ran")), dtype=object), allow_pickle=True)
    for read in (read_cam, read_crf):
        with pytest.raises(ValueError, match=r"a.npy cannot be read \(it holds (posix|nt).mkdir, not only arrays"):
            read(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()


def test_an_npz_with_a_pickle_is_refused_and_not_run(tmp_path):
    objects = np.array([Program(tmp_path / "ran"), None], dtype=object)
    np.savez(tmp_path / "a.npz", classes=objects, scores=np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="a.npz cannot be read"):
        read_cam(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"scores": np.zeros((1, 2, 2))}, {"classes": np.ones(1)}, {},
                                     {"classes": np.ones(2), "scores": np.zeros((1, 2, 2))},
                                     {"classes": np.ones(2), "scores": np.zeros((2, 4))}])
def test_missing_and_ill_fitting_arrays_are_named(tmp_path, content):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(ValueError, match="a.npz cannot be read .* delete it and run infer.py again"):
        read_cam(tmp_path / "a.npz")


@pytest.mark.parametrize("array", [np.zeros((2, 3, 3)), np.array([{0: 1}, {1: 2}]), np.array("text", object),
                                   np.array({0: np.zeros((2, 2)), 1: np.zeros((3, 3))}),
                                   np.array({"person": np.zeros((2, 2))}), np.array({0: "text"})])
def test_other_npy_files_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match="a.npy cannot be read"):
        read_cam(tmp_path / "a.npy")


@pytest.mark.parametrize("content, message", [
    ({"classes": np.array([1.0, 2.0])}, "classes are float64, not integers"),
    ({"classes": np.array([1, 255])}, "not ids of 0..254"), ({"classes": np.array([-1, 2])}, "not ids of 0..254"),
    ({"classes": np.array([2, 2])}, "each once"), ({"classes": np.array(["1", "2"])}, "are no <U1 array"),
    ({"scores": np.full((2, 3, 4), np.nan)}, "NaN or infinity"),
    ({"scores": np.full((2, 3, 4), 1e300)}, "NaN or infinity"),
    ({"scores": np.ones((2, 3, 4), complex)}, "are no complex128 array"),
])
def test_what_no_map_can_be_is_refused(tmp_path, content, message):
    np.savez(tmp_path / "a.npz", **{"classes": np.array([1, 2]), "scores": np.ones((2, 3, 4))} | content)
    with pytest.raises(ValueError, match=f"a.npz cannot be read .*{message}"):
        read_cam(tmp_path / "a.npz")


@pytest.mark.parametrize("key", [-1, 255, 1.5, 2**70, True, np.float32(3), (1,)])
def test_what_no_class_can_be_is_refused(tmp_path, key):
    np.save(tmp_path / "a.npy", np.array({key: np.ones((2, 3))}, dtype=object))
    with pytest.raises(ValueError, match="a.npy cannot be read"):
        read_crf(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", ["(1, 3, 4)", "(3, 3, 4)", "(2, 3, 3)", "(100000000000, 3, 4)", "(-1, 3, 4)"])
def test_a_header_is_not_believed(tmp_path, shape):
    """Neither is room made for what it announces, nor are bytes left over."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array, said in (("classes", np.array([1, 2]), "(2,)"), ("scores", np.ones((2, 3, 4)), shape)):
            header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {said}}}\n".encode()
            start = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header))
            archive.writestr(f"{name}.npy", start + header + array.tobytes())
    with pytest.raises(ValueError, match="a.npz cannot be read .*bytes are no"):
        read_cam(path)


def test_only_numpys_packing_is_unpacked(tmp_path):
    """A few bytes in bzip2 may be gigabytes."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("classes.npy", bytes(10**6))
    with pytest.raises(ValueError, match="packed otherwise than numpy packs"):
        read_cam(tmp_path / "a.npz")


@pytest.fixture
def memory():
    """Give a function that says how many bytes Python and numpy have had at most since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("old, new", [
    (b"K\x00\x85", b"J\0\0\0\x08\x85"),                   # numpy's _reconstruct would make room for 2^27 numbers
    (b"\xff\xff\xff\xffK\x00t", b"\xff\xff\xff\xffK\x01t"),   # a type of such flags crashes numpy later
    (b"bsa", b"bsar\0\0\0\x01"),                           # Python's unpickler in C would remember 2^24 objects
])
def test_a_pickle_is_not_believed(tmp_path, memory, old, new):
    scores = np.ones((2, 3), np.float32)
    content = pickle.dumps(np.array({1: scores}, dtype=object), protocol=3)
    place = content.rindex(old)
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(content[:place] + new + content[place + len(old):])
    classes, found = read_cam(tmp_path / "a.npy")
    assert memory() < 10**6 and classes.tolist() == [2]
    np.testing.assert_array_equal(found, scores[None])


def test_a_header_without_end(tmp_path, memory):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x02\0" + b"\xff" * 4)
    with pytest.raises(ValueError, match="a.npy cannot be read"):
        read_cam(tmp_path / "a.npy")
    assert memory() < 10**6


@pytest.mark.parametrize("table", [dict.fromkeys((1, 2), np.ones((20, 30))), {1: [[1.0, 2.0]]}, {1: 3.0}])
def test_other_dicts_are_refused(tmp_path, table):
    np.save(tmp_path / "a.npy", np.array(table, dtype=object))
    with pytest.raises(ValueError, match="a.npy cannot be read"):
        read_cam(tmp_path / "a.npy")


def test_a_deep_key_is_refused(tmp_path):
    """Python's own hash of so deep a tuple crashes."""
    np.save(tmp_path / "a.npy", np.array({}, dtype=object))
    start = (tmp_path / "a.npy").read_bytes()[:128]
    (tmp_path / "a.npy").write_bytes(start + b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.")
    with pytest.raises(ValueError, match="a.npy cannot be read .*not a dict of maps"):
        read_cam(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["cam.npz", "cam.npy", "crf.npz", "crf.npy"])
def test_cut_or_altered_maps_are_named(tmp_path, maps, name):
    path = tmp_path / name
    (save_cam if name[:3] == "cam" else save_crf)(path, *maps, name[-3:])
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for size in sorted({0, 1, 10, len(whole) - 1, *rng.integers(0, len(whole), 30).tolist()}):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{name} cannot be read .* delete it"):
            read_crf(path)
    for _ in range(300):
        altered = bytearray(whole)
        altered[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        try:
            read_crf(path)
        except ValueError as error:
            assert f"{name} cannot be read" in str(error)


def test_maps_that_are_not_there(tmp_path):
    for name in ("a.npz", "a.npy"):
        with pytest.raises(FileNotFoundError, match=name):
            read_cam(tmp_path / name)
    assert find_maps(tmp_path, "a") is None
    (tmp_path / "a.npy").touch()
    assert find_maps(tmp_path, "a").name == "a.npy"
    (tmp_path / "a.npz").touch()
    assert find_maps(tmp_path, "a").name == "a.npz"


@pytest.mark.parametrize(("alpha", "name"), [(4, "04"), (6.0, "06"), (24, "24"), (2.5, "02.5"), (12.5, "12.5")])
def test_folders_of_alphas(alpha, name):
    assert alpha_name(alpha) == name


@pytest.mark.parametrize(("low", "high", "name"), [(4, 24, "04_24"), (2.5, 10.0, "02.5_10")])
def test_a_pair_of_alphas_and_back(low, high, name):
    assert alpha_pair(low, high) == name and pair_alphas(name) == (f"{low:g}", f"{high:g}")
    assert [pair_alphas(other) for other in ("mine", "04", "04_24_30", "a_b", "")] == [None] * 5


def test_what_a_folder_lacks():
    ids = list("abcdefgh")
    assert lacking("CAMs", "X/dict", ids[:2], ids, "val") == "2 of the 8 images of val have no CAMs in X/dict (a, b)"
    assert lacking("CAMs", "X/dict", ids[:6], ids, "val").endswith("(a, b, c, d, e ...)")


# ---- checkpoints ----

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
    with pytest.raises(ValueError, match="config/train_model_oc.json does not tell classes, blocks:"):
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


def test_a_checkpoint_comes_back_and_runs_nothing(tmp_path):
    value = {"weights": {"a": torch.arange(6.0)}, "step": 3, "settings": {"resize": [256, 448], "norm": "frozen"}}
    save_checkpoint(tmp_path / "a.pth", value)
    found = load_checkpoint(tmp_path / "a.pth")
    assert torch.equal(found["weights"].pop("a"), value["weights"].pop("a")) and found == value
    torch.save({"a": Program(tmp_path / "ran")}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="b.pth is cut off or damaged, or holds a program"):
        load_checkpoint(tmp_path / "b.pth")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "c.pth")


def test_cut_checkpoints_are_named(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"weights": {"a": torch.arange(60.0)}})
    whole = path.read_bytes()
    for size in (0, 1, 3, 4, 30, *range(50, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="a.pth is cut off or damaged.*--overwrite"):
            load_checkpoint(path)


def test_a_changed_bit_in_a_checkpoint_is_seen(tmp_path):
    """torch looks at no check sum, and would train on."""
    path, numbers = tmp_path / "a.pth", torch.arange(60.0)
    save_checkpoint(path, {"weights": numbers})
    content = bytearray(path.read_bytes())
    content[content.index(numbers.numpy().tobytes()) + 9] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["weights"], numbers)
    with pytest.raises(ValueError, match="a.pth is cut off or damaged"):
        load_checkpoint(path)


def test_a_packed_checkpoint_is_refused(tmp_path):
    """torch.save does not pack, and what is packed may be a thousand times as large."""
    save_checkpoint(tmp_path / "a.pth", {"weights": torch.zeros(9)})
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="b.pth is cut off or damaged"):
        load_checkpoint(tmp_path / "b.pth")


# ---- logs, configurations, room ----

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


@pytest.mark.parametrize("text", ["", '{"a": 1', "{'a': 1}", "\xff", "[" * 100_000, "9" * 5000])
def test_damaged_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match="a.json is not whole JSON .* delete it"):
        read_json(tmp_path / "a.json")


def test_json_keeps_letters(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 0.25, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1, 0.25, None]}
    assert "é" in (tmp_path / "a.json").read_text("utf-8") and json.loads((tmp_path / "a.json").read_bytes())


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
