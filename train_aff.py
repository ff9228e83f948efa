"""Train AffinityNet: which neighbouring cells belong to the same object?

Reads   JPEGImages/ of --data_root   crf/LOW/ID.npz and crf/HIGH/ID.npz (infer.py)   starting weights (--init)
Writes  ckpt/aff_LOW_HIGH/EEE.pth, last.pth, network.json   log/train_aff_LOW_HIGH.jsonl
Run     python train_aff.py --name X --low 4 --high 24
The same command again resumes where the last one stopped.
"""
from functools import partial
from pathlib import Path

import config

from tools import flags

if __name__ == "__main__":      # --help and mistakes in the flags, before torch takes seconds to load
    flags.check(config.TrainAff)

import torch

from advice import command_line, experiment_of, to_make, verify_maps
from data.dataset import AffinitySet
from data.layout import VOCLayout
from data.loader import Plan, train_loader
from data.signatures import signatures
from data.transforms import augment_mapped
from methods.affinity import AffinityLearning, confident_labels
from networks import build, describe, parameter_groups
from networks.pretrained import load_start, named_weights, official_state
from tools import distributed, engine
from tools.catalog import made_from
from tools.map_classes import compare_with_labels
from tools.maps import (
    NOT_COMPLETED,
    alpha_name,
    alpha_pair,
    checked_crf,
    find_maps,
    holds_maps,
    is_foreign,
    lacking,
    others_maps,
    pair_alphas,
    require_kind,
)
from tools.provenance import digest, digests, made_with
from tools.words import counted


def main():
    settings = flags.parse(config.TrainAff)
    device = distributed.start(settings.device)
    experiment, layout = experiment_of(settings), VOCLayout(settings.data_root)
    ids = layout.ids(settings.train_list)
    engine.fit_to(settings, len(ids))
    plan = Plan(len(ids), [settings.batch_size] * settings.max_epochs, settings.seed)
    images = distributed.on_main(lambda: signatures(layout, ids, settings.train_list))
    folders = crf_folders(settings, experiment, layout, images)
    images = distributed.on_main(lambda: images.with_maps(others_maps(folders, ids)))
    change = partial(augment_mapped, crop_size=settings.crop, jitter_amounts=settings.jitter)
    pairs = find_pairs(settings, experiment, folders, ids)
    for side, folder in enumerate(folders):
        if doubt := compare_with_labels(folder, {i: pair[side] for i, pair in pairs.items()}, layout, "crf"):
            distributed.say(f"warning: {doubt}")
    remedy = to_make(settings, settings.crf_dir, settings.train_list, "crf", [settings.low, settings.high])
    distributed.say(f"{counted(len(ids), 'image')} of {settings.train_list}, labels from "
                    f"{' and '.join(map(str, folders))}")

    torch.manual_seed(settings.seed)
    description = describe("AffinityNet", layout.classes, settings, init=settings.init)
    network = build(description)
    if settings.crop % network.image_multiple:
        raise ValueError(f"--crop {settings.crop}: with this backbone take a multiple of {network.image_multiple}")
    dataset = AffinitySet(layout, pairs, settings.seed, partial(checked_crf, layout=layout, remedy=remedy), change,
                          partial(confident_labels, stride=network.stride))
    init = engine.start_from(experiment.find_init(settings.init, "init", named_weights(settings.backbone)), "init",
                             partial(load_start, network, description))
    inputs = {"init": init, "crf low": digest(folders[0]), "crf high": digest(folders[1])}
    objective = AffinityLearning(network, global_mean=distributed.global_mean)
    engine.prepare(objective, device, settings)
    groups = parameter_groups(network, settings.lr, settings.wt_dec, network.new_layers)

    record = flags.content(settings) | {"classes": layout.classes, "inputs": inputs | digests(layout.sources())}
    model = f"aff_{alpha_pair(settings.low, settings.high)}"
    run = engine.Run(experiment, model, settings, record, description, plan, device, official_state, ids, images)
    engine.run_training(objective, network, groups, partial(train_loader, dataset, plan), run)


def crf_folders(settings, experiment, layout, images):
    """Find the folders of both alphas' maps; ValueError for one that was made of another alpha, or of other data."""
    folders = [crf_folder(settings, experiment, alpha) for alpha in (settings.low, settings.high)]
    for folder, alpha in zip(folders, (settings.low, settings.high)):
        require_kind(folder, "crf")
        made = made_with(folder).get("alpha", alpha)
        if made != alpha:
            raise ValueError(f"{folder} holds CRF maps of alpha {made:g}, not {alpha:g}: give it back its name. "
                             f"{to_make(settings, settings.crf_dir, settings.train_list, 'crf', [alpha])}")
        verify_maps(settings, experiment, folder, layout, images, settings.train_list)
    return folders


def crf_folder(settings, experiment, alpha):
    """Find the folder of an alpha's maps: crf/04, 4 or 4.0, or, as psa and SEAM name it, crf_4.0."""
    names = [f"{settings.crf_dir}{between}{alpha_name(alpha)}" for between in "/_"]
    found = next((folder for folder in map(experiment.find_folder, names) if folder.is_dir()), None)
    if not found and holds_maps(experiment.find_folder(settings.crf_dir)):
        above, _, own = settings.crf_dir.rstrip("/").rpartition("/")
        model = made_from(experiment, settings.crf_dir)
        advice = f"Name the one above: {above}" if above and pair_alphas(f"{own}_{own}") else (
            "To make CRF maps of CAMs, run: " + command_line(settings, settings.name, "infer.py", [
                *(["--model", model] if model else []), "--crf", "--alphas", f"{settings.low:g}",
                f"{settings.high:g}", "--dict_dir", settings.crf_dir, "--infer_list", settings.train_list]))
        raise ValueError(f"--crf_dir {settings.crf_dir} holds maps itself, not a folder for each alpha. {advice}")
    return found or Path(names[0])


def find_pairs(settings, experiment, folders, ids):
    """Return {ID: (path of the low alpha's maps, of the high one's)}; ValueError with what is missing and its maker."""
    paths = {i: tuple(find_maps(folder, i) for folder in folders) for i in ids}
    words, alphas = [], []
    for side, (folder, alpha) in enumerate(zip(folders, (settings.low, settings.high))):
        gone = [i for i in ids if paths[i][side] is None]
        if gone:
            alphas.append(alpha)
            words.append(lacking("CRF map", folder, gone, ids, settings.train_list))
    if words:
        foreign = any(map(is_foreign, folders))
        raise ValueError(f"{'; '.join(words)}. " + (NOT_COMPLETED if foreign else to_make(
            settings, settings.crf_dir, settings.train_list, "crf", alphas)))
    return paths


if __name__ == "__main__":
    flags.run(main)
