"""The CUDA path on a machine without a GPU. PyTorch's FakeTensorMode knows the device and the shape of each tensor, and
no number: a tensor on the wrong device is an error in torch's own words, and where a program reads a number it would
wait for the GPU. `Waits` notes these places, with copies that block, and answers with zeros.

Here run, as on "cuda": the networks, moved there as the stages move them; tools.engine.fit with every objective, but
no backward pass; the maps of an image, DeepLab's tiles, erase and infer, the random walk but for its steps.

What cannot run so:
- The backward pass. autograd asks CUDA's library for the streams of the device (hasPrimaryContext), and there is none.
  The loop's is replaced by gradients of zeros; the real one runs on a CPU, where it must read no number either.
- The steps of the random walk: torch gives fake tensors no product with a sparse matrix.
- What is torch's own: its optimizer takes the loop over single tensors, not the fused one; SyncBatchNorm.
What a GPU alone can tell: whether memory was pinned (a non_blocking copy to the GPU counts as no wait), kernels, time.
"""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

import infer_seg
from data.layout import IGNORE
from methods import random_walk
from methods.aeft import AEFT
from methods.affinity import AffinityLearning
from methods.agnostic import Agnostic
from methods.cam import image_cams, multi_scale_cam
from methods.classification import Classification
from methods.cse import CSE
from methods.erase_rounds import erase_rounds
from methods.random_walk import walk_cams
from methods.segmentation import Segmentation, multi_scale_scores
from models import MODELS
from networks import backbones, build, parameter_groups
from networks.affinity import AffinityNet
from networks.cam import CAMNet
from networks.deeplab import DeepLabV3, LargeFOV
from networks.gpp import GPPNet
from tests.stages import run_of
from tests.waits import Waits, as_array, as_list
from tools import distributed, engine
from tools.engine import fit, poly_sgd, prepare, to_device
from tools.experiment import Experiment
from tools.meter import Meter

CUDA, CLASSES, BATCH, CROP = torch.device("cuda"), ("cat", "dog", "cow"), 4, 80
PLAIN = SimpleNamespace(checkpoint_blocks=False, compile=False, accumulate=1)
HEADS = {cls.__name__: cls for cls in (CAMNet, GPPNet, AffinityNet, LargeFOV, DeepLabV3)}


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """Let torch take "cuda" for granted, and fake tensors become lists and arrays as others do: by one copy."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    # nn.Module.to refuses tensors that something knows of weakly, which for fake ones is their mode's own memory.
    monkeypatch.setattr("torch.utils.weakref", SimpleNamespace(getweakrefs=lambda tensor: ()))
    monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: as_list(tensor.cpu()))
    monkeypatch.setattr(FakeTensor, "numpy", as_array)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def network(kind, backbone=None):
    """Make a head on a small ResNet38d, or on a finished backbone, on the CPU, as a stage does before it moves it."""
    shape = {"width": 1 / 16, "blocks": [1, 1, 1, 1, 1, 0]}
    with _disable_current_modes():
        if backbone is not None:
            return HEADS[kind](backbone=backbone)
        return build({"class": kind, "classes": CLASSES, "head": {},
                      "backbone": {"name": "resnet38d", "output_stride": 8, "norm": "frozen"} | shape})


OBJECTIVES = {
    "model_oc": lambda net, **each: Classification(net("CAMNet"), each.get("global_mean")),
    "model_cse": lambda net, **each: CSE(net("CAMNet"), net("CAMNet"), **each),
    "model_agnostic": lambda net, **each: Agnostic(net("CAMNet"), net("CAMNet"), **each),
    "aeft_gpp": lambda net, **each: AEFT(net("GPPNet"), first_epoch=0, classified=2),
    "AffinityNet": lambda net, **each: AffinityLearning(net("AffinityNet")),
    "LargeFOV": lambda net, **each: Segmentation(net("LargeFOV"), IGNORE),
    "DeepLabV3": lambda net, **each: Segmentation(net("DeepLabV3"), IGNORE),
}


# What flags choose within an objective.
CHOICES = {
    "model_cse, masks by image": lambda net: CSE(net("CAMNet"), net("CAMNet"), mask_norm="image"),
    "model_cse, in turn": lambda net: CSE(net("CAMNet"), net("CAMNet"), sampling="in_turn"),
    "model_cse, the largest": lambda net: CSE(net("CAMNet"), net("CAMNet"), sampling="largest"),
    "aeft_gpp, before the triplet": lambda net: AEFT(net("GPPNet"), first_epoch=1, classified=2),
    "aeft_gpp, on CAMs": lambda net: AEFT(net("GPPNet"), first_epoch=0, classified=2, on_cam=True),
}


def batch_of(name, network):
    """Give what the loader hands over, on the CPU."""
    name = name.split(",")[0]
    batch = {"image": torch.rand(BATCH, 3, CROP, CROP), "index": torch.arange(BATCH)}
    cells = CROP // getattr(network, "stride", 1)
    return batch | {
        "AffinityNet": {"label_map": torch.zeros(BATCH, cells, cells, dtype=torch.int64)},
        "LargeFOV": {"label_map": torch.zeros(BATCH, CROP, CROP, dtype=torch.uint8)},
        "DeepLabV3": {"label_map": torch.zeros(BATCH, CROP, CROP, dtype=torch.uint8)},
        "aeft_gpp": {"label": torch.ones(BATCH, len(CLASSES)), "target": torch.rand(BATCH)},
    }.get(name, {"label": torch.ones(BATCH, len(CLASSES)), "target": torch.zeros(BATCH, dtype=torch.int64)})


class Enough(Exception):
    pass


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Give a function that runs the loop, and returns the places of the waits of its first two steps, and the terms."""
    def run_steps(objective, network, batch, precision="fp32"):
        def backward(loss):
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

        def on_step(step, batch):           # after the loop's one look at the loss, before the update
            assert {value.device for value in batch.values()} == {next(network.parameters()).device}
            places.append(waits.places)
            waits.places = []
            if step:
                raise Enough

        places, terms = [], []
        monkeypatch.setattr(torch.Tensor, "backward", backward)
        objective.register_forward_hook(lambda module, given, found: terms.append(found))
        optimizer, schedule = poly_sgd(parameter_groups(network, 0.1, 5e-4, network.new_layers), 0.1, 10)
        run = run_of(Experiment(tmp_path, "X"), "x", 1, 10, BATCH, precision=precision)
        run.device = CUDA
        with pytest.raises(Enough), Waits() as waits:
            fit(objective, network, optimizer, schedule, lambda start: iter([batch] * 10), run, on_step)
        return places, terms[-1]
    return run_steps


ONE = ["tools/engine.py _checked"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OBJECTIVES, *CHOICES])
def test_a_step_on_a_gpu_waits_once(steps, name):
    objective = (OBJECTIVES | CHOICES)[name](network)
    net = next(objective.children())
    prepare(objective, CUDA, PLAIN)
    assert {tensor.device.type for tensor in (*objective.parameters(), *objective.buffers())} == {"cuda"}
    kinds = note_kinds(net)
    for precision in ("fp32", "bf16"):
        places, terms = steps(objective, net, batch_of(name, net), precision)
        assert places == [ONE, ONE]
        assert {(value.device.type, value.dtype, value.ndim) for value in terms.values()} == {
            ("cuda", torch.float32, 0)}
    assert kinds[0] == torch.float32 and kinds[-1] == torch.bfloat16
    look = getattr(MODELS.get(name), "look", None)
    if look:                # what the figures of the erasing show
        batch = {key: value.to(CUDA) for key, value in batch_of(name, net).items()}
        with Waits() as waits:
            seen = look(objective, batch)
        assert not waits.places and {value.device.type for value in seen.values()} == {"cuda"}


def note_kinds(net):
    """Note the type of what the first convolution of a network gives, each time: bfloat16 under autocast."""
    kinds = []
    next(m for m in net.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
        lambda module, given, found: kinds.append(found.dtype))
    return kinds


def test_every_model_is_among_them():
    assert MODELS.keys() <= OBJECTIVES.keys()


def test_a_batch_in_parts_whose_units_are_computed_again_waits_once(steps):
    objective = OBJECTIVES["model_oc"](network)
    net = objective.oc
    prepare(objective, CUDA, SimpleNamespace(checkpoint_blocks=True, compile=False, accumulate=2))
    assert steps(objective, net, batch_of("model_oc", net))[0] == [ONE, ONE]


def test_each_of_processes_that_share_a_batch_waits_once(steps, monkeypatch):
    """The second of two, which torch plays: what comes from the other one has the right shape and device."""
    monkeypatch.setattr(engine, "DistributedDataParallel", lambda objective, device_ids: objective)
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        objective = OBJECTIVES["model_cse"](network, global_max=distributed.global_max,
                                            global_mean=distributed.global_mean)
        net = objective.cgnet
        prepare(objective, CUDA, PLAIN)
        assert steps(objective, net, batch_of("model_cse", net))[0] == [ONE, ONE]
        assert not any(m.training for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet50", "convnext_tiny"])
def test_every_head_runs_on_a_backbone_of_timm(name):
    with _disable_current_modes():
        backbone = backbones.build(name, output_stride=16)
    nets = nn.ModuleList(network(kind, backbone) for kind in HEADS)
    to_device(nets, CUDA)
    kinds, image = note_kinds(backbone), torch.rand(BATCH, 3, CROP, CROP, device=CUDA)
    for net in nets:
        for precision in ("fp32", "bf16"):
            with Waits() as waits, engine.autocast(CUDA, precision):
                found = net(image)
            assert not waits.places
            assert {(part.device.type, part.dtype) for part in (found if isinstance(found, tuple) else [found])} == {
                ("cuda", torch.float32)}
            assert kinds[-1] == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def test_a_tensor_on_the_wrong_device_is_an_error(steps):
    objective, wrong = OBJECTIVES["model_oc"](network), torch.rand(1, 3, 1, 1)
    net = objective.oc
    prepare(objective, CUDA, PLAIN)
    net.register_forward_pre_hook(lambda module, given: (given[0] * wrong,))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device, .* cuda:0 and cpu"):
        steps(objective, net, batch_of("model_oc", net))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_backward_pass_reads_no_number(name):
    """With real tensors on the CPU, see above."""
    with _disable_current_modes():
        objective = OBJECTIVES[name](network).train()
        net = next(objective.children())
        loss = objective(batch_of(name, net), 0)["loss"]
        with Waits("cpu") as waits:
            loss.backward()
    assert not waits.places
    assert {p.grad.shape == p.shape for p in net.parameters() if p.requires_grad} == {True}


def test_the_meter_waits_where_it_is_read_and_once():
    terms = {name: torch.rand((), device=CUDA) for name in ("loss", "loss_cls", "erased")}
    resumed = Meter({"images": 8, "skipped": 0, "sums": dict.fromkeys(terms, 2.0), "counts": dict.fromkeys(terms, 1.0)})
    for meter in (Meter(), resumed):
        with Waits() as waits:
            meter.add(terms, 4)
            meter.add(terms, 4)
        assert not waits.places
        assert {value.device.type for value in (*meter.sums.values(), *meter.counts.values())} == {"cuda"}
        with Waits() as waits:
            assert meter.means().keys() == meter.state()["sums"].keys() == terms.keys()
        assert waits.places == ["tools/meter.py Meter.means", "tools/meter.py Meter.state"]


# ---- inference ----

def views_of(size=(80, 96), scales=(0.5, 1)):
    """Give the views of an image, on the CPU, as the loader does."""
    return [torch.rand(2, 3, *(round(side * scale) for side in size)) for scale in scales]


def infer(net, function):
    """Move a network as inference does and call with it, in both precisions; returns what came, and the waits."""
    to_device(net.eval(), CUDA, inference=True)
    for precision in ("fp32", "bf16"):
        with Waits() as waits, engine.autocast(CUDA, precision):
            found = function(net)
        yield found, waits.places


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CAMNet", "GPPNet"])
def test_the_maps_of_an_image_wait_once_when_all_views_are_on_their_way(kind):
    size, label = (80, 96), torch.tensor([1.0, 0.0, 1.0])
    pictures = [("a", views_of(), size, label)] * 2

    def all_ways(net):
        return (multi_scale_cam(net, views_of(), size, label), list(image_cams(net, pictures)),
                list(image_cams(net, pictures, labels="predicted")),
                erase_rounds(net, views_of(), size, torch.ones(1), rounds=2))

    for ((classes, scores), given, predicted, (_, rounds)), places in infer(network(kind), all_ways):
        assert classes.device.type == "cpu" and scores.device.type == rounds.device.type == "cuda"
        assert scores.shape == (3, *size) and rounds.shape == (3, 1, *size)
        assert scores.dtype == rounds.dtype == torch.float32 and len(given) == len(predicted) == 2
        assert places == [                                          # none of the first
            *["methods/cam.py image_cams"] * 2,
            *["methods/cam.py predict_label", "methods/cam.py image_cams"] * 2,
            *["methods/erase_rounds.py erase_rounds"] * 2]          # one a round


@pytest.mark.slow
def test_the_random_walk_waits_once(monkeypatch):
    """For the number of its matrix's entries. The product with it is one with a full matrix here."""
    def full(*given):
        sparse = transition(*given)
        assert {sparse.device.type, sparse.col_indices().device.type} == {"cuda"}
        assert sparse.crow_indices().dtype == sparse.col_indices().dtype == torch.int32
        return torch.empty(sparse.shape, dtype=sparse.dtype, device=sparse.device)

    transition = random_walk.transition
    monkeypatch.setattr(random_walk, "transition", full)
    image, cams = views_of((77, 90), [1])[0][:1], torch.rand(2, 77, 90)
    for walked, places in infer(network("AffinityNet"), lambda net: walk_cams(net, image, cams, logt=1)):
        assert walked.device.type == "cuda" and walked.shape == (3, 80, 96) and walked.dtype == torch.float32
        assert places == ["methods/random_walk.py transition"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LargeFOV", "DeepLabV3"])
def test_the_segmentation_waits_for_finished_scores_alone(kind):
    settings, image = SimpleNamespace(tile=64, scales=(1,), crf=False), np.zeros((64, 96, 3), np.uint8)
    for (scores, labels), places in infer(network(kind), lambda net: (
            multi_scale_scores(net, views_of(), (80, 96)), infer_seg.label_in_tiles(settings, net, image))):
        assert scores.device.type == "cuda" and scores.shape == (4, 80, 96) and labels.shape == (64, 96)
        assert places == ["infer_seg.py label_in_tiles"] * 2                # one a tile
