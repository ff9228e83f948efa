"""Errors of torch, numpy and the system, in words that help; the last thing on the screen, on a line of their own."""
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import ROOT
from tools import remedies

CPU_FULL = "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried to get 9"
IN_WORKER = "Caught {0} in DataLoader worker process 0.\nOriginal Traceback (most recent call last)\n  File x\n{0}: {1}"
NO_SHM = "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"


class OutOfMemoryError(RuntimeError):
    """torch's, of a GPU."""


FULL = [RuntimeError(CPU_FULL), OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError("Unable to allocate 12.1 GiB for an array with shape (3, 1, 1)"), MemoryError(),
        RuntimeError(IN_WORKER.format("RuntimeError", CPU_FULL)), OSError(12, "Cannot allocate memory")]


@pytest.mark.parametrize("error", FULL[:5], ids=lambda error: str(error)[:20])
def test_full_memory_in_inference_names_the_image_and_the_stages_own_flags(error):
    images = [("a", 1), ("b", 2), ("c", 3)]
    with pytest.raises(MemoryError) as caught, remedies.one_by_one(images, "--max_side") as each:
        for image_id, _ in each:
            if image_id == "b":
                raise error
    words = remedies.remedy(caught.value)
    assert "at b:" in words and "--max_side" in words and "--accumulate" not in words and "--batch_size" not in words
    assert len(words.splitlines()) == 1


def test_other_errors_pass_as_they_are():
    for error in (ValueError("a.jpg is no image"), RuntimeError("expected a tensor")):
        with pytest.raises(type(error)) as caught, remedies.one_by_one([("a", 1)], "--max_side") as each:
            for _ in each:
                raise error
        assert caught.value is error
    assert remedies.remedy(RuntimeError("mat1 and mat2 cannot be multiplied")) is None
    assert remedies.remedy(FileNotFoundError(2, "No such file", "a.jpg")) is None
    assert remedies.remedy(OSError(28, "No space left on device", "a.npz")) is None


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:20])
def test_full_memory_in_training(error):
    words = remedies.remedy(error)
    assert "--accumulate" in words and "--batch_size" in words and len(words.splitlines()) == 1


@pytest.mark.parametrize("error", [
    RuntimeError(IN_WORKER.format("RuntimeError", NO_SHM)), RuntimeError(NO_SHM),
    RuntimeError("unable to write to file </torch_12_34_0>: No space left on device (28)"),
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                 "are out of shared memory. Please try to raise your shared memory limit."),
    OSError("unable to open shared memory object </torch_1_2> in read-write mode")], ids=range(5))
def test_a_small_dev_shm(error):
    words = remedies.remedy(error)
    assert "/dev/shm" in words and "--num_workers 0" in words and len(words.splitlines()) == 1


def test_a_dev_shm_without_room_for_a_lock():
    """Python's own locks lie there too; its error names no file."""
    for module, told in (("multiprocessing.synchronize", True), ("tools.files", False)):
        with pytest.raises(OSError) as caught:
            exec("raise OSError(28, 'No space left on device')", {"__name__": module})
        assert ("--num_workers 0" in str(remedies.remedy(caught.value))) == told


def run(program, *words):
    """Run a program in a process of its own; returns exit code, stdout, stderr."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), *words], cwd=ROOT, capture_output=True,
                          text=True)
    return done.returncode, done.stdout, done.stderr


BARS = {
    "progress": ["for _ in interrupt.progress(range(100), 100, 'CAM'): fail()"],
    "two": ["for _ in tqdm(range(9), 'outer'):", "    for _ in tqdm(range(9), 'inner', leave=False): fail()"],
    "held": ["bars.append(tqdm(total=9, desc='train', dynamic_ncols=True))", "bars[0].update()", "fail()"],
    "stopped": ["for _ in tqdm(range(9), 'CAM'): interrupt.leave()"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BARS)
@pytest.mark.parametrize("error", ["ValueError('a.jpg is damaged: fix it')", "RuntimeError('can\\'t allocate memory')",
                                   "KeyboardInterrupt()"], ids=["value", "memory", "ctrl-c"])
def test_an_error_under_a_bar_is_a_line_of_its_own_and_the_last(kind, error):
    lines = ["from tqdm import tqdm", "from tools import flags, interrupt", "bars = []", "def fail():",
             f"    raise {error}", "def main():", *("    " + line for line in BARS[kind]), "flags.run(main)"]
    code, out, err = run("\n".join(lines))
    screen = [line.rpartition("\r")[2] for line in (err + out).split("\n")]     # what a terminal shows of each line
    assert "Traceback" not in err
    if kind == "stopped":
        assert code == 0 and screen[-2].startswith("stopped as asked: ") and not screen[-1]
        assert err.endswith("\n")
        return
    assert code == 1 and screen[-1] == "" and screen[-2].startswith(
        "stopped: " if "Interrupt" in error else "error: "), screen
    assert err.split("\n")[-2] == screen[-2]            # nothing before it on its line, not even overwritten


@pytest.mark.parametrize("stage", ["reproduce.py", "report.py"])
def test_a_system_without_fcntl_is_told_in_one_sentence(stage):
    code, out, err = run("import runpy, sys; sys.modules['fcntl'] = None; sys.argv = sys.argv[1:]; "
                         "runpy.run_path(sys.argv[0], run_name='__main__')", stage, "--name", "X")
    assert code == 1 and out == "" and len(err.strip().splitlines()) == 1
    assert err.startswith("error: ") and all(word in err for word in ("Linux", "macOS", "WSL"))


@pytest.mark.slow
@pytest.mark.parametrize("collated", [True, False], ids=["training", "inference"])
def test_a_dev_shm_of_one_megabyte(tmp_path, collated):
    """The loaders themselves: each names the remedy, and none waits for ever."""
    program = f"""
        import torch
        from PIL import Image
        from data.loader import Plan, train_loader, view_loader
        from tools import flags
        class Layout:
            def image_path(self, image_id): return {str(tmp_path / 'a.png')!r}
        class Samples(torch.utils.data.Dataset):
            def __getitem__(self, key): return {{"image": torch.zeros(3, 400, 400)}}
        def main():
            Image.new("RGB", (600, 600)).save({str(tmp_path / 'a.png')!r})
            loader = train_loader(Samples(), Plan(8, [4], 0), num_workers=2) if {collated} else view_loader(
                Layout(), list("abcd"), (1, 2), labelled=False, num_workers=2)
            for _ in loader: pass
        flags.run(main)
    """
    inside = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    try:
        done = subprocess.run(["unshare", "-m", "sh", "-c", inside, "sh", sys.executable, "-c",
                               textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("no unshare on this system")
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr[:100]}")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "--num_workers 0" in done.stderr
