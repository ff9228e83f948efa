"""How much memory does each stage take, and what do --accumulate and --checkpoint_blocks save and cost?

Prints  a markdown table, each figure from a process of its own that goes through the real training loop: peak memory at
        each batch, the largest batch that fits 11 and 24 GiB, the time of a step; the same of infer.py's CAMs
Run     python -m benchmarks.memory [--stages model_cse --precisions fp32 --batch_sizes 4 8]
"""
import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout, suppress
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import config

import numpy as np
import torch

from benchmarks.cse_step import machine, make_batch, peak_memory
from data.layout import IGNORE
from data.loader import Plan
from data.transforms import views
from methods.affinity import AffinityLearning
from methods.cam import image_cams
from methods.classification import Classification
from methods.cse import CSE
from methods.segmentation import Segmentation
from models import MODELS
from networks import parameter_groups
from networks.affinity import AffinityNet
from networks.cam import CAMNet
from networks.deeplab import LargeFOV
from networks.pretrained import official_state
from tools import distributed, engine, flags
from tools.experiment import Experiment

ROOMS = (11, 24)            # GiB of the cards that people have
SMALL = 96                  # a crop that costs next to nothing
STAGES = {name: model.Settings for name, model in MODELS.items()} | {"aff": config.TrainAff, "seg": config.TrainSeg}


def main():
    args = parse()
    device = distributed.start(args.device)
    what = ("largest memory that torch had on the GPU at once" if device.type == "cuda" else
            f"largest resident size of the process, of which {alone('program', args)['peak']:.1f} are the program")
    print(f"{machine(device)}; width {args.width:g}; peak memory in GiB: {what}\n"
          f"~: on the straight line through the two nearest measured batches; s: a step, median of {args.steps}; the "
          "ratios are those to the row without --accumulate and --checkpoint_blocks, at the largest batch of both\n")
    print("| stage | crop | precision | accumulate | checkpoint_blocks |"
          + "".join(f" batch {b} |" for b in args.batch_sizes) + "".join(f" fits {room} |" for room in ROOMS)
          + " memory ratio | s | time ratio |\n|---|---" + "|---" * (6 + len(args.batch_sizes) + len(ROOMS)) + "|")
    for stage, precision in product(args.stages, args.precisions):
        plain = None
        for parts, checkpoint in ways(args.accumulate):
            found = {b: alone(stage, args, precision=precision, batch_size=b, accumulate=parts,
                              checkpoint_blocks=checkpoint, compile=False) for b in args.batch_sizes if b % parts == 0}
            plain = plain or found
            words = [stage, crop_of(stage, args), precision, parts, "yes" if checkpoint else "no"]
            print(row(words, found, plain, parts, args.batch_sizes), flush=True)
    print("\n| infer.py's CAMs, image | precision | peak | s |\n|---|---|---|---|")
    for precision in args.precisions:
        found = alone("CAMs", args, precision=precision)
        print(f"| {args.width_px}x{args.height} | {precision} | {cell(found, 'peak')} | {cell(found, 'seconds')} |",
              flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="*", default=tuple(STAGES), choices=tuple(STAGES))
    parser.add_argument("--precisions", nargs="+", default=("fp32", "bf16"), choices=("fp32", "bf16"))
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=(2, 4, 8))
    parser.add_argument("--accumulate", nargs="+", type=int, default=(1, 2, 4),
                        help="the first and the last also with --checkpoint_blocks")
    parser.add_argument("--crop", type=int, help="default: the recipe's")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=1, help="whose median is the time of a step")
    parser.add_argument("--height", type=int, default=375, help="of the image for the CAMs")
    parser.add_argument("--width_px", type=int, default=500)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser.parse_args()


def ways(accumulate):
    """List the pairs of --accumulate and --checkpoint_blocks."""
    ends = [*accumulate[:1], *accumulate[1:][-1:]]
    return [(parts, False) for parts in accumulate] + [(parts, True) for parts in ends]


def crop_of(stage, args):
    return args.crop or stage in STAGES and recipe_of(stage)["crop"]


def recipe_of(stage):
    return {name: value for name, (value, _) in flags.defaults(STAGES[stage]).items()}


def row(words, found, plain, parts, batch_sizes):
    """Write a line of the table: found and plain are {batch: what measure gives}."""
    peaks = {batch: result["peak"] for batch, result in found.items() if result}
    both = max((b for b in peaks if plain.get(b)), default=None)
    words += [cell(found[b], "peak") if b in found else "-" for b in batch_sizes]
    words += [largest(peaks, room, parts) for room in ROOMS]
    words += ["-"] * 3 if both is None else [f"{peaks[both] / plain[both]['peak']:.2f}", cell(found[both], "seconds"),
                                             f"{found[both]['seconds'] / plain[both]['seconds']:.2f}"]
    return f"| {' | '.join(map(str, words))} |"


def cell(result, name):
    return f"{result[name]:.2f}" if result else "too much"


def largest(peaks, room, parts):
    """Name the largest batch that fits, a multiple of its parts; marked where it was not measured itself."""
    if len(peaks) < 2:
        return "-"
    (b0, p0), (b1, p1) = sorted(peaks.items(), key=lambda point: abs(point[1] - room))[:2]
    batch = int(b0 + (room - p0) * (b1 - b0) / (p1 - p0)) // parts * parts
    return f"{batch}" if batch in peaks else f"~{max(batch, 0)}"


def alone(stage, args, **case):
    """Measure in a process of its own; None where the memory does not suffice."""
    case = SimpleNamespace(**vars(args) | case | {"stage": stage, "crop": crop_of(stage, args)})
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(measure, case).result()
        except (BrokenProcessPool, RuntimeError) as error:
            if isinstance(error, BrokenProcessPool | torch.OutOfMemoryError) or "allocate memory" in str(error):
                print(f"{case}: {type(error).__name__}", file=sys.stderr)
                return None
            raise


def measure(case):
    """Return {"peak": GiB, "seconds"} of this process."""
    with suppress(OSError):     # where the machine's memory runs out, no other process is to be ended
        Path("/proc/self/oom_score_adj").write_text("1000")
    device = distributed.start(case.device)
    seconds = {"program": lambda *_: 0, "CAMs": find_cams}.get(case.stage, train)(case, device)
    return {"peak": peak_memory(device), "seconds": seconds}


def train(case, device):
    """Train for some steps; returns the median of their seconds."""
    torch.manual_seed(0)
    network, objective = networks_of(case)
    engine.prepare(objective, device, case)
    optimizer, schedule = engine.poly_sgd(parameter_groups(network, 1e-5, 5e-4), 1e-5, 1000)
    ends = []

    def batches(start):
        yield batch_of(case, min(case.crop, SMALL))         # from its end on the momentum is there
        for _ in range(case.steps):
            yield batch_of(case, case.crop)

    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet, redirect_stdout(quiet), \
            redirect_stderr(quiet):
        settings = SimpleNamespace(precision=case.precision, seed=0, skip_nonfinite=0, save_minutes=10, print_freq=100)
        run = engine.Run(Experiment(folder, "memory"), "memory", settings, {}, {},
                         Plan(1 + case.steps, [1], 0), device, official_state, [])
        engine.fit(objective, network, optimizer, schedule, batches, run,
                   on_step=lambda step, batch: ends.append(time.process_time() if device.type == "cpu" else
                                                           time.perf_counter()))
    return statistics.median(after - before for before, after in zip(ends, ends[1:]))


def networks_of(case):
    """Make a stage's network and its objective."""
    recipe = recipe_of(case.stage)
    kwargs = {"width": case.width, "dropout": recipe["dropout"]}
    if case.stage == "aff":
        network = AffinityNet(**kwargs)
        return network, AffinityLearning(network)
    if case.stage == "seg":
        network = LargeFOV(20, **kwargs)
        return network, Segmentation(network, IGNORE)
    network = CAMNet(20, dropout_head=recipe["dropout_head"], **kwargs)
    return network, CSE(network, CAMNet(20, case.width)) if case.stage == "model_cse" else Classification(network)


def batch_of(case, crop):
    batch = make_batch(SimpleNamespace(batch_size=case.batch_size, crop=crop), torch.device("cpu"))
    if case.stage == "aff":
        batch["label_map"] = torch.randint(3, (case.batch_size, crop // 8, crop // 8))
    if case.stage == "seg":
        batch["label_map"] = torch.randint(21, (case.batch_size, crop, crop), dtype=torch.uint8)
    return batch


def find_cams(case, device):
    """Infer the CAMs of an image with two classes; returns the seconds."""
    network = CAMNet(20, case.width).eval()
    engine.to_device(network, device, inference=True)
    image = np.random.default_rng(0).integers(0, 256, (case.height, case.width_px, 3), np.uint8)
    label = torch.zeros(20)
    label[[2, 11]] = 1
    pictures = [("picture", views(image, config.Infer.scales), image.shape[:2], label)]
    start = time.perf_counter()
    with engine.autocast(device, case.precision):
        list(image_cams(network, pictures))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
