"""Ground truth that shows no object, as black and white masks (0 and 255) do, is no ground truth."""
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.stages import DEMO, call, own_data, refusal, small


def spoil(data, change, split="train"):
    """Apply `change` to the ground truth of a split, as arrays of class ids."""
    for image_id in (data / f"ImageSets/Segmentation/{split}.txt").read_text().split():
        path = data / f"SegmentationClass/{image_id}.png"
        labels = change(np.array(Image.open(path)))
        if labels is not None:
            Image.fromarray(labels).save(path)


def black_and_white(labels):
    return (labels > 0).astype(np.uint8) * 255


@pytest.mark.parametrize("change", [black_and_white, lambda labels: labels * 0, lambda labels: labels * 0 + 255])
@pytest.mark.parametrize("words", [("cam", "dict"), ("crf", "crf/02"), ("png", "truth_of_before")])
def test_ground_truth_without_an_object_is_refused(place, change, words):
    data = own_data(place)
    (place / "truth_of_before").symlink_to(place.resolve() / "before")
    (data / "SegmentationClass").rename(place / "before")
    (data / "SegmentationClass").mkdir()
    for path in (place / "before").iterdir():
        Image.fromarray(change(np.array(Image.open(path)))).save(data / "SegmentationClass" / path.name)
    said = refusal("evaluation", *DEMO[:4], "--task", words[0], "--dict_dir", words[1])
    assert "SegmentationClass" in said and "no object" in said and "data.prepare check" in said
    share = float(re.search(r"([\d.]+)% of its pixels are 255", said)[1])
    ids = (data / "ImageSets/Segmentation/train.txt").read_text().split()
    counted = 100 * np.mean([np.array(Image.open(data / f"SegmentationClass/{i}.png")) == 255 for i in ids])
    assert abs(share - counted) <= 0.051


def test_the_ignored_share_is_said_and_stored(place):
    data, changed = own_data(place), []

    def first_three(labels):
        changed.append(labels)
        return black_and_white(labels) if len(changed) <= 3 else None

    spoil(data, first_three)
    said = call("evaluation", *DEMO[:4], "--task", "cam", "--dict_dir", "dict")
    result = json.loads((place / "experiment/X/eval/cam_dict_train.json").read_text())
    ignored = sum((labels > 0).sum() for labels in changed[:3]) + sum((labels == 255).sum() for labels in changed[3:])
    assert result["ignored"] == pytest.approx(100 * ignored / sum(labels.size for labels in changed))
    assert result["without_object"] == 3
    assert "3 of 12 images show no object" in said and f"{result['ignored']:.3f}%" in said


def test_training_measures_nothing_on_ground_truth_without_an_object(place):
    spoil(own_data(place), black_and_white)
    said = call("train", *DEMO, *small("model_oc"), "--name", "Y", "--max_epochs", 1, "--val_every", 1)
    assert "no object" in said and "no mIoU" in said
    row = json.loads((place / "experiment/Y/log/train_model_oc.jsonl").read_text().splitlines()[-1])
    assert "miou" not in row


@pytest.mark.parametrize("labelled", [True, False])
def test_objects_that_are_hidden_in_many_masks_are_refused(place, labelled):
    """One mask in three is black and white: a mean over the others would look plausible."""
    data, changed = own_data(place), []

    def first_four(labels):
        changed.append(labels)
        return black_and_white(labels) if len(changed) <= 4 else None

    spoil(data, first_four)
    if not labelled:
        (data / "labels.json").unlink()
        (place / "experiment/X/dict/made_by.json").unlink()
    said = refusal("evaluation", *DEMO[:4], "--task", "cam", "--dict_dir", "dict")
    assert "4 of the 12" in said and "255" in said and "train_0000" in said
    assert "data.prepare check" in said


@pytest.mark.parametrize("change", [lambda labels: np.where((labels > 0) & (labels < 255), 6, labels),
                                    lambda labels: np.where((labels > 0) & (labels < 255), labels % 6 + 1, labels)])
@pytest.mark.parametrize("words", [("cam", "dict"), ("crf", "crf/02")])
def test_ground_truth_of_other_ids_is_refused(place, change, words):
    spoil(own_data(place), lambda labels: change(labels).astype(np.uint8))
    said = refusal("evaluation", *DEMO[:4], "--task", words[0], "--dict_dir", words[1])
    assert "SegmentationClass" in said and "classes of their labels" in said and "classes.txt" in said


def test_one_mask_that_goes_against_its_label_is_counted(place):
    data = own_data(place)
    label = json.loads((data / "labels.json").read_text())["train_0000"]
    names = (data / "classes.txt").read_text().split()
    other = next(k for k, name in enumerate(names, 1) if name not in label)
    path = data / "SegmentationClass/train_0000.png"
    Image.fromarray(np.where(np.array(Image.open(path)) > 0, other, 0).astype(np.uint8)).save(path)
    said = call("evaluation", *DEMO[:4], "--task", "cam", "--dict_dir", "dict")
    assert "1 show no class of their label" in said
