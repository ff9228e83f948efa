"""Labels that mean nothing stop with words: other spellings, another dataset's names, no class at all."""
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from data.labels import check_learnable
from data.layout import VOCLayout
from tests.stages import DEMO, call, own_data, refusal, small
from tools.experiment import Experiment
from train import warn_if_little_is_learned

TRAIN = (*DEMO, *small("model_oc"), "--name", "NEW", "--max_epochs", 1)
INFER = (*DEMO, "--model", "model_oc", "--dict", "--dict_dir", "new")
ROWS = np.array([[1, 0, 0], [1, 1, 0]], np.float32)


def annotate(root, names):
    """Write Annotations/ID.xml with these names of objects: {ID: [name, ...]}."""
    (root / "Annotations").mkdir(exist_ok=True, parents=True)
    for image_id, own in names.items():
        objects = "".join(f"<object><name>{name}</name></object>" for name in own)
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")


def dataset(root, names, classes="fox\npotted plant\nrose\n"):
    (root / "JPEGImages").mkdir()
    if classes:
        (root / "classes.txt").write_text(classes)
    annotate(root, names)
    return VOCLayout(root)


@pytest.mark.parametrize("name, meant", [("FOX", "fox"), ("Fox", "fox"), ("fox_", "fox"),
                                         ("pottedplant", "potted plant"), ("Potted_Plant", "potted plant"),
                                         ("potted-plant", "potted plant")])
def test_another_spelling_is_refused_and_the_class_named(tmp_path, name, meant):
    layout = dataset(tmp_path, {"a": [name, name], "b": [name, "rose"], "c": ["rose"]})
    with pytest.raises(ValueError, match=rf"Annotations.*'{name}' \(2 images\).*{meant} is") as error:
        layout.labels(["a", "b", "c"])
    assert "'rose'" not in str(error.value)


@pytest.mark.parametrize("classes, words", [("rose\n", "classes.txt"), ("", "VOC's 20 classes")])
def test_names_of_another_dataset_are_refused(tmp_path, classes, words):
    layout = dataset(tmp_path, {"a": ["wolf"], "b": ["wolf", "bear"]}, classes)
    with pytest.raises(ValueError, match=r"none of the names is a class.*'wolf' \(2 images\)") as error:
        layout.labels(["a", "b"])
    assert "'bear' (1 image)" in str(error.value) and words in str(error.value) and "classes.txt" in str(error.value)


def test_a_forgotten_classes_txt_is_seen_though_some_names_are_vocs(tmp_path):
    layout = dataset(tmp_path, {"a": ["wolf", "dog"], "b": ["dog"]}, classes="")
    with pytest.raises(ValueError, match=r"'wolf' \(1 image\).*no .*classes\.txt.*VOC's 20"):
        layout.labels(["a", "b"])


def test_a_choice_of_classes_leaves_the_others_out_and_says_so(tmp_path):
    layout = dataset(tmp_path, {"a": ["wolf", "rose"], "b": ["wolf"], "c": ["fox"]})
    assert layout.labels(["a", "b", "c"]).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert "'wolf' (2 images)" in layout.left_out
    layout.labels(["c"])
    assert layout.left_out == ""


@pytest.mark.parametrize("labels, words", [({"a": ["FOX"], "b": ["fox", "FOX"]}, r"'FOX'.*2 images.*fox is"),
                                           ({"a": ["fox "]}, "'fox '.*fox is"), ({"a": ["wolf"]}, "wolf.*classes.txt")])
def test_labels_json_in_another_spelling(tmp_path, labels, words):
    layout = dataset(tmp_path, {})
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(ValueError, match=r"labels\.json.*" + words):
        layout.label("a")


@pytest.mark.parametrize("name", ["background", "__ignore__", "void"])
def test_a_label_that_is_no_object_is_to_be_taken_out(tmp_path, name):
    layout = dataset(tmp_path, {})
    (tmp_path / "labels.json").write_text(json.dumps({"a": ["fox", name]}))
    with pytest.raises(ValueError, match=f"'{name}' is no object class: "):
        layout.label("a")


def test_labels_json_without_classes_txt(tmp_path):
    layout = dataset(tmp_path, {}, classes="")
    (tmp_path / "labels.json").write_text('{"a": ["fox"]}')
    with pytest.raises(ValueError, match=r"labels\.json.*'fox'.*VOC's 20 classes"):
        layout.label("a")


@pytest.mark.parametrize("line", ["fox;rose", "fox, rose", "fox | rose"])
def test_classes_in_one_line_are_seen(tmp_path, line):
    dataset(tmp_path, {"a": ["fox"]}, classes=line)
    said = r"classes\.txt.*in one line: write one class a line"
    with pytest.raises(ValueError, match=said):
        VOCLayout(tmp_path).labels(["a"])
    (tmp_path / "labels.json").write_text('{"a": ["fox"]}')
    with pytest.raises(ValueError, match=said):
        VOCLayout(tmp_path).labels(["a"])


def test_cocos_annotations_are_no_labels(tmp_path):
    layout = dataset(tmp_path, {})
    (tmp_path / "labels.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(ValueError, match=r"labels\.json.*data\.prepare coco"):
        layout.label("a")


@pytest.mark.parametrize("name", ["background", "_background_", "Background", "__ignore__", "void", "BACKGROUND ",
                                  "0 background", "0: background", "ignored", "bg", "Don't care"])
@pytest.mark.parametrize("place", [0, 1])
def test_classes_that_are_no_objects_are_refused(tmp_path, name, place):
    names = ["fox", "owl"]
    names.insert(place, name)
    with pytest.raises(ValueError, match=r"classes\.txt.*object classes only"):
        dataset(tmp_path, {}, "\n".join(names)).classes  # noqa: B018


def test_what_can_be_learned(tmp_path):
    with pytest.raises(ValueError, match="no image of train has a class"):
        check_learnable(ROWS * 0, list("abc"), "train", tmp_path)
    notes = " / ".join(check_learnable(ROWS, list("abc"), "train", tmp_path))
    assert re.search("no image of train has c: that cannot be learned.*no .*classes.txt.*VOC's 20", notes)
    (tmp_path / "classes.txt").touch()
    notes = " / ".join(check_learnable(ROWS, list("abc"), "train", tmp_path))
    assert re.search("no image of train has c: that cannot be learned", notes) and "VOC" not in notes
    assert re.search("every image of train has a: .*nothing to tell it apart from", notes)
    notes = check_learnable(np.array([[1, 0], [0, 1], [0, 0]]), list("ab"), "train", tmp_path)
    assert notes == ["1 of 3 images have no class"]
    assert check_learnable(np.eye(3), list("abc"), "train", tmp_path) == []


def relabel(place, change):
    """Replace labels.json of the critters by Annotations whose names `change` has changed."""
    data = own_data(place)
    names = json.loads((data / "labels.json").read_text())
    (data / "labels.json").unlink()
    annotate(data, {image_id: [change(name) for name in own] for image_id, own in names.items()})
    return data


@pytest.mark.parametrize("words", [("train", TRAIN), ("infer", INFER)])
def test_stages_refuse_names_in_another_spelling(place, words):
    relabel(place, str.upper)
    said = refusal(words[0], *words[1])
    assert "'FOX'" in said and "fox is" in said and "none of the names is a class" in said


def test_training_refuses_names_of_another_dataset(place):
    data = relabel(place, lambda name: f"{name}fish")
    assert "'foxfish'" in refusal("train", *TRAIN)
    (data / "classes.txt").unlink()
    assert "VOC's 20 classes" in refusal("train", *TRAIN)


def test_training_refuses_empty_labels(place):
    data = own_data(place)
    table = json.loads((data / "labels.json").read_text())
    (data / "labels.json").write_text(json.dumps(dict.fromkeys(table, [])))
    said = refusal("train", *TRAIN)
    assert "no image of train_aug" in said and "labels.json" in said


def test_inference_says_where_labels_are_empty(place):
    data = own_data(place)
    table = json.loads((data / "labels.json").read_text())
    (data / "labels.json").write_text(json.dumps({image_id: [] for image_id in table}))
    assert "no image of train has a class" in call("infer", *INFER)


def test_training_says_what_it_cannot_tell_apart(place):
    data = own_data(place)
    (data / "classes.txt").write_text("critter\n")
    table = json.loads((data / "labels.json").read_text())
    (data / "labels.json").write_text(json.dumps(dict.fromkeys(table, ["critter"])))
    shutil.rmtree(place / "experiment")
    assert "nothing to tell it apart from" in call("train", *TRAIN)


def test_the_cgnet_says_that_nothing_limits_its_masks(place):
    """Where each image has one class alone; where some have two it says nothing."""
    data = own_data(place)
    line = ("train", *DEMO, *small("model_cse"), "--max_epochs", 1, "--er_init", "X/model_oc", "--cl_init",
            "X/model_oc", "--name")
    assert "has two classes" not in call(*line, "two")
    table = json.loads((data / "labels.json").read_text())
    (data / "labels.json").write_text(json.dumps({image_id: names[:1] for image_id, names in table.items()}))
    said = call(*line, "one")
    assert "has two classes" in said and "--model model_oc" in said


def test_training_refuses_the_background_as_a_class(place):
    data = own_data(place)
    names = (data / "classes.txt").read_text()
    (data / "classes.txt").write_text(f"_background_\n{names}")
    assert "object classes only" in refusal("train", *TRAIN)


@pytest.mark.parametrize("present, absent, words", [
    (0.07, 0.11, "learned nothing"), (0.18, 0.02, "misses most classes"), (0.6, 0.1, ""), (None, None, "")])
def test_a_classifier_that_has_learned_little_is_named(tmp_path, capsys, present, absent, words):
    """As the log of its last epoch tells; a model without these terms says nothing."""
    terms = {} if present is None else {"p_present": present, "p_absent": absent}
    experiment = Experiment(tmp_path, "X")
    experiment.log_epoch("train_model_oc", {"epoch": 0, "p_present": 0.9, "p_absent": 0.1})
    experiment.log_epoch("train_model_oc", {"epoch": 1, **terms})
    warn_if_little_is_learned(experiment, SimpleNamespace(model="model_oc", lr=30, max_epochs=2))
    said = capsys.readouterr().out
    assert words in said and bool(said) == bool(words)


def test_a_classifier_that_diverges_is_named_by_its_training(place):
    said = call("train", *DEMO, *small("model_oc"), "--name", "NEW", "--max_epochs", 1, "--lr", 30)
    assert "warning" in said and "--max_epochs" in said
