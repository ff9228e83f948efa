"""Train DeepLab, the network that is the result, on the pseudo labels.

Reads   JPEGImages/ of --data_root   rw/LOW_HIGH/ID.png (infer_aff.py), or another folder of label maps
        starting weights (--init)
Writes  ckpt/seg/EEE.pth, last.pth, network.json   log/train_seg.jsonl
Run     python train_seg.py --name X --label_dir rw/04_24
        python train_seg.py --name X --label_dir rw/04_24 --network deeplabv3 --backbone resnet50
The same command again resumes where the last one stopped.
"""
import hashlib
from functools import partial

import config

from tools import flags

if __name__ == "__main__":      # --help and mistakes in the flags, before torch takes seconds to load
    flags.check(config.TrainSeg)

import numpy as np
from torch import manual_seed
from tqdm import tqdm

from advice import experiment_of, to_make, verify_maps
from data.dataset import SegSet
from data.folders import find_label_map
from data.images import image_size
from data.layout import IGNORE, VOCLayout
from data.loader import Plan, train_loader
from data.signatures import signatures
from data.transforms import augment_labelled
from methods.segmentation import Segmentation
from networks import build, describe, parameter_groups
from networks.deeplab import HEADS
from networks.pretrained import load_start, named_weights, official_state
from tools import distributed, engine
from tools.maps import lacking, require_kind
from tools.words import counted


def main():
    settings = flags.parse(config.TrainSeg)
    device = distributed.start(settings.device)
    experiment, layout = experiment_of(settings), VOCLayout(settings.data_root)
    ids = layout.ids(settings.train_list)
    engine.fit_to(settings, len(ids))
    plan = Plan(len(ids), [settings.batch_size] * settings.max_epochs, settings.seed)
    layout.check(ids, settings.train_list)
    folder = label_folder(settings, experiment, layout, ids)
    inputs = {"labels": distributed.on_main(lambda: check_labels(folder, layout, ids))}
    dataset = SegSet(layout, ids, folder, settings.seed,
                     partial(augment_labelled, scale=settings.scale, crop_size=settings.crop,
                             jitter_amounts=settings.jitter))

    manual_seed(settings.seed)
    network, description, inputs["init"] = start_network(settings, experiment, layout)
    objective = Segmentation(network, IGNORE, distributed.global_mean)
    engine.prepare(objective, device, settings)
    groups = parameter_groups(network, settings.lr, settings.wt_dec, network.new_layers)

    record = flags.content(settings) | {"classes": layout.classes, "inputs": inputs}
    images = distributed.on_main(lambda: signatures(layout, ids, settings.train_list, labels=False))
    run = engine.Run(experiment, "seg", settings, record, description, plan, device, official_state, ids, images)
    engine.run_training(objective, network, groups, partial(train_loader, dataset, plan), run)


def label_folder(settings, experiment, layout, ids):
    """Find the folder of --label_dir; ValueError with the count of the labels that it lacks and what makes them."""
    folder = experiment.find_folder(settings.label_dir)
    require_kind(folder, "png")
    missing = [i for i in ids if not find_label_map(folder, i)]
    if missing:
        what = (lacking("label map", folder, missing, ids, settings.train_list) if folder.is_dir() else
                f"no folder of label maps: neither {experiment / settings.label_dir} nor {folder}")
        raise ValueError(f"{what}. " + (layout.without_map(folder, missing) or to_make(
            settings, settings.label_dir, settings.train_list, "png")))
    verify_maps(settings, experiment, folder, layout, signatures(layout, ids), settings.train_list)
    return folder


def check_labels(folder, layout, ids):
    """Read all label maps, print how often each class occurs, and return a digest of them.

    ValueError where one is none (colours, unknown ids) or not of its image's size, and where all hold a single class.
    """
    pixels, images, wrong, content = np.zeros(256, np.int64), np.zeros(256, np.int64), {}, hashlib.sha256()
    for image_id in tqdm(ids, "labels", leave=False, mininterval=1):
        labels = layout.read_label_map(image_id, folder)
        size = image_size(layout.image_path(image_id))
        if labels.shape != size:
            wrong[image_id] = labels.shape, size
        count = np.bincount(labels.ravel(), minlength=256)
        pixels, images = pixels + count, images + (count > 0)
        content.update(f"{image_id} {labels.shape}".encode() + labels.tobytes())
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(ids)} label maps in {folder} do not have their image's size "
                         f"{layout.other_sizes(wrong)}")

    names = ["background", *layout.classes]
    share = 100 * pixels / max(1, pixels.sum())
    rows = [*zip(names, share, images), ("without a label", share[IGNORE], images[IGNORE])]
    print(f"labels of {folder}, {counted(len(ids), 'image')}\n{'class':>16} {'pixels':>8} {'images':>7}")
    for name, percent, count in rows:
        print(f"{name:>16} {percent:7.3f}% {count:7d}")
    there = [name for name, count in zip(names, pixels) if count]
    if len(there) < 2:
        raise ValueError(f"the label maps in {folder} hold {f'one class alone, {there[0]}' if there else 'no class'}: "
                         "nothing can be told apart from that. Look at them, and at the stage that made them")
    if len(there) < len(names):
        print(f"no pixel is labelled {', '.join(sorted(set(names) - set(there)))}: DeepLab cannot learn that")
    return content.hexdigest()


def start_network(settings, experiment, layout):
    """Make the network with the weights that --init names; returns it, its description, the digest of the weights."""
    head = HEADS[settings.network]
    if settings.batch_size // settings.accumulate < head.least_images:
        raise ValueError(f"the head of {settings.network} has a BatchNorm that one image alone cannot train: a larger "
                         "--batch_size, or a smaller --accumulate")
    description = describe(head.__name__, layout.classes, settings, init=settings.init)
    network = build(description)
    path = experiment.find_init(settings.init, "init", named_weights(settings.backbone))
    return network, description, engine.start_from(path, "init", partial(load_start, network, description))


if __name__ == "__main__":
    flags.run(main)
