"""What report.html holds: an experiment's numbers, small images of its maps with their scores, and the page itself.

report.html beside this file is the page, report.js what draws it. A note says what is not there or cannot be read:
{"what", and maybe "command": that makes it, "about": the section of the page}.
"""
import base64
import hashlib
import io
import json
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from tools.activation import FIGURES
from tools.files import read_json
from tools.metrics import IGNORE, ConfusionMatrix
from tools.provenance import MADE_BY, digest
from tools.visualize import jet

PAGE = Path(__file__).with_name("report.html")
LONG = 320          # pixels of an image's long side in the page: sharp where it is shown large
LARGEST = 140_000   # bytes of an image with all its maps: a hundred stay under 15 MB, noisy ones are made smaller


def page(data):
    """Make the page of `data`, which JSON can hold: one file with everything in it.

    The names in it come from people. They are stored in a block that is not executed, where < is written \\u003c, so
    none ends the block; report.js puts them into the page as text only; the page's policy allows that script alone.
    """
    script = PAGE.with_suffix(".js").read_text("utf-8")
    parts = {"script": script, "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
             "data": json.dumps(_finite(data), allow_nan=False).replace("<", "\\u003c")}
    return re.sub(r"\{\{ (\w+) \}\}", lambda place: parts[place[1]], PAGE.read_text("utf-8"))


def read_numbers(experiment, notes, title_of, trained):
    """Read results.json, eval/*.json, log/*.jsonl and config/*.json; what cannot be read is added to the notes.

    title_of  function: folder of maps -> what people call them;  trained  {MODEL of ckpt/: title} in the chain's order
    """
    def each(pattern, read):
        for path in sorted(experiment.folder.glob(pattern)):
            try:
                yield read(path)
            except (ValueError, OSError) as error:
                notes.append({"what": str(error)})
            except (KeyError, TypeError, AttributeError, OverflowError):
                notes.append({"what": f"{path} is not what a stage writes there: delete it, and run the stage again"})

    folders = find_folders(experiment)
    numbers = {
        "name": experiment.name,
        "results": [row for rows in each("results.json", _read_results) for row in rows],
        # By name: cam, crf, png is also the order of the stages.
        "evals": list(each("eval/*.json", lambda path: _read_eval(path, experiment, folders, title_of))),
        "logs": sorted(each("log/*.jsonl", lambda path: _read_log(path, experiment, trained)),
                       key=lambda log: log["order"]),
        "runs": sorted(each("config/*.json", _read_config), key=lambda run: run["when"]),
    }
    notes += _note_trainings(numbers["logs"], numbers["runs"])
    return numbers


def _note_trainings(logs, runs):
    """Note the trainings that have fewer epochs than they were to have, and those whose loss was not finite."""
    started = {run["stage"]: run for run in runs}
    for log in logs:
        run = started.get(log["stage"], {})
        burst = [row["epoch"] for row in log["rows"]
                 if any(_finite(value) is None for name, value in row.items() if name.startswith("loss"))]
        if burst:
            yield {"about": "training", "what": f"{log['name']}: the loss is not finite in {len(burst)} of "
                   f"{len(log['rows'])} epochs, first in epoch {burst[0]} (a lower --lr?)"}
        if run.get("epochs") and len(log["rows"]) < run["epochs"]:
            yield {"about": "training", "what": f"{log['name']}: {len(log['rows'])} of {run['epochs']} epochs are "
                   "trained; the same command resumes", "command": run["command"]}


def find_folders(experiment):
    """List the folders in an experiment, and those in them: dict, crf, crf/06, rw, rw/04_24 ... It need not exist."""
    def inside(path):
        with os.scandir(path) as entries:       # a folder of maps has many files: none is asked for more than its kind
            return sorted(entry.name for entry in entries
                          if entry.is_dir() and not entry.name.startswith(".") and entry.name != MADE_BY)

    names = inside(experiment.folder) if experiment.folder.is_dir() else []
    return [*names, *(f"{name}/{part}" for name in names for part in inside(experiment / name))]


def best_folder(experiment, name, evals=()):
    """Return the folder of maps of that name, or of those in it the one with the best mIoU, else the first; or None."""
    inside = [folder for folder in find_folders(experiment) if folder.startswith(f"{name}/")]
    score = {e["folder"]: e["miou"] for e in evals if e["miou"] is not None}
    return max(inside, key=lambda f: score.get(f, -1), default=name if (experiment / name).is_dir() else None)


def made_from(experiment, folder, before):
    """Return the one of the folders `before` that a folder of maps was made from, else the last."""
    path = experiment / folder / MADE_BY
    inputs = read_json(path).get("inputs", {}) if path.exists() else {}
    return next((name for name in before if name in inputs), before[-1] if before else None)


def evenly(items, count):
    """Choose `count` of a list, evenly spread over it; all of them if there are fewer."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def cam_label_map(classes, scores, threshold):
    """Return the label map of a CAM at a background threshold: argmax of [threshold, scores], as evaluation.py does.

    classes (K,) ids 1..C ascending, scores (K, H, W) -> (H, W) int64
    """
    background = np.full((1, *scores.shape[1:]), threshold, np.float32)
    return np.array([0, *classes])[np.concatenate([background, scores]).argmax(0)]


# -- an image and its maps


def gallery_row(image_id, image, truth, present, maps, palette, long=LONG):
    """Make an image's row: thumbnails, and each map's IoU against the ground truth.

    image uint8 (H, W, 3); truth (H, W), 255 ignored, or None; present: class ids; palette (C+1, 3) uint8
    maps  {folder: (label map (H, W), activation (H, W) in [0, 1] or None)}, or why it cannot be shown, a str
    """
    size = image.shape[:2]
    row = {"id": image_id, "size": size[::-1], "image": _jpeg(image, long), "truth": None, "stages": {},
           "classes": [int(c) for c in present]}
    if truth is not None and truth.shape != size:
        row["error"], truth = f"its ground truth is of size {truth.shape}, the image {size}", None
    if truth is not None:
        row["truth"] = _label_png(truth, palette, long)
        row["classes"] = [int(c) for c in np.unique(truth) if 0 < c < len(palette)]
    for folder, found in maps.items():
        if isinstance(found, tuple) and found[0].shape != size:
            found = f"the map is of size {found[0].shape}, the image {size}"
        if isinstance(found, str):
            row["stages"][folder] = {"error": found}
            continue
        label_map, activation = found
        row["stages"][folder] = {
            "labels": _label_png(label_map, palette, long),
            "heat": None if activation is None else _jpeg(jet()[(activation.clip(0, 1) * 255).astype(np.uint8)], long),
            **(_score(label_map, truth, len(palette) - 1) if truth is not None else {})}
    if len(json.dumps(row)) > LARGEST and long > LONG // 4:
        return gallery_row(image_id, image, truth, present, maps, palette, long * 3 // 4)
    return row


def _score(label_map, truth, num_classes):
    """Return {"miou", "iou": {class id: IoU}} over the classes in an image's ground truth or prediction."""
    try:
        confusion = ConfusionMatrix(num_classes).add(label_map, truth)
    except ValueError as error:                 # a label map may hold 255 where a stage is not sure
        return {"error": str(error)}
    iou, occurring = confusion.iou(), np.flatnonzero(confusion.occurring())
    return {"miou": round(float(iou[occurring].mean()), 2) if len(occurring) else None,
            "iou": {int(c): round(float(iou[c]), 2) for c in occurring}}


def _jpeg(image, long):
    return _data_url(_small(Image.fromarray(image), long, Image.Resampling.LANCZOS), "JPEG", quality=80)


def _label_png(label_map, palette, long):
    """Draw class ids in their colours. The last colour is that of 255: few colours make a small file."""
    ignore = len(palette)
    small = np.where(label_map == IGNORE, ignore, np.minimum(label_map, ignore)).astype(np.uint8)
    image = Image.fromarray(small)
    image.putpalette(bytes(palette) + bytes((224, 224, 192)))           # VOC's colour of 255
    return _data_url(_small(image, long, Image.Resampling.NEAREST), "PNG", optimize=True)


def _small(image, long, resampling):
    scale = long / max(image.size)
    if scale >= 1:
        return image
    return image.resize([max(1, round(side * scale)) for side in image.size], resampling)


def _data_url(image, format, **how):
    file = io.BytesIO()
    image.save(file, format=format, **how)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


# -- the experiment's own files


def _read_eval(path, experiment, folders, title_of):
    """Read eval/TASK_DIR_LIST.json, with its folder and whether that has been written again since."""
    result = read_json(path)
    task, _, rest = path.stem.partition("_")
    folder = rest.removesuffix("_" + result["list"].replace("/", "_"))
    folder = {name.replace("/", "_"): name for name in folders}.get(folder, folder)
    fixed = result.get("fixed") or {}
    return {"file": f"eval/{path.name}", "task": task, "folder": folder, "stage": title_of(folder),
            "list": result["list"], "images": int(result["images"]),
            **{key: _number(result[key]) for key in ("miou", "threshold", "fixed_threshold", "fixed_miou")},
            "ground_truth": str(result.get("ground_truth") or ""),
            "curve": [[_number(t), _number(miou)] for t, miou in result["curve"]],
            "whole": [_number(v) for v in result["whole_range"]] if result.get("at_an_end") else None,
            "best": _per_class(result), "fixed": _per_class(fixed) if fixed else None,
            "activation": _activation(result.get("activation")),
            "stale": folder in folders and result.get("made_by") not in (None, digest(experiment / folder))}


def _per_class(result):
    """List [class name, IoU, precision, recall]."""
    return [[name, _number(iou), *(_number(result.get(kind, {}).get(name)) for kind in ("precision", "recall"))]
            for name, iou in result["per_class"].items()]


def _activation(found):
    """Take the means of a CAM's figures (tools.activation) and their threshold; None where there are none."""
    return found and {name: _number(found[name]) for name in ("threshold", *FIGURES)}


def _read_results(path):
    rows = []
    for row in read_json(path)["rows"]:
        one = {key: None if row.get(key) is None else str(row[key]) for key in (
            "stage", "split", "variant", "paper_source", "command", "backbone", "init")}
        many = {key: [_number(v) for v in row[key]] for key in ("miou", "threshold", "fixed_miou", "seconds")}
        rows.append(one | many | {"paper": _number(row.get("paper"))})
    return rows


def _read_log(path, experiment, trained):
    """Read the numbers of log/STAGE.jsonl, and name the network."""
    model = path.stem.removeprefix("train_")
    rows = [{k: v for k, v in row.items() if type(v) in (int, float)} for row in experiment.epochs(path.stem)]
    return {"stage": path.stem, "name": trained.get(model, model), "rows": rows,
            "order": [*trained, model].index(model)}


def _read_config(path):
    """Read what is worth showing of a run: who, when, of which revision."""
    record = read_json(path)
    settings = record["settings"]
    return {"stage": path.stem, **{key: str(record.get(key) or "-") for key in ("when", "revision")},
            **{key: str(settings.get(key, "-")) for key in ("recipe", "seed", "precision")},
            "epochs": _number(settings.get("max_epochs")),
            "command": "python " + re.sub(r"^\S*/", "", str(record.get("command"))),     # without the program's folder
            "versions": ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items() if number)}


def _number(value):
    """Return a number or None; anything else is a TypeError."""
    if value is not None and type(value) not in (int, float):
        raise TypeError(value)
    return value


def _finite(value):
    """Replace NaN, infinity and what a chart would make infinite by null, which is a gap in a curve."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, (int, float)) and not abs(value) < 1e300 else value
