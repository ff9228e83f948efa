"""Small runs of every stage without a break, and what a run that was broken and resumed must leave: the same files."""
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.stages import DEMO, small_critters

TINY = ("--batch_size", 3, "--max_epochs", 2, "--val_every", 1, "--val_list", "val", "--save_minutes", 0, "--lr", 0.01,
        "--crop", 32, "--resize", 32, 40, "--width", 0.0625, "--dropout", 0.3, 0.5, "--jitter", 0.3, 0.3, 0.3, 0.1)
PAIR = "--low", 2, "--high", 24
ON_TWO = ("--train_list", "val", "--batch_size", 2, "--max_epochs", 2, "--save_minutes", 0, "--width", 0.0625,
          "--dropout", 0.3, 0.5, "--jitter", 0.3, 0.3, 0.3, 0.1)
STAGES = {      # in the order in which they need each other
    "model_oc": ("train", *DEMO, "--model", "model_oc", *TINY),
    "model_cse": ("train", *DEMO, "--model", "model_cse", *TINY, "--vis_freq", 2),
    "infer": ("infer", *DEMO, "--dict", "--crf", "--alphas", 2, 24, "--crf_iterations", 2, "--scales", 0.5, 1, "--vis",
              "--infer_list", "val"),
    "train_aff": ("train_aff", *DEMO, *PAIR, *ON_TWO, "--crop", 72),
    "infer_aff": ("infer_aff", *DEMO, *PAIR, "--infer_list", "val", "--crf_iterations", 0),
    "train_seg": ("train_seg", *DEMO, "--label_dir", "rw/02_24", *ON_TWO, "--crop", 32),
    "infer_seg": ("infer_seg", *DEMO, "--infer_list", "val", "--scales", 1, "--vis", "--zip"),
}
# Times of day, their spans, and flags with which a run may resume: they differ between runs that are otherwise equal.
FREE = {"seconds", "images_per_second", "memory_gib", "when", "revision", "command", "save_minutes", "num_workers",
        "overwrite"}


def left_by(place):
    """Give what must be equal of all that lies in experiment/: {path: content}."""
    found = {path.relative_to(place / "experiment"): path for path in (place / "experiment").rglob("*")}
    return {str(name): "litter" if "/." in str(name) else content(path) for name, path in found.items()
            if path.is_file() and ".lock" not in name.parts and name.name != "log.txt"}


def content(path):
    if path.name == "last.pth":
        return fixed(torch.load(path, weights_only=True))
    if path.match("log/train_*.jsonl"):
        return [fixed(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    if path.match("config/*.json"):
        return fixed(json.loads(path.read_text("utf-8")))
    return path.read_bytes()


def fixed(value):
    """Copy what a file holds without what is free; tensors as bytes."""
    if isinstance(value, dict):
        return {k: fixed(v) for k, v in value.items() if k not in FREE}
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    return [fixed(v) for v in value] if isinstance(value, (list, tuple)) else value


def difference(place, expected):
    """Name the files that differ."""
    left = left_by(place)
    return sorted(name for name in left.keys() | expected if left.get(name) != expected.get(name))


def make_whole(zygote):
    """Run each stage without a break in the current folder, and write whole.pickle: what load_whole returns."""
    place, runs = Path.cwd(), {}
    small_critters(place / "data/critters", 6, 2)
    (place / "experiment").mkdir()
    for stage, words in STAGES.items():
        run = SimpleNamespace(words=words, data=place / "data", before=place / f"before {stage}", after=place / stage)
        shutil.copytree(place / "experiment", run.before)
        run.result = zygote.run(*words, cwd=place)
        assert run.result.rc == 0, run.result.output
        run.left = left_by(place)
        shutil.copytree(place / "experiment", run.after)
        runs[stage] = run
    (place / "whole.pickle").write_bytes(pickle.dumps(runs))


def load_whole(place):
    """Return {stage: its words, folders before and after, Result, what it left}."""
    return pickle.loads((place / "whole.pickle").read_bytes())


def prepared(place, run, experiment=None):
    """Make a folder in which a stage can run; returns it."""
    shutil.copytree(experiment or run.before, place / "experiment")
    (place / "data").symlink_to(run.data)
    return place
