"""What does saving cost: as a share of a demo epoch, and of ten minutes with the paper's network?

Prints  the share of an epoch of train.py --recipe demo that goes into last.pth and EEE.pth; seconds and size of both
        files, there and with the network of width 1.0: what of it torch.save and fsync take, and what bare bytes would
Run     python -m benchmarks.saving [--epochs 5 --data_root data/critters]
"""
import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import config

import torch

import train
from benchmarks.cse_step import machine, make_batch
from data import prepare
from data.loader import Plan
from methods.classification import Classification
from networks import parameter_groups
from networks.cam import CAMNet
from networks.pretrained import official_state
from tools import distributed, engine, progress
from tools.experiment import Experiment


def main():
    args = parse()
    device = distributed.start(args.device)
    print(f"{machine(device)}; medians of {args.epochs} epochs")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if not Path(args.data_root).is_dir():
            args.data_root = f"{folder}/critters"
            prepare.main(["critters", "--out", args.data_root])
        shares = {model: share_of_epoch(model, args, folder) for model in ("model_oc", "model_cse")}
        wide = train_wide(args, folder, device)
        for model, (seconds, share, saves) in shares.items():
            print(f"\ndemo, {model}: an epoch {seconds:.2f} s, saving {share:.2%} of it")
            describe(saves, folder)
        print(f"\nwidth {args.width:g}")
        describe(wide, folder)
    minutes, last = config.Training.save_minutes, statistics.median(s.seconds for s in wide if s.name == "last.pth")
    print(f"one last.pth every {minutes:g} minutes (--save_minutes): {last / 60 / minutes:.2%} of the time")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--data_root", default="data/critters", help="the critters are generated if it is not there")
    parser.add_argument("--folder", help="on the disk that is measured; default: where temporary files are")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser.parse_args()


def share_of_epoch(model, args, folder):
    """Train the demo; returns the seconds of an epoch, the share of them that saving takes, and the saves."""
    saves, argv = [], sys.argv
    sys.argv = ["train.py", "--recipe", "demo", "--name", "saving", "--model", model, "--data_root", args.data_root,
                "--experiment_root", folder, "--max_epochs", str(1 + args.epochs), "--device", args.device]
    with watched(saves):
        train.main()
    sys.argv = argv
    ends = [s.end for s in saves if s.name != "last.pth"]                   # an epoch's weights are its last file
    epochs = list(zip(ends, ends[1:]))
    shares = [sum(s.seconds for s in saves if start < s.end <= end) / (end - start) for start, end in epochs]
    return statistics.median(end - start for start, end in epochs), statistics.median(shares), saves


def train_wide(args, folder, device):
    """Train the whole network, an epoch a step; returns the saves."""
    network, saves = CAMNet(20, args.width), []
    objective = Classification(network)
    engine.to_device(objective, device)
    optimizer, schedule = engine.poly_sgd(parameter_groups(network, 1e-5, 5e-4), 1e-5, 1000)
    batch = make_batch(SimpleNamespace(batch_size=1, crop=64), device)
    with watched(saves):
        settings = SimpleNamespace(precision="fp32", seed=0, skip_nonfinite=0, save_minutes=10, print_freq=100)
        run = engine.Run(Experiment(folder, "wide"), "wide", settings, {}, {}, Plan(1, [1] * args.epochs, 0), device,
                         official_state, [])
        engine.fit(objective, network, optimizer, schedule, lambda start: iter([batch] * args.epochs), run)
    return saves


@contextmanager
def watched(saves):
    """Note each checkpoint that is written: its name, bytes, end, seconds, and those of torch.save and fsync in it."""
    parts, save_checkpoint = {}, progress.save_checkpoint

    def timed(name, call):
        def run(*words):
            start = time.perf_counter()
            call(*words)
            parts[name] = time.perf_counter() - start
        return run

    def save(path, value):
        start = time.perf_counter()
        save_checkpoint(path, value)
        end = time.perf_counter()
        saves.append(SimpleNamespace(name=path.name, size=path.stat().st_size, end=end, seconds=end - start, **parts))

    with patch.object(torch, "save", timed("pack", torch.save)), patch.object(os, "fsync", timed("sync", os.fsync)), \
            patch.object(progress, "save_checkpoint", save):
        yield


def describe(saves, folder):
    for name, kind in (("last.pth", [s for s in saves if s.name == "last.pth"]),
                       ("EEE.pth", [s for s in saves if s.name != "last.pth"])):
        size, seconds, pack, sync = (statistics.median(getattr(s, key) for s in kind)
                                     for key in ("size", "seconds", "pack", "sync"))
        bare = statistics.median(write_bare(Path(folder) / "bare", int(size)) for _ in range(3))
        print(f"{name:<9} {size / 1e6:8.1f} MB {1e3 * seconds:9.1f} ms: torch.save {1e3 * pack:.1f}, fsync "
              f"{1e3 * sync:.1f}; as many bare bytes, written and synchronised: {1e3 * bare:.1f}")


def write_bare(path, size):
    """Write so many bytes that no disk can shrink; returns the seconds."""
    content = os.urandom(size)
    start = time.perf_counter()
    with open(path, "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


if __name__ == "__main__":
    main()
