"""What an experiment is on disk. This file alone builds an output path and knows a file format.

experiment/NAME/
  config/STAGE_MODEL.json   settings, versions, git revision, command line
  ckpt/MODEL/EEE.pth        weights after epoch EEE, the authors' names
  ckpt/MODEL/last.pth       everything needed to go on
  log/STAGE_MODEL.jsonl     one line an epoch;  log.txt for people;  train/ pictures of masks
  log/reproduce.json        what each stage took, over all runs of reproduce.py
  dict/ID.npz               classes uint8 (K,) ids 1..C;  scores float16 (K, H, W) in [0, 1]
  crf/06/ID.npz             classes (K+1,), 0 first;  scores float16 (K+1, H, W), sums to 1
  infer/ID_cam_CLASS.png    overlays
  rw/04_24/ID.png           palette PNG, class ids;  seg/ID.png too
  eval/TASK_DIR_LIST.json   mIoU, its curve;  the curve as .png
  results.json              reproduce.py's rows
  report.html               all of it for the eye
  .lock/                    who writes here now
Each output folder holds made_by.json: who wrote it, from what. Files are written aside and renamed.
"""
import errno
import hashlib
import io
import json
import math
import os
import pickle
import pickletools
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from tools import lock

MADE_BY = "made_by.json"


class Experiment:
    """The folder ROOT/NAME. Paths are given relative to it ("ckpt/model_oc/last.pth").

    flags  words that a stage needs to work there on the same data, in the commands that messages name
    """

    def __init__(self, root, name, flags=()):
        self.root, self.name, self.flags = Path(root), name, flags
        self.folder = self.root / name

    def __truediv__(self, path):
        return self.folder / path

    # -- one run at a time

    def lock(self, what, shared=False):
        """Keep other runs from writing `what`, a path in the experiment, until this one ends: see tools.lock.hold."""
        with _explained(self / what):
            return lock.hold(self._lock_path(what), self / what, shared)

    def release(self):
        """Give back the locks; a process that ends need not."""
        lock.release(self / ".lock")

    def _lock_path(self, what):
        return self / ".lock" / (str(Path(what)).replace("/", "_") + ".lock")

    def find_folder(self, name):
        """Return the folder of that name in the experiment, or else wherever the name leads."""
        return self / name if (self / name).is_dir() else Path(name)

    # -- the commands that messages name

    def command(self, script, *words):
        """Write the command line that runs a stage here."""
        return f"python {shlex.join([script, '--name', self.name, *words, *self.flags])}"

    def maker(self, kind, folder, list_name, alphas=()):
        """Say how the maps of a list in a folder are made. kind: cam | crf (folder: that of all alphas) | png."""
        home, name = self._home_of(folder)
        top, _, part = name.partition("/")
        pair = pair_alphas(part) if top == "rw" else None
        if kind == "png" and pair:
            words = ["infer_aff.py", "--low", pair[0], "--high", pair[1]]
        elif kind == "png" and top == "seg":
            words = ["infer_seg.py"]
        elif kind == "cam" or (kind == "crf" and alphas):
            model, flag = "model_oc" if "model_oc" in name else "model_cse", "dict" if kind == "cam" else "crf"
            usual = flag if model == "model_cse" else f"{flag}_{model}"
            words = ["infer.py", "--model", model, f"--{flag}",
                     *(["--alphas", *(f"{a:g}" for a in alphas)] if kind == "crf" else []),
                     *([f"--{flag}_dir", name] if name != usual else [])]
        else:
            return "Make them with the stage that writes this folder"
        return "Make them: " + home.command(*words, "--infer_list", list_name)

    def trainer(self, model):
        """Write the command that trains ckpt/MODEL."""
        if model.startswith("aff_") and (pair := pair_alphas(model.removeprefix("aff_"))):
            return self.command("train_aff.py", "--low", pair[0], "--high", pair[1])
        return self.command("train_seg.py") if model == "seg" else self.command("train.py", "--model", model)

    def _home_of(self, folder):
        """Return the experiment in which a folder lies, this one unless it is another, and the folder's name there."""
        path, root = Path(os.path.abspath(folder)), Path(os.path.abspath(self.root))
        name, *rest = path.relative_to(root).parts if path.is_relative_to(root) else ("",)
        if not rest or (self / folder).is_dir() or not (root / name).is_dir():
            return self, str(Path(folder))
        return Experiment(self.root, name, self.flags), "/".join(rest)

    # -- what a stage leaves about itself

    def save_config(self, stage, settings):
        """Write config/STAGE.json: {"settings", "versions", "revision", "command", "when"}."""
        self._sweep_small_files()
        write_json(self / f"config/{stage}.json", {
            "settings": settings, "versions": versions(), "revision": revision(), "command": shlex.join(sys.argv),
            "when": f"{datetime.now():%Y-%m-%d %H:%M:%S}"})

    def log(self, stage, text):
        """Add a line to log.txt."""
        with _explained(self / "log.txt"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self / "log.txt", "a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {stage}  {text}\n")

    def log_epoch(self, stage, row):
        """Write the epoch's line of log/STAGE.jsonl; lines of this and later epochs, of a run cut off, are dropped."""
        rows = [r for r in self.epochs(stage) if r["epoch"] < row["epoch"]] + [row]
        with written_aside(self / f"log/{stage}.jsonl") as path:
            path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")

    def epochs(self, stage):
        """Return the lines of log/STAGE.jsonl as a list of dicts."""
        path = self / f"log/{stage}.jsonl"
        try:
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
            for number, row in enumerate(rows, start=1):
                if not isinstance(row, dict) or type(row.get("epoch")) is not int:
                    raise ValueError(f"line {number} has no epoch")
                if not isinstance(miou := row.get("miou"), float | int | None) or miou != miou:
                    raise ValueError(f"line {number} has an mIoU that is no number")
            return rows
        except (ValueError, RecursionError) as error:       # not only JSONDecodeError: a number may be too long
            raise ValueError(f"{path} is damaged ({error}): mend or delete the line, it is a log only") from None

    # -- checkpoints

    def weights(self, model, which="last"):
        """Return the path of ckpt/MODEL/EEE.pth. which: an epoch's number, last, or best (by the logged mIoU).

        Raises ValueError with what there is, or with the command that makes it.
        """
        folder = self / f"ckpt/{model}"
        there = sorted((p.stem for p in folder.glob("*.pth") if p.stem.isdecimal()), key=int)
        if not there:
            raise ValueError(f"{folder} holds no weights: {self.trainer(model)}")
        if which == "best":
            scored = [r for r in self.epochs(f"train_{model}") if r.get("miou") is not None
                      and f"{r['epoch']:03d}" in there]
            if not scored:
                raise ValueError(f"no epoch of {self.name}/{model} was measured (--val_every): name one of "
                                 f"{', '.join(there)}")
            best = max(scored, key=lambda r: r["miou"])
            print(f"epoch {best['epoch']:03d} is the best of {len(scored)}: chosen on pixel truth")
            which = best["epoch"]
        stem = there[-1] if which == "last" else f"{int(which):03d}" if str(which).isdecimal() else which
        if stem not in there:
            raise ValueError(f"{folder} has no epoch {which}; there are {there[0]} to {there[-1]}, {len(there)} in all")
        return folder / f"{stem}.pth"

    def settings_of(self, weights, *needed):
        """Return the stored settings of the training that wrote ROOT/X/ckpt/MODEL/EEE.pth, or None.

        Raises ValueError if one of the needed ones is missing.
        """
        weights = Path(weights or "none")
        path = weights.parent.parent.parent / f"config/train_{weights.parent.name}.json"
        if not path.exists():
            return None
        record = read_json(path)
        if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
            raise ValueError(f"{path} holds no settings: it is not what training writes. Put its own back")
        if missing := [name for name in needed if name not in record["settings"]]:
            raise ValueError(f"{path} does not tell {', '.join(missing)}: it is not what training writes. Put its own "
                             "back")
        return record["settings"]

    def open_training(self, model, settings, weights_size, overwrite, content=None):
        """Write config/train_MODEL.json for a new training; overwrite deletes what one of other content left.

        weights_size  bytes of one EEE.pth. Raises OSError if the disk lacks room for those of all epochs.
        content       the part of the settings that must be equal for a training to go on
        """
        folder = self / f"ckpt/{model}"
        self.lock(f"ckpt/{model}")
        self._sweep_small_files()
        _sweep(folder)
        if overwrite and folder.is_dir() and not _goes_on(folder / "last.pth", content or settings):
            _discard(folder)
        epochs = list(folder.glob("[0-9]*.pth"))
        begun = (folder / "last.pth").exists()
        if epochs and not begun:
            raise ValueError(f"{folder} holds weights ({epochs[0].name}) but no last.pth to go on from: --overwrite "
                             "starts anew, or take another --name")
        if not begun:
            (self / f"log/train_{model}.jsonl").unlink(missing_ok=True)
        if not begun or not (self / f"config/train_{model}.json").exists():
            self.save_config(f"train_{model}", settings)
        # last.pth holds weights and momentum, and for a moment it is there twice.
        missing = settings["max_epochs"] - len(epochs)
        if missing:
            require_space(folder, weights_size * (missing + 4))

    def find_init(self, source, flag="er_init"):
        """Return the weights file that --er_init, --cl_init and --init name, None for random.

        source: random | imagenet | cam | an existing path | X/model_oc | X/model_oc/014
        """
        if source == "random":
            return None
        if source in ("imagenet", "cam"):
            path = Path("pretrained") / {"imagenet": "resnet_38d.params", "cam": "res38_cls.pth"}[source]
            if path.exists():
                return path
            instead = (f"--{flag} random starts without it (and --norm train, since BatchNorm then has to learn)"
                       if source == "imagenet" else
                       f"or train one: {self.trainer('model_oc')}, "
                       f"then --{flag} {self.name}/model_oc")
            raise ValueError(f"{path} is not there. pretrained/README.md says where it comes from; {instead}")
        if Path(source).is_file():
            return Path(source)
        parts = source.split("/")
        if len(parts) in (2, 3) and (self.root / parts[0]).is_dir():
            return Experiment(self.root, parts[0], self.flags).weights(parts[1], *parts[2:])
        command = (f": {Experiment(self.root, parts[0], self.flags).trainer(parts[1])}"
                   if len(parts) in (2, 3) and parts[1].startswith("model_") else
                   ": random, imagenet, cam, a file, or EXPERIMENT/MODEL")
        raise ValueError(f"no weights {source!r} (neither a file nor in {self.root}/){command}")

    # -- folders that answer for their files

    def claim(self, folder, stage, settings, inputs, overwrite=False, shared=False):
        """Make an output folder ready for a stage: files that the same stage made of the same inputs stay.

        settings  what changes the content, for JSON;  inputs  paths (a file, or a folder with a made_by.json)
        shared    other shards may write there at the same time
        Raises ValueError, naming what differs, if the folder was made otherwise; overwrite empties it instead.
        """
        alone = self.lock(folder, shared)
        name, folder = folder, self / folder
        if alone:
            _sweep(folder)
        record = {"stage": stage, "settings": json.loads(json.dumps(settings)),
                  "inputs": {self._short(p): digest(p) for p in inputs}}
        found = _read_made_by(folder)
        difference = _difference(found, record)
        if difference and folder.is_dir() and any(folder.iterdir()):
            if found.get("stage") != stage:
                raise ValueError(f"{folder} was not made by this stage ({difference}): name another folder, or delete "
                                 "it yourself")
            if not alone:
                raise ValueError(f"{folder} was made differently ({difference}), and other shards are writing there")
            if not overwrite and any(path.name != MADE_BY for path in folder.iterdir()):
                raise ValueError(f"{folder} was made differently ({difference}). --overwrite makes it again; "
                                 "or write to another folder or experiment")
            _discard(folder)
        if difference:
            with _explained(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / MADE_BY, record)
        if shared:
            lock.share(self._lock_path(name))
        return folder

    def verify(self, folder, data=None, above=()):
        """Raise ValueError if what a folder was made from has changed since. A folder without made_by.json passes.

        data  {name: digest} of the dataset's files, compared with those that the folder's record has
        above  folders that were made from this one
        """
        folder = Path(folder)
        if folder.resolve() in above:
            raise ValueError(f"{folder / MADE_BY} names the folder itself as what it was made from: delete the folder, "
                             "and run the stage that makes it again")
        record = _read_made_by(folder)
        recorded = record.get("settings", {}).get("data", {})
        for name in recorded.keys() & (data or {}).keys():
            if recorded[name] != data[name]:
                raise ValueError(f"{folder} is stale: the dataset's {name} has changed since it was made. Make it "
                                 "again (--overwrite), or name another folder")
        for name, old in record.get("inputs", {}).items():
            path = self / name                  # an absolute name stays what it is
            # Not Path's own tests, which raise at what cannot be a name; and a device has no digest.
            if os.path.isdir(path):
                self.verify(path, data, (*above, folder.resolve()))
            elif not os.path.isfile(path):
                continue
            if digest(path) != old:
                raise ValueError(f"{folder} is stale: {path} has changed since it was made. Make it again "
                                 "(--overwrite), or name another folder")

    def made_with(self, folder):
        """Return the settings in a folder's record of what made it; empty if it has none."""
        return _read_made_by(folder).get("settings", {})

    def _sweep_small_files(self):
        """Delete what killed runs left half-written where no lock tells whether another run is writing."""
        for folder in (".", "config", "log", "train", "eval"):
            for path in (self / folder).glob(".*.tmp"):
                if _writer_is_dead(path):
                    path.unlink(missing_ok=True)

    def _short(self, path):
        path = Path(path).resolve()
        home = self.folder.resolve()
        return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)


# -- file formats


def save_cam(path, classes, scores, format="npz"):
    """Write a picture's CAMs: classes (K,) ids 1..C, scores (K, H, W). npy: the authors' dict, keys 0..C-1, float32."""
    _save_maps(path, classes, scores, format, first=1, compress=False)


def save_crf(path, classes, scores, format="npz"):
    """Write a picture's CRF maps: classes (K+1,), 0 first, scores (K+1, H, W). npy: the authors' dict, keys 0..C."""
    _save_maps(path, classes, scores, format, first=0, compress=True)


def read_cam(path, size=None):
    """Read a picture's CAMs, .npz or the authors' .npy: classes (K,) int64 ids 1..C, scores (K, H, W) float32.

    size  (H, W) of the picture: CAMs of another are a ValueError. The authors' file of no class knows none.
    """
    classes, scores = _read_maps(path, first=1)
    if size and not len(classes):
        return classes, np.zeros((0, *size), np.float32)
    if size and scores.shape[1:] != tuple(size):
        raise ValueError(f"{path} is of size {scores.shape[1:]}, its picture {tuple(size)}: delete it and run "
                         "infer.py again")
    return classes, scores


def read_crf(path):
    """Read a picture's CRF maps, .npz or .npy: classes (K+1,) int64 ids 0..C, scores (K+1, H, W) float32."""
    return _read_maps(path, first=0)


def find_maps(folder, name):
    """Return the path of a picture's maps in a folder, .npz before .npy; None if there are none."""
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
    """Name what is made from the CRF maps of two alphas: 04_24."""
    return f"{alpha_name(low)}_{alpha_name(high)}"


def pair_alphas(name):
    """Read the name of a pair again, as flags write it: 04_24 -> ("4", "24"); None for any other name."""
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
            table = _authors_dict(content)
            classes = np.array(sorted(table), np.int64) + first
            scores = np.stack([table[c] for c in sorted(table)]) if table else np.zeros((0, 0, 0))
        else:
            classes, scores = _arrays(content, "classes", "scores")
            if classes.dtype.kind not in "iu":
                raise ValueError(f"its classes are {classes.dtype}, not integers")
        with np.errstate(over="ignore"):            # what is too large is infinite then
            classes, scores = classes.astype(np.int64), np.require(scores, np.float32, ["C", "W", "O"])
        if classes.ndim != 1 or scores.ndim != 3 or len(classes) != len(scores):
            raise ValueError(f"classes {classes.shape} and scores {scores.shape} do not belong together")
        if len(set(classes.tolist()) & set(range(255))) != len(classes):
            raise ValueError(f"its classes are {classes[:9]}, not ids of 0..254, each once")
        if not np.isfinite(scores).all():
            raise ValueError("its scores hold NaN or infinity")
    except OSError as error:
        raise _unread(path, error) from None
    except Exception as error:      # numpy, zlib and pickle name no set of what a damaged file may raise
        raise ValueError(f"{path} cannot be read ({error}): delete it and run infer.py again") from None
    return classes, scores


def _arrays(content, *names):
    """Read arrays of an .npz. numpy would make room for what a header announces; here the bytes have to be there."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in archive.infolist()):
            raise ValueError("it is packed otherwise than numpy packs")
        for name in names:
            member = archive.read(f"{name}.npy")
            file, (shape, fortran, dtype) = _npy(member)
            yield _view(memoryview(member)[file.tell():], dtype, shape, fortran)


def _npy(content):
    """Open an .npy: returns what follows its header, and the header."""
    file = io.BytesIO(content)
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    return file, read(file)


def _view(content, dtype, shape, fortran):
    if dtype.kind not in "fiu" or len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes are no {dtype} array of {str(shape)[:60]}")
    return np.ndarray(shape, dtype, content, order="F" if fortran else "C")


class _ArraysOnly(pickle._Unpickler):
    """Allows numpy arrays and plain containers, and nothing else: a pickle may carry a program.

    Not even numpy's own functions are called, which trust a pickle with the size of an array and the flags of a type.
    And it is the unpickler in Python: the one in C makes room for as many objects as a file says to remember.
    """

    allowed = {("numpy", "ndarray"), ("numpy", "dtype"),
               *((f"numpy.{core}.multiarray", name) for core in ("core", "_core")
                 for name in ("_reconstruct", "scalar"))}

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, not only arrays")
        return type(name, (_Part,), {})


class _Part:
    """A piece of numpy as a pickle describes it: the function, what it is given, the state set afterwards."""

    def __init__(self, *given):
        self.given = given

    def __setstate__(self, state):
        self.state = state

    def value(self):
        """Make the array, or the number, or the object in an array of one."""
        if type(self).__name__ == "scalar":
            return _view(self.given[1], self.given[0].dtype(), (), False).item()
        _, shape, kind, fortran, content = self.state
        if kind.given[0] == "O8" and shape == ():
            return content[0]
        return _view(content, kind.dtype(), shape, fortran)

    def dtype(self):
        return np.dtype(self.state[1] + self.given[0])


def _authors_dict(content):
    """Read the authors' np.save of a dict: {class: scores (H, W) float32}."""
    file, (_, _, dtype) = _npy(content)
    if not dtype.hasobject:
        raise ValueError("not a dict of maps")
    start = file.tell()
    if sum(1 for _ in pickletools.genops(file)) > 20_000:       # also raises where bytes are missing
        raise ValueError("not a dict of maps")                  # of 254 maps; a tuple as deep would crash its hash
    file.seek(start)
    table = _ArraysOnly(file).load()
    table = table.value() if isinstance(table, _Part) else table
    if not isinstance(table, dict):
        raise ValueError("not a dict of maps")
    table = {key.value() if isinstance(key, _Part) else key: scores.value() for key, scores in table.items()}
    if not all(type(key) is int for key in table):
        raise ValueError("not a dict of maps: its keys are no class ids")
    if sum(scores.nbytes for scores in table.values()) > len(content):
        raise ValueError("not a dict of maps: one is there twice")
    return table


def read_json(path):
    """Read a JSON file; ValueError names a broken one."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise _unread(path, error) from None
    except (ValueError, RecursionError) as error:       # not only JSONDecodeError: a number may be too long
        raise ValueError(f"{path} is not whole JSON ({error}): delete it and run the stage that writes it again"
                         ) from None


def write_json(path, value):
    save_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def save_text(path, text):
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def save_image(path, image):
    """Write a picture, uint8 (H, W, 3), as PNG."""
    from PIL import Image
    with written_aside(path) as aside:
        Image.fromarray(image).save(aside, format="PNG")


def save_labels(path, labels, palette):
    """Write a label map, class ids (H, W), as PNG. palette: 256 colours as 768 bytes."""
    from PIL import Image
    picture = Image.fromarray(np.asarray(labels, np.uint8))
    picture.putpalette(palette)
    with written_aside(path) as aside:
        picture.save(aside, format="PNG")


def read_labels(path):
    """Read a label map that a stage wrote: uint8 (H, W)."""
    from PIL import Image
    try:
        with Image.open(path) as picture:
            return np.array(picture)
    except (SyntaxError, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it and run the same command again") from None


def copy_file(source, path):
    with written_aside(path) as aside:
        shutil.copyfile(source, aside)


def save_zip(path, files):
    """Write a zip of {name in it: path}; equal files make an equal zip."""
    with written_aside(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        for name, source in files.items():
            archive.writestr(zipfile.ZipInfo(name), Path(source).read_bytes())


def save_checkpoint(path, value):
    """Write a checkpoint: tensors and plain Python values only."""
    import torch
    with written_aside(path) as aside:
        with open(aside, "wb") as file:
            try:
                torch.save(value, file)
            except RuntimeError as error:           # torch's own, over what the disk said, or a dying worker
                raise error.__context__ or error from None
            file.flush()
            os.fsync(file.fileno())


def load_checkpoint(path):
    """Read a checkpoint to the CPU; ValueError names one that is cut off or holds a program."""
    import torch
    try:
        with zipfile.ZipFile(path) as archive:      # torch itself does not look at the check sums
            if any(record.compress_type for record in archive.infolist()) or archive.testzip():
                raise zipfile.BadZipFile
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:      # torch names no set of what a damaged file may raise
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):      # it: a jump to before the file
            raise _unread(path, error) from None
        raise ValueError(f"{path} is cut off or damaged, or holds a program ({type(error).__name__}): train.py "
                         "--overwrite starts again") from None


def _unread(path, error):
    """Put an error in words that do not blame the file: whoever deletes it loses it."""
    return type(error)(f"{path} cannot be read now ({error.strerror}): is its disk still mounted? Then run the same "
                       "command again")


@contextmanager
def written_aside(path):
    """Give a temporary path beside `path`, renamed to it at the end: a file is whole or absent."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}@{socket.gethostname()}.tmp")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            os.replace(aside, path)
        finally:
            with suppress(OSError):         # a disk that has gone takes the temporary file along
                aside.unlink(missing_ok=True)


@contextmanager
def _explained(path):
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} was not written ({error}): make room or mend the folder, then run the same command again"
                      ) from None


# -- room, digests, versions


def _goes_on(path, content):
    """Say whether a last.pth is whole and of these settings."""
    try:
        return load_checkpoint(path)["settings"] == content
    except (ValueError, OSError, KeyError, TypeError):
        return False


def _discard(folder):
    """Delete a folder; cut off in the middle, what is left has another name."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    os.replace(folder, aside)
    shutil.rmtree(aside)


def _sweep(folder):
    """Delete what a killed run left half-written or half-deleted. No other run may be writing there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for path in folder.parent.glob(f".{folder.name}.*.old"):
        shutil.rmtree(path)


def _writer_is_dead(aside):
    """Say whether the process in a temporary file's name is one of this machine and has ended."""
    found = re.search(r"\.(\d+)\.\d+@(.*)\.tmp$", aside.name)
    if not found or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def require_space(folder, size):
    """Say how much is to be written, and raise OSError if the disk of a folder lacks that many bytes."""
    folder = Path(folder)
    there = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise OSError(f"{folder} would take about {_bytes(size)}, the disk has {_bytes(free)} free: make room, or "
                      "write to another disk (--experiment_root)")
    if size > 2**20:
        print(f"{folder}: about {size / 2**30:.2f} GiB to write, {free / 2**30:.0f} GiB free")


def _bytes(size):
    return f"{size / 2**30:.1f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


def digest(path):
    """Return the sha256 of a file, or of a folder's made_by.json."""
    path = Path(path)
    if path.is_dir():
        path = path / MADE_BY
    if not path.exists():
        return "unknown"
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unread(path, error) from None


def digests(paths):
    """Return {name: digest} of files."""
    return {path.name: digest(path) for path in paths}


def _read_made_by(folder):
    """Read a folder's made_by.json; an empty dict if it has none."""
    path = Path(folder) / MADE_BY
    record = read_json(path) if path.exists() else {}
    parts = [record.get(part, {}) for part in ("settings", "inputs")] if isinstance(record, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(parts[0].get("data", {}), dict):
        raise ValueError(f"{path} is not what a stage writes there: delete the folder, and run the stage that makes it "
                         "again")
    return record


def _difference(found, wanted):
    """Name what differs between two made_by records; empty if nothing does."""
    if not found:
        return f"it holds files but no {MADE_BY}"
    words = [] if found.get("stage") == wanted["stage"] else [
        f"by {str(found.get('stage'))[:60]}, now {wanted['stage']}"]
    for part in ("settings", "inputs"):
        old, new = (_flat(record.get(part, {})) for record in (found, wanted))
        for key in sorted(set(old) | set(new)):
            if old.get(key) != new.get(key):
                a, b = (str(x.get(key, "absent"))[:60] for x in (old, new))
                words.append(f"{key[:60]}: then {a:.12}, now {b:.12}" if len(a) == len(b) == 60 else
                             f"{key[:60]}: then {a}, now {b}")
    return "; ".join(words[:20])


def _flat(table):
    """Lift the entries of dicts in a dict: {"data": {"labels.json": x}} -> {"data labels.json": x}."""
    return {f"{key} {name}" if name else key: item for key, value in table.items()
            for name, item in (value.items() if isinstance(value, dict) else [("", value)])}


def versions():
    """Return the versions of Python and of the packages that make the numbers."""
    found = {"python": sys.version.split()[0]}
    for package in ("torch", "torchvision", "numpy", "pillow", "pydensecrf2"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def revision():
    """Return the git revision of this code, with -dirty where it was changed; None outside a checkout."""
    try:
        result = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True,
                                text=True, cwd=Path(__file__).parent, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
