"""One image through the stages: what it becomes in each, by the functions that the stages call.

Reads   a finished experiment: ckpt/, and the made_by.json of its folders of maps, which say with which settings they
        were made; of --data_root the image, its labels and, for the scores, its ground truth
Prints  a line a step: what the data are, and the mIoU of the image's own classes where there is ground truth
Writes  --out: the steps side by side
Run     python -m examples.one_image --recipe demo --name demo --id train_0002
docs/one_image.md explains the steps.
"""
from dataclasses import dataclass

import config

import numpy as np
import torch

from advice import experiment_of
from data.images import read_image, voc_palette
from data.layout import VOCLayout
from data.transforms import views
from infer_aff import load_for_crf
from methods.affinity import effective_radius, pair_affinity
from methods.cam import background, multi_scale_cam
from methods.random_walk import walk_cams
from methods.segmentation import multi_scale_scores
from networks import build
from networks.pretrained import load_weights
from pipeline import values_of
from tools import flags
from tools.crf import dense_crf
from tools.files import save_image
from tools.flags import option
from tools.maps import alpha_name, alpha_pair
from tools.metrics import ConfusionMatrix
from tools.provenance import made_with
from tools.visualize import heated, titled


@dataclass
class OneImage(config.Common):
    """examples/one_image.py"""
    id: str = option("train_0002", "the image")
    alpha: float = option(6, "of the CRF that is shown")
    threshold: float = option(0.2, "the background's score beside the CAMs")
    out: str = option("one_image.png", "file of the steps side by side")


def main():
    settings = flags.parse(OneImage)
    layout = VOCLayout(settings.data_root)
    image = read_image(layout.image_path(settings.id))                                  # (H, W, 3)
    truth = layout.ground_truth(settings.id) if layout.has_ground_truth(settings.id) else None
    zoom = max(1, 240 // max(image.shape[:2]))                                          # small images are enlarged
    tiles = [titled(image.repeat(zoom, 0).repeat(zoom, 1), "image")]
    for title, data, labels, score in steps(settings, layout, image):
        print(f"{title:<16}{data:<76}{'' if labels is None else miou(labels, truth, layout)}".rstrip())
        if labels is not None:
            tile = coloured(image, labels) if score is None else heated(image, score)
            tiles.append(titled(tile.repeat(zoom, 0).repeat(zoom, 1), title))
    save_image(settings.out, np.concatenate(tiles, axis=1))
    print(f"{settings.out}: the steps side by side")


@torch.no_grad()
def steps(settings, layout, image):
    """Yield what each step makes of an image (H, W, 3): its title, what the data are in words, a label map (H, W)
    where the step has one, and the score map (H, W) of the CAMs.
    """
    experiment, size = experiment_of(settings), image.shape[:2]
    low, high = (getattr(values_of(settings.name, settings.recipe), name) for name in ("low", "high"))
    pair = alpha_pair(low, high)
    label = torch.from_numpy(layout.label(settings.id))                                 # (C,)
    names = ", ".join(name for name, present in zip(layout.classes, label) if present)
    yield "image", f"uint8 {image.shape}", None, None
    yield "label", f"{names}: all that the training is told", None, None

    # CAMs: at several scales and mirrored, summed, each class divided by its maximum.
    seen = views(image, made_by(experiment, "dict")["scales"])
    yield "views", " ".join(str(tuple(view.shape)) for view in seen), None, None
    for title, model in (("ordinary CAM", "model_oc"), ("CGNet's CAM", "model_cse")):
        classes, scores = multi_scale_cam(network(experiment, model), seen, size, label)    # (K,), (K, H, W)
        ids = np.array([0, *classes])                                                   # (K + 1,), 0 the background
        fixed = torch.full((1, *size), settings.threshold)
        labels = ids[torch.cat([fixed, scores]).argmax(0)]
        yield (title, f"classes {classes.tolist()}, scores {tuple(scores.shape)} in [0, 1]", labels,
               scores.amax(0).numpy())

    # CRF: the background's score joins the CAMs, and both follow the image's edges.
    iterations = made_by(experiment, f"crf/{alpha_name(settings.alpha)}")["iterations"]
    rows = torch.cat([background(scores, settings.alpha), scores])                      # (K + 1, H, W)
    refined = dense_crf(image, rows.numpy(), iterations)
    yield (f"CRF, alpha {settings.alpha:g}", f"classes {ids.tolist()}, scores {refined.shape}, sum 1 a pixel",
           ids[refined.argmax(0)], None)

    # Affinities: do two neighbouring cells belong together? The random walk spreads the CAMs along them.
    made, affinity_net = made_by(experiment, f"rw/{pair}"), network(experiment, f"aff_{pair}")
    (view,) = views(image, (1,))
    walked = walk_cams(affinity_net, view[:1], scores, made["dup"], made["beta"], made["logt"],
                       made["radius_rule"])                                             # (K + 1, H', W')
    features = affinity_net(view[:1, :, :size[0] // 8 * 8, :size[1] // 8 * 8])          # (1, D, h, w)
    affinity = pair_affinity(features, effective_radius(*features.shape[2:]))[0]        # (P, N)
    yield ("affinities", f"{affinity.shape[1]} of the {features.shape[2]}x{features.shape[3]} cells with "
           f"{affinity.shape[0]} neighbours each; mean {affinity.mean():.2f}", None, None)
    labels, rounds = ids[walked.argmax(0)], made["crf_iterations"]
    if rounds:
        labels = dense_crf(*load_for_crf(layout, settings.id, ids, walked.numpy()), rounds).argmax(0)
    yield "random walk", f"scores {tuple(walked.shape)}: the pseudo label", labels[:size[0], :size[1]], None

    # DeepLab sees the image alone: no label.
    seen = views(image, made_by(experiment, "seg")["scales"])
    scores = multi_scale_scores(network(experiment, "seg"), seen, size)                 # (C + 1, H, W)
    yield "DeepLab", f"scores {tuple(scores.shape)}, a row for every class", scores.argmax(0).numpy(), None


def made_by(experiment, folder):
    """Return the settings with which a folder of maps was written."""
    if made := made_with(experiment / folder):
        return made
    raise ValueError(f"{experiment / folder} is missing. To make it, run: {experiment.command_for(folder)}")


def network(experiment, model):
    """Build the network of ckpt/MODEL with its last weights, ready for inference."""
    weights = experiment.weights(model)
    net = build(experiment.network_of(weights))
    load_weights(net, weights)
    return net.eval()


def miou(labels, truth, layout):
    """Score a label map (H, W) over the classes that occur in it or in the ground truth."""
    if truth is None:
        return "no ground truth"
    confusion = ConfusionMatrix(len(layout.classes)).add(labels, truth)
    return f"{confusion.iou()[confusion.occurring()].mean():.1f}"


def coloured(image, labels):
    """Lay a label map (H, W) over an image (H, W, 3), objects in VOC's colours."""
    colours = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)
    return np.where((labels > 0)[..., None], image // 3 + colours[labels] // 3 * 2, image // 2)


if __name__ == "__main__":
    flags.run(main)
