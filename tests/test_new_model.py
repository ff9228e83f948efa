"""A method is two files and a name: one is added to a copy of the tree, and every stage of it works."""
import json
import re
import shutil

import pytest

from tests.conftest import ROOT
from tests.stages import small_critters
from tests.zygote import Zygote

# What a method may have besides what the example of the README shows.
MORE = '''
from data.loader import Plan

RECIPES["demo"] |= {"val_every": (0, "short"), "lr": (0.05, "from scratch"), "max_epochs": (16, "a dozen images")}


def plan(settings, images):
    """Batches of 4 in the first epoch, of 6 in the others."""
    return Plan(images, [4] + [6] * (settings.max_epochs - 1), settings.seed)


def schedule_steps(settings, images):
    return images // 4 * settings.max_epochs


def figures(settings, experiment, objective, layout, step, batch):
    if step == 0:
        experiment.log("quiet", f"a batch of {len(batch['image'])}")
'''

# reproduce.py of the copied tree with all stages in its own process, and the last two trainings short.
CHAIN = """
import config
import reproduce
from tests.stages import call
from tools import flags


def run_stage(words, message=None):
    print(call(words[0].removesuffix(".py"), *words[1:]))
    return 0


for stage in "TrainAff", "TrainSeg":
    config.RECIPES["demo"][stage] |= {"max_epochs": (1, "short"), "batch_size": (4, "short")}
reproduce.run_stage, reproduce.print_estimate = run_stage, lambda *_: None
flags.run(reproduce.main)
"""


def example(path):
    """Return what the README shows of a file."""
    page = (ROOT / "README.md").read_text("utf-8")
    return re.search(rf"```python\n# {path}\n(.*?)```", page, re.S)[1]


def test_the_example_is_short():
    lines = [line for path in ("methods/quiet.py", "models/quiet.py") for line in example(path).splitlines() if line]
    assert len(lines) < 30


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Give a function that runs a stage of the copied tree: exit code, output. The chain of the new model is complete.

    Its dataset is a folder of one's own, 12 images and 4, under another name than the embedded one.
    """
    place = tmp_path_factory.mktemp("new_model")
    tree = place / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "tests", "experiment", "data/critters", "docs"))
    (tree / "methods/quiet.py").write_text(example("methods/quiet.py"))
    (tree / "models/quiet.py").write_text(example("models/quiet.py") + MORE)
    package = tree / "models/__init__.py"
    text = package.read_text()
    changed = text.replace("model_cse, model_oc\n", "model_cse, model_oc, quiet\n").replace(
        "MODELS = {", 'MODELS = {"quiet": quiet, ')
    assert changed.count("quiet") == 3
    package.write_text(changed)

    for name in "__init__", "stages", "zygote":
        (tree / "tests").mkdir(exist_ok=True)
        shutil.copy(ROOT / f"tests/{name}.py", tree / "tests")
    (place / "chain.py").write_text(CHAIN)
    small_critters(place / "data/mine", 12, 4)
    shutil.rmtree(place / "data/mine/Heads")         # with them the dataset would be generated again

    with Zygote(tmp_path_factory.mktemp("zygote"), tree) as zygote:
        def stage(name, *words):
            done = zygote.run(name, "--recipe", "demo", "--name", "Y", "--data_root", "data/mine", "--num_workers", 0,
                              *words, cwd=place, timeout=600)
            return done.rc, done.output

        code, stage.said = stage(place / "chain", "--model", "quiet")
        assert code == 0, stage.said
        stage.home = place / "experiment/Y"
        yield stage


@pytest.mark.slow
def test_a_method_is_two_files_and_a_line(run):
    """train.py trains it: its own batches, schedule, flags and figures; other models may start from it."""
    line = "train", "--model", "quiet"
    rows = [json.loads(row) for row in (run.home / "log/train_quiet.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and rows[0]["loss_quiet"] > 0
    # 3 steps of the first epoch and 2 of each other, on a schedule of 48.
    assert [row["lr"] for row in rows] == pytest.approx([0.05 * (1 - step / 48) ** 0.9 for step in range(3, 34, 2)])
    assert "a batch of 4" in (run.home / "log.txt").read_text()
    assert "complete, 16 epochs; nothing to do" in run(*line)[1]
    assert "--quiet is a flag of --model quiet, not of model_oc" in run("train", "--model", "model_oc", "--quiet", 1)[1]
    code, text = run("train", "--model", "model_cse", "--max_epochs", 1, "--batch_size", 4, "--cl_init", "Y/quiet",
                     "--er_init", "Y/quiet")
    assert code == 0, text


@pytest.mark.slow
def test_the_chain_takes_a_new_model(run):
    """reproduce.py --model: its CAMs become the pseudo labels, and the report knows its folders and its title."""
    home = run.home
    assert len(list((home / "dict_quiet").glob("*.npz"))) == 12 and list((home / "infer_quiet").glob("*.png"))
    assert json.loads((home / "eval/cam_dict_quiet_train.json").read_text())["images"] == 12
    rows = {row["stage"]: row for row in json.loads((home / "results.json").read_text())["rows"]}
    alphas = ("4", "6", "10", "24")
    assert list(rows) == ["quiet classifier, CAM", *(f"quiet classifier, CAM + CRF, alpha {a}" for a in alphas),
                          "quiet classifier, random walk", "DeepLab", "DeepLab on its own images"]
    assert rows["quiet classifier, CAM"]["init"] == "random" and rows["DeepLab"]["init"] == "Y/quiet"
    assert {row["backbone"] for row in rows.values()} == {"resnet38d, width 0.125, blocks 1 1 1 1 1 0, stride 8"}
    assert not (home / "ckpt/model_oc").exists() and "missing" not in run.said.splitlines()[-1]

    page = (home / "report.html").read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert [column["folder"].split("/")[0] for column in data["columns"]] == ["dict_quiet", "crf_quiet", "rw", "seg"]
    assert data["columns"][0]["stage"] == "quiet classifier, CAM" and data["notes"] == []
    assert data["columns"][2]["stage"].startswith("quiet classifier, random walk")
    assert [log["name"] for log in data["logs"]] == ["quiet classifier", "AffinityNet, alphas 4 and 24", "DeepLab"]
    (home / "crf_quiet/24").rename(home / "lost")
    code, text = run("train_aff", "--crf_dir", "crf_quiet", "--overwrite")
    assert "To make it, run: python infer.py --name Y --model quiet --crf --alphas 24 --infer_list train_aug" in text
