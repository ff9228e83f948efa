"""The order of training: the same sequence for any number of workers and processes, and after a restart."""
import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from data import transforms
from data.dataset import TrainSet
from data.layout import VOCLayout
from data.loader import Plan, train_loader


class Numbers(torch.utils.data.Dataset):
    """Give (epoch, index) back; index 5 cannot be read if `broken`."""

    def __init__(self, broken=False):
        self.broken = broken

    def __len__(self):
        return 10

    def __getitem__(self, key):
        if self.broken and key[1] == 5:
            raise ValueError("five.jpg is truncated")
        return {"epoch": key[0], "index": key[1]}


@pytest.fixture
def train_set(tmp_path):
    """Give a training set of 6 small images with 2 classes."""
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    labels = {"a": ["cat"], "b": ["dog"], "c": ["cat", "dog"], "d": [], "e": ["cat"], "f": ["dog"]}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    rng = np.random.default_rng(0)
    for name in "abcdef":
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"JPEGImages/{name}.png")
    augment = partial(transforms.augment, resize=(16, 32), crop_size=24)
    return TrainSet(VOCLayout(tmp_path), list("abcdef"), 4242, augment, first_class)


def first_class(label, generator):
    """Stand in for methods.cse.sample_target: a random number in place of the class."""
    return torch.randint(1000, (len(label),), generator=generator)


def batches(dataset=None, batch_size=4, epochs=3, **settings):
    dataset = dataset or Numbers()
    return list(train_loader(dataset, Plan(len(dataset), [batch_size] * epochs, 1), **settings))


def listed(start=0, sizes=(4, 4, 4), seed=1, images=10):
    return [(epoch, members.tolist()) for epoch, members in Plan(images, sizes, seed).batches(start)]


def test_each_epoch_is_another_permutation_without_its_remainder():
    steps = listed()
    assert [epoch for epoch, _ in steps] == [0, 0, 1, 1, 2, 2] and all(len(members) == 4 for _, members in steps)
    orders = [steps[2 * epoch][1] + steps[2 * epoch + 1][1] for epoch in range(3)]
    for order in orders:
        assert len(set(order)) == 8 and set(order) <= set(range(10))
    assert orders[0] != orders[1] != orders[2]
    assert listed(seed=2) != steps


def test_epochs_may_have_batches_of_different_sizes():
    """AEFT's: 8 in epochs 0 to 17, then 32."""
    plan = Plan(1632, [8] * 18 + [32] * 22, 4242)
    assert plan.steps == 204 * 18 + 51 * 22 and plan.epochs == 40
    assert (plan.epoch_of(0), plan.epoch_of(203), plan.epoch_of(204)) == (0, 0, 1)
    assert plan.epoch_of(204 * 18 - 1) == 17 and plan.epoch_of(204 * 18) == 18 and plan.epoch_of(plan.steps) == 40
    assert plan.place_of(204 * 18 + 50) == (18, 50, 51) and plan.place_of(plan.steps - 1) == (39, 50, 51)
    assert [steps for steps in range(500) if plan.ends_epoch(steps)] == [204, 408] and plan.ends_epoch(plan.steps)
    sizes = [len(members) for _, members in listed(sizes=(2, 3, 5), images=11)]
    assert sizes == [2] * 5 + [3] * 3 + [5] * 2
    # The order of an epoch does not depend on the epochs before it.
    assert listed(sizes=(2, 5))[5:] == listed(sizes=(5, 5))[2:]


@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 5, 3)])
@pytest.mark.parametrize("start", range(8))
def test_a_restart_resumes_with_the_same_sequence(start, sizes):
    assert listed(start, sizes) == listed(0, sizes)[start:]
    loader = train_loader(Numbers(), Plan(10, sizes, 1), start)
    assert len(loader) == len(listed(0, sizes)[start:])


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_each_batch(world):
    parts = [batches(rank=rank, world=world) for rank in range(world)]
    for step, (_, members) in enumerate(listed()):
        for rank in range(world):
            assert parts[rank][step]["index"].tolist() == members[rank::world]


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match=r"batch of 11 .* list of 10 images: --batch_size"):
        Plan(10, [4, 11], 0)
    with pytest.raises(ValueError, match=r"--batch_size 4 .* 3 processes"):
        train_loader(Numbers(), Plan(10, [6, 4], 0), world=3)
    with pytest.raises(ValueError, match="--batch_size"):
        Plan(10, [0], 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order_from_all_epochs(num_workers):
    loaded = batches(num_workers=num_workers, start_step=1)
    assert [(int(batch["epoch"][0]), batch["index"].tolist()) for batch in loaded] == listed(1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_goes_wrong_in_a_worker_is_told(num_workers):
    with pytest.raises(ValueError, match="five.jpg is truncated"):
        batches(Numbers(broken=True), num_workers=num_workers, epochs=9)


def test_samples_are_the_same_for_any_number_of_workers(train_set):
    alone, shared = (batches(train_set, batch_size=3, num_workers=workers) for workers in (0, 2))
    assert len(alone) == 6
    for one, other in zip(alone, shared):
        assert one.keys() == other.keys() == {"image", "label", "index", "target"}
        assert one["image"].shape == (3, 3, 24, 24) and one["image"].is_contiguous()
        assert one["label"].shape == (3, 2) and one["target"].shape == (3,)
        assert one["target"].dtype == one["index"].dtype == torch.int64
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_loading_leaves_the_global_randomness_alone(train_set):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(train_set)
    assert torch.equal(torch.get_rng_state(), before)
