"""Random walk: spread each CAM along the learned affinities; the highest score of a pixel gives its pseudo label.

Reads   dict/ID.npz (infer.py)   ckpt/aff_LOW_HIGH/EEE.pth (train_aff.py)   JPEGImages/ of --data_root
Writes  rw/LOW_HIGH/ID.png, palette PNG, class ids
Run     python infer_aff.py --name X --low 4 --high 24 --dup 16
        torchrun --nproc_per_node=2 -- infer_aff.py ...     (without the --, torchrun takes --dup for its own flag)
Existing files are skipped. Under torchrun each process takes its share of the images; so does each job of an array with
--shard 1/8 ... --shard 8/8.
"""
from functools import partial

import config

from tools import flags

if __name__ == "__main__":      # --help and mistakes in the flags, before torch takes seconds to load
    flags.check(config.InferAff)

import numpy as np
import torch

from advice import experiment_of, find_cams, to_make, verify_maps
from data.images import mean_pixels, read_image, voc_palette
from data.layout import VOCLayout
from data.loader import view_loader
from data.signatures import signatures
from data.transforms import MEAN
from methods.random_walk import walk_cams
from networks import build
from networks.pretrained import load_weights, read_description
from tools import distributed, engine, interrupt, remedies
from tools.aside import in_batches
from tools.crf import Job, refine_all
from tools.files import save_label_map
from tools.map_classes import compare_with_labels
from tools.maps import alpha_pair, checked_cam, others_maps
from tools.provenance import digests
from tools.words import counted

LESS_MEMORY = "--precision bf16 needs less, and so does a smaller copy of the image in JPEGImages/ (and of its maps)"


def main():
    settings = flags.parse(config.InferAff)
    device = distributed.start(settings.device)
    experiment, layout = experiment_of(settings), VOCLayout(settings.data_root)
    ids = layout.chosen(settings.infer_list, settings.only, settings.shard)
    images = distributed.on_main(lambda: signatures(layout, ids, settings.infer_list))
    cams = own_cams(settings, experiment, layout, ids, images)
    pair = alpha_pair(settings.low, settings.high)
    weights = distributed.on_main(lambda: experiment.weights(f"aff_{pair}", settings.load_epo))
    network = trained_network(experiment, weights)      # before --overwrite deletes maps
    folder = distributed.on_main(lambda: open_outputs(settings, experiment, layout, weights, pair, images))["rw"]

    todo = unfinished(folder, ids)
    distributed.say(f"{folder}: {len(ids) - len(todo)} of {len(ids)} images are finished")
    with interrupt.remembered(), in_batches():
        if mine := distributed.share(todo):
            engine.to_device(network.eval(), device, inference=True)
            write_labels(settings, layout, network, device, folder, {i: cams[i] for i in mine})
    experiment.release()
    distributed.stop()


def own_cams(settings, experiment, layout, ids, images):
    """Return {ID: path of its CAMs}; ValueError says how many are missing and which command writes them."""
    folder = experiment.find_folder(settings.dict_dir)
    cams = find_cams(settings, folder, ids)
    verify_maps(settings, experiment, folder, layout, images, settings.infer_list)
    if doubt := compare_with_labels(folder, cams, layout):
        distributed.say(doubt)
    return cams


def open_outputs(settings, experiment, layout, weights, pair, images):
    """Claim the output folder: {"rw": path}."""
    made = {name: getattr(settings, name) for name in ("dup", "beta", "logt", "crf_iterations", "radius_rule",
                                                       "precision")}
    made |= {"classes": layout.classes, "data": digests(layout.sources())}
    cams, ids = experiment.find_folder(settings.dict_dir), list(images.of)
    inputs = [weights, cams]
    return experiment.open_outputs("infer_aff", flags.as_json(settings),
                                   {"rw": (settings.rw_dir or f"rw/{pair}", "infer_aff", made, inputs)},
                                   partial(size_of_missing, layout, ids),
                                   f"{counted(len(ids), 'image')} of {settings.infer_list} with {weights}",
                                   images.with_maps(others_maps(cams, ids)))


def size_of_missing(layout, ids, folders):
    """Estimate in bytes what is still to be written: at most a byte a pixel."""
    todo = unfinished(folders["rw"], ids)
    return mean_pixels(layout, todo) * len(todo) if todo else 0


def unfinished(folder, ids):
    return [i for i in ids if not (folder / f"{i}.png").exists()]


def trained_network(experiment, weights):
    """Build the network that the network.json beside the weights describes, and load them."""
    path = experiment.network_of(weights)
    read_description(path, ("AffinityNet",))
    network = build(path)
    load_weights(network, weights)
    return network


def write_labels(settings, layout, network, device, folder, cams):
    """Write the label map of each image; cams: {ID: path of its CAMs}."""
    walked = walk_all(settings, layout, network, device, cams)
    if not settings.crf_iterations:
        for image_id, classes, scores, size in interrupt.progress(walked, len(cams), "random walk"):
            save(folder / f"{image_id}.png", size, classes[scores.argmax(0)])
        return
    jobs = (Job(image_id, partial(load_for_crf, layout, image_id, classes, scores),
                partial(save_refined, folder / f"{image_id}.png", size)) for image_id, classes, scores, size in walked)
    refined = refine_all(jobs, max(1, settings.num_workers // distributed.world()), settings.crf_iterations)
    for _ in interrupt.progress(refined, len(cams), "random walk, CRF"):
        pass


def walk_all(settings, layout, network, device, cams):
    """Yield (ID, classes (K + 1,), scores (K + 1, H', W'), (H, W)) of each image after the random walk."""
    remedy = to_make(settings, settings.dict_dir, settings.infer_list, "cam")
    images = view_loader(layout, list(cams), scales=(1,), labelled=False,
                         **engine.loader_for(device, settings.num_workers))
    with engine.autocast(device, settings.precision), remedies.one_by_one(images, LESS_MEMORY) as images:
        for image_id, views, size, _ in images:
            classes, scores = checked_cam(cams[image_id], layout, size, remedy)
            walked = walk_cams(network, views[0][:1], torch.from_numpy(scores), settings.dup, settings.beta,
                               settings.logt, settings.radius_rule)
            yield image_id, np.array([0, *classes]), walked.cpu().numpy(), size


def load_for_crf(layout, image_id, classes, walked):
    """Return the image, padded with the mean colour, and the scores with a row for every class, for AEFT's CRF.

    AEFT normalises the image, undoes that and truncates: many values are one lower there, .3 % of the labels differ.
    """
    image = read_image(layout.image_path(image_id))
    padded = np.empty((*walked.shape[1:], 3), np.uint8)
    padded[:] = [int(255 * mean) for mean in MEAN]
    padded[:image.shape[0], :image.shape[1]] = image
    scores = np.zeros((len(layout.classes) + 1, *walked.shape[1:]), np.float32)
    scores[classes] = walked
    return padded, scores


def save_refined(path, size, _, scores):
    save(path, size, scores.argmax(0))


def save(path, size, label_map):
    save_label_map(path, label_map[:size[0], :size[1]], voc_palette())


if __name__ == "__main__":
    flags.run(main)
