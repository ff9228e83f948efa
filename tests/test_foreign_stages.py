"""The stages on maps that other projects wrote, and on maps of the wrong kind, as a person runs them."""
import os
import shlex
import shutil

import numpy as np
import pytest
import torch

from data.layout import VOCLayout
from tests.stages import DEMO, assert_says, call, cut, files, refusal
from tests.test_foreign_maps import save_npy
from tools.files import read_json
from tools.maps import read_cam, read_crf, save_cam

AFF = (*DEMO, "--low", 2, "--high", 24)


@pytest.fixture
def cams(place):
    """Give {ID: (classes, scores)} of our own CAMs."""
    return {path.stem: read_cam(path) for path in sorted((place / "experiment/X/dict").glob("train_*.npz"))}


def write_irn(folder, cams):
    folder.mkdir()
    for image_id, (classes, scores) in cams.items():
        save_npy(folder / image_id, {"keys": torch.tensor(classes - 1), "cam": torch.tensor(scores[:, ::4, ::4]),
                                     "high_res": scores})


def write_puzzle(folder, cams):
    folder.mkdir()
    for image_id, (classes, scores) in cams.items():
        save_npy(folder / image_id, {"keys": np.pad(classes, (1, 0)), "cam": torch.tensor(scores[:, ::4, ::4]),
                                     "hr_cam": scores})


def write_seam(folder, cams):
    folder.mkdir()
    for image_id, (classes, scores) in cams.items():
        save_npy(folder / image_id, {int(c) - 1: score for c, score in zip(classes, scores)})


def miou(place, task, folder, *words):
    call("evaluation", *DEMO, "--task", task, "--dict_dir", folder, *words)
    return read_json(place / f"experiment/X/eval/{task}_{str(folder).replace('/', '_')}_train.json")["miou"]


@pytest.mark.parametrize("write", [write_irn, write_puzzle, write_seam])
def test_cams_of_others_are_scored_as_ours(place, cams, write):
    write(place / "theirs", cams)
    before = files(place / "theirs")
    assert miou(place, "cam", "theirs") == miou(place, "cam", "dict")
    assert_says(refusal("evaluation", *DEMO, "--task", "crf", "--dict_dir", "theirs"), "theirs/train_0000.npy",
                "no CRF maps", "--task cam")
    cut(place / "theirs/train_0003.npy")
    message = refusal("evaluation", *DEMO, "--dict_dir", "theirs")
    assert_says(message, "theirs/train_0003.npy cannot be read", "another folder")
    (place / "theirs/train_0003.npy").unlink()
    others = refusal("evaluation", *DEMO, "--dict_dir", "theirs")
    assert_says(others, "1 of the 12 images", "train_0003", "No stage wrote that folder")
    assert "delete" not in message + others and "infer.py" not in message + others
    assert files(place / "theirs").items() <= before.items()


def test_crf_maps_of_others_cams(place, cams):
    """Also without weights, in an experiment that does not exist yet, from a folder anywhere. Theirs is only read."""
    write_irn(place / "theirs", cams)
    shutil.move(place / "experiment/X/ckpt", place / "away")
    before = files(place / "theirs")
    line = (*DEMO, "--crf", "--alphas", 2)
    for name, theirs, crf in (("N", "theirs", "crf"), ("X", place / "theirs", "crf_theirs")):
        call("infer", *line, "--dict_dir", theirs, "--crf_dir", crf, "--name", name)
        folder = place / "experiment" / name / crf / "02"
        for image_id in cams:
            ours, found = (read_crf(f / f"{image_id}.npz") for f in (place / "experiment/X/crf/02", folder))
            assert ours[0].tolist() == found[0].tolist()
            np.testing.assert_array_equal(ours[1], found[1])
    assert not (place / "experiment/N/dict").exists() and not (place / "experiment/N/theirs").exists()
    there = files(place / "experiment")
    call("infer", *line, "--dict_dir", "theirs", "--crf_dir", "crf", "--name", "N")
    assert files(place / "experiment") == there
    assert files(place / "theirs") == before
    assert_says(refusal("infer", *line, "--dict", "--dict_dir", place / "theirs"), "theirs", "without --dict",
                "another folder")
    (place / "theirs/train_0005.npy").unlink()
    message = refusal("infer", *line, "--dict_dir", "theirs", "--name", "N")
    assert_says(message, "1 of the 12", "no CAMs in theirs", "train_0005", "No stage")
    assert "delete" not in message


def test_others_cams_in_a_folder_of_the_experiment(place, cams):
    write_seam(place / "experiment/X/theirs", cams)
    call("infer", *DEMO, "--crf", "--vis", "--alphas", 2, "--dict_dir", "theirs", "--crf_dir", "new", "--vis_dir",
         "seen", "--only", "train_0001")
    ours, found = (read_crf(place / f"experiment/X/{name}/02/train_0001.npz") for name in ("crf", "new"))
    np.testing.assert_array_equal(ours[1], found[1])
    assert len(list((place / "experiment/X/seen").glob("train_0001_cam_*.png"))) == len(found[0]) - 1
    save_npy(place / "experiment/X/theirs/train_0002", {0: np.full((64, 64), 17, np.float32)})
    message = refusal("infer", *DEMO, "--crf", "--alphas", 2, "--dict_dir", "theirs", "--crf_dir", "new")
    assert_says(message, "theirs/train_0002.npy holds scores outside 0 .. 1", "17")
    assert "delete" not in message


def test_photos_without_labels_take_others_cams(place, cams):
    """The classes are those of the CAMs."""
    data = place / "data/critters"
    shared = data.resolve()
    data.unlink()
    shutil.copytree(shared, data)
    (data / "labels.json").unlink()
    write_irn(place / "theirs", cams)
    call("infer", *DEMO, "--crf", "--alphas", 2, "--dict_dir", "theirs", "--name", "N", "--only", "train_0001")
    assert (place / "experiment/N/crf/02/train_0001.npz").exists()


def test_crf_maps_are_not_taken_for_cams(place, cams):
    """Ours, of a dict's format, on images without the last class; with the record and without."""
    layout = VOCLayout(place / "data/critters")
    ids = [i for i in cams if not layout.label(i)[-1]]
    (place / "some.txt").write_text("\n".join(ids))
    call("infer", *DEMO, "--crf", "--format", "npy", "--alphas", 2, "--dict_dir", "cams", "--crf_dir", "maps",
         "--infer_list", "some.txt")
    shutil.copytree(place / "experiment/X/maps/02", place / "copy")
    (place / "copy/made_by.json").unlink()
    for folder, words in (("maps/02", ("maps/02 holds CRF maps", "made_by.json")), ("maps/2.0", ("maps/02 holds",)),
                          ("copy", ("copy holds maps of the background", "CRF maps"))):
        assert_says(refusal("evaluation", *DEMO, "--dict_dir", folder, "--list", "some.txt"), *words, "--task crf")
        assert_says(refusal("infer", *DEMO, "--crf", "--alphas", 2, "--crf_dir", "new", "--dict_dir", folder,
                            "--infer_list", "some.txt"), *words)
    assert_says(refusal("infer_aff", *AFF, "--dict_dir", "maps/02", "--infer_list", "some.txt"), "holds CRF maps")
    for folder in ("maps/02", "copy"):
        call("evaluation", *DEMO, "--task", "crf", "--dict_dir", folder, "--list", "some.txt")


def test_cams_are_not_taken_for_crf_maps(place, cams):
    """SEAM's dicts of images that all have class 0, whose key is that of the background in CRF maps."""
    write_seam(place / "theirs", {i: (np.array([1]), scores[:1]) for i, (_, scores) in cams.items()})
    assert_says(refusal("evaluation", *DEMO, "--task", "crf", "--dict_dir", "theirs"), "theirs/train_0000.npy",
                "do not sum to 1", "--task cam")
    assert_says(refusal("evaluation", *DEMO, "--task", "png", "--dict_dir", "dict"), "dict holds CAMs", "--task cam")
    assert_says(refusal("evaluation", *DEMO, "--task", "png", "--dict_dir", "theirs"), "theirs holds no label maps",
                ".npy", "--task cam")
    for label_dir in ("dict", "crf/2", "theirs"):
        assert_says(refusal("train_seg", *DEMO, "--label_dir", label_dir), label_dir.split("/")[0], "label maps", ".py")
    truth = place / "data/critters/SegmentationClass"
    assert_says(refusal("evaluation", *DEMO, "--dict_dir", truth), "SegmentationClass holds no CAMs", "--task png")
    for alpha in ("02", "24"):
        shutil.copytree(place / "theirs", place / f"pair/{alpha}")
    line = ("--batch_size", 4, "--init", "random", "--norm", "train", "--max_epochs", 1)
    assert_says(refusal("train_aff", *AFF, *line, "--crf_dir", "pair"), "pair/02/train_00", "no CRF maps")
    shutil.copytree(place / "experiment/X/dict", place / "ours/02")
    shutil.copytree(place / "experiment/X/crf/24", place / "ours/24")
    assert_says(refusal("train_aff", *AFF, "--crf_dir", "ours"), "ours/02 holds CAMs", "--task cam")


def test_the_folder_above_or_below(place):
    """The folder of all alphas where one alpha's is meant, and the other way round."""
    for words in (("--task", "crf", "--dict_dir", "crf"), ("--task", "cam", "--dict_dir", "crf/")):
        message = refusal("evaluation", *DEMO, *words)
        assert_says(message, "X/crf holds no C", "folders of alphas", "X/crf/02 or experiment/X/crf/24")
        assert "python" not in message
    assert_says(refusal("infer_aff", *AFF, "--dict_dir", "crf"), "X/crf holds no CAMs", "X/crf/02")
    assert_says(refusal("train_aff", *AFF, "--crf_dir", "crf/02"), "--crf_dir crf/02", "the one above: crf")
    assert_says(refusal("train_aff", *AFF, "--crf_dir", "dict"), "--crf_dir dict holds maps itself",
                "python infer.py --name X --model model_cse --crf --alphas 2 24 --dict_dir dict --infer_list train_aug "
                "--recipe demo")
    (place / "experiment/X/rw").mkdir()
    shutil.copytree(place / "data/critters/SegmentationClass", place / "experiment/X/rw/02_24")
    for stage, words in (("train_seg", ("--label_dir", "rw")), ("evaluation", ("--task", "png", "--dict_dir", "rw"))):
        assert_says(refusal(stage, *DEMO, *words), "X/rw holds no label maps", "X/rw/02_24")
    call("evaluation", *DEMO, "--task", "png", "--dict_dir", "rw/2_24")


@pytest.mark.parametrize("form", ["dict", "keys"])
def test_keys_that_count_from_1(place, cams, form):
    """The images' labels show it; of other classes than the labels a sentence says so."""
    for name, shift in (("theirs", 0), ("others", 2)):
        (place / name).mkdir()
        for image_id, (classes, scores) in cams.items():
            ids = [(int(c) + shift) % 6 if shift else int(c) for c in classes]
            save_npy(place / name / image_id, {"keys": np.array(ids), "high_res": scores} if form == "keys" else
                     dict(zip(ids, scores)))
    for stage, words in (("evaluation", DEMO), ("infer", (*DEMO, "--crf", "--alphas", 2)), ("infer_aff", (
            *AFF, "--infer_list", "train"))):
        message = refusal(stage, *words, "--dict_dir", "theirs", "--name", "N")
        assert_says(message, "theirs counts its classes from 1", "one lower")
        assert "delete" not in message
    assert "others: of 12 images looked at, " in call("evaluation", *DEMO, "--dict_dir", "others")


@pytest.mark.parametrize("form", ["dict", "keys"])
def test_maps_of_the_background_among_cams(place, cams, form):
    """Their scores do not sum to 1, so they are no CRF maps either: each task's message leads to what can be done."""
    (place / "theirs").mkdir()
    for image_id, (classes, scores) in cams.items():
        ids, maps = [0, *map(int, classes)], np.concatenate([np.full_like(scores[:1], 0.3), scores])
        save_npy(place / "theirs" / image_id, {"keys": np.array(ids), "cam": maps} if form == "keys" else
                 dict(zip(ids, maps)))
    for stage, words in (("evaluation", DEMO), ("infer", (*DEMO, "--crf", "--alphas", 2)), ("infer_aff", (
            *AFF, "--infer_list", "train"))):
        message = refusal(stage, *words, "--dict_dir", "theirs", "--name", "N")
        assert_says(message, "theirs holds maps of the background", "no CAMs", "without the key 0")
        assert "delete" not in message
    assert_says(refusal("evaluation", *DEMO, "--task", "crf", "--dict_dir", "theirs"), "do not sum to 1", "--task cam")


def test_irns_form_of_crf_maps(place, cams):
    """keys 0 and 1..C: scored as ours with --task crf, to which --task cam leads."""
    (place / "theirs").mkdir()
    for image_id in cams:
        ids, maps = read_crf(place / f"experiment/X/crf/02/{image_id}.npz")
        save_npy(place / "theirs" / image_id, {"keys": ids, "high_res": maps})
    assert miou(place, "crf", "theirs") == miou(place, "crf", "crf/02")
    message = refusal("evaluation", *DEMO, "--dict_dir", "theirs")
    assert_says(message, "theirs holds maps of the background", "--task crf")


@pytest.mark.parametrize("form", ["dict", "keys"])
@pytest.mark.parametrize("most", [5, 6])
def test_a_softmax_over_all_classes_is_no_crf_map(place, cams, form, most):
    """With the background and without."""
    ids = list(range(most + 1))
    for alpha in ("02", "24"):
        (place / "theirs" / alpha).mkdir(parents=True)
        for image_id, (_, scores) in cams.items():
            maps = np.random.default_rng(0).dirichlet([1] * len(ids), scores.shape[1:]).transpose(2, 0, 1)
            save_npy(place / "theirs" / alpha / image_id, {"keys": np.array(ids), "high_res": maps} if form == "keys"
                     else dict(zip(ids, maps)))
    for stage, words in (("evaluation", (*DEMO, "--task", "crf", "--dict_dir", "theirs/02")), ("train_aff", (
            *AFF, "--crf_dir", "theirs", "--train_list", "train"))):
        said = refusal(stage, *words)
        assert_says(said, f"theirs/02 holds the maps 0..{most} in each of the 12 images", "--task png")


def test_crf_maps_of_other_classes_than_the_labels_are_counted(place, cams):
    for alpha in ("02", "24"):
        (place / "theirs" / alpha).mkdir(parents=True)
        for image_id in cams:
            ids, maps = read_crf(place / f"experiment/X/crf/{alpha}/{image_id}.npz")
            save_npy(place / "theirs" / alpha / image_id, dict(zip([0, *(k % 6 + 1 for k in ids[1:].tolist())], maps)))
    said = "of 12 images looked at, "
    assert said in call("evaluation", *DEMO, "--task", "crf", "--dict_dir", "theirs/02")
    printed = call("train_aff", *AFF, "--crf_dir", "theirs", "--batch_size", 4, "--init", "random", "--norm", "train",
                   "--max_epochs", 1, "--train_list", "train", "--name", "N")
    assert all(f"warning: theirs/{alpha}: {said}" in printed for alpha in ("02", "24"))
    assert said not in call("evaluation", *DEMO, "--task", "crf", "--dict_dir", "crf/02")


def test_scores_outside_0_to_1(place, cams):
    write_irn(place / "theirs", {i: (classes, 17 * scores) for i, (classes, scores) in cams.items()})
    save_cam(place / "experiment/X/dict/train_0004.npz", *[cams["train_0004"][0], 2 + cams["train_0004"][1]])
    assert_says(refusal("evaluation", *DEMO, "--dict_dir", "theirs"), "theirs/train_00", "outside 0 .. 1", "divide")
    assert_says(refusal("evaluation", *DEMO), "dict/train_0004.npz holds scores outside 0 .. 1", "delete it",
                "python infer.py --name X --model model_cse --dict --infer_list train --recipe demo")


@pytest.mark.parametrize("low, high", [("2", "24"), ("2.0", "24.0"), ("002", "24.")])
def test_crf_folders_by_other_names(place, low, high):
    """Scored under any of their names, as one row; AffinityNet finds both."""
    folder = place / "experiment/X/crf"
    expected = miou(place, "crf", "crf/02")
    (place / "experiment/X/eval/crf_crf_02_train.json").unlink()
    (folder / "02").rename(folder / low)
    (folder / "24").rename(folder / high)
    for asked in ("crf/02", "crf/2", "crf/2.0/"):
        assert f"crf/{low} on train" in call("evaluation", *DEMO, "--task", "crf", "--dict_dir", asked)
    found = [path.name for path in (place / "experiment/X/eval").glob("crf_*.json")]
    assert found == [f"crf_crf_{low}_train.json"]
    assert read_json(place / "experiment/X/eval" / found[0])["miou"] == expected
    assert_says(refusal("train_aff", *AFF, "--crop", 100), "take a multiple of 8")      # which it says after that
    folder.joinpath(low).rename(folder.parent / f"out_crf_{low}")
    folder.joinpath(high).rename(folder.parent / f"out_crf_{high}")
    assert_says(refusal("train_aff", *AFF, "--crop", 100, "--crf_dir", "out_crf"), "take a multiple of 8")
    (folder.parent / f"out_crf_{low}/made_by.json").unlink()
    (folder.parent / f"out_crf_{low}/train_0003.npz").unlink()
    message = refusal("train_aff", *AFF, "--crf_dir", "out_crf")
    assert_says(message, f"out_crf_{low}", "train_0003", "No stage wrote that folder")
    assert "infer.py" not in message


# ---- theirs change, or are of another size ----

def touch_again(path):
    """Write a file again, as another program's second run does: the same size, another time."""
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))


def test_others_cams_that_change_are_named(place, cams):
    """CRF maps and walked label maps remember which files they were made from; a copy of all is no change."""
    write_seam(place / "theirs", cams)
    crf = ("infer", *DEMO, "--crf", "--alphas", 2, "--dict_dir", "theirs", "--crf_dir", "new")
    call(*crf)
    before = files(place / "experiment/X/new")
    for path in (place / "theirs").iterdir():
        touch_again(path)
    call(*crf)
    assert files(place / "experiment/X/new") == before
    touch_again(place / "theirs/train_0003.npy")
    assert_says(refusal(*crf), "new/02 is stale", "1 image (train_0003) changed in theirs", "--overwrite")
    call(*crf, "--overwrite")
    after = files(place / "experiment/X/new")
    assert [name for name in before if before[name] != after[name]] == ["02/train_0003.npz"]
    call(*crf)


def test_what_was_made_of_others_cams_that_change_is_stale(place, cams):
    """To whoever reads it, with the command that makes these maps again; the folder of the CAMs may be gone."""
    write_seam(place / "theirs", cams)
    call("infer", *DEMO, "--crf", "--alphas", 2, 24, "--dict_dir", "theirs", "--crf_dir", "new")
    score = ("evaluation", *DEMO, "--task", "crf", "--dict_dir", "new/02")
    call(*score)
    touch_again(place / "theirs/train_0003.npy")
    for folder, (stage, *words) in {"new/02": score, "new/24": ("train_aff", *AFF, "--crf_dir", "new", "--train_list",
                                                                "train")}.items():
        said = refusal(stage, *words)
        assert_says(said, f"{folder} is stale", "map of 1 image (train_0003)", "/theirs --overwrite")
        call("infer", *shlex.split(said.rpartition("infer.py ")[2]))
    call(*score)
    shutil.move(place / "theirs", place / "away")
    call(*score)


def test_others_crf_maps_that_change_are_named(place):
    """By the training that learns from them."""
    for alpha in ("02", "24"):
        shutil.copytree(place / f"experiment/X/crf/{alpha}", place / f"theirs/{alpha}")
        (place / f"theirs/{alpha}/made_by.json").unlink()
    line = ("train_aff", *AFF, "--crf_dir", "theirs", "--batch_size", 4, "--init", "random", "--norm", "train",
            "--max_epochs", 1, "--train_list", "train", "--name", "NEW")
    call(*line)
    touch_again(place / "theirs/24/train_0003.npz")
    said = refusal(*line)
    assert_says(said, "1 image (train_0003) changed in theirs/02 and theirs/24", "--init NEW/aff_02_24",
                "--crf_dir theirs", "--name NEW_2")
    call("train_aff", *shlex.split(said.rpartition("train_aff.py ")[2]))
    assert (place / "experiment/NEW_2/ckpt/aff_02_24/000.pth").exists()


def test_crf_maps_made_of_others_cams_that_change_are_named_by_the_training(place, cams):
    """The record of the CRF maps knows no content of the CAMs; the training looks at the CRF maps themselves."""
    write_seam(place / "theirs", cams)
    crf = ("infer", *DEMO, "--crf", "--alphas", 2, 24, "--dict_dir", "theirs", "--crf_dir", "new")
    aff = ("train_aff", *AFF, "--crf_dir", "new", "--batch_size", 4, "--init", "random", "--norm", "train",
           "--max_epochs", 1, "--train_list", "train", "--name", "X")
    shutil.rmtree(place / "experiment/X/ckpt/aff_02_24", ignore_errors=True)
    call(*crf)
    call(*aff)
    assert "nothing to do" in call(*aff)
    save_npy(place / "theirs/train_0003", {int(c) - 1: s / 2 for c, s in zip(*cams["train_0003"])})
    call(*crf, "--overwrite")
    assert_says(refusal(*aff), "map of 1 image (train_0003)", "new/02")


def test_label_maps_and_folders_of_alphas_are_no_cams(place):
    (place / "experiment/X/walked").mkdir()
    shutil.copy(place / "data/critters/SegmentationClass/train_0000.png", place / "experiment/X/walked")
    for folder, words in (("walked", ".png"), ("crf", "folders of alphas")):
        assert_says(refusal("infer", *DEMO, "--crf", "--alphas", 2, "--dict_dir", folder, "--crf_dir", "new"), folder,
                    "holds no CAMs", words)


def test_maps_of_another_experiment_are_compared_with_what_lies_there(place, cams):
    """Not with files of the same names in this experiment; and they are only read."""
    shutil.copytree(place / "experiment/X", place / "experiment/Y")
    for name in ("last.pth", "001.pth"):
        (place / f"experiment/Y/ckpt/model_cse/{name}").write_bytes(b"others")
    theirs = place / "experiment/X/dict"
    before = files(theirs)
    call("evaluation", *DEMO, "--name", "Y", "--dict_dir", theirs)
    call("infer", *DEMO, "--name", "Y", "--crf", "--alphas", 2, "--dict_dir", theirs, "--crf_dir", "new")
    assert files(theirs) == before
    (place / "experiment/X/ckpt/model_cse/001.pth").write_bytes(b"trained again")
    assert_says(refusal("evaluation", *DEMO, "--name", "Y", "--dict_dir", theirs), "X/dict is stale",
                "X/ckpt/model_cse/001.pth has changed")


def test_maps_at_a_quarter_of_the_size_are_told_what_is_needed(place, cams):
    (place / "theirs").mkdir()
    for image_id, (classes, scores) in cams.items():
        save_npy(place / "theirs" / image_id, {"keys": classes - 1, "cam": scores[:, ::4, ::4]})
    said = refusal("infer", *DEMO, "--crf", "--alphas", 2, "--dict_dir", "theirs", "--crf_dir", "new")
    assert_says(said, "(16, 16)", "(64, 64)", "high_res", "theirs/train_00")
    assert "delete" not in said
