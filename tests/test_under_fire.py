"""A stage under fire: signals, lost processes, full disks, datasets that vanish, two runs at once.

It ends with a clear message and no traceback; files are complete; the same command resumes, to the same files.
"""
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.kills import STAGES, difference, left_by, prepared
from tests.stages import DEMO, call, in_two
from tools.files import load_checkpoint, read_json, save_checkpoint
from tools.maps import read_cam, read_crf
from tools.provenance import digest

pytestmark = pytest.mark.slow

DRAWN = "rename experiment/X/train/000002.png"      # in the middle of the third step of four, of model_cse
SELDOM = ("--save_minutes", 10)
MAPS = ("--dict", "--crf", "--alphas", 24, "--crf_iterations", 2, "--scales", 0.5, 1, "--vis", "--infer_list",
        "train_aug")


@pytest.fixture(scope="module")
def runs(whole, zygote, tmp_path_factory):
    """Give the runs of `whole` and more such: a training of twelve steps, maps of six images, two evaluations."""
    more = {"steps": (whole["model_cse"].before, (*STAGES["model_cse"], "--batch_size", 1)),
            "maps": (whole["infer"].before, ("infer", *DEMO, *MAPS)),
            "cam": (whole["infer"].after, ("evaluation", *DEMO, "--list", "val")),
            "crf": (whole["infer"].after, ("evaluation", *DEMO, "--list", "val", "--task", "crf", "--dict_dir",
                                           "crf/24"))}
    found = dict(whole)
    for name, (before, words) in more.items():
        place = prepared(tmp_path_factory.mktemp(name), whole["infer"], before)
        result = zygote.run(*words, cwd=place)
        assert result.rc == 0, result.output
        found[name] = SimpleNamespace(words=words, data=whole["infer"].data, before=before, left=left_by(place))
    return found


# ---- what every run must leave, and say ----

def assert_whole(place, killed=False):
    """Load every file of the experiment; nothing half-written lies there, unless a run was killed."""
    readers = {".pth": load_checkpoint, ".json": lambda path: json.loads(path.read_text("utf-8")),
               ".jsonl": lambda path: [json.loads(line) for line in path.read_text("utf-8").splitlines()],
               ".png": lambda path: Image.open(path).load(),
               ".npz": lambda path: (read_crf if "crf" in str(path) else read_cam)(path)}
    for path in (place / "experiment").rglob("*"):
        assert killed or not path.name.endswith((".tmp", ".old")), path
        if path.is_file() and path.suffix in readers:
            readers[path.suffix](path)


def assert_said(result, code, *words):
    assert result.rc == code and "Traceback" not in result.output, result.output
    for word in words:
        assert word in result.output, result.output


def assert_ended(result, place, code, *words):
    """Check how a run ended, what it said, and that what it left is complete."""
    assert_said(result, code, *words)
    assert_whole(place)


def assert_goes_on(zygote, place, run):
    """Give the same command again: it ends with the files of a run that nothing broke."""
    again = zygote.run(*run.words, cwd=place)
    assert again.rc == 0 and not difference(place, run.left), again.output


def step(place, model="model_cse"):
    return load_checkpoint(place / f"experiment/X/ckpt/{model}/last.pth")["step"]


def paused(zygote, place, words, at):
    """Start a run that stops in the middle, with all that it holds, and waits."""
    run = zygote.start(*words, cwd=place, signals={at: signal.SIGSTOP})
    run.until(at)
    while Path(f"/proc/{run.pid}/stat").read_text().rsplit(") ")[1][0] != "T":     # it tells first, and stops then
        time.sleep(0.001)
    return run


def finish(run):
    """Let a paused run go on to its end."""
    os.killpg(run.pid, signal.SIGCONT)
    return run.wait()


# ---- asked to stop ----

@pytest.mark.parametrize("number, workers", [(signal.SIGTERM, 2), (signal.SIGUSR1, 0), (signal.SIGINT, 2)])
def test_training_that_is_asked_to_stop(whole, zygote, tmp_path, number, workers):
    """The whole group gets the signal, as from a terminal or a job's scheduler, in the middle of a step."""
    run, place = whole["model_cse"], prepared(tmp_path, whole["model_cse"])
    first = paused(zygote, place, (*run.words, *SELDOM, "--num_workers", workers), DRAWN)
    os.killpg(first.pid, number)
    result = finish(first)
    assert_ended(result, place, 0, f"{number.name}: stopping", "stopped as asked", "same command")
    assert step(place) == 3 and result.output.count("stopping as soon as") == 1         # the workers overhear it
    assert_goes_on(zygote, place, run)


def test_asked_to_stop_while_the_cams_are_measured(whole, zygote, tmp_path):
    run, place = whole["model_oc"], prepared(tmp_path, whole["model_oc"])
    result = zygote.start(*run.words, *SELDOM, cwd=place,
                          signals={"read data/critters/SegmentationClass/": signal.SIGTERM}).wait()
    assert_ended(result, place, 0, "same command")
    assert [event for event in result.events if "SegmentationClass" in event] == [
        "read data/critters/SegmentationClass/val_0000.png"]
    assert step(place, "model_oc") == 2 and not (place / "experiment/X/log/train_model_oc.jsonl").exists()
    assert_goes_on(zygote, place, run)


def test_the_second_ctrl_c_stops_at_once(whole, zygote, tmp_path):
    run, place = whole["model_cse"], prepared(tmp_path, whole["model_cse"])
    signals = {DRAWN.replace("2.png", "0.png"): signal.SIGINT,
               "rename experiment/X/ckpt/model_cse/last.pth": signal.SIGINT}
    result = zygote.start(*run.words, *SELDOM, cwd=place, signals=signals).wait()
    assert result.rc == -signal.SIGINT and "Ctrl-C again stops at once" in result.output
    assert "stopped as asked" not in result.output and "Traceback" not in result.output
    assert not (place / "experiment/X/ckpt/model_cse/last.pth").exists()
    assert_goes_on(zygote, place, run)


@pytest.mark.parametrize("number, at, unfinished", [
    (signal.SIGTERM, "write experiment/X/dict/.val_0000.npz", "dict"),
    (signal.SIGUSR1, "write experiment/X/crf/02/.val_0000.npz", "crf/24"),
    (signal.SIGINT, "write experiment/X/infer/.val_0000_", "infer")])
def test_inference_that_is_asked_to_stop(whole, zygote, tmp_path, number, at, unfinished):
    run, place = whole["infer"], prepared(tmp_path, whole["infer"])
    result = zygote.start(*run.words, cwd=place, signals={at: number}).wait()
    assert_ended(result, place, 0, "stopped as asked", "same command")
    left, goal = (sum(path.startswith(f"X/{unfinished}/") for path in files) for files in (left_by(place), run.left))
    assert 1 <= left < goal
    assert_goes_on(zygote, place, run)


# ---- two at once ----

def assert_held(result, holder, what):
    assert result.rc == 1 and "Traceback" not in result.output, result.output
    assert f"error: another run is writing experiment/X/{what} (process {holder.pid} on {socket.gethostname()}, " \
        "since " in result.output
    assert "another --name" in result.output


@pytest.mark.parametrize("stage, at, what", [("model_cse", DRAWN, "ckpt/model_cse"),
                                             ("infer", "rename experiment/X/crf/02/val_0000.npz", "dict")])
def test_a_second_run_with_the_same_name(whole, zygote, tmp_path, stage, at, what):
    run, place = whole[stage], prepared(tmp_path, whole[stage])
    first = paused(zygote, place, run.words, at)
    before = left_by(place)
    assert_held(zygote.run(*run.words, "--overwrite", cwd=place), first, what)
    assert left_by(place) == before
    assert finish(first).rc == 0 and not difference(place, run.left)


@pytest.mark.parametrize("stage, at, others", [
    ("model_cse", DRAWN, [STAGES["model_oc"], (*STAGES["model_oc"], "--name", "Y", "--val_every", 0)]),
    ("infer", "rename experiment/X/dict/val_0000.npz", [(*STAGES["infer"], "--dict_dir", "d", "--crf_dir", "c",
                                                         "--vis_dir", "v"), STAGES["model_cse"]])])
def test_runs_of_other_files_at_once(whole, zygote, tmp_path, stage, at, others):
    """Another model, another name, other folders."""
    run, place = whole[stage], prepared(tmp_path, whole[stage])
    first = paused(zygote, place, run.words, at)
    for words in others:
        result = zygote.run(*words, cwd=place)
        assert result.rc == 0, result.output
    assert finish(first).rc == 0
    left = left_by(place)
    # Of one stage the last command is told.
    assert {name for name in run.left if left[name] != run.left[name]} <= {"X/config/infer_model_cse.json"}


def test_a_run_that_was_killed_holds_nothing_though_its_workers_live(whole, zygote, tmp_path):
    run, place = whole["model_cse"], prepared(tmp_path, whole["model_cse"])
    first = paused(zygote, place, (*run.words, "--num_workers", 2), DRAWN)
    workers = children(first.pid)
    for worker in workers:                  # the kernel would end what stands still when the group's leader dies
        os.kill(worker, signal.SIGCONT)
    first.kill(whole_group=False)
    assert first.wait().rc == -signal.SIGKILL
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)     # before it notices
    try:
        assert_goes_on(zygote, place, run)
        assert [Path(f"/proc/{worker}/stat").read_text().split()[2] for worker in workers] == ["T", "T"]
    finally:
        os.killpg(first.pid, signal.SIGKILL)


def test_what_a_run_held_is_free_at_its_end(whole, zygote, tmp_path, monkeypatch):
    """Also in a process that lives on."""
    place = prepared(tmp_path, whole["infer"], whole["infer"].after)
    monkeypatch.chdir(place)
    for stage in ("model_oc", "infer"):
        call(*whole[stage].words)
        result = zygote.run(*whole[stage].words, cwd=place)
        assert result.rc == 0, result.output


def children(pid):
    """List the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ---- shards ----

def maps_in(left):
    """Leave out the settings and the record of images, which tell the shard."""
    return {name: content for name, content in left.items()
            if not name.startswith("X/config/") and "/made_by.images" not in name}


def test_shards_at_once(runs, zygote, tmp_path):
    """One of them is killed, and run again."""
    run, place = runs["maps"], prepared(tmp_path, runs["maps"])
    shards = [zygote.start(*run.words, "--shard", f"{part}/3", cwd=place,
                           signals={"rename experiment/X/crf/24/train_0001.npz": signal.SIGKILL}) for part in (1, 2, 3)]
    ends = [shard.wait() for shard in shards]
    assert [end.rc for end in ends] == [-signal.SIGKILL, 0, 0], "\n".join(end.output for end in ends)
    assert zygote.run(*run.words, "--shard", "1/3", cwd=place).rc == 0
    assert maps_in(left_by(place)) == maps_in(run.left)


def test_shards_one_after_the_other(runs, zygote, tmp_path):
    run, place = runs["maps"], prepared(tmp_path, runs["maps"])
    for shard, count in (("1/3", 2), ("2/3", 4), ("0/3", 6)):
        result = zygote.run(*run.words, "--shard", shard, cwd=place)
        assert result.rc == 0, result.output
        assert len(list(place.glob("experiment/X/crf/24/*.npz"))) == count
    assert maps_in(left_by(place)) == maps_in(run.left)


def test_what_may_not_run_beside_a_shard(runs, zygote, tmp_path):
    run, place = runs["maps"], prepared(tmp_path, runs["maps"])
    first = paused(zygote, place, (*run.words, "--shard", "1/3"), "rename experiment/X/dict/train_0001.npz")
    assert_held(zygote.run(*run.words, cwd=place), first, "dict")
    assert_held(zygote.run(*run.words, "--shard", "1/3", cwd=place), first, "dict, shard 1/3")
    assert zygote.run(*run.words, "--shard", "2/3", cwd=place).rc == finish(first).rc == 0
    for words in ("4/3", "1/0", "-1/3", "half"):
        result = zygote.run(*run.words, f"--shard={words}", cwd=place)
        assert result.rc == 2 and f"--shard: I/N with I from 1 to N, as 2/8, not '{words}'" in result.output


# ---- what the disk may do ----

@pytest.fixture
def mount():
    """Give a function that mounts, as the command of that name does; what it mounted goes at the end."""
    mounted = []

    def do(*words):
        done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
        mounted.append(words[-1])

    yield do
    for place in dict.fromkeys(reversed(mounted)):
        subprocess.run(["umount", "--lazy", str(place)], check=True)


MOMENTS = [("model_cse", DRAWN), ("model_cse", "rename experiment/X/ckpt/model_cse/000.pth"),
           ("infer", "write experiment/X/dict/.val_0000.npz"), ("infer", "write experiment/X/crf/02/.val_0000.npz"),
           ("infer", "write experiment/X/infer/.val_0000_"), ("cam", "read data/critters/SegmentationClass/val_0001")]


@pytest.mark.parametrize("stage, at", MOMENTS)
def test_no_space_left(runs, zygote, mount, tmp_path, stage, at):
    (tmp_path / "experiment").mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "none", tmp_path / "experiment")
    run = runs[stage]
    shutil.copytree(run.before, tmp_path / "experiment", dirs_exist_ok=True)
    (tmp_path / "data").symlink_to(run.data)
    first = paused(zygote, tmp_path, run.words, at)
    with open(tmp_path / "experiment/filler", "wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
    assert_ended(finish(first), tmp_path, 1, "was not written", "No space left on device", "make room", "same command")
    (tmp_path / "experiment/filler").unlink()
    assert_goes_on(zygote, tmp_path, run)


@pytest.mark.parametrize("stage, at", MOMENTS[::2])
def test_a_folder_that_has_become_read_only(runs, zygote, mount, tmp_path, stage, at):
    run, place = runs[stage], prepared(tmp_path, runs[stage])
    first, folder = paused(zygote, place, run.words, at), place / "experiment/X"
    mount("--bind", folder, folder)
    mount("-o", "remount,bind,ro", folder)
    result = finish(first)          # what it had just written aside cannot be removed any more
    again = zygote.run(*run.words, cwd=place)
    for end in (result, again):
        assert_said(end, 1, "was not written", "Read-only file system", "same command")
    subprocess.run(["mount", "-o", "remount,bind,rw", folder], check=True)
    assert_goes_on(zygote, place, run)


@pytest.mark.parametrize("stage, limit, file", [
    ("model_oc", 100_000, "ckpt/model_oc/last.pth"), ("infer", 8000, "dict/val_0000.npz"),
    ("infer", 9000, "infer/val_0000"), ("cam", 9000, "eval/cam_dict_val.png")])
def test_a_limit_on_the_size_of_files(runs, zygote, tmp_path, stage, limit, file):
    run, place = runs[stage], prepared(tmp_path, runs[stage])
    assert_ended(zygote.start(*run.words, cwd=place, limits={"fsize": limit}).wait(), place, 1,
                 f"error: experiment/X/{file}", "was not written", "File too large")
    assert_goes_on(zygote, place, run)


# ---- what the images may do ----

NO_MEMORY = "/proc/self/mem"         # at its beginning no memory is: reading there is an I/O error


def vanish(place):
    """Take the dataset away; returns what brings it back."""
    os.rename(place / "data", place / "gone")
    return lambda: os.rename(place / "gone", place / "data")


def fail(place):
    """Let the reading of all images and label maps fail as on a dying disk; returns what ends that."""
    data = (place / "data").resolve()
    (place / "data").unlink()
    shutil.copytree(data, place / "data")
    for path in place.glob("data/critters/[JS]*/*.png"):
        path.unlink()
        path.symlink_to(NO_MEMORY)
    return lambda: (shutil.rmtree(place / "data"), (place / "data").symlink_to(data))


@pytest.mark.parametrize("read", [read_cam, read_json, load_checkpoint, digest])
def test_a_file_that_cannot_be_read_is_not_blamed(tmp_path, monkeypatch, read):
    """Who deletes it, as one that is damaged, loses it."""
    def unreadable(path):
        raise OSError(errno.EIO, "Input/output error")
    if read is load_checkpoint:             # what is no memory has no end either, from which a ZIP is read
        monkeypatch.setattr("zipfile.ZipFile", unreadable)
    (tmp_path / "dying").symlink_to(NO_MEMORY)
    with pytest.raises(OSError, match=r"/dying .*\(Input/output error\): .*mounted\?"):
        read(tmp_path / "dying")


def test_maps_that_can_no_longer_be_read(runs, zygote, tmp_path):
    run, place = runs["cam"], prepared(tmp_path, runs["cam"])
    first = paused(zygote, place, run.words, "read data/critters/SegmentationClass/val_0001.png")
    os.rename(place / "experiment/X/dict", place / "gone")
    assert_ended(finish(first), place, 1, "error: experiment/X/dict/val_0001.npz cannot be read", "mounted?",
                 "same command")
    os.rename(place / "gone", place / "experiment/X/dict")
    assert_goes_on(zygote, place, run)


@pytest.mark.parametrize("stage, at, workers, harm, file", [
    ("steps", DRAWN, 0, vanish, "JPEGImages/train_"), ("steps", DRAWN, 2, vanish, "JPEGImages/"),
    ("steps", DRAWN, 2, fail, "JPEGImages/"),
    ("model_cse", "read data/critters/SegmentationClass/val_0000.png", 0, fail, "SegmentationClass/val_0000.png"),
    ("maps", "write experiment/X/dict/.train_0000.npz", 0, fail, "JPEGImages/train_0001.png"),
    ("maps", "write experiment/X/crf/24/.train_0000.npz", 0, vanish, "JPEGImages/train_000"),
    ("cam", "read data/critters/SegmentationClass/val_0001.png", 0, vanish, "SegmentationClass/val_0001.png"),
    ("crf", "read data/critters/SegmentationClass/val_0001.png", 0, fail, "SegmentationClass/val_0001.png")])
def test_pictures_that_can_no_longer_be_read(runs, zygote, tmp_path, stage, at, workers, harm, file):
    run, place = runs[stage], prepared(tmp_path, runs[stage])
    first = paused(zygote, place, (*run.words, "--num_workers", workers), at)
    mend = harm(place)
    assert_ended(finish(first), place, 1, file, "mounted?", "same command",
                 *(["(Input/output error)"] if harm is fail else []))
    mend()
    assert_goes_on(zygote, place, run)


# ---- processes that are lost ----

@pytest.mark.parametrize("at", [DRAWN, "write experiment/X/ckpt/model_cse/.last.pth"])
def test_a_reading_process_that_is_killed(runs, zygote, tmp_path, at):
    """In the middle of a step, and of the writing of a file."""
    run, place = runs["steps"], prepared(tmp_path, runs["steps"])
    first = paused(zygote, place, (*run.words, "--num_workers", 2), at)
    os.kill(children(first.pid)[0], signal.SIGKILL)
    assert_ended(finish(first), place, 1, "error: ", "was killed", "fewer --num_workers", "same command")
    assert_goes_on(zygote, place, run)


def test_a_reading_process_that_is_killed_while_torch_writes(tmp_path, monkeypatch):
    """It is not taken for a full disk. Over both torch says that its file is of the wrong length."""
    def save(value, file):
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
        finally:
            raise RuntimeError("unexpected pos 57408 vs 57304")
    monkeypatch.setattr("torch.save", save)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        save_checkpoint(tmp_path / "last.pth", {})
    assert not list(tmp_path.iterdir())


def test_a_stage_ends_though_its_reading_processes_live(zygote, tmp_path):
    """They overhear the first SIGTERM; and whether torch itself ends them depends on when their loader is collected."""
    (tmp_path / "stage.py").write_text("""
import builtins
from data.loader import Plan, train_loader

class Numbers:
    def __len__(self):
        return 100

    def __getitem__(self, key):
        return key[1]

builtins.kept = iter(train_loader(Numbers(), Plan(100, [2], 0), num_workers=2))
print(len(next(builtins.kept)))
raise SystemExit(3)
""")
    result = zygote.run(tmp_path / "stage", cwd=tmp_path)
    assert result.rc == 3 and "2" in result.output.splitlines()     # on one core torch has a word to say of two workers


# ---- two processes ----

IN_TWO = ("--batch_size", 2, "--dropout", 0, 0)     # with dropout they would draw otherwise


@pytest.fixture(scope="module")
def two(runs, zygote, tmp_path_factory):
    """Give runs in two processes, as `runs` gives those of one, and `one`: what the same in one process leaves."""
    found = {}
    for stage, more in {"model_oc": IN_TWO, "model_cse": IN_TWO, "maps": ()}.items():
        run = SimpleNamespace(words=(*runs[stage].words, *more), data=runs[stage].data, before=runs[stage].before)
        place = prepared(tmp_path_factory.mktemp(stage), run)
        run.ends = in_two(zygote, place, *run.words)
        run.left, run.one = left_by(place), runs[stage].left
        if more:
            place = prepared(tmp_path_factory.mktemp(f"{stage} in one"), run)
            assert zygote.run(*run.words, cwd=place).rc == 0
            run.one = left_by(place)
        found[stage] = run
    return found


def test_two_processes_compute_what_one_does(two):
    assert two["maps"].left == two["maps"].one
    for folder in ("dict", "crf/24"):
        written = [{event for event in end.events if event.startswith(f"rename experiment/X/{folder}/train_")}
                   for end in two["maps"].ends]
        assert [len(files) for files in written] == [3, 3] and not written[0] & written[1]
    for model in ("model_oc", "model_cse"):
        one, both = (left[f"X/log/train_{model}.jsonl"][0] for left in (two[model].one, two[model].left))
        assert both["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert both.keys() == one.keys() and both["miou"] > 0


@pytest.mark.parametrize("stage, killed, at", [
    ("model_oc", 1, "read data/critters/SegmentationClass/val_0001.png"),
    ("model_cse", 0, "rename experiment/X/train/000002.png"), ("maps", 0, "rename experiment/X/dict/train_0002.npz"),
    ("maps", 1, "rename experiment/X/crf/24/train_0003.npz")])
def test_one_of_two_processes_is_killed(two, zygote, tmp_path, stage, killed, at):
    """With nobody to tell the other: in training it notices, and in inference it needs nobody."""
    run, place = two[stage], prepared(tmp_path, two[stage])
    ends = in_two(zygote, place, *run.words, killed=killed, at=at)
    assert ends[killed].rc == -signal.SIGKILL
    if stage == "maps":
        assert_said(ends[1 - killed], 0)
    else:
        assert_said(ends[1 - killed], 1, "error: another process", "has ended", "same command")
    assert_whole(place, killed=True)
    in_two(zygote, place, *run.words)
    assert not difference(place, run.left)


# ---- as a person does it: Python started anew ----

HOOK = """
import os, signal, sys, time

def watch(name, args):
    path = {{"open": 0, "os.rename": 1}}.get(name)
    if path is not None and str(args[path]).endswith({at!r}):
        {do}

if {condition}:
    sys.addaudithook(watch)
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def hooked(place, at, do, condition="True"):
    """Let every Python that is started with this environment do something before it opens or renames a file."""
    (place / "hook").mkdir(exist_ok=True)
    (place / "hook/sitecustomize.py").write_text(HOOK.format(at=at, do=do, condition=condition))
    return {"PYTHONPATH": str(place / "hook")}


def test_torchrun(two, zygote, tmp_path):
    """One of its processes is killed, or it is asked to stop itself: all end, and the same command resumes."""
    run, place = two["model_cse"], prepared(tmp_path, two["model_cse"])
    words = (find_spec("torch.distributed.run").origin.removesuffix(".py"), "--standalone", "--nproc_per_node=2",
             ROOT / "train.py", *run.words[1:], *SELDOM)
    for at, do, says in (("train/000000.png", KILL, "Signal 9 (SIGKILL)"),
                         ("train/000004.png", "os.kill(os.getppid(), signal.SIGTERM); time.sleep(1)",
                          "stopped as asked: run the same command to resume")):
        result = zygote.run(*words, cwd=place, environment=hooked(place, at, do, "os.environ.get('RANK') == '0'"))
        assert result.rc and says in result.output, result.output
        # A traceback of torchrun's, and none of ours.
        assert not re.search(f'File "{re.escape(str(ROOT))}/(?!tests/|\\.venv/)', result.output), result.output
        assert_whole(place, killed=True)
    assert step(place) == 5
    # That torchrun resumes was seen above; to the end it runs without, which takes a tenth of the time.
    in_two(zygote, place, *run.words)
    assert not difference(place, run.left)


PARENT = """
import sys
import reproduce
from tools import flags

def main():
    if reproduce.run_stage(sys.argv[1:]):
        raise ValueError("the stage has failed")
    print("what comes next is run")

flags.run(main)
"""


def test_reproduce_is_asked_to_stop(runs, zygote, tmp_path):
    """By a signal to itself alone."""
    run, place = runs["model_cse"], prepared(tmp_path, runs["model_cse"])
    (place / "parent.py").write_text(PARENT)
    result = zygote.run(place / "parent", "train.py", *run.words[1:], *SELDOM, cwd=place, environment=hooked(
        place, "train/000002.png", "os.kill(os.getppid(), signal.SIGTERM); time.sleep(1)"))
    assert_ended(result, place, 0)
    assert result.output.count("stopped as asked: run the same command to resume") == 1
    assert "what comes next is run" not in result.output and step(place) == 3
    assert_goes_on(zygote, place, run)


@pytest.mark.parametrize("ends, code, says", [
    ("print('told') or 75", 0, "told"), ("0", 0, "what comes next is run"), ("1", 1, "error: the stage has failed"),
    ("os.killpg(0, signal.SIGINT)", 0, "stopped as asked")])
def test_how_a_stage_of_reproduce_ends(zygote, tmp_path, ends, code, says):
    """As it is asked to by someone else, well, badly, and with a Ctrl-C, which both get."""
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "stage.py").write_text("import os, signal\nassert os.environ['STOP_EXIT_CODE'] == '75'\n"
                                       f"signal.signal(signal.SIGINT, signal.SIG_IGN)\nraise SystemExit({ends})")
    result = zygote.run(tmp_path / "parent", tmp_path / "stage.py", cwd=tmp_path)
    assert_said(result, code, says)
    assert ("what comes next is run" in result.output) == (ends == "0")
    assert ("stopped as asked" in result.output) == ("SIGINT" in ends)
