"""benchmarks/versus.py: what a line prints, and what of a line that a revision does not have."""
import json
from types import SimpleNamespace

import pytest

from benchmarks import versus


def found(seconds, gib):
    return {"seconds": seconds, "kib": gib * 2**20}


def test_a_line_prints_medians_and_how_much_faster_this_revision_is(capsys):
    versus.print_line("help", [found(2, 3), found(40, 3), found(3, 1)], [found(2, 1), found(1, 2), found(9, 2)])
    assert capsys.readouterr().out.split()[-9:] == ["3.00", "s", "2.00", "s", "1.50", "3.00", "GiB", "2.00", "GiB"]


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
