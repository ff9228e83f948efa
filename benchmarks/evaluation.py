"""How much faster is one pass over the class maps for 30 background thresholds than one pass for each?

Both read npz class maps and png truths from a temporary folder; both must give the same mIoU.
Run     python benchmarks/evaluation.py [--images 40] [--repeats 3]
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.metrics import ConfusionMatrix, threshold_sweep  # noqa: E402

THRESHOLDS = np.arange(0.10, 0.395, 0.01)
NUM_CLASSES = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40, help="how many images of 500x375, 1 to 4 classes each")
    parser.add_argument("--repeats", type=int, default=3, help="medians over that many")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.images):
            write_sample(Path(folder), i)
        fast, slow, read = [], [], []
        for _ in range(args.repeats):
            seconds, curve = timed(lambda: threshold_sweep(samples(folder), NUM_CLASSES, THRESHOLDS))
            fast.append(seconds)
            seconds, expected = timed(lambda: [miou_at(folder, t) for t in THRESHOLDS])
            slow.append(seconds)
            read.append(timed(lambda: list(map(len, samples(folder))))[0])
    assert np.array_equal(curve, expected), "the two ways differ"
    fast, slow, read = np.median(fast), np.median(slow), np.median(read)
    print(f"{args.images} images, {len(THRESHOLDS)} thresholds, medians of {args.repeats}; the results are bit-equal")
    print(f"one pass                     {1e3 * fast / args.images:8.1f} ms an image, "
          f"of which reading the files {1e3 * read / args.images:.1f}")
    print(f"one pass for each threshold  {1e3 * slow / args.images:8.1f} ms an image")
    print(f"ratio                        {slow / fast:8.1f}")


def miou_at(folder, threshold):
    confusion = ConfusionMatrix(NUM_CLASSES)
    for classes, scores, truth in samples(folder):
        background = np.full((1, *truth.shape), threshold, np.float32)
        row = np.concatenate([background, scores.astype(np.float32)]).argmax(0)
        confusion.add(np.concatenate([[0], classes])[row], truth)
    return confusion.miou()


def samples(folder):
    for path in sorted(Path(folder).glob("*.npz")):
        with np.load(path) as data:
            classes, scores = data["classes"], data["scores"]
        yield classes, scores, np.asarray(Image.open(path.with_suffix(".png")))


def write_sample(folder, i):
    """Write smooth class maps, float16 as infer.py does, and ground truth that roughly agrees with them."""
    rng = np.random.default_rng(i)
    classes = np.sort(rng.choice(np.arange(1, NUM_CLASSES + 1), rng.integers(1, 5), replace=False)).astype(np.uint8)
    scores = np.stack([smooth(rng) for _ in classes])                                    # (K, 375, 500)
    noisy = np.stack([np.full(scores.shape[1:], 0.25), *(0.7 * scores + 0.3 * smooth(rng))])
    truth = np.concatenate([[0], classes])[noisy.argmax(0)].astype(np.uint8)
    truth[rng.random(truth.shape) < 0.02] = 255
    np.savez(folder / f"{i:04}.npz", classes=classes, scores=scores.astype(np.float16))
    Image.fromarray(truth).save(folder / f"{i:04}.png")


def smooth(rng, width=500, height=375):
    coarse = Image.fromarray(rng.standard_normal((6, 8)).astype(np.float32))
    plane = np.maximum(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)), 0)
    return plane / (plane.max() + 1e-5)


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
