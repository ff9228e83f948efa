"""How long the chain will take: from predictions, corrected by what was measured."""
import importlib
import re

import pytest

from tests.stages import call
from tools.clock import duration, estimate
from tools.files import write_json


def test_without_an_earlier_run_the_prediction_counts():
    assert estimate({"a": 10, "b": 30}, {}) == ({"a": 10, "b": 30}, 40)


def test_completed_stages_count_what_they_took_and_correct_the_others():
    times = {"a": {"seconds": 20, "whole": True}, "b": {"seconds": 5, "whole": False},
             "of another chain": {"seconds": 1e6, "whole": True}}
    assert estimate({"a": 10, "b": 30, "c": 50}, times) == ({"a": 20, "b": 2 * 30, "c": 2 * 50}, 2 * 30 - 5 + 2 * 50)
    assert estimate({"a": 10}, {"a": {"seconds": 7, "whole": True}}) == ({"a": 7}, 0)


def test_one_odd_measurement_does_not_decide():
    assert estimate({"a": 1, "b": 10}, {"a": {"seconds": 1000, "whole": True}})[1] == 40
    assert estimate({"a": 1000, "b": 10}, {"a": {"seconds": 1, "whole": True}})[1] == 2.5


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3:20 min"), (7500, "2:05 h")])
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_estimate(place, monkeypatch):
    """It measures every stage of the recipe and leaves nothing behind."""
    measure, measured = importlib.import_module("estimate").predict, []
    monkeypatch.setattr("estimate.predict", lambda *given: measured.append(
        measured[0] if measured else measure(*given)) or measured[-1])          # for both runs once
    before = sorted(place.rglob("*"))
    text = call("estimate", "--recipe", "demo", "--train_list", "train")
    found = re.search(r"Estimated time on 12 images: (.*) \(measured in \d+ s: (.*)\)", text)
    assert found and "still to come" not in found[1] and "seed" not in found[1]         # nothing done yet, one seed
    assert [part.split()[0] for part in found[2].split(", ")] == ["classifier", "cgnet", "affinity", "walk", "deeplab"]
    assert sorted(place.rglob("*")) == before
    write_json(place / "experiment/demo/log/reproduce.json", {"CGNet": {"seconds": 7200, "whole": True}})
    text = call("estimate", "--recipe", "demo", "--train_list", "train", "--seeds", "2")
    assert re.search(r"images: 2:\d\d h for each seed, .* of it still to come", text)
    assert re.search(r"cgnet 2:\d\d h", text)          # the parts add up to the whole
