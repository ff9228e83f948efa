"""The erasing objective: the golden updates of the authors' code, and what it promises."""
import json
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.agnostic import Agnostic
from methods.cse import CSE, erase, sample_target, without
from methods.targets import choose
from models.model_cse import look
from networks import parameter_groups
from networks.cam import CAMNet
from networks.pretrained import official_state
from tests.conftest import fill_golden
from tools.engine import poly_sgd
from tools.recompute import InParts, recomputed

CLASSES = 4


class TinyNet(nn.Module):
    """A smooth network: image (B, 3, H, W) -> cam (B, 4, H/4, W/4), logits (B, 4)."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Conv2d(3, 8, 5, stride=4, padding=2)
        self.fc8 = nn.Conv2d(8, CLASSES, 1)

    def forward(self, image):
        cam = self.fc8(torch.tanh(self.body(image)))
        return cam, cam.mean((2, 3))


@pytest.fixture
def objective():
    return CSE(TinyNet(1), TinyNet(2)).train()


@pytest.fixture
def batch():
    """Give four images; the last has no class."""
    label = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.float32)
    image = torch.randn(4, 3, 16, 20, generator=torch.Generator().manual_seed(3))
    return {"image": image, "label": label, "target": torch.tensor([0, 2, 3, -1])}


def gradients(net):
    return [p.grad.clone() for p in net.parameters()]


# ---- golden set 03 ----

def filled(prefix):
    with torch.device("meta"):                      # its 105 M random values would only be overwritten
        net = CAMNet(dropout=(0.0, 0.0))
    return fill_golden(net.to_empty(device="cpu"), prefix)


@pytest.mark.slow
def test_two_updates_are_the_authors(golden):
    stored = np.load(golden("set03_cse_update.npz"))
    entry = next(e for e in json.loads(golden("MANIFEST.json").read_text())["sets"] if e["id"] == "set03_cse_update")
    params = entry["params"]
    cgnet = filled("")
    objective = CSE(cgnet, filled("cl/"), params["cc_init"], params["cc_slope"]).train()
    groups = parameter_groups(cgnet, params["lr"], params["wt_dec"])
    optimizer, schedule = poly_sgd(groups, params["lr"], params["max_step"])
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in cgnet.parameters() if p.requires_grad}
    parameters = {name.removeprefix("backbone."): p for name, p in cgnet.named_parameters()}
    image, label = torch.from_numpy(stored["x"]), torch.from_numpy(stored["label"])

    for step, loose in (("step1", 1), ("step2", 100)):      # after an update all differs a little more
        target = torch.tensor(params[f"{step}_erased_class"])
        before = {name: p.detach().clone() for name, p in parameters.items() if name in
                  ("fc8.weight", "b7.conv_branch2a.weight")}
        np.testing.assert_array_equal(without(label, target)[0], stored[f"{step}_label_remain"])
        np.testing.assert_allclose([g["lr"] for g in optimizer.param_groups], stored[f"{step}_lr_used"], rtol=1e-9)

        seen = {}
        hooks = [objective.cgnet.register_forward_hook(lambda net, given, out, seen=seen: seen.update(cgnet=out)),
                 objective.oc.register_forward_hook(lambda net, given, out, seen=seen: seen.update(left=given, oc=out))]
        optimizer.zero_grad()
        terms = objective({"image": image, "label": label, "target": target}, params["epoch"])
        terms["loss"].backward()
        optimizer.step()
        schedule.step()
        for hook in hooks:
            hook.remove()

        loss = {"rtol": 1e-5 * loose}
        np.testing.assert_allclose(terms["loss_cls"].detach(), stored[f"{step}_loss_all"], **loss)
        np.testing.assert_allclose(terms["loss_cse"].detach(), stored[f"{step}_loss_select"], **loss)
        np.testing.assert_allclose(terms["loss"].detach(), stored[f"{step}_loss_total"], **loss)
        cam, logits = (x.detach() for x in seen["cgnet"])
        erased, mask = erase(image, cam, target)
        close = {"atol": 1e-4 if step == "step1" else 2e-3}
        np.testing.assert_allclose(mask, stored[f"{step}_mask"], **close)
        np.testing.assert_array_equal(erased, seen["left"][0].detach())
        if step == "step1":
            np.testing.assert_allclose(erased, stored["step1_img_masked"], atol=5e-4)
            np.testing.assert_allclose(cam, stored["step1_cam_er"], atol=1e-4 * np.abs(stored["step1_cam_er"]).max())
        np.testing.assert_allclose(logits, stored[f"{step}_logits_er"], rtol=1e-3, atol=1e-3 * loose**0.5)
        np.testing.assert_allclose(torch.sigmoid(seen["oc"][1].detach()), stored[f"{step}_prob_cl_masked"], **close)
        np.testing.assert_allclose(
            terms["p_target_erased"], stored[f"{step}_prob_cl_masked"][range(2), target].mean(), **close)

        trained = [name for name, p in parameters.items() if p.grad is not None]
        assert trained == params["names_with_grad"]
        norms = np.array([parameters[name].grad.double().norm() for name in trained])
        np.testing.assert_allclose(norms, stored[f"{step}_gradnorm_all_trainable"], rtol=2e-3)
        gradient = parameters["b3.conv_branch2a.weight"].grad[:8, :8]
        expected = stored[f"{step}_grad_b3_conv_branch2a_slice"]
        # Kernels of SSE4.1 give 6e-4 in the first step and 6e-3 in the second, those of AVX 1e-5 and 2e-4.
        np.testing.assert_allclose(gradient, expected, atol=2e-3 * loose**0.5 * np.abs(expected).max())

        for name, key, rows in (("fc8.weight", "fc8_weight_after", slice(None)),
                                ("b7.conv_branch2a.weight", "b7_conv_branch2a_weight_after_slice", np.s_[:4, :64])):
            after = stored[f"{step}_{key}"]
            old, new = (x.detach().numpy()[rows].reshape(-1)[:after.size].reshape(after.shape)
                        for x in (before[name], parameters[name]))
            rounding = 2 * np.spacing(np.abs(after).max())      # of a weight: by half a spacing, here and there, twice
            assert np.abs(new - after).max() <= 5e-3 * np.abs(after - old).max() + rounding
        buffer = optimizer.state[parameters["fc8.weight"]]["momentum_buffer"]
        np.testing.assert_allclose(buffer.double().norm(), stored[f"{step}_momentum_buffer_fc8_norm"], rtol=2e-3)

    assert all(p.grad is None for p in objective.oc.parameters())
    state = official_state(objective.oc)
    assert state.keys() == official_state(cgnet).keys()
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(b"cl/fc8.weight")))
    fc8 = (rng.standard_normal((20, 4096, 1, 1)) * np.sqrt(2 / 4096) * 0.2).astype(np.float32)
    np.testing.assert_array_equal(state["fc8.weight"], fc8)         # the updates left the OC alone


def test_lambda_is_the_authors(golden, objective, batch):
    stored = np.load(golden("set03_cse_update.npz"))["cc_weight_epochs_0_14"]
    with torch.no_grad():
        losses = [float(objective(batch, epoch)["loss_cse"]) for epoch in range(15)]
    np.testing.assert_allclose(np.array(losses) / losses[0], stored / stored[0], rtol=1e-6)


def test_poly_schedule_is_the_authors(golden):
    stored = np.load(golden("set03_cse_update.npz"))
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.01 * factor} for factor in (1, 2, 10, 20)]
    optimizer, schedule = poly_sgd(groups, 0.01, 19830)
    optimizer.step()                                # of an empty gradient: else the schedule warns
    found = {}
    for step in range(stored["poly_steps"].max() + 1):
        found[step] = [g["lr"] for g in optimizer.param_groups]
        schedule.step()
    np.testing.assert_allclose([found[s] for s in stored["poly_steps"]], stored["poly_lr_groups"], rtol=1e-9)


def test_momentum_is_the_authors(golden):
    x = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer, schedule = poly_sgd([{"params": [x], "lr": 0.01, "weight_decay": 5e-4}], 0.01, 100)
    values = []
    for _ in range(5):
        x.grad = torch.ones_like(x)
        optimizer.step()
        schedule.step()
        values.append(float(x.detach()))
    np.testing.assert_allclose(values, np.load(golden("set03_cse_update.npz"))["momentum_probe_values"], rtol=1e-12)


# ---- the objective ----

def test_losses_are_what_the_paper_says(objective, batch):
    """A slow twin: one image after the other, in plain words."""
    terms = objective(batch, epoch=2)
    cam, logits = objective.cgnet(batch["image"])
    maps = [F.interpolate(cam[i, t][None, None], (16, 20), mode="bilinear")[0, 0].relu()
            for i, t in enumerate(batch["target"][:3])]
    peak = max(m.max() for m in maps)
    erasing, gone, left = [], [], []
    torch.testing.assert_close(terms["erased"], sum(m.mean() / (peak + 1e-5) for m in maps).detach() / 3)
    for i, m in enumerate(maps):
        _, seen = objective.oc((batch["image"][i] * (1 - m / (peak + 1e-5)))[None])
        rest = batch["label"][i].clone()
        rest[batch["target"][i]] = 0
        erasing.append(F.binary_cross_entropy_with_logits(seen[0], rest))
        gone.append(seen[0, batch["target"][i]].sigmoid())
        left += seen[0][rest > 0].sigmoid()
    torch.testing.assert_close(terms["loss_cls"], F.multilabel_soft_margin_loss(logits, batch["label"]))
    torch.testing.assert_close(terms["loss_cse"], (0.3 + 2 * 0.05) * sum(erasing) / 3)
    torch.testing.assert_close(terms["loss"], terms["loss_cls"] + terms["loss_cse"])
    torch.testing.assert_close(terms["p_target_erased"], sum(gone) / 3)
    torch.testing.assert_close(terms["p_rest_erased"], sum(left) / len(left))
    assert len(left) == 3 and not terms["p_rest_erased"].requires_grad


def test_class_agnostic_losses_are_what_the_paper_says(batch):
    """The same twin: the maximum of all present classes is erased, and no class may be left. The last has none."""
    objective = Agnostic(TinyNet(1), TinyNet(2)).train()
    terms = objective(batch, epoch=2)
    cam, logits = objective.cgnet(batch["image"])
    maps = [F.interpolate(cam[i][label > 0][None], (16, 20), mode="bilinear")[0].relu().amax(0)
            for i, label in enumerate(batch["label"][:3])]
    peak = max(m.max() for m in maps)
    erasing, gone = [], []
    for i, m in enumerate(maps):
        _, seen = objective.oc((batch["image"][i] * (1 - m / (peak + 1e-5)))[None])
        erasing.append(F.binary_cross_entropy_with_logits(seen[0], torch.zeros(CLASSES)))
        gone += seen[0][batch["label"][i] > 0].sigmoid()
    torch.testing.assert_close(terms["erased"], sum(m.mean() / (peak + 1e-5) for m in maps).detach() / 3)
    torch.testing.assert_close(terms["loss_cls"], F.multilabel_soft_margin_loss(logits, batch["label"]))
    torch.testing.assert_close(terms["loss_cse"], (0.3 + 2 * 0.05) * sum(erasing) / 3)
    torch.testing.assert_close(terms["loss"], terms["loss_cls"] + terms["loss_cse"])
    torch.testing.assert_close(terms["p_target_erased"], sum(gone) / 6)
    terms["loss_cse"].backward()
    assert all(p.grad is None for p in objective.oc.parameters())
    assert all(g.abs().sum() > 0 for g in gradients(objective.cgnet))


def test_the_oc_gets_no_gradient_but_passes_one_on(objective, batch):
    objective(batch, 0)["loss_cse"].backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.oc.parameters())
    assert all(g.abs().sum() > 0 for g in gradients(objective.cgnet))


def test_the_erased_picture_is_not_detached(objective, batch):
    """The gradient is the slope: it goes through OC, erased image, mask and its maximum."""
    objective = objective.double()
    batch["image"], batch["label"] = batch["image"].double(), batch["label"].double()
    weight = objective.cgnet.fc8.weight

    def loss(norm):
        objective.mask_norm = norm
        return objective(batch, 0)["loss_cse"]

    for norm in ("batch", "image"):
        objective.zero_grad()
        loss(norm).backward()
        step = 1e-4 * weight.grad / weight.grad.norm()
        with torch.no_grad():
            weight += step
            above = loss(norm)
            weight -= 2 * step
            below = loss(norm)
            weight += step
        torch.testing.assert_close((above - below) / 2e-4, weight.grad.norm(), rtol=5e-3, atol=0)


def test_the_oc_stays_in_eval_mode(objective):
    objective.eval()
    objective.train()
    assert objective.training and objective.cgnet.training
    assert not any(m.training for m in objective.oc.modules())


def test_the_target_may_be_left_out(objective, batch):
    del batch["target"]
    torch.manual_seed(0)
    first = objective(batch, 0)
    torch.manual_seed(0)
    batch["target"] = sample_target(batch["label"])
    assert all(torch.equal(first[name], value) for name, value in objective(batch, 0).items())


def test_an_image_without_class_takes_no_part_in_the_erasing(objective, batch):
    alone = {name: value[:3] for name, value in batch.items()}
    for name in ("loss_cse", "p_target_erased", "p_rest_erased", "erased"):
        torch.testing.assert_close(objective(batch, 1)[name], objective(alone, 1)[name])
    assert not torch.equal(objective(batch, 1)["loss_cls"], objective(alone, 1)["loss_cls"])


def test_a_batch_without_any_class_has_a_finite_loss(objective, batch):
    batch["label"], batch["target"] = torch.zeros_like(batch["label"]), torch.full((4,), -1)
    terms = objective(batch, 0)
    terms["loss"].backward()
    assert terms["loss"].isfinite() and terms["loss_cse"] == 0
    assert terms["p_target_erased"].isnan() and terms["p_rest_erased"].isnan()
    assert all(g.isfinite().all() for g in gradients(objective.cgnet))


def test_looking_changes_nothing(objective, batch):
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    seen = look(objective, batch)
    assert seen["mask"].shape == (4, 1, 16, 20) and seen["erased"].shape == (4, 3, 16, 20)
    torch.testing.assert_close(seen["before"], torch.sigmoid(objective.oc(batch["image"])[1]))
    torch.testing.assert_close(seen["after"], torch.sigmoid(objective.oc(seen["erased"])[1]))
    assert torch.equal(seen["before"][3], seen["after"][3]) and not torch.equal(seen["before"][0], seen["after"][0])
    assert objective.cgnet.training and not objective.oc.training
    assert not any(value.requires_grad for value in seen.values())
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())


# ---- its parts ----

def test_targets_are_drawn_uniformly_from_the_classes_present():
    label = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.float32).repeat(3000, 1)
    target = sample_target(label, torch.Generator().manual_seed(0)).view(-1, 3)
    assert target.dtype == torch.int64
    assert set(target[:, 1].tolist()) == {3} and set(target[:, 2].tolist()) == {-1}
    counts = torch.bincount(target[:, 0], minlength=5)
    assert counts[[0, 3]].sum() == 0
    assert ((counts[[1, 2, 4]] - 1000) ** 2 / 1000).sum() < 13.8        # chi square of 2 degrees, 0.1 %


def test_targets_come_from_the_generator_alone():
    label = torch.ones(50, 6)
    draws = [sample_target(label, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    state = torch.get_rng_state()
    sample_target(label, torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())


def test_each_epoch_the_next_class_or_the_largest():
    """The first image has the classes 0, 2 and 3, the second none; its index says with which of them it begins."""
    label = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float32)
    batch = {"label": label, "index": torch.tensor([4, 5, 6]), "target": torch.tensor([0, -1, 1])}
    chosen = [choose("in_turn", batch, None, epoch).tolist() for epoch in range(4)]
    assert chosen == [[c, -1, 1] for c in (2, 3, 0, 2)]
    cam = torch.zeros(3, 4, 2, 2)
    cam[0, :, 0] = torch.tensor([[1, 1], [9, 9], [3, 0], [-9, 2]])         # of 0, 2 and 3: sums 2, 3 and 2 above 0
    assert choose("largest", batch, cam, 0).tolist() == [2, -1, 1]
    assert choose("uniform", batch, cam, 0) is batch["target"]


def test_the_remaining_labels_lack_the_target_alone(batch):
    remaining, has_target = without(batch["label"], batch["target"])
    expected = batch["label"].clone()
    expected[0, 0] = expected[1, 2] = expected[2, 3] = 0
    assert torch.equal(remaining, expected)
    assert has_target.tolist() == [True, True, True, False]


@pytest.mark.parametrize("norm", ["batch", "image"])
def test_masks_lie_between_0_and_1(batch, norm):
    cam = 100 * torch.randn(4, CLASSES, 4, 5, generator=torch.Generator().manual_seed(0))
    erased, mask = erase(batch["image"], cam, batch["target"], norm)
    assert mask.shape == (4, 1, 16, 20) and mask.min() == 0 and 0.99 < mask.max() <= 1
    assert (mask.amax((1, 2, 3)) > 0).tolist() == [True, True, True, False]         # class 0 is a target, -1 is none
    torch.testing.assert_close(erased, batch["image"] * (1 - mask))
    assert torch.equal(erased[3], batch["image"][3]) and mask[3].max() == 0         # no class: left as it is


def test_batch_masks_depend_on_the_batch_and_image_masks_do_not(batch):
    cam = torch.rand(4, CLASSES, 4, 5, generator=torch.Generator().manual_seed(0))
    cam[2] *= 3
    for norm in ("batch", "image"):
        _, together = erase(batch["image"], cam, batch["target"], norm)
        _, alone = erase(batch["image"][:2], cam[:2], batch["target"][:2], norm)
        assert torch.equal(together[:2], alone) == (norm == "image")
        peaks = together.amax((1, 2, 3))[:3]
        assert (peaks > 0.99).tolist() == ([True] * 3 if norm == "image" else [False, False, True])


def test_a_class_map_of_an_image_without_class_does_not_set_the_maximum(batch):
    cam = torch.rand(4, CLASSES, 4, 5)
    _, expected = erase(batch["image"], cam, batch["target"])
    cam[3] = 1000
    assert torch.equal(erase(batch["image"], cam, batch["target"])[1], expected)


def test_the_maximum_of_all_processes_is_taken_where_it_is_given(batch):
    cam = torch.rand(4, CLASSES, 4, 5)
    _, mask = erase(batch["image"], cam, batch["target"])
    _, halved = erase(batch["image"], cam, batch["target"], global_max=lambda peak: 2 * peak)
    torch.testing.assert_close(halved, mask / 2)


def test_an_unknown_mask_norm_is_refused(batch):
    with pytest.raises(ValueError, match="batch or image, not 'none'"):
        erase(batch["image"], torch.rand(4, CLASSES, 4, 5), batch["target"], "none")


# ---- a batch in parts ----

@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_batch_in_parts_has_the_gradients_and_the_maximum_of_the_batch(monkeypatch, parts):
    """With dropout too: the second forward pass draws what the first one drew."""
    generator = torch.Generator().manual_seed(0)
    batch = {"image": torch.randn(8, 3, 32, 32, generator=generator), "label": torch.eye(CLASSES)[:3].repeat(3, 1)[:8]}
    batch["target"] = batch["label"].argmax(1)
    batch["label"][:, 3] = 1
    batch["image"][1] *= 10                         # the maximum lies in the first part
    found, peaks = [], []

    def watched(*args, **kw):
        erased, mask = erase(*args, **kw)
        peaks.append(float(mask.detach().max()))
        return erased, mask

    monkeypatch.setattr("methods.cse.erase", watched)
    for again in (nn.Module.__call__, recomputed):
        torch.manual_seed(3)
        nets = [CAMNet(CLASSES, width=0.0625, dropout=(0.5, 0.5), dropout_head=0.5) for _ in range(2)]
        for net in nets:
            nn.init.uniform_(net.fc8.weight, 0, 1)
        objective = CSE(*(InParts(net, parts) for net in nets)).train()
        monkeypatch.setattr("tools.recompute.recomputed", again)
        torch.manual_seed(9)
        terms = objective(batch, 2)
        terms["loss"].backward()
        found.append((terms, [p.grad for p in nets[0].parameters() if p.grad is not None]))
    assert peaks[0] == peaks[1] == pytest.approx(1, abs=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(found[0][0].values(), found[1][0].values()))
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1])) and len(found[0][1]) > 5


def test_a_loss_that_is_nan_in_one_part_is_nan(objective):
    batch = {"image": torch.randn(4, 3, 32, 32), "label": torch.eye(CLASSES)[:4]}
    batch["target"] = batch["label"].argmax(1)
    batch["image"][0] = float("nan")
    objective.cgnet, objective.oc = (InParts(net, 2) for net in (objective.cgnet, objective.oc))
    terms = objective(batch, 0)
    assert terms["loss"].isnan() and terms["loss_cls"].isnan()
