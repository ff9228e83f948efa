"""Maps that other projects wrote are read; CAMs and CRF maps are not taken for each other; nobody's file is deleted."""
import json
import pickle
import tracemalloc
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import Program
from tools.map_classes import compare_with_labels
from tools.maps import (
    alpha_name,
    checked_cam,
    checked_crf,
    find_alike,
    find_maps,
    is_foreign,
    kind_of,
    read_cam,
    read_crf,
    require_kind,
    save_cam,
    save_crf,
)

SIX = SimpleNamespace(root="data/critters", classes=list("abcdef"))
RNG = np.random.default_rng(0)
MAPS = RNG.random((2, 9, 11), np.float32)
STRIDED = RNG.random((2, 3, 3), np.float32)


def save_npy(path, table):
    np.save(path.with_suffix(".npy"), table, allow_pickle=True)
    return path.with_suffix(".npy")


def save_npz(path, table):
    np.savez(path.with_suffix(".npz"), **{name: np.asarray(value) for name, value in table.items()})
    return path.with_suffix(".npz")


def save_pth(path, table):
    torch.save(table, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def save_old_pt(path, table):
    torch.save(table, path.with_suffix(".pt"), _use_new_zipfile_serialization=False)
    return path.with_suffix(".pt")


SAVERS = [save_npy, save_npz, save_pth, save_old_pt]
PICKLED = [save_npy, save_pth, save_old_pt]


def record(folder, stage, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made_by.json").write_text(json.dumps({"stage": stage, "settings": settings, "inputs": {}}))
    return folder


def crf_like(rows, shape=(9, 11)):
    scores = np.random.default_rng(rows).random((rows, *shape), np.float32)
    return scores / scores.sum(0)


# ---- what others write ----

TABLES = {
    "irn": {"keys": torch.tensor([1, 4]), "cam": torch.tensor(STRIDED), "high_res": MAPS},
    "irn, all tensors": {"keys": torch.tensor([1, 4]), "cam": torch.tensor(STRIDED), "high_res": torch.tensor(MAPS)},
    "irn, all arrays": {"keys": np.array([1, 4]), "cam": STRIDED, "high_res": MAPS},
    "Puzzle-CAM": {"keys": np.array([0, 2, 5]), "cam": torch.tensor(STRIDED), "hr_cam": MAPS},
    "Puzzle-CAM, walked": {"keys": np.array([0, 2, 5]), "rw": MAPS},
    "CLIP-ES": {"keys": np.array([1, 4]), "attn_highres": MAPS},
    "no strided": {"keys": np.array([1, 4], np.uint8), "high_res": MAPS},
    "only cam": {"keys": torch.tensor([1, 4], dtype=torch.int32), "cam": torch.tensor(MAPS)},
    "a list": {"keys": [1, 4], "high_res": MAPS},
    "numpy's numbers": {"keys": [np.int64(1), np.int64(4)], "high_res": MAPS},
    "our arrays": {"classes": np.array([2, 5]), "scores": MAPS},
}


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("name", TABLES)
def test_dicts_of_others_are_read(tmp_path, save, name):
    path = save(tmp_path / "a", TABLES[name])
    assert find_maps(tmp_path, "a") == path
    classes, scores = read_cam(path)
    assert classes.dtype == np.int64 and classes.tolist() == [2, 5]
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, MAPS)
    assert checked_cam(path, SIX, (9, 11))[0].tolist() == [2, 5]


@pytest.mark.parametrize("save", PICKLED)
@pytest.mark.parametrize("make", [lambda x: x, torch.tensor, lambda x: torch.tensor(x).requires_grad_(),
                                  lambda x: torch.nn.Parameter(torch.tensor(x)),
                                  lambda x: torch.tensor(np.pad(x, ((2, 1), (0, 3))))[2:-1, :-3],
                                  lambda x: torch.tensor(x.T.copy()).T])
def test_dicts_of_maps_by_class(tmp_path, save, make):
    """psa's and SEAM's dicts; tensors may be parts of larger ones, or lie in another order."""
    for table in ({4: make(MAPS[1]), 1: make(MAPS[0])}, OrderedDict({1: make(MAPS[0]), np.int64(4): make(MAPS[1])})):
        classes, scores = read_cam(save(tmp_path / "a", table))
        assert classes.tolist() == [2, 5]
        np.testing.assert_array_equal(scores, MAPS)


@pytest.mark.parametrize("save", PICKLED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_tensors_of_other_types(tmp_path, save, dtype):
    tensor = torch.tensor(MAPS).round(decimals=1 if dtype.is_floating_point else 0).to(dtype)
    _, scores = read_cam(save(tmp_path / "a", {"keys": torch.tensor([1, 4]), "high_res": tensor}))
    np.testing.assert_array_equal(scores, tensor.float().numpy())


@pytest.mark.parametrize("table", [
    {"keys": torch.zeros(0, dtype=torch.int64), "cam": torch.zeros(0, 3, 3), "high_res": np.zeros((0, 9, 11))},
    {"keys": [], "high_res": []}, {"keys": np.array([0]), "hr_cam": np.zeros((0, 9, 11))}, {}])
def test_an_image_of_no_class(tmp_path, table):
    path = save_npy(tmp_path / "a", table)
    assert len(read_cam(path)[0]) == 0
    classes, scores = checked_cam(path, SIX, (9, 11))
    assert classes.shape == (0,) and scores.shape == (0, 9, 11)
    with pytest.raises(ValueError, match="background.*no CRF maps"):
        checked_crf(path, SIX)


@pytest.mark.parametrize("table, words", [
    ({"keys": np.array([1, 4])}, "no high_res"), ({"keys": np.array([1.0, 4.0]), "high_res": MAPS}, "keys are float64"),
    ({"keys": np.array([1, 4, 5]), "high_res": MAPS}, "do not fit together"),
    ({"keys": np.array([1, 4]), "high_res": MAPS[0]}, "do not fit together"),
    ({"keys": np.array([1, 255]), "high_res": MAPS}, "not ids of 0..254"),
    ({"keys": np.array([1, 1]), "high_res": MAPS}, "each once"),
    ({"keys": np.array([1, 4]), "high_res": MAPS * np.nan}, "NaN"),
    ({"keys": "fox", "high_res": MAPS}, "not integers"), ({"fox": MAPS[0]}, "not a dict of arrays"),
    ({"image": "a.jpg"}, "not a dict of arrays"), ({1: MAPS[0], "image": "a.jpg"}, "not a dict of arrays")])
def test_what_cannot_be_read_is_not_to_be_deleted(tmp_path, table, words):
    for save in PICKLED:
        path = save(tmp_path / "a", table)
        for read in (read_cam, read_crf, lambda path: checked_cam(path, SIX, (9, 11)), lambda p: checked_crf(p, SIX)):
            with pytest.raises(ValueError, match=f"{path.name} cannot be read .*{words}") as caught:
                read(path)
            assert "delete" not in str(caught.value) and "another folder" in str(caught.value)


# ---- nothing in them is run or believed ----

@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("wrapped", [lambda p: p, lambda p: {"keys": p, "high_res": p}, lambda p: {"high_res": [p]},
                                     lambda p: {"other": p, "keys": [1], "high_res": MAPS[:1]}])
def test_a_program_is_not_run(tmp_path, save, wrapped):
    table = wrapped(Program(tmp_path / "ran"))
    path = save(tmp_path / "a", table if isinstance(table, dict) or save is not save_npz else {"keys": table})
    for read in (read_cam, read_crf):
        try:
            classes, _ = read(path)
            assert save is save_npz and classes.tolist() == [1 + (read is read_cam)]    # .npz: the wanted members alone
        except ValueError as error:
            assert f"{path.name} cannot be read" in str(error)
    assert not (tmp_path / "ran").exists()


class Tensor:
    """Pickled, a tensor whose storage is given as bytes: what torch writes within an .npy."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        storage = _Load(self.content)
        return torch._utils._rebuild_tensor_v2, (storage, 0, (1,), (1,), False, OrderedDict())


class _Load:
    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


def test_a_program_in_a_tensors_bytes_is_not_run(tmp_path):
    legacy = [0x1950A86A20F9469CFC6C, 1001, {}, Program(tmp_path / "ran"), []]
    for content in (pickle.dumps(legacy[3], 2), b"".join(pickle.dumps(part, 2) for part in legacy), b""):
        path = save_npy(tmp_path / "a", {"keys": Tensor(content), "high_res": MAPS})
        with pytest.raises(ValueError, match="a.npy cannot be read"):
            read_cam(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("save", PICKLED)
def test_the_size_of_a_tensor_is_not_believed(tmp_path, save):
    """A number that is said to be there 10^10 times, and a part that lies outside."""
    huge = save(tmp_path / "huge", {"keys": [1], "high_res": torch.zeros(1).expand(1, 100_000, 100_000)})
    part = torch.zeros(300).as_strided((1, 3, 3), (9, 3, 1), 290)
    outside = save(tmp_path / "outside", {"keys": [1], "high_res": part})
    content = outside.read_bytes()
    assert content.count(b"M\x22\x01") == 1                 # the offset, 290
    if save is not save_pth:                                # its zip has checksums
        outside.write_bytes(content.replace(b"M\x22\x01", b"M\x2a\x01"))
    tracemalloc.start()
    try:
        for path in (huge, outside):
            if path == outside and save is save_pth:
                continue
            with pytest.raises(ValueError, match=f"{path.name} cannot be read .*are no tensor of"):
                read_cam(path)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("save", SAVERS)
def test_cut_or_altered_files_are_named(tmp_path, save):
    path = save(tmp_path / "a", TABLES["irn, all tensors"])
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for size in sorted({0, 1, 10, len(content) - 1, *rng.integers(0, len(content), 20).tolist()}):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"{path.name} cannot be read"):
            read_cam(path)
    for _ in range(200):
        altered = bytearray(content)
        altered[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        try:
            read_cam(path)
        except ValueError as error:
            assert f"{path.name} cannot be read" in str(error)


# ---- the kinds ----

def test_a_file_of_ours_may_be_deleted(tmp_path):
    ours = record(tmp_path / "dict", "infer model_oc", format="npz")
    for path, remedy, words in ((ours / "a.npz", "", "delete it and run infer.py again"),
                                (ours / "a.npz", "To make it, run: X", "delete it. To make it, run: X"),
                                (ours / "b.npy", "To make it, run: X", "name another folder"),   # that stage wrote .npz
                                (tmp_path / "c.npz", "To make it, run: X", "name another folder")):
        path.write_bytes(b"half")
        for read in (checked_cam, checked_crf):
            with pytest.raises(ValueError, match=words) as caught:
                read(path, SIX, (9, 11), remedy)
            assert ("delete" in words) == ("delete" in str(caught.value))


@pytest.mark.parametrize("save", [lambda path, *maps: save_crf(path.with_suffix(".npz"), *maps),
                                  lambda path, *maps: save_crf(path.with_suffix(".npy"), *maps, "npy"),
                                  lambda path, ids, maps: save_npy(path, dict(zip(ids, torch.tensor(maps)))),
                                  lambda path, ids, maps: save_pth(path, dict(zip(ids, torch.tensor(maps).half())))])
@pytest.mark.parametrize("ids", [[0, 1], [0, 3], [0, 1, 2, 5], [0, 6]])
def test_crf_maps_are_no_cams(tmp_path, save, ids):
    """Whatever classes they show: rows that sum to 1, one of them the background's."""
    save(tmp_path / "a", ids, crf_like(len(ids)))
    path = find_maps(tmp_path, "a")
    with pytest.raises(ValueError, match="a.* holds CRF maps.*--task crf"):
        checked_cam(path, SIX)
    classes, scores = checked_crf(path, SIX, (9, 11))
    assert classes.tolist() == ids
    np.testing.assert_allclose(scores.sum(0), 1, atol=2e-3)


@pytest.mark.parametrize("ids", [[0], [0, 1], [0, 3], [1], [2, 5]])
@pytest.mark.parametrize("save", PICKLED)
def test_cams_are_no_crf_maps(tmp_path, save, ids):
    maps = np.random.default_rng(0).random((len(ids), 9, 11), np.float32)
    for table in (dict(zip(ids, maps)), {"keys": torch.tensor(ids), "high_res": maps}):
        path = save(tmp_path / "a", table)
        with pytest.raises(ValueError, match="a.* no CRF maps.*--task cam"):
            checked_crf(path, SIX)
        assert checked_cam(path, SIX)[0].tolist() == [k + 1 for k in ids]


def test_an_image_that_is_background_alone(tmp_path):
    save_crf(tmp_path / "a.npz", [0], np.ones((1, 9, 11)))
    assert checked_crf(tmp_path / "a.npz", SIX)[0].tolist() == [0]


@pytest.mark.parametrize("low, high", [(0, 17), (-3, 4), (0, 1.1), (-0.1, 1), (0, 255)])
def test_cams_outside_of_0_to_1(tmp_path, low, high):
    maps = np.linspace(low, high, 99, dtype=np.float32).reshape(1, 9, 11)
    path = save_npy(tmp_path / "a", {2: maps[0]})
    with pytest.raises(ValueError, match="a.npy holds scores outside 0 .. 1 .*divide") as caught:
        checked_cam(path, SIX)
    assert "delete" not in str(caught.value)
    record(tmp_path / "dict", "infer model_oc")
    save_cam(tmp_path / "dict/a.npz", [2], maps)
    with pytest.raises(ValueError, match="outside 0 .. 1 .*delete it .*infer.py"):
        checked_cam(tmp_path / "dict/a.npz", SIX)


def test_rounding_is_no_other_kind(tmp_path):
    """A map divided by its maximum in float16 may exceed 1 a little; its background must not become a NaN."""
    _, scores = checked_cam(save_npy(tmp_path / "a", {2: np.linspace(-1e-6, 1.0005, 99).reshape(9, 11)}), SIX)
    assert (scores.min(), scores.max()) == (0, 1)


def test_classes_and_sizes(tmp_path):
    save_cam(tmp_path / "a.npz", [7], np.zeros((1, 9, 11)))
    save_crf(tmp_path / "b.npz", [0, 7], crf_like(2))
    for name, read in (("a", checked_cam), ("b", checked_crf)):
        with pytest.raises(ValueError, match=f"{name}.npz holds the class 7.* data/critters are 1..6.*classes.txt"):
            read(tmp_path / f"{name}.npz", SIX)
        with pytest.raises(ValueError, match=rf"{name}.npz holds maps of size \(9, 11\), its image .*\(5, 6\)"):
            read(tmp_path / f"{name}.npz", SIX, (5, 6))


@pytest.mark.parametrize("stage, kind", [("infer model_oc", "cam"), ("infer model_new", "cam"), ("infer crf", "crf"),
                                         ("infer vis", "vis"), ("infer_aff", "png"), ("infer_seg", "png"),
                                         ("mine", None), (None, None)])
def test_the_record_knows_the_kind(tmp_path, stage, kind):
    folder = record(tmp_path / "maps", stage)
    assert kind_of(folder) == kind
    for asked in ("cam", "crf", "png"):
        if kind in (None, asked):
            require_kind(folder, asked)
        else:
            with pytest.raises(ValueError, match=f"{folder} holds .*made_by.json"):
                require_kind(folder, asked)
    assert kind_of(tmp_path) is None and not is_foreign(folder)


def test_whose_a_folder_is(tmp_path):
    assert not is_foreign(tmp_path / "none") and not is_foreign(tmp_path)
    save_cam(tmp_path / "theirs/a.npz", [1], MAPS[:1])
    assert is_foreign(tmp_path / "theirs") and not is_foreign(record(tmp_path / "theirs", "infer model_oc"))


def test_no_label_names_the_background(tmp_path):
    """CRF maps of others are not doubted for it; those of classes that the labels lack are."""
    for name in "abcd":
        save_npy(tmp_path / name, dict(zip((0, 2, 3), crf_like(3))))
    paths = {name: find_maps(tmp_path, name) for name in "abcd"}
    for label, doubted in (([0, 1, 1, 0, 0, 0], False), ([0, 0, 1, 1, 0, 0], True)):
        layout = SimpleNamespace(root=tmp_path, classes=list("abcdef"), label=lambda image_id, label=label: label)
        assert bool(compare_with_labels(tmp_path, paths, layout, "crf")) == doubted


# ---- the names of folders ----

@pytest.mark.parametrize("there, asked, found", [
    ("crf/04", "crf/04", "crf/04"), ("crf/04", "crf/4", "crf/04"), ("crf/04", "crf/4.0", "crf/04"),
    ("crf/4.0", "crf/04", "crf/4.0"), ("crf/4", "crf/04", "crf/4"), ("crf/2.5", "crf/02.5", "crf/2.5"),
    ("crf/24.0", "crf/24", "crf/24.0"), ("rw/04_24", "rw/4_24", "rw/04_24"), ("rw/4.0_24.0", "rw/04_24", "rw/4.0_24.0"),
    ("out_crf_4.0", "out_crf_04", "out_crf_4.0"), ("CRF_4", "CRF_04", "CRF_4"), ("crf/24", "crf/04", None),
    ("crf/04_24", "crf/04", None), ("run_01", "run_1", None), ("dict", "dicts", None), ("crf/004", "crf/4", "crf/004")])
def test_folders_that_are_named_alike(tmp_path, there, asked, found):
    (tmp_path / there).mkdir(parents=True)
    assert find_alike(tmp_path / asked) == (found and tmp_path / found)


def test_of_two_folders_named_alike_one_has_to_be_named(tmp_path):
    for name in ("4", "4.0"):
        (tmp_path / "crf" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="crf/4 and .*crf/4.0"):
        find_alike(tmp_path / "crf" / alpha_name(4))
    assert find_alike(tmp_path / "crf/4.0").name == "4.0"
