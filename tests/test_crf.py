"""Dense CRF against the authors' numbers, and the child processes: same numbers, no torch, no hang."""
import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tools import interrupt
from tools.crf import HELD, Job, background, dense_crf, dense_crf_alphas, refine_all

ROOT = Path(__file__).resolve().parent.parent
linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")


@pytest.fixture
def compiled():
    pytest.importorskip("pydensecrf.densecrf", reason="pip install pydensecrf2")


@pytest.fixture
def no_hang():
    """End the test run with every thread's traceback if a test of the processes takes a minute."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def picture(height=20, width=30, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return image, rng.random((classes, height, width), dtype=np.float32)


@pytest.mark.parametrize("file, alphas", [("set05_crf_alpha.npz", (4, 6, 24)), ("set05_crf_psa_alpha32.npz", (32,))])
def test_equals_the_authors(golden, compiled, file, alphas):
    given, expected = np.load(golden("set05_crf_alpha.npz")), np.load(golden(file))
    for alpha, scores in zip(alphas, dense_crf_alphas(given["img"], given["cams"], alphas, iterations=10)):
        np.testing.assert_allclose(scores, expected[f"alpha{alpha}_scores"], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(scores.argmax(0), expected[f"alpha{alpha}_argmax"])


def test_one_lattice_for_all_alphas_is_bit_equal(compiled):
    image, scores = picture(classes=3)
    for alpha, shared in zip((4, 24, 6), dense_crf_alphas(image, scores, (4, 24, 6), iterations=3), strict=True):
        alone = dense_crf(image, np.concatenate([background(scores, alpha), scores]), iterations=3)
        np.testing.assert_array_equal(shared, alone)
        assert shared.dtype == np.float32 and shared.shape == (4, 20, 30)
        np.testing.assert_allclose(shared.sum(0), 1, atol=1e-5)


def test_background_by_hand():
    scores = np.array([[[0.0, 0.5]], [[0.25, 0.75]]], np.float32)
    np.testing.assert_array_equal(background(scores, 2), np.float32([[[0.5625, 0.0625]]]))
    np.testing.assert_array_equal(background(scores[:0], 4), np.ones((1, 1, 2), np.float32))


def test_a_picture_without_classes_is_all_background(compiled):
    image, scores = picture(classes=0)
    result, = dense_crf_alphas(image, scores, [4])
    np.testing.assert_array_equal(result, np.ones((1, 20, 30), np.float32))


@pytest.mark.parametrize("height, width, rows", [(1, 1, 1), (1, 1, 3), (1, 9, 2), (9, 1, 2)])
def test_tiny_pictures(compiled, height, width, rows):
    image, scores = picture(height, width, rows)
    result = dense_crf(image, scores)
    assert result.shape == (rows, height, width)
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)


def test_any_memory_layout(compiled):
    image, scores = picture()
    expected = dense_crf(image, scores, iterations=2)
    wide_image, wide_scores = np.repeat(image, 2, axis=1)[:, ::2], scores.transpose(1, 2, 0).copy().transpose(2, 0, 1)
    flipped = image[:, ::-1].copy()[:, ::-1]
    for variant in (wide_image, flipped, np.asfortranarray(image), image.copy()):
        variant.setflags(write=False)
        np.testing.assert_array_equal(dense_crf(variant, wide_scores, iterations=2), expected)
    frozen = scores.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(dense_crf(image, frozen, iterations=2), expected)
    np.testing.assert_array_equal(frozen, scores)                   # and left as it was
    np.testing.assert_array_equal(dense_crf(image, np.asfortranarray(scores), iterations=2), expected)


def test_float16_scores_are_read_as_float32(compiled):
    image, scores = picture()
    half = scores.astype(np.float16)
    for one, other in zip(dense_crf_alphas(image, half, [24]), dense_crf_alphas(image, half.astype(np.float32), [24])):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("image, scores, iterations, message", [
    (np.zeros((4, 5, 3), np.float32), np.ones((2, 4, 5)), 1, "uint8"),
    (np.zeros((4, 5), np.uint8), np.ones((2, 4, 5)), 1, "uint8"),
    (np.zeros((4, 5, 4), np.uint8), np.ones((2, 4, 5)), 1, "uint8"),
    (np.zeros((0, 5, 3), np.uint8), np.ones((2, 0, 5)), 1, "uint8"),
    (np.zeros((4, 5, 3), np.uint8), np.ones((2, 5, 4)), 1, "image's size"),
    (np.zeros((4, 5, 3), np.uint8), np.ones((4, 5)), 1, "image's size"),
    (np.zeros((4, 5, 3), np.uint8), np.ones((0, 4, 5)), 1, "image's size"),
    (np.zeros((4, 5, 3), np.uint8), np.full((2, 4, 5), np.nan), 1, "NaN"),
    (np.zeros((4, 5, 3), np.uint8), np.full((2, 4, 5), np.inf), 1, "NaN"),
    (np.zeros((4, 5, 3), np.uint8), np.ones((2, 4, 5)), 0, "iteration"),
])
def test_refuses(compiled, image, scores, iterations, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(image, scores, iterations)


@pytest.mark.parametrize("call", [lambda: dense_crf(*picture()), lambda: list(refine_all([], 1))])
def test_says_how_to_install_pydensecrf(monkeypatch, call):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(ImportError, match=r"pip install pydensecrf2 .*C\+\+ compiler"):
        call()


def test_no_torch_comes_with_these_modules():
    code = "import sys, tools.crf, tools.metrics; assert 'torch' not in sys.modules and 'pydensecrf' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def job(load=picture, save=lambda *_: None, alphas=(4,), key=""):
    return Job(key, load, save, alphas)


def children():
    """List the process ids of the CRF's children that live, zombies included."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == os.getpid():
                command = (status.parent / "cmdline").read_text()
                if not command or "tools.crf" in command:           # a zombie's is empty
                    found.append(int(status.parent.name))
    return found


def test_children_give_the_same_numbers_as_this_process(compiled, no_hang):
    saved = {}
    jobs = [job(partial(picture, 8 + seed, 9, seed % 3, seed), lambda alpha, scores, seed=seed:
                saved.update({(seed, alpha): scores}), (4, 24), seed) for seed in range(12)]
    for in_turn in (False, True):
        saved.clear()
        assert sorted(refine_all(jobs, 2, iterations=2, in_turn=in_turn)) == list(range(12))
        assert len(saved) == 24
    for seed in range(12):
        for alpha, alone in zip((4, 24), dense_crf_alphas(*picture(8 + seed, 9, seed % 3, seed), (4, 24), 2)):
            np.testing.assert_array_equal(saved[seed, alpha], alone)


def test_save_gets_what_load_gave_beside(compiled, no_hang):
    saved = []
    list(refine_all([job(lambda: (*picture(), [0, 2, 7], "x"), lambda _, scores, *beside: saved.append(beside))], 1))
    assert saved == [([0, 2, 7], "x")]


@pytest.mark.parametrize("in_turn", [False, True])
def test_few_images_are_held(compiled, no_hang, in_turn):
    """The jobs' iterable may be a network whose scores the jobs hold: it waits while HELD a worker are unfinished."""
    begun, finished, ahead = [], [], []

    def jobs():
        for number in range(30):
            ahead.append(len(begun) - len(finished))
            begun.append(number)
            yield job(key=number)

    for key in refine_all(jobs(), 2, iterations=1, in_turn=in_turn):
        finished.append(key)
    assert sorted(finished) == list(range(30)) and max(ahead) < 2 * HELD
    assert not in_turn or ahead == [number % (2 * HELD) for number in range(30)]


@linux
def test_children_hold_no_torch_and_start_with_the_first_job(compiled, no_hang):
    def load():
        mapped.append(Path(f"/proc/{children()[0]}/maps").read_text())
        return picture()

    def jobs():
        mapped.append(children())
        yield job()
        yield job(load, alphas=(4, 24))

    mapped = []
    list(refine_all(jobs(), 1))
    none, maps = mapped
    assert none == [] == children()
    assert "densecrf" in maps and "libtorch" not in maps and "libtorch" in Path("/proc/self/maps").read_text()


class Noise:
    """Unpickles to 5, after writing to the standard output of whoever unpickles it."""

    def __reduce__(self):
        return os.write, (1, b"noise")


def test_what_a_child_prints_does_not_reach_the_replies(compiled, no_hang):
    saved = []
    list(refine_all([job(save=lambda alpha, scores: saved.append(scores))], 1, iterations=Noise()))
    np.testing.assert_array_equal(saved[0], next(dense_crf_alphas(*picture(), [4], iterations=5)))


def fail(*_):
    raise OSError("the disk is full")


@linux
@pytest.mark.parametrize("load, save, error", [
    (fail, print, OSError("the disk is full")),
    (picture, fail, OSError("the disk is full")),
    (lambda: (picture()[0], picture(5, 5)[1]), print, ValueError("image's size")),
])
@pytest.mark.parametrize("count", [1, 40])
def test_what_went_wrong_is_raised(compiled, no_hang, load, save, error, count):
    with pytest.raises(type(error), match=str(error)):
        list(refine_all([job(load, save)] * count, 2, iterations=1))
    assert children() == []


@linux
def test_an_error_of_the_jobs_ends_the_children(compiled, no_hang):
    def jobs():
        yield job()
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(refine_all(jobs(), 2, iterations=1))
    assert children() == []


@linux
@pytest.mark.parametrize("delay", [0, 0.5])
def test_a_killed_child_is_an_error_not_a_hang(compiled, no_hang, delay):
    def load():
        killer = threading.Timer(delay, os.kill, (children()[0], signal.SIGKILL))
        killer.start()
        if not delay:
            killer.join()
        return picture(120, 160)

    with pytest.raises(ChildProcessError, match=r"code -9\) while working on 2007_000032.*fewer"):
        list(refine_all([job(load, alphas=(4, 24), key="2007_000032"), job()], 1, iterations=1000))


@pytest.mark.slow
@linux
@pytest.mark.parametrize("way", ["exception", "close", "forgotten"])
def test_a_loop_that_ends_early_ends_the_children_at_once(compiled, no_hang, way):
    start = time.monotonic()
    refined = refine_all([job(), *[job(partial(picture, 120, 160), alphas=range(1, 100_000))] * 9], 2, iterations=1000)
    if way == "exception":
        with pytest.raises(KeyboardInterrupt):
            for _ in interrupt.progress(refined, 10, "CRF"):
                raise KeyboardInterrupt
    else:
        next(refined)
        if way == "close":
            refined.close()
        else:
            del refined
    assert children() == []
    assert time.monotonic() - start < 20


@linux
def test_being_asked_to_stop_ends_the_children(compiled, no_hang, capsys):
    """The traceback of SystemExit holds the loop's frames: the generator is closed none the less."""
    refined = refine_all([job(), *[job(partial(picture, 120, 160), alphas=range(1, 100_000))] * 9], 2, iterations=1000)
    with interrupt.remembered(), pytest.raises(SystemExit) as left:
        for _ in interrupt.progress(refined, 10, "CRF"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert children() == [] and left.value.code == 0


@linux
def test_children_end_with_a_killed_parent(compiled):
    code = """
        import time
        from tests.test_crf import children, job
        from tools.crf import refine_all

        def jobs():
            yield job()
            yield job()
            print(*children(), flush=True)
            time.sleep(600)

        list(refine_all(jobs(), 2))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = parent.stdout.readline().split()
    parent.send_signal(signal.SIGKILL)
    assert parent.communicate(timeout=300)[1] == ""                  # and without a traceback

    def alive(pid):                                                 # a zombie that nobody reaps has ended too
        status = Path(f"/proc/{pid}/stat")
        return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"

    assert len(children) == 2
    deadline = time.monotonic() + 20
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, children))


@pytest.mark.parametrize("workers", [0, -1])
def test_a_worker_is_needed(workers):
    with pytest.raises(ValueError, match="worker"):
        next(refine_all([], workers))
