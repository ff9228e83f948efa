"""Call the stages as a person does, in this process: their own flags, the words of the command line."""
import contextlib
import hashlib
import importlib
import io
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

import config

DEMO = ("--recipe", "demo", "--name", "X", "--num_workers", 0)
EPOCHS = {"model_oc": 10, "model_cse": 2}        # fewer, and the CAMs are still 0 nearly everywhere


def small(model):
    """Say how the tests train on a dozen critters."""
    return "--model", model, "--batch_size", 4, "--max_epochs", EPOCHS[model], "--val_every", int(model == "model_cse")


def call(stage, *words):
    """Run a stage's main with these words; returns what it printed."""
    module = importlib.import_module(stage)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [f"{stage}.py", *map(str, words)])
        config.run(module.main)
    return printed.getvalue()


def torchrun(stage, *words):
    """Run a stage in two processes; where they fail, the test shows what they said."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--",
            Path(__file__).resolve().parent.parent / f"{stage}.py", *map(str, words)]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-5000:]


def refusal(stage, *words):
    """Run a stage that must refuse: returns its message. What experiment/ held before must be there, unchanged."""
    before, errors = files("experiment"), io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as caught:
        call(stage, *words)
    error = caught.value
    while error:        # a loader that is left to the garbage collector waits 5 s for each of its processes
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    assert caught.value.code not in (0, None)
    message = caught.value.code if isinstance(caught.value.code, str) else errors.getvalue()
    assert message.startswith(("error: ", "usage: ")) and "Traceback" not in message and len(message) < 9000
    after = files("experiment")
    assert {k: v for k, v in after.items() if k in before} == before
    assert not [name for name in after if name.endswith((".tmp", ".old"))]
    return message


def files(folder, without=("log.txt", "config/", ".lock/")):
    """Return {relative path: (time, digest)} of all files that a second run must not touch."""
    names = {p: p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}
    return {name: (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p, name in names.items()
            if not any(word in name for word in without)}


def copy_place(source, target):
    """Copy a folder's experiment/; data/critters becomes a link to the shared pictures. Returns the copy."""
    shutil.copytree(source / "experiment", target / "experiment")
    (target / "data").mkdir()
    (target / "data/critters").symlink_to((source / "data/critters").resolve())
    return target


def own_data(place):
    """Replace the link to the shared pictures by a copy that a test may spoil; returns its folder."""
    link = place / "data/critters"
    shared = link.resolve()
    link.unlink()
    shutil.copytree(shared, link)
    return link
