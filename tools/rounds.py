"""Erase and infer on disk, for the eye and as numbers: the maps of each round, a strip and an animation of an image,
the mIoU after each round.

folders, in all of these, is {"round_0": path of the folder of the whole image's CAMs, "round_1": ..., "strips": path}.
"""
import numpy as np

from tools import distributed, interrupt
from tools.files import save_animation, save_image
from tools.maps import checked_cam, find_maps, save_cam
from tools.metrics import ThresholdHistogram, iou
from tools.visualize import heated, titled

TILE = 240                                  # pixels of a tile's longer side
ERASED = (124, 116, 104)                    # ImageNet's mean colour: what 0 is in a normalised image
THRESHOLDS = [t / 100 for t in range(101)]


def incomplete(folders, ids):
    """List the images of which maps of a round, the strip or the animation are missing."""
    return [i for i in ids if not all(find_maps(folder, i) for folder in rounds_of(folders))
            or not all((folders["strips"] / f"{i}.{ending}").exists() for ending in ("png", "gif"))]


def rounds_of(folders):
    """List the rounds' folders in order."""
    return [folder for key, folder in folders.items() if str(key).startswith("round_")]


def save_rounds(folders, image_id, classes, maps, format):
    """Write the maps (N+1, K, H, W) of an image."""
    for folder, scores in zip(rounds_of(folders), maps):
        save_cam(folder / f"{image_id}.{format}", classes, scores, format)


def save_strip(folders, image_id, image, names, maps, threshold):
    """Write strips/ID.png and strips/ID.gif: see draw_rounds."""
    strip, frames = draw_rounds(image, names, maps, threshold)
    save_image(folders["strips"] / f"{image_id}.png", strip)
    save_animation(folders["strips"] / f"{image_id}.gif", frames)


def draw_rounds(image, names, maps, threshold):
    """Draw what the network saw and found in each round, a row a class.

    image uint8 (H, W, 3); names of the K classes; maps (N+1, K, H, W) in [0, 1], of the whole image and after each of N
    erasings; threshold: what exceeds it is erased
    Returns the strip uint8 (H', W', 3), photo | round 0 | ... | round N | all rounds, and the frames of the animation,
    photo | round r | rounds 0 .. r.
    """
    strip, frames = [], [[] for _ in maps]
    for k, name in enumerate(names):
        found = np.maximum.accumulate(maps[:, k])                                       # (N+1, H, W)
        left = [image, *(np.where((before > threshold)[..., None], ERASED, image) for before in found[:-1])]
        photo = titled(image, name)
        seen = [titled(heated(rest, score), f"round {r}" + " (erased: grey)" * (r == 1))
                for r, (rest, score) in enumerate(zip(left, maps[:, k]))]
        joined = [titled(heated(image, score), f"maximum of 0..{r}") for r, score in enumerate(found)]
        strip.append(np.concatenate([photo, *seen, joined[-1]], axis=1))
        for r, frame in enumerate(frames):
            frame.append(np.concatenate([photo, seen[r], joined[r]], axis=1))
    if not len(names):
        return titled(image, "no class"), [titled(image, "no class")]
    return np.concatenate(strip), [np.concatenate(rows) for rows in frames]


def measure_rounds(folders, ids, layout, fixed, remedy):
    """Measure the pixel-wise maximum of the maps up to each round against the ground truth.

    ids  this process's part of the list: each counts its own, and the counts are added up
    Returns [{"round", "miou", "threshold", "fixed_miou"}], percent: at the best threshold of 0 .. 1, and at `fixed`.
    """
    histograms = [ThresholdHistogram(len(layout.classes), [*THRESHOLDS, fixed]) for _ in rounds_of(folders)]
    for image_id in interrupt.progress(ids, len(ids), "mIoU"):
        truth, found = layout.ground_truth(image_id), 0
        for histogram, folder in zip(histograms, rounds_of(folders)):
            classes, scores = checked_cam(find_maps(folder, image_id), layout, truth.shape, remedy)
            found = np.maximum(found, scores)
            histogram.add(classes, found, truth)
    rows = []
    for r, counts in enumerate(sum(distributed.gather(np.stack([h.counts for h in histograms])))):
        histograms[r].counts = counts
        *mious, at_fixed = iou(histograms[r].matrices()).mean(-1).tolist()
        best = int(np.argmax(mious))
        rows.append({"round": r, "miou": mious[best], "threshold": THRESHOLDS[best], "fixed_miou": at_fixed})
    return rows


def print_rounds(rows, fixed, title):
    """Print the mIoU after each round."""
    print(f"\n{title}\n{'round':>8} {'mIoU':>9} {'at':>5} {f'at {fixed:g}':>9}")
    for row in rows:
        print(f"{row['round']:>8} {row['miou']:8.3f}% {row['threshold']:5.2f} {row['fixed_miou']:8.3f}%")
    print("Of the maximum of the maps up to each round. The threshold is the best of 0 .. 1, chosen on the ground "
          "truth")
