"""AEFT and class-agnostic erasing through the stages, on a dozen critters; what they say of labels that cannot do."""
import json
import shutil
from types import SimpleNamespace

import config

import numpy as np
import pytest
import torch

from data.layout import VOCLayout
from methods.agnostic import erase_all
from methods.classification import most_classes, of_present
from models import MODELS
from tests.stages import CROP, DEMO, call, parse, refusal, rows_of
from tools import flags
from tools.experiment import Experiment

AEFT = ("--model", "aeft_gpp", "--er_init", "random", "--batch_size", 4, "--max_epochs", 3, "--T", 1,
        "--batch_size_triplet", 12, *CROP)


def test_class_agnostic_erasing(place, monkeypatch):
    asked = []
    monkeypatch.setattr("methods.agnostic.of_present", lambda *given: asked.append(given[2]) or of_present(*given))
    shutil.rmtree(place / "experiment/X/train")
    call("train", *DEMO, "--model", "model_agnostic", "--batch_size", 4, "--max_epochs", 1, "--vis_freq", 2,
         *CROP)
    assert asked.count(most_in_train()) == 3
    assert {p.name for p in (place / "experiment/X/train").iterdir()} == {"000000.png", "000002.png"}
    row, = rows_of(place / "experiment/X/log/train_model_agnostic.jsonl")
    assert 0 < row["loss_cse"] < row["loss"] and 0 < row["erased"] < 1 and "p_rest_erased" not in row
    text = call("infer", *DEMO, "--model", "model_agnostic", "--dict")
    assert "12 images" in text and len(list((place / "experiment/X/dict_model_agnostic").glob("*.npz"))) == 12
    assert "mIoU" in call("evaluation", *DEMO, "--task", "cam", "--dict_dir", "dict_model_agnostic")


def most_in_train():
    layout = VOCLayout("data/critters")
    return most_classes(layout.labels(layout.ids("train")))


@pytest.mark.parametrize("rows, most", [([[0, 1, 1, 0], [1, 0, 0, 0]], 2), ([[0, 0, 0, 0]], 1)])
def test_the_image_of_most_classes(rows, most):
    assert most_classes(torch.tensor(rows).float()) == most


def test_the_agnostic_mask_is_the_maximum_of_present_classes():
    cam = torch.tensor([[[[3.0, -1.0]], [[1.0, 2.0]], [[9.0, 9.0]]]])                   # (1, 3, 1, 2)
    image = torch.ones(1, 3, 1, 2)
    erased, mask = erase_all(image, cam, torch.tensor([[1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(mask[0, 0, 0], [1, 2 / 3], atol=1e-5)
    np.testing.assert_allclose(erased[0, 0, 0], [0, 1 / 3], atol=1e-5)


def test_the_agnostic_mask_needs_the_maps_of_present_classes_alone():
    """Also where an image has fewer classes than another."""
    generator = torch.Generator().manual_seed(5)
    image, maps = (torch.randn(3, *size, generator=generator) for size in ((3, 32, 40), (9, 4, 5)))
    label = torch.eye(9)[[1, 4, 4]]
    label[0, 7] = 1
    label[2] = 0
    found = []
    for most in (None, 2):
        cam = maps.clone().requires_grad_()
        erased, mask = erase_all(image, cam, label, most=most)
        erased.square().sum().backward()
        found.append((erased, mask, cam.grad))
    for of_all, of_some in zip(*found):
        assert of_all.abs().sum() > 0
        torch.testing.assert_close(of_some, of_all, rtol=0, atol=1e-5 * of_all.abs().max().item())
    assert not torch.equal(erase_all(image, maps, label, most=1)[1][0], found[0][1][0])     # it has two


def test_aeft(place, monkeypatch):
    asked = []
    monkeypatch.setattr("methods.aeft.of_present", lambda *given: asked.append(given[2]) or of_present(*given))
    text = call("train", *DEMO, *AEFT, "--vis_freq", 2)
    assert asked.count(most_in_train()) == 2        # epochs 1 and 2 have one batch of 12
    rows = rows_of(place / "experiment/X/log/train_aeft_gpp.jsonl")
    assert "loss_attract" not in rows[0]
    assert all(row["loss_attract"] > 0 and row["loss_repel"] >= 0 and 0 < row["erased"] < 1 for row in rows[1:])
    assert {p.name for p in (place / "experiment/X/train").glob("00000[0246].png")} >= {"000002.png", "000004.png"}
    network = json.loads((place / "experiment/X/ckpt/aeft_gpp/network.json").read_text())
    assert network["class"] == "GPPNet" and network["head"] == {"bins": [2, 4, 8, 16], "order": "coarse_to_fine"}
    state = torch.load(place / "experiment/X/ckpt/aeft_gpp/002.pth", weights_only=True)
    assert {"fc8.weight", "bn8.running_var", "fc9.weight", "gconv3.att_n.0.weight"} <= state.keys()
    assert "complete, 3 epochs; nothing to do" in call("train", *DEMO, *AEFT)
    assert "12 images" in call("infer", *DEMO, "--model", "aeft_gpp", "--dict")
    assert "mIoU" in call("evaluation", *DEMO, "--task", "cam", "--dict_dir", "dict_aeft_gpp")
    assert "becomes" not in text
    # A classifier for the CGNet may be an AEFT, too.
    call("train", *DEMO, "--name", "Z", "--model", "model_cse", "--er_init", "random", "--cl_init", "X/aeft_gpp",
         "--batch_size", 4, "--max_epochs", 1, *CROP)


def test_a_stopped_aeft_ends_as_a_whole_one(place, monkeypatch):
    """It stops in the triplet's first epoch, in the middle of the plan's two sizes of batch."""
    def stop(settings, experiment, objective, layout, step, batch):
        assert len(batch["image"]) == (4 if step < 3 else 12)
        if step == 4:
            raise ValueError("stopped here")

    call("train", *DEMO, *AEFT, "--name", "whole")
    with monkeypatch.context() as patch:
        patch.setattr(MODELS["aeft_gpp"], "figures", stop)
        with pytest.raises(SystemExit, match="stopped here"):
            call("train", *DEMO, *AEFT, "--name", "begun", "--save_minutes", 0)
    assert "resumes at epoch 2, step 0 of 1" in call("train", *DEMO, *AEFT, "--name", "begun")
    for name in ("000.pth", "001.pth", "002.pth"):
        whole, begun = (torch.load(place / f"experiment/{n}/ckpt/aeft_gpp/{name}", weights_only=True)
                        for n in ("whole", "begun"))
        assert whole.keys() == begun.keys() and all(torch.equal(begun[k], v) for k, v in whole.items())


def settings_of(*words):
    return parse(config.Train, ["--name", "X", "--model", "aeft_gpp", *map(str, words)])


def test_the_plan_is_the_authors():
    settings, aeft = settings_of(), MODELS["aeft_gpp"]
    plan = aeft.plan(settings, 10582)
    assert plan.batch_sizes == [8] * 18 + [32] * 22
    assert plan.steps == 18 * 1322 + 22 * 330
    assert aeft.schedule_steps(settings, 10582) == 40 * 1322
    # "it ends at .45 of lr": the steps that are made, of those that the schedule counts
    assert (1 - plan.steps / aeft.schedule_steps(settings, 10582)) ** settings.power == pytest.approx(0.45, abs=0.01)
    assert (settings.seed, settings.crop, settings.resize, settings.dropout) == (5137, 320, (256, 512), (0.2, 0.2))
    assert settings.jitter_probability == 0.8 and settings.TH == (0.6, 0.2) and settings.W == (1.0, 0.2, 0.15)


def test_the_objective_gets_its_flags():
    """Of the large batches the classification sees as many images as the small ones have."""
    settings = settings_of("--er_init", "random", "--width", 0.0625, "--batch_size", 4, "--batch_size_triplet", 16,
                           "--T", 3, "--M", 0.7, "--TH", 0.8, 0.1, "--W", 1, 2, 3, "--triplet_on", "cam")
    layout = SimpleNamespace(classes=["cat", "dog"])
    net, aeft, *_ = MODELS["aeft_gpp"].start(settings, Experiment("experiment", "X"), layout)
    assert (aeft.first_epoch, aeft.classified, aeft.margin, aeft.high, aeft.low) == (3, 4, 0.7, 0.8, 0.1)
    assert aeft.weights == (1, 2, 3) and aeft.on_cam and aeft.net is net


def test_a_list_smaller_than_the_large_batch(capsys):
    plan = MODELS["aeft_gpp"].plan(settings_of("--T", 1, "--max_epochs", 2), 20)
    assert plan.batch_sizes == [8, 20] and "--batch_size_triplet 32 becomes 20" in capsys.readouterr().out


def test_a_triplet_that_never_counts_is_said(place):
    settings = settings_of("--T", 5, "--max_epochs", 5)
    labels = torch.from_numpy(VOCLayout("data/critters").labels(["train_0000", "train_0001"]))
    assert "never counts" in MODELS["aeft_gpp"].notes(settings, labels)[0]
    assert MODELS["aeft_gpp"].notes(settings_of(), torch.eye(3)) == []


@pytest.mark.parametrize("words, said", [
    ((), ""), (("--bins", 2, 40), "--bins 40: a crop of 320"),
    (("--crop", 64, "--bins", 4, 8, 16), "--bins 8 16: a crop of 64")])
def test_levels_that_pool_nothing_are_said(words, said):
    notes = MODELS["aeft_gpp"].notes(settings_of(*words), torch.eye(3))
    assert len(notes) == bool(said) and said in "".join(notes)


def test_images_that_share_a_class_with_all():
    aeft, labels = MODELS["aeft_gpp"], torch.eye(3)
    labels[0] = 1
    note, = aeft.notes(settings_of(), labels)
    assert "1 image shares a class" in note
    with pytest.raises(ValueError, match="every image of train_aug shares a class"):
        aeft.notes(settings_of(), torch.ones(3, 1))


def test_refused_flags(place):
    assert "--bins" in refusal("train", *DEMO, "--model", "aeft_gpp", "--bins", 0)
    assert "--gpp_order" in refusal("train", *DEMO, "--model", "aeft_gpp", "--gpp_order", "up")
    assert "--T" in refusal("train", *DEMO, "--model", "model_oc", "--T", 3)


def test_what_follows_aefts_cams_is_the_authors(place):
    text = call("reproduce", "--recipe", "voc", "--model", "aeft_gpp", "--name", "N", "--dry_run")
    assert "--crf --alphas 2 9 21" in text
    assert "train_aff.py" in text and "--low 2 --high 21 --crf_dir crf_aeft_gpp --init N/aeft_gpp" in text
    assert "--dup 19 --logt 6 --crf_iterations 1 --radius_rule aeft" in text
    assert "--seed 5137" in text and "--seed 4242" not in text
    command = "reproduce", "--model", "aeft_gpp", "--name", "N", "--dry_run"
    assert "--seed 7" in call(*command, "--recipe", "voc", "--seed=7")
    own = call(*command, "--recipe", "demo")
    assert "--radius_rule" not in own and f"--high {flags.defaults(config.InferAff, 'demo')['high'][0]:g}" in own
