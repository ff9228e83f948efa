"""Random walk: spread each CAM along the learned affinities; what wins a pixel is its pseudo label.

Reads   dict/ID.npz (infer.py)   ckpt/aff_LOW_HIGH/EEE.pth (train_aff.py)   JPEGImages/ of --data_root
Writes  rw/LOW_HIGH/ID.png, palette PNG, class ids
Run     python infer_aff.py --name X --low 4 --high 24 --dup 16
        torchrun --nproc_per_node=2 -- infer_aff.py ...     (without the -- torchrun takes --dup for one of its own)
Pictures that are done are not done again. Under torchrun the processes share the pictures, and so do job arrays with
--shard 1/8 ... --shard 8/8.
"""
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch

import config
from data.images import picture_size, read_image
from data.layout import VOCLayout
from data.loader import view_loader
from data.prepare import voc_palette
from data.transforms import MEAN
from methods.random_walk import walk_cams
from networks import build
from networks.pretrained import load_weights, read_description
from pipeline import experiment_of, to_make
from tools import distributed, engine, flags, interrupt
from tools.crf import CRFPool
from tools.files import require_space, save_labels
from tools.maps import alpha_pair, find_maps, lacking, read_cam
from tools.provenance import digests, verify


def main():
    settings = flags.parse(config.InferAff)
    device = distributed.start(settings.device)
    experiment, layout = experiment_of(settings), VOCLayout(settings.data_root)
    ids = layout.chosen(settings.infer_list, settings.only, settings.shard)
    cams = find_cams(settings, experiment, layout, ids)
    pair = alpha_pair(settings.low, settings.high)
    weights = distributed.on_main(lambda: experiment.weights(f"aff_{pair}", settings.load_epo))
    folder = distributed.on_main(lambda: open_folder(settings, experiment, layout, weights, pair, ids))

    todo = [i for i in ids if not (folder / f"{i}.png").exists()]
    distributed.say(f"{folder}: {len(ids) - len(todo)} of {len(ids)} pictures are there")
    with interrupt.remembered():
        if mine := distributed.share(todo):
            network = trained_network(experiment, weights)
            engine.to_device(network.eval(), device, inference=True)
            walk(settings, layout, network, device, folder, {i: cams[i] for i in mine})
    experiment.release()
    distributed.stop()


def find_cams(settings, experiment, layout, ids):
    """Return {ID: path of its CAMs}; ValueError with the count of what is missing and the command that makes it."""
    folder = experiment.find_folder(settings.dict_dir)
    cams = {i: find_maps(folder, i) for i in ids}
    if missing := [i for i, path in cams.items() if path is None]:
        raise ValueError(f"{lacking('CAMs', folder, missing, ids, settings.infer_list)}. "
                         f"{to_make(settings, settings.dict_dir, settings.infer_list, 'cam')}")
    verify(folder, experiment.folder, digests(layout.sources()))
    return cams


def open_folder(settings, experiment, layout, weights, pair, ids):
    """Claim the output folder, and check that the disk can hold what is missing."""
    shared, rw_dir = settings.shard != "1/1", settings.rw_dir or f"rw/{pair}"
    if shared:
        experiment.lock(f"{rw_dir}, shard {settings.shard}")
    made = {name: getattr(settings, name) for name in ("dup", "beta", "logt", "crf_iterations", "radius_rule",
                                                       "precision")}
    made |= {"classes": layout.classes, "data": digests(layout.sources())}
    folder = experiment.claim(rw_dir, "infer_aff", made, [weights, experiment.find_folder(settings.dict_dir)],
                              settings.overwrite, shared)
    todo = [i for i in ids if not (folder / f"{i}.png").exists()]
    if todo:        # at most a byte a pixel
        plane = np.mean([np.prod(picture_size(layout.image_path(i))) for i in todo[:: -(-len(todo) // 10)]])
        require_space(folder, plane * len(todo))
    experiment.save_config("infer_aff", flags.as_json(settings))
    experiment.log("infer_aff", f"{len(ids)} pictures of {settings.infer_list} with {weights}")
    return folder


def trained_network(experiment, weights):
    """Build the network that the network.json beside the weights describes, and load them."""
    network = build(read_description(experiment.network_of(weights), ("AffinityNet",)))
    load_weights(network, weights)
    return network


def walk(settings, layout, network, device, folder, cams):
    """Write the label map of each picture; cams: {ID: path of its CAMs}."""
    pictures = view_loader(layout, list(cams), scales=(1,), labelled=False,
                           **engine.loader_for(device, settings.num_workers))
    workers = max(1, settings.num_workers // distributed.world())
    with (CRFPool(workers) if settings.crf_iterations else nullcontext() as pool,
          engine.autocast(device, settings.precision)):
        for image_id, views, size, _ in interrupt.progress(pictures, len(cams), "random walk"):
            classes, scores = read_checked(cams[image_id], size, layout)
            walked = walk_cams(network, views[0][:1], torch.from_numpy(scores), settings.dup, settings.beta,
                               settings.logt, settings.radius_rule).cpu().numpy()           # (K + 1, H', W')
            classes, path = np.array([0, *classes]), folder / f"{image_id}.png"
            if not pool:
                save(path, classes[walked.argmax(0)], size)
                continue
            pool.submit(partial(load_for_crf, layout, image_id, classes, walked),
                        lambda _, sharp, path=path, size=size: save(path, sharp.argmax(0), size), [None],
                        settings.crf_iterations, image_id)
            if pool.pending >= 4 * workers:     # scores of many pictures would fill the memory
                next(pool.results())


def read_checked(path, size, layout):
    """Read a picture's CAMs; ValueError for those of another size, of unknown classes, or that are none."""
    classes, scores = read_cam(path, size)
    if unknown := sorted(set(classes.tolist()) - set(range(1, len(layout.classes) + 1))):
        raise ValueError(f"{path} holds the class {unknown[-1]}, but the object classes of {layout.root} are 1.."
                         f"{len(layout.classes)}: " + ("these are CRF maps, not CAMs (--dict_dir)" if 0 in unknown else
                                                       "run infer.py again, or mend classes.txt"))
    if scores.size and not 0 <= scores.min() <= scores.max() <= 1:
        raise ValueError(f"{path} holds scores outside 0 .. 1: delete it and run infer.py again")
    return classes, scores


def load_for_crf(layout, image_id, classes, walked):
    """Give the picture, padded with the mean colour, and the scores with a row for every class: AEFT's CRF.

    AEFT's picture is the normalised one turned back and cut off: many values are one lower, .3 % of the labels change.
    """
    image = read_image(layout.image_path(image_id))
    padded = np.empty((*walked.shape[1:], 3), np.uint8)
    padded[:] = [int(255 * mean) for mean in MEAN]
    padded[:image.shape[0], :image.shape[1]] = image
    scores = np.zeros((len(layout.classes) + 1, *walked.shape[1:]), np.float32)
    scores[classes] = walked
    return padded, scores


def save(path, labels, size):
    save_labels(path, labels[:size[0], :size[1]], voc_palette())


if __name__ == "__main__":
    flags.run(main)
