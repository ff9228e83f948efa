"""An experiment on disk: paths, locks, configurations, logs, weights. This file alone builds an output path.

experiment/NAME/
  config/STAGE_MODEL.json   settings, versions, git revision, command line
  ckpt/MODEL/EEE.pth        weights after epoch EEE, the authors' names
  ckpt/MODEL/network.json   what network that is: see networks.build
  ckpt/MODEL/last.pth       everything needed to resume
  log/STAGE_MODEL.jsonl     one line an epoch;  log.txt for people;  train/ images of masks
  log/reproduce.json        each stage's seconds, over all runs of reproduce.py
  dict/ID.npz               classes uint8 (K,) ids 1..C;  scores float16 (K, H, W) in [0, 1]
  crf/06/ID.npz             classes (K+1,), 0 first;  scores float16 (K+1, H, W), sums to 1
  infer/ID_cam_CLASS.png    overlays
  erase/round_R/ID.npz      CAMs after R erasings, as in dict/;  strips/ID.png, .gif;  miou_LIST.json
  rw/04_24/ID.png           palette PNG, class ids;  seg/ID.png too
  eval/TASK_DIR_LIST.json   mIoU, its curve;  the curve as .png
  results.json              reproduce.py's rows
  report.html               all of it on one page;  compare.html: beside other experiments
  .lock/                    which runs are writing here
Each output folder holds made_by.json: which stage wrote it, from what; and made_by.images.json: what each image was.
The formats are in files.py, maps.py, provenance.py and signatures.py of tools/.
"""
import json
import os
import shlex
import sys
from datetime import datetime
from pathlib import Path

from tools import lock, signatures
from tools.aside import explained, written_aside
from tools.files import (
    delete_incomplete,
    discard,
    load_checkpoint,
    require_space,
    sweep,
    write_json,
    writer_is_dead,
)
from tools.maps import find_alike
from tools.provenance import MADE_BY, differences, differing, digest, read_made_by, revision, versions
from tools.words import counted

NETWORK = "network.json"
WEIGHTS = (".pth", ".pt", ".pth.tar", ".ckpt", ".bin", ".safetensors", ".params")       # endings of files of weights


class Experiment:
    """The folder ROOT/NAME. Paths are given relative to it ("ckpt/model_oc/last.pth").

    advice        function (name of an experiment, path in it) -> the command that writes the path, or None: for errors
    authors_file  {model: how the authors' program names its weights, "net_er" of ckpt/014net_er.pth}
    """

    def __init__(self, root, name, advice=lambda name, path: None, authors_file=None):
        self.root, self.name, self.advice, self.authors_file = Path(root), name, advice, authors_file or {}
        self.folder = self.root / name

    def __truediv__(self, path):
        return self.folder / path

    # -- one run at a time

    def lock(self, what, shared=False):
        """Keep other runs from writing `what`, a path in the experiment, until this run ends: see tools.lock.hold."""
        with explained(self / what):
            return lock.hold(self._lock_path(what), self / what, shared)

    def release(self):
        """Release the locks; a process that ends need not."""
        lock.release(self / ".lock")

    def _lock_path(self, what):
        return self / ".lock" / (str(Path(what)).replace("/", "_") + ".lock")

    def find_folder(self, name):
        """Return the folder of that name in the experiment, or else the path `name` itself; crf/4 finds crf/04."""
        return find_alike(self / name) or find_alike(name) or Path(name)

    def command_for(self, path):
        """Return the command that writes a path here, as errors name it; the plain path where none is known."""
        return self.advice(self.name, path) or f"the stage that writes {path}"

    # -- what a stage records about itself

    def save_config(self, stage, settings):
        """Write config/STAGE.json: {"settings", "versions", "revision", "command", "when"}."""
        self._sweep_small_files()
        write_json(self / f"config/{stage}.json", {
            "settings": settings, "versions": versions(), "revision": revision(), "command": shlex.join(sys.argv),
            "when": f"{datetime.now():%Y-%m-%d %H:%M:%S}"})

    def log(self, stage, text):
        """Add a line to log.txt."""
        with explained(self / "log.txt"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self / "log.txt", "a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {stage}  {text}\n")

    def log_epoch(self, stage, row):
        """Write the epoch's line of log/STAGE.jsonl; drop the lines of this and later epochs, left by a killed run."""
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
                    raise ValueError(f"line {number} has an mIoU that is not a number")
            return rows
        except (ValueError, RecursionError) as error:       # not only JSONDecodeError: a number may be too long
            raise ValueError(f"{path} is damaged ({error}): fix or delete the line, it is a log only") from None

    # -- checkpoints

    def weights(self, model, which="last"):
        """Return the path of ckpt/MODEL/EEE.pth. which: an epoch's number, last, or best (by the logged mIoU).

        Where there is none of ours, the authors' own file of that epoch is taken: ckpt/014net_er.pth.
        Raises ValueError naming the existing epochs, or the command that trains the model.
        """
        folder = self / f"ckpt/{model}"
        there = sorted((p.stem for p in folder.glob("*.pth") if p.stem.isdecimal()), key=int)
        theirs = self._authors_weights(model)
        if theirs and which != "best" and (not there or str(which).isdecimal() and f"{int(which):03d}" not in there):
            epoch = max(theirs) if which == "last" else int(which) if str(which).isdecimal() else which
            if epoch in theirs:
                return theirs[epoch]
            known = ", ".join([*there, *map(str, sorted(theirs))])
            raise ValueError(f"{self / 'ckpt'} has no epoch {which} of {model}; there are {known}")
        if not there:
            raise ValueError(f"{folder} holds no weights. To make them, run: {self.command_for(f'ckpt/{model}')}")
        if which == "best":
            scored = [r for r in self.epochs(f"train_{model}") if r.get("miou") is not None
                      and f"{r['epoch']:03d}" in there]
            if not scored:
                raise ValueError(f"no epoch of {self.name}/{model} was measured (--val_every): name one of "
                                 f"{', '.join(there)}")
            best = max(scored, key=lambda r: r["miou"])
            print(f"epoch {best['epoch']:03d} is the best of {len(scored)}: chosen on the ground truth")
            which = best["epoch"]
        stem = there[-1] if which == "last" else f"{int(which):03d}" if str(which).isdecimal() else which
        if stem not in there:
            raise ValueError(f"{folder} has no epoch {which}; there are {there[0]} to {there[-1]}, {len(there)} in all")
        return folder / f"{stem}.pth"

    def _authors_weights(self, model):
        """Return {epoch: path} of a model's weights that the authors' own program wrote, in ckpt/ or ckpt/MODEL/."""
        ending = self.authors_file.get(model)
        files = [p for folder in (self / "ckpt", self / f"ckpt/{model}") for p in folder.glob(f"*{ending}.pth")]
        epochs = {p: p.stem.removesuffix(str(ending)) for p in files}
        return {int(epoch): p for p, epoch in epochs.items() if ending and epoch.isdecimal()}

    def network_of(self, weights):
        """Return the path of the network.json beside weights; None if they have none and no stage of ours wrote them.

        Raises ValueError with the command that writes it where an experiment's weights lack it.
        """
        path, where = Path(weights).with_name(NETWORK), Path(os.path.abspath(weights)).parents
        if path.exists():
            return path
        if where[1].name != "ckpt" or not (Path(weights).stem.isdecimal() or Path(weights).stem == "last"):
            return None
        home = Experiment(where[3], where[2].name, self.advice)
        raise ValueError(f"no {path}, which tells what network {where[0].name} is. The command that trained it writes "
                         f"the file again and trains nothing: {home.command_for(f'ckpt/{where[0].name}')}")

    def open_training(self, model, settings, record, description, epochs, weights_size, overwrite=False,
                      images=None):
        """Write config/train_MODEL.json and network.json for a training; overwrite deletes what one of another left.

        settings, record     all settings; what must be equal for a training to resume
        description          what network it is (network.json)
        epochs, weights_size   how many EEE.pth there will be, and bytes of one
        images               data.signatures.Signatures of what it is trained on
        Raises OSError if the disk lacks room for them.
        """
        folder = self / f"ckpt/{model}"
        self.lock(f"ckpt/{model}")
        self._sweep_small_files()
        sweep(folder)
        if overwrite and folder.is_dir() and not _can_resume(folder / "last.pth", record, images):
            discard(folder)
        there = list(folder.glob("[0-9]*.pth"))
        begun = (folder / "last.pth").exists()
        if there and not begun:
            raise ValueError(f"{folder} holds weights ({there[0].name}) but no last.pth to resume from: --overwrite "
                             "starts anew, or take another --name")
        if not begun:
            (self / f"log/train_{model}.jsonl").unlink(missing_ok=True)
        files = self / f"config/train_{model}.json", folder / NETWORK
        if not begun or not all(path.exists() for path in files) and _can_resume(folder / "last.pth", record, images):
            self.save_config(f"train_{model}", settings)
            write_json(folder / NETWORK, description)
        # last.pth holds weights and momentum, and exists twice while it is replaced.
        missing = epochs - len(there)
        if missing:
            require_space(folder, weights_size * (missing + 4))

    def find_init(self, source, flag, named=None, instead=None):
        """Return the weights file that --er_init, --cl_init and --init name, None for random.

        source   random | a name of `named` | an existing path | X/model_oc | X/model_oc/014
        named    {name: function that finds its file};  instead: what a person may do where that raises ValueError
        """
        if source == "random":
            return None
        if source in (named or {}):
            try:
                return named[source]()
            except ValueError as error:
                without = f"--{flag} random starts without it (and --norm train, since BatchNorm then has to learn)"
                raise ValueError(f"{error}; {instead or without}") from None
        if Path(source).is_file():
            return Path(source)
        parts = source.split("/")
        if len(parts) in (2, 3) and (self.root / parts[0]).is_dir():
            return Experiment(self.root, parts[0], self.advice, self.authors_file).weights(parts[1], *parts[2:])
        command = self.advice(parts[0], f"ckpt/{parts[1]}") if len(parts) in (2, 3) else None
        known = ", ".join([*(["random", *named] if named else []), "a file, or EXPERIMENT/MODEL"])
        instead = f"To make them, run: {command}" if command else f"What can be named: {known}"
        if Path(source).is_dir():
            files = sorted(p for ending in WEIGHTS for p in Path(source).glob(f"*{ending}"))
            names = " or ".join(shlex.quote(str(p)) for p in files[:5])
            instead = (f"It is a folder; name a file in it: --{flag} {names}" if files else
                       f"It is a folder without {' '.join(WEIGHTS)}. {instead}")
        raise ValueError(f"--{flag}: no weights {source!r} (neither a file nor in {self.root}/). {instead}")

    # -- output folders

    def claim(self, folder, stage, settings, inputs, overwrite=False, shared=False, by_image=False):
        """Prepare an output folder for a stage; existing files from the same stage, settings and inputs are kept.

        settings  whatever changes the content, for JSON;  inputs  paths: files, or folders with a made_by.json
        shared    other shards may write there at the same time
        by_image  signatures.write is called next, which compares the images one by one: their dataset's files need not
                  be equal
        Raises ValueError, naming the differences, if the folder was written otherwise; overwrite empties it instead.
        """
        alone = self.lock(folder, shared)
        name, folder = folder, self / folder
        if alone:
            sweep(folder)
        record = {"stage": stage, "settings": json.loads(json.dumps(settings)),
                  "inputs": {self._short(p): digest(p) for p in inputs}}
        found = read_made_by(folder)
        differs = differences(found, record, by_image and signatures.recorded(folder))
        if differs and folder.is_dir() and any(folder.iterdir()):
            if found.get("stage") != stage:
                raise ValueError(f"{folder} was not written by this stage ({differs}): name another folder")
            if not alone:
                raise ValueError(f"{folder} was made differently ({differs}), and other shards are writing there")
            if not overwrite and any(not path.name.startswith(Path(MADE_BY).stem) for path in folder.iterdir()):
                raise ValueError(f"{folder} was made differently ({differs}). --overwrite makes it again; "
                                 "or write to another folder or experiment")
            discard(folder)
        if differs:
            with explained(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / MADE_BY, record)
        elif alone and (broken := delete_incomplete(folder)):
            print(f"{folder}: {counted(len(broken), 'file', 'was')} empty or cut off, as after a power cut: "
                  f"deleted, to be made again ({', '.join(broken[:5])}{' ...' if len(broken) > 5 else ''})")
        if shared:
            lock.admit_others(self._lock_path(name))
        return folder

    def open_outputs(self, name, settings, outputs, size, text, images=None, again=False):
        """Claim the output folders of an inference stage; then check the disk, and write config/NAME.json and log.txt.

        settings  the stage's, for JSON;  outputs  {key: (folder, stage, settings, inputs), as claim takes them}
        size      function {key: path of the folder} -> bytes still to be written
        images    data.signatures.Signatures of what will be read, to be recorded; existing maps of another are refused,
                  with `again` deleted
        Returns {key: path of the folder}.
        """
        shared, overwrite = settings["shard"] != "1/1", settings["overwrite"]
        main, *_ = outputs.values()
        if shared:
            self.lock(f"{main[0]}, shard {settings['shard']}")
        folders = {key: self.claim(*output, overwrite, shared, images is not None)
                   for key, output in outputs.items()}
        require_space(self / main[0], size(folders))
        for folder in folders.values() if images else ():
            signatures.write(folder, images, settings["shard"], overwrite or again)
        self.save_config(name, settings)
        self.log(name, text)
        return folders

    def _sweep_small_files(self):
        """Delete killed runs' incomplete files in the folders that have no lock: those of processes that have ended."""
        for folder in (".", "config", "log", "train", "eval"):
            for path in (self / folder).glob(".*.tmp"):
                if writer_is_dead(path):
                    path.unlink(missing_ok=True)

    def _short(self, path):
        """Name an input relative to the experiment, so that the folder of all experiments may be moved."""
        path, home = Path(path).resolve(), self.folder.resolve()
        near = path.is_relative_to(home) or path.is_relative_to(self.root.resolve())
        return os.path.relpath(path, home) if near else str(path)


def _can_resume(path, record, images):
    """Say whether a last.pth is complete and was trained with these settings on these images."""
    try:
        saved = load_checkpoint(path)
        return not any(differing(saved, record, images))
    except (ValueError, OSError, KeyError, TypeError, AttributeError):
        return False
