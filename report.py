"""Make report.html: an experiment for the eye, in one file that opens anywhere.

Reads   results.json  eval/*.json  log/*.jsonl  config/*.json  the maps of the chain: dict*/  crf*/*/  rw/*/  seg/
        images and ground truth of --data_root
Writes  report.html
Run     python report.py --name X [--images 100] [--list train]
Of an experiment that is half finished it shows what there is, and says what is missing and which command makes it.
"""
from dataclasses import replace
from datetime import datetime

import config

import numpy as np
from tqdm import tqdm

import advice
import pipeline
from data.images import read_image, voc_palette
from data.layout import VOCLayout
from data.signatures import signatures
from tools import catalog, flags
from tools.files import read_json, save_text
from tools.maps import checked_cam, checked_crf, find_maps, pair_alphas, with_inputs
from tools.provenance import digests, verify
from tools.report import best_folder, cam_labels, evenly, find_folders, gallery_row, made_from, page, read_numbers


def main():
    settings = flags.parse(config.Report)
    experiment, notes = advice.experiment_of(settings), []
    chain = pipeline.chain(values_of(settings, experiment))
    if not experiment.folder.is_dir():
        raise ValueError(f"no experiment {experiment.folder}. Its first stage: {command(settings, chain[0])}")
    settings.dirs = settings.dirs or map_folders(chain)
    data = read_numbers(experiment, notes, lambda folder: catalog.title_of(experiment, folder),
                        trainings(experiment, chain))
    layout, ids = open_dataset(settings, notes)
    columns = open_columns(settings, experiment, layout, ids, data["evals"], notes)
    notes += [{"about": about, "what": what, "command": line}
              for about, what, line in missing(settings, experiment, chain, layout, data, columns, ids)]
    if notes and not data["results"]:       # a complete chain that was run by hand needs no results.json
        notes.append({"about": "results", "what": "No results.json: the table is made of eval/. If reproduce.py began "
                      "this experiment, it resumes with all of it", "command": resuming(settings, experiment)})

    if is_unscored(layout, ids):
        notes.append({"about": "evaluation", "what": f"No ground truth in {layout.root / 'SegmentationClass'}: nothing "
                      "is scored"})

    classes = layout.classes if layout else []
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(-1, 3)[:len(classes) + 1]
    shown = evenly([i for i in ids if any(i in column["there"] for column in columns)] or ids, settings.images)
    rows = [make_row(layout, columns, palette, i, notes) for i in tqdm(shown, "report", mininterval=1)]
    data |= {"list": settings.list, "listed": len(ids), "classes": classes, "palette": palette.tolist(),
             "columns": [{key: column[key] for key in ("folder", "stage", "threshold", "before")}
                         for column in columns],
             "rows": [row for row in rows if row], "notes": notes, "when": f"{datetime.now():%Y-%m-%d %H:%M}"}
    path = experiment / "report.html"
    save_text(path, page(data))
    print(f"{path}: {len(data['rows'])} images, {path.stat().st_size / 1e6:.1f} MB"
          + (f"; missing, unfinished or not readable: {len(notes)}, named at its top" if notes else ""))


def resuming(settings, experiment):
    """Give the command of reproduce.py that makes the rest of a chain: the one that began it, where it left its record.
    """
    try:
        return f"python {read_json(experiment / 'config/reproduce.json')['command']}"
    except (ValueError, OSError, KeyError, TypeError):
        return advice.command_line(settings, settings.name, "reproduce.py", flags.changed(settings, "model"))


def values_of(settings, experiment):
    """Return what the experiment's chain depends on: its model, its CRF's alphas, the two of AffinityNet."""
    model = settings.model or pipeline.model_of(experiment)
    if model not in catalog.models():
        raise ValueError(f"--model {model}: models/ has {', '.join(catalog.models())}")
    values = pipeline.values_of(settings.name, settings.recipe, model)
    crf = f"crf{catalog.models()[model].suffix}/"
    alphas = sorted(float(folder.removeprefix(crf)) for folder in find_folders(experiment)
                    if folder.startswith(crf) and folder.removeprefix(crf).replace(".", "", 1).isdecimal())
    walk = best_folder(experiment, "rw") or ""
    low, high = (pair_alphas(walk.removeprefix("rw/")) or (len(alphas) > 1 and (alphas[0], alphas[-1]))
                 or (values.low, values.high))
    return replace(values, alphas=tuple(alphas) or (float(low), float(high)), low=float(low), high=float(high))


def map_folders(chain):
    """List the folders of maps that the chain measures: dict_model_oc, dict, crf, rw, seg."""
    return list(dict.fromkeys(stage.reads[0].split("/")[0] for stage in chain if stage.task))


def trainings(experiment, chain):
    """Return {MODEL: title} of the networks that the chain trains, in order, and of the others that were trained."""
    names = [path.removeprefix("ckpt/") for stage in chain for path in stage.writes if path.startswith("ckpt/")]
    names += sorted(path.stem.removeprefix("train_") for path in experiment.folder.glob("log/train_*.jsonl"))
    return {name: catalog.training_title(name) for name in names}


def open_dataset(settings, notes):
    """Open the dataset and read the list; where that is not possible, return (None, []) and note why."""
    try:
        layout = VOCLayout(settings.data_root)
        ids = layout.ids(settings.list)
        return (layout, ids) if layout.classes else (None, [])
    except (ValueError, OSError) as error:
        notes.append({"what": f"No images: {error}"})
        return None, []


def open_columns(settings, experiment, layout, ids, evals, notes):
    """List the gallery's columns: the folders of --dirs that exist and whose inputs have not changed since.

    A column: {"name": of --dirs, "folder", "path", "stage", "task", "threshold": the fixed one at which a CAM is
    scored, "before": the folder that its gain is against, "there": IDs of the list}.
    """
    columns = []
    for name in settings.dirs if layout else ():
        folder = best_folder(experiment, name, [e for e in evals if e["list"] == settings.list])
        if folder is None:
            continue
        title, task = catalog.title_of(experiment, folder), catalog.task_of(experiment, folder)
        try:
            verify(experiment / folder, experiment.folder, digests(layout.sources()),
                   images=with_inputs(signatures(layout, ids), experiment / folder, experiment.folder))
        except (ValueError, OSError) as error:
            notes.append({"what": f"{title} is left out: {error}"})
            continue
        path = experiment / folder
        made = {p.stem for p in path.iterdir()}
        fixed = [e["fixed_threshold"] for e in evals if (e["folder"], e["list"]) == (folder, settings.list)]
        fixed.append(flags.defaults(config.Evaluate, settings.recipe)["threshold"][0])
        columns.append({"name": name, "folder": folder, "path": path, "stage": title, "task": task,
                        "threshold": fixed[0] if task == "cam" else None,
                        "before": made_from(experiment, folder, [column["folder"] for column in columns]),
                        "there": made.intersection(ids)})
    return columns


def missing(settings, experiment, chain, layout, data, columns, ids):
    """Give (section of the page, what is not there, the command that makes it) in the order of the stages."""
    logged = [log["stage"].removeprefix("train_") for log in data["logs"]]
    there = {column["name"]: (column["folder"], len(column["there"])) for column in columns}
    done = set()
    for stage in chain:
        for path in stage.writes:
            model, name = path.removeprefix("ckpt/"), path.split("/")[0]
            if path != model and model not in logged:
                yield "training", f"{catalog.training_title(model)}: no log of its training", command(
                    settings, stage, path, "" if not layout or has_default_list(layout) else settings.list)
            if not layout or name not in settings.dirs or name in done:
                continue
            done.add(name)
            line = command(settings, stage, path, settings.list)
            folder, count = there.get(name, (path, 0))
            if best_folder(experiment, name) is None:
                yield "maps", f"No {name}/: {stage.title}", line
            elif name in there and count < len(ids):
                yield "maps", f"{folder}/ holds the maps of {count} of the {len(ids)} images of {settings.list}", line
    for name in settings.dirs if layout else ():
        if name not in done and best_folder(experiment, name) is None:
            yield "maps", f"No {name}/", None

    for column in columns if not is_unscored(layout, ids) else ():
        folder = column["folder"]
        found = [e for e in data["evals"] if (e["folder"], e["list"]) == (folder, settings.list)]
        if not found or found[0]["stale"]:
            stage = pipeline.evaluation("", "", column["task"], folder, settings.list)
            yield ("evaluation", f"{folder}/ was written again after {found[0]['file']}" if found else
                   f"{folder}/ is not evaluated on {settings.list}", command(settings, stage))


def is_unscored(layout, ids):
    """Say whether the images of a dataset have no ground truth at all."""
    return bool(layout) and not any(map(layout.has_ground_truth, ids))


def has_default_list(layout):
    """Say whether the dataset has the list that a training stage takes by default."""
    try:
        return bool(layout.list_path(config.Train.train_list))
    except FileNotFoundError:
        return False


def command(settings, stage, path=None, list_name=None):
    """Write the command of a stage for this experiment: see Stage.words."""
    return advice.command_line(settings, settings.name, stage.script, stage.words(path, list_name))


def make_row(layout, columns, palette, image_id, notes):
    """Read an image, its ground truth and its maps, and make its row; None, and a note, if it cannot be read."""
    try:
        image = read_image(layout.image_path(image_id))
        truth = layout.ground_truth(image_id) if layout.has_ground_truth(image_id) else None
    except (ValueError, OSError) as error:
        notes.append({"what": str(error)})
        return None
    try:
        present = np.flatnonzero(layout.label(image_id)) + 1
    except ValueError:                      # an image without labels is shown all the same
        present = ()
    maps = {column["folder"]: read_maps(layout, column, image_id, image.shape[:2]) for column in columns
            if image_id in column["there"]}
    return gallery_row(image_id, image, truth, present, maps, palette)


def read_maps(layout, column, image_id, size):
    """Read a map: (label map (H, W), a CAM's activation (H, W) or None); a str says why it cannot be read."""
    path = find_maps(column["path"], image_id)
    try:
        if column["task"] == "png":
            return layout.read_label_map(image_id, column["path"]), None         # the same format: a PNG of class ids
        if column["task"] == "crf":
            classes, scores = checked_crf(path, layout)
            return classes[scores.argmax(0)], None
        classes, scores = checked_cam(path, layout, size)
        return cam_labels(classes, scores, column["threshold"]), scores.max(0, initial=0)
    except (ValueError, OSError) as error:
        return str(error)


if __name__ == "__main__":
    flags.run(main)
