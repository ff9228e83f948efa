"""Batches for training: one sequence from the first step to the last, which a restart enters where it was left."""
import atexit
import multiprocessing
import signal
from bisect import bisect_right
from itertools import accumulate

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data.images import read_image
from data.transforms import shrink, views


class Plan:
    """The batches of a training, from its first step to its last. Epochs may have batches of different sizes.

    images       of the dataset;  batch_sizes  one an epoch, over all processes;  seed  of the order of the images
    An epoch is a permutation of the images drawn from (seed, epoch), cut into batches; the last, incomplete one is
    dropped. Raises ValueError for a batch of none, or of more than there are images.
    """

    def __init__(self, images, batch_sizes, seed):
        for size in set(batch_sizes):
            if not 1 <= size <= images:
                raise ValueError(f"a batch of {size} cannot be drawn from a list of {images} images: "
                                 f"--batch_size takes 1 to {images} here")
        self.images, self.batch_sizes, self.seed = images, list(batch_sizes), seed
        self.first_steps = [0, *accumulate(images // size for size in batch_sizes)]     # of each epoch, and the end
        self.epochs, self.steps = len(self.batch_sizes), self.first_steps[-1]

    def epoch_of(self, step):
        """Return the epoch of a step; of the step after the last one, the number of epochs."""
        return bisect_right(self.first_steps, step) - 1

    def place_of(self, step):
        """Return where a step is: epoch, number in the epoch, steps of the epoch."""
        epoch = min(self.epoch_of(step), self.epochs - 1)
        first, end = self.first_steps[epoch:epoch + 2]
        return epoch, step - first, end - first

    def ends_epoch(self, steps):
        """Say whether an epoch is complete after so many steps."""
        return steps > 0 and steps in self.first_steps

    def batches(self, start=0):
        """Yield (epoch, indices of the images) of each batch from step `start` on."""
        order, shuffled = None, None
        for step in range(start, self.steps):
            epoch, number, _ = self.place_of(step)
            if epoch != shuffled:
                order, shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.images), epoch
            size = self.batch_sizes[epoch]
            yield epoch, order[number * size:(number + 1) * size]


def train_loader(dataset, plan, start_step=0, rank=0, world=1, num_workers=0, pin_memory=False):
    """Give one DataLoader for all batches of a plan from start_step on: dicts of stacked tensors.

    `dataset[(epoch, index)]` is a sample. Of several processes each takes its part of every batch. The workers live
    until the last epoch.
    """
    for size in plan.batch_sizes:
        if size % world:
            raise ValueError(f"--batch_size {size} is the batch of all processes together, and {world} processes "
                             f"cannot share it evenly: take a multiple of {world}, or another number of processes")
    # A generator of its own: without one, each start of the loader would draw from the global one that dropout uses.
    return DataLoader(dataset, batch_sampler=_Batches(plan, start_step, rank, world), num_workers=num_workers,
                      pin_memory=pin_memory, generator=torch.Generator().manual_seed(plan.seed),
                      worker_init_fn=_leave_signals_to_the_parent)


class _Batches:
    """Yield the (epoch, index) of the samples of each batch, of every world-th from `rank` on."""

    def __init__(self, plan, start_step, rank, world):
        self.plan, self.start_step, self.rank, self.world = plan, start_step, rank, world

    def __len__(self):
        return max(0, self.plan.steps - self.start_step)

    def __iter__(self):
        for epoch, members in self.plan.batches(self.start_step):
            yield [(epoch, int(index)) for index in members[self.rank :: self.world]]


def view_loader(layout, ids, scales, labelled=True, max_side=None, tolerant=False, num_workers=0, pin_memory=False):
    """Yield (ID, views, (H, W), label (C,)) of each image in order, for inference; labelled=False: label is None.

    max_side  shrink an image with a longer side to it before its views, unless it is 0; (H, W) is then the shrunk size.
              None: the stage has no flag for it
    tolerant  yield (ID, None, error, None) for an image that cannot be read
    """
    return DataLoader(_Views(layout, ids, scales, labelled, max_side, tolerant), batch_size=None,
                      num_workers=num_workers, pin_memory=pin_memory, generator=torch.Generator(),
                      worker_init_fn=_leave_signals_to_the_parent)


def _leave_signals_to_the_parent(worker):
    """Keep reading when a signal to stop reaches the whole group of processes: the parent may need one more batch."""
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # The second SIGTERM comes from the parent, which ends its children that way.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


@atexit.register
def _end_workers():
    """Kill the workers that still live: they ignore the first SIGTERM, so multiprocessing's own clean-up would hang."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)       # or torch would call their end an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class _Views(Dataset):
    def __init__(self, layout, ids, scales, labelled, max_side, tolerant):
        self.layout, self.ids, self.scales, self.labelled = layout, ids, scales, labelled
        self.max_side, self.tolerant = max_side, tolerant

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        image_id = self.ids[i]
        try:
            image = shrink(read_image(self.layout.image_path(image_id), self.max_side), self.max_side)     # (H, W, 3)
        except (ValueError, OSError) as error:
            if self.tolerant:
                return image_id, None, str(error), None
            raise
        label = torch.from_numpy(self.layout.label(image_id)) if self.labelled else None
        made = views(image, self.scales)
        if get_worker_info():
            # Here, where an error reaches the caller: in the thread that hands the tensors over, where PyTorch would do
            # it, a full /dev/shm prints a traceback, and the caller waits for ever.
            for tensor in made:
                tensor.share_memory_()
        return image_id, made, image.shape[:2], label
