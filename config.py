"""Every hyperparameter that the stages share, once, each with its source. The recipes: recipes.py.

A stage's settings are a dataclass. tools/flags.py makes its fields the stage's flags, with the recipe's values as their
defaults. What train.py trains has further fields of its own: see models/.
"""
import os
from dataclasses import MISSING, dataclass

from recipes import RECIPES
from tools.cores import cores
from tools.flags import option

PAPER = "OC-CSE, authors' code"
PSA = "AffinityNet, authors' code"
PSA_SUBMITTED = "AffinityNet, as submitted"
UNRELEASED = "ours: DeepLab's training script is unreleased"
# Every stage imports config before torch, whose OpenMP reads this once: threads that wait for each other sleep. By
# default they spin, which beside other programs makes training several times slower (BENCHMARKS.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
CORES = cores()


@dataclass
class Common:
    name: str = option(MISSING, "experiment: everything is written to experiment/NAME", content=False)
    recipe: str = option("voc", "named set of values for all flags; single flags win over it",
                         choices=("voc", "coco", "lite", "demo"),
                         content=False)
    data_root: str = option("data/VOC2012", "dataset in VOC's layout (may be read-only)", content=False)
    experiment_root: str = option("experiment", "folder of all experiments", content=False)
    device: str = option("auto", "where to compute; auto: the GPU if there is one", choices=("auto", "cpu", "cuda"),
                         content=False)
    precision: str = option("fp32", "bf16: convolutions in bfloat16; heads, masks, losses and CAM sums stay fp32",
                            choices=("fp32", "bf16"))
    num_workers: int = option(min(8, CORES), "processes that read images, and that compute the CRF", content=False,
                              least=0)
    seed: int = option(4242, "seed of everything random", PAPER, least=0)
    overwrite: bool = option(False, "replace what an earlier run with other settings wrote; a run with these "
                             "settings resumes", content=False)
    traceback: bool = option(False, "show the whole traceback of an error", content=False)


@dataclass
class Training(Common):
    """What every training stage has."""
    train_list: str = option("train_aug", "images to learn from: a split's name or a file of IDs", PAPER)
    batch_size: int = option(8, "global: over all processes", PAPER, least=1)
    max_epochs: int = option(15, "epochs", PAPER, least=1)
    least_steps: int = option(0, "train for so many steps at least: on few images for more epochs than the recipe's; "
                              "a --max_epochs of your own stays as it is", content=False, least=0)
    lr: float = option(0.01, "learning rate", PAPER, least=0)
    wt_dec: float = option(5e-4, "weight decay, on weights only", PAPER, least=0)
    momentum: float = option(5e-4, "of SGD", PAPER + ": sic, they pass the weight decay into the momentum slot",
                             least=0)
    power: float = option(0.9, "lr * (1 - step / steps) ^ power at every step", PAPER, least=0)
    backbone: str = option("resnet38d", "resnet38d, or the name of a network of timm that gives feature maps", PAPER)
    output_stride: int = option(8, "pixels from one cell of the feature maps to the next", PAPER, choices=(8, 16, 32))
    dropout: tuple[float, float] = option((0.3, 0.5), "of resnet38d, in b6 and in b7", PAPER, least=0)
    width: float = option(1.0, "of resnet38d: scales all channel counts", "ResNet38d", above=0)
    blocks: tuple[int, int, int, int, int, int] = option((3, 3, 6, 3, 1, 1), "of resnet38d: residual units in b2 .. b7",
                                                         "ResNet38d", least=0)
    dilation: tuple[int, int, int] = option((2, 4, 4), "of resnet38d: of b5, b6, b7", "ResNet38d", least=1)
    norm: str = option("frozen", "frozen: BatchNorm on stored statistics, the first layers (resnet38d: conv1a and b2) "
                       "fixed; train: from scratch", PAPER, choices=("frozen", "train"))
    accumulate: int = option(1, "compute a batch in so many parts, to save memory: activations are computed again in "
                             "the backward pass. The step is the same but for rounding and dropout's draws (and "
                             "BatchNorm's statistics, if that is trained)",
                             content=False, least=1)
    checkpoint_blocks: bool = option(False, "keep only the inputs of the residual units that are trained, and compute "
                                     "the rest again in the backward pass: less memory, more time, the same numbers",
                                     content=False)
    skip_nonfinite: int = option(0, "leave out so many batches whose loss or gradient is not finite before the "
                                 "training stops", content=False, least=0)
    save_minutes: float = option(10.0, "minutes between saves inside an epoch", content=False, least=0)
    print_freq: int = option(100, "steps between updates of the loss terms on the screen", PAPER, content=False,
                             least=1)
    compile: bool = option(False, "torch.compile the networks", content=False)


@dataclass
class Train(Training):
    """train.py: what all models have"""
    model: str = option("model_cse", "what is trained: a file of models/")
    val_list: str = option("train", "images on which the CAMs are measured during training: a split's name or a "
                           "file of IDs", PAPER, content=False)
    val_every: int = option(1, "epochs between measurements; 0 = never", PAPER, content=False, least=0)
    max_side: int = option(0, "an image with a longer side is shrunk to it first; needed above 179 million pixels; "
                           "0 = never", content="where set", least=0)
    resize: tuple[int, int] = option((256, 448), "the long side is drawn from this range", PAPER, least=1)
    crop: int = option(384, "side of the crop; smaller images are zero-padded after normalisation", PAPER, least=8)
    jitter: tuple[float, float, float, float] = option((0.3, 0.3, 0.3, 0.1), "random change of brightness, "
                                                       "contrast, saturation, hue; 0 0 0 0 = none", PAPER, least=0)
    lr_new: int = option(1, "the new layers learn at this multiple of lr", PAPER, choices=(1, 10))
    er_init: str = option("imagenet", "start of the trained network: imagenet, cam, random, a file, or an experiment's "
                          "network (X/model_oc, X/model_oc/014)", PAPER)
    dropout_head: float = option(0.0, "dropout before the last layer", PAPER, least=0)
    vis_freq: int = option(500, "steps between figures of masks; 0 = none", PAPER, content=False, least=0)


@dataclass
class Inference(Common):
    """What every stage has that looks at images one by one."""
    load_epo: str = option("last", "epoch whose weights are used: a number, last, or best (chosen on the ground truth)",
                           content=False)
    infer_list: str = option("train", "images to work on: a split's name or a file of IDs", PAPER, content=False)
    only: str = option("", "only this ID of the list", content=False)
    shard: str = option("1/1", "I/N: the I-th of N parts of the list, for job arrays; I from 1 to N, or from 0 to "
                        "N - 1", content=False)


@dataclass
class Infer(Inference):
    """infer.py"""
    model: str = option("model_cse", "whose CAMs")
    vis: bool = option(False, "write overlays to infer/ (writes the CAMs of --dict as well)", PAPER, content=False)
    dict: bool = option(False, "write the CAMs to dict/", PAPER, content=False)
    crf: bool = option(False, "write CRF maps to crf/ALPHA/ (writes the CAMs of --dict as well)", PAPER, content=False)
    alphas: tuple[float, ...] = option((6, 10, 24), "background = (1 - max CAM) ^ alpha, one CRF an alpha", PAPER,
                                       content=False, least=0)
    scales: tuple[float, ...] = option((0.5, 1.0, 1.5, 2.0), "scales of the image, each also mirrored", PAPER,
                                       least=0.1, most=4)
    labels: str = option("given", "classes to look for: the dataset's labels, or those that the network predicts, "
                         "which needs no labels", choices=("given", "predicted"))
    max_side: int = option(0, "an image with a longer side is shrunk to it for the network and the CRF; its maps keep "
                           "its own size; 0 = never", least=0)
    crf_iterations: int = option(10, "mean field iterations of the CRF", PAPER, content=False, least=1)
    format: str = option("npz", "npz, or the pickled dicts of the authors (npy)", choices=("npz", "npy"), content=False)
    dict_dir: str = option("", "folder of the CAMs; empty: dict and the model's suffix; that of another project is "
                          "only read", content=False)
    crf_dir: str = option("", "folder of the CRF maps; empty: crf and the model's suffix", content=False)
    vis_dir: str = option("", "folder of the overlays; empty: infer and the model's suffix", content=False)
    erase_rounds: int = option(0, "erase what the CAM of each class covers and infer again, so many times, to see the "
                               "object's other parts light up; 0 = never", content=False, least=0, most=50)
    erase_t: float = option(0.5, "a pixel of a higher score is erased in the next round", PAPER, least=0, most=1)
    erase_dir: str = option("", "folder of the rounds' maps, round_0 .. round_N, and of the strips and animations; "
                            "empty: erase and the model's suffix", content=False)


@dataclass
class TrainAff(Training):
    """train_aff.py"""
    low: float = option(4, "alpha of the CRF maps whose objects are taken as sure", PSA_SUBMITTED, above=0)
    high: float = option(24, "alpha of the CRF maps whose background is taken as sure", PSA_SUBMITTED, above=0)
    crf_dir: str = option("crf", "folder of both, in the experiment or anywhere; 4 is found as 04, 4 or 4.0",
                         content=False)
    init: str = option("imagenet", "start: imagenet, cam, random, a file, or an experiment's network (X/model_cse)",
                       PSA)
    max_epochs: int = option(8, "epochs", PSA, least=1)
    lr: float = option(0.01, "learning rate; of the new layers 10 times as high", PSA, least=0)
    crop: int = option(448, "side of the crop, a multiple of 8; what lies outside the image is black and unlabelled",
                       PSA, least=72)
    jitter: tuple[float, float, float, float] = option((0.3, 0.3, 0.3, 0.1), "random change of brightness, "
                                                       "contrast, saturation, hue; 0 0 0 0 = none", PSA, least=0)


@dataclass
class InferAff(Inference):
    """infer_aff.py"""
    infer_list: str = option("train_aug", "images to work on: a split's name or a file of IDs", PSA, content=False)
    low: float = option(4, "see --high", PSA_SUBMITTED, content=False, above=0)
    high: float = option(24, "the AffinityNet is the one that train_aff.py trained with this --low and --high",
                         PSA_SUBMITTED, content=False, above=0)
    dup: float = option(16, "background = (1 - max CAM) ^ dup at the walk's start", PSA, above=0)
    beta: float = option(8, "affinity ^ beta is the weight of a step: the higher, the fewer leave their object", PSA,
                         above=0)
    logt: int = option(8, "the walk takes 2 ^ logt steps; AEFT: 6", PSA, least=0, most=12)
    crf_iterations: int = option(0, "mean field iterations of a CRF after the walk; 0 = no CRF; AEFT: 1", PSA,
                                 least=0)
    radius_rule: str = option("psa", "the radius on small maps. aeft: the half disc fits into the shorter edge; psa: "
                              "radius 5 wherever one pair fits", PSA, choices=("psa", "aeft"))
    dict_dir: str = option("dict", "folder of the CAMs, in the experiment or anywhere, also another project's",
                           content=False)
    rw_dir: str = option("", "folder of the label maps; empty: rw/LOW_HIGH", content=False)


@dataclass
class TrainSeg(Training):
    """train_seg.py"""
    label_dir: str = option("rw/04_24", "folder of the labels ID.png, in the experiment or anywhere (rw/04_24, or "
                            "SegmentationClass of a dataset)", content=False)
    network: str = option("largefov", "largefov: two dilated convolutions; deeplabv3: torchvision's head",
                          "AEFT, authors' network", choices=("largefov", "deeplabv3"))
    init: str = option("imagenet", "start: imagenet, cam, random, a file, or an experiment's network (X/model_cse, "
                       "X/seg/010)", UNRELEASED)
    batch_size: int = option(10, "global: over all processes", UNRELEASED, least=1)
    max_epochs: int = option(19, "epochs: of train_aug's 10,582 images the 20,000 steps usual in the field", UNRELEASED,
                             least=1)
    lr: float = option(1e-3, "learning rate; of the new layers 10 times as high", UNRELEASED, least=0)
    momentum: float = option(0.9, "of SGD", UNRELEASED, least=0)
    scale: tuple[float, float] = option((0.5, 1.5), "image and labels are scaled by a factor drawn from this range",
                                        UNRELEASED, above=0)
    crop: int = option(448, "side of the crop; what lies outside the image has no label", UNRELEASED, least=8)
    jitter: tuple[float, float, float, float] = option((0.3, 0.3, 0.3, 0.1), "random change of brightness, "
                                                       "contrast, saturation, hue; 0 0 0 0 = none",
                                                       UNRELEASED + ", the amounts are the CGNet's",
                                                       least=0)


@dataclass
class InferSeg(Inference):
    """infer_seg.py"""
    infer_list: str = option("val", "images to work on: a split's name or a file of IDs", content=False)
    name: str = option("", "experiment whose DeepLab segments; everything is written to experiment/NAME, unless --out "
                       "names another folder. Empty: --weights and --out take its place", content=False)
    images: str = option("", "a folder of any photos, or one photo, instead of a list: label maps go to seg_FOLDER/, "
                         "overlays to seg_FOLDER_vis/", content=False)
    weights: str = option("", "weights file with its network.json beside it, or an experiment's network (X/seg, "
                          "X/seg/010), instead of --name and --load_epo", content=False)
    out: str = option("", "folder that gets masks/, overlays/ and areas.json instead of the experiment's",
                      content=False)
    vis: bool = option(False, "write overlays to seg_vis/", content=False)
    crf: bool = option(False, "sharpen with a dense CRF", UNRELEASED)
    crf_iterations: int = option(10, "mean field iterations of the CRF", PAPER, least=1)
    zip: bool = option(False, "write what VOC's test server takes: results/VOC2012/Segmentation/comp6_test_cls/ID.png "
                       "and results.zip", content=False)
    scales: tuple[float, ...] = option((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "scales of the image, each also mirrored",
                                       UNRELEASED,
                                       least=0.1, most=4)
    max_side: int = option(512, "--images: a photo with a longer side is shrunk to it for the network, as VOC's of "
                           "500 pixels are what it knows; 0 = never", least=0)
    tile: int = option(1024, "--images: a photo with a longer side, after --max_side, is segmented in overlapping "
                       "tiles of this side; 0 = never", least=0)
    seg_dir: str = option("", "folder of the label maps; empty: seg, or seg_FOLDER of --images", content=False)


@dataclass
class Evaluate(Common):
    """evaluation.py"""
    task: str = option("cam", "what the folder holds: CAMs (a threshold is the background), CRF maps, or label maps "
                       "(png)",
                       PAPER, choices=("cam", "crf", "png"))
    dict_dir: str = option("dict", "folder in the experiment (dict, crf/06, rw/04_24), or any folder", PAPER)
    gt_dir: str = option("", "folder of the ground truth; empty: SegmentationClass of the dataset", PAPER)
    list: str = option("train", "images to measure: a split's name or a file of IDs", PAPER)
    threshold: float = option(0.2, "the fixed background threshold whose mIoU is given beside the best")
    thresholds: tuple[float, float, float] = option((0.10, 0.39, 0.01), "LOW HIGH STEP: the thresholds among which "
                                                                        "the best is searched", PAPER)


@dataclass
class Reproduce(Common):
    """reproduce.py"""
    beyond = ". Flags of the training stages stand last, after --: -- {words}"

    name: str = option("", "experiment; empty: the recipe's name, and the model's where it is not the usual one",
                       content=False)
    model: str = option("model_cse", "whose CAMs become the pseudo labels: a file of models/")
    seeds: int = option(1, "runs: --seed, --seed + 1, ...", least=1)
    from_: str = option("classifier", "begin with this part; what the parts before it wrote stays as it is",
                        content=False, choices=("classifier", "cgnet", "affinity", "walk", "deeplab", "report"))
    train_list: str = option("train_aug", "images that everything learns from: a split's name or a file of IDs; "
                             "train and val are measured",
                             PAPER)
    table: str = option("", "instead of one chain, the rows of a table: methods, ablation_erasing, ablation_cse, "
                        "ablation_gpp, ablation_triplet; each in an experiment NAME-VARIANT-sSEED", content=False)
    measured: str = option("", "--table: images on which its rows are measured, a split's name or a file of IDs; "
                          "empty: train", content=False)
    at_once: int = option(1, "--table: how many rows are trained side by side. Each gets its share of the cores "
                          "and takes the memory of a whole training; a row that starts from a classifier waits for it",
                          content=False, least=1)
    plain: bool = option(False, "recipe demo on critters without heads: the control, where the gain should shrink")
    dry_run: bool = option(False, "print the commands only")


@dataclass
class Report(Common):
    """report.py"""
    name: str = option("", "experiment that is shown; empty: those of --compare", content=False)
    model: str = option("", "whose CAMs became the pseudo labels; empty: the model of models/ that was trained there",
                        content=False)
    list: str = option("train", "images to show: a split's name or a file of IDs", content=False)
    images: int = option(100, "images in the gallery, spread evenly over the list; about 50 KB each", content=False,
                         least=0)
    dirs: tuple[str, ...] = option((), "folders of maps in the gallery; crf and rw: the best in them by mIoU, or the "
                                   "first. None: those of the chain of --model", content=False)
    compare: tuple[str, ...] = option((), "instead of --name: experiments side by side, each by its CAMs, or as "
                                      "EXPERIMENT/FOLDER by a folder of maps", content=False)
    out: str = option("", "file of the page; empty: report.html in the experiment, compare.html in the first of "
                      "--compare", content=False)


# The authors' flags by the script that has them here. Their scripts shared one parser, so people give each of them all.
_AUTHORS_FLAGS = {
    "train.py": ("train_list", "val_list", "batch_size", "resize", "crop", "lr", "wt_dec", "max_epochs", "er_init",
                 "cl_init", "cc_init", "cc_slope", "print_freq", "vis_freq"),
    "infer.py": ("model", "load_epo", "infer_list", "vis", "dict", "crf", "alphas"),
    "evaluation.py": ("list", "task", "dict_dir", "gt_dir"),
}
for _settings, _script in ((Train, "train.py"), (Infer, "infer.py"), (Evaluate, "evaluation.py")):
    _settings.elsewhere = {_flag: _other for _other, _names in _AUTHORS_FLAGS.items() for _flag in _names
                           if _other != _script}

# Where the authors' other script has another name for the list that a stage works on: ignored, it would work on the
# wrong images.
Infer.same = {"list": "infer_list"}
Evaluate.same = {"infer_list": "list"}

# An unknown flag of a stage may be one of these.
Common.stages = {"train.py": Train, "infer.py": Infer, "evaluation.py": Evaluate, "train_aff.py": TrainAff,
                 "infer_aff.py": InferAff, "train_seg.py": TrainSeg, "infer_seg.py": InferSeg,
                 "reproduce.py": Reproduce, "report.py": Report}

# Under which heading --help lists a flag. What a stage or a model has alone comes first, the rest last, under "run".
Common.headings = {
    "data": ("data_root", "train_list", "val_list", "infer_list", "list", "only", "shard", "resize", "scale", "crop",
             "jitter", "jitter_probability", "max_side"),
    "network": ("backbone", "output_stride", "norm", "er_init", "init", "load_epo", "dropout", "dropout_head", "width",
                "blocks", "dilation"),
    "optimisation": ("batch_size", "max_epochs", "least_steps", "lr", "lr_new", "wt_dec", "momentum", "power"),
}

for _settings in (Common, Train, Infer, TrainAff, InferAff, TrainSeg, InferSeg, Evaluate, Reproduce, Report):
    _settings.recipes = {recipe: changes.get(_settings.__name__, {}) for recipe, changes in RECIPES.items()}
