"""Train the ordinary classifier (model_oc) or, with class-specific erasing, the CGNet (model_cse).

Reads   JPEGImages/ and labels of --data_root; starting weights from pretrained/ or another experiment
Writes  ckpt/MODEL/EEE.pth, last.pth   log/train_MODEL.jsonl   train/STEP.png (pictures of the masks)
Run     python train.py --name X --model model_oc
        python train.py --name X --model model_cse --cl_init X/model_oc
The same command again goes on where the last one stopped.
"""
from functools import partial

import torch
from tqdm import tqdm

import config
from data.dataset import TrainSet
from data.layout import VOCLayout
from data.loader import steps_per_epoch, train_loader, view_loader
from data.transforms import augment, denormalize
from methods.cam import image_cams
from methods.classification import Classification
from methods.cse import CSE, erase, sample_target
from networks import parameter_groups
from networks.cam import CAMNet
from networks.pretrained import load_weights, official_state
from tools import distributed, engine, interrupt
from tools.experiment import Experiment
from tools.files import save_image
from tools.metrics import ThresholdHistogram, iou, threshold_range
from tools.provenance import digests
from tools.visualize import erasing_figure


def main():
    settings = config.parse(config.Train)
    device = distributed.start(settings.device)
    experiment, layout = Experiment(*config.place(settings)), VOCLayout(settings.data_root)
    dataset = train_set(settings, layout)
    steps = steps_per_epoch(len(dataset), settings.batch_size)

    torch.manual_seed(settings.seed)
    network, inputs = start_network(settings, experiment, layout, "er_init")
    inputs |= digests(layout.sources())
    objective = Classification(network, distributed.global_mean)
    if settings.model == "model_cse":
        oc, oc_inputs = start_network(settings, experiment, layout, "cl_init")
        inputs |= oc_inputs
        objective = CSE(network, oc, settings.cc_init, settings.cc_slope, settings.mask_norm,
                        distributed.global_max, distributed.global_mean)
    engine.prepare(objective, device, settings)
    groups = parameter_groups(network, settings.lr, settings.wt_dec, ["fc8"] if settings.lr_new == 10 else [])

    record = config.content(settings) | {"classes": layout.classes, "inputs": inputs}
    engine.run_training(objective, network, groups, partial(train_loader, dataset), experiment, settings.model,
                        settings, record, steps=steps, device=device, weights=official_state, ids=dataset.ids,
                        on_step=masks_on_step(settings, experiment, objective, layout),
                        on_epoch=cams_on_epoch(settings, network, layout, device))


def train_set(settings, layout):
    ids = layout.ids(settings.train_list)
    change = partial(augment, resize=settings.resize, crop_size=settings.crop, jitter_amounts=settings.jitter)
    dataset = TrainSet(layout, ids, settings.seed, change, sample_target if settings.model == "model_cse" else None)
    empty = int((dataset.labels.sum(1) == 0).sum())
    distributed.say(f"{len(ids)} images of {settings.train_list}, {len(layout.classes)} classes"
                    + (f"; {empty} images have no class" if empty else ""))
    return dataset


def start_network(settings, experiment, layout, flag):
    """Make a CAMNet with the weights that a flag names; returns it and {flag: digest of the weights}.

    The ordinary classifier of another experiment comes with its own width and depth.
    """
    source = getattr(settings, flag)
    path = experiment.find_init(source, flag)
    shape = {name: getattr(settings, name) for name in config.NETWORK_FIELDS}
    trained = experiment.settings_of(path, "classes", "width", "blocks", "dilation")
    if trained and flag == "cl_init":
        shape |= {name: trained[name] for name in ("width", "blocks", "dilation")}
        if trained["classes"] != layout.classes:
            raise ValueError(f"--cl_init {source} was trained on other classes than those of {layout.root}")
    network = CAMNet(len(layout.classes), **shape)
    if path is None and flag == "cl_init":
        raise ValueError("--cl_init random: the ordinary classifier must be a trained one")
    load = partial(load_weights, network, head="require" if flag == "cl_init" else "skip")
    return network, {flag: engine.start_from(path, flag, load)}


def cams_on_epoch(settings, network, layout, device):
    """Return what measures the CAMs on --val_list after an epoch: (epoch) -> {"miou", "threshold", "curve"}."""
    if not settings.val_every:
        return None
    ids = layout.ids(settings.val_list)
    layout.check(ids, settings.val_list)
    layout.labels(ids)
    blind = sum(not layout.has_ground_truth(i) for i in ids)
    if blind:
        distributed.say(f"{blind} of {len(ids)} images of {settings.val_list} have no pixel truth: no mIoU in training")
        return None
    thresholds, scales = threshold_range(*config.Evaluate.thresholds), config.Infer.scales

    def measure(epoch):
        if (epoch + 1) % settings.val_every and epoch + 1 != settings.max_epochs:
            return {}
        network.eval()
        mine, histogram = distributed.share(ids), ThresholdHistogram(len(layout.classes), thresholds)
        pictures = view_loader(layout, mine, scales, **engine.loader_for(device, settings.num_workers))
        with engine.autocast(device, settings.precision):
            for image_id, classes, scores in tqdm(image_cams(network, pictures), f"CAMs of {settings.val_list}",
                                                  len(mine), leave=False, disable=not distributed.is_main(),
                                                  mininterval=1):
                histogram.add(classes, scores, layout.ground_truth(image_id))
                if interrupt.asked():
                    break
        if distributed.agree(interrupt.asked())[0]:         # the epoch is saved; it is measured when the run goes on
            interrupt.leave()
        histogram.counts = distributed.sum_array(histogram.counts, device)
        curve = list(zip(thresholds, iou(histogram.matrices()).mean(-1).tolist()))
        best = max(curve, key=lambda point: point[1])
        return {"miou": best[1], "threshold": best[0], "curve": curve}

    return measure


def masks_on_step(settings, experiment, objective, layout):
    """Return what draws train/STEP.png every --vis_freq steps: the erasing in up to four images of the batch.

    Under several processes the batch is the main one's part of it.
    """
    if settings.model != "model_cse" or not settings.vis_freq:
        return None

    def draw(step, batch):
        chosen = (batch["target"] >= 0).nonzero()[:4, 0]
        if step % settings.vis_freq or not distributed.is_main() or not len(chosen):
            return
        with engine.autocast(batch["image"].device, settings.precision):
            seen = look(objective, batch)       # of the whole batch: its masks share a maximum
        batch, seen = ({k: v[chosen].float().cpu() for k, v in part.items()} for part in (batch, seen))
        figure = erasing_figure([denormalize(x) for x in batch["image"]], [denormalize(x) for x in seen["erased"]],
                                seen["mask"][:, 0].numpy(), batch["label"].numpy(), batch["target"].numpy(),
                                seen["before"].numpy(), seen["after"].numpy(), layout.classes)
        save_image(experiment / f"train/{step:06d}.png", figure)

    return draw


@torch.no_grad()
def look(objective, batch):
    """Show what the erasing does to a batch that has "target".

    Returns {"erased" (B, 3, H, W), "mask" (B, 1, H, W), "before" (B, C), "after" (B, C)}: the last two are the OC's
    probabilities for the image and for what is left of it.
    """
    training = objective.cgnet.training
    objective.cgnet.eval()
    cam, _ = objective.cgnet(batch["image"])
    objective.cgnet.train(training)
    erased, mask = erase(batch["image"], cam, batch["target"], objective.mask_norm)
    before, after = (torch.sigmoid(objective.oc(x)[1]) for x in (batch["image"], erased))
    return {"erased": erased, "mask": mask, "before": before, "after": after}


if __name__ == "__main__":
    config.run(main)
