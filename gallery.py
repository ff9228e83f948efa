"""A page's gallery: images of a dataset in rows, folders of maps in columns. report.py and comparison.py make it.

Nothing here imports torch.
"""
import os
from datetime import datetime
from pathlib import Path

import config

import numpy as np
from tqdm import tqdm

import advice
import pipeline
from data.images import read_image, voc_palette
from data.layout import VOCLayout
from data.signatures import signatures
from tools import catalog, flags
from tools.files import save_text
from tools.maps import checked_cam, checked_crf, find_maps, with_inputs
from tools.provenance import digests, verify
from tools.report import cam_label_map, evenly, gallery_row, page
from tools.words import counted


def open_dataset(settings, notes):
    """Open the dataset and read the list; where that is not possible, return (None, []) and note why."""
    try:
        layout = VOCLayout(settings.data_root)
        ids = layout.ids(settings.list)
        return (layout, ids) if layout.classes else (None, [])
    except (ValueError, OSError) as error:
        notes.append({"what": f"No images: {error}"})
        return None, []


def is_unscored(layout, ids):
    """Say whether the images of a dataset have no ground truth at all."""
    return bool(layout) and not any(map(layout.has_ground_truth, ids))


def open_column(settings, experiment, folder, layout, ids, evals, notes):
    """Open a folder of maps of an experiment; None, and a note, if its inputs have changed since it was written.

    evals   of tools.report.read_numbers
    Returns {"folder", "path", "stage": its title, "task", "threshold": the fixed one at which a CAM is scored,
    "there": IDs of the list}.
    """
    title, task, path = catalog.title_of(experiment, folder), catalog.task_of(experiment, folder), experiment / folder
    try:
        verify(path, experiment.folder, digests(layout.sources()),
               images=with_inputs(signatures(layout, ids), path, experiment.folder))
    except (ValueError, OSError) as error:
        notes.append({"what": f"{title} is left out: {error}"})
        return None
    fixed = [e["fixed_threshold"] for e in evals if (e["folder"], e["list"]) == (folder, settings.list)]
    fixed.append(flags.defaults(config.Evaluate, settings.recipe)["threshold"][0])
    return {"folder": folder, "path": path, "stage": title, "task": task,
            "threshold": fixed[0] if task == "cam" else None,
            "there": {p.stem for p in path.iterdir()}.intersection(ids)}


def to_evaluate(settings, column, evals):
    """Say why a column's folder has to be evaluated on the list, and by which command: (words, command), or None."""
    folder = column["folder"]
    found = [e for e in evals if (e["folder"], e["list"]) == (folder, settings.list)]
    if found and not found[0]["stale"]:
        return None
    stage = pipeline.evaluation("", "", column["task"], folder, settings.list)
    return (f"{folder}/ was written again after {found[0]['file']}" if found else
            f"{folder}/ is not evaluated on {settings.list}",
            advice.command_line(settings, settings.name, stage.script, stage.words()))


def write_page(path, settings, layout, ids, columns, data):
    """Write a page of `data`, whose "notes" grow with what cannot be read; print what it holds.

    columns     of open_column, each with "before": the folder of the one that its gain is against, or None
    """
    path, classes, notes = Path(path), layout.classes if layout else [], data["notes"]
    if is_unscored(layout, ids):
        notes.append({"about": "evaluation", "what": f"No ground truth in {layout.root / 'SegmentationClass'}: nothing "
                      "is scored"})
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(-1, 3)[:len(classes) + 1]
    some = [i for i in ids if any(i in column["there"] for column in columns)]
    rows = [make_row(layout, columns, palette, i, notes, path.parent)
            for i in tqdm(evenly(some or ids, settings.images), "report", mininterval=1)]
    data |= {"list": settings.list, "listed": len(ids), "classes": classes, "palette": palette.tolist(),
             "columns": [{key: column[key] for key in ("folder", "stage", "threshold", "before")}
                         for column in columns],
             "rows": [row for row in rows if row], "when": f"{datetime.now():%Y-%m-%d %H:%M}"}
    save_text(path, page(data))
    print(f"{path}: {counted(len(data['rows']), 'image')}, {path.stat().st_size / 1e6:.1f} MB"
          + (f"; missing, unfinished or not readable: {len(notes)}, named at its top" if notes else ""))


def make_row(layout, columns, palette, image_id, notes, home):
    """Read an image, its ground truth and its maps, and make its row; None, and a note, if it cannot be read.

    home    folder of the page: the row links to the files of the maps from there
    """
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
    row = gallery_row(image_id, image, truth, present, maps, palette)
    for column in columns:
        if image_id in column["there"]:
            row["stages"][column["folder"]]["file"] = os.path.relpath(
                find_maps(column["path"], image_id) or column["path"] / f"{image_id}.png", home)
    return row


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
        return cam_label_map(classes, scores, column["threshold"]), scores.max(0, initial=0)
    except (ValueError, OSError) as error:
        return str(error)
