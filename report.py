"""Make report.html: an experiment for the eye, in one file that opens anywhere.

Reads   results.json  eval/*.json  log/*.jsonl  config/*.json
        dict_model_oc/  dict/  crf/*/  rw/*/  seg/       pictures and truth of --data_root
Writes  report.html
Run     python report.py --name X [--images 100] [--list train]
Of an experiment that is half finished it shows what there is, and says what is missing and which command makes it.
"""
import shlex
from datetime import datetime

import numpy as np
from tqdm import tqdm

import config
from data.images import read_image
from data.layout import VOCLayout
from data.prepare import voc_palette
from tools import flags
from tools.experiment import Experiment
from tools.files import save_text
from tools.maps import alpha_pair, find_maps, read_cam, read_crf
from tools.provenance import digests, verify
from tools.report import (
    TRAINED,
    best_folder,
    cam_labels,
    evenly,
    find_folders,
    gallery_row,
    made_from,
    page,
    read_numbers,
    stage_of,
    task_of,
)


def main():
    settings = flags.parse(config.Report)
    experiment = Experiment(settings.experiment_root, settings.name)
    if not experiment.folder.is_dir():
        raise ValueError(f"no experiment {experiment.folder}. Its first stage: "
                         f"{command(settings, 'train.py', '--model', 'model_oc')}")
    notes = []
    data = read_numbers(experiment, notes)
    layout, ids = open_dataset(settings, notes)
    columns = open_columns(settings, experiment, layout, ids, data["evals"], notes)
    notes += [{"about": about, "what": what, "command": words and command(settings, *words)}
              for about, what, words in missing(settings, experiment, layout, data, columns, ids)]
    if notes and not data["results"]:       # of a chain made by hand nothing is missing
        notes.append({"about": "results", "what": "No results.json: the table is made of eval/. If reproduce.py began "
                      "this experiment, it goes on with all of it", "command": command(settings, "reproduce.py")})

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
    print(f"{path}: {len(data['rows'])} pictures, {path.stat().st_size / 1e6:.1f} MB"
          + (f"; missing, unfinished or not readable: {len(notes)}, named at its top" if notes else ""))


def open_dataset(settings, notes):
    """Open the dataset and read the list; where that cannot be, give (None, []) and note why."""
    try:
        layout = VOCLayout(settings.data_root)
        ids = layout.ids(settings.list)
        return (layout, ids) if layout.classes else (None, [])
    except (ValueError, OSError) as error:
        notes.append({"what": f"No pictures: {error}"})
        return None, []


def open_columns(settings, experiment, layout, ids, evals, notes):
    """List the gallery's columns: the folders of --dirs that are there, and were made from what is there.

    A column: {"name": of --dirs, "folder", "path", "stage", "task", "threshold": the fixed one at which a CAM is
    scored, "before": the folder that its gain is against, "there": IDs of the list}.
    """
    columns = []
    for name in settings.dirs if layout else ():
        folder = best_folder(experiment, name, [e for e in evals if e["list"] == settings.list])
        if folder is None:
            continue
        try:
            verify(experiment / folder, experiment.folder, digests(layout.sources()))
        except (ValueError, OSError) as error:
            notes.append({"what": f"{stage_of(folder)} is left out: {error}"})
            continue
        path, task = experiment / folder, task_of(folder)
        made = {p.stem for p in path.iterdir()}
        fixed = [e["fixed_threshold"] for e in evals if (e["folder"], e["list"]) == (folder, settings.list)]
        fixed.append(flags.defaults(config.Evaluate, settings.recipe)["threshold"][0])
        columns.append({"name": name, "folder": folder, "path": path, "stage": stage_of(folder), "task": task,
                        "threshold": fixed[0] if task == "cam" else None,
                        "before": made_from(experiment, folder, [column["folder"] for column in columns]),
                        "there": made.intersection(ids)})
    return columns


def missing(settings, experiment, layout, data, columns, ids):
    """Give (section of the page, what is not there, words of the command that makes it) in the order of the stages."""
    logged = [log["stage"] for log in data["logs"]]
    alphas = [f.removeprefix("crf/").lstrip("0") or "0" for f in find_folders(experiment) if f.startswith("crf/")]
    low, high = (alphas[0], alphas[-1]) if len(alphas) > 1 else ("4", "24")
    pair = "--low", low, "--high", high
    walk = best_folder(experiment, "rw") or f"rw/{alpha_pair(float(low), float(high))}"
    trainings = {"dict_model_oc": ("model_oc", ("train.py", "--model", "model_oc")),
                 "dict": ("model_cse", ("train.py", "--model", "model_cse", "--cl_init", f"{settings.name}/model_oc")),
                 "rw": ("aff", ("train_aff.py", *pair)), "seg": ("seg", ("train_seg.py", "--label_dir", walk))}
    train_list = ("--train_list", settings.list) if layout and not has_list(layout, config.Train.train_list) else ()
    infer = "infer.py", "--infer_list", settings.list, "--model"
    makers = {"dict_model_oc": ("CAMs of the ordinary classifier", (*infer, "model_oc", "--dict")),
              "dict": ("CAMs of the CGNet", (*infer, "model_cse", "--dict")),
              "crf": ("CRF maps", (*infer, "model_cse", "--crf", "--alphas", *(alphas or (low, high)))),
              "rw": ("label maps of the random walk", ("infer_aff.py", "--infer_list", settings.list, *pair)),
              "seg": ("label maps of DeepLab", ("infer_seg.py", "--infer_list", settings.list))}
    there = {column["name"]: (column["folder"], len(column["there"])) for column in columns}
    for name in dict.fromkeys([*makers, *settings.dirs]):
        model, words = trainings.get(name, (None, None))
        if model and not any(stage.startswith(f"train_{model}") for stage in logged):
            yield "training", f"{TRAINED[model]}: no log of its training", (*words, *train_list)
        if not layout or name not in settings.dirs:
            continue
        what, words = makers.get(name, ("maps", None))
        folder, count = there.get(name, (name, 0))
        if best_folder(experiment, name) is None:
            yield "maps", f"No {what}: {name}/", words
        elif name in there and count < len(ids):
            yield "maps", f"{folder}/ holds {count} of the {len(ids)} {what} of {settings.list}", words

    if layout and not any(layout.has_ground_truth(i) for i in ids):
        yield "evaluation", f"No pixel truth in {layout.root / 'SegmentationClass'}: nothing is scored", None
        return
    for column in columns:
        folder = column["folder"]
        found = [e for e in data["evals"] if (e["folder"], e["list"]) == (folder, settings.list)]
        if not found or found[0]["stale"]:
            yield ("evaluation", f"{folder}/ was made anew after {found[0]['file']}" if found else
                   f"{folder}/ is not evaluated on {settings.list}",
                   ("evaluation.py", "--task", column["task"], "--dict_dir", folder, "--list", settings.list))


def has_list(layout, name):
    try:
        return bool(layout.list_path(name))
    except FileNotFoundError:
        return False


def command(settings, script, *words):
    """Write a command line for this experiment and dataset."""
    recipe = ["--recipe", settings.recipe] if settings.recipe != "voc" or script == "reproduce.py" else []
    return shlex.join(["python", script, *recipe, "--name", settings.name,
                       *flags.changed(settings, "data_root", "experiment_root"), *words])


def make_row(layout, columns, palette, image_id, notes):
    """Read a picture, its truth and its maps, and make its row; None, and a note, if the picture cannot be read."""
    try:
        image = read_image(layout.image_path(image_id))
        truth = layout.ground_truth(image_id) if layout.has_ground_truth(image_id) else None
    except (ValueError, OSError) as error:
        notes.append({"what": str(error)})
        return None
    try:
        present = np.flatnonzero(layout.label(image_id)) + 1
    except ValueError:                      # a picture without labels is shown all the same
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
            classes, scores = read_crf(path)
            return classes[scores.argmax(0)], None
        classes, scores = read_cam(path)
        if not len(classes):                                            # a picture of no class
            scores = np.zeros((0, *size), np.float32)
        return cam_labels(classes, scores, column["threshold"]), scores.max(0, initial=0)
    except (ValueError, OSError) as error:
        return str(error)


if __name__ == "__main__":
    flags.run(main)
