"""Make compare.html: the same images under several experiments, side by side, and what was measured in each.

report.py --compare makes it. Nothing here imports torch.
"""
import json
import re
from dataclasses import replace
from pathlib import Path

import config

import advice
import pipeline
import tables
from gallery import is_unscored, open_column, open_dataset, to_evaluate, write_page
from tools import catalog
from tools.files import read_json
from tools.maps import find_alike
from tools.provenance import made_with
from tools.report import best_folder, read_numbers
from tools.words import some


def compare(settings):
    """Write the page of the folders of maps that --compare names; ValueError names what stands in the way.

    What is stale or not there is left out of the gallery, and noted with the command that makes it.
    """
    alone = [f"--{flag}" for flag in ("name", "model", "dirs") if getattr(settings, flag)]
    if alone:
        raise ValueError(f"{' and '.join(alone)} cannot stand beside --compare, which names experiments and folders "
                         "itself: --compare A B/FOLDER")
    named = {word: split(settings, word) for word in settings.compare}
    require_experiments(settings, [name for name, _ in named.values()])
    notes = []
    layout, ids = open_dataset(settings, notes)
    found = [read(settings, word, name, folder, layout, ids, notes) for word, (name, folder) in named.items()]
    columns = [entry["column"] for entry in found if entry["column"]]
    for column in columns:
        column["before"] = columns[0]["folder"] if column is not columns[0] else None
    trained, made = (differing([entry[what] for entry in found]) for what in ("trained", "made"))
    data = {"name": ", ".join(named), "notes": notes, "results": [], "logs": [],
            "about": catalog.explain(entry["network"] for entry in found),
            "evals": [entry["eval"] for entry in found if entry["eval"]],
            "runs": [run for entry in found for run in entry["runs"]],
            "compared": [{key: entry[key] for key in ("stage", "folder", "title", "model", "seed")}
                         | {"flags": [f"--{flag} {value}" for flag, value in own.items()],
                            "maps": ", ".join(f"{flag} {value}" for flag, value in maps.items())}
                         for entry, own, maps in zip(found, trained, made)]}
    path = settings.out or found[0]["experiment"] / "compare.html"
    write_page(path, settings, layout, ids, columns, data)


def split(settings, word):
    """Split EXPERIMENT/FOLDER into the two; the folder is "" where there is none. Below --experiment_root works too."""
    path, root = Path(word), settings.experiment_root
    parts = (path.relative_to(root) if path.is_relative_to(root) else path).parts
    if not parts or not re.fullmatch(r"[\w-][\w.-]*", parts[0]) or ".." in parts:
        raise ValueError(f"--compare {word!r} names no experiment: EXPERIMENT, or EXPERIMENT/FOLDER as X/rw/04_24")
    return parts[0], "/".join(parts[1:])


def require_experiments(settings, names):
    """Raise ValueError with the command that makes each experiment that does not exist."""
    root = Path(settings.experiment_root)
    missing = [name for name in dict.fromkeys(names) if not (root / name).is_dir()]
    if missing:
        there = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        raise ValueError("\n".join([f"no experiment {root / name}. To make it, run: {to_begin(settings, name)}"
                                    for name in missing] + [f"{root} holds {some(there, 9)}"] * bool(there)))


def to_begin(settings, name):
    """Write the command that makes an experiment: the table of which it is a row, or its first stage."""
    if row := tables.row_named(name):
        table, home, seed = row
        learned = advice.list_to_train_on(settings)
        words = ["--table", table, "--seed", seed, *(["--train_list", learned] if learned else [])]
        return advice.command_line(settings, home, "reproduce.py", words)
    stage = pipeline.chain(pipeline.values_of(name, settings.recipe))[0]
    return advice.command_line(settings, name, stage.script, stage.words())


def read(settings, word, name, folder, layout, ids, notes):
    """Read what one name of --compare stands for: its column (None if it is left out), its evaluation and training."""
    settings = replace(settings, name=name)
    experiment, about = advice.experiment_of(settings), []
    numbers = read_numbers(experiment, about, lambda path: catalog.title_of(experiment, path),
                           {model: catalog.training_title(model) for model in catalog.models()})
    folder = folder or cams_of(experiment)
    alike = find_alike(experiment / folder)
    wanted = alike.relative_to(experiment.folder).as_posix() if alike else folder
    there = best_folder(experiment, wanted, [e for e in numbers["evals"] if e["list"] == settings.list])
    entry = {"experiment": experiment, "stage": word, "folder": f"{name}/{there or wanted}", "column": None,
             "eval": None, "runs": [], "trained": {}, "made": {}, "network": None, "model": None, "seed": None,
             "title": there or wanted}
    if there is None:
        about.append({"about": "maps", "what": f"no {wanted}/",
                      "command": advice.command_for(settings, name, wanted, settings.list)})
    else:
        require_classes(experiment, there, layout)
        entry |= {"title": catalog.title_of(experiment, there), **training_of(experiment, there, numbers["runs"])}
        own = [e for e in numbers["evals"] if (e["folder"], e["list"]) == (there, settings.list)]
        if own:
            entry["eval"] = own[0] | {"stage": word, "folder": entry["folder"], "file": f"{name}/{own[0]['file']}"}
        column = layout and open_column(settings, experiment, there, layout, ids, own, about)
        if column:
            about += unfinished(settings, experiment, column, layout, ids, own)
            entry["column"] = column | {"stage": word, "folder": entry["folder"]}
    notes += [note | {"what": f"{word}: {note['what']}"} for note in about]
    return entry


def cams_of(experiment):
    """Return the folder of an experiment's CAMs, those of its chain's model or the only ones; ValueError for several.
    """
    folders = {model: f"dict{own.suffix}" for model, own in catalog.models().items()}
    there = [folder for folder in folders.values() if (experiment / folder).is_dir()]
    trained = [model for model in folders if (experiment / f"config/train_{model}.json").exists()]
    usual = folders[trained[0] if len(trained) == 1 else pipeline.model_of(experiment)]
    if usual in there or not there:
        return usual
    if len(there) > 1:
        raise ValueError(f"{experiment.folder} holds CAMs of several models: name {' or '.join(there)}, as --compare "
                         f"{experiment.name}/{there[0]}")
    return there[0]


def require_classes(experiment, folder, layout):
    """Raise ValueError if a folder's maps were made with other classes than the dataset has."""
    classes = catalog.classes_of(experiment, folder)
    if layout and classes and classes != layout.classes:
        raise ValueError(f"{experiment / folder} holds maps of other classes ({len(classes)}: {some(classes)}) than "
                         f"{layout.root} has ({len(layout.classes)}: {some(layout.classes)}): name its own dataset "
                         "with --data_root, or leave it out; maps of two datasets cannot be compared")


def training_of(experiment, folder, runs):
    """Return {"model", "seed", "trained" and "made": {flag: value} of the training and of the maps, "runs"}."""
    model = catalog.network_of(experiment, folder)
    try:
        settings = read_json(experiment / f"config/train_{model}.json")["settings"]
    except (ValueError, OSError, KeyError, TypeError):      # of a damaged file the page says so itself
        settings = {}
    flags = (config.TrainSeg if model == "seg" else pipeline.settings_of_models().get(model, config.Train)
             ).__dataclass_fields__
    known = {name for name in flags if flags[name].metadata["content"]} - {"model", "seed"}
    made = {name: value for name, value in made_with(experiment / folder).items()
            if name != "classes" and not isinstance(value, dict)}
    return {"network": model, "model": catalog.training_title(model) if model else None, "seed": settings.get("seed"),
            "trained": {name: value for name, value in settings.items() if name in known}, "made": made,
            "runs": [run | {"stage": f"{experiment.name}: {run['stage']}"} for run in runs
                     if run["stage"] == f"train_{model}"]}


def differing(tables):
    """Keep of each {flag: value} those that another has with another value; values become words of a command line."""
    values = {flag: {json.dumps(table[flag]) for table in tables if flag in table}
              for flag in dict.fromkeys(flag for table in tables for flag in table)}
    return [{flag: words(value) for flag, value in table.items() if len(values[flag]) > 1} for table in tables]


def words(value):
    return " ".join(f"{one:g}" if isinstance(one, float) else str(one)
                    for one in (value if isinstance(value, list) else [value]))


def unfinished(settings, experiment, column, layout, ids, evals):
    """Give the notes on a column whose maps or whose evaluation are not complete."""
    folder, count = column["folder"], len(column["there"])
    if count < len(ids):
        yield {"about": "maps", "what": f"{folder}/ holds the maps of {count} of the {len(ids)} images of "
               f"{settings.list}. {advice.to_complete(settings, experiment / folder, settings.list)}"}
    if not is_unscored(layout, ids) and (found := to_evaluate(settings, column, evals)):
        yield {"about": "evaluation", "what": found[0], "command": found[1]}
