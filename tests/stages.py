"""Call the stages as a person does, in this process: their own flags, the words of the command line."""
import contextlib
import hashlib
import importlib
import io
import json
import shlex
import shutil
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import config

import numpy as np
import pytest
import torch
from PIL import Image

from data import prepare
from data.loader import Plan
from models import MODELS
from tools import flags, interrupt
from tools.engine import Run

DEMO = ("--recipe", "demo", "--name", "X", "--num_workers", 0)
ALPHAS = (4, *flags.defaults(config.Infer, "demo")["alphas"][0])        # 4 and 24 are AffinityNet's
EPOCHS = {"model_oc": 10, "model_cse": 2}        # fewer, and the CAMs are still 0 nearly everywhere
CROP = ("--crop", 64, "--resize", 56, 80)           # half of the recipe's, as the images of small_critters


def small(model):
    """Say how the tests train on a dozen critters."""
    return ("--model", model, "--batch_size", 4, "--max_epochs", EPOCHS[model], "--val_every",
            int(model == "model_cse"), *CROP)


def small_critters(folder, train, val):
    """Generate the embedded images at half their side, 64 pixels: the stages need a quarter of the time."""
    prepare.main(["critters", "--train", str(train), "--val", str(val), "--out", str(folder)])
    halve(folder)


def halve(folder):
    """Shrink all images of a dataset of critters to half their side."""
    for path in folder.glob("[JSH]*/*.png"):
        with Image.open(path) as image:
            image.resize((64, 64), Image.NEAREST).save(path)


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


def in_two(zygote, place, *words, killed=None, at=None):
    """Run a stage in two processes, as torchrun would start them, and expect that both succeed; returns their Results.

    killed  the number of the one that is killed before the file event `at`; then they may end as they will
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [zygote.start(*words, cwd=place, signals={at: signal.SIGKILL} if rank == killed else {}, environment={
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port)}) for rank in range(2)]
    ends = [run.wait() for run in both]
    assert killed is not None or [end.rc for end in ends] == [0, 0], "\n".join(end.output[-5000:] for end in ends)
    return ends


def refusal(stage, *words):
    """Run a stage that must refuse: returns its message. What experiment/ held before must be there, unchanged."""
    before, errors = states("experiment"), io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as caught:
        call(stage, *words)
    error = caught.value
    while error:        # a loader that is left to the garbage collector waits 5 s for each of its processes
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    assert caught.value.code not in (0, None)
    message = caught.value.code if isinstance(caught.value.code, str) else errors.getvalue()
    assert message.startswith(("error: ", "usage: ")) and "Traceback" not in message and len(message) < 9000
    after = states("experiment")
    assert {k: v for k, v in after.items() if k in before} == before
    assert not [name for name in after if name.endswith((".tmp", ".old"))]
    return message


UNLIKE = "log.txt", "config/", ".lock/", "made_by.images"        # every run writes these


def states(folder, without=UNLIKE):
    """Return {relative path: what every writing of that file changes}: ten times as fast as files."""
    names = {p: p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}
    found = {name: p.stat() for p, name in names.items() if not any(word in name for word in without)}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in found.items()}


def files(folder, without=UNLIKE):
    """Return {relative path: (time, digest)} of all files that a second run must not touch."""
    names = {p: p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}
    return {name: (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p, name in names.items()
            if not any(word in name for word in without)}


def copy_place(source, target):
    """Copy a folder's experiment/; data/critters becomes a link to the shared images. Returns the copy.

    The first epochs of model_oc, of which no test needs a copy, stay behind: they are a third of it.
    """
    shutil.copytree(source / "experiment", target / "experiment", ignore=shutil.ignore_patterns("00[2-7].pth"))
    (target / "data").mkdir()
    (target / "data/critters").symlink_to((source / "data/critters").resolve())
    return target


def own_data(place):
    """Replace the link to the shared images by a copy that a test may spoil; returns its folder."""
    link = place / "data/critters"
    shared = link.resolve()
    link.unlink()
    shutil.copytree(shared, link)
    return link


def assert_says(message, *words):
    assert all(word in message for word in words), message


def change_labels(data, change):
    table = json.loads((data / "labels.json").read_text())
    change(table)
    (data / "labels.json").write_text(json.dumps(table))


def add_to_list(data, line, split="train_aug"):
    with open(data / f"ImageSets/Segmentation/{split}.txt", "a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def commands_of(text):
    return [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("$ python ")]


def slow_miou(maps, num_classes):
    """mIoU of (prediction, ground truth) maps, class by class; an absent class counts 0."""
    ious = []
    for c in range(num_classes + 1):
        both = sum(((p == c) & (t == c)).sum() for p, t in maps)
        either = sum((((p == c) | (t == c)) & (t != 255)).sum() for p, t in maps)
        ious.append(100 * both / either if either else 0)
    return np.mean(ious)


def assert_stops_change_nothing(stage, line, experiments, model, after, monkeypatch):
    """Train two epochs whole, and stopped after some steps and started again: bit for bit, dropout and jitter included.

    after  [2, 4] of steps lie in the first epoch and in the second
    """
    line, asked = (*line, "--jitter", 0.3, 0.3, 0.3, 0.1, "--dropout", 0.3, 0.5), iter([False] * after + [True])
    call(stage, *line, "--name", "whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(interrupt, "asked", lambda: next(asked))
        call(stage, *line, "--name", "parts")
    assert "resumes at epoch" in call(stage, *line, "--name", "parts")
    whole, parts = (torch.load(experiments / f"{name}/ckpt/{model}/001.pth", weights_only=True)
                    for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    whole, parts = ([row["loss"] for row in rows_of(experiments / f"{name}/log/train_{model}.jsonl")]
                    for name in ("whole", "parts"))
    assert whole == parts
