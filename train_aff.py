"""Train AffinityNet: which neighbouring cells belong to the same object?

Reads   JPEGImages/ of --data_root   crf/LOW/ID.npz and crf/HIGH/ID.npz (infer.py)
Writes  ckpt/aff_LOW_HIGH/EEE.pth, last.pth   log/train_aff_LOW_HIGH.jsonl
Run     python train_aff.py --name X --low 4 --high 24
The same command again goes on where the last one stopped.
"""
from functools import partial

import torch

import config
from data.dataset import AffinitySet, VOCLayout
from data.loader import EpochSampler, train_loader
from data.transforms import augment_mapped
from methods.affinity import AffinityLearning, confident_labels
from networks import parameter_groups
from networks.affinity import AffinityNet
from networks.pretrained import load_weights, official_state
from tools import distributed, engine
from tools.experiment import Experiment, alpha_name, alpha_pair, digest, digests, find_maps, read_crf


def main():
    settings = config.parse(config.TrainAff)
    if settings.crop % 8:
        raise ValueError(f"--crop {settings.crop}: an affinity cell has 8 pixels, take a multiple of 8")
    device = distributed.start(settings.device)
    experiment, layout = Experiment(*config.place(settings)), VOCLayout(settings.data_root)
    ids = layout.ids(settings.train_list)
    steps = EpochSampler(len(ids), settings.batch_size, settings.max_epochs, settings.seed).steps_per_epoch
    folders = crf_folders(settings, experiment, layout)
    change = partial(augment_mapped, crop_size=settings.crop, jitter_amounts=settings.jitter)
    pairs = find_pairs(settings, experiment, folders, ids)
    dataset = AffinitySet(layout, pairs, settings.seed, read_crf, change, confident_labels)
    distributed.say(f"{len(ids)} images of {settings.train_list}, labels from {' and '.join(map(str, folders))}")

    torch.manual_seed(settings.seed)
    network = AffinityNet(**{name: getattr(settings, name) for name in config.SEG_FIELDS})
    inputs = {"init": start(settings, experiment, network)} | {
        f"crf {side}": digest(folder) for side, folder in zip(("low", "high"), folders)}
    objective = AffinityLearning(network, global_mean=distributed.global_mean)
    engine.place(objective, device, settings.compile, checkpoint_blocks=settings.checkpoint_blocks)
    groups = parameter_groups(network, settings.lr, settings.wt_dec, network.new_layers)

    record = config.content(settings) | {"classes": layout.classes, "inputs": inputs | digests(layout.sources())}
    loader = partial(train_loader, dataset, settings.batch_size, settings.max_epochs, settings.seed,
                     rank=distributed.rank(), world=distributed.world(), num_workers=settings.num_workers,
                     pin_memory=device.type == "cuda")
    model = f"aff_{alpha_pair(settings.low, settings.high)}"
    engine.run_training(objective, network, groups, loader, experiment, model, settings, record, steps=steps,
                        device=device, weights=official_state, ids=ids)


def crf_folders(settings, experiment, layout):
    """Find the folders of both alphas' maps; ValueError for one that was made of another alpha, or of other data."""
    if settings.low >= settings.high:
        raise ValueError(f"--low {settings.low:g} must be below --high {settings.high:g}: the larger alpha leaves less "
                         "background")
    folders = [experiment.find_folder(f"{settings.crf_dir}/{alpha_name(a)}") for a in (settings.low, settings.high)]
    for folder, alpha in zip(folders, (settings.low, settings.high)):
        made = experiment.made_with(folder).get("alpha", alpha)
        if made != alpha:
            raise ValueError(f"{folder} holds CRF maps of alpha {made:g}, not {alpha:g}: give it back its name. "
                             f"{experiment.maker('crf', settings.crf_dir, settings.train_list, [alpha])}")
        experiment.verify(folder, digests(layout.sources()))
    return folders


def find_pairs(settings, experiment, folders, ids):
    """Return {ID: (path of the low alpha's maps, of the high one's)}; ValueError with what is missing and its maker."""
    paths = {i: tuple(find_maps(folder, i) for folder in folders) for i in ids}
    missing, lacking = [], []
    for side, (folder, alpha) in enumerate(zip(folders, (settings.low, settings.high))):
        gone = [i for i in ids if paths[i][side] is None]
        if gone:
            lacking.append(alpha)
            missing.append(f"{len(gone)} of the {len(ids)} images of {settings.train_list} have no CRF map in {folder} "
                           f"({', '.join(gone[:5])}{' ...' if len(gone) > 5 else ''})")
    if missing:
        raise ValueError(f"{'; '.join(missing)}. "
                         f"{experiment.maker('crf', settings.crf_dir, settings.train_list, lacking)}")
    return paths


def start(settings, experiment, network):
    """Load the weights that --init names; returns their digest."""
    path = experiment.find_init(settings.init, "init")
    if path is None:
        return "random"
    names = load_weights(network, path, head="skip")
    distributed.say(f"--init: {len(names['loaded'])} tensors from {path}; new: {', '.join(names['new']) or 'none'}; "
                    f"{len(names['unused'])} of the file are not used")
    return digest(path)


if __name__ == "__main__":
    config.run(main)
