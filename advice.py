"""What errors advise: the command that makes what a stage lacks, from the one table of all stages, pipeline.py.

Nothing here imports torch, so that error messages come quickly.
"""
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import config

from pipeline import chain, model_of, values_of
from tools import flags, maps
from tools.catalog import home_of, made_from, models, recorded_flags, task_of
from tools.experiment import Experiment
from tools.provenance import digests, made_with, verify
from tools.signatures import Stale

MAKERS = {"infer": config.Infer, "infer_aff": config.InferAff, "infer_seg": config.InferSeg}
SHARED_FLAGS = ("recipe", "data_root", "experiment_root")      # flags that all stages of an experiment share


def experiment_of(settings):
    """Return the experiment in which a stage with these settings works. Its errors name the commands of this table."""
    theirs = {name: own.authors_file for name, own in models().items() if own.authors_file}
    return Experiment(settings.experiment_root, settings.name, partial(command_for, settings), theirs)


def command_line(settings, name, script, words):
    """Write a stage's command for an experiment on the dataset of these settings."""
    return f"python {shlex.join([script, '--name', name, *words, *flags.changed(settings, *SHARED_FLAGS)])}"


def command_for(settings, name, path, list_name=""):
    """Return the command that writes a path of an experiment: ckpt/model_oc, dict, rw/04_24, seg; None if unknown."""
    stage, path = _stage_for(settings, name, path)
    return stage and command_line(settings, name, stage.script, stage.words(path, list_name or None))


def list_to_train_on(settings):
    """Name the list for an advised training: this stage's own, or one that the dataset has; "" for the default."""
    usual, given = config.Training.train_list, getattr(settings, "train_list", "")
    there = {path.stem for path in Path(settings.data_root, "ImageSets/Segmentation").glob("*.txt")}
    if given not in ("", usual) or usual in there or not there:
        return given if given != usual else ""
    if isinstance(settings, config.InferAff) and settings.infer_list != usual:
        return settings.infer_list
    return "train" if "train" in there else min(there)


def to_make(settings, folder, list_name, task, alphas=()):
    """Say how the maps of a list in a folder are made. task: cam, crf (folder: that of all alphas) or png."""
    own_folder = f"{folder}/{maps.alpha_name(alphas[0])}" if alphas else folder
    if maps.is_foreign(experiment_of(settings).find_folder(own_folder)):
        return maps.NOT_COMPLETED
    name, path = home_of(settings, folder)
    own, (stage, known) = [], _stage_for(settings, name, path, alphas)
    if not stage and (task == "cam" or task == "crf" and alphas):       # a folder with a name of its own
        experiment = Experiment(settings.experiment_root, name)
        model = made_from(experiment, path if task == "cam" else f"{path}/{maps.alpha_name(alphas[0])}")
        kind = "dict" if task == "cam" else "crf"
        known = kind + models()[model or model_of(experiment)].suffix
        stage, known = _stage_for(settings, name, known, alphas)
        own = stage and [*stage.words(known, ""), f"--{kind}_dir", path]
        if "round" in (record := made_with(experiment / path)):
            own = [*stage.flags, "--erase_rounds", f"{record['round'] or 1}", "--erase_dir", str(Path(path).parent)]
    if not stage:
        return "To make it, run the stage that writes this folder"
    words = [*(own or stage.words(known, "")), stage.list_flag, list_name]
    return f"To make it, run: {command_line(settings, name, stage.script, words)}"


def verify_maps(settings, experiment, folder, layout, images, list_name):
    """Raise ValueError if a folder of maps is stale, with the command that makes it again."""
    try:
        images = maps.with_inputs(images, folder, experiment.folder)
        verify(folder, experiment.folder, digests(layout.sources()), images=images)
    except Stale as error:
        raise ValueError(f"{error}. {to_complete(settings, error.folder, list_name)} --overwrite") from None


def find_cams(settings, folder, ids):
    """Return {ID: path} of the CAMs in a folder that a stage reads; ValueError with the command that writes them."""
    maps.require_kind(folder, "cam")
    cams = {i: maps.find_maps(folder, i) for i in ids}
    if missing := [i for i, path in cams.items() if path is None]:
        raise ValueError(f"{maps.lacking('CAMs', folder, missing, ids, settings.infer_list)}. "
                         f"{to_make(settings, settings.dict_dir, settings.infer_list, 'cam')}")
    return cams


def to_complete(settings, folder, list_name):
    """Say how a list's maps in a folder of an experiment are made, with the flags that the folder's record tells."""
    name, path = home_of(settings, folder)
    experiment, alpha = Experiment(settings.experiment_root, name), made_with(folder).get("alpha")
    task = task_of(experiment, path)
    line = (to_make(settings, Path(folder).parent, list_name, task, [alpha]) if task == "crf" and alpha else
            to_make(settings, folder, list_name, task))
    words = recorded_flags(experiment, path, MAKERS, settings.recipe) if "python" in line else []
    return " ".join([line, *map(shlex.quote, words)])


def _stage_for(settings, name, path, alphas=()):
    """Find the row that writes a path: the row, or None, and the path as it is written there. alphas: of crf."""
    experiment = Experiment(settings.experiment_root, name)
    values = values_of(name, settings.recipe, model_of(experiment))
    for start in ("ckpt/aff_", "rw/"):
        if path.startswith(start) and (pair := maps.pair_alphas(path.removeprefix(start))):
            values = replace(values, low=float(pair[0]), high=float(pair[1]))
            path = start + maps.alpha_pair(values.low, values.high)
    learned, measured = list_to_train_on(settings), values.measured
    if learned and not Path(settings.data_root, "ImageSets/Segmentation", f"{measured}.txt").is_file():
        measured = learned
    values = replace(values, alphas=tuple(alphas) or (values.low, values.high), train_list=learned, measured=measured)
    chains = (chain(replace(values, model=model)) for model in dict.fromkeys((values.model, *models())))
    return next((stage for rows in chains for stage in rows if path in stage.writes), None), path
