"""The CGNet, trained with class-agnostic erasing: what OC-CSE's paper compares itself with."""
from functools import partial

from config_models import ModelAgnostic

import torch

from methods.agnostic import Agnostic, erase_all
from methods.classification import most_classes
from models import model_cse
from models.model_oc import start_camnet
from tools import distributed

TITLE = "class-agnostic erasing"
SUFFIX = "_model_agnostic"
ABOUT = ("is trained as the CGNet is, but all classes of an image are erased at once: the ordinary classifier should "
         "then see none of them.")
STARTS_FROM = {"cl_init": "model_oc"}
Settings, RECIPES = ModelAgnostic, ModelAgnostic.recipes


def start(settings, experiment, layout):
    network, description, er_init = start_camnet(settings, experiment, layout)
    oc, cl_init = model_cse.load_classifier(settings, experiment, layout)
    objective = Agnostic(network, oc, settings.cc_init, settings.cc_slope, settings.mask_norm, distributed.global_max,
                         distributed.global_mean)
    return network, objective, description, {"er_init": er_init, "cl_init": cl_init}


def know_labels(objective, labels):
    objective.most = most_classes(labels)


@torch.no_grad()
def look(objective, batch):
    """Show what the erasing does to a batch: as models.model_cse.look, without a target."""
    training = objective.cgnet.training
    objective.cgnet.eval()
    cam, _ = objective.cgnet(batch["image"])
    objective.cgnet.train(training)
    erased, mask = erase_all(batch["image"], cam, batch["label"], objective.mask_norm)
    before, after = (torch.sigmoid(objective.oc(x)[1]) for x in (batch["image"], erased))
    return {"erased": erased, "mask": mask, "before": before, "after": after}


figures = partial(model_cse.figures, look=look)
