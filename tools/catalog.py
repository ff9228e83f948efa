"""What people call things: the models of models/, the networks that were trained, folders of maps.

A folder of maps says in its record (made_by.json) which stage wrote it, from what; its name may be anyone's.
"""
import ast
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tools import flags
from tools.maps import pair_alphas
from tools.provenance import read_made_by

AFTER_CAMS = {
    "CRF": "moves the borders of a CAM to edges of colour in the image. The larger alpha is, the less becomes "
           "background.",
    "random walk": "spreads a CAM to neighbouring pixels that belong to the same object; a network, AffinityNet, "
                   "learns from the CRF's maps which pixels those are. The result is the pseudo label.",
    "DeepLab": "is a segmentation network that learns from the pseudo labels as if they were ground truth. Then it "
               "needs the image alone, not the names of its classes."}


@dataclass(frozen=True)
class Model:
    """What a file of models/ says of itself: see models/__init__.py."""
    title: str
    suffix: str
    about: str = ""
    starts_from: dict = field(default_factory=dict)
    published: dict = field(default_factory=dict)
    authors_file: str = ""
    chain: dict = field(default_factory=dict)


@cache
def models():
    """Return {name: Model}. The files are read, not imported: that would import torch."""
    found = {}
    for path in sorted(Path(__file__).resolve().parent.with_name("models").glob("[!_]*.py")):
        body = ast.parse(path.read_text("utf-8")).body
        values = {node.targets[0].id: node.value for node in body
                  if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
        found[path.stem] = Model(**{
            name.lower(): ast.literal_eval(values[name])
            for name in ("TITLE", "SUFFIX", "ABOUT", "STARTS_FROM", "PUBLISHED", "AUTHORS_FILE", "CHAIN")
            if name in values})
    return found


def explain(names):
    """List [title, what it does] of these models and of the stages after them, for readers of no paper."""
    found = {models()[name].title: models()[name].about for name in names if name in models()}
    return [[title, about] for title, about in (found | AFTER_CAMS).items() if about]


def made_from(experiment, folder):
    """Return the model whose CAMs a folder of maps was made from; None where no record tells."""
    def model_in(record):
        script, _, model = str(record.get("stage")).partition(" ")
        return model if script == "infer" and model in models() else None
    return _told(experiment, folder, model_in)


def classes_of(experiment, folder):
    """Return the names of the classes that a folder of maps was made with; None where no record tells."""
    return _told(experiment, folder, lambda record: record.get("settings", {}).get("classes"))


def _told(experiment, folder, tell, depth=9):
    """Return what a folder's record tells, or else those of the folders that it was made from; None if none does.

    tell    function: record -> an answer or None
    """
    record = _record(experiment, folder)
    if answer := tell(record):
        return answer
    inputs = record.get("inputs", {}) if depth else ()
    return next(filter(None, (_told(experiment, path, tell, depth - 1) for path in inputs)), None)


def network_of(experiment, folder):
    """Name the network of ckpt/MODEL that a folder of maps shows: DeepLab, or the model whose CAMs they come from."""
    return "seg" if _record(experiment, folder).get("stage") == "infer_seg" else made_from(experiment, folder)


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


def recorded_flags(experiment, folder, classes, recipe):
    """List the flags with which a folder of maps, and the CAMs behind it, were made, where they are not the recipe's.

    classes  {first word of the recorded stage: dataclass of its settings}
    """
    record, words = _record(experiment, folder), []
    script = str(record.get("stage")).split(" ")[0]
    usual = flags.defaults(classes[script], recipe) if script in classes else {}
    for name, value in record.get("settings", {}).items():
        name = {"iterations": "crf_iterations"}.get(name, name)
        values = value if isinstance(value, list) else [value]
        if name in usual and not isinstance(value, (dict, bool)):
            own = usual[name][0]
            if values != (list(own) if isinstance(own, tuple) else [own]):
                words += [f"--{name}", *map(str, values)]
    for name in record.get("inputs", {}):
        if name.endswith(".pth") and Path(name).stem.isdecimal() and usual and "load_epo" in usual:
            words += ["--load_epo", f"{int(Path(name).stem)}"]
        elif script in ("infer", "infer_aff") and not name.endswith(".pth") and name not in _map_folders("dict"):
            words += ["--dict_dir", name]
        elif script == "infer":
            words += recorded_flags(experiment, name, classes, recipe)
    return words


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


def home_of(settings, folder):
    """Return the experiment in which a folder lies, this one unless it is another, and the folder's path in it."""
    path, root = Path(os.path.abspath(folder)), Path(os.path.abspath(settings.experiment_root))
    name, *rest = path.relative_to(root).parts if path.is_relative_to(root) else ("",)
    if not rest or (root / settings.name / folder).is_dir() or not (root / name).is_dir():
        return settings.name, str(Path(folder))
    return name, "/".join(rest)
