"""The ordinary classifier: what is in the image? Source: AffinityNet, whose released weights OC-CSE uses."""
from functools import partial

from config_models import ModelOC

from methods.classification import Classification
from networks import build, describe
from networks.pretrained import load_start, named_weights
from tools import distributed, engine

TITLE = "ordinary classifier"
SUFFIX = "_model_oc"
ABOUT = ("learns which classes an image shows. Its class activation map (CAM) is high where it sees each of them: "
         "often only at the most telling part, such as a head.")
PUBLISHED = {"CAM": (48.0, "AffinityNet, README and paper")}

Settings, RECIPES = ModelOC, ModelOC.recipes


def start(settings, experiment, layout):
    network, description, digest = start_camnet(settings, experiment, layout)
    return network, Classification(network, distributed.global_mean), description, {"er_init": digest}


def start_camnet(settings, experiment, layout):
    """Make the trained network with the weights that --er_init names; returns it, its description, their digest."""
    head = {"dropout_head": settings.dropout_head}
    description = describe("CAMNet", layout.classes, settings, head, settings.er_init)
    network = build(description)
    path = experiment.find_init(settings.er_init, "er_init", named_weights(settings.backbone))
    return network, description, engine.start_from(path, "er_init", partial(load_start, network, description))
