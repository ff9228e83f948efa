"""Find the labelled classes in pictures: CAMs, then dense CRF maps, then overlays to look at.

Reads   ckpt/MODEL/EEE.pth   JPEGImages/ and labels of --data_root
Writes  dict/ID.npz (--dict)   crf/ALPHA/ID.npz (--crf)   infer/ID_cam_CLASS.png (--vis); of model_oc: dict_model_oc/ ...
Run     python infer.py --name X --model model_cse --vis --dict --crf --alphas 4 24 --infer_list train_aug
Pictures that are done are not done again. Under torchrun the processes share the pictures.
"""
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

import config
from data.dataset import VOCLayout, read_image
from data.transforms import views
from methods.cam import multi_scale_cam
from networks.cam import CAMNet
from networks.pretrained import load_weights
from tools import distributed, visualize
from tools.crf import CRFPool
from tools.experiment import Experiment, find_maps, read_cam, require_space, save_cam, save_crf, save_image

CRF_SHRINKS_TO = 0.15       # a deflated CRF map beside its plain float16, measured with benchmarks/crf.py


def main():
    settings = config.parse(config.Infer)
    if not (settings.dict or settings.crf or settings.vis):
        raise ValueError("nothing asked for: --dict writes CAMs, --crf CRF maps, --vis overlays")
    device = distributed.start(settings.device)
    experiment, layout = Experiment(settings), VOCLayout(settings.data_root)
    ids = choose(layout, settings)
    weights = experiment.weights(settings.model, settings.load_epo)
    folders = distributed.main_first(partial(open_folders, experiment, settings, layout, weights, len(ids)))
    distributed.main_first(partial(check_space, folders, settings, layout, ids))

    ids = distributed.share(ids)
    todo = [i for i in ids if not find_maps(folders["dict"], i)]
    distributed.say(f"{folders['dict']}: {len(ids) - len(todo)} of {len(ids)} pictures are done")
    with crf_pool(settings) as pool:
        waiting = set(todo)
        submit = partial(submit_crf, pool, settings, layout, folders)
        submitted = sum(submit(i) for i in ids if i not in waiting)
        if todo:
            network = trained_network(settings, experiment, layout, weights, device)
            for image_id, classes, scores in progress(image_cams(network, layout, todo, settings.scales,
                                                                 settings.precision, settings.labels,
                                                                 settings.num_workers), len(todo), "CAM"):
                save_cam(folders["dict"] / f"{image_id}.{settings.format}", classes, scores, settings.format)
                submitted += submit(image_id)
        if pool:
            for _ in progress(pool.results(), submitted, "CRF"):
                pass
    if settings.vis:
        for image_id in progress(ids, len(ids), "overlays"):
            draw_overlays(settings, layout, folders, image_id)
    distributed.barrier()
    distributed.stop()


def choose(layout, settings):
    ids = layout.ids(settings.infer_list)
    if settings.only:
        if settings.only not in ids:
            raise ValueError(f"--only {settings.only}: not in the list {settings.infer_list}")
        ids = [settings.only]
    layout.check(ids, settings.infer_list)
    if settings.labels == "given":
        layout.labels(ids)
    return ids


def open_folders(experiment, settings, layout, weights, count):
    """Claim the output folders: {"dict", alpha, "vis"} -> path."""
    suffix = "" if settings.model == "model_cse" else f"_{settings.model}"
    claim = partial(experiment.claim, overwrite=settings.overwrite)
    made = {"classes": layout.classes, "scales": list(settings.scales), "precision": settings.precision,
            "labels": settings.labels, "format": settings.format, "data_root": str(layout.root.resolve())}
    folders = {"dict": claim(settings.dict_dir or f"dict{suffix}", f"infer {settings.model}", made, [weights])}
    if settings.crf:
        for alpha in settings.alphas:
            made = {"alpha": alpha, "iterations": settings.crf_iterations, "format": settings.format}
            folders[alpha] = claim(f"{settings.crf_dir or f'crf{suffix}'}/{alpha_name(alpha)}", "infer crf", made,
                                   [folders["dict"]])
    if settings.vis:
        folders["vis"] = claim(settings.vis_dir or f"infer{suffix}", "infer vis", {}, [folders["dict"]])
    experiment.save_config(f"infer_{settings.model}", config.as_json(settings))
    experiment.log("infer", f"{count} pictures of {settings.infer_list} with {weights}")
    return folders


def alpha_name(alpha):
    """Name the folder of an alpha: 4 -> 04, 24 -> 24, 2.5 -> 02.5."""
    return f"{int(alpha):02d}" if alpha == int(alpha) else f"{alpha:04.1f}"


def check_space(folders, settings, layout, ids):
    """Stop before a long write that the disk cannot hold."""
    todo = [i for i in ids if not find_maps(folders["dict"], i)]
    sample = todo[:: max(1, len(todo) // 10)] or ids[:1]
    areas = [read_image(layout.image_path(i)).size / 3 for i in sample]
    classes = layout.labels(sample).sum(1).mean() if settings.labels == "given" else 2
    plane = float(np.mean(areas)) * (4 if settings.format == "npy" else 2)              # bytes of one map
    size = len(todo) * classes * plane
    for alpha in settings.alphas if settings.crf else ():
        missing = sum(not find_maps(folders[alpha], i) for i in ids)
        size += missing * (classes + 1) * plane * (1 if settings.format == "npy" else CRF_SHRINKS_TO)
    if size:
        distributed.say(require_space(folders["dict"], size))


def trained_network(settings, experiment, layout, weights, device):
    """Build the network as it was trained and load its weights, for inference."""
    trained = experiment.settings_of(weights)
    if trained and trained["classes"] != layout.classes:
        raise ValueError(f"{weights} was trained on other classes ({', '.join(trained['classes'])}) than those of "
                         f"{layout.root} ({', '.join(layout.classes)}): --data_root must be a dataset of its classes")
    if not trained:                 # weights from elsewhere: the recipe's network
        trained = {k: v for k, (v, _) in config.defaults(config.Train, settings.recipe, settings.model).items()}
    network = CAMNet(len(layout.classes), **{k: trained[k] for k in config.NETWORK_FIELDS})
    load_weights(network, weights)
    layout_of = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return network.to(device, memory_format=layout_of).eval()


def image_cams(network, layout, ids, scales=(0.5, 1.0, 1.5, 2.0), precision="fp32", labels="given", num_workers=0):
    """Yield (ID, classes (K,) int64 numpy, scores (K, H, W) float32 numpy) of each picture; network in eval mode."""
    device = next(network.parameters()).device
    pictures = torch.utils.data.DataLoader(Pictures(layout, ids, scales), batch_size=None,
                                           num_workers=num_workers if device.type == "cuda" else 0,
                                           pin_memory=device.type == "cuda")
    # One context for all pictures: it keeps the weights that it has rounded to bfloat16.
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for image_id, (size, image_views) in zip(ids, pictures):
            label = (torch.from_numpy(layout.label(image_id)) if labels == "given"
                     else predicted_label(network, image_views[len(scales) // 2]))
            classes, scores = multi_scale_cam(network, image_views, size, label)
            yield image_id, classes.numpy(), scores.cpu().numpy()


@torch.no_grad()
def predicted_label(network, view):
    """Take the classes that the network gives a probability of .5, or the likeliest: view (2, 3, h, w) -> (C,)."""
    probability = network(view.to(next(network.parameters()).device))[1].mean(0).sigmoid().cpu()
    return ((probability >= 0.5) | (probability == probability.max())).float()


class Pictures(torch.utils.data.Dataset):
    """ID number -> (H, W), views: reading and resizing, for the loader's processes."""

    def __init__(self, layout, ids, scales):
        self.layout, self.ids, self.scales = layout, ids, scales

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        image = read_image(self.layout.image_path(self.ids[i]))
        return image.shape[:2], views(image, self.scales)


def crf_pool(settings):
    return CRFPool(max(1, settings.num_workers // distributed.world())) if settings.crf else nullcontext()


def submit_crf(pool, settings, layout, folders, image_id):
    """Hand a picture's missing CRF maps to the pool; returns whether there were any."""
    alphas = [a for a in settings.alphas if not find_maps(folders[a], image_id)] if settings.crf else []
    if not alphas:
        return False
    source = find_maps(folders["dict"], image_id)
    classes = None

    def load():
        nonlocal classes
        classes, scores = read_cam(source)
        image = read_image(layout.image_path(image_id))
        if not len(classes):
            scores = np.zeros((0, *image.shape[:2]), np.float32)
        if scores.shape[1:] != image.shape[:2]:
            raise ValueError(f"{source} is of size {scores.shape[1:]}, its picture {image.shape[:2]}: delete it and run "
                             "the same command again")
        return image, scores

    def save(alpha, scores):
        save_crf(folders[alpha] / f"{image_id}.{settings.format}", [0, *classes], scores, settings.format)

    pool.submit(load, save, alphas, settings.crf_iterations, image_id)
    return True


def draw_overlays(settings, layout, folders, image_id):
    """Write infer/ID_cam_CLASS.png for each class of a picture."""
    classes, scores = read_cam(find_maps(folders["dict"], image_id))
    paths = [folders["vis"] / f"{image_id}_cam_{layout.classes[c - 1]}.png" for c in classes]
    if all(p.exists() for p in paths):
        return
    image = read_image(layout.image_path(image_id))
    for path, c, score in zip(paths, classes, scores):
        save_image(path, visualize.overlay(image, score, f"{layout.classes[c - 1]}  {settings.model}"))


def progress(items, total, name):
    return tqdm(items, name, total, mininterval=1, disable=not distributed.is_main() or not total)


if __name__ == "__main__":
    config.run(main)
