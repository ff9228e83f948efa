"""reproduce.py on photos with labels alone: no ground truth, few of them, flags for the trainings."""
import importlib
import itertools
import json
import shlex
import shutil
from types import SimpleNamespace

import config

import pytest

from data.layout import VOCLayout
from tests.stages import ALPHAS, CROP, DEMO, assert_says, call, commands_of, own_data, parse, refusal
from tools import engine, flags


@pytest.fixture
def photos(tmp_path, monkeypatch, finished):
    """Give data/m, ten photos with labels and nothing else, as a person brings them."""
    root = tmp_path / "data/m"
    shutil.copytree(finished / "data/critters/JPEGImages", root / "JPEGImages")
    for name in ("classes.txt", "labels.json"):
        shutil.copy(finished / f"data/critters/{name}", root)
    write_list(root, "train", [f"train_{i:04d}" for i in range(10)])
    monkeypatch.chdir(tmp_path)
    return root


def write_list(root, name, ids):
    (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(ids) + "\n")


OWN = ("--recipe", "demo", "--name", "m", "--data_root", "data/m", "--train_list", "train", "--num_workers", 0)


def planned(*words):
    """Return the commands that reproduce.py would run, and what it prints."""
    text = call("reproduce", *OWN, "--dry_run", *words)
    return commands_of(text), text


def lists_of(lines):
    """Return {title of a command: its lists}."""
    return [(line[0], word) for line in lines for flag, word in zip(line, line[1:]) if flag.endswith("list")]


# ---- no ground truth ----

def test_in_a_changed_copy_of_the_embedded_set_nothing_is_drawn(photos, finished):
    """Without its masks it is photos with labels; data.prepare critters would refuse it, and ask to delete it."""
    shutil.rmtree(photos)
    shutil.copytree(finished / "data/critters", photos)
    shutil.rmtree(photos / "SegmentationClass")
    assert "data.prepare" not in [word for line in planned()[0] for word in line]


def test_the_whole_chain_without_ground_truth_on_fewer_photos_than_a_batch(photos, monkeypatch):
    for model in ("model_oc", "model_cse"):
        monkeypatch.setitem(importlib.import_module(f"models.{model}").RECIPES["demo"], "max_epochs", (1, "a test"))
    for stage in ("TrainAff", "TrainSeg"):
        monkeypatch.setitem(config.RECIPES["demo"][stage], "max_epochs", (1, "a test"))
    ran = []

    def run(words, message=None):
        ran.append(words[0])
        print(call(words[0].removesuffix(".py"), *words[1:]))
        return 0

    monkeypatch.setattr("reproduce.run_stage", run)
    line = ("reproduce", *OWN, "--", "--crop", 72, "--resize", 56, 80)
    text = call(*line)
    assert ran == ["train.py", "infer.py", "train.py", "infer.py", "train_aff.py", "infer_aff.py", "train_seg.py",
                   "infer_seg.py", "report.py"]
    assert "Estimated time on 10 images" in text
    assert text.count("--batch_size 16 becomes 10: train has 10 images") == 2          # both classifiers; the others: 8
    assert text.count("data/m/SegmentationClass") >= 2 and "not measured" in text and "Nothing was measured" in text
    folder = photos.parents[1] / "experiment/m"
    assert not (folder / "results.json").exists() and not (folder / "eval").exists()
    for name in ("dict", "crf/06", "rw", "seg", "seg_vis", "infer"):
        assert any((folder / name).rglob("train_0000*")), name
    page = (folder / "report.html").read_text("utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    shown = [column["folder"].split("/")[0] for column in data["columns"]]
    assert shown == ["dict_model_oc", "dict", "crf", "rw", "seg"]
    assert len(data["rows"]) == 10 and all(len(row["stages"]) == 5 for row in data["rows"])
    said, = [note["what"] for note in data["notes"]]
    assert "No ground truth in data/m/SegmentationClass" in said
    stored = json.loads((folder / "config/train_model_cse.json").read_text())["settings"]
    assert stored["batch_size"] == 10
    monkeypatch.setattr("reproduce.print_estimate", lambda *_: None)        # it measures: once is enough
    again = call(*line)
    assert again.count("nothing to do") == 4


def test_what_is_measured_is_what_has_ground_truth(photos, finished):
    """All of train, none of val, part of it, a list without a val: each said, and the chain is otherwise the same."""
    without, text = planned()
    assert not [line for line in without if line[0] == "evaluation.py"] and "train: none of its 10 images" in text
    assert ("infer_seg.py", "val") not in lists_of(without)
    masks = photos / "SegmentationClass"
    shutil.copytree(finished / "data/critters/SegmentationClass", masks)
    whole, text = planned()
    assert len([line for line in whole if line[0] == "evaluation.py"]) == len(ALPHAS) + 4 and "not measured" not in text
    assert [line for line in whole if line[0] != "evaluation.py"] == without
    write_list(photos, "val", ["val_0000", "val_0001"])
    assert {("infer_seg.py", "val"), ("evaluation.py", "val")} < set(lists_of(planned()[0]))
    for path in masks.glob("val_*"):
        path.unlink()
    lines, text = planned()
    assert ("infer_seg.py", "val") in lists_of(lines) and ("evaluation.py", "val") not in lists_of(lines)
    assert ("evaluation.py", "train") in lists_of(lines) and "val: none of its 2 images" in text
    (masks / "train_0003.png").unlink()
    lines, text = planned()
    assert not [line for line in lines if line[0] == "evaluation.py"] and "train: 9 of its 10 images" in text


def test_the_list_that_is_measured_was_trained_on(photos, finished):
    shutil.copytree(finished / "data/critters/SegmentationClass", photos / "SegmentationClass")
    write_list(photos, "some", ["train_0001", "train_0002"])
    found = set(lists_of(planned("--train_list", "some")[0]))
    assert {word for _, word in found} == {"some"}, found       # of train only two have maps
    (photos / "ImageSets/Segmentation/train.txt").unlink()
    assert {word for _, word in lists_of(planned("--train_list", "some")[0])} == {"some"}
    report = [line for line in planned("--train_list", "some")[0] if line[0] == "train.py"]
    assert all(line[line.index("--val_list") + 1] == "some" for line in report)
    write_list(photos, "train", ["train_0001"])
    assert ("evaluation.py", "train") in lists_of(planned("--train_list", "some")[0])


def test_a_stage_that_is_killed_could_not_say_why(photos, monkeypatch):
    monkeypatch.setattr("reproduce.print_estimate", lambda *_: None)
    monkeypatch.setattr("reproduce.run_stage", lambda *words: -9)
    assert_says(refusal("reproduce", *OWN, "--from", "deeplab"), "was killed", "memory",
                "--num_workers", "same command")
    monkeypatch.setattr("reproduce.run_stage", lambda *words: 1)
    assert_says(refusal("reproduce", *OWN, "--from", "report"), "report.py stopped")


def test_a_list_that_is_missing_is_named_by_the_first_stage(photos):
    lines, _ = planned("--train_list", "nope")
    assert lines[0][:1] == ["train.py"] and "nope" in lines[0]
    assert_says(refusal("train", *OWN, "--train_list", "nope", "--model", "model_oc"), "no list nope")


# ---- flags for the trainings ----

def test_flags_after_two_dashes_reach_the_trainings_that_have_them(photos):
    plain, _ = planned()
    lines, _ = planned("--", "--batch_size", 4, "--resize", 100, 120, "--cc_init=0.2", "--label_dir", "rw/x",
                       "--checkpoint_blocks")
    assert [line[0] for line, before in zip(lines, plain, strict=True) if line != before] == [
        "train.py", "train.py", "train_aff.py", "train_seg.py"]
    oc, cse, aff, seg = [line for line in lines if line[0].startswith("train")]
    for line in (oc, cse, aff, seg):
        assert line[line.index("--batch_size") + 1] == "4" and "--checkpoint_blocks" in line
    assert oc[oc.index("--resize"):][:3] == ["--resize", "100", "120"] == cse[cse.index("--resize"):][:3]
    assert "--resize" not in aff + seg and "--cc_init=0.2" in cse and "--cc_init=0.2" not in oc + aff + seg
    # What a person hands on wins over what the chain names itself: it comes later.
    assert "rw/x" not in oc + cse + aff and len(seg) - seg[::-1].index("--label_dir") == seg.index("rw/x")


@pytest.mark.parametrize("words, says", [
    (["--scales", 1], ["--scales", "no training stage"]), (["--batchsize", 4], ["--batchsize", "--help"]),
    (["--name", "Y"], ["--name", "before the --"]), (["--model=model_oc"], ["--model", "before the --"]),
    (["4"], ["'4'", "-- --batch_size 4"])])
def test_flags_that_no_training_has(photos, words, says):
    assert_says(refusal("reproduce", *OWN, "--dry_run", "--", *words), *says)


def test_a_training_flag_in_the_wrong_place_is_told_the_right_one(capsys):
    with pytest.raises(SystemExit):
        flags.parse(config.Reproduce, ["--batch_size", "4"])
    assert "unrecognized arguments: --batch_size 4" in (said := capsys.readouterr().err) and "-- --batch_size 4" in said


def test_nothing_after_two_dashes_is_nothing(photos):
    assert planned("--") == planned()
    assert flags.split_words(["--name", "X"]) == (["--name", "X"], [])
    assert flags.split_words(["--", "--a", "--"]) == ([], ["--a", "--"])


# ---- fewer photos than a batch ----

@pytest.mark.parametrize("images, batch, parts, world, left", [
    (10, 16, 1, 1, 10), (16, 16, 1, 1, 16), (17, 16, 1, 1, 16), (1, 8, 1, 1, 1), (10, 16, 4, 1, 8), (10, 12, 2, 3, 6)])
def test_the_batch_shrinks_to_what_there_is(monkeypatch, capsys, images, batch, parts, world, left):
    monkeypatch.setattr("tools.distributed.world", lambda: world)
    settings = SimpleNamespace(batch_size=batch, accumulate=parts, train_list="train", least_steps=0, max_epochs=1)
    engine.fit_to(settings, images)
    said = capsys.readouterr().out
    assert settings.batch_size == left and (f"--batch_size {batch} becomes {left}" in said) == (left != batch)


@pytest.mark.parametrize("images, words, epochs", [
    (48, (), 17), (7, (), 100), (800, (), 3), (48, ("--max_epochs", 2), 2), (48, ("--least_steps", 0), 3),
    (48, ("--batch_size", 4), 9), (48, ("--least_steps", 24), 4)])
def test_few_photos_make_more_epochs(capsys, images, words, epochs):
    """AffinityNet of recipe lite has 3, and 100 steps at least; what a person asks for stays."""
    settings = parse(config.TrainAff, ["--name", "X", "--recipe", "lite", *map(str, words)])
    engine.fit_to(settings, images)
    assert settings.max_epochs == epochs
    asked = settings.max_epochs in (2, 3)
    assert (f"--max_epochs 3 becomes {epochs}" in capsys.readouterr().out) == (not asked)


def test_no_other_recipe_adds_epochs():
    for recipe, cls in itertools.product(("voc", "coco", "demo"), (config.Train, config.TrainAff, config.TrainSeg)):
        settings = parse(cls, ["--name", "X", "--recipe", recipe])
        before = settings.max_epochs
        engine.fit_to(settings, 8)
        assert settings.max_epochs == before


def test_too_few_photos_for_the_processes(monkeypatch):
    monkeypatch.setattr("tools.distributed.world", lambda: 4)
    with pytest.raises(ValueError, match="3 images, .* 4 processes with --accumulate 1"):
        engine.fit_to(SimpleNamespace(batch_size=8, accumulate=1, train_list="train"), 3)


def test_one_photo_is_enough_to_train(place):
    """Each training; the batch that it shrank to is part of the record, so the same command resumes."""
    folder = own_data(place)
    write_list(folder, "one", ["train_0000"])
    line = ("train", *DEMO, "--name", "O", "--model", "model_oc", "--train_list", "one", "--max_epochs", 1,
            "--val_every", 0, *CROP)
    assert "--batch_size 16 becomes 1" in call(*line)
    assert "nothing to do" in call(*line)
    assert VOCLayout(folder).ids("one") == ["train_0000"]


# ---- the commands that errors name ----

def named(message):
    """Return the command that a message names: script, words."""
    line = message[message.index("python ") + len("python "):].split(". ")[0].strip()
    return line.split()[0], shlex.split(line)[1:]


def test_the_commands_in_errors_can_be_run_where_there_is_no_train_aug(place):
    """From the last stage back to the first, each error names a command that comes as far as the next error."""
    folder = own_data(place)
    (folder / "ImageSets/Segmentation/train_aug.txt").unlink()
    script, words = "train_seg.py", ["--recipe", "demo", "--name", "N", "--train_list", "train", "--label_dir",
                                     "rw/04_24", "--num_workers", "0"]
    seen = []
    while script != "train.py" or "model_oc" not in words:
        script, words = named(refusal(script.removesuffix(".py"), *words))
        seen.append(script)
        assert "train_aug" not in words and words[words.index("--recipe") + 1] == "demo"
    assert seen == ["infer_aff.py", "infer.py", "train.py", "train.py"]
    assert words[words.index("--train_list") + 1] == "train"
    # So does a stage whose own list is another one: the pair of lists is the dataset's.
    for stage, more in (("infer", ["--dict"]), ("infer_seg", []), ("infer_aff", ["--infer_list", "train"])):
        script, words = named(refusal(stage, "--recipe", "demo", "--name", "N", *more))
        assert "train_aug" not in words and "train" in words, (stage, words)


def test_where_train_aug_is_there_the_commands_are_the_short_ones(place):
    script, words = named(refusal("infer", *DEMO[:2], "--name", "N", "--dict"))
    assert script == "train.py" and "--train_list" not in words
    script, words = named(refusal("train_seg", *DEMO, "--name", "X", "--train_list", "train", "--label_dir", "rw/9_10"))
    assert words[words.index("--infer_list") + 1] == "train"
