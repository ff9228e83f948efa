"""The comparisons and ablations with which the papers argue, each a table of flags. reproduce.py --table runs one.

A row is trained once a seed, in an experiment of its own, NAME-VARIANT-sSEED, and measured on the same images. Rows
that a recipe makes the same training, also of two tables, share the experiment of the first of them; models that start
from a classifier share that of NAME-ordinary-sSEED.
"""
import re
from dataclasses import dataclass, replace
from functools import cache

from config import Train

import pipeline
from tools import flags

SHARED = "ordinary"


@dataclass(frozen=True)
class Row:
    """What is trained: a model of models/, and flags of train.py on top of the recipe's."""
    title: str
    model: str
    flags: tuple = ()
    least_epochs: str = ""      # a flag that takes the number of epochs: the triplet never counts


_ORDINARY = Row("ordinary classifier", "model_oc")
_GPP = {"least_epochs": "--T"}
TABLES = {
    "methods": {
        SHARED: _ORDINARY,
        "agnostic": Row("class-agnostic erasing", "model_agnostic"),
        "cse": Row("class-specific erasing", "model_cse"),
        "aeft": Row("AEFT", "aeft_gpp"),
    },
    "ablation_erasing": {
        SHARED: _ORDINARY,
        "control": Row("nothing asked of what is left (lambda 0)", "model_cse", ("--cc_init", "0", "--cc_slope", "0")),
        "agnostic": Row("all present classes erased", "model_agnostic"),
        "uniform": Row("one class, drawn uniformly", "model_cse", ("--sampling", "uniform")),
        "in_turn": Row("one class, each in turn", "model_cse", ("--sampling", "in_turn")),
        "largest": Row("one class, the largest", "model_cse", ("--sampling", "largest")),
    },
    "ablation_cse": {
        "recipe": Row("the recipe", "model_cse"),
        "mask_batch": Row("mask over the maximum of the batch", "model_cse", ("--mask_norm", "batch")),
        "mask_image": Row("mask over the maximum of the image", "model_cse", ("--mask_norm", "image")),
        "constant": Row("lambda .65", "model_cse", ("--cc_init", "0.65", "--cc_slope", "0")),
        "ramped": Row("lambda .3 + .05 epoch", "model_cse", ("--cc_init", "0.3", "--cc_slope", "0.05")),
        "from_imagenet": Row("starts from ImageNet", "model_cse", ("--er_init", "imagenet")),
        "from_classifier": Row("starts from the classifier", "model_cse", ("--er_init", "{home}/model_oc")),
        "head_1x": Row("head at the rate of the rest", "model_cse", ("--lr_new", "1")),
        "head_10x": Row("head at 10 times the rate", "model_cse", ("--lr_new", "10")),
        "momentum_5e-4": Row("momentum 5e-4", "model_cse", ("--momentum", "0.0005")),
        "momentum_0.9": Row("momentum .9", "model_cse", ("--momentum", "0.9")),
    },
    "ablation_gpp": {
        SHARED: Row("global average pooling", "model_oc"),
        "2": Row("bins 2", "aeft_gpp", ("--bins", "2"), **_GPP),
        "2_4": Row("bins 2 4", "aeft_gpp", ("--bins", "2", "4"), **_GPP),
        "2_4_8": Row("bins 2 4 8", "aeft_gpp", ("--bins", "2", "4", "8"), **_GPP),
        "2_4_8_16": Row("bins 2 4 8 16, coarse to fine", "aeft_gpp", **_GPP),
        "fine_to_coarse": Row("fine to coarse", "aeft_gpp", ("--gpp_order", "fine_to_coarse"), **_GPP),
        "averaged": Row("averaged", "aeft_gpp", ("--gpp_order", "averaged"), **_GPP),
    },
    "ablation_triplet": {
        "none": Row("no triplet", "aeft_gpp", **_GPP),
        "attract": Row("attract", "aeft_gpp", ("--W", "1", "0.2", "0")),
        "repel": Row("repel", "aeft_gpp", ("--W", "1", "0", "0.15")),
        "both": Row("attract and repel", "aeft_gpp"),
        "cam": Row("attract and repel, on the CAMs", "aeft_gpp", ("--triplet_on", "cam")),
    },
}


def rows_of(name, recipe="voc"):
    """Return a table's rows, the ordinary classifier first where others start from it; ValueError with the tables."""
    if name not in TABLES:
        raise ValueError(f"--table {name}: there are {', '.join(TABLES)}")
    rows = TABLES[name]
    needed = any("model_oc" in pipeline.before(row.model, recipe) for row in rows.values())
    return ({SHARED: _ORDINARY} | rows) if needed else rows


def row_named(name):
    """Return (table, its name, seed) of the row whose experiment is NAME-VARIANT-sSEED; None for any other name."""
    for table in TABLES:
        for variant in rows_of(table):
            if found := re.fullmatch(rf"(.+)-{re.escape(variant)}-s(\d+)", name):
                return table, found[1], found[2]
    return None


def trained_as(row, recipe):
    """Name the first row of all tables that is the same training as this one in a recipe; None where none is."""
    wanted = _training(row, recipe)
    return next((variant for rows in TABLES.values() for variant, other in rows.items()
                 if _training(other, recipe) == wanted), None)


@cache
def _training(row, recipe):
    """Resolve the settings that a row is trained with in a recipe."""
    words = ["--recipe", recipe, "--name", "NAME", "--model", row.model, *_own_flags(row, recipe, "NAME")]
    return flags.parse(Train, words, pipeline.settings_of_models())


def _own_flags(row, recipe, home):
    words = [word.replace("{home}", home) for word in row.flags]
    if row.least_epochs:
        own = flags.defaults(pipeline.settings_of_models()[row.model], recipe)
        words += [row.least_epochs, str(own["max_epochs"][0])]
    return words


def stages(settings, layout, row, variant, seed, crf):
    """List the stages of one row for one seed, and the name of its experiment.

    settings  config.Reproduce;  crf  whether CRF maps are made, too
    """
    home = f"{settings.name}-{SHARED}-s{seed}"
    name = f"{settings.name}-{trained_as(row, settings.recipe) or variant}-s{seed}"
    values = pipeline.fit_lists(replace(pipeline.values_of(name, settings.recipe, row.model), home=home,
                                        train_list=settings.train_list), layout)
    values = replace(values, alphas=values.alphas if crf else (), measured=settings.measured or values.measured)
    train, maps, *evaluations = pipeline.cams(values, "classifier", values.measured)
    asked = {path: flag for path, flag in maps.writes.items() if "--vis" not in flag}
    words = _own_flags(row, settings.recipe, home)
    return name, [replace(train, flags=(*train.flags, *words)), replace(maps, writes=asked), *evaluations]
