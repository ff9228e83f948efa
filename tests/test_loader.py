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
from data.loader import EpochSampler, train_loader


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
    """Give a training set of 6 small pictures with 2 classes."""
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


def batches(dataset=None, **settings):
    return list(train_loader(dataset or Numbers(), **{"batch_size": 4, "epochs": 3, "seed": 1, **settings}))


def test_each_epoch_is_another_permutation_without_its_remainder():
    steps = list(EpochSampler(10, 4, epochs=3, seed=1))
    assert len(steps) == 6 and all(len(step) == 4 for step in steps)
    orders = []
    for epoch in range(3):
        samples = steps[2 * epoch] + steps[2 * epoch + 1]
        assert {sample[0] for sample in samples} == {epoch}
        orders.append([index for _, index in samples])
        assert len(set(orders[-1])) == 8 and set(orders[-1]) <= set(range(10))
    assert orders[0] != orders[1] != orders[2]
    assert list(EpochSampler(10, 4, epochs=3, seed=2)) != steps


@pytest.mark.parametrize("start_step", range(8))
def test_a_restart_goes_on_with_the_same_sequence(start_step):
    whole = list(EpochSampler(10, 4, epochs=3, seed=1))
    rest = EpochSampler(10, 4, epochs=3, seed=1, start_step=start_step)
    assert list(rest) == whole[start_step:] and len(rest) == len(whole[start_step:])


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_each_batch(world):
    whole = list(EpochSampler(10, 4, epochs=3, seed=1))
    parts = [list(EpochSampler(10, 4, 3, 1, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(whole):
        for rank in range(world):
            assert parts[rank][step] == batch[rank::world]


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match=r"batch of 11 .* list of 10 images: --batch_size"):
        EpochSampler(10, 11, 1, 0)
    with pytest.raises(ValueError, match=r"--batch_size 4 .* 3 processes"):
        EpochSampler(10, 4, 1, 0, world=3)
    with pytest.raises(ValueError, match="--batch_size"):
        EpochSampler(10, 0, 1, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order_from_all_epochs(num_workers):
    loaded = batches(num_workers=num_workers, start_step=1)
    expected = list(EpochSampler(10, 4, 3, 1, start_step=1))
    assert [list(zip(batch["epoch"].tolist(), batch["index"].tolist())) for batch in loaded] == expected


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
