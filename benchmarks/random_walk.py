"""How much faster is a walk of a few rows than squaring the full transition matrix, and how much memory does it take?

Prints  seconds of both on the map of an image, their ratio (medians of one run), the largest difference beside the
        largest score; seconds and memory of the walk on the map of a 2048x2048 image
Run     python -m benchmarks.random_walk [--rows 21] [--device cuda]
"""
import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from benchmarks.cse_step import machine, peak_memory, synchronize
from methods.affinity import pair_affinity
from methods.random_walk import random_walk, transition
from tools import distributed


def main():
    args = parse()
    device = distributed.start(args.device)
    print(f"{machine(device)}; {args.rows} rows, {2**args.logt} steps, medians of {args.runs}")

    scores, affinity = walk_of(args.large, args.large, args.rows, device)
    random_walk(scores[:, :9, :9], walk_of(9, 9, 1, device)[1], logt=1)         # the first call sets things up
    before = peak_memory(device)        # first: a later peak would hide under the dense matrix's
    seconds, _ = timed(lambda: random_walk(scores, affinity, logt=args.logt), device)
    print(f"{args.large}x{args.large} cells   {seconds:8.3f} s, {peak_memory(device) - before:.2f} GiB more memory")

    scores, affinity = walk_of(args.height, args.width, args.rows, device)
    step = transition(affinity, args.height, args.width).to_dense()
    cases = {"walk": lambda: random_walk(scores, affinity, logt=args.logt),
             "dense": lambda: squared_walk(scores, step.T.contiguous(), args.logt)}
    times, found = {name: [] for name in cases}, {}
    for i in range(args.runs + 1):
        for name, case in cases.items():            # in turn, so that a drift of the machine's speed meets both
            seconds, found[name] = timed(case, device)
            if i:                                   # the first is warm-up
                times[name].append(seconds)
    walk, dense = (statistics.median(times[name]) for name in cases)
    print(f"{args.height}x{args.width} cells     {walk:8.3f} s")
    print(f"T squared {args.logt} times {dense:8.3f} s, without the time to fill T")
    print(f"ratio             {dense / walk:8.1f}")
    difference = (found["walk"] - found["dense"]).abs().max() / found["dense"].max()
    print(f"largest difference {difference:.1e} of the largest score")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=21, help="background and classes")
    parser.add_argument("--height", type=int, default=47, help="of the map: an eighth of the image's")
    parser.add_argument("--width", type=int, default=63)
    parser.add_argument("--large", type=int, default=256, help="side of the large map")
    parser.add_argument("--logt", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser.parse_args()


def walk_of(h, w, rows, device):
    """Draw scores (R, h, w) and affinities (P, N) of smooth features."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 8, h // 6 + 2, w // 6 + 2, generator=generator)
    features = F.interpolate(coarse, (h, w), mode="bilinear", align_corners=False)
    features += 0.1 * torch.randn(features.shape, generator=generator)
    return torch.rand(rows, h, w, generator=generator).to(device), pair_affinity(0.4 * features.to(device))[0]


def squared_walk(scores, matrix, logt):
    """Walk as the authors do: square the matrix, then take one large step."""
    for _ in range(logt):
        matrix = matrix @ matrix
    return (scores.flatten(1) @ matrix).view_as(scores)


def timed(call, device):
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
