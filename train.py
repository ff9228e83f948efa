"""Train a model of models/ on image-level labels: the ordinary classifier (model_oc), the CGNet (model_cse), ...

Reads   JPEGImages/ and labels of --data_root; starting weights from pretrained/ or another experiment
Writes  ckpt/MODEL/EEE.pth, last.pth, network.json   log/train_MODEL.jsonl   train/STEP.png (the masks of model_cse)
Run     python train.py --name X --model model_oc
        python train.py --name X --model model_cse --cl_init X/model_oc
        python train.py --help --model model_oc         (its own flags)
The same command again resumes where the last one stopped.
"""
from functools import partial

import config

from pipeline import settings_of_models
from tools import flags

if __name__ == "__main__":      # --help and mistakes in the flags, before torch takes seconds to load
    flags.check(config.Train, settings_of_models())

import torch
from tqdm import tqdm

from advice import experiment_of
from data.dataset import TrainSet
from data.labels import check_learnable
from data.layout import IGNORE, VOCLayout
from data.loader import Plan, train_loader, view_loader
from data.signatures import signatures
from data.transforms import augment, resize_scores
from methods.cam import image_cams
from models import MODELS
from networks import parameter_groups
from networks.pretrained import official_state
from tools import distributed, engine, interrupt, remedies
from tools.metrics import ThresholdHistogram, iou, threshold_range
from tools.provenance import digests
from tools.words import counted


def main():
    settings = flags.parse(config.Train, models=settings_of_models())
    model, device = MODELS[settings.model], distributed.start(settings.device)
    experiment, layout = experiment_of(settings), VOCLayout(settings.data_root)
    dataset = train_set(settings, model, layout)
    engine.fit_to(settings, len(dataset))
    plan, listed = plan_of(settings, model, len(dataset)), measured_ids(settings, layout)

    torch.manual_seed(settings.seed)
    network, objective, description, inputs = model.start(settings, experiment, layout)
    if hasattr(model, "know_labels"):
        model.know_labels(objective, dataset.labels)
    engine.prepare(objective, device, settings)
    new_layers = network.new_layers if settings.lr_new == 10 else ()
    groups = parameter_groups(network, settings.lr, settings.wt_dec, new_layers)

    record = flags.content(settings) | {"classes": layout.classes, "inputs": inputs | digests(layout.sources())}
    images = distributed.on_main(lambda: signatures(layout, dataset.ids, settings.train_list))
    run = engine.Run(experiment, settings.model, settings, record, description, plan, device, official_state,
                     dataset.ids, images)
    own = vars(model)           # what the model has of its own: see models/__init__.py
    engine.run_training(
        objective, network, groups, partial(train_loader, dataset, plan), run,
        schedule_steps=own["schedule_steps"](settings, len(dataset)) if "schedule_steps" in own else plan.steps,
        on_step=partial(own["figures"], settings, experiment, objective, layout) if "figures" in own else None,
        on_epoch=partial(measure_cams, settings, network, layout, device, plan, listed) if listed else None)
    if distributed.is_first():
        warn_if_little_is_learned(experiment, settings)


def train_set(settings, model, layout):
    ids = layout.ids(settings.train_list)
    change = partial(augment, resize=settings.resize, crop_size=settings.crop, jitter_amounts=settings.jitter,
                     jitter_probability=getattr(settings, "jitter_probability", 1))
    dataset = TrainSet(layout, ids, settings.seed, change, getattr(model, "SAMPLE_TARGET", None), settings.max_side)
    notes = check_learnable(dataset.labels, layout.classes, settings.train_list, layout.root)
    notes += model.notes(settings, dataset.labels) if hasattr(model, "notes") else []
    distributed.say(f"{counted(len(ids), 'image')} of {settings.train_list}, {counted(len(layout.classes), 'class')}")
    for words in filter(None, (*notes, layout.left_out)):
        distributed.say(words)
    return dataset


def plan_of(settings, model, images):
    if hasattr(model, "plan"):
        return model.plan(settings, images)
    return Plan(images, [settings.batch_size] * settings.max_epochs, settings.seed)


def measured_ids(settings, layout):
    """Return the IDs of --val_list, on which the CAMs are measured after each epoch; none if they cannot be."""
    if not settings.val_every:
        return []
    ids = layout.ids(settings.val_list)
    layout.check(ids, settings.val_list)
    layout.labels(ids)
    blind = sum(not layout.has_ground_truth(i) for i in ids)
    if blind:
        distributed.say(f"{blind} of {len(ids)} images of {settings.val_list} have no ground truth: no mIoU in "
                        "training")
    return [] if blind else ids


def measure_cams(settings, network, layout, device, plan, ids, epoch):
    """Measure the CAMs of these images after an epoch: {"miou", "threshold", "curve"}; empty if it is not its turn."""
    if (epoch + 1) % settings.val_every and epoch + 1 != plan.epochs:
        return {}
    network.eval()
    thresholds = threshold_range(*config.Evaluate.thresholds)
    mine, histogram = distributed.share(ids), ThresholdHistogram(len(layout.classes), thresholds)
    images = view_loader(layout, mine, config.Infer.scales, max_side=settings.max_side,
                         **engine.loader_for(device, settings.num_workers))
    less = "--val_every 0 measures nothing in training; a --val_list of smaller images or --precision bf16 needs less"
    with engine.autocast(device, settings.precision), remedies.one_by_one(images, less) as images:
        for image_id, classes, scores in tqdm(image_cams(network, images), f"CAMs of {settings.val_list}", len(mine),
                                              leave=False, disable=not distributed.is_main(), mininterval=1):
            truth = layout.ground_truth(image_id)
            if settings.max_side:
                scores = resize_scores(scores, *truth.shape)
            histogram.add(classes, scores, truth)
            if interrupt.asked():
                break
    if distributed.agree(interrupt.asked())[0]:         # the epoch is saved; it is measured when the run resumes
        interrupt.leave()
    histogram.counts = distributed.sum_array(histogram.counts, device)
    if not histogram.counts[1:].any():
        distributed.say(f"the ground truth of {settings.val_list} shows no object, background and {IGNORE} alone: no "
                        f"mIoU. python -m data.prepare check --root {layout.root} lists what is wrong")
        return {}
    curve = list(zip(thresholds, iou(histogram.matrices()).mean(-1).tolist()))
    best = max(curve, key=lambda point: point[1])
    return {"miou": best[1], "threshold": best[0], "curve": curve}


def warn_if_little_is_learned(experiment, settings):
    """Say so where a classifier, in its last epoch, missed most present classes, or found as much of absent ones."""
    *_, last = [{}, *experiment.epochs(f"train_{settings.model}")]
    present, absent = last.get("p_present"), last.get("p_absent")
    if present is None or absent is None or present >= 0.5:
        return
    gave = f"in its last epoch it gave present classes {present:.2f} and absent ones {absent:.2f}"
    if present <= absent:
        print(f"warning: {settings.model} has learned nothing: {gave}. Its maps will mean nothing. A lower --lr (it is "
              f"{settings.lr:g}), more --max_epochs or more images may help")
    else:
        print(f"warning: {settings.model} misses most classes: {gave}. Its maps will mean little. More --max_epochs "
              f"(there were {settings.max_epochs}) or more images may help")


if __name__ == "__main__":
    flags.run(main)
