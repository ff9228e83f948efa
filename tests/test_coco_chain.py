"""The recipe coco from COCO's files to segmentation, on a made-up set: every stage, and what the tables say."""
import json

import numpy as np
import pytest
from PIL import Image

from data import critters, prepare
from data.layout import VOCLayout
from tests.stages import call

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")      # pycocotools', of numpy 2
KIND = "COCO's instance masks"


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Give data/COCO of six critters a list, prepared from annotation files as COCO's."""
    place = tmp_path_factory.mktemp("coco")
    categories = [{"id": 3 * k + 1, "name": name} for k, name in enumerate(critters.CLASSES)]
    for split, first in (("train", 0), ("val", 100)):
        images, annotations = [], []
        (place / f"{split}2014").mkdir()
        for i in range(6):
            image, mask, _ = critters.draw(0, split, i)
            name = f"COCO_{split}2014_{first + i:012d}.jpg"
            Image.fromarray(image).save(place / f"{split}2014" / name, quality=95)
            images.append({"id": first + i, "file_name": name, "height": 128, "width": 128})
            for k in np.unique(mask)[1:]:
                runs, pixels = [], (mask == k).T.reshape(-1)
                edges = np.flatnonzero(np.diff(np.concatenate([[False], pixels, [False]]).astype(int)))
                runs = np.diff(np.concatenate([[0], edges, [pixels.size]])).tolist()
                annotations.append({"image_id": first + i, "category_id": 3 * int(k) - 2, "iscrowd": 0,
                                    "segmentation": {"size": [128, 128], "counts": runs}})
        (place / f"instances_{split}2014.json").write_text(json.dumps(
            {"images": images, "annotations": annotations, "categories": categories}))
    prepare.main(["coco", "--root", str(place / "data/COCO"), "--images", str(place / "train2014"),
                  str(place / "val2014"), "--annotations", *(str(place / f"instances_{s}2014.json") for s in (
                      "train", "val"))])
    return place


@pytest.fixture
def coco_place(coco, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(coco / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_label_maps_are_those_drawn(coco):
    layout = VOCLayout(coco / "data/COCO")
    for i, image_id in enumerate(layout.ids("train")):
        np.testing.assert_array_equal(layout.ground_truth(image_id), critters.draw(0, "train", i)[1])
    assert KIND in layout.ground_truth_kind() and layout.ground_truth_kind("elsewhere") == ""


@pytest.mark.slow
def test_the_recipe_coco(coco_place):
    """Every stage, of a tiny width and small crops, from random starts; each table names its ground truth."""
    place = ("--recipe", "coco", "--name", "X", "--num_workers", 0)
    small = ("--width", 0.0625, "--max_epochs", 1, "--crop", 128)
    call("train", *place, *small, "--model", "model_oc", "--er_init", "random", "--val_every", 0)
    call("train", *place, *small, "--cl_init", "X/model_oc", "--er_init", "random", "--val_every", 0)
    call("infer", *place, "--dict", "--crf", "--scales", 1, "--alphas", 4, 24, "--infer_list", "train_aug")
    call("train_aff", *place, *small, "--init", "random")
    call("infer_aff", *place)
    call("train_seg", *place, *small, "--init", "random")
    call("infer_seg", *place, "--scales", 1)
    for task, folder, split in (("cam", "dict", "train"), ("crf", "crf/04", "train"), ("png", "rw/04_24", "train"),
                                ("png", "seg", "val")):
        assert KIND in call("evaluation", *place, "--task", task, "--dict_dir", folder, "--list", split)
        result = coco_place / f"experiment/X/eval/{task}_{folder.replace('/', '_')}_{split}.json"
        found = json.loads(result.read_text())
        assert KIND in found["ground_truth"] and found["images"] == 6
        assert set(found["per_class"]) == {"background", *critters.CLASSES}
    call("report", *place)
    assert KIND in (coco_place / "experiment/X/report.html").read_text()


def test_reproduces_table_names_the_ground_truth(capsys):
    import config

    import results
    from tests.stages import parse
    settings = parse(config.Reproduce, ["--recipe", "coco"])
    row = {"stage": "CAM", "split": "train", "miou": [1.0], "threshold": [0.1], "fixed_miou": [1.0], "paper": None,
           "seconds": [1.0], "command": "x", "backbone": "b", "init": "i"}
    results.show([row | {"ground_truth": KIND}, row], settings)
    assert capsys.readouterr().out.count(f"ground truth: {KIND}") == 1
    results.show([row], settings)
    assert "ground truth: " not in capsys.readouterr().out


@pytest.mark.parametrize("content, kind", [("{", ""), ("[]", ""), ('{"ground_truth": 1}', ""), ("{}", ""),
                                           ('{"ground_truth": "painted"}', "painted")])
def test_the_kind_of_a_ground_truth(tmp_path, content, kind):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "made_by.json").write_text(content)
    assert VOCLayout(tmp_path).ground_truth_kind() == kind
