"""The way from image labels to masks as one table: which command writes what, from what, in which order.

reproduce.py runs it, report.py looks for what is missing of it, and the errors of all stages name its commands.
Nothing here imports torch, so that reports and error messages start quickly.
"""
import ast
import os
import shlex
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import config

from tools import flags
from tools.experiment import Experiment
from tools.maps import alpha_name, alpha_pair, pair_alphas
from tools.provenance import read_made_by

PLACE = ("recipe", "data_root", "experiment_root")      # flags that all stages of an experiment share


@dataclass(frozen=True)
class Stage:
    """A row: one command. Paths are those in the experiment."""
    part: str               # where reproduce.py --from may begin
    title: str
    script: str
    flags: tuple            # words of the command that hold for everything it writes
    writes: dict            # {path: further words that ask for it}; crf stands for crf/04, crf/06 ...
    reads: tuple = ()
    list_flag: str = ""
    list: str = ""          # "": the script's own default
    task: str = ""          # of evaluation.py, where it is one
    paper: tuple = (None, None)         # the published mIoU on VOC 2012, and where it stands

    def words(self, path=None, list_name=None):
        """Return the words after the script: those that write one path, or everything; for another list if named."""
        name = self.list if list_name is None else list_name
        asked = self.writes[path] if path else [word for words in self.writes.values() for word in words]
        return [*self.flags, *asked, *([self.list_flag, name] if name else [])]


@dataclass(frozen=True)
class Values:
    """What the commands of a chain depend on."""
    name: str                           # of the experiment
    recipe: str = "voc"
    model: str = config.Infer.model     # whose CAMs become the pseudo labels
    alphas: tuple = ()                  # of the CRF; without any the chain ends with the CAMs
    low: float = 4                      # the two alphas of AffinityNet's labels
    high: float = 24
    train_list: str = ""                # "": the scripts' own defaults
    draw: tuple = ()                    # flags of data.prepare critters, where the dataset is to be drawn first


def values_of(name, recipe, model=Values.model):
    """Return the recipe's values; its alphas are infer.py's and the two of AffinityNet."""
    low, high = (flags.defaults(config.InferAff, recipe)[side][0] for side in ("low", "high"))
    alphas = sorted({*map(float, flags.defaults(config.Infer, recipe)["alphas"][0]), float(low), float(high)})
    return Values(name, recipe, model, tuple(alphas), low, high)


def chain(values):
    """List the stages in order."""
    suffix = models()[values.model].suffix
    title, published = models()[values.model].title, models()[values.model].published
    pair, learn, look = alpha_pair(values.low, values.high), "--train_list", "--infer_list"
    low_high = ("--low", f"{values.low:g}", "--high", f"{values.high:g}")
    aff, walk, crf = f"ckpt/aff_{pair}", f"rw/{pair}", f"crf{suffix}"
    crf_dir, dict_dir = (("--crf_dir", crf), ("--dict_dir", f"dict{suffix}")) if suffix else ((), ())
    rows = []
    if values.draw:
        rows.append(Stage("classifier", "critters", "-m", ("data.prepare", "critters", *values.draw), {}))
    for model in _starts_from(values.model):
        rows += _cams(replace(values, model=model, alphas=()), "classifier", "")
    rows += _cams(values, "cgnet", values.train_list)
    if not values.alphas:
        return rows
    return rows + [
        Stage("affinity", "AffinityNet", "train_aff.py", (*low_high, *crf_dir, *_init(config.TrainAff, values)),
              {aff: ()}, (crf,), learn, values.train_list),
        Stage("walk", "random walk", "infer_aff.py", (*low_high, *dict_dir), {walk: ()}, (aff, f"dict{suffix}"),
              look, values.train_list),
        evaluation("walk", f"{title}, random walk", "png", walk, paper=published.get("random walk")),
        Stage("deeplab", "DeepLab, training", "train_seg.py", ("--label_dir", walk, *_init(config.TrainSeg, values)),
              {"ckpt/seg": ()}, (walk,), learn, values.train_list),
        Stage("deeplab", "DeepLab, maps", "infer_seg.py", (), {"seg": (), "seg_vis": ("--vis",)}, ("ckpt/seg",),
              look, "val"),
        evaluation("deeplab", "DeepLab", "png", "seg", "val", published.get("DeepLab")),
        Stage("deeplab", "DeepLab, maps of train", "infer_seg.py", (), {"seg": ()}, ("ckpt/seg",), look, "train"),
        evaluation("deeplab", "DeepLab on its own pictures", "png", "seg"),
    ]


def _cams(values, part, list_name):
    """List the stages of one model of models/: its training, its maps, how good they are."""
    model, own = values.model, models()[values.model]
    ckpt, cams, crf = f"ckpt/{model}", f"dict{own.suffix}", f"crf{own.suffix}"
    start = [word for flag, other in own.starts_from.items() for word in (f"--{flag}", f"{values.name}/{other}")]
    maps = {cams: ("--dict",), f"infer{own.suffix}": ("--vis",)}
    if values.alphas:
        maps[crf] = ("--crf", "--alphas", *(f"{alpha:g}" for alpha in values.alphas))
    return [
        Stage(part, own.title, "train.py", ("--model", model, *start), {ckpt: ()},
              tuple(f"ckpt/{other}" for other in own.starts_from.values()), "--train_list", values.train_list),
        Stage(part, f"{own.title}, maps", "infer.py", ("--model", model), maps, (ckpt,), "--infer_list", list_name),
        evaluation(part, f"{own.title}, CAM", "cam", cams, paper=own.published.get("CAM")),
        *(evaluation(part, f"{own.title}, CAM + CRF, alpha {alpha:g}", "crf", f"{crf}/{alpha_name(alpha)}",
                     paper=own.published.get("CRF")) for alpha in values.alphas),
    ]


def evaluation(part, title, task, folder, list_name="train", paper=None):
    """Make the row that measures a folder of maps. paper: (mIoU, source)."""
    return Stage(part, title, "evaluation.py", ("--task", task, "--dict_dir", folder),
                 {result_file(task, folder, list_name): ()}, (folder,), "--list", list_name, task,
                 paper or (None, None))


def result_file(task, folder, list_name):
    return "eval/" + f"{task}_{folder}_{list_name}".replace("/", "_") + ".json"


def network_behind(rows, stage):
    """Return the ckpt/MODEL whose network a stage's input comes from."""
    folder = stage.reads[0].split("/")[0] if stage.task == "crf" else stage.reads[0]
    return next(path for row in rows if folder in row.writes for path in row.reads if path.startswith("ckpt/"))


def _init(cls, values):
    """Start from the chain's own model where the recipe starts from the usual one of the same experiment."""
    source = flags.defaults(cls, values.recipe)["init"][0]
    return ("--init", f"{values.name}/{values.model}") if (
        values.model != Values.model and source == f"{{name}}/{Values.model}") else ()


# -- models/


@dataclass(frozen=True)
class Model:
    """What a file of models/ says of itself: see models/__init__.py."""
    title: str
    suffix: str
    starts_from: dict = field(default_factory=dict)
    published: dict = field(default_factory=dict)


@cache
def models():
    """Return {name: Model}. The files are read, not imported: that would import torch."""
    found = {}
    for path in sorted(Path(__file__).with_name("models").glob("[!_]*.py")):
        values = {node.targets[0].id: node.value for node in ast.parse(path.read_text("utf-8")).body
                  if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
        found[path.stem] = Model(**{name.lower(): ast.literal_eval(values[name])
                                    for name in ("TITLE", "SUFFIX", "STARTS_FROM", "PUBLISHED") if name in values})
    return found


def _starts_from(model):
    """List the models that have to be trained before this one, in order."""
    before = [name for other in models()[model].starts_from.values() for name in (*_starts_from(other), other)]
    return list(dict.fromkeys(before))


def model_of(experiment):
    """Tell whose chain an experiment holds: of the models trained there the usual one, or the one built on others."""
    there = [name for name in models() if (experiment / f"ckpt/{name}").is_dir()
             or (experiment / f"log/train_{name}.jsonl").exists()]
    last = [name for name in there if name not in _starts_from(Values.model)] or [Values.model]
    return Values.model if Values.model in last else last[0]


# -- what errors advise


def experiment_of(settings):
    """Return the experiment in which a stage with these settings works. Its errors name the commands of this table."""
    return Experiment(settings.experiment_root, settings.name, partial(command_for, settings))


def command_line(settings, name, script, words):
    """Write a stage's command for an experiment on the dataset of these settings."""
    return f"python {shlex.join([script, '--name', name, *words, *flags.changed(settings, *PLACE)])}"


def command_for(settings, name, path, list_name=""):
    """Return the command that writes a path of an experiment: ckpt/model_oc, dict, rw/04_24, seg; None if unknown."""
    stage, path = _stage_for(settings, name, path)
    if stage and stage.list_flag == "--train_list" and not list_name:
        list_name = _list_to_train_on(settings)
    return stage and command_line(settings, name, stage.script, stage.words(path, list_name))


def _list_to_train_on(settings):
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
    name, path = _home_of(settings, folder)
    own, (stage, known) = [], _stage_for(settings, name, path, alphas)
    if not stage and (task == "cam" or task == "crf" and alphas):       # a folder with a name of its own
        experiment = Experiment(settings.experiment_root, name)
        model = made_from(experiment, path if task == "cam" else f"{path}/{alpha_name(alphas[0])}")
        kind = "dict" if task == "cam" else "crf"
        known = kind + models()[model or model_of(experiment)].suffix
        stage, known = _stage_for(settings, name, known, alphas)
        own = [f"--{kind}_dir", path]
    if not stage:
        return "To make it, run the stage that writes this folder"
    words = [*stage.words(known, ""), *own, stage.list_flag, list_name]
    return f"To make it, run: {command_line(settings, name, stage.script, words)}"


def _stage_for(settings, name, path, alphas=()):
    """Find the row that writes a path: the row, or None, and the path as it is written there. alphas: of crf."""
    experiment = Experiment(settings.experiment_root, name)
    values = values_of(name, settings.recipe, model_of(experiment))
    for start in ("ckpt/aff_", "rw/"):
        if path.startswith(start) and (pair := pair_alphas(path.removeprefix(start))):
            values = replace(values, low=float(pair[0]), high=float(pair[1]))
            path = start + alpha_pair(values.low, values.high)
    values = replace(values, alphas=tuple(alphas) or (values.low, values.high))
    chains = (chain(replace(values, model=model)) for model in dict.fromkeys((values.model, *models())))
    return next((stage for rows in chains for stage in rows if path in stage.writes), None), path


def _home_of(settings, folder):
    """Return the experiment in which a folder lies, this one unless it is another, and the folder's path in it."""
    path, root = Path(os.path.abspath(folder)), Path(os.path.abspath(settings.experiment_root))
    name, *rest = path.relative_to(root).parts if path.is_relative_to(root) else ("",)
    if not rest or (root / settings.name / folder).is_dir() or not (root / name).is_dir():
        return settings.name, str(Path(folder))
    return name, "/".join(rest)


# -- what a folder's own record tells


def made_from(experiment, folder, depth=9):
    """Return the model whose CAMs a folder of maps was made from; None where no record tells."""
    record = _record(experiment, folder)
    script, _, model = str(record.get("stage")).partition(" ")
    if script == "infer" and model in models():
        return model
    inputs = record.get("inputs", {}) if depth else ()
    return next(filter(None, (made_from(experiment, path, depth - 1) for path in inputs)), None)


def title_of(experiment, folder):
    """Name what a folder of maps holds, as its record tells: crf/06 -> CGNet, CAM + CRF, alpha 6.

    A folder with a name of its own is named too; one without a record has no other title.
    """
    title = _title(experiment, folder)
    usual = folder.split("/")[0] in ("rw", "seg", *_map_folders("dict"), *_map_folders("crf"))
    return folder if title is None else title if usual else f"{title} ({folder})"


def _title(experiment, folder):
    record, model = _record(experiment, folder), made_from(experiment, folder)
    stage = record.get("stage")
    if stage == "infer_seg":
        return "DeepLab"
    title = model and models()[model].title
    if title and stage == f"infer {model}":
        return f"{title}, CAM"
    if title and stage == "infer crf":
        alpha = record.get("settings", {}).get("alpha")
        return f"{title}, CAM + CRF, alpha {f'{alpha:g}' if type(alpha) in (int, float) else alpha}"
    if title and stage == "infer_aff":
        pairs = [pair_alphas(Path(path).parent.name.removeprefix("aff_")) for path in record.get("inputs", {})]
        return f"{title}, random walk" + next((_alphas(pair) for pair in pairs if pair), "")
    return None


def training_title(model):
    """Name the network of ckpt/MODEL: aff_04_24 -> AffinityNet, alphas 4 and 24."""
    pair = pair_alphas(model.removeprefix("aff_"))
    names = {name: own.title for name, own in models().items()} | {"seg": "DeepLab"}
    return f"AffinityNet{_alphas(pair)}" if pair else names.get(model, model)


def task_of(experiment, folder):
    """Say which maps a folder holds, in the words of evaluation.py: cam, crf or png."""
    stage, top = str(_record(experiment, folder).get("stage")), folder.split("/")[0]
    if stage == "infer crf" or top in _map_folders("crf"):
        return "crf"
    return "cam" if stage.removeprefix("infer ") in models() or top in _map_folders("dict") else "png"


def _record(experiment, folder):
    """Read a folder's record; empty where there is none that can be read."""
    try:
        return read_made_by(experiment / folder)
    except (ValueError, OSError):
        return {}


def _map_folders(kind):
    return [kind + own.suffix for own in models().values()]


def _alphas(pair):
    return f", alphas {' and '.join(pair)}"
