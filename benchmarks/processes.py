"""What do two cores give: one process of two threads, one of one thread, or two processes of one thread each?

Prints  images/s of train.py (both models) and of infer.py's CAMs on the demo's images, start-up left out, and the
        ratios to one process of one thread; medians, the cases in turn
Run     python -m benchmarks.processes [--runs 3 --data_root data/critters]
"""
import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch

from data import prepare
from data.layout import VOCLayout
from tools.experiment import Experiment

ROOT = Path(__file__).resolve().parent.parent
CASES = {"one process, one thread": (1, 1), "one process, two threads": (1, 2), "two processes of one thread": (2, 1)}
MODELS = ("model_oc", "model_cse")


def main():
    args = parse()
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, medians of {args.runs} runs, {args.epochs} epochs each")
    with tempfile.TemporaryDirectory() as folder:
        if not Path(args.data_root).is_dir():
            args.data_root = f"{folder}/critters"
            prepare.main(["critters", "--out", args.data_root])
        rates = {}                                          # {(what, case): images/s of each run}
        for i, (case, layout) in product(range(args.runs), CASES.items()):      # in turn: a drift meets all
            for what, rate in measure(args, Experiment(folder, f"{i}_{layout[0]}_{layout[1]}"), *layout).items():
                rates.setdefault((what, case), []).append(rate)
    medians = {key: statistics.median(found) for key, found in rates.items()}
    print(f"{'images/s (ratio)':<32}" + "".join(f"{what:>22}" for what in (*MODELS, "CAMs")))
    for case in CASES:
        cells = [f"{medians[what, case]:.1f} ({medians[what, case] / medians[what, next(iter(CASES))]:.2f})"
                 for what in (*MODELS, "CAMs")]
        print(f"{case:<32}" + "".join(f"{words:>22}" for words in cells))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of each training, the first left out")
    parser.add_argument("--num_workers", type=int, default=2, help="that read images, in each process")
    parser.add_argument("--data_root", default="data/critters", help="the critters are generated if it is not there")
    parser.add_argument("--infer_list", default="train")
    return parser.parse_args()


def measure(args, experiment, processes, threads):
    """Train both models and infer CAMs in this layout of processes; returns {what: images/s}."""
    words = ["--recipe", "demo", "--device", "cpu", "--experiment_root", experiment.root, "--name", experiment.name,
             "--data_root", args.data_root, "--num_workers", args.num_workers]
    rates = {}
    for model in MODELS:
        run("train.py", [*words, "--model", model, "--max_epochs", args.epochs], processes, threads)
        rows = experiment.epochs(f"train_{model}")
        rates[model] = statistics.median(row["images_per_second"] for row in rows[1:])
    run("infer.py", [*words, "--model", "model_cse", "--dict", "--infer_list", args.infer_list], processes, threads)
    # From the first file to the last: neither start-up nor the first image of each process is in it.
    ids = VOCLayout(args.data_root).ids(args.infer_list)
    times = sorted((experiment / f"dict/{i}.npz").stat().st_mtime for i in ids)
    rates["CAMs"] = (len(times) - processes) / (times[-1] - times[0])
    return rates


def run(script, words, processes, threads):
    several = ["-m", "torch.distributed.run", "--nproc_per_node", processes, "--master_addr", "127.0.0.1",
               "--master_port", free_port()] if processes > 1 else []
    command = [sys.executable, *several, ROOT / script, *words]
    result = subprocess.run([str(word) for word in command], env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        sys.exit(result.stdout)


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


if __name__ == "__main__":
    main()
