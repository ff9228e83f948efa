"""CAMs and CRF maps on disk, ours and those of other projects, and the names of their folders."""
import re
import zipfile
from pathlib import Path

import numpy as np

from tools.aside import written_aside
from tools.files import require_file, unread
from tools.provenance import MADE_BY, made_with, read_made_by, unknown_inputs
from tools.safe_npy import read_table

SUFFIXES = (".npz", ".npy", ".pth", ".pt")
SCORES = ("high_res", "hr_cam", "attn_highres", "highres", "rw", "cam")    # of irn, Puzzle-CAM, CLIP-ES; the best first
NEARLY = 1e-3               # a score may be so much outside of 0..1: others divide in float16
KINDS = {"cam": "CAMs", "crf": "CRF maps", "png": "label maps", "vis": "overlays"}
HOW_TO_READ = {
    "cam": "evaluation.py scores CAMs with --task cam; infer.py --crf --dict_dir FOLDER makes CRF maps of them, "
           "infer_aff.py --dict_dir FOLDER label maps",
    "crf": "infer.py and infer_aff.py take a folder of CAMs (--dict_dir); evaluation.py takes CRF maps with --task crf",
    "png": "evaluation.py scores label maps with --task png", "vis": "overlays are images for people only"}

NOT_COMPLETED = "No stage wrote that folder, so none completes it: add the files, or name a list of images that it has"


def save_cam(path, classes, scores, format="npz"):
    """Write an image's CAMs: classes (K,) ids 1..C, scores (K, H, W). npy: the authors' dict, keys 0..C-1, float32."""
    _save_maps(path, classes, scores, format, first=1, compress=False)


def save_crf(path, classes, scores, format="npz"):
    """Write an image's CRF maps: classes (K+1,), 0 first, scores (K+1, H, W). npy: the authors' dict, keys 0..C.

    .npz is deflated: CRF maps are nearly 0 or 1 and shrink to a third; CAMs hardly do.
    """
    _save_maps(path, classes, scores, format, first=0, compress=True)


def read_cam(path, size=None):
    """Read an image's CAMs: classes (K,) int64 ids 1..C, scores (K, H, W) float32.

    Ours (.npz), the authors', psa's and SEAM's dicts (.npy, keys 0..C-1), irn's and Puzzle-CAM's (keys, high_res or
    hr_cam); arrays or tensors, .npz, .npy, .pth or .pt.
    size  (H, W) of the image: ValueError if the CAMs have another. The authors' file of no class has no size.
    """
    _, classes, scores = read_maps(path, first=1)
    return _sized(path, classes, scores, size)


def read_crf(path):
    """Read an image's CRF maps: classes (K+1,) int64 ids 0..C, scores (K+1, H, W) float32. Files as of read_cam."""
    return read_maps(path, first=0)[1:]


def checked_cam(path, layout, size=None, remedy=""):
    """Read an image's CAMs as read_cam does; ValueError unless they are CAMs, and of the dataset's classes.

    remedy  what to do once a file that a stage wrote has been deleted; empty: run infer.py again
    """
    form, classes, scores = read_maps(path, 1, remedy)
    if 0 in classes or form != "ids" and len(classes) > 1 and 1 in classes and sum_to_one(scores):
        raise ValueError(f"{path} holds CRF maps, not CAMs. {HOW_TO_READ['crf']}")
    classes, scores = _sized(path, classes, scores, size, remedy)
    _require_classes(path, classes, layout, remedy)
    low, high = (float(limit(initial=0)) for limit in (scores.min, scores.max))
    if not -NEARLY <= low <= high <= 1 + NEARLY:
        raise ValueError(f"{path} holds scores outside 0 .. 1 ({low:.3g} .. {high:.3g}): "
                         + (to_fix(path, remedy) if is_ours(path) else
                            "set negative ones to 0, and divide the map of each class by its maximum"))
    return classes, scores if 0 <= low <= high <= 1 else scores.clip(0, 1)


def checked_crf(path, layout, size=None, remedy=""):
    """Read an image's CRF maps as read_crf does; ValueError unless they are CRF maps: see checked_cam."""
    _, classes, scores = read_maps(path, 0, remedy)
    if 0 not in classes:
        raise ValueError(f"{path} holds no map of the background: no CRF maps. {HOW_TO_READ['cam']}")
    classes, scores = _sized(path, classes, scores, size, remedy)
    _require_classes(path, classes, layout, remedy)
    if not sum_to_one(scores):
        raise ValueError(f"{path} holds scores that do not sum to 1 at each pixel: no CRF maps. "
                         + HOW_TO_READ["cam"])
    return classes, scores


def require_kind(folder, kind):
    """Raise ValueError if a folder holds something else than `kind` (cam, crf or png).

    Its record tells; in a folder without one the files' endings tell label maps from the others. A folder that holds
    a folder for each alpha (crf/) holds no maps itself.
    """
    found = kind_of(folder)
    if not found and is_foreign(folder):
        inside = sorted(Path(folder).iterdir())
        endings = {path.suffix for path in inside if path.is_file()}
        alphas = [str(path) for path in inside if path.is_dir() and _alphas_in(path.name)]
        if alphas and not endings & {*SUFFIXES, ".png"}:
            raise ValueError(f"{folder} holds no {KINDS[kind]}, but folders of alphas: name {' or '.join(alphas[:9])}")
        if kind == "png" and not endings & {".png"} and endings & {*SUFFIXES}:
            raise ValueError(f"{folder} holds no label maps (.png), but {' and '.join(sorted(endings & {*SUFFIXES}))} "
                             f"files. {HOW_TO_READ['cam']}")
        if kind != "png" and ".png" in endings and not endings & {*SUFFIXES}:
            raise ValueError(f"{folder} holds no {KINDS[kind]} ({', '.join(SUFFIXES)}), but .png files. "
                             f"{HOW_TO_READ['png']}")
    if found and found != kind:
        raise ValueError(f"{folder} holds {KINDS[found]} (its made_by.json says so), not {KINDS[kind]}. "
                         + HOW_TO_READ[found])


def kind_of(folder):
    """Tell what a stage wrote into a folder: cam, crf, png (--task of evaluation.py) or vis; None without a record."""
    stage = str(read_made_by(folder).get("stage", ""))
    known = {"infer crf": "crf", "infer vis": "vis", "infer_aff": "png", "infer_seg": "png"}
    return known.get(stage, "cam" if stage.startswith("infer ") else None)


def is_ours(path):
    """Tell whether a stage wrote a file of maps: its folder has a record, and the stage writes files of that ending."""
    path = Path(path)
    return (path.parent / MADE_BY).exists() and path.suffix == f".{made_with(path.parent).get('format', 'npz')}"


def is_foreign(folder):
    """Tell whether a folder holds files, but no stage wrote it."""
    folder = Path(folder)
    return folder.is_dir() and not (folder / MADE_BY).exists() and any(not p.name.startswith(".")
                                                                       for p in folder.iterdir())


def holds_maps(folder):
    """Tell whether any file of a folder is of an ending that maps have."""
    return Path(folder).is_dir() and any(path.suffix in SUFFIXES for path in Path(folder).iterdir())


def to_fix(path, remedy=""):
    """Say what to do about a file of maps that cannot be used. Only one that a stage wrote may be deleted."""
    if not is_ours(path):
        return "no stage wrote it, so write it again with the program that it comes from, or name another folder"
    return f"delete it. {remedy}" if remedy else "delete it and run infer.py again"


def find_maps(folder, name):
    """Return the path of an image's maps in a folder, .npz before .npy, .pth and .pt; None if there are none."""
    for suffix in SUFFIXES:
        path = Path(folder) / (name + suffix)
        if path.exists():
            return path
    return None


def others_maps(folders, ids):
    """Return {folder: {ID: path of its maps}} of those folders, or of the one, whose content no record tells: no stage
    wrote it, or one made it of such maps.
    """
    folders = folders if isinstance(folders, list) else [folders] if folders else []
    return {folder: {i: find_maps(folder, i) for i in ids} for folder in folders
            if is_foreign(folder) or "unknown" in read_made_by(folder).get("inputs", {}).values()}


def with_inputs(images, folder, home):
    """Add to the signatures of images those of others' maps from which a folder was made. home: of provenance.verify"""
    return images.with_maps(others_maps(unknown_inputs(folder, home), images.of))


def find_alike(folder):
    """Return the folder, or the one beside it that is named by the same alphas: crf/04 is found as crf/4 or crf/4.0,
    out_crf_4.0 as out_crf_04, rw/04_24 as rw/4_24. None if there is none.
    """
    folder = Path(folder)
    if folder.is_dir():
        return folder
    alphas = _alphas_in(folder.name)
    if not alphas or not folder.parent.is_dir():
        return None
    found = [path for path in sorted(folder.parent.iterdir()) if path.is_dir() and _alphas_in(path.name) == alphas]
    if len(found) > 1:
        raise ValueError(f"no folder {folder}, but {' and '.join(map(str, found))} are of the same alphas: name one of "
                         "them")
    return found[0] if found else None


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
                arrays = {"classes": classes.astype(np.uint8), "scores": np.asarray(scores, np.float16)}
                if compress:
                    _save_deflated(file, arrays)
                else:
                    np.savez(file, **arrays)


def _save_deflated(file, arrays):
    """Write an .npz as np.savez_compressed does, with the least effort: a third of the time, files 4 to 7 % larger."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)


def read_maps(path, first, remedy=""):
    """Read a file of maps: its form, classes (K,) int64, scores (K, H, W) float32.

    The form is "ids" (ours: classes and scores), "keys" (irn's and Puzzle-CAM's) or "dict" (a key a map). Keys are
    0..C-1 in CAMs, 0..C in CRF maps. first  the class of key 0
    """
    path = Path(path)
    try:
        require_file(path)
        table = read_table(path.read_bytes(), {"classes", "scores", "keys", *SCORES})
        form, classes, scores = _arrays_of(table, first)
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
        raise ValueError(f"{path} cannot be read ({error}): {to_fix(path, remedy)}") from None
    return form, classes, scores


def _arrays_of(table, first):
    """Take the form, the classes and the scores from a file's table."""
    form = "keys" if "keys" in table else "ids" if "classes" in table else "dict"
    if form == "dict":
        if not all(type(key) is int for key in table):
            raise ValueError("it has no classes" if "scores" in table else "not a dict of arrays")
        scores = np.stack([table[c] for c in sorted(table)]) if table else np.zeros((0, 0, 0))
        return form, np.array(sorted(table), np.int64) + first, scores
    key, names = ("keys", SCORES) if form == "keys" else ("classes", ("scores",))
    if not (name := next((name for name in names if name in table), None)):
        raise ValueError(f"it has {key}, but no {' or '.join(names)}")
    classes, scores = np.asarray(table[key]), np.asarray(table[name])
    if form == "keys" and not classes.size:          # an empty list has no type, and no shape
        return form, np.zeros(0, np.int64), scores if scores.ndim == 3 else np.zeros((0, 0, 0))
    if classes.dtype.kind not in "iu":
        raise ValueError(f"its {key} are {classes.dtype}, not integers")
    if form == "keys":                              # Puzzle-CAM has 0 before its ids 1..C, irn has 0..C-1
        padded = len(classes) == len(scores) + 1 and classes[0] == 0
        classes = classes[1:] if padded else classes + first
    return form, classes, scores


def _sized(path, classes, scores, size, remedy=""):
    """Check the size of an image's maps, if it is given; a file of no class takes it."""
    if size and not len(classes):
        return classes, np.zeros((0, *size), np.float32)
    if size and scores.shape[1:] != tuple(size):
        turned = ("if EXIF data turn the photo, the maps were made without that: turn them as the photo, or save it "
                  "upright without EXIF data; otherwise ") * (scores.shape[1:] == tuple(size)[::-1])
        smaller = ("maps are read at the image's own size, which irn's files hold under high_res, Puzzle-CAM's under "
                   "hr_cam; ") * (not is_ours(path) and all(a < b for a, b in zip(scores.shape[1:], size)))
        raise ValueError(f"{path} holds maps of size {scores.shape[1:]}, its image is of size {tuple(size)}: "
                         f"{turned}{smaller}{to_fix(path, remedy)}")
    return classes, scores


def _require_classes(path, classes, layout, remedy):
    if len(classes) and classes.max() > (most := len(layout.classes)):
        raise ValueError(f"{path} holds the class {classes.max()}, but the object classes of {layout.root} are "
                         f"1..{most}: fix classes.txt, or " + (to_fix(path, remedy) if is_ours(path) else
                                                               "name the folder of this dataset's maps"))


def sum_to_one(scores):
    return bool(np.abs(scores.sum(0) - 1).max(initial=0) < 0.02)           # float16 rounds each by up to .0005


def _alphas_in(name):
    """Split a folder's name into a word and its alphas: 04_24 -> ("", 4.0, 24.0), crf_4.0 -> ("crf_", 4.0)."""
    found = re.fullmatch(r"(.*crf.*_)?(\d+\.?\d*)(?:_(\d+\.?\d*))?", name, re.IGNORECASE)
    return found and (found[1] or "", *(float(alpha) for alpha in found.groups()[1:] if alpha))
