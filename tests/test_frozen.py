"""Frozen layers: torch's own bits and gradients, and nothing of their input is kept for the backward pass."""
import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.kept import run
from networks import backbones
from networks.cam import CAMNet
from networks.frozen import BatchNorm2d, BatchNormAct2d, Conv2d, relu
from networks.resnet38d import Block, Bottleneck
from tools import distributed
from tools.recompute import recomputed

OWN = {nn.BatchNorm2d: BatchNorm2d, timm.layers.BatchNormAct2d: BatchNormAct2d}
TORCHS = {ours: theirs for theirs, ours in OWN.items()}
BACKBONES = [("resnet38d", 8), ("tf_efficientnet_lite0", 16), ("resnet50", 16)]


def layer_of(kind, seed=0):
    torch.manual_seed(seed)
    layer = kind(6, act_layer=nn.ReLU6) if issubclass(kind, timm.layers.BatchNormAct2d) else kind(6)
    for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        nn.init.uniform_(tensor, 0.1, 2)
    return layer.requires_grad_(False).eval()


def ours_of(kind):
    layer = layer_of(kind)
    layer.__class__ = OWN[kind]
    return layer


def assert_near(a, b):
    assert a.dtype == b.dtype and (a - b).norm() <= 1e-6 * b.norm()


def gradient(layer, x, weight):
    x = x.detach().requires_grad_()
    y = F.relu(layer(x), inplace=True)
    (y * weight).sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", OWN)
def test_the_bits_and_gradients_are_torchs_own(kind, dtype, layout):
    theirs, ours = layer_of(kind), ours_of(kind)
    if dtype == torch.float64:
        theirs.double(), ours.double()
    generator = torch.Generator().manual_seed(1)
    x = (3 * torch.randn(3, 6, 7, 5, generator=generator)).to(dtype).to(memory_format=layout)
    weight = torch.randn(x.shape, generator=generator).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        (y, of_x), (expected, of_x_expected) = (gradient(layer, x, weight) for layer in (ours, theirs))
        assert torch.equal(y, expected) and y.stride() == expected.stride()
        assert_near(of_x, of_x_expected)
        kept = [run(nn.Sequential(nn.ZeroPad2d(1), layer), x.detach().requires_grad_())[1] for layer in (ours, theirs)]
    full = F.pad(x, (1, 1, 1, 1)).nbytes
    activated = full if kind is timm.layers.BatchNormAct2d else 0           # what its activation keeps
    assert kept[0] == activated and kept[1] >= activated + full


@pytest.mark.parametrize("kind", OWN)
def test_what_is_trained_keeps_what_it_needs(kind):
    """A layer in training mode, one with a trained weight or bias, and one that has no statistics."""
    x = torch.randn(3, 6, 7, 5)
    for change in (lambda m: m.train(), lambda m: m.weight.requires_grad_(), lambda m: m.bias.requires_grad_(),
                   lambda m: m.__dict__["_buffers"].update(running_mean=None, running_var=None)):
        found = []
        for layer in (ours_of(kind), layer_of(kind)):
            change(layer)
            found.append((*gradient(layer, x, x.cos()), *(p.grad for p in layer.parameters()), *layer.buffers()))
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(*found))


def test_a_layer_without_weights():
    x = torch.randn(3, 6, 7, 5)
    (y, of_x), (expected, of_x_expected) = (gradient(kind(6, affine=False).eval(), x, x.cos())
                                            for kind in (BatchNorm2d, nn.BatchNorm2d))
    assert torch.equal(y, expected)
    assert_near(of_x, of_x_expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [{"kernel_size": 3, "padding": 2, "dilation": 2}, {"kernel_size": 1, "stride": 2},
                                   {"kernel_size": 3, "padding": 1, "groups": 2}])
def test_a_frozen_convolution_and_the_relu_before_it(shape, dtype, layout):
    """torch's bits and gradients; of eight channels of four bytes a byte is kept, and nothing that a layer is given."""
    torch.manual_seed(0)
    theirs, ours = nn.Conv2d(8, 6, bias=False, **shape), Conv2d(8, 6, bias=False, **shape)
    ours.load_state_dict(theirs.state_dict())
    generator, found, kept = torch.Generator().manual_seed(1), [], []
    image = torch.randn(2, 8, 9, 7, generator=generator).to(torch.float64 if dtype == torch.float64 else torch.float32)
    for layer in (ours, theirs):
        layer.requires_grad_(False).to(image.dtype).to(memory_format=layout)
        x = image.clone(memory_format=layout).requires_grad_()

        def forward(x, layer=layer):
            x = F.pad(x, (1, 1, 1, 1))
            return layer(relu(x, layer) if layer is ours else F.relu(x, inplace=True))

        y, size = run(forward, x, "bf16" if dtype == torch.bfloat16 else "fp32", own=layer.parameters())
        (y * y.detach().cos()).sum().backward()
        found.append((y.detach(), x.grad))
        kept.append(size)
    assert torch.equal(found[0][0], found[1][0]) and found[0][0].dtype == found[1][0].dtype
    assert_near(found[0][1], found[1][1])
    assert kept[0] == 2 * 8 * 11 * 9 and kept[1] >= kept[0] * image.element_size()


def test_a_trained_convolution_keeps_what_it_needs():
    torch.manual_seed(0)
    theirs, ours = nn.Conv2d(4, 6, 3, bias=False), Conv2d(4, 6, 3, bias=False)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 4, 9, 7).requires_grad_()
    for layer in (theirs, ours):
        layer(relu(image + 0, layer)).square().sum().backward()
    assert torch.equal(theirs.weight.grad, ours.weight.grad)


def networks_of(name, stride):
    """Make the same network twice, the second one with the BatchNorm of torch and timm."""
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        shape = {"width": 0.0625} if name == "resnet38d" else {}
        found.append(CAMNet(3, backbone=backbones.build(name, stride, **shape)).train())
    for layer in found[1].modules():
        layer.__class__ = TORCHS.get(type(layer), type(layer))
    return found


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("name", "stride"), BACKBONES)
def test_networks_keep_half_and_compute_the_same(name, stride, frozen):
    """Of the CGNet, and of the OC, through which the gradient goes to the image."""
    outputs, gradients, kept = [], [], []
    for network in networks_of(name, stride):
        if frozen:
            network.requires_grad_(False).eval()
        image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)).requires_grad_(frozen)
        torch.manual_seed(3)
        (cam, _), size = run(network, image)
        cam.square().mean().backward()
        outputs.append(cam)
        kept.append(size)
        gradients.append([p.grad for p in (image, *network.parameters()) if p.grad is not None])
    assert torch.equal(*outputs) and len(gradients[0]) == len(gradients[1]) > (0 if frozen else 20)
    for a, b in zip(*gradients):
        assert (a - b).norm() <= 1e-5 * b.norm()        # each layer adds a rounding of 1e-7
    assert kept[0] < 0.7 * kept[1]


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("name", "stride", "precision"), [
    *((*backbone, "fp32") for backbone in BACKBONES[:2]), ("resnet38d", 8, "bf16")])
def test_computed_again_they_give_the_same_bits(name, stride, precision, frozen):
    """What --checkpoint_blocks does, of the CGNet and of the OC."""
    network, _ = networks_of(name, stride)
    if frozen:
        network.requires_grad_(False).eval()
    found, kept = [], []
    for again in (None, recomputed):
        network.backbone.recomputed = again
        network.zero_grad()
        image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)).requires_grad_(frozen)
        torch.manual_seed(3)
        (cam, _), size = run(network, image, precision)
        cam.square().mean().backward()
        found.append([cam.detach(), *(p.grad for p in (image, *network.parameters()) if p.grad is not None)])
        kept.append(size)
    assert len(found[0]) == len(found[1]) > (1 if frozen else 20)
    assert all(torch.equal(a, b) for a, b in zip(*found))
    assert kept[1] < kept[0] or frozen and name == "resnet38d" and kept[1] == kept[0]


@pytest.mark.parametrize("unit", [Block(4, 6, 8, 2, 1, 1), Bottleneck(4, 8, 0.5, 1)])
def test_a_residual_unit_keeps_what_its_convolutions_are_given_and_no_more(unit):
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False).eval()
    given = {}
    for module in unit.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: given.update({inputs[0].data_ptr(): inputs[0].nbytes}))
    _, kept = run(nn.Sequential(nn.ZeroPad2d(1), unit), torch.randn(2, 4, 14, 14).requires_grad_())
    noise = 4 * 2 * (unit.bn_branch2b1.num_features + unit.bn_branch2b2.num_features) if "bn_branch2b2" in dict(
        unit.named_children()) else 0           # of Dropout2d: a number a channel
    assert kept == sum(given.values()) + noise


@pytest.mark.slow
@pytest.mark.parametrize("unit", [Block(4, 6, 8, 2, 1, 1), Bottleneck(4, 8, 0.5, 1)])
def test_a_compiled_unit_of_the_frozen_classifier(unit):
    """With the ReLU that keeps a byte an element: no graph is cut at it."""
    unit.requires_grad_(False).eval()
    image, found = torch.randn(2, 4, 14, 14, generator=torch.Generator().manual_seed(2)), []
    for forward in (unit, torch.compile(unit, backend="aot_eager", fullgraph=True)):
        x = image.clone().requires_grad_()
        y, _ = forward(x * 1)
        (y * y.detach().cos()).sum().backward()
        found.append((y.detach(), x.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert_near(found[1][1], found[0][1])


def test_compiled():
    layers = (Conv2d(3, 6, 3, bias=False).requires_grad_(False), ours_of(nn.BatchNorm2d), nn.ReLU(inplace=True),
              ours_of(timm.layers.BatchNormAct2d))
    network, found = nn.Sequential(*layers), []
    for forward in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
        y = forward(x)
        (y * y.detach().cos()).sum().backward()
        found.append((y, x.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert_near(found[1][1], found[0][1])


@pytest.mark.parametrize("device, kind", [("cpu", distributed.BatchNorm2d), ("cuda", distributed.SyncBatchNorm)])
def test_processes_share_the_statistics_of_what_is_trained_alone(device, kind):
    trained, frozen = (backbones.build("tf_efficientnet_lite0", 16, norm=norm) for norm in ("train", "frozen"))
    image, expected = torch.randn(1, 3, 32, 32), []
    for network in (trained, frozen):
        with torch.no_grad():
            expected.append(network.eval()(image)[2])
        distributed.share_statistics(network, torch.device(device))
        with torch.no_grad():
            assert torch.equal(network(image)[2], expected[-1])         # also its activations
    of = [{type(m) for m in network.modules() if isinstance(m, nn.BatchNorm2d)} for network in (trained, frozen)]
    assert of == [{kind}, {BatchNormAct2d}]
