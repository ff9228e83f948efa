"""The training sets of the classifiers, of DeepLab and of the affinity network: (epoch, index) in, a sample out."""
import numpy as np
import torch

from data.images import read_pillow
from data.transforms import extent_of, shrink

AUGMENT_STREAM, TARGET_STREAM = 1, 2                # last number of a sample's seed; 0 is the order of an epoch


class TrainSet(torch.utils.data.Dataset):
    """The training images with their image-level labels, augmented by `augment(image, rng) -> (3, S, S)`;
    the image is Pillow's, in RGB.

    An item is requested by (epoch, index) and depends on (seed, epoch, index) alone, so it is the same for any number
    of processes and after a restart. `sample_target(label (B, C), generator) -> (B,)` adds the class to erase.
    An image with a side longer than `max_side` is shrunk to it first, unless that is 0.
    """

    def __init__(self, layout, ids, seed, augment, sample_target=None, max_side=0):
        layout.check(ids)
        self.layout, self.ids, self.seed, self.max_side = layout, ids, seed, max_side
        self.augment, self.sample_target = augment, sample_target
        self.labels = torch.from_numpy(layout.labels(ids))                                  # (N, C)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, key):
        """Give {"image" float32 (3, S, S), "label" float32 (C,), "index" int}, and "target" int64 () if sampled."""
        epoch, index = key
        path = self.layout.image_path(self.ids[index])
        image = shrink(read_pillow(path, self.max_side), self.max_side)
        rng = np.random.default_rng([self.seed, epoch, index, AUGMENT_STREAM])
        item = {"image": self.augment(image, rng), "label": self.labels[index], "index": index}
        if self.sample_target is not None:
            rng = np.random.default_rng([self.seed, epoch, index, TARGET_STREAM])
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            item["target"] = self.sample_target(self.labels[index : index + 1], generator=generator)[0]
        return item


class SegSet(torch.utils.data.Dataset):
    """The training images with the label maps of a folder, augmented together by
    `augment(image, label_map, rng) -> (3, S, S), (S, S)`. As of TrainSet, an item depends on (seed, epoch, index)
    alone.
    """

    def __init__(self, layout, ids, label_dir, seed, augment):
        layout.check(ids)
        self.layout, self.ids, self.label_dir, self.seed, self.augment = layout, ids, label_dir, seed, augment

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, key):
        """Give {"image" float32 (3, S, S), "label_map" uint8 (S, S) class ids or 255, "index" int}."""
        epoch, index = key
        image = read_pillow(self.layout.image_path(self.ids[index]))
        label_map = self.layout.read_label_map(self.ids[index], self.label_dir)             # (H, W)
        rng = np.random.default_rng([self.seed, epoch, index, AUGMENT_STREAM])
        image, label_map = self.augment(image, label_map, rng)
        return {"image": image, "label_map": label_map, "index": index}


class AffinitySet(torch.utils.data.Dataset):
    """The training images with their CRF maps of two alphas, augmented together by
    `augment(image, maps, rng) -> (3, S, S), [(R, S, S), (R, S, S)]` and merged by `merge(low, high) -> (h, w)`.

    paths  {ID: (path of the lower alpha's maps, of the higher one's)}
    read   function path, size=(H, W) -> classes (R,) with 0 first, scores (R, H, W), checked
    As of TrainSet, an item depends on (seed, epoch, index) alone.
    """

    def __init__(self, layout, paths, seed, read, augment, merge):
        self.ids = list(paths)
        layout.check(self.ids)
        self.layout, self.paths, self.seed = layout, paths, seed
        self.read, self.augment, self.merge = read, augment, merge

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, key):
        """Give {"image" float32 (3, S, S), "label_map" int64 (h, w): rows of the maps or 255, "index" int}."""
        epoch, index = key
        image_id = self.ids[index]
        image = read_pillow(self.layout.image_path(image_id))
        rng = np.random.default_rng([self.seed, epoch, index, AUGMENT_STREAM])
        image, maps = self.augment(image, self._read_maps(image_id, extent_of(image)), rng)
        return {"image": image, "label_map": self.merge(*maps), "index": index}

    def _read_maps(self, image_id, size):
        """Read both CRF maps of an image of size (H, W): [(R, H, W), (R, H, W)], of the same classes."""
        low, high = self.paths[image_id]
        (classes, scores), (others, other_scores) = self.read(low, size=size), self.read(high, size=size)
        if classes.tolist() != others.tolist():
            raise ValueError(f"{low} holds maps of the classes {classes.tolist()}, {high} those of {others.tolist()}: "
                             "both have to be made of the same CAMs")
        return [scores, other_scores]
