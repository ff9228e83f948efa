"""What each recipe changes of config.py's values, which are those of voc, each with its reason."""
from tools.cores import cores

_DEMO = {       # what all trainings of the recipe demo share
    "width": (0.125, "a CPU's worth of channels"),
    "blocks": ((1, 1, 1, 1, 1, 0), "the field of view of the whole ResNet38 covers a 128x128 image: CAMs blur"),
    "dilation": ((1, 1, 1), "as --blocks"),
    "dropout": ((0.0, 0.0), "a narrow network has nothing to spare"),
    "jitter": ((0.0, 0.0, 0.0, 0.0), "a critter's hue is part of its kind"),
    "print_freq": (10, "a demo is short"),
}
_LITE = {       # what all trainings of the recipe lite share
    "backbone": ("tf_efficientnet_lite0", "its ImageNet weights come with pip, and a CPU can train it"),
    "output_stride": (16, "a quarter of stride 8's time"),
    "batch_size": (8, "a few hundred photos make more steps of it"),
    "crop": (256, "a CPU's worth of pixels"),
    "momentum": (0.9, "without it the authors' rates are too slow for some hundred steps"),
    "print_freq": (10, "a run is short"),
}
_ENOUGH = (100, "after 18 steps on 48 photos AffinityNet told hardly any cells apart")
_LITE_PAIR = {
    "low": (2, "precision of the objects .71 on VOC's photos, .60 at 4"),
    "high": (6, "their recall .74, .67 at 4"),
}

# What a recipe changes against voc: {settings: {field: (value, reason)}}. Common: in every stage. See also models/.
RECIPES = {
    "voc": {},
    "coco": {"Common": {"data_root": ("data/COCO", "ours: the paper's COCO settings are unknown, so VOC's are taken")}},
    "demo": {
        "Common": {
            "data_root": ("data/critters", "the embedded images"),
            "num_workers": (min(2, cores()), "small images: two processes feed a CPU"),
        },
        "Train": _DEMO | {
            "dropout_head": (0.0, "as --dropout"),
            "batch_size": (16, "small images"),
            "resize": ((112, 160), "around the images' 128 pixels"),
            "crop": (128, "as --resize"),
            "momentum": (0.9, "without it the authors' rates are too slow for some hundred steps"),
            "lr_new": (1, "every layer is new"),
            "vis_freq": (50, "a demo is short"),
        },
        "TrainSeg": _DEMO | {
            "init": ("{name}/model_cse", "no ImageNet weights"),
            "batch_size": (8, "400 images make more steps of it"),
            "max_epochs": (8, "a minute's worth"),
            "lr": (0.01, "400 steps instead of 20,000"),
            "scale": ((0.75, 1.25), "critters are of one size"),
            "crop": (128, "the images' 128 pixels"),
        },
        "InferSeg": {"scales": ((0.75, 1.0, 1.25), "those in which it learns: critters are of one size")},
        "TrainAff": _DEMO | {
            "crop": (128, "the images' size"),
            "max_epochs": (4, "a demo is short"),
            "momentum": (0.9, "without it the authors' rates are too slow for some hundred steps"),
            "init": ("{name}/model_cse", "no ImageNet weights"),
        },
        "InferAff": {
            "dup": (4, "the CAMs are broad: at 16 their background is too small"),
            "logt": (4, "16 steps cross a map of 16x16 cells"),
            "crf_iterations": (1, "AEFT's: edges finer than cells of 8 pixels in an image of 128"),
        },
    },
    "lite": {
        "Train": _LITE | {
            "max_epochs": (5, "minutes, not hours, from ImageNet's weights"), "resize": ((256, 384), "as --crop"),
            "least_steps": (100, "of 48 photos of four classes a CAM of 71.2, 68.9 after 30 steps"),
            "lr": (0.003, "at .01 sets of two and of four classes diverge; a point less on MSRC's fifteen"),
            "lr_new": (10, "the other layers are trained already"),
            "dropout_head": (0.0, "a short training has nothing to spare"),
            "val_every": (0, "measuring takes an epoch; evaluation.py follows"), "vis_freq": (100, "a run is short"),
        },
        "Infer": {"alphas": ((2, 4, 6), "AffinityNet's pair, and the best alpha on VOC's photos between them"),
                  "scales": ((1.0, 1.5), "less than half of the time, and the better CRF maps")},
        "TrainAff": _LITE | _LITE_PAIR | {"max_epochs": (3, "a run is short"), "least_steps": _ENOUGH},
        "InferAff": _LITE_PAIR | {
            "dup": (8, "of 2, 4, 8 and 12 the best on MSRC"), "logt": (6, "AEFT's"),
            "beta": (16, "a short training tells cells apart less: at 8 the walk costs 4 points on MSRC, 5 on VOC"),
            "crf_iterations": (1, "AEFT's: edges finer than a cell"),
        },
        "TrainSeg": _LITE | {
            "label_dir": ("rw/02_06", "AffinityNet's pair"), "max_epochs": (4, "a run is short"),
            "least_steps": _ENOUGH,
            "scale": ((0.75, 1.5), "crops of 256 pixels"),
        },
        "InferSeg": {"scales": ((0.75, 1.0, 1.25), "a quarter of the time")},
    },
}
