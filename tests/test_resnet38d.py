"""ResNet38d and CAMNet: golden sets 01 and 02, and the properties the stages rely on."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import parameter_groups
from networks.cam import CAMNet
from networks.pretrained import official_state
from networks.resnet38d import ResNet38d
from tests.conftest import assert_close, fill_golden
from tools.recompute import recomputed


def full_size(prefix):
    """Build the paper's network with golden weights, without the seconds of a random start."""
    with torch.device("meta"):
        net = CAMNet()
    return fill_golden(net.to_empty(device="cpu"), prefix).eval()


@pytest.fixture(scope="module")
def paper_net():
    """The weights of the CGNet, which are also those of PSA's classifier."""
    return full_size("")


@pytest.fixture
def small():
    torch.manual_seed(0)
    return CAMNet(num_classes=3, width=0.125)


def official(name):
    return name.removeprefix("backbone.")


# ---- golden sets ----

@pytest.mark.parametrize(("file", "entry"), [("occse", "Net_er"), ("occse", "Net_cl"), ("psa", "resnet38_cls")])
def test_keys_and_shapes_in_order(golden, paper_net, file, entry):
    keys = json.loads(golden(f"set01_keys_{file}.json").read_text())[entry]
    assert [[name, list(tensor.shape)] for name, tensor in official_state(paper_net).items()] == keys


def test_golden_weights_are_the_recipe(golden, paper_net):
    state = official_state(paper_net)
    for name, check in json.loads(golden("set01_recipe_check.json").read_text())["tensors"].items():
        np.testing.assert_allclose(state[name].flatten()[:3], check["first3"], rtol=1e-6)
        np.testing.assert_allclose(state[name].double().sum(), check["sum"], rtol=1e-6)


@torch.no_grad()
def assert_forward(net, stored, prefix):
    for size in "ab":
        cam, logits = net(torch.from_numpy(stored[f"in_{size}"])[None])
        expected = stored[f"{prefix}_cam_{size}"]
        np.testing.assert_allclose(cam[0], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_allclose(logits[0], stored[f"{prefix}_logits_{size}"], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_forward_of_the_cgnet(golden, paper_net):
    assert_forward(paper_net, np.load(golden("set01_resnet38d_forward.npz")), "er")


@pytest.mark.slow
def test_forward_of_the_classifier(golden):
    assert_forward(full_size("cl/"), np.load(golden("set01_resnet38d_forward.npz")), "cl")


def test_forward_of_psa_and_feature_taps(golden, paper_net):
    stored = np.load(golden("set01_psa_cls_forward.npz"))
    image = torch.from_numpy(stored["inp"])[None]
    with torch.no_grad():
        cam, logits = paper_net(image)
        taps = paper_net.backbone(image)
    close = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(cam[0].relu(), stored["cam_relu"], **close)
    np.testing.assert_allclose(logits[0], stored["logits"], **close)
    for name, tap in zip(("conv4", "conv5", "conv6"), taps):
        np.testing.assert_allclose(tap[0].mean((1, 2)), stored[f"{name}_mean"], **close)
    loss = F.multilabel_soft_margin_loss(logits, torch.from_numpy(stored["label"])[None])
    np.testing.assert_allclose(loss, stored["multilabel_soft_margin_loss"], **close)


@pytest.mark.parametrize(("file", "entry", "new_layers", "settings"), [
    ("occse", "Net_er", (), {}),
    ("occse", "Net_cl", (), {"dropout": (0.2, 0.2), "dropout_head": 0.3}),
    ("psa", "resnet38_cls", ("fc8",), {"dropout_head": 0.5}),
])
def test_what_is_trained(golden, file, entry, new_layers, settings):
    with torch.device("meta"):
        net = CAMNet(**settings).train()
    expected = json.loads(golden(f"set02_groups_{file}.json").read_text())[entry]
    names = {id(parameter): official(name) for name, parameter in net.named_parameters()}
    groups = parameter_groups(net, 0.01, 5e-4, new_layers)

    assert [[names[id(p)] for p in group["params"]] for group in groups] == expected["groups_after_train"]
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.02, 0.1, 0.2])
    assert [group["weight_decay"] for group in groups] == [5e-4, 0, 5e-4, 0]
    frozen = [official(name) for name, p in net.named_parameters() if not p.requires_grad]
    assert frozen == expected["frozen_after_train"]
    evaluating = [official(name) for name, module in net.named_modules() if not module.training]
    assert evaluating == expected["eval_modules_after_train"]
    dropout = {official(name): m.p for name, m in net.named_modules() if isinstance(m, nn.Dropout2d) and m.p}
    assert sorted(dropout.values()) == sorted(expected["dropout_p"].values())
    assert {name: p for name, p in expected["dropout_p"].items() if name[0] == "b"}.items() <= dropout.items()
    assert sum(p.numel() for p in net.parameters()) == expected["n_params"]


# ---- properties ----

@pytest.mark.parametrize("size", [(1, 1), (8, 9), (33, 50), (64, 7)])
def test_output_is_an_eighth_rounded_up(small, size):
    h, w = (-(-n // 8) for n in size)
    with torch.no_grad():
        cam, logits = small.eval()(torch.rand(2, 3, *size))
        taps = small.backbone(torch.rand(2, 3, *size))
    assert cam.shape == (2, 3, h, w) and logits.shape == (2, 3)
    assert_close(logits, cam.mean((2, 3)), scale=cam)
    assert [tuple(tap.shape) for tap in taps] == [(2, c, h, w) for c in small.backbone.channels]
    assert all((tap >= 0).all() for tap in taps)
    assert small.backbone.channels == (64, 128, 512) and small.backbone.stride == 8


def test_fewer_blocks():
    net = CAMNet(num_classes=3, width=0.125, blocks=(1, 1, 1, 1, 1, 0), dilation=(1, 1, 1)).eval()
    assert net.backbone.channels == (64, 128, 256)
    units = [name for name, _ in net.backbone.named_children()]
    assert units == ["conv1a", "b2", "b3", "b4", "b5", "b6", "bn7"]
    assert {m.dilation for m in net.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
    with torch.no_grad():
        assert net(torch.rand(1, 3, 20, 30))[0].shape == (1, 3, 3, 4)


def test_without_bottlenecks_conv5_is_the_output():
    conv4, conv5, conv6 = ResNet38d(0.125, blocks=(1, 1, 1, 1, 0, 0)).eval()(torch.rand(1, 3, 16, 16))
    assert conv5 is conv6 and conv4.shape == (1, 64, 2, 2)


@pytest.mark.parametrize("wrong", [{"norm": "batch"}, {"blocks": (3, 3, 6, 3, 1)}, {"blocks": (3, 0, 6, 3, 1, 1)},
                                   {"blocks": (3, 3, 6, 3, 2, 1)}, {"dilation": (2, 4)}, {"dilation": (0, 1, 1)}])
def test_settings_without_meaning(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ResNet38d(0.125, **wrong)


def statistics(net):
    return {name: value.clone() for name, value in net.named_buffers()}


def test_frozen_statistics_and_weights_do_not_move(small):
    small.eval().train()
    before, stem = statistics(small), small.backbone.conv1a.weight.clone()
    optimizer = torch.optim.SGD([p for p in small.parameters() if p.requires_grad], lr=0.1)
    small(torch.rand(2, 3, 32, 32))[1].sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in statistics(small).items())
    assert torch.equal(stem, small.backbone.conv1a.weight) and small.backbone.conv1a.weight.grad is None
    assert small.backbone.b3.conv_branch2a.weight.grad.abs().sum() > 0


def test_norm_train_trains_everything():
    net = CAMNet(num_classes=3, width=0.125, norm="train").eval().train()
    assert all(p.requires_grad for p in net.parameters()) and all(m.training for m in net.modules())
    before = statistics(net)
    net(torch.rand(2, 3, 32, 32))
    assert not any(torch.equal(value, before[name]) for name, value in statistics(net).items())
    groups = parameter_groups(net, 0.01, 5e-4, [net.fc8])
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    assert [p is net.fc8.weight for p in groups[2]["params"]] == [True]
    assert len(groups[1]["params"]) == 37 and groups[1]["weight_decay"] == 0


def test_freeze_after_training_from_scratch(small):
    net = CAMNet(num_classes=3, width=0.125, norm="train")
    net.backbone.freeze()
    net.train()
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert trained == [name for name, p in small.named_parameters() if p.requires_grad]
    assert [m.training for m in net.modules()] == [m.training for m in small.train().modules()]


def test_head_stays_float32_under_autocast(small):
    seen = []
    small.backbone.register_forward_hook(lambda module, args, output: seen.append(output[2].dtype))
    small.fc8.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        cam, logits = small.eval()(torch.rand(1, 3, 32, 32))
    assert seen == [torch.bfloat16, torch.float32] and cam.dtype == logits.dtype == torch.float32
    assert not torch.equal(cam, cam.bfloat16().float())         # more than bfloat16's 8 bits


def test_unknown_new_layer(small):
    with pytest.raises(ValueError, match="no layer 'fc9' in CAMNet"):
        parameter_groups(small, 0.01, 5e-4, ["fc9"])


# ---- less memory ----

def backward(norm, checkpointed):
    """Add up two steps' gradients with dropout; returns them, BatchNorm's statistics, and what the first step kept."""
    torch.manual_seed(0)
    net = CAMNet(num_classes=3, width=0.125, norm=norm).train()
    net.backbone.recomputed = recomputed if checkpointed else None
    kept = []

    def keep(tensor):
        kept.append((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net(torch.randn(2, 3, 64, 64))[1].square().mean()
    before = sum(dict(kept).values())
    loss.backward()
    net(torch.randn(2, 3, 64, 64))[1].square().mean().backward()
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}, dict(net.named_buffers()), before


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_checkpointed_blocks_give_the_same_bits_in_less_memory(norm):
    (gradients, buffers, kept), (same, once, less) = backward(norm, False), backward(norm, True)
    assert gradients.keys() == same.keys() and len(gradients) > 20
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)
    assert all(torch.equal(buffers[name], once[name]) for name in buffers)      # a batch is counted once
    assert less < 0.5 * kept
