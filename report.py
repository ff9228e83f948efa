"""Make report.html: an experiment for the eye, in one file that opens anywhere.

Reads   results.json  eval/*.json  log/*.jsonl  config/*.json  the maps of the chain: dict*/  crf*/*/  rw/*/  seg/
        images and ground truth of --data_root
Writes  report.html; of several experiments side by side compare.html, in the folder of the first
Run     python report.py --name X [--images 100] [--list train]
        python report.py --compare A B C/rw/04_24 [--images 20] [--out three.html]
Of an experiment that is half finished it shows what there is, and says what is missing and which command makes it.
"""
import shlex
from dataclasses import replace

import config

from tools import flags

if __name__ == "__main__":      # --help and mistakes in the flags, before what reads images
    flags.check(config.Report)

import advice
import pipeline
from comparison import compare
from gallery import is_unscored, open_column, open_dataset, to_evaluate, write_page
from tools import catalog
from tools.files import read_json
from tools.maps import pair_alphas
from tools.report import best_folder, find_folders, made_from, read_numbers


def main():
    settings = flags.parse(config.Report)
    if settings.compare:
        compare(settings)
        return
    if not settings.name:
        raise ValueError("which experiment? --name X shows the experiment X, --compare A B C several side by side")
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
    own = flags.changed(settings, *advice.SHARED_FLAGS)
    beside = shlex.join(["report.py", "--compare", settings.name, "OTHER", *own])
    data |= {"notes": notes, "about": catalog.explain(trainings(experiment, chain)), "beside": f"python {beside}"}
    write_page(settings.out or experiment / "report.html", settings, layout, ids, columns, data)


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


def open_columns(settings, experiment, layout, ids, evals, notes):
    """List the gallery's columns: the folders of --dirs that exist and whose inputs have not changed since.

    A column: that of open_column, "name": of --dirs, "before": the folder that its gain is against.
    """
    columns = []
    for name in settings.dirs if layout else ():
        folder = best_folder(experiment, name, [e for e in evals if e["list"] == settings.list])
        if folder and (column := open_column(settings, experiment, folder, layout, ids, evals, notes)):
            before = made_from(experiment, folder, [other["folder"] for other in columns])
            columns.append(column | {"name": name, "before": before})
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
        if found := to_evaluate(settings, column, data["evals"]):
            yield ("evaluation", *found)


def has_default_list(layout):
    """Say whether the dataset has the list that a training stage takes by default."""
    try:
        return bool(layout.list_path(config.Train.train_list))
    except FileNotFoundError:
        return False


def command(settings, stage, path=None, list_name=None):
    """Write the command of a stage for this experiment: see Stage.words."""
    return advice.command_line(settings, settings.name, stage.script, stage.words(path, list_name))


if __name__ == "__main__":
    flags.run(main)
