"""Batches for training: one sequence from the first step to the last, which a restart enters where it was left."""
import atexit
import multiprocessing
import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.images import read_image
from data.transforms import shrink, views


def train_loader(dataset, batch_size, epochs, seed, start_step=0, rank=0, world=1, num_workers=0, pin_memory=False):
    """Give one DataLoader for all the rest of training: dicts of stacked tensors, (batch_size // world, ...) each.

    `dataset[(epoch, index)]` is a sample; for the rest see EpochSampler. The workers live until the last epoch.
    """
    sampler = EpochSampler(len(dataset), batch_size, epochs, seed, start_step, rank, world)
    # A generator of its own: without one, each start of the loader would draw from the global one that dropout uses.
    return DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers, pin_memory=pin_memory,
                      generator=torch.Generator().manual_seed(seed), worker_init_fn=_leave_signals_to_the_parent)


def steps_per_epoch(images, batch_size):
    """Count the batches of an epoch; ValueError for a batch_size of none, or of more than there are images."""
    if not 1 <= batch_size <= images:
        raise ValueError(f"a batch of {batch_size} cannot be drawn from a list of {images} images: "
                         f"--batch_size takes 1 to {images} here")
    return images // batch_size


class EpochSampler:
    """Yield the (epoch, index) of each step's samples, step after step and epoch after epoch, from `start_step` on.

    An epoch is a permutation of the images drawn from (seed, epoch), cut into batches of `batch_size`; the last,
    incomplete one is dropped. Of several processes each takes its part of every batch: every world-th, from `rank` on.
    """

    def __init__(self, images, batch_size, epochs, seed, start_step=0, rank=0, world=1):
        self.steps_per_epoch = steps_per_epoch(images, batch_size)
        if batch_size % world:
            raise ValueError(f"--batch_size {batch_size} is the batch of all processes together, and {world} processes "
                             f"cannot share it evenly: take a multiple of {world}, or another number of processes")
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.start_step, self.steps = start_step, epochs * self.steps_per_epoch
        self.rank, self.world = rank, world

    def __len__(self):
        return max(0, self.steps - self.start_step)

    def __iter__(self):
        for step in range(self.start_step, self.steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if batch == 0 or step == self.start_step:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
            members = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in members[self.rank :: self.world]]


def view_loader(layout, ids, scales, labelled=True, max_side=0, tolerant=False, num_workers=0, pin_memory=False):
    """Yield (ID, views, (H, W), label (C,)) of each image in order, for inference; labelled=False: label is None.

    max_side  shrink an image with a longer side to it, unless it is 0; (H, W) is then the shrunk size
    tolerant  yield (ID, None, error, None) for an image that cannot be read
    """
    return DataLoader(_Views(layout, ids, scales, labelled, max_side, tolerant), batch_size=None,
                      num_workers=num_workers, pin_memory=pin_memory, generator=torch.Generator(),
                      worker_init_fn=_leave_signals_to_the_parent)


def _leave_signals_to_the_parent(worker):
    """Keep reading when a signal to stop reaches the whole group of processes: the parent may need one more batch."""
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # The second SIGTERM is the parent's, which ends its children so.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


@atexit.register
def _end_workers():
    """End the workers that still live: multiprocessing would ask them once, which they overhear, and wait for ever."""
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
            image = shrink(read_image(self.layout.image_path(image_id)), self.max_side)     # (H, W, 3)
        except (ValueError, OSError) as error:
            if self.tolerant:
                return image_id, None, str(error), None
            raise
        label = torch.from_numpy(self.layout.label(image_id)) if self.labelled else None
        return image_id, views(image, self.scales), image.shape[:2], label
