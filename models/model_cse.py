"""The CGNet, trained with class-specific erasing: OC-CSE (ICCV 2021)."""
from functools import partial

from config_models import ModelCSE

import torch

from data.transforms import denormalize
from methods.cse import CSE, erase, sample_target
from methods.targets import choose
from models.model_oc import start_camnet
from networks import CAM_NETWORKS, build, describe
from networks.pretrained import describe_file, load_weights, named_weights, read_description
from tools import distributed, engine
from tools.files import save_image
from tools.visualize import erasing_figure

TITLE = "CGNet"
SUFFIX = ""
ABOUT = ("is trained to find complete objects. One class is erased from the image where its CAM is high; the ordinary "
         "classifier should then no longer see that class, but still all others.")
STARTS_FROM = {"cl_init": "model_oc"}
PUBLISHED = {
    "CAM": (56.0, "OC-CSE, authors (issue 3 of their repository)"),
    "random walk": (66.9, "OC-CSE, authors (issue 3 of their repository), tables of later papers"),
    "DeepLab": (68.4, "OC-CSE, authors (issue 3 of their repository), tables of later papers"),
}
AUTHORS_FILE = "net_er"
SAMPLE_TARGET = sample_target

Settings, RECIPES = ModelCSE, ModelCSE.recipes


def start(settings, experiment, layout):
    network, description, er_init = start_camnet(settings, experiment, layout)
    oc, cl_init = load_classifier(settings, experiment, layout)
    objective = CSE(network, oc, settings.cc_init, settings.cc_slope, settings.mask_norm, distributed.global_max,
                    distributed.global_mean, settings.sampling)
    return network, objective, description, {"er_init": er_init, "cl_init": cl_init}


def notes(settings, labels):
    if (labels.sum(1) > 1).any():
        return []
    return [f"no image of {settings.train_list} has two classes: no other class keeps the masks from growing beyond "
            "their objects. Compare the maps with the ordinary classifier's; reproduce.py --model model_oc makes the "
            "masks from those"]


def load_classifier(settings, experiment, layout):
    """Load the ordinary classifier that --cl_init names, with its own backbone; returns it and its weights' digest.

    What network a file without a network.json is of, its tensors say; where they fit the settings, those are taken.
    """
    train_one = f"or train one: {experiment.command_for('ckpt/model_oc')}, then --cl_init {experiment.name}/model_oc"
    path = experiment.find_init(settings.cl_init, "cl_init", named_weights(settings.backbone), train_one)
    if path is None:
        raise ValueError("--cl_init random: the ordinary classifier must be a trained one")
    if described := experiment.network_of(path):
        read_description(described, CAM_NETWORKS, layout)
    else:
        own = describe("CAMNet", layout.classes, settings, {"dropout_head": settings.dropout_head})
        try:
            described = describe_file(path, CAM_NETWORKS, layout, own)
        except ValueError as error:
            raise ValueError(f"{error}; {train_one}") from None
    oc = build(described)
    return oc, engine.start_from(path, "cl_init", partial(load_weights, oc))


@torch.no_grad()
def look(objective, batch):
    """Show what the erasing does to a batch; --sampling in_turn: to the classes of epoch 0.

    Returns {"erased" (B, 3, H, W), "mask" (B, 1, H, W), "before" (B, C), "after" (B, C), "target" (B,)}: before and
    after are the OC's probabilities for the image and for what is left of it.
    """
    training = objective.cgnet.training
    objective.cgnet.eval()
    cam, _ = objective.cgnet(batch["image"])
    objective.cgnet.train(training)
    target = choose(objective.sampling, batch, cam, 0)
    erased, mask = erase(batch["image"], cam, target, objective.mask_norm)
    before, after = (torch.sigmoid(objective.oc(x)[1]) for x in (batch["image"], erased))
    return {"erased": erased, "mask": mask, "before": before, "after": after, "target": target}


def figures(settings, experiment, objective, layout, step, batch, look=look):
    """Draw train/STEP.png every --vis_freq steps: the erasing in up to four images of the batch.

    look  (objective, batch) -> what it does to them, as look returns it; without "target" no class was chosen
    With several processes the images are of the main process's part of the batch.
    """
    if not settings.vis_freq or step % settings.vis_freq or not distributed.is_main():
        return
    with engine.autocast(batch["image"].device, settings.precision):
        seen = look(objective, batch)       # of all images: their masks may share a maximum
    chosen = (seen["target"] >= 0 if "target" in seen else batch["label"].any(1)).nonzero()[:4, 0]
    if not len(chosen):
        return
    batch, seen = ({k: v[chosen].float().cpu() for k, v in part.items()} for part in (batch, seen))
    figure = erasing_figure([denormalize(x) for x in batch["image"]], [denormalize(x) for x in seen["erased"]],
                            seen["mask"][:, 0].numpy(), batch["label"].numpy(),
                            seen["target"].numpy() if "target" in seen else None,
                            seen["before"].numpy(), seen["after"].numpy(), layout.classes)
    save_image(experiment / f"train/{step:06d}.png", figure)
