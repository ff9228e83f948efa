"""The pages are a result: nothing in them is left open, what they point at is there, and their commands are read."""
import argparse
import importlib.util
import re
import tomllib

import pytest

from tests.conftest import ROOT
from tests.stages import parse

PAGES = [*(ROOT / name for name in ("README.md", "BENCHMARKS.md", "CONTRIBUTING.md", "CHANGELOG.md",
                                    "pretrained/README.md")), *sorted((ROOT / "docs").glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


RUN = r"(?:python |torchrun \S+ (?:-- )?)"
STAGE, MODULE = r"(\w+\.py) ", r"-m ([\w.]+)"


def commands(text, script):
    """Find the commands of a page, in blocks of code and in sentences: [(script, words)], without their comments."""
    found = re.findall(rf"^{RUN}{script}([^#\n]*)", text, re.M) + re.findall(rf"`{RUN}?{script}([^`]*)`", text)
    return [(name, words.split()) for name, words in found if "..." not in words and "--help" not in words]


def slug(heading):
    """Write a heading as its anchor: "MSRC, recipe lite" -> msrc-recipe-lite."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@each_page
def test_no_placeholder_and_no_dead_link(page):
    text = page.read_text("utf-8")
    assert not re.search(r"@[A-Z]+@|TODO|TBD", text)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert "://" in link or target.exists(), link
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)", target.read_text("utf-8"), re.M)), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 1500


def stages():
    import config
    return {"train.py": config.Train, "infer.py": config.Infer, "evaluation.py": config.Evaluate,
            "train_aff.py": config.TrainAff, "infer_aff.py": config.InferAff, "train_seg.py": config.TrainSeg,
            "infer_seg.py": config.InferSeg, "report.py": config.Report, "reproduce.py": config.Reproduce,
            "estimate.py": config.Reproduce}


@each_page
def test_the_flags_of_the_commands_exist(page):
    """Each command line of a page is read by its stage; those of the new model are run in tests/test_new_model.py."""
    for stage, words in commands(page.read_text("utf-8"), STAGE):
        if "quiet" not in words and stage in stages():
            own = words[:words.index("--")] if "--" in words else words       # what follows -- is for the trainings
            parse(stages()[stage], own if "--name" in own else ["--name", "X", *own])


def test_the_readme_shows_every_stage():
    shown = {stage for stage, _ in commands((ROOT / "README.md").read_text("utf-8"), STAGE)}
    assert shown >= {*stages()} - {"estimate.py"}


@each_page
def test_the_modules_and_their_flags_exist(page):
    from data.prepare import COMMANDS
    for module, words in commands(page.read_text("utf-8"), MODULE):
        assert importlib.util.find_spec(module), module
        if module == "data.prepare" and words:
            parser = argparse.ArgumentParser()
            COMMANDS[words[0]].add_arguments(parser)
            parser.parse_args(words[1:])


def test_the_files_page_shows_every_preparation():
    lines = commands((ROOT / "docs/files.md").read_text("utf-8"), MODULE)
    assert {words[0] for module, words in lines if module == "data.prepare"} >= {"voc", "coco", "folder", "check"}


def test_the_version_has_one_place():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1] == version
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
