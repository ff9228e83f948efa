"""The hyperparameters that only one model of models/ has, each with its source, and what the recipes change for it.

They stand here, and not in models/, so that train.py can read its flags before it loads torch. A model may also define
its Settings in its own file: then everything works, but train.py --help takes as long as torch takes to load.
"""
from dataclasses import dataclass

from config import PAPER, PSA, Train

from tools.flags import option

AEFT = "AEFT, authors' code"


@dataclass
class ModelOC(Train):
    """train.py --model model_oc"""
    recipes = {
        "voc": {
            "batch_size": (16, PSA),
            "resize": ((256, 512), PSA),
            "crop": (448, PSA),
            "lr_new": (10, PSA),
            "dropout_head": (0.5, PSA),
            "er_init": ("imagenet", PSA),
        },
        "demo": {
            "max_epochs": (20, "from scratch"),
            "lr": (0.1, "from scratch"),
            "norm": ("train", "no ImageNet weights: BatchNorm has to be trained"),
            "er_init": ("random", "no ImageNet weights"),
            "val_every": (0, "measuring costs as much as four epochs; evaluation.py follows"),
        },
    }


@dataclass
class Erasing(Train):
    """What models have that learn from erasing."""
    recipes = {
        "lite": {
            "max_epochs": (2, "starts from the ordinary classifier"),
            "least_steps": (0, "masks that grow for long grow too far"),
            "lr": (0.002, "at .01 three of four runs lost their classes"),
            "lr_new": (1, "no layer is new"),
            "cc_init": (1.0, "at .3 nothing moves, at 3 the maps get worse or the classes go"),
            "cc_slope": (0.0, "as it was measured"),
            "mask_norm": ("image", "every image is erased, also those of which the network is less sure"),
            "er_init": ("{name}/model_oc", "the CAMs of a trained classifier are masks from the first step on"),
            "cl_init": ("{name}/model_oc", "the classifier trained here"),
        },
        "demo": {
            "lr": (0.005, "starts from the ordinary classifier"),
            "er_init": ("{name}/model_oc", "no ImageNet weights"),
            "cl_init": ("{name}/model_oc", "the classifier trained here"),
            "val_every": (0, "measuring costs as much as three epochs; evaluation.py follows"),
        },
    }

    cc_init: float = option(0.3, "lambda = cc_init + cc_slope * epoch weighs the erasing loss", PAPER, least=0)
    cc_slope: float = option(0.05, "see --cc_init", PAPER)
    mask_norm: str = option("batch", "divide the mask by its maximum over the batch, as the code does, or over the "
                            "image, as the paper's text says", PAPER, choices=("batch", "image"))
    cl_init: str = option("cam", "the ordinary classifier: as --er_init; cam is the one that AffinityNet's authors "
                          "released", PAPER)


@dataclass
class ModelCSE(Erasing):
    """train.py --model model_cse"""
    sampling: str = option("uniform", "the class that is erased: drawn from those present, each in turn, or the one "
                           "with the largest CAM", PAPER, content="where set",
                           choices=("uniform", "in_turn", "largest"))


@dataclass
class ModelAgnostic(Erasing):
    """train.py --model model_agnostic"""


@dataclass
class ModelAEFT(Train):
    """train.py --model aeft_gpp"""
    recipes = {
        "voc": {
            "resize": ((256, 512), AEFT),
            "crop": (320, AEFT),
            "jitter": ((0.4, 0.4, 0.4, 0.1), AEFT),
            "jitter_probability": (0.8, AEFT),
            "dropout": ((0.2, 0.2), AEFT),
            "max_epochs": (40, AEFT),
            "seed": (5137, AEFT),
            "lr_new": (1, AEFT),
        },
        "lite": {
            "max_epochs": (8, "minutes, not hours"),
            "least_steps": (0, "epochs are the triplet's measure: --T"),
            "T": (4, "half of the epochs"),
            "lr": (0.001, "the best of .0003 to .01 on VOC photos; with AEFT's lr_new 1 few classes are learned there"),
        },
        "demo": {
            "er_init": ("{name}/model_oc", "no ImageNet weights; from scratch two of six classes stay below zero"),
            "norm": ("train", "the pooling is new to the classifier; frozen, the loss falls to .61, not to .11"),
            "val_every": (0, "measuring costs as much as two epochs; evaluation.py follows"),
            "max_epochs": (8, "starts from the ordinary classifier"),
            "least_steps": (0, "epochs are the triplet's measure: --T"),
            "T": (4, "half of the epochs"),
            "lr": (0.05, "the head is new: at .02 it is not trained after 200 steps"),
        },
    }

    T: int = option(18, "epoch from which the triplet counts", AEFT, least=0)
    batch_size_triplet: int = option(32, "images a batch from epoch T on; the first --batch_size of them count for "
                                     "the classification", AEFT, least=1)
    M: float = option(0.5, "margin of the repelling term: images farther apart are left alone", AEFT, least=0)
    TH: tuple[float, float] = option((0.6, 0.2), "thresholds: foreground above the first is erased, below the "
                                     "second it is background", AEFT, least=0)
    W: tuple[float, float, float] = option((1.0, 0.2, 0.15), "weights of classification, attract, repel; 0 leaves a "
                                           "term out", AEFT, least=0)
    jitter_probability: float = option(1.0, "share of images whose colours are jittered", least=0, most=1)
    bins: tuple[int, ...] = option((2, 4, 8, 16), "levels of gated pyramid pooling: cells along a side", AEFT, least=1)
    gpp_order: str = option("coarse_to_fine", "order in which the levels gate each other; averaged: no gates", AEFT,
                            choices=("coarse_to_fine", "fine_to_coarse", "averaged"))
    triplet_on: str = option("gpp", "what is compared: what gated pyramid pooling makes of the CAMs, or the CAMs",
                             AEFT, choices=("gpp", "cam"))


SETTINGS = {"model_oc": ModelOC, "model_cse": ModelCSE, "model_agnostic": ModelAgnostic, "aeft_gpp": ModelAEFT}
