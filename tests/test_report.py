"""The report: its numbers, what it says of half an experiment, that no name becomes markup; and in a real browser."""
import base64
import io
import json
import re
import shlex
import shutil
from contextlib import chdir
from pathlib import Path
from urllib.parse import unquote, urlsplit

import config

import numpy as np
import pytest
from PIL import Image

from data.images import voc_palette
from data.layout import VOCLayout
from tests import chromium
from tests.stages import call, parse
from tools import catalog
from tools.experiment import Experiment
from tools.files import write_json
from tools.maps import read_cam, read_crf, save_cam, save_crf
from tools.provenance import digest
from tools.report import evenly, gallery_row, page

X = ("--name", "X", "--data_root", "data")
CLASSES = ["cat", "dog", "owl"]
FOLDERS = ["dict_model_oc", "dict", "crf/04", "rw/04_24", "seg"]
PLANTED = ["</script><b>bold</b><script>window.planted = 1</script>", "<img src=x onerror='window.planted = 2'>",
           "\"'&amp; --> <!-- {{ script }} __proto__"]
RESULTS = {"rows": [
    {"variant": "voc", "stage": "ordinary classifier, CAM", "split": "train", "miou": [40.0, 44.0],
     "threshold": [.2, .3], "fixed_miou": [39.0, 43.0], "paper": 48.0,
     "paper_source": "AffinityNet, README and paper, tables of later papers and the authors' own words",
     "seconds": [60.0, 62.0], "command": "python evaluation.py", "backbone": "ResNet38d", "init": "imagenet"}]}


def make_experiment(home, classes=CLASSES, count=8, size=(60, 80)):
    """Draw images with ground truth, and an experiment X with the maps of five stages, its logs and its evaluations."""
    rng = np.random.default_rng(3)
    experiment, data = Experiment(home / "experiment", "X"), home / "data"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (data / folder).mkdir(parents=True)
    ids = [f"bild-{i}.ü" for i in range(count)]
    (data / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids), "utf-8")
    (data / "classes.txt").write_text("\n".join(classes), "utf-8")
    labels = {}
    for place, image_id in enumerate(ids):
        truth = np.zeros(size, np.uint8)
        present = sorted({1 + place % len(classes), 1 + (place * place) % len(classes)})
        for c in present:
            y, x = rng.integers(0, (size[0] // 2, size[1] // 2))
            truth[y:y + size[0] // 2, x:x + size[1] // 2] = c
        present = [c for c in present if (truth == c).any()]
        truth[:3] = 255
        labels[image_id] = [classes[c - 1] for c in present]
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(data / f"JPEGImages/{image_id}.png")
        save_labels(data / f"SegmentationClass/{image_id}.png", truth)
        for folder, noise in (("dict_model_oc", .9), ("dict", .7)):
            scores = [noise * rng.random(size) + (1 - noise) * (truth == c) for c in present]
            save_cam(experiment / f"{folder}/{image_id}.npz", present, scores)
        scores = rng.random((len(present) + 1, *size)) + [truth == c for c in (0, *present)]
        save_crf(experiment / f"crf/04/{image_id}.npz", [0, *present], scores / scores.sum(0))
        for folder in ("rw/04_24", "seg"):
            guess = np.where(rng.random(size) < .2, rng.integers(0, len(classes) + 1, size), truth)
            save_labels(experiment / f"{folder}/{image_id}.png", np.where(guess == 255, 0, guess))
    write_json(data / "labels.json", labels)
    for folder, stage, inputs in (
            ("dict_model_oc", "infer model_oc", []), ("dict", "infer model_cse", []), ("crf/04", "infer crf", ["dict"]),
            ("rw/04_24", "infer_aff", ["ckpt/aff_04_24/007.pth", "dict"]), ("seg", "infer_seg", ["ckpt/seg/018.pth"])):
        write_json(experiment / folder / "made_by.json", {
            "stage": stage, "settings": {"alpha": 4}, "inputs": {name: digest(experiment / name) for name in inputs}})
    for model in ("model_cse", "model_oc"):
        for epoch in range(4):
            experiment.log_epoch(f"train_{model}", {"epoch": epoch, "loss": 1 / (epoch + 1), "p_present": .2 * epoch,
                                                    "lr": .1, "seconds": 2.0, "images_per_second": 9.0})
    experiment.log_epoch("train_aff_04_24", {"epoch": 0, "loss": .5, "affinity_same": .8, "affinity_different": .1})
    experiment.log_epoch("train_seg", {"epoch": 0, "loss": .5, "accuracy": .9})
    write_json(experiment / "results.json", RESULTS)
    with chdir(home):
        for folder in FOLDERS:
            task = {"d": "cam", "c": "crf"}.get(folder[0], "png")
            call("evaluation", *X, "--task", task, "--dict_dir", folder, "--threshold", "0.5")
    return home


def save_labels(path, labels):
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(voc_palette())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Give a folder with data/ and experiment/X, all stages finished, and its report. Write nothing in it."""
    home = make_experiment(tmp_path_factory.mktemp("made"))
    with chdir(home):
        call("report", *X)
    return home


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_experiment(tmp_path_factory.mktemp("small"), count=3)


@pytest.fixture
def own(small, tmp_path, monkeypatch):
    """Give an experiment of one's own, of three images, without a report, and go there."""
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data_of(home):
    return data_in(home / "experiment/X/report.html")


def data_in(path):
    """Read the JSON within a page, as strictly as a browser does."""
    text = Path(path).read_text("utf-8")
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    return json.loads(block, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def report(*words):
    """Run report.py here; returns what the page holds."""
    call("report", *X, *words)
    return data_of(Path())


def notes(data):
    return "\n".join(f"{note['what']} | {note.get('command')}" for note in data["notes"])


# ---- numbers ----

def slow_iou(prediction, truth):
    """IoU of each class that is in an image's ground truth or prediction, pixel by pixel; 255 is left out."""
    hit, either = {}, {}
    for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist()):
        if t != 255:
            hit[t] = hit.get(t, 0) + (p == t)
            for c in {p, t}:
                either[c] = either.get(c, 0) + 1
    return {c: 100 * hit.get(c, 0) / n for c, n in either.items()}


def slow_labels(folder, image_id):
    if (folder / f"{image_id}.png").exists():
        return np.array(Image.open(folder / f"{image_id}.png"))
    if "crf" in str(folder):
        classes, scores = read_crf(folder / f"{image_id}.npz")
        return np.array([[classes[scores[:, y, x].argmax()] for x in range(80)] for y in range(60)])
    classes, scores = read_cam(folder / f"{image_id}.npz")
    best, winner = scores.max(0), classes[scores.argmax(0)]
    return np.array([[winner[y, x] if best[y, x] > .5 else 0 for x in range(80)] for y in range(60)])


@pytest.mark.slow
def test_the_scores_of_the_pictures_equal_slow_ones(made):
    data = data_of(made)
    assert [column["folder"] for column in data["columns"]] == FOLDERS
    assert [row["id"] for row in data["rows"]] == VOCLayout(made / "data").ids("train") and not data["notes"]
    for row in data["rows"]:
        truth = np.array(Image.open(made / f"data/SegmentationClass/{row['id']}.png"))
        assert row["classes"] == [c for c in np.unique(truth) if 0 < c < 255]
        for folder in FOLDERS:
            expected = slow_iou(slow_labels(made / "experiment/X" / folder, row["id"]), truth)
            stage = row["stages"][folder]
            assert {int(c): v for c, v in stage["iou"].items()} == pytest.approx(expected, abs=.006)
            assert stage["miou"] == pytest.approx(np.mean(list(expected.values())), abs=.006)


def test_the_score_of_a_picture_is_that_of_evaluation_on_it_alone(own):
    row = report()["rows"][1]
    (own / "one.txt").write_text(row["id"], "utf-8")
    for task, folder in (("cam", "dict"), ("crf", "crf/04"), ("png", "seg")):
        call("evaluation", *X, "--task", task, "--dict_dir", folder, "--list", "one.txt", "--threshold", .5)
        found = json.loads((own / f"experiment/X/eval/{task}_{folder.replace('/', '_')}_one.txt.json").read_text())
        assert row["stages"][folder]["miou"] == pytest.approx(found.get("fixed", found)["miou_occurring"], abs=.006)
        if task == "cam":
            assert found["fixed_miou"] == pytest.approx(np.mean(list(found["fixed"]["per_class"].values())))
            assert [found["threshold"], found["miou"]] == max(found["curve"], key=lambda point: point[1])
            assert found["fixed_miou"] != found["miou"]


def test_a_cams_threshold_is_the_fixed_one_of_its_evaluation(own):
    assert [c["threshold"] for c in report()["columns"]] == [.5, .5, None, None, None]
    (own / "experiment/X/eval/cam_dict_train.json").unlink()
    data = report()
    assert [c["threshold"] for c in data["columns"][:2]] == [.5, config.Evaluate.threshold]
    assert "dict/ is not evaluated on train" in notes(data)


def test_the_gain_is_over_what_a_stage_was_made_from(made):
    before = {column["folder"]: column["before"] for column in data_of(made)["columns"]}
    assert before == {"dict_model_oc": None, "dict": "dict_model_oc", "crf/04": "dict", "rw/04_24": "dict",
                      "seg": "rw/04_24"}       # the walk spreads CAMs, so its record says, not the CRF's maps


def test_the_numbers_of_the_experiment_are_those_on_disk(made):
    data = data_of(made)
    assert [e["folder"] for e in data["evals"]] == FOLDERS and not any(e["stale"] for e in data["evals"])
    for e in data["evals"]:
        found = json.loads((made / "experiment/X" / e["file"]).read_text("utf-8"))
        assert {k: e[k] for k in ("miou", "threshold", "fixed_miou", "curve", "images", "list")} == {
            k: found[k] for k in ("miou", "threshold", "fixed_miou", "curve", "images", "list")}
        assert {name: iou for name, iou, *_ in e["best"]} == found["per_class"]
        assert [recall for *_, recall in e["best"]] == list(found["recall"].values())
        assert bool(e["fixed"]) == (e["task"] == "cam")
        assert e["activation"] == ({k: found["activation"][k] for k in ("threshold", "precision", "recall", "erased",
                                                                        "intrusion")} if e["fixed"] else None)
    assert [log["name"] for log in data["logs"]] == [
        "ordinary classifier", "CGNet", "AffinityNet, alphas 4 and 24", "DeepLab"]
    assert [row["loss"] for row in data["logs"][0]["rows"]] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert data["results"][0]["miou"] == [40.0, 44.0] and data["results"][0]["paper"] == 48.0


@pytest.mark.slow
def test_a_real_experiment(place):
    demo = ("--recipe", "demo", "--name", "X")
    call("evaluation", *demo, "--task", "crf", "--dict_dir", "crf/02")
    said = call("report", *demo, "--images", 5)
    data = data_of(place)
    assert "report.html: 5 images, " in said and len(data["rows"]) == 5 and data["listed"] == 12
    assert [column["folder"] for column in data["columns"]] == ["dict_model_oc", "dict", "crf/02"]
    assert {"loss", "loss_cse", "p_target_erased"} <= data["logs"][1]["rows"][0].keys()
    assert "--low 2 --high 24" in notes(data) and "infer_seg.py" in notes(data)
    layout = VOCLayout("data/critters")
    for row in data["rows"]:
        classes, scores = read_crf(place / f"experiment/X/crf/02/{row['id']}.npz")
        expected = slow_iou(classes[scores.argmax(0)], layout.ground_truth(row["id"]))
        assert row["stages"]["crf/02"]["miou"] == pytest.approx(np.mean(list(expected.values())), abs=.006)


def test_pictures_are_spread_over_the_list():
    assert evenly(list(range(10)), 4) == [0, 2, 5, 7] and evenly([1, 2], 9) == [1, 2] and evenly([], 3) == []


def test_the_columns_are_chosen(own):
    data = report("--dirs", "seg", "crf/04", "--images", "2")
    assert [(c["folder"], c["before"]) for c in data["columns"]] == [("seg", None), ("crf/04", "seg")]
    assert len(data["rows"]) == 2 and data["listed"] == 3
    assert report("--images", "0")["rows"] == []


@pytest.mark.parametrize("list_name, chosen", [("train", "crf/24"), ("val", "crf/04")])
def test_of_several_alphas_the_one_that_scored_best_on_the_list_is_shown(own, list_name, chosen):
    shutil.copytree(own / "experiment/X/crf/04", own / "experiment/X/crf/24")
    result = json.loads((own / "experiment/X/eval/crf_crf_04_train.json").read_text())
    result |= {"miou": result["miou"] + 1, "list": list_name, "made_by": None}
    (own / f"experiment/X/eval/crf_crf_24_{list_name}.json").write_text(json.dumps(result))
    assert report()["columns"][2]["folder"] == chosen


def test_a_folders_record_says_what_it_holds(tmp_path):
    experiment = Experiment(tmp_path, "X")
    records = {"dict": ("infer model_cse", {}, ["ckpt/model_cse/014.pth"]), "dict_model_oc": ("infer model_oc", {}, []),
               "mine": ("infer model_cse", {}, []), "crf/06": ("infer crf", {"alpha": 6.0}, ["dict"]),
               "sharp": ("infer crf", {"alpha": 2.5}, ["dict_model_oc"]), "seg": ("infer_seg", {}, []),
               "rw/04_24": ("infer_aff", {}, ["ckpt/aff_04_24/007.pth", "dict"]),
               "rw/long": ("infer_aff", {}, ["ckpt/aff_04_24/007.pth", "mine"]), "seg_photos": ("infer_seg", {}, []),
               "odd": ("infer model_of_nobody", {}, []), "loop": ("infer crf", {}, ["loop"])}
    for folder, (stage, settings, inputs) in records.items():
        write_json(experiment / folder / "made_by.json", {
            "stage": stage, "settings": settings, "inputs": dict.fromkeys(inputs, "0")})
    (experiment / "crf_model_oc/24").mkdir(parents=True)
    titles = {"dict": "CGNet, CAM", "dict_model_oc": "ordinary classifier, CAM", "mine": "CGNet, CAM (mine)",
              "crf/06": "CGNet, CAM + CRF, alpha 6", "sharp": "ordinary classifier, CAM + CRF, alpha 2.5 (sharp)",
              "rw/04_24": "CGNet, random walk, alphas 4 and 24", "rw/long": "CGNet, random walk, alphas 4 and 24",
              "seg": "DeepLab", "seg_photos": "DeepLab (seg_photos)", "odd": "odd", "loop": "loop",
              "crf_model_oc/24": "crf_model_oc/24", "nowhere": "nowhere"}
    assert {folder: catalog.title_of(experiment, folder) for folder in titles} == titles
    assert {folder: catalog.task_of(experiment, folder) for folder in titles} == {
        folder: {"C": "crf", "c": "cam"}.get(kind, "png") for folder, kind in zip(titles, "cccCC.....*C.")} | {
        "loop": "crf"}


# ---- images ----

def decoded(url):
    kind, text = re.fullmatch(r"data:image/(jpeg|png);base64,(.*)", url).groups()
    return Image.open(io.BytesIO(base64.b64decode(text))), kind


def test_thumbnails_are_the_picture_and_its_maps_in_voc_colours():
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(-1, 3)[:4]
    truth = np.repeat(np.array([[0, 1, 3, 255]], np.uint8), 100, 1).repeat(200, 0)              # (200, 400)
    image = np.full((200, 400, 3), (200, 30, 60), np.uint8)
    activation = np.linspace(0, 1, 400)[None].repeat(200, 0)
    row = gallery_row("a", image, truth, [1], {"dict": (truth % 255, activation)}, palette)
    shown, kind = decoded(row["image"])
    assert kind == "jpeg" and shown.size == (320, 160) and np.abs(np.array(shown).astype(int) - image[0, 0]).max() < 6
    labels, kind = decoded(row["truth"])
    colours = np.array(labels.convert("RGB"))[80]
    assert kind == "png" and labels.mode == "P" and labels.size == (320, 160)
    assert [tuple(colours[x]) for x in (10, 100, 180, 310)] == [
        (0, 0, 0), (128, 0, 0), (128, 128, 0), (224, 224, 192)]
    heat = np.array(decoded(row["stages"]["dict"]["heat"])[0]).astype(int)[80]
    assert heat[5, 2] > heat[5, 0] + 80 and heat[-5, 0] > heat[-5, 2] + 80                      # blue 0, red 1
    assert row["size"] == (400, 200) and row["classes"] == [1, 3]


def test_a_map_of_another_size_or_with_odd_ids_is_not_scored():
    palette, truth = np.zeros((3, 3), np.uint8), np.ones((8, 8), np.uint8)
    odd = {"dict": (np.ones((4, 4), int), None), "crf/06": "damaged", "seg": (np.full((8, 8), 255), None)}
    row = gallery_row("a", np.zeros((8, 8, 3), np.uint8), truth, [], odd, palette)
    assert "size (4, 4)" in row["stages"]["dict"]["error"] and row["stages"]["crf/06"] == {"error": "damaged"}
    assert "255" in row["stages"]["seg"]["error"] and "miou" not in row["stages"]["seg"]
    assert row["stages"]["seg"]["labels"]
    row = gallery_row("a", np.zeros((9, 8, 3), np.uint8), truth, [2], {}, palette)
    assert "ground truth is of size (8, 8)" in row["error"] and row["truth"] is None and row["classes"] == [2]


def test_a_hundred_pictures_are_under_15_megabytes():
    """Of VOC's size, of grainy ones and of mere noise; only the noise is drawn smaller."""
    rng = np.random.default_rng(0)
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(-1, 3)[:21]
    noise = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
    smooth = np.array(Image.fromarray(noise[:12, :16]).resize((500, 375)))
    for image, drawn, width in ((smooth // 8 * 7 + noise // 8, smooth, 320), (noise, noise, 180)):
        labels, activation = drawn[..., 0] // 50, drawn[..., 1] / 255
        maps = {name: (labels, activation if "dict" in name else None) for name in FOLDERS}
        row = gallery_row("a", image, labels, [1], maps, palette)
        assert decoded(row["image"])[0].width == decoded(row["stages"]["seg"]["labels"])[0].width == width
        assert len(page({"rows": [row] * 100})) < 15e6


# ---- half an experiment ----

def test_nothing_but_a_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Experiment("experiment", "X").log_epoch("train_model_oc", {"epoch": 0, "loss": .5})
    data = data_of(tmp_path) if call("report", *X) else None
    assert data["logs"][0]["rows"] == [{"epoch": 0, "loss": .5}] and data["rows"] == data["columns"] == []
    assert "No images: no dataset at data" in notes(data)
    assert "train.py --name X --model model_cse --cl_init X/model_oc --data_root data" in notes(data)
    assert "ordinary classifier: no" not in notes(data)


def test_a_log_and_the_dataset(own):
    for folder in ("dict", "dict_model_oc", "crf", "rw", "seg", "eval"):
        shutil.rmtree(own / "experiment/X" / folder)
    (own / "experiment/X/results.json").unlink()
    data = report()
    assert len(data["rows"]) == 3 and all(row["truth"] and not row["stages"] for row in data["rows"])
    commands = [note["command"] for note in data["notes"]]
    stages = {"infer.py": config.Infer, "infer_aff.py": config.InferAff, "infer_seg.py": config.InferSeg,
              "reproduce.py": config.Reproduce}
    assert [line.split()[1] for line in commands] == ["infer.py", "infer.py", *stages]
    for line in commands:
        settings = parse(stages[line.split()[1]], shlex.split(line)[2:])
        assert settings.data_root == "data" and getattr(settings, "infer_list", "train") == "train"
    assert "--model model_cse --crf --alphas 4 24 --infer_list train" in commands[2]       # what AffinityNet needs


def test_reproduce_is_resumed_with_the_words_that_began_it(own):
    for folder in ("seg", "eval"):
        shutil.rmtree(own / "experiment/X" / folder)
    (own / "experiment/X/results.json").unlink()
    write_json(own / "experiment/X/config/reproduce.json", {"command": "reproduce.py --name X -- --batch_size 4"})
    assert "python reproduce.py --name X -- --batch_size 4" in [note.get("command") for note in report()["notes"]]


def test_what_is_missing_is_named_in_the_order_in_which_it_is_made(own):
    for folder in ("dict", "crf", "rw", "seg", "log"):
        shutil.rmtree(own / "experiment/X" / folder)
    commands = [note["command"] for note in report()["notes"]]
    assert [line.split()[1] for line in commands] == [
        "train.py", "train.py", "infer.py", "infer.py", "train_aff.py", "infer_aff.py", "train_seg.py", "infer_seg.py"]
    for line, stage in zip(commands, (config.Train, config.Train, config.Infer, config.Infer, config.TrainAff,
                                      config.InferAff, config.TrainSeg, config.InferSeg)):
        parse(stage, shlex.split(line)[2:])
    assert "--low 4 --high 24 --train_list train " in commands[4]   # there is no train_aug
    assert "--label_dir rw/04_24 --train_list train " in commands[6]


@pytest.mark.slow
def test_of_a_chain_made_by_hand_nothing_is_missing(own, browser):
    (own / "experiment/X/results.json").unlink()
    assert report()["notes"] == []
    assert "Read from eval/" in look(browser, own).ask("document.querySelector('section').innerText")
    assert "time" not in browser.ask("[...document.querySelectorAll('section thead')][0].innerText").split()


def test_a_training_cut_off_is_told_with_its_own_command(own):
    record = {"settings": {"max_epochs": 15}, "when": "", "command": "/a/b/train.py --name X --lr 1 --data_root a/b"}
    write_json(own / "experiment/X/config/train_model_cse.json", record)
    write_json(own / "experiment/X/config/train_model_oc.json", record | {"settings": {"max_epochs": 4}})
    assert notes(report()) == ("CGNet: 4 of 15 epochs are trained; the same command resumes | "
                               "python train.py --name X --lr 1 --data_root a/b")


def test_without_truth_pictures_are_shown_and_not_scored(own):
    shutil.rmtree(own / "data/SegmentationClass")
    data = report()
    assert "No ground truth in data/SegmentationClass" in notes(data)
    for row in data["rows"]:
        assert row["truth"] is None and row["classes"]              # then the labels say which
        assert all(stage["labels"] and "miou" not in stage for stage in row["stages"].values())


def test_maps_of_some_pictures(own):
    first = VOCLayout("data").ids("train")[0]
    (own / f"experiment/X/dict/{first}.npz").unlink()
    data = report()
    assert "dict/ holds the maps of 2 of the 3 images of train | python infer.py" in notes(data)
    (own / f"experiment/X/crf/04/{first}.npz").unlink()
    assert "--crf --alphas 4 --infer_list" in notes(report())           # those that are there, not the default ones
    assert "dict" not in data["rows"][0]["stages"] and "dict" in data["rows"][1]["stages"]
    for path in (own / "experiment/X").rglob("*bild-[02].*"):
        path.unlink()
    assert [row["id"] for row in report()["rows"]] == ["bild-1.ü"]      # what has maps goes before what has none


def test_what_was_made_anew_since_is_said(own):
    write_json(own / "experiment/X/seg/made_by.json", {"stage": "infer_seg", "settings": {}, "inputs": {}})
    data = report()
    assert "seg/ was written again after eval/png_seg_train.json | python evaluation.py" in notes(data)
    assert [e["folder"] for e in data["evals"] if e["stale"]] == ["seg"]
    write_json(own / "experiment/X/dict/made_by.json",
               {"stage": "infer model_cse", "settings": {"data": {"classes.txt": "0"}}})
    data = report()
    assert "CGNet, CAM is left out" in notes(data) and "dict" not in [c["folder"] for c in data["columns"]]
    assert "No dict/" not in notes(data)                    # they are there


@pytest.mark.parametrize(("name", "content"), [
    ("results.json", "{"), ("results.json", '{"rows": [3]}'), ("results.json", '{"rows": [{"miou": ["x"]}]}'),
    ("eval/cam_dict_train.json", "[]"), ("eval/cam_dict_train.json", '{"list": "train"}'), ("eval/a.json", "null"),
    ("log/train_model_oc.jsonl", '{"epoch": 1}\nhalf a li'), ("config/train_model_oc.json", "3"),
    ("seg/made_by.json", "[1]"), ("rw/04_24/made_by.json", '{"inputs"')])
def test_what_is_damaged_is_named_and_the_rest_is_shown(own, name, content):
    path = own / "experiment/X" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, "utf-8")
    data = report()
    assert name in notes(data) and len(data["rows"]) == 3 and len(data["columns"]) >= 4


def test_a_record_that_cannot_be_read_now_leaves_out_its_column(own):
    (own / "experiment/X/seg/made_by.json").unlink()
    (own / "experiment/X/seg/made_by.json").mkdir()
    data = report()
    assert "seg is left out" in notes(data) and len(data["columns"]) == 4


@pytest.mark.parametrize("name", ["experiment/X/dict/{}.npz", "experiment/X/crf/04/{}.npz", "experiment/X/seg/{}.png",
                                  "data/JPEGImages/{}.png", "data/SegmentationClass/{}.png"])
def test_a_damaged_picture_or_map(own, name):
    path = own / name.format("bild-1.ü")
    path.write_bytes(path.read_bytes()[:60])
    data = report()
    if "data/" in name:
        assert path.name in notes(data) and len(data["rows"]) == 2
    else:
        folder = path.parent.relative_to(own / "experiment/X").as_posix()
        assert path.name in data["rows"][1]["stages"][folder]["error"] and "miou" in data["rows"][0]["stages"][folder]


def test_a_loss_that_burst_is_a_gap(own):
    burst = {"epoch": 4, "loss": float("nan"), "p_present": float("inf"), "lr": 10**400}
    Experiment("experiment", "X").log_epoch("train_model_oc", burst)
    data = report()
    assert data["logs"][0]["rows"][-1] == {"epoch": 4, "loss": None, "p_present": None, "lr": None}
    assert "ordinary classifier: the loss is not finite in 1 of 5" in notes(data)


def test_no_experiment_is_an_error_with_its_first_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no experiment experiment/X.*train.py --name X --model model_oc"):
        call("report", *X)
    assert not (tmp_path / "experiment").exists()


# ---- names ----

def test_no_name_becomes_markup(tmp_path, monkeypatch):
    make_experiment(tmp_path, PLANTED, count=3)
    monkeypatch.chdir(tmp_path)
    assert report()["classes"] == PLANTED
    text = (tmp_path / "experiment/X/report.html").read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == 2 and "<img" not in text and "<b>" not in text
    assert "\\u003c/script>" in text and "{{ script }}" in text


def test_nothing_is_fetched(made):
    text = (made / "experiment/X/report.html").read_text("utf-8")
    assert "default-src 'none'" in text and "unsafe-eval" not in text
    assert not [url for url in re.findall(r"https?://[^\s\"']+", text) if url != "http://www.w3.org/2000/svg"]
    assert not re.search(r"<link (?!rel=\"icon\" href=\"data:)|\bsrc=|@import|url\(", text)


# ---- in a browser ----

@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not chromium.find():
        pytest.skip(f"none of {', '.join(chromium.NAMES)} is installed")
    with chromium.Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def look(browser, home, **how):
    """Open a report; nothing may go wrong in it, and it may ask for nothing but itself."""
    browser.open(home / "experiment/X/report.html", **how)
    assert browser.ask("document.documentElement.dataset.drawn") == "yes"
    return browser


def unharmed(browser):
    return (not browser.complaints and browser.ask("document.documentElement.dataset.errors ?? ''") == ""
            and all(url.startswith(("data:", "file:", "about:")) for url in browser.asked)
            and sum(url.startswith("file:") for url in browser.asked) == 1)


def order(browser):
    return browser.ask("[...document.querySelectorAll('.row')].map(row => row.dataset.id)")


def test_the_browser_shows_everything(made, browser):
    look(browser, made)
    assert browser.ask("[...document.querySelectorAll('h2')].map(h => h.textContent)") == [
        "Results", "Training", "mIoU against threshold", "IoU of each class", "Gallery", "How it was made"]
    text = browser.ask("document.body.innerText")
    assert "42.0 ± 2.8" in text and "what follows is of the first" in text and "tables of later papers" in text
    assert browser.ask("document.querySelector('td small').parentNode.getBoundingClientRect().width") < 250
    assert "ordinary classifier: 4 epochs, 8.0 s" in text
    assert browser.ask("document.title") == "X: report"
    data = data_of(made)
    assert order(browser) == [row["id"] for row in data["rows"]]
    # eight curves of training, one of thresholds with two lines, a bar for each class of each stage
    assert browser.ask("document.querySelectorAll('.charts:not(.bars) svg.chart').length") == 9
    assert browser.ask("document.querySelectorAll('[aria-label^=\"AffinityNet, alphas 4 and 24: affinity\"] .line')"
                       ".length") == 2 and "affinity_same: mean of the pairs" in text
    assert browser.ask("document.querySelectorAll('.wide path.line').length") == 2
    bars = browser.ask("[...document.querySelectorAll('rect.value')].map(b => [+b.dataset.iou, b.width.baseVal.value])")
    assert len(bars) == 5 * 4 and {round(iou, 6) for iou, _ in bars} == {
        round(iou, 6) for e in data["evals"] for _, iou, *_ in e["best"]}
    assert np.ptp([width / iou for iou, width in bars if iou > 1]) < 1e-3                # as long as they are high
    pictures = browser.ask("[...document.images].map(i => i.complete && i.naturalWidth)")
    assert len(pictures) >= 8 * (1 + 2 * 6) and all(pictures)
    assert unharmed(browser)


def score(row, folder, c=None):
    stage = row["stages"][folder]
    return stage["iou"].get(str(c)) if c else stage["miou"]


@pytest.mark.slow
@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("name", [None, "dog"])
def test_sorting_and_filtering_change_what_is_shown(made, browser, name, worst):
    data, seen = data_of(made), set()
    c = CLASSES.index(name) + 1 if name else None
    rows = [row for row in data["rows"] if not name or c in row["classes"]]
    assert len(rows) > 2 and (not name or len(rows) < 8)
    look(browser, made)
    for column in data["columns"]:
        for by in ("gain", "score") if column["before"] else ("score",):
            def value(row, by=by, column=column):
                now = score(row, column["folder"], c)
                return now - score(row, column["before"], c) if by == "gain" else now
            wanted = "&".join([f"sort={by}:{column['folder']}", *[f"class={name}"] * bool(name), *["worst=1"] * worst])
            browser.ask(f"location.hash = {json.dumps('#' + wanted)}")
            browser.wait(f"document.querySelector('[name=sort]').value === {json.dumps(f'{by}:' + column['folder'])}")
            expected = [row["id"] for row in sorted(rows, key=value, reverse=not worst)]
            assert order(browser) == expected
            seen.add(tuple(expected))
            means = browser.ask("[...document.querySelectorAll('.heads strong')].map(mean => mean.textContent)")
            expected = np.mean([score(row, column["folder"], c) for row in rows])
            assert float(means[FOLDERS.index(column["folder"])]) == pytest.approx(expected, abs=.06)
    assert len(seen) > 3 and f"{len(rows)} of 8 images" in browser.ask("document.getElementById('count').textContent")
    browser.ask("location.hash = '#worst=1'" if worst else "location.hash = ''")
    browser.wait("document.querySelector('[name=sort]').value === 'list'")
    assert order(browser) == [row["id"] for row in data["rows"]] and unharmed(browser)
    assert browser.ask("document.querySelector('[name=worst]').disabled")          # a list has no worst end


def test_a_caption_tells_how_much_a_stage_helped_or_hurt(made, browser):
    look(browser, made)
    row = data_of(made)["rows"][2]
    texts = browser.ask("[...document.querySelectorAll('.row:nth-child(3) figcaption')].map(c => c.textContent)")
    for text, folder, before in zip(texts[3:], FOLDERS[1:], ["dict_model_oc", "dict", "dict", "rw/04_24"]):
        change = score(row, folder) - score(row, before)
        sign = "▲" if change > .05 else "▼" if change < -.05 else "="
        assert f"{score(row, folder):.1f}" in text and sign in text
        assert sign == "=" or float(text.split(sign)[1]) == pytest.approx(abs(change), abs=.06)
    # the walk is compared with the CAM that it spread; it is said above the images, not below hundreds of them
    assert browser.ask("document.body.innerText.indexOf('▲ ▼:') < document.body.innerText.indexOf('worst first')")
    assert "random walk, alphas 4 and 24 against CGNet, CAM;" in browser.ask("document.body.innerText")


def test_the_keyboard_is_enough(made, browser):
    look(browser, made)
    browser.ask("document.querySelector('[name=sort]').focus()")
    browser.press("ArrowDown")
    browser.wait("location.hash.includes('sort=gain')")
    first = order(browser)
    browser.press("Tab", " ")                                           # the box "worst first"
    browser.wait("location.hash.includes('worst=1')")
    assert order(browser) == first[::-1] != first
    browser.press("Tab", "ArrowDown")                                   # the class
    browser.wait("location.hash.includes('class=cat')")
    assert 0 < len(order(browser)) < 8
    browser.ask("document.querySelector('.row button').focus()")
    browser.press("Enter")
    browser.wait("document.querySelector('dialog').open")
    assert browser.ask("document.querySelector('dialog h1').textContent") == order(browser)[0]
    browser.press("ArrowRight", "ArrowRight")
    assert browser.ask("document.querySelector('dialog h1').textContent") == order(browser)[2]
    browser.ask("document.querySelector('dialog button').focus()")      # "previous"
    browser.press("Enter", "ArrowLeft")
    assert browser.ask("document.querySelector('dialog h1').textContent") == order(browser)[0]
    assert "&image=bild-" in browser.ask("location.hash")
    browser.press("Escape")
    browser.wait("!document.querySelector('dialog').open && !location.hash.includes('image=')")
    browser.ask("document.querySelector('svg.chart').focus()")
    browser.press("ArrowRight", "ArrowRight")
    assert "epoch 1" in browser.ask("document.getElementById('tip').innerText") and unharmed(browser)
    browser.ask("document.querySelector('[name=at]').focus()")
    browser.press("Tab")                                                # past the bars, of which there may be hundreds
    assert browser.ask("document.activeElement.textContent") == "The same as numbers"


def test_hovering_shows_the_iou_of_each_stage(made, browser):
    look(browser, made)
    browser.point(".row:nth-child(2) .cell:nth-child(5)")
    browser.wait("!document.getElementById('tip').hidden")
    lines = browser.ask("[...document.querySelectorAll('#tip tr')].map(r => [...r.cells].map(c => c.textContent))")
    row = data_of(made)["rows"][1]
    assert lines[0][1:] == [column["stage"] for column in data_of(made)["columns"]]
    assert lines[-1] == ["mean", *(f"{score(row, folder):.1f}" for folder in FOLDERS)]
    assert [line[0] for line in lines[1:3]] == ["background", "cat"]
    browser.point("h1")
    browser.wait("document.getElementById('tip').hidden")
    browser.point("svg .name + g")
    browser.wait("!document.getElementById('tip').hidden")
    tip = browser.ask("document.getElementById('tip').innerText")
    assert tip.startswith("background\nordinary classifier, CAM") and "precision" in tip
    assert browser.ask("[...document.querySelectorAll('#tip th')].every(h => h.scrollWidth <= h.clientWidth)")


def test_clicks_filter_enlarge_and_hide(made, browser):
    look(browser, made)
    browser.point(".legend [data-class=owl]", click=True)
    browser.wait("location.hash === '#class=owl'")
    assert len(order(browser)) < 8 and browser.ask("document.querySelector('[name=class]').value") == "owl"
    browser.point(".row .cell:nth-child(3) .frame", click=True)
    browser.wait("document.querySelector('dialog').open")
    assert browser.ask("document.querySelectorAll('dialog .cell').length") == 7
    assert "owl" in browser.ask("document.querySelector('dialog .chips').innerText")
    browser.press("Escape")
    bars = browser.ask("document.querySelectorAll('rect.value').length")
    browser.point(".keys button[aria-pressed=true]", click=True)
    assert browser.ask("document.querySelectorAll('rect.value').length") == bars * 4 // 5 and unharmed(browser)


def test_an_image_has_an_address_and_links_to_the_files_of_its_maps(made, browser):
    look(browser, made, fragment="#image=bild-2.ü")
    assert browser.ask("document.querySelector('dialog h1').textContent") == "bild-2.ü"
    files = browser.ask("[...document.querySelectorAll('dialog a')].map(a => [a.textContent, a.href])")
    assert [name for name, _ in files] == [f"{folder}/bild-2.ü.{'npz' if folder[0] in 'dc' else 'png'}"
                                           for folder in FOLDERS]
    home = made / "experiment/X"
    assert [Path(unquote(urlsplit(url).path)) for _, url in files] == [(home / name).resolve() for name, _ in files]
    assert all((home / name).is_file() for name, _ in files) and unharmed(browser)


def test_who_has_read_no_paper_is_told_what_the_stages_do(made, browser):
    text = look(browser, made).ask("document.querySelector('details.introduction').innerText")
    for title, about in data_of(made)["about"]:
        assert title in text and about in text
    assert [title for title, _ in data_of(made)["about"]] == ["ordinary classifier", "CGNet", *catalog.AFTER_CAMS]
    assert "python report.py --compare X OTHER --data_root data" in browser.ask("document.body.innerText")


def test_cams_are_shown_as_activation_or_labels(made, browser):
    shown = "getComputedStyle(document.querySelector('.row .has-heat .{}')).display"
    look(browser, made)
    assert [browser.ask(shown.format(kind)) for kind in ("heat", "labels")] == ["block", "none"]
    look(browser, made, fragment="#cams=masks&maps=over")
    assert [browser.ask(shown.format(kind)) for kind in ("heat", "labels")] == ["none", "block"]
    assert browser.ask("getComputedStyle(document.querySelector('.row .labels')).opacity") == "0.6"


def test_the_bars_are_there_as_numbers(made, browser):
    look(browser, made)
    table = browser.ask("[...document.querySelectorAll('.numbers tr')].map(r => [...r.cells].map(c => c.textContent))")
    evals = data_of(made)["evals"]
    assert table[0][1:] == [e["stage"] for e in evals]
    assert table[1:] == [[name, *(f"{e['best'][i][1]:.1f}" for e in evals)]
                         for i, name in enumerate(["background", *CLASSES])]
    colours = browser.ask("Array.from({length: 10}, (_, i) => getComputedStyle(document.documentElement)"
                          ".getPropertyValue(colour(i).slice(4, -1)))")
    assert len(set(colours)) == 10 and all(colours)         # demo measures nine maps


def test_long_names_of_classes_stay_apart_and_in_the_page(tmp_path, browser):
    classes = ["W" * 100, *(f"{'a very long class ' * 3}{i}" for i in range(9))]
    make_experiment(tmp_path, classes, count=2)
    with chdir(tmp_path):
        call("report", *X)
    look(browser, tmp_path, width=420)
    names = browser.ask("[...document.querySelectorAll('svg text.name')].map("
                        "t => [t.firstChild.textContent, t.getBoundingClientRect().left])")
    assert len({name for name, _ in names}) == 11 and min(left for _, left in names) >= 0
    browser.ask("document.querySelector('.row .about button').click()")
    right = "[...document.querySelectorAll('dialog tbody tr')].map(r => r.cells[1].getBoundingClientRect().right)"
    browser.ask("large.scrollTo(0, 1e6)")                               # as far down as it goes, it can be closed
    assert browser.ask("large.querySelector('[name=close]').getBoundingClientRect().top") > 0
    assert max(browser.ask(right)) < 420 and browser.ask("document.documentElement.scrollWidth") <= 420


def test_a_best_threshold_at_an_end_of_the_range_is_told(own, browser):
    call("evaluation", *X, "--dict_dir", "dict", "--thresholds", ".1", ".2", ".05")
    whole = json.loads((own / "experiment/X/eval/cam_dict_train.json").read_text())["whole_range"]
    call("report", *X)
    shown = look(browser, own).ask("document.body.innerText")
    assert "CGNet, CAM: the best lies at an end" in shown and f" {whole[1]:.1f} at {whole[0]}" in shown


def test_a_mean_over_fewer_pictures_says_so(own, browser):
    next((own / "experiment/X/dict").glob("*.npz")).unlink()
    call("report", *X)
    heads = look(browser, own).ask("[...document.querySelectorAll('.heads > span')].map(h => h.textContent)")
    assert ["of 2 images" in head for head in heads[3:]] == [False, True, False, False, False]


def test_what_only_an_evaluation_tells_is_marked_in_the_table(made, browser):
    rows = look(browser, made).ask("[...document.querySelectorAll('section tbody')][0].innerText").split("\n")
    assert "only in eval/png_seg_train.json" in "".join(rows) and "eval" not in rows[0]


@pytest.mark.slow
def test_light_and_dark(made, browser, tmp_path):
    """By the system's wish and by the switch: the paper is light or dark, and the ink the other."""
    def brightness(fragment, dark, media="screen"):
        look(browser, made, dark=dark, fragment=fragment, width=800, height=600, media=media)
        with Image.open(browser.shoot(tmp_path / "a.png")) as shot:
            gray = np.asarray(shot.convert("L")).astype(int)
        assert len(np.unique(gray)) > 30                                # something is drawn
        return np.median(gray), np.abs(gray - np.median(gray)).max()
    for fragment, dark in (("", False), ("#theme=light", True), ("#theme=light", False)):
        paper, contrast = brightness(fragment, dark)
        assert paper > 240 and contrast > 180
    for fragment, dark in (("", True), ("#theme=dark", False)):
        paper, contrast = brightness(fragment, dark)
        assert paper < 40 and contrast > 150
    assert brightness("#theme=dark", True, "print")[0] > 240            # ink is dear
    assert browser.ask("getComputedStyle(document.querySelector('.controls label')).display") == "none"
    assert browser.ask("getComputedStyle(document.querySelector('.row .stage')).display") == "block"     # on any page


def test_a_narrow_window_needs_no_scrolling_sideways(made, browser):
    look(browser, made, width=360, height=700)
    assert browser.ask("document.documentElement.scrollWidth") <= 360
    assert browser.ask("document.querySelector('td.number').getBoundingClientRect().right") <= 360     # the mIoU
    assert browser.ask("getComputedStyle(document.querySelector('.row .stage')).display") == "block"
    cells = "[...document.querySelectorAll('.scroll td:not(.empty)')].map(c => c.getBoundingClientRect().right)"
    assert max(browser.ask(cells)) <= 360           # all of a table, each value beside the name of its column
    assert browser.ask("getComputedStyle(document.querySelector('td.number'), '::before').content") == (
        '"mIoU, best threshold"')


def test_an_address_with_nonsense_shows_the_list(made, browser):
    look(browser, made, fragment="#sort=gain:nothing&class=%3Cb%3E&worst=0&cams=x&maps=&theme=y&%%%")
    assert order(browser) == [row["id"] for row in data_of(made)["rows"]] and unharmed(browser)
    assert browser.ask("[...document.querySelectorAll('label select')].map(select => select.value)") == [
        "auto", "best", "list", "", "activation", "alone"]


@pytest.mark.slow
def test_planted_names_are_text_in_the_browser(tmp_path, browser):
    make_experiment(tmp_path, PLANTED, count=4)
    with chdir(tmp_path):
        call("report", *X)
    look(browser, tmp_path, fragment="#sort=score:dict")
    names = browser.ask("[...document.querySelectorAll('.legend button')].map(b => b.textContent)")
    assert names == PLANTED
    browser.point(".legend button", click=True)
    assert 0 < len(order(browser)) < 4
    browser.point(".row .cell:nth-child(4)")
    browser.wait("!document.getElementById('tip').hidden")
    assert PLANTED[0] in browser.ask("document.getElementById('tip').textContent")
    assert browser.ask("String(window.planted)") == "undefined" and unharmed(browser)
    assert not browser.ask("document.querySelector('main b b, img[src=x]')")
    # and were one to slip through, the page's policy would not let it run
    browser.ask("document.body.append(Object.assign(document.createElement('script'), {text: 'window.planted = 3'}))")
    assert browser.ask("String(window.planted)") == "undefined"
    browser.wait("true")
    assert any("Content Security Policy" in text for text in browser.complaints)


@pytest.mark.parametrize("left", ["log", "maps", "truth", "nothing"])
def test_half_an_experiment_in_the_browser(own, browser, left):
    for folder in {"log": ("dict", "dict_model_oc", "crf", "rw", "seg", "eval"), "maps": ("log", "eval", "crf", "rw"),
                   "truth": (), "nothing": ("dict", "dict_model_oc", "crf", "rw", "seg", "eval", "log")}[left]:
        shutil.rmtree(own / "experiment/X" / folder)
    (own / "experiment/X/results.json").unlink()
    if left in ("truth", "nothing"):
        shutil.rmtree(own / ("data/SegmentationClass" if left == "truth" else "data"))
    data = report() if left != "nothing" else data_of(own) if call("report", *X) else None
    look(browser, own)
    text = browser.ask("document.querySelector('details.notes')?.innerText ?? ''")
    for note in data["notes"]:
        assert note["what"] in text and (note.get("command") or "") in text
    assert len(order(browser)) == (0 if left == "nothing" else 3) and unharmed(browser)
    nothing = browser.ask("[...document.querySelectorAll('.nothing')].map(p => p.innerText)")
    assert [word in " ".join(nothing) for word in ("measured", "logged", "No image")] == {
        "log": [True, False, False], "maps": [True, True, False], "truth": [False, False, False],
        "nothing": [True, True, True]}[left]
