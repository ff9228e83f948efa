"""AEFT with gated pyramid pooling (ECCV 2022): the classifier, and from epoch T on the triplet."""
from functools import partial

from config_models import ModelAEFT

import torch

from data.loader import Plan
from methods.aeft import AEFT, draw, foreground, positive_mask
from methods.classification import most_classes
from models import model_cse
from networks import build, describe
from networks.pretrained import load_start, named_weights
from tools import distributed, engine
from tools.words import counted

TITLE = "AEFT"
SUFFIX = "_aeft_gpp"
ABOUT = ("is trained to find complete objects. What it is surest of is darkened, and the rest should still look like "
         "the class; images of other classes should not look like it.")
PUBLISHED = {
    "CAM": (56.0, "AEFT, README"),
    "random walk": (71.0, "AEFT, README and abstract"),
    "DeepLab": (70.9, "AEFT, README and abstract"),
}
CHAIN = {"voc": {"init": "{name}/aeft_gpp", "alphas": (2, 9, 21), "low": 2, "high": 21, "dup": 19, "logt": 6,
                 "crf_iterations": 1, "radius_rule": "aeft"}}
SAMPLE_TARGET = draw

Settings, RECIPES = ModelAEFT, ModelAEFT.recipes


def start(settings, experiment, layout):
    head = {"bins": list(settings.bins), "order": settings.gpp_order}
    description = describe("GPPNet", layout.classes, settings, head, settings.er_init)
    network = build(description)
    path = experiment.find_init(settings.er_init, "er_init", named_weights(settings.backbone))
    digest = engine.start_from(path, "er_init", partial(load_start, network, description))
    high, low = settings.TH
    objective = AEFT(network, settings.T, settings.batch_size // distributed.world(), settings.M, high, low,
                     settings.W, settings.triplet_on == "cam", distributed.gather_rows, distributed.global_mean)
    return network, objective, description, {"er_init": digest}


def know_labels(objective, labels):
    objective.most = most_classes(labels)


def plan(settings, images):
    """Batches of --batch_size, from epoch T on of --batch_size_triplet, or as many as there are images."""
    parts = distributed.world() * settings.accumulate
    large = min(settings.batch_size_triplet, images // parts * parts)
    if large < settings.batch_size_triplet:
        distributed.say(f"--batch_size_triplet {settings.batch_size_triplet} becomes {large}: {settings.train_list} "
                        f"has {counted(images, 'image')}")
    sizes = [settings.batch_size if epoch < settings.T else large for epoch in range(settings.max_epochs)]
    return Plan(images, sizes, settings.seed)


def schedule_steps(settings, images):
    """Give the steps over which the rate falls: as if all batches were of --batch_size, as the authors do."""
    return images // settings.batch_size * settings.max_epochs


def notes(settings, labels):
    cells = settings.crop // settings.output_stride
    idle = [str(bins) for bins in settings.bins if bins >= cells]
    found = [f"--bins {' '.join(idle)}: a crop of {settings.crop} pixels makes maps of {cells} cells a side, of which "
             "such a level pools none together"] if idle else []
    if settings.max_epochs <= settings.T:
        return [*found, f"--T {settings.T} is not below --max_epochs {settings.max_epochs}: the triplet never counts, "
                "classification alone is trained"]
    shared = labels @ labels.T > 0
    alone = int((shared | ~(labels > 0).any(1)).all(1).sum())
    if alone == len(labels):
        raise ValueError(f"every image of {settings.train_list} shares a class with every other: none has an image of "
                         "other classes to be told from. Take another --train_list, or --W 1 0.2 0 without repelling")
    if alone:
        found.append(f"{settings.train_list}: {counted(alone, 'image', 'shares')} a class with every other image, "
                     "so repelling has nothing to tell it from")
    return found


@torch.no_grad()
def look(objective, batch):
    """Show the positives of a batch: as models.model_cse.look, seen by the network itself, without a target."""
    net, image = objective.net, batch["image"]
    training = net.training
    net.eval()
    cam, before, _ = net(image)
    mask = positive_mask(foreground(cam, batch["label"], image.shape[2:]), objective.high)
    after = net(image * mask)[1]
    net.train(training)
    return {"erased": image * mask, "mask": 1 - mask, "before": torch.sigmoid(before), "after": torch.sigmoid(after)}


figures = partial(model_cse.figures, look=look)
