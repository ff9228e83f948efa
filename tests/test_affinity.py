"""AffinityNet, its labels and its loss: golden sets 07 to 10, slow twins over cells, and parts of a batch."""
import json

import numpy as np
import pytest
import torch
from torch import nn

from data.transforms import crop, normalize
from methods.affinity import (
    AffinityLearning,
    affinity_labels,
    affinity_loss,
    confident_labels,
    effective_radius,
    offsets,
    pair_affinity,
    pairs_of,
)
from methods.random_walk import random_walk, start_scores
from networks import parameter_groups
from networks.affinity import AffinityNet
from networks.cam import CAMNet
from networks.pretrained import load_weights, official_state
from tests.conftest import assert_close, fill_golden
from tools.recompute import InParts

KINDS = ("bg", "fg", "neg")


@pytest.fixture(scope="module")
def paper_net():
    with torch.device("meta"):                      # its 106 M random values would only be overwritten
        net = AffinityNet()
    return fill_golden(net.to_empty(device="cpu")).eval()


@pytest.fixture
def small():
    torch.manual_seed(0)
    return AffinityNet(width=0.125, blocks=(1, 1, 1, 1, 1, 0), dilation=(1, 1, 1)).eval()


@pytest.fixture
def batch():
    """Give four images of 12x14 cells; the second one's labels are unknown but for a row."""
    generator = torch.Generator().manual_seed(3)
    label = torch.tensor([0, 1, 2, 255])[torch.randint(4, (4, 12, 14), generator=generator)]
    label[1, 2:] = 255
    return {"image": torch.randn(4, 3, 12, 14, generator=generator), "label_map": label}


def pairs_of_cells(h, w, radius):
    """Give the numbers of the cells in each pair: (N,), (P, N)."""
    here, there = pairs_of(torch.arange(h * w).view(h, w), radius)
    return here.flatten(), torch.stack(there).flatten(1)


# ---- golden sets ----

def test_the_networks_keys(golden, paper_net):
    keys = json.loads(golden("set01_keys_psa.json").read_text())["resnet38_aff"]
    assert [[name, list(tensor.shape)] for name, tensor in official_state(paper_net).items()] == keys


def test_what_the_network_trains(golden):
    with torch.device("meta"):
        net = AffinityNet().train()
    expected = json.loads(golden("set02_groups_psa.json").read_text())["resnet38_aff"]
    names = {id(p): name.removeprefix("backbone.") for name, p in net.named_parameters()}
    groups = parameter_groups(net, 0.01, 5e-4, net.new_layers)
    assert [[names[id(p)] for p in group["params"]] for group in groups] == expected["groups_after_train"]
    assert sum(p.numel() for p in net.parameters()) == expected["n_params"]
    dropout = {name.removeprefix("backbone."): m.p for name, m in net.named_modules() if isinstance(m, nn.Dropout2d)}
    assert dropout == expected["dropout_p"]


@torch.no_grad()
def test_features_and_affinities_are_the_authors(golden, paper_net):
    stored, seen = np.load(golden("set08_affinitynet_forward.npz")), {}
    hooks = [getattr(paper_net, name).register_forward_hook(
        lambda layer, args, output, name=name: seen.update({name: output[0]})) for name in paper_net.new_layers]
    features = paper_net(torch.from_numpy(stored["inp"])[None])
    for hook in hooks:
        hook.remove()
    assert_close(seen["f9"], stored["f9_pre_elu"], by=1e-4)
    for name in ("f8_3", "f8_4", "f8_5"):
        np.testing.assert_allclose(seen[name].mean((1, 2)), stored[f"{name}_pre_elu_channel_mean"], rtol=1e-3,
                                   atol=1e-4)
    affinity = pair_affinity(features)
    np.testing.assert_allclose(affinity, stored["aff"], rtol=1e-3, atol=1e-4)

    here, there = pairs_of_cells(12, 16, 5)
    np.testing.assert_array_equal(here, stored["ind_from"])
    np.testing.assert_array_equal(there.flatten(), stored["ind_to"])
    np.testing.assert_allclose(affinity[0], stored["dense"][here, there], rtol=1e-3, atol=1e-4)
    here, there = pairs_of_cells(9, 11, 5)
    np.testing.assert_array_equal(here, stored["small_9x11_ind_from"])
    np.testing.assert_array_equal(there.flatten(), stored["small_9x11_ind_to"])


def test_pairs_of_a_training_crop(golden):
    expected = next(e for e in json.loads(golden("MANIFEST.json").read_text())["sets"]
                    if e["id"] == "set08_affinitynet_forward")["params"]["n56"]
    here, there = pairs_of_cells(56, 56, 5)
    there = there.flatten()
    assert (len(here), len(there)) == (expected["from_len"], expected["to_len"])
    assert (here.sum(), there.sum()) == (expected["from_sum"], expected["to_sum"])
    assert (there[:5].tolist(), there[-5:].tolist()) == (expected["to_first"], expected["to_last"])


@torch.no_grad()
def test_a_small_map_has_a_small_radius(golden, paper_net):
    stored = np.load(golden("set10_aeft_small_affinity.npz"))
    image = torch.from_numpy(normalize(stored["img"])).permute(2, 0, 1)[None].contiguous()
    radius = effective_radius(8, 10, rule="aeft")
    affinity = pair_affinity(paper_net(image), radius)
    assert radius == 3
    np.testing.assert_allclose(affinity, stored["aff"], atol=1e-4)
    np.testing.assert_allclose(affinity[0], stored["dense"][pairs_of_cells(8, 10, 3)], atol=1e-4)


@torch.no_grad()
def test_from_a_picture_to_its_label_map(golden, paper_net):
    stored = np.load(golden("set10_random_walk_psa.npz"))
    image = np.zeros((1, 3, 96, 128), np.float32)                   # 90 x 125, padded to whole cells
    image[0, :, :90, :125] = normalize(stored["img"]).transpose(2, 0, 1)
    affinity = pair_affinity(paper_net(torch.from_numpy(image)))[0]
    np.testing.assert_allclose(affinity, stored["aff_dense"][pairs_of_cells(12, 16, 5)], atol=1e-4)
    walked = random_walk(start_scores(torch.from_numpy(stored["cams"]), alpha=16), affinity)
    rows = nn.functional.interpolate(walked[None], scale_factor=8, mode="bilinear")[0].argmax(0)[:90, :125]
    classes = np.array([0, *stored["keys"] + 1])
    assert (classes[rows] == stored["label_map"]).mean() >= 0.995


@pytest.mark.parametrize(("number", "radius"), [(0, 5), (1, 5), (2, 4), (3, 5)])
def test_labels_are_the_authors(golden, number, radius):
    stored = np.load(golden("set07_affinity_labels.npz"))
    found = affinity_labels(torch.from_numpy(stored[f"label_{number}"]), radius)
    for kind, name in zip(found, KINDS):
        assert kind.dtype == torch.float32
        np.testing.assert_array_equal(kind, stored[f"{name}_{number}"])


@pytest.mark.parametrize(("number", "size", "offsets", "flip"), [(0, 128, (0, 7, 8, 0), False),
                                                                 (1, 96, (0, 57, 0, 17), True)])
def test_a_training_item_is_the_authors(golden, number, size, offsets, flip):
    """What is drawn comes from the manifest; the crop precedes the normalisation, so the padding is black."""
    stored = np.load(golden("set07_affdataset_merge.npz"))

    def cut(picture):
        picture = crop(picture, size, offsets)
        return picture[:, ::-1] if flip else picture

    low, high = (torch.from_numpy(cut(stored[f"{name}_{number}"].astype(np.float32).transpose(1, 2, 0))
                                  .transpose(2, 0, 1).copy()) for name in ("la", "ha"))
    label = confident_labels(low, high)
    assert label.dtype == torch.int64
    np.testing.assert_array_equal(label, stored[f"merged_label_{number}"])
    for kind, name in zip(affinity_labels(label), KINDS):
        np.testing.assert_array_equal(kind, stored[f"{name}_{number}"])
    image = normalize(cut(stored[f"img_{number}"])).transpose(2, 0, 1)
    np.testing.assert_allclose(image, stored[f"out_img_{number}"], atol=1e-2)


def test_the_loss_is_the_authors(golden):
    stored = np.load(golden("set09_affinity_loss.npz"))
    affinity = torch.from_numpy(stored["aff"]).requires_grad_()
    kinds = affinity_labels(torch.from_numpy(stored["label_maps"]))
    for kind, name in zip(kinds, KINDS):
        np.testing.assert_array_equal(kind, stored[f"{name}_label"])
    terms = affinity_loss(affinity, *kinds)
    terms["loss"].backward()
    for name in ("loss", "loss_bg", "loss_fg", "loss_neg"):
        theirs = stored["_".join(reversed(name.split("_")))]
        np.testing.assert_allclose(terms[name].detach(), theirs, rtol=1e-5)
    np.testing.assert_allclose(affinity.grad, stored["grad_aff"], rtol=1e-5, atol=1e-9)

    without_fg = affinity_loss(affinity.detach(), kinds[0], torch.zeros_like(kinds[1]), kinds[2])
    assert without_fg["loss_fg"] == stored["nofg_fg_loss"] == 0
    np.testing.assert_allclose(without_fg["loss"], stored["nofg_loss"], rtol=1e-5)


# ---- the network ----

def test_features_of_a_narrow_network(small):
    features = small(torch.rand(2, 3, 33, 50))
    assert features.shape == (2, 56, 5, 7)
    assert (features < 0).any() and features.min() >= -1            # ELU
    assert [tuple(getattr(small, name).weight.shape[:2]) for name in small.new_layers] == [
        (8, 64), (16, 128), (32, 256), (56, 56)]


def test_new_layers_start_as_the_authors(small):
    torch.manual_seed(0)
    net = AffinityNet(width=0.5, blocks=(1, 1, 1, 1, 1, 0))
    for name in ("f8_3", "f8_4", "f8_5"):
        weight = getattr(net, name).weight
        assert weight.std().item() == pytest.approx((2 / weight.shape[1]) ** 0.5, rel=0.05)
        assert weight.abs().max() > 2.5 * weight.std()              # normal: a uniform one ends at 1.73
    bound = 4 * (6 / (2 * 224)) ** 0.5
    assert 0.98 * bound < net.f9.weight.abs().max() <= bound
    assert net.f9.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert all(getattr(net, name).bias is None for name in net.new_layers)


def test_starts_from_a_classifier(small):
    classifier = CAMNet(3, width=0.125, blocks=(1, 1, 1, 1, 1, 0))
    report = load_weights(small, official_state(classifier), head="skip")
    assert report["new"] == [f"{name}.weight" for name in small.new_layers] and report["unused"] == ["fc8.weight"]


def test_head_stays_float32_under_autocast(small):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = small(torch.rand(1, 3, 32, 32))
        assert small.backbone(torch.rand(1, 3, 32, 32))[2].dtype == torch.bfloat16
    assert features.dtype == torch.float32 and not torch.equal(features, features.bfloat16().float())


# ---- pairs ----

def slow_pairs(h, w, radius):
    """Give the pairs one by one, as (first cell, second cell) of each offset."""
    half_disc = [(0, x) for x in range(1, radius)]
    half_disc += [(y, x) for y in range(1, radius) for x in range(1 - radius, radius) if x**2 + y**2 < radius**2]
    return [[((i, j), (i + y, j + x)) for i in range(h - radius + 1) for j in range(radius - 1, w - radius + 1)]
            for y, x in half_disc]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(5, 9), (6, 13), (14, 11)])
@pytest.mark.parametrize("radius", [2, 3, 5])
def test_pairs_equal_a_loop_over_cells(size, radius):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 7, *size, generator=generator)
    label = torch.tensor([0, 0, 1, 4, 255])[torch.randint(5, size, generator=generator)]
    affinity, kinds = pair_affinity(features, radius), affinity_labels(label, radius)
    for p, row in enumerate(slow_pairs(*size, radius)):
        assert affinity.shape[2] == len(row)
        for n, (a, b) in enumerate(row):
            for i in range(2):
                distance = sum(abs(float(features[i, d][a]) - float(features[i, d][b])) for d in range(7)) / 7
                assert float(affinity[i, p, n]) == pytest.approx(np.exp(-distance), rel=1e-5)
            first, second = int(label[a]), int(label[b])
            known = 255 not in (first, second)
            assert [bool(kind[p, n]) for kind in kinds] == [
                known and first == second == 0, known and first == second > 0, known and first != second]
    assert affinity.shape[1] == len(slow_pairs(*size, radius)) == len(offsets(radius))


def test_the_offsets_and_their_mirror_images_make_the_disc():
    half = offsets(5)
    both = half + [(-y, -x) for y, x in half]
    assert len(half) == 34 and len(set(both)) == 68
    assert {(y, x) for y in range(-9, 10) for x in range(-9, 10) if 0 < y * y + x * x < 25} == set(both)


def test_labels_of_a_batch_are_those_of_each(batch):
    together = affinity_labels(batch["label_map"])
    for i, label in enumerate(batch["label_map"]):
        assert all(torch.equal(kinds[i], kind) for kinds, kind in zip(together, affinity_labels(label)))


@pytest.mark.parametrize("radius", [0, 1])
def test_no_radius_no_pairs(radius):
    assert pair_affinity(torch.rand(2, 7, 3, 4), radius).shape == (2, 0, 12)
    assert [kind.shape for kind in affinity_labels(torch.zeros(3, 4), radius)] == [(0, 12)] * 3


def test_a_map_that_is_too_small_for_the_radius():
    for size in ((4, 20), (20, 8)):
        with pytest.raises(ValueError, match=f"no pair of radius 5 fits into {size[0]}x{size[1]} cells"):
            pair_affinity(torch.rand(1, 2, *size))


@pytest.mark.parametrize(("h", "w", "psa", "aeft"), [
    (47, 63, 5, 5), (11, 11, 5, 5), (10, 30, 5, 4), (9, 9, 5, 4), (5, 9, 5, 2), (30, 9, 5, 4), (30, 8, 3, 3),
    (4, 30, 1, 1), (3, 3, 1, 1), (2, 9, 0, 0), (1, 1, 0, 0)])
def test_the_radius_of_small_maps(h, w, psa, aeft):
    assert effective_radius(h, w) == effective_radius(h, w, rule="psa") == psa
    assert effective_radius(h, w, rule="aeft") == aeft
    for radius in (psa, aeft):
        assert pair_affinity(torch.rand(1, 2, h, w), radius).shape[1] == len(offsets(radius))


def test_an_unknown_rule():
    with pytest.raises(ValueError, match="rule must be psa or aeft, not 'both'"):
        effective_radius(9, 9, rule="both")


# ---- confident labels ----

def cells(*rows):
    """Make scores (R, 8, 8 n) that are constant in each cell."""
    return torch.tensor(rows, dtype=torch.float32)[:, None].repeat_interleave(8, 2).repeat(1, 8, 1)


def test_what_is_confident():
    """By cell: object in low; background in high; neither; both; no score; hardly one; one in high alone."""
    low = cells([0.3, 0.9, 0.9, 0.3, 0, 0, 0], [0.2, 0.1, 0.1, 0.7, 0, 9e-6, 0], [0.5, 0.0, 0.0, 0, 0, 0, 0])
    high = cells([0.1, 0.8, 0.2, 0.9, 0, 0, 0.9], [0.2, 0.2, 0.8, 0.1, 0, 9e-6, 0.1], [0.7, 0.0, 0.0, 0, 0, 0, 0])
    assert confident_labels(low, high).tolist() == [[2, 0, 255, 0, 255, 255, 0]]


def test_scores_are_averaged_before_they_are_compared():
    low = torch.zeros(3, 8, 8)
    low[0], low[1, :5], low[2, 5:] = 0.4, 0.5, 1.0          # row 1 wins most pixels, 0 and 2 the mean: .4 .3125 .375
    low[2, 4:] = 1.0
    assert confident_labels(low, low).tolist() == [[2]]


def test_crf_maps_that_do_not_fit():
    for shapes in (((2, 16, 8), (3, 16, 8)), ((2, 12, 8),) * 2, ((2, 8, 12),) * 2):
        with pytest.raises(ValueError, match="multiples of 8"):
            confident_labels(*(torch.rand(shape) for shape in shapes))


# ---- the objective ----

class Features(nn.Module):
    """A tiny network whose map is as large as its image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, image):
        return torch.tanh(self.conv(image))


def gradient(objective, batches):
    """Average loss and gradient over batches, as processes do."""
    objective.zero_grad()
    losses = [objective(batch, 0)["loss"] / len(batches) for batch in batches]
    sum(losses).backward()
    return sum(losses).detach(), next(objective.parameters()).grad.clone()


def test_the_objective_is_the_loss_of_its_pairs(batch):
    objective = AffinityLearning(Features())
    terms = objective(batch, epoch=3)
    affinity, kinds = pair_affinity(objective.net(batch["image"])), affinity_labels(batch["label_map"])
    for name, value in affinity_loss(affinity, *kinds).items():
        torch.testing.assert_close(terms[name], value)
    torch.testing.assert_close(terms["affinity_same"], affinity[(kinds[0] + kinds[1]) > 0].mean())
    torch.testing.assert_close(terms["affinity_different"], affinity[kinds[2] > 0].mean())
    assert not terms["affinity_same"].requires_grad and not terms["affinity_different"].requires_grad


def test_the_loss_is_lower_where_pairs_are_right():
    kinds = affinity_labels(torch.tensor([0, 0, 1, 2, 2, 255, 0, 1, 1, 2]).repeat(6, 1))
    right = (kinds[0] + kinds[1]) * 0.9 + 0.05
    assert affinity_loss(right, *kinds)["loss"] < 0.11 < 2 < affinity_loss(1 - right, *kinds)["loss"]


def test_each_kind_weighs_by_its_pairs_not_by_its_share():
    affinity, kinds = torch.full((1, 34, 6), 0.5), affinity_labels(torch.zeros(1, 6, 11))
    few = torch.zeros_like(kinds[0])
    few[0, 0, 0] = 1
    terms = affinity_loss(affinity, kinds[0], few, few)
    for name, pairs in (("loss_bg", 34 * 6), ("loss_fg", 1), ("loss_neg", 1)):
        assert float(terms[name]) == pytest.approx(-np.log(0.5 + 1e-5) * pairs / (pairs + 1e-5), rel=1e-6)
    assert float(terms["loss"]) == pytest.approx(np.log(2), rel=1e-4)


def test_processes_with_few_and_many_pairs_are_one(batch):
    whole = gradient(AffinityLearning(Features()), [batch])
    shares = [{name: value[i::2] for name, value in batch.items()} for i in range(2)]      # the second one's are few
    pairs = torch.stack([torch.stack([kind.sum() for kind in affinity_labels(share["label_map"])]) for share in shares])
    assert (pairs[0] > 1.5 * pairs[1]).all()
    together = gradient(AffinityLearning(Features(), global_mean=lambda pairs_here: pairs.mean(0)), shares)
    for mine, theirs in zip(whole, together):
        assert_close(theirs, mine)
    alone = gradient(AffinityLearning(Features()), shares)
    assert (alone[1] - whole[1]).abs().max() > 0.01 * whole[1].abs().max()


def test_parts_of_a_batch_are_the_whole(batch):
    whole = gradient(AffinityLearning(Features()), [batch])
    objective = AffinityLearning(Features())
    objective.net = InParts(objective.net, 2)
    for mine, theirs in zip(whole, gradient(objective, [batch])):
        assert_close(theirs, mine)


def test_a_batch_without_any_pair_has_a_finite_loss(batch):
    batch["label_map"][:] = 255
    objective = AffinityLearning(Features())
    terms = objective(batch, 0)
    terms["loss"].backward()
    assert terms["loss"] == 0 and objective.net.conv.weight.grad.isfinite().all()
    assert terms["affinity_same"].isnan() and terms["affinity_different"].isnan()


def test_training_separates_two_colours():
    image = torch.zeros(2, 3, 12, 20)
    image[..., 10:] = 0.3
    label = (image[:, 0] > 0).long()
    objective = AffinityLearning(Features())
    optimizer = torch.optim.SGD(objective.parameters(), 1.0)
    found = []
    for _ in range(40):
        terms = objective({"image": image, "label_map": label}, 0)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        found.append(terms)
    assert found[0]["affinity_different"] > 0.7 > 0.5 > found[-1]["affinity_different"]
    assert found[-1]["affinity_same"] > 0.9
