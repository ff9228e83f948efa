"""What bounds the dense CRF: how much do processes gain, how much one lattice for several alphas, what do pipes cost?

Run     python benchmarks/crf.py [--images FOLDER] [--count 12] [--alphas 6 10 24] [--workers 2]
Without --images the images are drawn: 500x375, smooth regions with texture.
"""
import argparse
import pickle
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from pydensecrf import densecrf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.evaluation import smooth, timed  # noqa: E402
from tools import crf  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of photos")
    parser.add_argument("--count", type=int, default=12, help="how many images")
    parser.add_argument("--classes", type=int, default=3, help="classes an image; one row more for the background")
    parser.add_argument("--alphas", type=int, nargs="+", default=[6, 10, 24])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="compared with 1")
    parser.add_argument("--repeats", type=int, default=3, help="medians over that many")
    args = parser.parse_args()

    files = sorted(args.images.glob("*.jpg"))[:args.count] if args.images else [None] * args.count
    loads = [partial(load, file, args.classes, seed) for seed, file in enumerate(files)]
    samples = [call() for call in loads]
    height, width = np.median([image.shape[:2] for image, _ in samples], axis=0).astype(int)
    print(f"{len(loads)} {'photos' if args.images else 'drawn images'}, median {width}x{height}, "
          f"{args.classes} classes + background, alphas {args.alphas}, {args.iterations} iterations, "
          f"medians of {args.repeats}")

    shared, separate, one, many, bare = [], [], [], [], []
    for _ in range(args.repeats):                   # in turn, so that a busy machine is busy for all of them
        shared.append(timed(lambda: [each_alpha(*sample, args, together=True) for sample in samples])[0])
        separate.append(timed(lambda: [each_alpha(*sample, args, together=False) for sample in samples])[0])
        one.append(pool_seconds(1, loads, args))
        many.append(pool_seconds(args.workers, loads, args))
        bare.append(args.workers * bare_loops(1) / bare_loops(args.workers))
    shared, separate, one, many = (np.median(seconds) / len(loads) for seconds in (shared, separate, one, many))
    print(f"{len(args.alphas)} alphas, a lattice for each   {separate:6.3f} s an image")
    print(f"{len(args.alphas)} alphas, one lattice          {shared:6.3f} s an image   gain {separate / shared:.2f}")
    print(f"pool of 1 process             {one:6.3f} s an image   {1 / one:.2f} images/s")
    print(f"pool of {args.workers} processes           {many:6.3f} s an image   {1 / many:.2f} images/s   "
          f"gain {one / many:.2f}  (of {np.median(bare):.2f} that a bare loop gains on this machine now)")
    shares(samples, args, shared)


def each_alpha(image, scores, args, together):
    if together:
        return list(crf.dense_crf_alphas(image, scores, args.alphas, args.iterations))
    return [crf.dense_crf(image, np.concatenate([crf.background(scores, alpha), scores]), args.iterations)
            for alpha in args.alphas]


def pool_seconds(workers, loads, args):
    """Time child processes without their start: each one has refined an image before the clock runs."""
    started = threading.Barrier(workers)            # a thread that waits here holds its process: each gets one image
    starts = []

    def timed_load(call):
        starts.append(time.perf_counter())
        return call()

    warm = [crf.Job("", lambda: (np.zeros((1, 1, 3), np.uint8), np.ones((1, 1, 1))), lambda *_: started.wait(), [4])]
    jobs = [crf.Job("", partial(timed_load, call), lambda *_: None, args.alphas) for call in loads]
    for _ in crf.refine_all([*warm * workers, *jobs], workers, args.iterations):
        pass
    return time.perf_counter() - starts[0]


def bare_loops(processes):
    """Time as many processes that only count."""
    command = [sys.executable, "-S", "-c", "for _ in range(60_000_000): pass"]
    start = time.perf_counter()
    for process in [subprocess.Popen(command) for _ in range(processes)]:
        process.wait()
    return time.perf_counter() - start


def shares(samples, args, seconds):
    """Print where the time of one process goes: `seconds` an image, plus the pipes of a pool."""
    lattice = np.mean([timed(partial(build_lattice, image, len(scores) + 1))[0] for image, scores in samples])
    echo = subprocess.Popen([sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    transfers = [timed(partial(transfer, echo, *sample, len(args.alphas)))[0] for sample in [samples[0], *samples]]
    echo.communicate()
    pipes = np.mean(transfers[1:])                  # the first waits for the process to start
    total = seconds + pipes
    for name, part in (("lattice", lattice), ("inference", seconds - lattice), ("pipes", pipes)):
        print(f"  {name:10}  {1e3 * part:7.1f} ms an image, {100 * part / total:4.1f} % of one process's time")


def build_lattice(image, rows):
    model = densecrf.DenseCRF2D(image.shape[1], image.shape[0], rows)
    model.addPairwiseGaussian(**crf.GAUSSIAN)
    model.addPairwiseBilateral(**crf.BILATERAL, rgbim=np.require(image, requirements="CW"))


ECHO = """
import pickle, sys, numpy
try:
    while True:
        image, scores, alphas = pickle.load(sys.stdin.buffer)
        for _ in range(alphas):
            pickle.dump(numpy.ones((len(scores) + 1, *scores.shape[1:]), numpy.float32), sys.stdout.buffer, 5)
            sys.stdout.buffer.flush()
except EOFError:
    pass
"""


def transfer(echo, image, scores, alphas):
    """Send an image's arrays to a process and receive as many as a CRF gives, without any CRF."""
    pickle.dump((image, scores, alphas), echo.stdin, protocol=5)
    echo.stdin.flush()
    for _ in range(alphas):
        pickle.load(echo.stdout)


def load(file, classes, seed):
    rng = np.random.default_rng(seed)
    if file:
        image = np.asarray(Image.open(file).convert("RGB"))
    else:
        colours = np.stack([smooth(rng) for _ in range(3)], axis=-1)
        image = (200 * colours + 25 + rng.normal(0, 4, colours.shape)).astype(np.uint8)
    height, width = image.shape[:2]
    return image, np.stack([smooth(rng, width, height) for _ in range(classes)]).astype(np.float32)


if __name__ == "__main__":
    main()
