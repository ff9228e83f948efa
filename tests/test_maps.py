"""CAMs and CRF maps on disk: they come back, and of a damaged or foreign file nothing is believed or run."""
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from tests.conftest import Program
from tools.maps import alpha_name, alpha_pair, find_maps, lacking, pair_alphas, read_cam, read_crf, save_cam, save_crf


@pytest.fixture
def maps():
    """Give classes 1..C and scores of an image."""
    return np.array([2, 7, 20]), np.random.default_rng(0).random((3, 9, 11), np.float32)


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


def test_crf_maps_are_deflated_and_any_program_can_read_them(tmp_path):
    scores = np.zeros((2, 100, 120), np.float32)
    scores[0, :, :60] = scores[1, :, 60:] = 1
    save_crf(tmp_path / "a.npz", [0, 7], scores[:, :, ::-1])
    save_cam(tmp_path / "cam.npz", [3, 7], scores)
    with np.load(tmp_path / "a.npz") as file:
        assert (file["classes"].dtype, file["scores"].dtype) == (np.uint8, np.float16)
        assert file["classes"].tolist() == [0, 7] and (file["scores"] == scores[:, :, ::-1]).all()
    assert 10 * (tmp_path / "a.npz").stat().st_size < (tmp_path / "cam.npz").stat().st_size
    save_crf(tmp_path / "b.npz", [0, 7], scores[:, :, ::-1])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()      # no time of day in it


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
    with pytest.raises(ValueError, match="a.npz cannot be read .* name another folder") as caught:
        read_cam(tmp_path / "a.npz")
    assert "delete" not in str(caught.value)                # nobody knows whose it is


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
    with pytest.raises(ValueError, match="none that numpy writes"):
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


@pytest.mark.slow
def test_a_deep_key_is_refused(tmp_path):
    """Python's own hash of so deep a tuple crashes."""
    np.save(tmp_path / "a.npy", np.array({}, dtype=object))
    start = (tmp_path / "a.npy").read_bytes()[:128]
    (tmp_path / "a.npy").write_bytes(start + b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.")
    with pytest.raises(ValueError, match="a.npy cannot be read .*neither a name nor a number"):
        read_cam(tmp_path / "a.npy")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cam.npz", "cam.npy", "crf.npz", "crf.npy"])
def test_cut_or_altered_maps_are_named(tmp_path, maps, name):
    path = tmp_path / name
    (save_cam if name[:3] == "cam" else save_crf)(path, *maps, name[-3:])
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for size in sorted({0, 1, 10, len(whole) - 1, *rng.integers(0, len(whole), 30).tolist()}):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{name} cannot be read .* name another folder"):
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
    said = lacking("CAMs", "X/dict", ids[:2], ids, "val")
    assert all(word in said for word in ("2 of the 8", " val ", "no CAMs in X/dict (a, b)"))
    assert lacking("CAMs", "X/dict", ids[:6], ids, "val").endswith("(a, b, c, d, e ...)")


def test_maps_of_a_lying_photo_that_exif_turns(tmp_path):
    save_cam(tmp_path / "a.npz", [1], np.ones((1, 4, 6)))
    with pytest.raises(ValueError, match="EXIF"):
        read_cam(tmp_path / "a.npz", (6, 4))
    with pytest.raises(ValueError) as error:
        read_cam(tmp_path / "a.npz", (6, 5))
    assert "EXIF" not in str(error.value)
