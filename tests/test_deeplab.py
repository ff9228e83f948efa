"""DeepLab: shapes, what is trained, how it starts; LargeFOV and DeepLabV3 promise the same."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import backbones, parameter_groups
from networks.cam import CAMNet
from networks.deeplab import DeepLabV3, LargeFOV
from networks.pretrained import load_weights, official_state
from tests.conftest import assert_close

CLASSES = 3
NARROW = {"width": 0.125, "blocks": (1, 1, 1, 1, 1, 0), "dilation": (1, 1, 1)}


@pytest.fixture
def small():
    torch.manual_seed(0)
    return LargeFOV(CLASSES, **NARROW)


@pytest.fixture(scope="module")
def resnet50():
    torch.manual_seed(0)
    return DeepLabV3(CLASSES, backbone=backbones.build("resnet50"))


# ---- LargeFOV ----

@torch.no_grad()
def test_logits_are_those_of_two_dilated_convolutions_upsampled(small):
    image = torch.rand(2, 3, 33, 50)
    logits = small.eval()(image)
    hidden = F.conv2d(small.backbone(image)[2], small.b8.weight, small.b8.bias, padding=12, dilation=12).relu()
    cells = F.conv2d(hidden, small.b9.weight, small.b9.bias, padding=12, dilation=12)
    assert cells.shape == (2, CLASSES + 1, 5, 7) and hidden.shape[1] == 64
    assert_close(logits, F.interpolate(cells, (33, 50), mode="bilinear", align_corners=False))


def test_the_papers_size():
    with torch.device("meta"):
        net = LargeFOV()
    state = official_state(net.to_empty(device="cpu"))
    assert list(state)[-4:] == ["b8.weight", "b8.bias", "b9.weight", "b9.bias"]
    assert [tuple(value.shape) for value in list(state.values())[-4:]] == [
        (512, 4096, 3, 3), (512,), (21, 512, 3, 3), (21,)]
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout2d)] == [0.3, 0.3, 0.5, 0.5]


def test_only_batchnorm_is_frozen(small):
    small.eval().train()
    before = {name: value.clone() for name, value in small.named_buffers()}
    norms = {name for name, m in small.named_modules() if isinstance(m, nn.BatchNorm2d)}
    frozen = {name for name, p in small.named_parameters() if not p.requires_grad}
    assert frozen == {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")}
    small(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert small.backbone.conv1a.weight.grad.abs().sum() > 0
    assert small.backbone.b2.conv_branch2a.weight.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in small.named_buffers())


def test_new_layers_learn_at_ten_and_twenty_times_the_rate(small):
    groups = parameter_groups(small, 0.001, 5e-4, small.new_layers)
    assert [group["lr"] for group in groups] == pytest.approx([0.001, 0.002, 0.01, 0.02])
    assert [[id(p) for p in group["params"]] for group in groups[2:]] == [
        [id(small.b8.weight), id(small.b9.weight)], [id(small.b8.bias), id(small.b9.bias)]]
    assert groups[1]["params"] == [] and len(groups[0]["params"]) == 17


def test_norm_train_trains_everything():
    net = LargeFOV(CLASSES, norm="train", **NARROW).train()
    assert all(p.requires_grad for p in net.parameters()) and all(m.training for m in net.modules())


def test_new_layers_start_as_xavier(small):
    for layer in (small.b8, small.b9):
        bound = (6 / (9 * (layer.in_channels + layer.out_channels))) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound


def test_starts_from_a_classifier_and_comes_back(small):
    classifier = CAMNet(CLASSES, **NARROW)
    report = load_weights(small, official_state(classifier), head="skip")
    assert report["new"] == ["b8.weight", "b8.bias", "b9.weight", "b9.bias"] and report["unused"] == ["fc8.weight"]
    other = LargeFOV(CLASSES, **NARROW)
    load_weights(other, official_state(small))
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(other.eval()(image), small.eval()(image))


# ---- DeepLabV3 ----

def test_deeplabv3_promises_the_same(resnet50):
    assert resnet50.eval()(torch.rand(1, 3, 33, 50)).shape == (1, CLASSES + 1, 33, 50)
    assert resnet50.backbone(torch.rand(1, 3, 33, 50))[2].shape == (1, 2048, 5, 7)          # an eighth, too


@pytest.mark.slow
def test_its_head_on_its_backbone_is_torchvisions_network(resnet50):
    """On an image whose sides are multiples of 8, and without the shift that puts features onto what they show."""
    from torchvision.models import segmentation
    theirs = segmentation.deeplabv3_resnet50(weights_backbone=None, num_classes=CLASSES + 1).eval()
    state = official_state(resnet50)
    theirs.load_state_dict({name if name.startswith("classifier") else f"backbone.{name}": value
                            for name, value in state.items()})
    image = torch.rand(1, 3, 40, 48)
    ours = copy.deepcopy(resnet50).eval()
    ours.backbone.shifts = (0, 0, 0)
    with torch.no_grad():
        assert_close(ours(image), theirs(image)["out"], by=1e-4)


@pytest.mark.parametrize(("stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
def test_its_field_of_view_is_the_same_at_every_stride(stride, rates):
    with torch.device("meta"):
        net = DeepLabV3(CLASSES, backbone=StandIn(stride))
    dilations = [m.dilation[0] for m in net.classifier.modules() if isinstance(m, nn.Conv2d) and m.dilation[0] > 1]
    assert dilations == rates
    assert LargeFOV(CLASSES, backbone=StandIn(stride)).b8.dilation == (rates[0], rates[0])


def test_its_backbone_has_batchnorm_frozen_and_its_head_has_not(resnet50):
    resnet50.eval().train()
    frozen = {name for name, p in resnet50.named_parameters() if not p.requires_grad}
    evaluating = {name for name, m in resnet50.named_modules() if not m.training}
    norms = {name for name, m in resnet50.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert evaluating == {name for name in norms if name.startswith("backbone.")} and evaluating < norms
    assert frozen == {f"{name}.{kind}" for name in evaluating for kind in ("weight", "bias")}
    groups = parameter_groups(resnet50, 0.001, 5e-4, resnet50.new_layers)
    assert sum(p.numel() for group in groups[2:] for p in group["params"]) == sum(
        p.numel() for p in resnet50.classifier.parameters())


def test_it_starts_from_weights_in_torchvisions_and_timms_names(resnet50):
    from torchvision.models import resnet
    torch.manual_seed(5)
    published = resnet.resnet50().state_dict()
    report = load_weights(resnet50, published, head="skip")
    assert torch.equal(resnet50.backbone.model.model.layer4[2].conv3.weight, published["layer4.2.conv3.weight"])
    assert report["unused"] == ["fc.weight", "fc.bias"]
    assert report["new"] and all(name.startswith("classifier.") for name in report["new"])


class StandIn(nn.Module):
    """What a head asks of a backbone."""

    channels, norm = (4, 4, 4), "train"

    def __init__(self, stride):
        super().__init__()
        self.stride = stride


# ---- both ----

@pytest.mark.parametrize("which", ["small", "resnet50"])
def test_logits_are_float32_under_autocast(request, which):
    net, seen = request.getfixturevalue(which).eval(), []
    last = net.b9 if which == "small" else net.classifier[-1]
    hook = last.register_forward_pre_hook(lambda layer, args: seen.append(layer.weight.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = net(torch.rand(1, 3, 32, 32))
    hook.remove()
    assert seen == [torch.float32] and logits.dtype == torch.float32
    cells = logits[..., ::8, ::8]
    assert not torch.equal(cells, cells.bfloat16().float())         # more than bfloat16's 8 bits
