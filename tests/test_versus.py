"""benchmarks/versus.py: what a line prints, also of one that a revision cannot do, and that nothing is left."""
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import versus

ROOT = Path(__file__).resolve().parent.parent


def found(seconds, gib):
    return {"seconds": seconds, "kib": gib * 2**20}


def test_a_line_prints_medians_and_how_much_faster_this_revision_is(capsys):
    versus.print_line("help", [found(2, 3), found(40, 3), found(3, 1)], [found(2, 1), found(1, 2), found(9, 2)])
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.endswith(" 3.00 s 2.00 s 1.50 2.00 3.00 GiB 2.00 GiB")


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_line_that_a_revision_lacks_is_left_out(lacking, capsys):
    versus.measure(lambda data: SimpleNamespace().no_such_name, None)
    results = [[found(1, 1)], [found(1, 1)]]
    results[lacking] = [json.loads(capsys.readouterr().out)]
    versus.print_line("walk", *results)
    said = capsys.readouterr().out
    assert "no_such_name" in said and ("that", "this")[lacking] in said and "GiB" not in said


def test_what_is_measured_is_the_call_alone_with_its_children(capsys):
    def prepare(data):
        sum(range(3_000_000))
        return versus.partial(versus.program, "-c", "sum(range(3_000_000))")

    versus.measure(prepare, None)
    alone = json.loads(capsys.readouterr().out)["seconds"]
    versus.measure(lambda data: lambda: None, None)
    assert alone > 0.02 > json.loads(capsys.readouterr().out)["seconds"]


@pytest.mark.slow
def test_the_cheapest_line_against_the_revision_itself(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, clone], check=True)
    shutil.copy(versus.__file__, clone / "benchmarks")          # as it is now, committed or not
    command = [sys.executable, "-m", "benchmarks.versus", "--revision", "HEAD", "--lines", "help", "--repeats", "1"]
    printed = subprocess.run(command, cwd=clone, check=True, capture_output=True, text=True).stdout
    before, _, now, _, ratio, *_ = printed.splitlines()[2].split("--help")[1].split()
    assert float(before) > 0 and float(now) > 0 and 0.2 < float(ratio) < 5
    trees = subprocess.run(["git", "worktree", "list"], cwd=clone, capture_output=True, text=True).stdout
    assert len(trees.splitlines()) == 1


def test_a_revision_that_git_does_not_know(tmp_path, capfd):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    with pytest.raises(SystemExit, match="--revision 74e460b"), versus.checked_out(tmp_path, "74e460b", tmp_path):
        pass
