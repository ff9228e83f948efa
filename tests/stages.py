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
from types import SimpleNamespace

import config

import pytest
import torch

from data.loader import Plan
from models import MODELS
from tools import flags
from tools.engine import Run

DEMO = ("--recipe", "demo", "--name", "X", "--num_workers", 0)
EPOCHS = {"model_oc": 10, "model_cse": 2}        # fewer, and the CAMs are still 0 nearly everywhere


def small(model):
    """Say how the tests train on a dozen critters."""
    return "--model", model, "--batch_size", 4, "--max_epochs", EPOCHS[model], "--val_every", int(model == "model_cse")


def run_of(experiment, model, epochs, steps, batch_size, record=None, weights=None, ids=(), **settings):
    """Say what a test trains, as the stages do to tools.engine.fit: so many epochs of so many steps."""
    settings = {"precision": "fp32", "seed": 0, "skip_nonfinite": 0, "save_minutes": 10, "print_freq": 100} | settings
    return Run(experiment, model, SimpleNamespace(**settings), record or {}, {},
               Plan(batch_size * steps, [batch_size] * epochs, 0), torch.device("cpu"),
               weights or (lambda network: network.state_dict()), list(ids))


def parse(cls, words):
    """Read a stage's flags as its main does."""
    models = {config.Train: {name: model.Settings for name, model in MODELS.items()},
              config.Infer: dict.fromkeys(MODELS, config.Infer)}
    return flags.parse(cls, words, models.get(cls))


def call(stage, *words):
    """Run a stage's main with these words; returns what it printed."""
    module = importlib.import_module(stage)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [f"{stage}.py", *map(str, words)])
        flags.run(module.main)
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


def files(folder, without=("log.txt", "config/", ".lock/", "made_by.images")):
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
