"""Find the labelled classes in pictures: CAMs, dense CRF maps, overlays to look at.

Reads   ckpt/MODEL/EEE.pth, network.json   JPEGImages/ and labels of --data_root
Writes  dict/ID.npz (--dict)   crf/ALPHA/ID.npz (--crf)   infer/ID_cam_CLASS.png (--vis); of model_oc dict_model_oc/ ...
Run     python infer.py --name X --model model_cse --vis --dict --crf --alphas 4 24 --infer_list train_aug
Pictures that are done are not done again. Under torchrun the processes share the pictures, and so do job arrays with
--shard 1/8 ... --shard 8/8.
"""
from contextlib import nullcontext
from functools import partial

import numpy as np

import config
from data.images import read_image
from data.layout import VOCLayout
from data.loader import view_loader
from methods.cam import image_cams
from models import MODELS
from networks import CAM_NETWORKS, build
from networks.pretrained import load_weights, read_description
from pipeline import experiment_of
from tools import distributed, engine, flags, interrupt
from tools.crf import CRFPool
from tools.files import require_space, save_image
from tools.maps import alpha_name, find_maps, read_cam, save_cam, save_crf
from tools.provenance import digests
from tools.visualize import overlay

CRF_SHRINKS_TO = 0.3        # a deflated CRF map beside plain float16; .20 to .32 on the critters


def main():
    settings = flags.parse(config.Infer, models=dict.fromkeys(MODELS, config.Infer))
    if not (settings.dict or settings.crf or settings.vis):
        raise ValueError("nothing is asked for: --dict writes CAMs, --crf CRF maps, --vis overlays")
    device = distributed.start(settings.device)
    experiment, layout = experiment_of(settings), VOCLayout(settings.data_root)
    ids = chosen_ids(settings, layout)
    weights = distributed.on_main(lambda: experiment.weights(settings.model, settings.load_epo))
    folders = distributed.on_main(lambda: open_folders(settings, experiment, layout, weights, ids))

    done = sum(bool(find_maps(folders["dict"], i)) for i in ids)
    distributed.say(f"{folders['dict']}: {done} of {len(ids)} pictures are there")
    ids = distributed.share(ids)
    with interrupt.remembered():
        make_maps(settings, experiment, layout, device, weights, folders, ids)
        if settings.vis:
            for image_id in interrupt.progress(ids, len(ids), "overlays"):
                draw_overlays(settings, layout, folders, image_id)
    experiment.release()
    distributed.stop()


def make_maps(settings, experiment, layout, device, weights, folders, ids):
    """Write dict/ID.npz and crf/ALPHA/ID.npz where they are missing."""
    todo = [i for i in ids if not find_maps(folders["dict"], i)]
    with CRFPool(max(1, settings.num_workers // distributed.world())) if settings.crf else nullcontext() as pool:
        # While a GPU computes CAMs the CRF has the CPU to itself; on a CPU the two would hold each other up.
        at_once = set(todo) if device.type == "cuda" else set()
        jobs = 0
        if todo:
            network = trained_network(experiment, layout, weights)
            engine.to_device(network.eval(), device, inference=True)
            pictures = view_loader(layout, todo, settings.scales, settings.labels == "given",
                                   **engine.loader_for(device, settings.num_workers))
            with engine.autocast(device, settings.precision):
                cams = image_cams(network, pictures, settings.labels)
                for image_id, classes, scores in interrupt.progress(cams, len(todo), "CAM"):
                    save_cam(folders["dict"] / f"{image_id}.{settings.format}", classes, scores, settings.format)
                    if image_id in at_once:
                        jobs += submit_crf(settings, layout, folders, pool, image_id)
        jobs += sum(submit_crf(settings, layout, folders, pool, i) for i in ids if i not in at_once)
        if jobs:
            for _ in interrupt.progress(pool.results(), jobs, "CRF"):
                pass


def chosen_ids(settings, layout):
    """Read the list and check, before anything is computed, that its pictures and labels are there: the shard's IDs."""
    ids = layout.chosen(settings.infer_list, settings.only, settings.shard)
    if settings.labels == "given" and ids:
        layout.labels(ids)
    return ids


def open_folders(settings, experiment, layout, weights, ids):
    """Claim the output folders, {"dict", "vis" or an alpha: path}, and check that the disk can hold what is missing."""
    suffix = MODELS[settings.model].SUFFIX
    shared = settings.shard != "1/1"
    claim = partial(experiment.claim, overwrite=settings.overwrite, shared=shared)
    dict_dir = settings.dict_dir or f"dict{suffix}"
    if shared:
        experiment.lock(f"{dict_dir}, shard {settings.shard}")
    made = {"classes": layout.classes, "scales": settings.scales, "precision": settings.precision,
            "labels": settings.labels, "format": settings.format, "data": digests(layout.sources())}
    folders = {"dict": claim(dict_dir, f"infer {settings.model}", made, [weights])}
    for alpha in settings.alphas if settings.crf else ():
        made = {"alpha": alpha, "iterations": settings.crf_iterations, "format": settings.format}
        folders[alpha] = claim(f"{settings.crf_dir or f'crf{suffix}'}/{alpha_name(alpha)}", "infer crf", made,
                               [folders["dict"]])
    if settings.vis:
        folders["vis"] = claim(settings.vis_dir or f"infer{suffix}", "infer vis", {}, [folders["dict"]])
    require_space(folders["dict"], size_of_what_is_missing(settings, layout, folders, ids))
    experiment.save_config(f"infer_{settings.model}", flags.as_json(settings))
    experiment.log("infer", f"{len(ids)} pictures of {settings.infer_list} with {weights}")
    return folders


def size_of_what_is_missing(settings, layout, folders, ids):
    """Estimate in bytes, from ten of the pictures."""
    if not ids:                 # more shards than pictures
        return 0
    sample = ids[:: -(-len(ids) // 10)]
    plane = np.mean([read_image(layout.image_path(i)).size / 3 for i in sample])
    plane *= 4 if settings.format == "npy" else 2
    classes = layout.labels(sample).sum(1).mean() if settings.labels == "given" else 2
    size = plane * classes * sum(not find_maps(folders["dict"], i) for i in ids)
    for alpha in settings.alphas if settings.crf else ():
        shrinks_to = 1 if settings.format == "npy" else CRF_SHRINKS_TO
        size += plane * (classes + 1) * shrinks_to * sum(not find_maps(folders[alpha], i) for i in ids)
    # An overlay is a PNG of three bytes a pixel, which shrinks to a half or so.
    return size + plane * classes * len(ids) * settings.vis


def trained_network(experiment, layout, weights):
    """Build the network that the network.json beside the weights describes, and load them."""
    network = build(read_description(experiment.network_of(weights), CAM_NETWORKS, layout))
    load_weights(network, weights)
    return network


def submit_crf(settings, layout, folders, pool, image_id):
    """Hand a picture's missing CRF maps to the pool; returns whether there are any."""
    alphas = [a for a in settings.alphas if not find_maps(folders[a], image_id)] if settings.crf else []
    if not alphas:
        return False
    source = find_maps(folders["dict"], image_id)

    def load():
        image = read_image(layout.image_path(image_id))
        return image, read_cam(source, image.shape[:2])[1]

    def save(alpha, scores):
        save_crf(folders[alpha] / f"{image_id}.{settings.format}", [0, *read_cam(source)[0]], scores, settings.format)

    pool.submit(load, save, alphas, settings.crf_iterations, image_id)
    return True


def draw_overlays(settings, layout, folders, image_id):
    """Write infer/ID_cam_CLASS.png for each class of a picture."""
    source = find_maps(folders["dict"], image_id)
    classes, scores = read_cam(source)
    if len(classes) and not 1 <= min(classes) <= max(classes) <= len(layout.classes):
        raise ValueError(f"{source} holds a class that {layout.root} lacks: delete it and run the same command again")
    names = [layout.classes[c - 1] for c in classes]
    paths = [folders["vis"] / f"{image_id}_cam_{name.replace('/', '_')}.png" for name in names]
    if all(path.exists() for path in paths):
        return
    image = read_image(layout.image_path(image_id))
    for path, name, score in zip(paths, names, scores):
        save_image(path, overlay(image, score, f"{name}  ({settings.model})"))


if __name__ == "__main__":
    flags.run(main)
