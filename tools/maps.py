"""CAMs and CRF maps on disk, .npz or the authors' .npy, and the names of their folders."""
import re
from pathlib import Path

import numpy as np

from tools.files import unread, written_aside
from tools.safe_npy import read_arrays, read_authors_dict


def save_cam(path, classes, scores, format="npz"):
    """Write an image's CAMs: classes (K,) ids 1..C, scores (K, H, W). npy: the authors' dict, keys 0..C-1, float32."""
    _save_maps(path, classes, scores, format, first=1, compress=False)


def save_crf(path, classes, scores, format="npz"):
    """Write an image's CRF maps: classes (K+1,), 0 first, scores (K+1, H, W). npy: the authors' dict, keys 0..C."""
    _save_maps(path, classes, scores, format, first=0, compress=True)


def read_cam(path, size=None):
    """Read an image's CAMs, .npz or the authors' .npy: classes (K,) int64 ids 1..C, scores (K, H, W) float32.

    size  (H, W) of the image: ValueError if the CAMs have another. The authors' file of no class has no size.
    """
    classes, scores = _read_maps(path, first=1)
    if size and not len(classes):
        return classes, np.zeros((0, *size), np.float32)
    if size and scores.shape[1:] != tuple(size):
        raise ValueError(f"{path} is of size {scores.shape[1:]}, its image {tuple(size)}: delete it and run "
                         "infer.py again")
    return classes, scores


def read_crf(path):
    """Read an image's CRF maps, .npz or .npy: classes (K+1,) int64 ids 0..C, scores (K+1, H, W) float32."""
    return _read_maps(path, first=0)


def find_maps(folder, name):
    """Return the path of an image's maps in a folder, .npz before .npy; None if there are none."""
    for suffix in (".npz", ".npy"):
        path = Path(folder) / (name + suffix)
        if path.exists():
            return path
    return None


def alpha_name(alpha):
    """Name the folder of a CRF's alpha: 4 -> 04, 24 -> 24, 2.5 -> 02.5."""
    whole, dot, fraction = f"{alpha:g}".partition(".")
    return whole.zfill(2) + dot + fraction


def alpha_pair(low, high):
    """Name the folder of two alphas: 4, 24 -> 04_24."""
    return f"{alpha_name(low)}_{alpha_name(high)}"


def pair_alphas(name):
    """Split the name of such a folder into the flags' words: 04_24 -> ("4", "24"); None for any other name."""
    found = re.fullmatch(r"(\d+\.?\d*)_(\d+\.?\d*)", name)
    return found and tuple(f"{float(alpha):g}" for alpha in found.groups())


def lacking(what, folder, missing, ids, list_name):
    """Say how many images of a list have no `what` in a folder, and which."""
    return (f"{len(missing)} of the {len(ids)} images of {list_name} have no {what} in {folder} "
            f"({', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''})")


def _save_maps(path, classes, scores, format, first, compress):
    classes = np.asarray(classes)
    with written_aside(path) as aside:
        with open(aside, "wb") as file:
            if format == "npy":
                table = {int(c) - first: np.ascontiguousarray(s, np.float32) for c, s in zip(classes, scores)}
                np.save(file, np.array(table, dtype=object), allow_pickle=True)
            else:
                # CRF maps are nearly 0 or 1: deflate makes them many times smaller. CAMs hardly shrink.
                save = np.savez_compressed if compress else np.savez
                save(file, classes=classes.astype(np.uint8), scores=np.asarray(scores, np.float16))


def _read_maps(path, first):
    path = Path(path)
    try:
        content = path.read_bytes()
        if path.suffix == ".npy":
            table = read_authors_dict(content)
            classes = np.array(sorted(table), np.int64) + first
            scores = np.stack([table[c] for c in sorted(table)]) if table else np.zeros((0, 0, 0))
        else:
            classes, scores = read_arrays(content, "classes", "scores")
            if classes.dtype.kind not in "iu":
                raise ValueError(f"its classes are {classes.dtype}, not integers")
        with np.errstate(over="ignore"):            # a value too large for float32 becomes infinite
            classes, scores = classes.astype(np.int64), np.require(scores, np.float32, ["C", "W", "O"])
        if classes.ndim != 1 or scores.ndim != 3 or len(classes) != len(scores):
            raise ValueError(f"classes {classes.shape} and scores {scores.shape} do not fit together")
        if len(set(classes.tolist()) & set(range(255))) != len(classes):
            raise ValueError(f"its classes are {classes[:9]}, not ids of 0..254, each once")
        if not np.isfinite(scores).all():
            raise ValueError("its scores hold NaN or infinity")
    except OSError as error:
        raise unread(path, error) from None
    except Exception as error:      # numpy, zlib and pickle document no set of errors for damaged files
        raise ValueError(f"{path} cannot be read ({error}): delete it and run infer.py again") from None
    return classes, scores
