"""The way from image labels to masks as one table: which command writes what, from what, in which order.

reproduce.py runs it, report.py looks for what is missing of it, and the errors of all stages name its commands.
Nothing here imports torch, so that reports and error messages start quickly.
"""
from dataclasses import dataclass, field, replace

import config
from config_models import SETTINGS

from tools import flags, maps
from tools.catalog import models


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
    measured: str = "train"             # the list whose maps are measured and shown, of those that were trained on
    val: str = "val"                    # the list on which DeepLab is measured; "": there is none
    home: str = ""                      # the experiment of the models that this one starts from; "": its own
    init: str = ""                      # AffinityNet's start, where the model has one of its own
    own: dict = field(default_factory=dict)     # further flags of the walk that its model asks for: {flag: value}
    draw: tuple = ()                    # flags of data.prepare critters, where the dataset is to be drawn first


def values_of(name, recipe, model=Values.model):
    """Return the recipe's values, or those that the model has for it; the alphas are those and AffinityNet's two."""
    own = dict(models()[model].chain.get(recipe, {}))
    low, high = (float(own.pop(side, flags.defaults(config.InferAff, recipe)[side][0])) for side in ("low", "high"))
    alphas = own.pop("alphas", flags.defaults(config.Infer, recipe)["alphas"][0])
    return Values(name, recipe, model, tuple(sorted({*map(float, alphas), low, high})), low, high,
                  init=own.pop("init", "").format(name=name), own=own)


def chain(values):
    """List the stages in order."""
    suffix = models()[values.model].suffix
    title, published = models()[values.model].title, models()[values.model].published
    pair, learn, look = maps.alpha_pair(values.low, values.high), "--train_list", "--infer_list"
    low_high = ("--low", f"{values.low:g}", "--high", f"{values.high:g}")
    start = ("--init", values.init) if values.init else _init(config.TrainAff, values)
    own = [word for flag, value in values.own.items() for word in (f"--{flag}", str(value))]
    aff, walk, crf = f"ckpt/aff_{pair}", f"rw/{pair}", f"crf{suffix}"
    crf_dir, dict_dir = (("--crf_dir", crf), ("--dict_dir", f"dict{suffix}")) if suffix else ((), ())
    seg, rows = {"seg": (), "seg_vis": ("--vis",)}, []
    if values.draw:
        rows.append(Stage("classifier", "critters", "-m", ("data.prepare", "critters", *values.draw), {}))
    for model in before(values.model, values.recipe):
        rows += cams(replace(values, model=model, alphas=()), "classifier",
                      "" if values.measured == config.Infer.infer_list else values.measured)
    rows += cams(values, "cgnet", values.train_list)
    if not values.alphas:
        return rows
    return rows + [
        Stage("affinity", "AffinityNet", "train_aff.py", (*low_high, *crf_dir, *start),
              {aff: ()}, (crf,), learn, values.train_list),
        Stage("walk", "random walk", "infer_aff.py", (*low_high, *dict_dir, *own), {walk: ()}, (aff, f"dict{suffix}"),
              look, values.train_list),
        evaluation("walk", f"{title}, random walk", "png", walk, values.measured, published.get("random walk")),
        Stage("deeplab", "DeepLab, training", "train_seg.py", ("--label_dir", walk, *_init(config.TrainSeg, values)),
              {"ckpt/seg": ()}, (walk,), learn, values.train_list),
        *([Stage("deeplab", "DeepLab, maps", "infer_seg.py", (), seg, ("ckpt/seg",), look, values.val),
           evaluation("deeplab", "DeepLab", "png", "seg", values.val, published.get("DeepLab"))] if values.val else ()),
        Stage("deeplab", f"DeepLab, maps of {values.measured}", "infer_seg.py", (), {"seg": ()} if values.val else seg,
              ("ckpt/seg",), look, values.measured),
        evaluation("deeplab", "DeepLab on its own images", "png", "seg", values.measured),
    ]


def cams(values, part, list_name):
    """List the stages of one model of models/: its training, its maps, how good they are."""
    model, own = values.model, models()[values.model]
    ckpt, cams, crf = f"ckpt/{model}", f"dict{own.suffix}", f"crf{own.suffix}"
    home = values.home or values.name
    started = starts_from(model, values.recipe)
    start = [word for flag, other in started.items() for word in (f"--{flag}", f"{home}/{other}")]
    watched = () if values.measured == config.Train.val_list else ("--val_list", values.measured)
    written = {cams: ("--dict",), f"infer{own.suffix}": ("--vis",)}
    if values.alphas:
        written[crf] = ("--crf", "--alphas", *(f"{alpha:g}" for alpha in values.alphas))
    return [
        Stage(part, own.title, "train.py", ("--model", model, *start, *watched), {ckpt: ()},
              tuple(f"ckpt/{other}" for other in dict.fromkeys(started.values())), "--train_list", values.train_list),
        Stage(part, f"{own.title}, maps", "infer.py", ("--model", model), written, (ckpt,), "--infer_list", list_name),
        evaluation(part, f"{own.title}, CAM", "cam", cams, values.measured, own.published.get("CAM")),
        *(evaluation(part, f"{own.title}, CAM + CRF, alpha {alpha:g}", "crf", f"{crf}/{maps.alpha_name(alpha)}",
                     values.measured, own.published.get("CRF")) for alpha in values.alphas),
    ]


def evaluation(part, title, task, folder, list_name="train", paper=None):
    """Make the row that measures a folder of maps. paper: (mIoU, source)."""
    return Stage(part, title, "evaluation.py", ("--task", task, "--dict_dir", folder),
                 {result_file(task, folder, list_name): ()}, (folder,), "--list", list_name, task,
                 paper or (None, None))


def result_file(task, folder, list_name):
    return "eval/" + f"{task}_{folder}_{list_name}".replace("/", "_") + ".json"


def fit_lists(values, layout):
    """Choose the lists that are measured: those that a dataset has. layout: VOCLayout, None where there is none yet.

    The maps measured are those of `train`, if it was trained on; of a dataset without `val` DeepLab's are those alone.
    """
    learned = _ids(layout, values.train_list)
    if learned is None:
        return values
    measured = _ids(layout, values.measured)
    return replace(values, measured=values.measured if measured and set(measured) <= set(learned) else
                   values.train_list, val=values.val if _ids(layout, values.val) else "")


def not_measured(rows, layout):
    """Return {list: why its maps are not measured} for the lists of a chain whose images lack ground truth."""
    reasons = {}
    for name in dict.fromkeys(row.list for row in rows if row.task):
        ids = _ids(layout, name) or ()
        known = sum(layout.has_ground_truth(i) for i in ids)
        if known < len(ids):
            reasons[name] = (f"{name}: {known or 'none'} of its {len(ids)} images have ground truth in {layout.root}/"
                             "SegmentationClass, so its maps are not measured; report.html shows them")
    return reasons


def _ids(layout, list_name):
    """Read a list of a dataset; None where it cannot be read: the stage that needs it says why."""
    try:
        return layout and layout.ids(list_name)
    except (ValueError, OSError):
        return None


def hand_on(rows, words):
    """Return a chain whose training stages have further flags (words: --flag VALUE ...), each that knows them.

    Raises ValueError for a flag that no training stage has, and for one that reproduce.py has itself.
    """
    if not words:
        return rows
    starts = [i for i, word in enumerate(words) if word.startswith("--")]
    if not starts or starts[0]:
        raise ValueError(f"after -- stand flags for the training stages, as -- --batch_size 4, not {words[0]!r}")
    groups = [words[start:end] for start, end in zip(starts, [*starts[1:], len(words)])]
    known = [_training_flags(row) for row in rows]
    for flag, *_ in groups:
        name = flag.partition("=")[0]
        if name in flags.flags_of(config.Reproduce):
            raise ValueError(f"{name} is a flag of reproduce.py itself: write it before the --")
        if not any(name in own for own in known):
            raise ValueError(f"{name} is a flag of no training stage: after -- stand flags of train.py, train_aff.py "
                             "and train_seg.py, see their --help")
    return [replace(row, flags=(*row.flags, *(word for group in groups if group[0].partition("=")[0] in own
                                              for word in group))) for row, own in zip(rows, known)]


def settings_of_models():
    """Return {model of models/: the class of train.py's settings for it}.

    torch is loaded only where a model defines its Settings in its own file: see config_models.py.
    """
    if models().keys() <= SETTINGS.keys():
        return SETTINGS
    from models import MODELS
    return {name: model.Settings for name, model in MODELS.items()}


def _training_flags(row):
    """Return the flags of a training stage's command; none of another stage."""
    if row.script == "train.py":
        model = row.flags[row.flags.index("--model") + 1]
        return flags.flags_of(settings_of_models()[model])
    return flags.flags_of({"train_aff.py": config.TrainAff, "train_seg.py": config.TrainSeg}.get(row.script))


def network_behind(rows, stage):
    """Return the ckpt/MODEL whose network a stage's input comes from."""
    folder = stage.reads[0].split("/")[0] if stage.task == "crf" else stage.reads[0]
    return next(path for row in rows if folder in row.writes for path in row.reads if path.startswith("ckpt/"))


def _init(cls, values):
    """Start from the chain's own model where the recipe starts from the usual one of the same experiment."""
    source = flags.defaults(cls, values.recipe)["init"][0]
    return ("--init", f"{values.name}/{values.model}") if (
        values.model != Values.model and source == f"{{name}}/{Values.model}") else ()


def starts_from(model, recipe):
    """Return {flag: model}: the models that are trained before this one in a recipe, and the flags that take them."""
    own = flags.defaults(settings_of_models()[model], recipe)
    named = {flag: value.removeprefix("{name}/") for flag, (value, _) in own.items()
             if isinstance(value, str) and value.startswith("{name}/")}
    return models()[model].starts_from | named


def before(model, recipe):
    """List the models that have to be trained before this one, in order."""
    found = [name for other in starts_from(model, recipe).values() for name in (*before(other, recipe), other)]
    return list(dict.fromkeys(found))


def model_of(experiment):
    """Tell whose chain an experiment holds: of the models trained there the usual one, or the one built on others."""
    there = [n for n in models() if any((experiment / p).exists() for p in (f"ckpt/{n}", f"log/train_{n}.jsonl"))]
    last = [name for name in there if name not in before(Values.model, Values.recipe)] or [Values.model]
    return Values.model if Values.model in last else last[0]
