"""The settings: each has its source, the recipes differ where it is said, what is typed wrongly is refused in words."""
import os
import re
import subprocess
import sys
from dataclasses import fields

import config
from config import Evaluate, Infer, InferAff, InferSeg, Reproduce, Train, TrainAff, TrainSeg
from config_models import SETTINGS

import pytest

from models import MODELS
from networks.gpp import BINS, ORDERS
from pipeline import settings_of_models
from tests.conftest import ROOT
from tests.stages import parse
from tools import flags, remedies

OC, CSE = MODELS["model_oc"].Settings, MODELS["model_cse"].Settings
STAGES = (OC, CSE, Infer, Evaluate, Reproduce, TrainAff, InferAff, TrainSeg, InferSeg)
NAME = ["--name", "X"]

# What `--recipe demo` changes against voc: the same in config.py, where each entry has its reason. Two places on
# purpose: the demo is another setting of the same code, and no difference comes in unnoticed.
DEMO = {
    "model_oc": {
        "data_root": "data/critters", "max_epochs": 20, "resize": (112, 160), "crop": 128,
        "jitter": (0.0, 0.0, 0.0, 0.0), "lr": 0.1, "lr_new": 1, "momentum": 0.9, "er_init": "random",
        "dropout": (0.0, 0.0), "dropout_head": 0.0, "width": 0.125, "blocks": (1, 1, 1, 1, 1, 0), "dilation": (1, 1, 1),
        "norm": "train", "val_every": 0, "print_freq": 10, "vis_freq": 50,
    },
    "model_cse": {
        "data_root": "data/critters", "batch_size": 16, "resize": (112, 160), "crop": 128,
        "jitter": (0.0, 0.0, 0.0, 0.0), "lr": 0.005, "momentum": 0.9,
        "er_init": "{name}/model_oc", "cl_init": "{name}/model_oc", "dropout": (0.0, 0.0), "width": 0.125,
        "blocks": (1, 1, 1, 1, 1, 0), "dilation": (1, 1, 1), "val_every": 0, "print_freq": 10, "vis_freq": 50,
    },
    "Infer": {"data_root": "data/critters"},
    "TrainAff": {
        "data_root": "data/critters", "max_epochs": 4, "crop": 128, "jitter": (0.0, 0.0, 0.0, 0.0), "momentum": 0.9,
        "init": "{name}/model_cse", "dropout": (0.0, 0.0), "width": 0.125, "blocks": (1, 1, 1, 1, 1, 0),
        "dilation": (1, 1, 1), "print_freq": 10,
    },
    "InferAff": {"data_root": "data/critters", "dup": 4, "logt": 4, "crf_iterations": 1},
    "TrainSeg": {
        "data_root": "data/critters", "batch_size": 8, "max_epochs": 8, "lr": 0.01, "scale": (0.75, 1.25), "crop": 128,
        "jitter": (0.0, 0.0, 0.0, 0.0), "init": "{name}/model_cse", "dropout": (0.0, 0.0), "width": 0.125,
        "blocks": (1, 1, 1, 1, 1, 0), "dilation": (1, 1, 1), "print_freq": 10,
    },
    "InferSeg": {"data_root": "data/critters", "scales": (0.75, 1.0, 1.25)},
    "Evaluate": {"data_root": "data/critters"},
    "Reproduce": {"data_root": "data/critters"},
}

_LITE = {"backbone": "tf_efficientnet_lite0", "output_stride": 16, "crop": 256, "print_freq": 10}
_LITE_CAMS = {**_LITE, "momentum": 0.9, "resize": (256, 384), "val_every": 0, "vis_freq": 100}
LITE = {
    "model_oc": {**_LITE_CAMS, "batch_size": 8, "max_epochs": 5, "dropout_head": 0.0, "lr": 0.003,
                 "least_steps": 100},
    "model_cse": {**_LITE_CAMS, "max_epochs": 2, "lr": 0.002, "cc_init": 1.0, "cc_slope": 0.0, "mask_norm": "image",
                  "er_init": "{name}/model_oc", "cl_init": "{name}/model_oc"},
    "Infer": {"alphas": (2, 4, 6), "scales": (1.0, 1.5)},
    "TrainAff": {**_LITE, "momentum": 0.9, "low": 2, "high": 6, "max_epochs": 3, "least_steps": 100},
    "InferAff": {"low": 2, "high": 6, "dup": 8, "beta": 16, "logt": 6, "crf_iterations": 1},
    "TrainSeg": {**_LITE, "batch_size": 8, "label_dir": "rw/02_06", "max_epochs": 4, "scale": (0.75, 1.5),
                 "least_steps": 100},
    "InferSeg": {"scales": (0.75, 1.0, 1.25)},
    "Evaluate": {}, "Reproduce": {},
}


def values(cls, recipe="voc"):
    return {name: value for name, (value, _) in flags.defaults(cls, recipe).items()}


def name_of(cls):
    return next((name for name, model in MODELS.items() if model.Settings is cls), cls.__name__)


def refused(capsys, cls, words):
    """Parse words that must be refused; returns what is said on stderr, unwrapped."""
    with pytest.raises(SystemExit) as stop:
        parse(cls, words)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


# ---- fields and recipes ----

@pytest.mark.parametrize("cls", STAGES)
def test_every_field_says_what_it_is_and_where_its_value_comes_from(cls):
    for f in fields(cls):
        assert len(f.metadata["help"]) > 3 and f.metadata["source"], f.name
        assert f.metadata["content"] in (True, False, "where set"), f.name


def test_the_faithful_recipe_is_the_authors():
    assert values(CSE) | {
        "train_list": "train_aug", "batch_size": 8, "max_epochs": 15, "resize": (256, 448), "crop": 384, "lr": 0.01,
        "jitter": (0.3, 0.3, 0.3, 0.1), "lr_new": 1, "wt_dec": 5e-4, "momentum": 5e-4, "power": 0.9, "cc_init": 0.3,
        "cc_slope": 0.05, "mask_norm": "batch", "er_init": "imagenet", "cl_init": "cam", "dropout": (0.3, 0.5),
        "dropout_head": 0.0, "width": 1.0, "norm": "frozen", "blocks": (3, 3, 6, 3, 1, 1), "dilation": (2, 4, 4),
        "seed": 4242, "precision": "fp32", "val_every": 1,
    } == values(CSE)
    assert values(OC) | {
        "batch_size": 16, "resize": (256, 512), "crop": 448, "lr_new": 10, "dropout_head": 0.5, "max_epochs": 15,
        "lr": 0.01, "momentum": 5e-4, "er_init": "imagenet",
    } == values(OC)
    assert values(TrainAff) | {
        "train_list": "train_aug", "low": 4, "high": 24, "batch_size": 8, "max_epochs": 8, "crop": 448, "lr": 0.01,
        "wt_dec": 5e-4, "momentum": 5e-4, "power": 0.9, "jitter": (0.3, 0.3, 0.3, 0.1), "init": "imagenet",
        "dropout": (0.3, 0.5), "width": 1.0, "norm": "frozen",
    } == values(TrainAff)
    assert values(InferAff) | {
        "infer_list": "train_aug", "low": 4, "high": 24, "dup": 16, "beta": 8, "logt": 8, "crf_iterations": 0,
        "radius_rule": "psa",
    } == values(InferAff)
    assert values(TrainSeg) | {
        "network": "largefov", "init": "imagenet", "train_list": "train_aug", "batch_size": 10, "max_epochs": 19,
        "lr": 0.001, "wt_dec": 5e-4, "momentum": 0.9, "power": 0.9, "scale": (0.5, 1.5), "crop": 448,
        "jitter": (0.3, 0.3, 0.3, 0.1),
        "dropout": (0.3, 0.5), "width": 1.0, "norm": "frozen", "blocks": (3, 3, 6, 3, 1, 1), "dilation": (2, 4, 4),
    } == values(TrainSeg)
    assert 19_900 < 10_582 // 10 * values(TrainSeg)["max_epochs"] < 20_200
    assert values(InferSeg) | {
        "infer_list": "val", "scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "crf": False, "crf_iterations": 10,
    } == values(InferSeg)
    assert values(Infer)["alphas"] == (6, 10, 24) and values(Infer)["scales"] == (0.5, 1.0, 1.5, 2.0)
    assert values(Infer)["infer_list"] == values(Evaluate)["list"] == "train" and values(Infer)["crf_iterations"] == 10
    assert values(Evaluate)["thresholds"] == (0.10, 0.39, 0.01)


@pytest.mark.parametrize(("recipe", "said"), [("demo", DEMO), ("lite", LITE)])
def test_a_small_recipe_differs_from_voc_where_it_is_said(recipe, said):
    found = {}
    for cls in STAGES:
        stage = name_of(cls)
        voc, small = (flags.defaults(cls, name) for name in ("voc", recipe))
        if recipe == "demo":
            assert small["num_workers"][0] == min(2, config.CORES)      # voc's depends on the machine as well
        found[stage] = {}
        for name, (value, reason) in small.items():
            if value != voc[name][0] and name != "num_workers":
                found[stage][name] = value
                assert reason not in (config.PAPER, config.PSA, flags.OURS, ""), f"{stage}: {name} has no reason"
                print(f"{stage:16} {name:13} {voc[name][0]!s:24} -> {value!s:24} {reason}")
    assert found == said


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to a core")
def test_workers_default_to_the_cores_that_this_process_may_use():
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import config; " \
              "print(config.Common('X').num_workers, config.RECIPES['demo']['Common']['num_workers'][0])"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.split() == ["1", "1"]
    assert config.Common("X").num_workers == min(8, len(os.sched_getaffinity(0)))


def test_recipes_name_fields_that_exist():
    common = set.intersection(*({f.name for f in fields(cls)} for cls in STAGES))
    known = {"Common": common} | {cls.__name__: {f.name for f in fields(cls)} for cls in (Train, *STAGES)}
    changes = [(layer, entries) for layers in config.RECIPES.values() for layer, entries in layers.items()]
    changes += [("Settings", entries) for model in MODELS.values() for entries in model.RECIPES.values()]
    known["Settings"] = {f.name for model in MODELS.values() for f in fields(model.Settings)}
    for layer, entries in changes:
        assert entries.keys() <= known[layer], layer
        assert all(len(entry) == 2 and entry[1] for entry in entries.values()), layer
    for model in MODELS.values():
        assert all(entries.keys() <= {f.name for f in fields(model.Settings)} for entries in model.RECIPES.values())


def test_the_flags_of_all_models_can_be_read_without_torch():
    assert {name: model.Settings for name, model in MODELS.items()} == SETTINGS == settings_of_models()
    own = {f.name: f for f in fields(SETTINGS["aeft_gpp"])}         # as the network itself has them
    assert own["bins"].default == BINS and own["gpp_order"].metadata["choices"] == ORDERS
    assert own["gpp_order"].default == ORDERS[0]


def test_coco_is_voc_elsewhere():
    for cls in STAGES:
        changed = {k for k, v in values(cls, "coco").items() if v != values(cls)[k]}
        assert changed == {"data_root"}


# ---- what is typed ----

def test_flags_win_over_recipe_and_model():
    settings = parse(Train, [*NAME, "--recipe", "demo", "--model", "model_oc"])
    assert (settings.width, settings.lr, settings.norm, settings.er_init) == (0.125, 0.1, "train", "random")
    settings = parse(Train, ["--width", "0.5", "--model=model_oc", "--resize", "64", "96", *NAME,
                                    "--recipe=demo"])
    assert (settings.width, settings.lr, settings.resize) == (0.5, 0.1, (64, 96))
    assert parse(Train, NAME).batch_size == 8
    assert parse(Train, [*NAME, "--model", "model_oc"]).batch_size == 16
    assert parse(Train, [*NAME, "--model", "model_oc", "--batch_size", "8"]).batch_size == 8


@pytest.mark.parametrize(("cls", "line", "expected"), [
    (Train, "--name X --model model_cse", {"name": "X", "model": "model_cse", "recipe": "voc", "cl_init": "cam"}),
    (Infer, "--name X --model model_cse --load_epo 14 --vis --dict --crf --alphas 6 10 24",
     {"load_epo": "14", "vis": True, "dict": True, "crf": True, "alphas": (6, 10, 24), "infer_list": "train"}),
    (Evaluate, "--name X --task cam --dict_dir dict", {"task": "cam", "dict_dir": "dict", "list": "train"}),
    (Evaluate, "--name X --task crf --dict_dir crf/06", {"task": "crf", "dict_dir": "crf/06"}),
    (Train, "--name X --train_list voc12/train_aug.txt --val_list voc12/train.txt --batch_size 8 --num_workers 4 "
            "--resize 256 448 --crop 384 --lr 0.01 --wt_dec 5e-4 --max_epochs 15 --er_init imagenet --cl_init cam "
            "--cc_init 0.3 --cc_slope 0.05 --seed 4242 --print_freq 100 --vis_freq 500",
     {"train_list": "voc12/train_aug.txt", "resize": (256, 448), "wt_dec": 5e-4, "cc_slope": 0.05, "vis_freq": 500}),
    (Infer, "--name X --infer_list voc12/train.txt --only 2007_000032", {"only": "2007_000032", "dict": False}),
    (Evaluate, "--name X --list voc12/train.txt --gt_dir T --thresholds 0 1 .05", {"thresholds": (0, 1, 0.05)}),
    (Reproduce, "--recipe demo --seeds 3", {"name": "", "recipe": "demo", "seeds": 3}),
])
def test_lines_that_people_type(cls, line, expected):
    settings = parse(cls, line.split())
    assert {name: getattr(settings, name) for name in expected} == expected


def test_the_experiments_name_fills_its_place():
    settings = parse(Train, ["--name", "my-run_2", "--recipe", "demo"])
    assert settings.er_init == settings.cl_init == "my-run_2/model_oc"
    settings = parse(Train, [*NAME, "--cl_init", "{name}/model_oc/003", "--er_init", "odd{folder}/a.pth"])
    assert (settings.cl_init, settings.er_init) == ("X/model_oc/003", "odd{folder}/a.pth")


@pytest.mark.parametrize(("cls", "words", "said"), [
    (Train, ["--batch_size", "0"], "--batch_size: must be at least 1, not 0"),
    (Train, ["--lr", "-0.1"], "--lr: must be at least 0, not -0.1"),
    (Train, ["--lr", "nan"], "--lr: must be a finite number"),
    (Train, ["--lr", "fast"], "--lr: invalid float value: 'fast'"),
    (Train, ["--resize", "448", "256"], "second: 448 256"),
    (Train, ["--resize", "448"], "--resize: expected 2 arguments"),
    (Train, ["--jitter", "0.3", "0.3", "-1", "0"], "--jitter: must be at least 0, not -1"),
    (Train, ["--width", "0"], "--width: must be above 0, not 0.0"),
    (Train, ["--crop", "7"], "--crop: must be at least 8, not 7"),
    (Train, ["--max_epochs", "1.5"], "--max_epochs: invalid int value: '1.5'"),
    (Train, ["--lr_new", "3"], "--lr_new: invalid choice: 3"),
    (Train, ["--mask_norm", "none"], "--mask_norm: invalid choice: 'none'"),
    (Train, ["--model", "model_x"], "--model: invalid choice: 'model_x'"),
    (Train, ["--recipe", "imagenet"], "--recipe: invalid choice: 'imagenet'"),
    (Train, ["--num_workers", "-1"], "--num_workers: must be at least 0, not -1"),
    (Train, ["--batch", "8"], "unrecognized arguments: --batch 8"),     # abbreviated, it would break with a later flag
    (Infer, ["--alphas"], "--alphas: expected at least one argument"),
    (Infer, ["--alphas", "6", "-1"], "--alphas: must be at least 0, not -1"),
    (Infer, ["--scales", "0.5", "0"], "--scales: must be at least 0.1, not 0.0"),
    (Infer, ["--scales", "1", "0.001"], "--scales: must be at least 0.1, not 0.001"),
    (Infer, ["--scales", "30"], "--scales: must be at most 4, not 30.0"),
    (InferSeg, ["--name", "X", "--scales", "1", "30"], "--scales: must be at most 4, not 30.0"),
    (Infer, ["--scales", "inf"], "--scales: must be a finite number, not inf"),
    (Infer, ["--format", "png"], "--format: invalid choice: 'png'"),
    (Evaluate, ["--thresholds", "0", "1"], "--thresholds: expected 3 arguments"),
    (Reproduce, ["--seeds", "0"], "--seeds: must be at least 1, not 0"),
    (TrainAff, ["--low", "24"], "--low 24 must be below --high 24"),
    (InferAff, ["--high", "2"], "--low 4 must be below --high 2"),
])
def test_what_cannot_be_meant_is_refused_in_the_flags_words(capsys, cls, words, said):
    assert said in refused(capsys, cls, [*NAME, *words])


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../up", "a b", "x\n"])
def test_names_that_are_no_folder_are_refused(capsys, name):
    assert "--name: letters, digits" in refused(capsys, Train, ["--name", name])


def test_a_name_is_needed(capsys):
    for cls in (Train, Infer, Evaluate):
        assert "the following arguments are required: --name" in refused(capsys, cls, [])
    assert parse(Reproduce, []).name == ""


@pytest.mark.parametrize("name", ["X", "run-2_b.1", "Größe"])
def test_names_of_folders(name):
    assert parse(Train, ["--name", name]).name == name


@pytest.mark.parametrize("cls", STAGES)
@pytest.mark.parametrize("recipe", ["voc", "demo"])
def test_help_shows_every_flag_with_default_and_source(capsys, cls, recipe):
    stage, model = (Train, ["--model", name_of(cls)]) if issubclass(cls, Train) else (cls, [])
    with pytest.raises(SystemExit) as stop:
        parse(stage, ["--help", "--recipe", recipe, *model])
    assert stop.value.code == 0
    text = "".join(capsys.readouterr().out.split())             # lines may break anywhere
    for name, (value, source) in flags.defaults(cls, recipe).items():
        default = " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in (
            value if isinstance(value, tuple) else (value,)))
        assert f"--{name.rstrip('_')}" in text
        if value is not False and value not in ("", ()) and "MISSING" not in default:
            assert f"(default {default}; {source})".replace(" ", "") in text, name
        elif name != "name":
            assert f"({source})".replace(" ", "") in text, name


@pytest.mark.parametrize("model", ["model_cse", "model_agnostic"])
def test_help_lists_a_models_own_flags_first_and_the_others_by_what_they_are_for(capsys, model):
    with pytest.raises(SystemExit):
        parse(Train, ["--help", "--model", model])
    text = capsys.readouterr().out.split("options:")[1]
    places = [text.index(words) for words in (
        f"\nof --model {model}:\n", "\n  --cc_init ", "\n  --cl_init ", "\ndata:\n", "\n  --train_list ",
        "\nnetwork:\n", "\n  --backbone ", "\noptimisation:\n", "\n  --lr ", "\nrun:\n", "\n  --device ")]
    assert places == sorted(places)


def test_every_heading_of_the_help_names_flags_that_exist():
    known = {f.name for cls in (*STAGES, config.Report, *SETTINGS.values()) for f in fields(cls)}
    named = [name for names in config.Common.headings.values() for name in names]
    assert set(named) <= known and len(set(named)) == len(named)


def test_a_models_flags_are_its_own(capsys):
    assert {f.name for f in fields(CSE)} - {f.name for f in fields(Train)} == {
        "cc_init", "cc_slope", "mask_norm", "sampling", "cl_init"}
    assert {f.name for f in fields(OC)} == {f.name for f in fields(Train)}
    said = refused(capsys, Train, [*NAME, "--model", "model_oc", "--cc_init=1"])
    assert re.search("--cc_init is a flag of --model .*model_cse.*, not of model_oc", said)
    assert "cc_init" not in flags.content(parse(Train, [*NAME, "--model", "model_oc"]))
    with pytest.raises(SystemExit):
        parse(Train, ["--help"])
    assert "--cc_init" in capsys.readouterr().out               # the default model's
    with pytest.raises(SystemExit):
        parse(Train, ["--help", "--model", "model_oc"])
    assert "--cc_init" not in capsys.readouterr().out


# The authors' scripts shared one parser; which script has a flag here, and what each of the three is given in vain.
@pytest.mark.parametrize(("cls", "words", "of"), [
    (Train, "--vis --dict --crf --alphas 6", {"infer.py": "--vis, --dict, --crf, --alphas"}),
    (Train, "--alphas=6 --load_epo 14 --infer_list val --task cam --dict_dir dict --gt_dir G --list train",
     {"infer.py": "--alphas, --load_epo", "evaluation.py": "--task, --dict_dir"}),
    (Infer, "--batch_size 8 --lr .01 --wt_dec 0", {"train.py": "--batch_size, --lr, --wt_dec"}),
    (Infer, "--resize 256 448 --crop 384 --max_epochs 15 --train_list train_aug --val_list val --print_freq 1 "
     "--vis_freq -1 --er_init imagenet --cl_init cam --cc_init .3 --cc_slope .05 --list train",
     {"train.py": "--resize, --crop", "evaluation.py": "--list"}),
    (Evaluate, "--model model_cse --alphas 6 10 24 --lr .01 --vis",
     {"infer.py": "--model, --alphas, --vis", "train.py": "--lr"}),
])
def test_the_authors_flags_that_another_script_has_now_are_ignored_in_one_line(capsys, cls, words, of):
    settings = parse(cls, [*NAME, *words.split()])
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1 and not printed.err and all(
        word in printed.out for script, names in of.items() for word in (script, *names.split(", ")))
    usual = parse(cls, NAME)
    assert flags.as_json(settings) == flags.as_json(usual) and not capsys.readouterr().out


@pytest.mark.parametrize(("cls", "words", "says"), [
    (Evaluate, "--infer_list val", "--list val"), (Evaluate, "--infer_list=val --dict_dir dict", "--list val"),
    (Infer, "--list val --dict", "--infer_list val")])
def test_a_list_under_another_scripts_flag_is_refused(capsys, cls, words, says):
    """Ignored, the numbers would be of another list than was asked for."""
    assert refused(capsys, cls, [*NAME, *words.split()]).rstrip().endswith(says)
    assert parse(cls, [*NAME, *words.split(), *says.split()])       # one line of flags for all scripts names both


@pytest.mark.parametrize(("cls", "words", "says"), [
    (Train, "--max_epoch 3", "did you mean --max_epochs?"), (InferSeg, "--infer_lst=val", "did you mean --infer_list?"),
    (Infer, "--images holidays", "--images is a flag of infer_seg.py and report.py"),
    (InferAff, "--alphas 6", "--alphas is a flag of infer.py")])
def test_an_unknown_flag_is_explained(capsys, cls, words, says):
    assert says in refused(capsys, cls, [*NAME, *words.split()])


@pytest.mark.parametrize(("cls", "words"), [
    (Train, ["--vis_all"]), (Train, ["--alpha", "6"]), (Infer, ["--momentum", "0"]), (TrainAff, ["--vis"]),
    (InferAff, ["--batch_size", "8"]), (Evaluate, ["--dup", "4"])])
def test_flags_that_no_script_of_the_authors_had_are_refused(capsys, cls, words):
    assert f"unrecognized arguments: {' '.join(words)}" in refused(capsys, cls, [*NAME, *words])


def test_what_is_ignored_is_said_by_one_of_several_processes(capsys, monkeypatch):
    for rank, said in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        parse(Train, [*NAME, "--vis"])
        assert ("infer.py" in capsys.readouterr().out) == said


def test_what_changes_no_number_may_change_in_a_run_that_goes_on():
    a = parse(Train, [*NAME, "--device", "cpu", "--num_workers", "0", "--save_minutes", "1", "--data_root", "A"])
    b = parse(Train, ["--name", "Y", "--device", "auto", "--num_workers", "1", "--overwrite",
                             "--print_freq", "3"])
    assert flags.content(a) == flags.content(b)
    c = parse(Train, [*NAME, "--lr", "0.02"])
    assert {k for k, v in flags.content(c).items() if v != flags.content(a)[k]} == {"lr"}
    assert flags.as_json(a)["resize"] == [256, 448] and flags.as_json(a)["device"] == "cpu"


# ---- errors ----

@pytest.mark.parametrize(("error", "said"), [
    (ValueError("the remedy is\nin the second line"), "error: the remedy is\nin the second line"),
    (FileNotFoundError("no folder X"), "error: no folder X"),
    (ValueError("Caught ValueError in DataLoader worker process 0.\nTraceback ...\nValueError: no picture a.jpg"),
     "error: ValueError: no picture a.jpg"),
    (KeyboardInterrupt(), "stopped: run the same command to resume"),
    (MemoryError(), f"error: the memory is full: {remedies.LESS_FOR_TRAINING} (MemoryError)"),
])
def test_errors_are_told_without_a_traceback(error, said):
    def main():
        raise error
    with pytest.raises(SystemExit) as stop:
        flags.run(main)
    assert stop.value.code == said


def test_other_errors_and_asked_ones_keep_their_traceback(monkeypatch):
    def main(error):
        raise error
    with pytest.raises(TypeError):
        flags.run(lambda: main(TypeError("a slip in the code")))
    monkeypatch.setattr("sys.argv", ["train.py", "--traceback"])
    with pytest.raises(ValueError):
        flags.run(lambda: main(ValueError("no picture")))
