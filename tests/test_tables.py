"""reproduce.py --table: rows of flags, trained once a seed, measured alike; what fails is shown with its reason."""
import json
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import pipeline
import reproduce
import results
import tables
from models import MODELS
from tests.stages import ALPHAS, DEMO, assert_says, call, files, parse, refusal, small_critters
from tests.zygote import PATIENCE
from tools import flags
from tools.activation import FIGURES
from tools.files import write_json

SMALL = {
    "ordinary": tables.Row("ordinary classifier", "model_oc"),
    "cse": tables.Row("class-specific erasing", "model_cse", ("--sampling", "largest")),
    "again": tables.Row("the same training", "model_cse", ("--sampling", "largest")),
    "diverges": tables.Row("a rate that is too high", "aeft_gpp", ("--lr", "1e30", "--T", "1")),
    "gpp": tables.Row("pooling alone", "aeft_gpp", ("--lr", "0.01"), "--T"),
}
LINE = (*DEMO, "--train_list", "train", "--table", "small")
SHORT = ("--", "--batch_size", 3, "--max_epochs", 2, "--crop", 64, "--resize", 64, 80)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Give a place where the table `small` is run on six small images, its stages in this process; and the list of the
    stages' commands."""
    monkeypatch.chdir(tmp_path)
    small_critters(tmp_path / "data/critters", 6, 2)
    shutil.rmtree(tmp_path / "data/critters/Heads")         # with them the dataset would be generated again
    commands = []

    def run_stage(command, message):
        commands.append(command)
        with monkeypatch.context() as patch:
            patch.setenv(flags.MESSAGE_FILE, str(message))
            try:
                call(command[0].removesuffix(".py"), *command[1:])
            except SystemExit as left:
                return left.code or 0
        return 0

    monkeypatch.setattr(tables, "TABLES", {"small": SMALL})
    monkeypatch.setattr(reproduce, "run_stage", run_stage)
    return tmp_path, commands


@pytest.mark.slow
def test_a_table(small):
    place, commands = small
    text = call("reproduce", *LINE, *SHORT)
    table = json.loads((place / "experiment/X/table_small.json").read_text())
    rows = {row["variant"]: row["seeds"][0] for row in table["rows"]}
    assert list(rows) == list(SMALL)
    assert "not finite" in rows["diverges"]["failed"] and "failed: " + rows["diverges"]["failed"] in text
    for variant in ("ordinary", "cse", "gpp"):
        row = rows[variant]
        assert row["experiment"] == f"X-{variant}-s4242" and (place / "experiment" / row["experiment"]).is_dir()
        assert 0 < row["fixed"] <= row["cam"] < 100 and 0 < row["crf"] < 100
        assert all(row[figure] is not None for figure in FIGURES)
    trained = [command for command in commands if command[0] == "train.py"]
    assert len(trained) == 4 and rows["again"] == rows["cse"]
    assert ": class-specific erasing; the same training" in text
    measured = [word for command in commands for word in command if command[0] == "evaluation.py" and "-cse-" in word]
    assert len(measured) == 1 + len(ALPHAS)     # its CAMs and CRF maps once, not once a row
    compared, = [line.split("--compare ")[1].split(" --")[0] for line in text.splitlines() if "--compare" in line]
    assert len(set(compared.split())) == len(compared.split()) == 3
    # The CGNet starts from the table's own classifier, and pooling alone knows no triplet.
    assert [word for word in trained[1] if word == "X-ordinary-s4242/model_oc"] == ["X-ordinary-s4242/model_oc"] * 2
    assert trained[3][trained[3].index("--T") + 1] == str(flags.defaults(MODELS["aeft_gpp"].Settings, "demo")[
        "max_epochs"][0])
    assert "--vis" not in [word for command in commands for word in command]

    changing = "log.txt", "config/", ".lock/", "made_by.images", "diverges", "reproduce.json", "table_small"
    before = files("experiment", changing)
    again = call("reproduce", *LINE, *SHORT)
    after = files("experiment", changing)
    assert {k: v[1] for k, v in after.items()} == {k: v[1] for k, v in before.items()}
    assert again.splitlines()[-10:] == text.splitlines()[-10:]


@pytest.mark.slow
def test_a_table_resumes_in_the_middle(small, monkeypatch):
    place, commands = small
    monkeypatch.setitem(tables.TABLES, "small", {variant: SMALL[variant] for variant in ("ordinary", "cse")})
    whole = reproduce.run_stage
    monkeypatch.setattr(reproduce, "run_stage", lambda *words: whole(*words) if len(commands) < 7 else
                        reproduce.interrupt.leave())
    with pytest.raises(SystemExit):
        call("reproduce", *LINE, *SHORT)
    monkeypatch.setattr(reproduce, "run_stage", whole)
    ordinary = place / "experiment/X-ordinary-s4242/ckpt/model_oc/001.pth"
    before = ordinary.stat().st_mtime_ns
    assert "class-specific erasing" in call("reproduce", *LINE, *SHORT)
    assert ordinary.stat().st_mtime_ns == before


def test_a_dry_run_says_why_no_row_can_be_measured(small):
    place, commands = small
    shutil.rmtree(place / "data/critters/SegmentationClass")
    assert_says(refusal("reproduce", *LINE, "--dry_run"), "data/critters/SegmentationClass", "--measured")
    assert not commands


# ---- several rows at once ----

CHAINS = {name: (1, [SimpleNamespace(flags=words)]) for name, words in {
    "X-ordinary-s1": ("--crop", "64"), "X-cse-s1": ("--cl_init", "X-ordinary-s1/model_oc"),
    "X-agnostic-s1": ("--cl_init", "X-ordinary-s1/model_oc"), "X-aeft-s1": ()}.items()}


ONE_FIRST = {name: chain for name, chain in CHAINS.items() if "aeft" not in name}       # the others start from it


@pytest.fixture(autouse=True)
def forget():
    """Leave no request to stop to the tests that follow."""
    yield
    with reproduce.interrupt.remembered():
        pass


def side_by_side(run, chains=CHAINS):
    settings = parse(reproduce.config.Reproduce, ["--name", "X", "--table", "methods", "--at_once", "2"])
    ended = {}
    reproduce.run_side_by_side(settings, reproduce.starts_of(chains), run, ended)
    return ended


def test_rows_run_side_by_side_after_what_they_start_from(capsys):
    """Each pair meets at a barrier: neither would pass it alone."""
    meetings = {name: barrier for names in (("X-ordinary-s1", "X-aeft-s1"), ("X-cse-s1", "X-agnostic-s1"))
                for barrier in [threading.Barrier(2, timeout=PATIENCE)] for name in names}

    def run(name, stage):
        meetings[name].wait()
        return "no memory" if "ordinary" in name else ""

    assert side_by_side(run) == dict.fromkeys(CHAINS, "") | {"X-ordinary-s1": "no memory"}
    lines = capsys.readouterr().out.splitlines()
    assert sum(" begins" in line for line in lines) == 4 and lines[-1].startswith("4 of 4 ")
    assert sum("X-ordinary-s1 failed" in line and "no memory" in line for line in lines) == 1


@pytest.mark.parametrize(("chains", "share_of_the_first"), [(CHAINS, "3"), (ONE_FIRST, "6")])
def test_a_row_prints_to_its_file_with_its_share_of_the_threads(chains, share_of_the_first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setattr(reproduce, "cores", lambda: 6)
    (tmp_path / "tell.py").write_text("import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit('and why')")
    codes = side_by_side(lambda name, stage: [stage(["-m", "tell"], None) for _ in range(2)], chains)
    assert codes == dict.fromkeys(chains, [1, 1])
    for name in chains:
        share = share_of_the_first if "ordinary" in name else "3"
        assert Path(f"experiment/{name}/log/output.txt").read_text().split("\n") == [share, "and why"] * 2 + [""]


def test_a_stage_that_is_asked_to_stop_stops_the_rows_beside_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rest.py").write_text("import time; open('rests', 'w'); time.sleep(600)")
    (tmp_path / "leave.py").write_text(f"import sys; sys.exit({reproduce.STOPPED})")
    begun = []

    def run(name, stage):
        begun.append(name)
        if name == "X-ordinary-s1":
            return stage(["-m", "rest"], None)
        while not Path("rests").exists():
            time.sleep(0.01)
        return stage(["-m", "leave"], None)

    with pytest.raises(SystemExit):
        side_by_side(run)
    assert sorted(begun) == ["X-aeft-s1", "X-ordinary-s1"] and not reproduce.running_stages
    assert capsys.readouterr().out.count("run the same command to resume") == 1


def test_a_row_between_two_stages_begins_no_other_after_a_stop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rest.py").write_text("import time; open('rests', 'w'); time.sleep(5)")
    (tmp_path / "leave.py").write_text(f"import sys; sys.exit({reproduce.STOPPED})")
    ended = threading.Event()
    monkeypatch.setattr(reproduce, "end_stages", ended.set)

    def run(name, stage):
        if name == "X-ordinary-s1":
            assert ended.wait(PATIENCE)
            return stage(["-m", "rest"], None)
        return stage(["-m", "leave"], None)

    with pytest.raises(SystemExit):
        side_by_side(run)
    assert not Path("rests").exists()


def test_a_signal_while_a_stage_is_being_started_ends_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rest.py").write_text("import time; time.sleep(10); open('rested', 'w')")
    start = subprocess.Popen

    def start_and_ask(*words, **how):
        stage = start(*words, **how)
        signal.raise_signal(signal.SIGTERM)
        return stage

    monkeypatch.setattr(subprocess, "Popen", start_and_ask)
    with pytest.raises(SystemExit):
        reproduce.run_stage(["-m", "rest"])
    assert not Path("rested").exists()


class Ended:
    """Stands in for the process of a stage: one row's is killed, the others' end with 1 and leave no message."""
    def __init__(self, words, **_):
        self.code = -9 if "X-diverges-s4242" in words else 1

    def wait(self):
        return self.code


def test_rows_side_by_side_fail_each_for_itself(small, monkeypatch):
    """One cannot be written, where a stage could not even print; of the others it is said where the reason is."""
    place, _ = small
    (place / "experiment").mkdir()
    (place / "experiment/X-cse-s4242").write_text("no folder")
    monkeypatch.setattr(subprocess, "Popen", Ended)
    monkeypatch.setattr(reproduce, "starts_of", lambda chains: dict.fromkeys(chains, ()))
    call("reproduce", *LINE, "--at_once", 2, *SHORT)
    table = json.loads((place / "experiment/X/table_small.json").read_text())
    failed = {row["variant"]: row["seeds"][0]["failed"] for row in table["rows"]}
    assert failed.keys() == SMALL.keys() and failed["again"] == failed["cse"]
    assert "experiment/X-cse-s4242" in failed["cse"]
    assert "experiment/X-ordinary-s4242/log/output.txt" in failed["ordinary"]
    assert "--at_once 1" in failed["diverges"]


@pytest.mark.parametrize("at_once", [1, 2])
def test_rows_whose_classifier_failed_are_not_run(small, monkeypatch, at_once):
    """Their own error would name a command that trains another classifier."""
    place, _ = small
    run = []
    monkeypatch.setattr(reproduce, "run_stages", lambda settings, name, *_, **__: run.append(name) or fail())
    text = call("reproduce", *LINE, "--at_once", at_once, *SHORT)
    table = json.loads((place / "experiment/X/table_small.json").read_text())
    failed = [row["seeds"][0]["failed"] for row in table["rows"]]
    assert run == ["X-ordinary-s4242"] and failed[0] == "no memory"
    assert len(failed) == len(SMALL) and all("X-ordinary-s4242" in reason and reason in text for reason in failed[1:])


def fail():
    raise ValueError("no memory")


def test_flags_of_a_table_need_one(place):
    for words in (("--at_once", 2), ("--measured", "val")):
        assert_says(refusal("reproduce", *DEMO, *words), words[0], "--table")


def test_seeds_have_a_spread(monkeypatch, capsys):
    entry = {"seed": 1, "experiment": "X", "cam": 40.0, "fixed": 39.0, "crf": None, "trained_seconds": 61,
             **dict.fromkeys(FIGURES, 50.0)}
    other = entry | {"seed": 2, "cam": 44.0}
    settings = parse(reproduce.config.Reproduce, ["--table", "methods", "--seeds", "2"])
    results.show_table(settings, [{"title": "one", "seeds": [entry, other]}, {"title": "two", "seeds": [
        {"seed": 1, "experiment": "Y", "failed": "no memory"}]}, {"title": "three", "seeds": [entry, other]}])
    _, head, one, two, failed, _, shared = capsys.readouterr().out.strip().splitlines()
    assert "42.0 +- 2.8" in one and "39.0 +- 0.0" in one and "1:01 min" in one
    assert one.split()[-1] == "-" and two.split()[1:] == ["-"] * 9
    assert failed.strip() == "seed 1 failed: no memory"
    assert shared.endswith(": one; three")


def test_of_several_crfs_the_best_is_shown(tmp_path):
    stages = []
    for alpha, miou in (("02", 40.0), ("08", 45.0), ("24", 43.0)):
        write_json(tmp_path / f"X/eval/{alpha}.json", {"miou": miou})
        stages.append(SimpleNamespace(task="crf", writes=[f"eval/{alpha}.json"], reads=[f"crf/{alpha}"]))
    row, = results.collect_table(SimpleNamespace(experiment_root=tmp_path), {"cse": SMALL["cse"]},
                                 {("cse", 1): ("X", stages)}, {})
    assert (row["seeds"][0]["crf"], row["seeds"][0]["crf_alpha"]) == (45.0, "08")


@pytest.mark.parametrize("table, variant, recipe, first", [
    ("ablation_cse", "recipe", "demo", "cse"), ("ablation_cse", "ramped", "demo", "cse"),
    ("ablation_cse", "ramped", "lite", "ramped"), ("ablation_cse", "constant", "demo", "constant"),
    ("ablation_erasing", "uniform", "demo", "cse"), ("ablation_triplet", "none", "demo", "2_4_8_16"),
    ("ablation_triplet", "both", "demo", "aeft"), ("ablation_gpp", "ordinary", "demo", "ordinary"),
    ("ablation_cse", "from_classifier", "voc", "from_classifier"), ("ablation_cse", "from_classifier", "demo", "cse")])
def test_rows_that_are_the_same_training_share_it(table, variant, recipe, first):
    assert tables.trained_as(tables.TABLES[table][variant], recipe) == first


@pytest.mark.parametrize("recipe, trained", [("voc", []), ("lite", []), ("demo", ["model_oc"])])
def test_aeft_starts_from_a_classifier_where_there_are_no_weights(recipe, trained):
    assert pipeline.before("aeft_gpp", recipe) == trained
    chain = pipeline.chain(pipeline.values_of("X", recipe, "aeft_gpp"))
    words = [stage.flags for stage in chain if stage.script == "train.py"]
    assert [own[own.index("--model") + 1] for own in words] == [*trained, "aeft_gpp"]
    assert ("X/model_oc" in words[-1]) == bool(trained)


@pytest.mark.parametrize("name", list(tables.TABLES))
def test_every_flag_of_every_table_exists(name):
    for row in tables.rows_of(name).values():
        known = {f"--{field}" for field in MODELS[row.model].Settings.__dataclass_fields__}
        assert {word for word in (*row.flags, row.least_epochs) if word.startswith("--")} <= known


def test_a_table_that_is_not_there(place):
    assert "there are methods, ablation_erasing" in refusal("reproduce", *DEMO, "--table", "all")
