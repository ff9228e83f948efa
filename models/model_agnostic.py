"""The CGNet, trained with class-agnostic erasing: what OC-CSE's paper compares itself with."""
from dataclasses import dataclass

import torch

from methods.agnostic import Agnostic, erase_all
from models import model_cse
from models.model_oc import start_camnet
from tools import distributed, engine

TITLE = "class-agnostic erasing"
SUFFIX = "_model_agnostic"
STARTS_FROM = {"cl_init": "model_oc"}
RECIPES = model_cse.RECIPES


@dataclass
class Settings(model_cse.Settings):
    """train.py --model model_agnostic"""


def start(settings, experiment, layout):
    network, description, er_init = start_camnet(settings, experiment, layout)
    oc, cl_init = model_cse.load_classifier(settings, experiment, layout)
    objective = Agnostic(network, oc, settings.cc_init, settings.cc_slope, settings.mask_norm, distributed.global_max,
                         distributed.global_mean)
    return network, objective, description, {"er_init": er_init, "cl_init": cl_init}


def pictures(settings, experiment, objective, layout, step, batch):
    """Draw train/STEP.png every --vis_freq steps: the erasing in up to four images of the batch."""
    if model_cse.due(settings, step):
        with engine.autocast(batch["image"].device, settings.precision):
            seen = look(objective, batch)
        model_cse.draw_erasing(experiment, layout, step, batch, seen, batch["label"].any(1))


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
