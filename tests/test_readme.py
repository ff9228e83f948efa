"""The README is a result: nothing in it is left open, and what it points at is there."""
import re

import pytest

from tests.conftest import ROOT
from tests.stages import parse

PAGES = [ROOT / name for name in ("README.md", "BENCHMARKS.md", "pretrained/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.name)
def test_no_placeholder_and_no_dead_link(page):
    text = page.read_text("utf-8")
    assert not re.search(r"@[A-Z]+@|TODO|TBD", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_flags_of_the_commands_exist():
    """Each command line of the README is read by its stage."""
    import config
    stages = {"train.py": config.Train, "infer.py": config.Infer, "evaluation.py": config.Evaluate,
              "train_aff.py": config.TrainAff, "infer_aff.py": config.InferAff, "train_seg.py": config.TrainSeg,
              "infer_seg.py": config.InferSeg, "report.py": config.Report, "reproduce.py": config.Reproduce}
    lines = re.findall(r"^(?:python|torchrun \S+) (\w+\.py) ([^#\n]*)", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert {stage for stage, _ in lines} == set(stages)
    for stage, words in lines:
        parse(stages[stage], words.split(" -- ")[0].split())        # what follows -- is for the trainings


def test_the_flags_of_data_prepare_exist():
    import argparse

    from data.prepare import COMMANDS
    lines = re.findall(r"^python -m data\.prepare (\w+) ([^#\n]*)", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert {command for command, _ in lines} >= {"voc", "coco", "folder", "check"}
    for command, words in lines:
        parser = argparse.ArgumentParser()
        COMMANDS[command].add_arguments(parser)
        parser.parse_args(words.split())
