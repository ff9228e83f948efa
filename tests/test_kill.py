"""Killed with -9 anywhere and started again with the same words, a stage ends as if nothing had been: bit for bit."""
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.kills import STAGES, difference, prepared
from tools.maps import read_cam

pytestmark = pytest.mark.slow

CAMS = "model_oc", "model_cse", "infer"
KILLS = 12


@pytest.fixture
def killed(zygote, tmp_path):
    """Give a function: kill a run, start it again; returns the killed run's Result, and what is wrong in the end."""
    def kill(run, name, *more, experiment=None, **how):
        place = prepared(tmp_path / name, run, experiment)
        first = zygote.run(*run.words, *more, cwd=place, **how)
        if first.rc != -signal.SIGKILL:
            return first, f"not killed: it ended with {first.rc}, {first.output}"
        again = zygote.run(*run.words, *more, cwd=place)
        if again.rc:
            return first, f"started again it ended with {again.rc}, {again.output}"
        return first, ", ".join(difference(place, run.left))
    return kill


@pytest.fixture
def judge(capsys):
    """Give a function: print how many of the kills end bit-equal; all must."""
    def tell(name, errors):
        wrong = {moment: error for moment, error in errors.items() if error}
        with capsys.disabled():
            print(f"\n{name}: {len(errors) - len(wrong)} of {len(errors)} kills end bit-equal", end=" ")
        assert not wrong, "\n".join(f"killed {moment}: {error}" for moment, error in wrong.items())
    return tell


def test_the_uninterrupted_runs_are_worth_comparing(whole, zygote, tmp_path):
    left, left_last = whole["infer"].left, whole["infer_seg"].left
    for model in ("model_oc", "model_cse"):
        assert left[f"X/ckpt/{model}/000.pth"] != left[f"X/ckpt/{model}/001.pth"]
        first, second = left[f"X/log/train_{model}.jsonl"]
        assert first["loss"] != second["loss"] and first["miou"] > 0 and left[f"X/ckpt/{model}/last.pth"]["step"] == 4
    for model in ("aff_02_24", "seg"):
        assert whole[f"train_{model[:3]}"].left[f"X/ckpt/{model}/000.pth"] != left_last[f"X/ckpt/{model}/001.pth"]
    assert {"X/train/000000.png", "X/train/000002.png", "X/crf/24/val_0001.npz"} < set(left)
    assert read_cam(whole["infer"].after / "X/dict/val_0000.npz")[1].max() > 0.1
    assert not [name for name in left if name.endswith((".tmp", ".old"))]
    # Run a second time from the start, they are equal.
    assert zygote.run(*whole["model_oc"].words, cwd=prepared(tmp_path, whole["model_oc"])).rc == 0
    assert not difference(tmp_path, whole["model_oc"].left)


def test_the_kills_do_what_they_say(whole, zygote, tmp_path):
    run, left = whole["model_oc"], {}
    number = run.result.events.index("rename experiment/X/ckpt/model_oc/last.pth") + 1
    for how in ("before", "half", "after"):
        place = prepared(tmp_path / how, run)
        assert zygote.run(*run.words, cwd=place, kill_at_event=number, how=how).rc == -signal.SIGKILL
        (path,) = [p for p in place.glob("experiment/X/ckpt/model_oc/*") if p.name != "network.json"]
        left[how] = path.suffix, path.stat().st_size
    whole_size = left["after"][1]
    assert left == {"before": (".tmp", whole_size), "half": (".tmp", whole_size // 2), "after": (".pth", whole_size)}


# ---- at random moments ----

@pytest.mark.parametrize("kind", ["train", "infer"])
def test_killed_at_random_moments(whole, killed, judge, kind):
    """The moments are spread over the whole run. Half the trainings save at the ends of epochs alone; of every third
    run only the process itself is killed, and its children are left to notice."""
    runs = {stage: run for stage, run in whole.items() if run.words[0].startswith(kind)}
    rng, errors, between = random.Random(20), {}, 0
    for i in range(KILLS):
        stage = list(runs)[i % len(runs)]
        more = ("--save_minutes", rng.choice((0, 10))) if kind == "train" else ()
        share, seconds, error = (i + rng.random()) / KILLS, runs[stage].result.seconds, "not killed"
        while error.startswith("not killed"):       # the machine is faster than it was
            first, error = killed(runs[stage], f"{i} at {share:.3f}", *more, kill_after=share * seconds,
                                  whole_group=i % 3 > 0)
            share, seconds = 0.97 * share, min(seconds, first.seconds)
        errors[f"{stage}, {i}, after {first.seconds:.3f} s"] = error
        files, all_files = (sum(e.startswith("rename") for e in r.events) for r in (first, runs[stage].result))
        between += 0 < files < all_files
    judge(kind, errors)
    assert len(errors) == KILLS and between >= KILLS / 4, "too few of them came in the middle of something"


# ---- at file events ----

@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_every_file(whole, killed, judge, stage):
    """In the middle of each writing of a file, after it, and at each image on which the CAMs are measured.

    Where another stage has gone through the same script or the same loop, the half-written files alone.
    """
    run, errors = whole[stage], {}
    first_of_loop = stage in ("model_oc", "infer")
    for number, event in enumerate(run.result.events, start=1):
        kind, path = event.split(" ", 1)
        hows = {"rename": ("half", "after") if first_of_loop else ("half",),
                "read": ("before",) if first_of_loop and "SegmentationClass" in path else (),
                "write": ("half",) if not path.endswith(".tmp") else ()}.get(kind, ())
        for how in hows:
            first, errors[f"{how} {number} {event}"] = killed(run, f"{number} {how}", kill_at_event=number, how=how)
            assert first.events[-1] == event, "the file events came in another order"
    judge(stage, errors)
    assert len(errors) >= (15 if stage in CAMS else 5)


@pytest.mark.parametrize("stage", CAMS)
def test_killed_many_times_in_a_row(whole, zygote, tmp_path, stage):
    """Each run gets a little further than the last one, or not at all."""
    run, rng, kills = whole[stage], random.Random(4), 0
    idle = len(zygote.run(*run.words, cwd=prepared(tmp_path / "idle", run, run.after)).events)
    prepared(tmp_path / "place", run)
    while (result := zygote.run(*run.words, cwd=tmp_path / "place", how=rng.choice(("before", "half", "after")),
                                kill_at_event=idle + rng.randint(0, 20))).rc:
        assert result.rc == -signal.SIGKILL, result.output
        kills += 1
        assert kills < 80, "it does not come to an end"
    assert not difference(tmp_path / "place", run.left) and kills >= 5


@pytest.mark.parametrize("stage", ["model_oc", "infer"])
def test_killed_while_old_files_go(whole, zygote, killed, judge, tmp_path, stage):
    """--overwrite where another run's files lie: neither they nor their remains are left."""
    run, errors, old = whole[stage], {}, shutil.copytree(whole[stage].after, tmp_path / "old")
    for path in old.rglob("*.*"):
        if path.is_file() and not (run.before / path.relative_to(old)).exists():
            path.write_bytes(b"old" if path.name != "made_by.json" else path.read_bytes().replace(
                b'"settings": {', b'"settings": {"old": 1' + b"," * (b'"settings": {}' not in path.read_bytes())))
    whole_run = zygote.run(*run.words, "--overwrite", cwd=prepared(tmp_path / "whole", run, old))
    assert whole_run.rc == 0 and not difference(tmp_path / "whole", run.left), whole_run.output
    discards = [n for n, event in enumerate(whole_run.events, start=1) if event.endswith(".old") and "rename" in event]
    for number, how in [(n + k, how) for n in discards[:2] for k, how in ((0, "before"), (0, "after"), (3, "before"))]:
        first, errors[f"{how} {number}"] = killed(run, f"{number} {how}", "--overwrite", experiment=old,
                                                  kill_at_event=number, how=how)
    judge(f"{stage} --overwrite", errors)
    assert len(errors) >= 3


# ---- as a person does it ----

def test_killed_as_a_process_of_a_shell(whole, tmp_path):
    """Python started anew each time, with loading processes: what the zygote's runs leave is what they leave."""
    run = whole["model_oc"]
    prepared(tmp_path, run)
    words = [sys.executable, str(ROOT / "train.py"), *map(str, run.words[1:]), "--num_workers", "2"]
    shell = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL,
             "stderr": subprocess.DEVNULL}
    last, end = tmp_path / "experiment/X/ckpt/model_oc/last.pth", time.monotonic() + 60
    with subprocess.Popen(words, **shell) as process:
        while not last.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL and last.exists()
    subprocess.run(words, **shell, check=True)
    assert not difference(tmp_path, run.left)
