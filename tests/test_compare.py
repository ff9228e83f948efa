"""report.py --compare: the same images under several experiments, and what was measured in each, in the order given."""
import shlex
import shutil

import config

import numpy as np
import pytest

from data.layout import VOCLayout
from tests import chromium
from tests.stages import call, parse, refusal
from tests.test_report import CLASSES, data_in, make_experiment, notes
from tools.activation import FIGURES
from tools.files import read_json, write_json
from tools.maps import read_cam, save_cam
from tools.provenance import digest

DATA = ("--data_root", "data")
FLAGS = {"lr": 0.01, "batch_size": 8, "cc_slope": 0.05, "num_workers": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Give a folder with data/ and three experiments: X, Y with weaker CAMs, and N-ordinary-s4242, a classifier's."""
    home = make_experiment(tmp_path_factory.mktemp("made"), count=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        x, y, oc = (home / "experiment" / name for name in ("X", "Y", "N-ordinary-s4242"))
        for folder in ("dict", "dict_model_oc"):
            record = read_json(x / folder / "made_by.json")
            write_json(x / folder / "made_by.json", record | {"settings": {"classes": CLASSES, "scales": [1.0]}})
        for folder in ("crf/04", "rw/04_24"):
            record = read_json(x / folder / "made_by.json")
            write_json(x / folder / "made_by.json", record | {"inputs": {"dict": digest(x / "dict")}})
        shutil.copytree(x, y)
        for path in (y / "dict").glob("*.npz"):
            classes, scores = read_cam(path)
            save_cam(path, classes, scores[:, ::-1])
        write_json(y / "dict/made_by.json", {"stage": "infer model_cse", "settings": {
            "classes": CLASSES, "scales": [1.0, 1.5]}})
        shutil.copytree(x / "dict_model_oc", oc / "dict_model_oc")
        for path, flags in ((x, {}), (y, {"lr": 0.02, "seed": 7, "num_workers": 8})):
            write_json(path / "config/train_model_cse.json", {"settings": {"seed": 4242} | FLAGS | flags, "when": "",
                                                              "command": "train.py"})
        write_json(oc / "config/train_model_oc.json", {"settings": {"seed": 4242, "lr": 0.01}, "when": "",
                                                       "command": "train.py"})
        for name, task, folder in (("X", "cam", "dict"), ("Y", "cam", "dict"), ("X", "crf", "crf/04"),
                                   ("X", "png", "rw/04_24"), ("N-ordinary-s4242", "cam", "dict_model_oc")):
            call("evaluation", *DATA, "--name", name, "--task", task, "--dict_dir", folder, "--threshold", "0.5")
    return home


@pytest.fixture
def own(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(*words, page="experiment/X/compare.html"):
    call("report", *DATA, "--compare", *words)
    return data_in(page)


@pytest.mark.slow
def test_the_same_images_in_columns_as_given(own):
    names = ["Y", "X", "N-ordinary-s4242", "X/rw/04_24"]
    data = compare(*names, page="experiment/Y/compare.html")
    assert [c["stage"] for c in data["columns"]] == [c["stage"] for c in data["compared"]] == names
    folders = [c["folder"] for c in data["columns"]]
    assert folders == ["Y/dict", "X/dict", "N-ordinary-s4242/dict_model_oc", "X/rw/04_24"]
    assert [c["before"] for c in data["columns"]] == [None, *["Y/dict"] * 3]            # gains are over the first
    assert [c["threshold"] for c in data["columns"]] == [.5, .5, .5, None] and not data["notes"]
    assert [row["id"] for row in data["rows"]] == VOCLayout("data").ids("train")
    call("report", *DATA, "--name", "X")
    for row, alone in zip(data["rows"], data_in("experiment/X/report.html")["rows"]):
        assert row["truth"] == alone["truth"]
        for folder in ("dict", "rw/04_24"):
            link = {"file": f"../X/{alone['stages'][folder]['file']}"}          # the page is in Y
            assert row["stages"][f"X/{folder}"] == alone["stages"][folder] | link
        assert row["stages"]["Y/dict"]["miou"] != row["stages"]["X/dict"]["miou"]


def test_what_was_measured_and_how_each_was_trained(own):
    data = compare("X", "Y", "N-ordinary-s4242")
    for name, entry in zip(("X", "Y", "N-ordinary-s4242"), data["evals"]):
        found = read_json(f"experiment/{name}/eval/cam_{entry['folder'].split('/')[1]}_train.json")
        assert (entry["miou"], entry["fixed_miou"], entry["threshold"]) == tuple(
            found[key] for key in ("miou", "fixed_miou", "threshold"))
        assert entry["activation"] == {key: found["activation"][key] for key in ("threshold", *FIGURES)}
    shown = [{key: entry[key] for key in ("title", "model", "seed", "flags", "maps")} for entry in data["compared"]]
    # equal flags, those that change no number and those that no other has are not shown
    assert shown == [
        {"title": "CGNet, CAM", "model": "CGNet", "seed": 4242, "flags": ["--lr 0.01"], "maps": "scales 1"},
        {"title": "CGNet, CAM", "model": "CGNet", "seed": 7, "flags": ["--lr 0.02"], "maps": "scales 1 1.5"},
        {"title": "ordinary classifier, CAM", "model": "ordinary classifier", "seed": 4242, "flags": ["--lr 0.01"],
         "maps": "scales 1"}]
    assert [run["stage"] for run in data["runs"]] == [
        "X: train_model_cse", "Y: train_model_cse", "N-ordinary-s4242: train_model_oc"]


def test_rows_are_spread_over_the_list_and_the_page_goes_where_it_is_asked(own):
    data = compare("experiment/X/crf/4", "Y", "--images", 2, "--out", "pages/two.html", page="pages/two.html")
    assert [row["id"] for row in data["rows"]] == [VOCLayout("data").ids("train")[i] for i in (0, 2)]
    assert [c["folder"] for c in data["columns"]] == ["X/crf/04", "Y/dict"]
    assert not (own / "experiment/X/compare.html").exists()


def test_what_is_stale_or_not_there_is_left_out_with_a_note(own):
    shutil.rmtree(own / "experiment/N-ordinary-s4242/dict_model_oc")
    write_json(own / "experiment/X/dict/made_by.json", {"stage": "infer model_cse", "settings": {
        "data": {"classes.txt": "0"}}})
    (own / "experiment/Y/eval/cam_dict_train.json").unlink()
    next((own / "experiment/Y/dict").glob("*.npz")).unlink()
    data = compare("X", "Y", "N-ordinary-s4242")
    assert [c["stage"] for c in data["columns"]] == ["Y"] and len(data["compared"]) == 3
    said = notes(data)
    assert "X: CGNet, CAM is left out: experiment/X/dict is stale: " in said and "classes.txt" in said
    assert ("N-ordinary-s4242: no dict_model_oc/ | python infer.py --name N-ordinary-s4242 --model model_oc --dict"
            in said)
    assert "Y: dict/ is not evaluated on train | python evaluation.py --name Y --task cam --dict_dir dict" in said
    assert "Y: dict/ holds the maps of 3 of the 4" in said and "python infer.py --name Y" in said


def test_without_ground_truth_the_maps_are_shown(own):
    shutil.rmtree(own / "data/SegmentationClass")
    data = compare("X", "Y")
    assert "No ground truth in data/SegmentationClass" in notes(data) and "not evaluated" not in notes(data)
    assert all(stage["labels"] and "miou" not in stage for row in data["rows"] for stage in row["stages"].values())


def test_maps_of_other_classes_are_refused(own):
    write_json(own / "experiment/Y/dict/made_by.json", {"stage": "infer model_cse", "settings": {
        "classes": ["car", "bus", "van", "tram"]}})
    said = refusal("report", *DATA, "--compare", "X", "Y")
    assert "experiment/Y/dict" in said and "(4: car, bus, van and 1 more)" in said and "(3: cat" in said
    assert "--data_root" in said


def test_a_missing_experiment_is_named_with_its_command(own):
    said = refusal("report", *DATA, "--compare", "X", "Z", "N-mask_batch-s7")
    first, row, there = said.splitlines()
    assert "no experiment experiment/Z. " in first and "experiment holds N-ordinary-s4242, X, Y" in there
    settings = parse(config.Train, shlex.split(first.partition("train.py")[2]))
    assert (settings.name, settings.data_root) == ("Z", "data")
    settings = parse(config.Reproduce, shlex.split(row.partition("reproduce.py")[2]))
    assert (settings.name, settings.table, settings.seed, settings.train_list) == ("N", "ablation_cse", 7, "train")


@pytest.mark.parametrize("words, said", [
    (["--compare", "../X"], "'../X' names no experiment"), (["--compare", "X/../Y"], "names no experiment"),
    (["--compare", "X", "--name", "Y"], "--name cannot stand beside --compare"),
    (["--compare", "X", "--dirs", "seg"], "--dirs cannot stand beside --compare"),
    ([], "which experiment? --name X")])
def test_what_cannot_be_compared(own, words, said):
    assert said in refusal("report", *DATA, *words)


def test_an_experiment_of_several_models_is_to_be_named_with_its_folder(own):
    (own / "experiment/N-ordinary-s4242/dict_aeft_gpp").mkdir()
    (own / "experiment/N-ordinary-s4242/config/train_model_oc.json").unlink()
    assert "--compare N-ordinary-s4242/dict_" in refusal("report", *DATA, "--compare", "N-ordinary-s4242")


def test_in_the_browser(own, tmp_path_factory):
    """One table with a row an experiment, and rows of images that can be sorted by how far the columns differ."""
    if not chromium.find():
        pytest.skip(f"none of {', '.join(chromium.NAMES)} is installed")
    data = compare("X", "Y", "X/seg")
    with chromium.Chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(own / "experiment/X/compare.html", fragment="#sort=spread")
        assert browser.ask("document.documentElement.dataset.drawn") == "yes" and not browser.complaints
        rows = browser.ask("[...document.querySelector('tbody').rows].map(r => [...r.cells].map(c => c.textContent))")
        found = read_json("experiment/Y/eval/cam_dict_train.json")
        assert [row[0].split("CGNet")[0] for row in rows[:2]] == ["X", "Y"] and rows[1][2] == "7"
        assert [float(cell) for cell in rows[1][5:]] == pytest.approx(
            [found["activation"][name] for name in FIGURES], abs=.06)

        def difference(row):
            return np.ptp([stage["miou"] for stage in row["stages"].values()])
        assert browser.ask("[...document.querySelectorAll('.row')].map(row => row.dataset.id)") == [
            row["id"] for row in sorted(data["rows"], key=difference, reverse=True)]
        browser.open(own / "experiment/X/compare.html", width=900)
        browser.ask("document.querySelector('tbody th').textContent = 'a long name of an experiment'.repeat(2)")
        browser.ask("document.querySelectorAll('.flag').forEach(flag => { flag.textContent = '--max_epochs 8'; })")
        lines = browser.ask("[...document.querySelectorAll('.flag')].map(flag => flag.getBoundingClientRect().height / "
                            "parseFloat(getComputedStyle(flag).fontSize))")
        assert len(lines) > 1 and max(lines) < 2, "a flag is on one line"
