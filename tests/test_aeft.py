"""AEFT: gated pyramid pooling and the triplet against golden set 11, and what the authors' program leaves open."""
import json

import numpy as np
import pytest
import torch
from torch import nn

from data.transforms import normalize
from methods.aeft import AEFT, attract, foreground, positive_mask, repel, sample_negative
from networks import build, describe, parameter_groups
from networks.gpp import GatedPyramidPooling, GPPNet
from networks.pretrained import load_weights, official_state
from tests.conftest import fill_golden
from tools.engine import poly_sgd


def tensors(stored, prefix=""):
    return {name.removeprefix(prefix): torch.from_numpy(stored[name].astype(np.float32) if stored[name].dtype == "f2"
                                                        else stored[name])
            for name in stored.files if name.startswith(prefix)}


# ---- golden set 11 ----

def test_names_are_the_authors(golden):
    keys = json.loads(golden("set11_keys_aeft.json").read_text())["Net_gpp"]
    with torch.device("meta"):
        own = GPPNet().state_dict()
    own = {name.removeprefix("backbone.").removeprefix("pool."): list(value.shape) for name, value in own.items()}
    assert own == (keys if isinstance(keys, dict) else dict(keys))


def test_gates_and_pooling_are_the_authors(golden):
    stored = tensors(np.load(golden("set11_gpp.npz")))
    pool = fill_golden(GatedPyramidPooling(20))
    for gate in ("gconv1", "gconv2", "gconv3"):
        np.testing.assert_array_equal(pool.get_submodule(gate).att_p[0].weight.detach(), stored[f"{gate}_att_p_weight"])
        out = pool.get_submodule(gate)(stored["gconv_x"], stored["gconv_y"])
        np.testing.assert_allclose(out.detach(), stored[f"{gate}_out"], rtol=1e-4, atol=1e-5)
    for case in "01":
        cam = stored[f"head_cam_{case}"].requires_grad_()
        logits, gpp = pool(cam)
        (logits.sum() + gpp.square().sum()).backward()
        for name, value in (("logits", logits), ("gpp", gpp), ("cam_grad", cam.grad)):
            np.testing.assert_allclose(value.detach(), stored[f"head_{name}_{case}"], rtol=1e-4, atol=1e-5)


class StandIn(nn.Module):
    """Return given tensors for the image; for the positive, the given map plus the mean of what it is shown."""

    def __init__(self, given):
        super().__init__()
        self.given, self.shown = given, []

    def forward(self, image):
        self.shown.append(image)
        if len(self.shown) == 1:
            return self.given["cam"], self.given["logits"], self.given["gpp"]
        return None, None, self.given["gpp_masked"] + image.mean((1, 2, 3))[:, None, None, None]


@pytest.mark.parametrize("case", ["c0_", "c1_", "c2_"])
def test_losses_and_gradients_are_the_authors(golden, case, monkeypatch):
    stored = tensors(np.load(golden("set11_aeft_losses.npz")), case)
    entry = next(e for e in json.loads(golden("MANIFEST.json").read_text())["sets"] if e["id"] == "set11_aeft_losses")
    given = {name: stored[name].requires_grad_() for name in ("cam", "logits", "gpp", "gpp_masked")}
    monkeypatch.setattr("methods.aeft.sample_negative", lambda label, draw: stored["n_idx"])
    objective = AEFT(StandIn(given))
    terms = objective({"image": stored["img"], "label": stored["label"], "target": stored["label"][:, 0]},
                      entry["params"][case]["epoch"])
    terms["loss"].backward()

    loss = {"rtol": 1e-4, "atol": 1e-7}
    np.testing.assert_allclose(terms["loss_cls"].detach(), stored["loss_cls_term"], **loss)
    np.testing.assert_allclose(terms["loss"].detach(), stored["loss_total"], **loss)
    for name, there in (("p_present", stored["label"][:8] > 0), ("p_absent", stored["label"][:8] == 0)):
        torch.testing.assert_close(terms[name], torch.sigmoid(given["logits"].detach()[:8])[there].mean())
    if case == "c1_":
        assert "loss_attract" not in terms and len(objective.net.shown) == 1
    else:
        np.testing.assert_allclose(terms["loss_attract"].detach(), stored["loss_attract"].reshape(()), **loss)
        np.testing.assert_allclose(terms["loss_repel"].detach(), stored["loss_repulse"].reshape(()), **loss)
    seen = foreground(given["cam"], stored["label"], stored["img"].shape[2:]).detach()
    np.testing.assert_allclose(seen, stored["cam_norm_upsampled_labelled_max"], atol=1e-5)
    np.testing.assert_allclose(positive_mask(seen), stored["mask_pos"], atol=1e-5)
    for name, tensor in given.items():
        expected = stored[f"grad_{name}"]
        gradient = torch.zeros_like(expected) if tensor.grad is None else tensor.grad
        assert (gradient - expected).abs().max() <= 1e-3 * expected.abs().max(), name


@pytest.mark.slow
def test_an_update_is_the_authors(golden, monkeypatch):
    stored = tensors(np.load(golden("set11_aeft_update_real.npz")))
    entry = next(e for e in json.loads(golden("MANIFEST.json").read_text())["sets"]
                 if e["id"] == "set11_aeft_update_real")
    params = entry["params"]
    with torch.device("meta"):
        net = GPPNet(dropout=(0.0, 0.0))
    net = fill_golden(net.to_empty(device="cpu"))
    groups = parameter_groups(net, params["lr"], params["wt_dec"])
    optimizer, _ = poly_sgd(groups, params["lr"], params["max_step"])
    assert not groups[1]["params"] and not groups[2]["params"]
    np.testing.assert_allclose([g["lr"] for g in optimizer.param_groups], stored["lr_used"], rtol=1e-9)
    monkeypatch.setattr("methods.aeft.sample_negative", lambda label, draw: stored["n_idx"])
    image = torch.from_numpy(np.stack([normalize(x.numpy()).transpose(2, 0, 1) for x in stored["img"]]))
    seen = []
    net.register_forward_hook(lambda net, given, out: seen.append(out))
    terms = AEFT(net).train()({"image": image, "label": stored["label"], "target": stored["label"][:, 0]},
                              params["epoch"])
    terms["loss"].backward()
    optimizer.step()

    for expected, value in zip(("cam", "logits", "gpp"), seen[0]):
        peak = stored[expected].abs().max()
        np.testing.assert_allclose(value.detach(), stored[expected], rtol=1e-3, atol=float(1e-3 * peak))
    for name, mine in (("loss_cls_term", "loss_cls"), ("loss_attract", "loss_attract"), ("loss_repulse", "loss_repel"),
                       ("loss_total", "loss")):
        np.testing.assert_allclose(terms[mine].detach(), stored[name], rtol=1e-3)
    parameters = {name.removeprefix("backbone.").removeprefix("pool."): p for name, p in net.named_parameters()}
    trained = [name for name, p in parameters.items() if p.grad is not None]
    assert trained == params["names_with_grad"]
    norms = np.array([parameters[name].grad.double().norm() for name in trained])
    np.testing.assert_allclose(norms, stored["gradnorm_all"], rtol=5e-3)
    expected = stored["fc9_weight_after"]
    assert (parameters["fc9.weight"] - expected).abs().max() <= 1e-5 * expected.abs().max()


# ---- what the authors' program leaves open ----

def labels(*rows, classes=4):
    return torch.tensor([[float(c in row) for c in range(classes)] for row in rows])


def test_a_negative_shares_no_class():
    label = labels({0}, {0, 1}, {1}, {2, 3}, {}, {0, 1, 2, 3})
    allowed = {0: {2, 3}, 1: {3}, 2: {0, 3}, 3: {0, 1, 2}}
    seen = {i: set() for i in allowed}
    for draw in np.linspace(0, 1, 60, endpoint=False):
        negative = sample_negative(label, torch.full((6,), draw))
        assert negative[4] == negative[5] == -1         # without a class; shares one with every other
        for i in seen:
            seen[i].add(int(negative[i]))
    assert seen == allowed
    almost = torch.full((6,), float(np.nextafter(np.float32(1), np.float32(0))))
    assert [int(i) for i in sample_negative(label, almost)] == [3, 3, 3, 2, -1, -1]


def test_negatives_are_drawn_uniformly():
    label = labels({0}, {1}, {2}, {3})
    draws = torch.rand(4000, 4, generator=torch.Generator().manual_seed(1))
    counts = torch.zeros(4)
    for draw in draws:
        counts[sample_negative(label, draw)[0]] += 1
    assert counts[0] == 0
    assert (counts[1:] / 4000 - 1 / 3).abs().max() < 5 * (1 / 3 * 2 / 3 / 4000) ** 0.5      # five deviations


def test_images_without_a_negative_take_no_part():
    generator = torch.Generator().manual_seed(2)
    cam, gpp = (torch.randn(8, 4, 3, 5, generator=generator) for _ in range(2))
    label = labels({0}, {1}, {2}, {3}, {0}, {1}, {2}, {3})
    negative = torch.tensor([1, 0, 1, 0, 1, 0, -1, -1])
    whole = repel(cam, gpp, label, negative, margin=9.0)
    assert float(whole) == pytest.approx(float(repel(cam[:6], gpp[:6], label[:6], negative[:6], margin=9.0)), rel=1e-6)
    assert whole > 0 and repel(cam, gpp, label, torch.tensor([1, 0, 1, 0, 1, -1, -1, -1]), margin=9.0) > 0
    assert repel(cam, gpp, label, torch.tensor([1, 0, 1, 0, -1, -1, -1, -1]), margin=9.0) == 0      # four are too few
    assert repel(cam, gpp, label, torch.full((8,), -1), margin=9.0) == 0


def test_attract_is_the_difference_of_the_means_of_present_classes():
    maps = torch.zeros(1, 2, 1, 2)
    maps[0, 0], maps[0, 1] = torch.tensor([[4.0, -6.0]]), torch.tensor([[8.0, 8.0]])
    assert attract(maps, torch.zeros(1, 2, 1, 2), torch.tensor([[1.0, 0.0]])) == 1.0        # (2 + 0) / (B * C)


def test_gradients_reach_the_image_that_is_shown_again():
    torch.manual_seed(3)
    net = GPPNet(4, width=0.0625, blocks=(1, 1, 1, 1, 0, 0), dilation=(1, 1, 1))
    batch = {"image": torch.randn(6, 3, 32, 40), "label": labels({0}, {1}, {2}, {3}, {0}, {1}),
             "target": torch.rand(6)}
    terms = AEFT(net, first_epoch=0, weights=(0, 1, 0)).train()(batch, 0)
    mask = []
    net.register_forward_pre_hook(lambda net, given: mask.append(given[0]))
    AEFT(net, first_epoch=0).train()(batch, 0)
    assert mask[1].requires_grad and not mask[0].requires_grad
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    assert net.bn8.weight.grad is None and not net.bn8.training


def test_maps_of_absent_classes_are_not_enlarged():
    """The network is shown the same positive and gets the same gradient, from fewer maps. In float64: no ties."""
    label = labels({0}, {1, 3}, {2, 3}, {1}, {0, 2}, {}, classes=20).double()
    generator = torch.Generator().manual_seed(4)
    image, maps = (torch.randn(6, *size, generator=generator).double() for size in ((1, 32, 40), (20, 4, 5)))
    found, sizes = {}, []

    def keep(saved):
        sizes.append(saved.shape)
        return saved

    for most in (None, 2):
        net = StandIn({"cam": maps.clone().requires_grad_(), "logits": label, "gpp": maps + 1, "gpp_masked": maps - 1})
        objective = AEFT(net, first_epoch=0)
        objective.most = most
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            objective({"image": image, "label": label, "target": label[:, 0]}, 0)["loss"].backward()
        assert max(shape[1] for shape in sizes if shape[2:] == (32, 40)) == (most or 20)
        found[most] = net.shown[1], net.given["cam"].grad
    for of_all, of_some in zip(*found.values()):
        assert of_all.abs().sum() > 0
        torch.testing.assert_close(of_some, of_all, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["coarse_to_fine", "fine_to_coarse", "averaged"])
@pytest.mark.parametrize("bins", [(2,), (2, 4), (2, 4, 8, 16)])
def test_any_pooling_is_built_from_its_description(bins, order, tmp_path):
    settings = type("S", (), {"backbone": "tf_efficientnet_lite0", "output_stride": 16, "norm": "frozen"})
    description = describe("GPPNet", list("abc"), settings, {"bins": list(bins), "order": order})
    net = build(json.loads(json.dumps(description))).eval()
    gates = {name.split(".")[1] for name, _ in net.named_parameters() if name.startswith("pool.")}
    assert len(gates) == (0 if order == "averaged" else len(bins) - 1)
    cam, logits, gpp = net(torch.zeros(1, 3, 33, 50))       # fewer cells than the finest level has bins
    assert gpp.shape == cam.shape and logits.shape == (1, 3)
    again = build(description)
    assert not load_weights(again, official_state(net))["unused"]


def test_one_level_is_the_average_itself():
    cam = torch.randn(2, 3, 8, 8)
    logits, gpp = GatedPyramidPooling(3, (1,))(cam)
    mean = cam.mean((2, 3))
    torch.testing.assert_close(gpp, mean[:, :, None, None].expand_as(cam))
    expected = cam.relu().mean((2, 3)) * mean.relu() - (-cam).relu().mean((2, 3)) * (-mean).relu()
    torch.testing.assert_close(logits, expected)


def test_the_order_of_the_levels_is_the_order_of_the_gates():
    cam = torch.randn(1, 3, 8, 8)
    one, other = GatedPyramidPooling(3, (2, 4)), GatedPyramidPooling(3, (4, 2), "fine_to_coarse")
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(cam), other(cam))
    third = GatedPyramidPooling(3, (2, 4), "fine_to_coarse")
    third.load_state_dict(one.state_dict())
    assert not torch.allclose(one(cam)[1], third(cam)[1])


@pytest.mark.parametrize(("bins", "order", "message"), [((), "averaged", "bins are"), ((0, 2), "averaged", "bins are"),
                                                        ((2,), "sideways", "order must be")])
def test_a_pooling_that_cannot_be(bins, order, message):
    with pytest.raises(ValueError, match=message):
        GatedPyramidPooling(3, bins, order)
