"""AEFT: gated pyramid pooling and the triplet against golden set 11, and what the authors' program leaves open."""
import json

import numpy as np
import pytest
import torch
from torch import nn

from methods.aeft import AEFT, foreground, positive_mask
from networks import parameter_groups
from networks.gpp import GatedPyramidPooling, GPPNet
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
    from data.transforms import normalize
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
