"""Train the ordinary classifier (model_oc) or, with class-specific erasing, the CGNet (model_cse).

Reads   JPEGImages/ labels.json (or Annotations/) of --data_root; weights: pretrained/ or another experiment
Writes  ckpt/MODEL/EEE.pth, last.pth   log/train_MODEL.jsonl   train/ (pictures of the masks)
Run     python train.py --name X --model model_oc
        python train.py --name X --model model_cse --cl_init X/model_oc
The same command again goes on where the last one stopped.
"""
from functools import partial

import torch
from tqdm import tqdm

import config
from data.dataset import TrainSet, VOCLayout
from data.loader import train_loader
from data.transforms import augment, denormalize
from infer import image_cams
from methods.classification import Classification
from methods.cse import CSE, erase, sample_target
from networks import parameter_groups
from networks.cam import CAMNet
from networks.pretrained import load_weights, official_state
from tools import distributed, engine, visualize
from tools.experiment import Experiment, digest, save_image
from tools.metrics import ThresholdHistogram, iou

THRESHOLDS = [t / 100 for t in range(10, 40)]


def main():
    settings = config.parse(config.Train)
    device = distributed.start(settings.device)
    experiment, stage = Experiment(settings), f"train_{settings.model}"
    layout = VOCLayout(settings.data_root)
    dataset = train_set(settings, layout)
    steps = len(dataset) // settings.batch_size

    torch.manual_seed(settings.seed)
    network, objective, inputs = build(settings, experiment, len(layout.classes))
    objective.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.contiguous_format)
    optimizer, schedule = engine.poly_sgd(
        parameter_groups(network, settings.lr, settings.wt_dec, ["fc8"] if settings.lr_new == 10 else []),
        settings.lr, settings.max_epochs * steps, settings.power, settings.momentum)

    record = config.content(settings) | {"classes": layout.classes, "inputs": inputs}
    distributed.main_first(partial(open_experiment, experiment, stage, settings, record))
    if settings.compile:
        network.compile()
    engine.fit(objective, network, optimizer, schedule, partial(loader, settings, dataset, device), experiment, stage,
               record, epochs=settings.max_epochs, steps=steps, device=device, weights=official_state,
               precision=settings.precision, seed=settings.seed, save_minutes=settings.save_minutes,
               print_freq=settings.print_freq, on_step=masks_on_step(settings, experiment, objective, dataset),
               on_epoch=cams_on_epoch(settings, network, layout))
    distributed.stop()


def train_set(settings, layout):
    """Make the dataset; raises ValueError if a batch does not fit the list."""
    ids = layout.ids(settings.train_list)
    change = partial(augment, resize=settings.resize, crop_size=settings.crop, jitter_amounts=settings.jitter)
    dataset = TrainSet(layout, ids, settings.seed, change, sample_target if settings.model == "model_cse" else None)
    if settings.batch_size > len(ids):
        raise ValueError(f"--batch_size {settings.batch_size} is larger than the list {settings.train_list}, "
                         f"{len(ids)} images: take a smaller one")
    without = int((dataset.labels.sum(1) == 0).sum())
    distributed.say(f"{len(ids)} images of {settings.train_list}, {len(layout.classes)} classes"
                    + (f", {without} images without any class" if without else ""))
    return dataset


def loader(settings, dataset, device, start_step):
    return train_loader(dataset, settings.batch_size, settings.max_epochs, settings.seed, start_step,
                        distributed.rank(), distributed.world(), settings.num_workers, device.type == "cuda")


def build(settings, experiment, num_classes):
    """Make the network, its objective, and the digests of the weights that they start from."""
    network, inputs = start_network(settings, experiment, num_classes, "er_init", head="skip")
    if settings.model == "model_oc":
        return network, Classification(network), inputs
    oc, oc_inputs = start_network(settings, experiment, num_classes, "cl_init", head="require")
    objective = CSE(network, oc, settings.cc_init, settings.cc_slope, settings.mask_norm,
                    distributed.global_max, distributed.global_mean)
    return network, objective, inputs | oc_inputs


def start_network(settings, experiment, num_classes, flag, head):
    """Make a CAMNet with the weights that a flag names; another experiment's network brings its own width and depth."""
    source = getattr(settings, flag)
    path = experiment.find_init(source)
    shape = {k: getattr(settings, k) for k in config.NETWORK_FIELDS}
    if flag == "cl_init" and path and (trained := experiment.settings_of(path)):
        shape |= {k: trained[k] for k in ("width", "blocks", "dilation")}
    network = CAMNet(num_classes, **shape)
    if path is None:
        if head == "require":
            raise ValueError(f"--{flag} {source}: the ordinary classifier must be a trained one")
        return network, {flag: "random"}
    names = load_weights(network, path, head=head)
    fresh = [n for n in names["new"] if not n.endswith("num_batches_tracked")]
    distributed.say(f"--{flag}: {len(names['loaded'])} tensors from {path}" + (f"; new: {', '.join(fresh)}" if fresh else ""))
    return network, {flag: digest(path)}


def open_experiment(experiment, stage, settings, record):
    """Empty the stage's folder if asked to, and write its configuration, unless it would not go on with it anyway."""
    folder = experiment / f"ckpt/{settings.model}"
    if settings.overwrite:
        experiment.remove(f"ckpt/{settings.model}", f"log/{stage}.jsonl")
    if not (folder / "last.pth").exists():
        experiment.save_config(stage, config.as_json(settings) | record)


def cams_on_epoch(settings, network, layout):
    """Return what measures the CAMs on --val_list after an epoch: (epoch) -> {"miou", "threshold", "curve"}."""
    if not settings.val_every:
        return None
    ids = layout.ids(settings.val_list)
    layout.check(ids, settings.val_list)
    blind = [i for i in ids if not layout.has_truth(i)]
    if blind:
        distributed.say(f"{len(blind)} of {len(ids)} images of {settings.val_list} have no pixel truth: CAMs are not "
                        "measured during training")
        return None

    def measure(epoch):
        if (epoch + 1) % settings.val_every and epoch + 1 != settings.max_epochs:
            return None
        network.eval()
        histogram = ThresholdHistogram(len(layout.classes), THRESHOLDS)
        mine = distributed.share(ids)
        cams = image_cams(network, layout, mine, precision=settings.precision)
        for image_id, classes, scores in tqdm(cams, f"CAMs of {settings.val_list}", len(mine), leave=False,
                                              disable=not distributed.is_main(), mininterval=1):
            histogram.add(classes, scores, layout.truth(image_id))
        device = next(network.parameters()).device
        counts = distributed.sum_over_processes(torch.from_numpy(histogram.counts).to(device))
        histogram.counts = counts.cpu().numpy()
        miou = iou(histogram.matrices()).mean(-1)
        best = int(miou.argmax())
        return {"miou": round(float(miou[best]), 3), "threshold": THRESHOLDS[best],
                "curve": [[t, round(float(m), 3)] for t, m in zip(THRESHOLDS, miou)]}

    return measure


def masks_on_step(settings, experiment, objective, dataset):
    """Return what draws train/STEP.png every --vis_freq steps: the erasing of up to four images of the batch."""
    if settings.model != "model_cse" or not settings.vis_freq:
        return None
    names = dataset.layout.classes

    @torch.no_grad()
    def draw(step, batch):
        if step % settings.vis_freq or not distributed.is_main():
            return
        chosen = (batch["target"] >= 0).nonzero()[:4, 0]
        if not len(chosen):
            return
        objective.cgnet.eval()
        image, label, target = (batch[k][chosen] for k in ("image", "label", "target"))
        with torch.autocast(image.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            cam, _ = objective.cgnet(image)
            erased, mask = erase(image, cam, target, settings.mask_norm)
            before, after = (objective.oc(x)[1].sigmoid() for x in (image, erased))
        objective.cgnet.train()
        rows = [{"image": denormalize(image[i]), "erased": denormalize(erased[i]), "mask": mask[i, 0].cpu().numpy(),
                 "target": names[target[i]],
                 "before": {names[c]: float(before[i, c]) for c in label[i].nonzero()[:, 0]},
                 "after": {names[c]: float(after[i, c]) for c in label[i].nonzero()[:, 0]}} for i in range(len(chosen))]
        save_image(experiment / f"train/{step:06d}.png", visualize.erasing_figure(rows))

    return draw


if __name__ == "__main__":
    config.run(main)
