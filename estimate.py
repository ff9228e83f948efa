"""Estimate how long reproduce.py will take on this machine, from the number of images and a short measurement.

Reads   the lists of --data_root   log/reproduce.json of an earlier run, which refines the estimate
Writes  nothing; prints the time of the whole chain and of each of its parts
Run     python estimate.py --recipe lite --data_root data/mine --train_list train       (the flags of reproduce.py)
Of each training it times a step on four images, of each network a view of one; large networks are timed on smaller
images, for the time of a convolution grows with the area. Reading images is not counted, other processes do that.
"""
import contextlib
import io
import sys
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import config

import numpy as np

import pipeline
from data.images import image_size, ten_of
from data.layout import IGNORE, VOCLayout
from tools import catalog, flags
from tools.clock import duration, estimate, read_times
from tools.experiment import Experiment
from tools.words import counted

SMALL, LONGEST = 96, 2.0            # pixels: the first measurement; seconds: longer ones are made on a part of the area
STARTED = time.perf_counter()


def main():
    own, handed = flags.split_words(sys.argv[1:])
    settings = flags.parse(config.Reproduce, own, dict.fromkeys(catalog.models(), config.Reproduce))
    settings.name = settings.name or settings.recipe
    layout = VOCLayout(settings.data_root)
    values = replace(pipeline.values_of(settings.name, settings.recipe, settings.model), train_list=settings.train_list)
    values = pipeline.fit_lists(values if find_spec("pydensecrf") else replace(values, alphas=()), layout)
    chain = pipeline.hand_on(pipeline.chain(values), handed)
    unmeasured = pipeline.not_measured(chain, layout)
    chain = [stage for stage in chain if not stage.task or stage.list not in unmeasured]
    images = {name: layout.ids(name) for name in {values.measured, values.val or values.measured, values.train_list}}
    print("measuring a step of each training and an image of each network ...", file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder, without_denormals():
        predicted = predict(settings, values, chain, layout, images, Path(folder))
    expected, left = estimate(predicted, read_times(Experiment(settings.experiment_root, settings.name)))
    seconds = sum(expected.values())
    parts = {part: sum(expected[stage.title] for stage in chain if stage.part == part)
             for part in dict.fromkeys(stage.part for stage in chain)}
    each = " for each seed" if settings.seeds > 1 else ""
    rest = "" if left == seconds else f", {duration(left)} of it still to come"
    print(f"Estimated time on {counted(len(images[settings.train_list]), 'image')}: {duration(seconds)}{each}{rest} "
          f"(measured in {time.perf_counter() - STARTED:.0f} s: "
          + ", ".join(f"{part} {duration(value)}" for part, value in parts.items()) + ")")


@contextlib.contextmanager
def without_denormals():
    """Let numbers near zero count as zero: random weights make such, on which a CPU is slow."""
    import torch
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def predict(settings, values, chain, layout, images, folder):
    """Return {title of a stage: seconds}."""
    import torch

    from tools import distributed
    device = distributed.start(settings.device)
    start = time.perf_counter() - STARTED           # what every stage needs to begin
    torch.manual_seed(0)
    sizes = [image_size(layout.image_path(i)) for i in ten_of(images[values.train_list])]
    size, workers = np.mean(sizes, 0), max(1, settings.num_workers)
    shared = ["--recipe", settings.recipe, "--name", values.name, "--data_root", settings.data_root, "--device",
             settings.device]
    predicted = {}
    for stage in chain:
        words = [*shared, *stage.words()]
        count = len(images[stage.list or values.measured])
        seconds = 0.007 * count                     # of evaluation.py: it reads maps and counts
        if stage.script == "train.py":
            seconds = _training(words, layout, images, size, folder, device)
        elif stage.script in ("train_aff.py", "train_seg.py"):
            seconds = _later_training(stage.script, words, layout, count, device)
        elif stage.script == "infer.py":
            run = flags.parse(config.Infer, words, dict.fromkeys(catalog.models(), config.Infer))
            _, _, (network, *_) = _start([*shared, "--model", run.model], layout, folder)
            seconds = count * views(network, size, run.scales, device)
            if run.crf:
                seconds += count * len(run.alphas) * _crf(size, run.crf_iterations) / workers
        elif stage.script == "infer_aff.py":
            seconds = count * _walk(shared, words, layout, size, device, workers)
        elif stage.script == "infer_seg.py":
            run, training = flags.parse(config.InferSeg, words), flags.parse(config.TrainSeg, shared)
            seconds = count * views(_network(_pixel_kind(training), training, layout), size, run.scales, device)
        predicted[stage.title] = start + seconds
    return predicted


def seconds_of(action, size, largest=LONGEST):
    """Time `action(height, width)` for images of a size; where that takes longer, on a part and in proportion."""
    full = [round(side) for side in size]
    small = [min(SMALL, side) for side in full]
    for number, sides in enumerate((small, small, full, full)):        # the first call of a size is slower
        begun = time.perf_counter()
        action(*sides)
        spent = time.perf_counter() - begun
        seconds = spent * float(np.prod(full) / np.prod(sides))
        if spent > largest or number in (1, 3) and (sides == full or seconds > largest):
            break
    return seconds


def step(objective, batch_of, crop, device):
    """Time the forward and backward pass of an objective per image. batch_of: (number, crop) -> batch."""
    from tools import engine
    engine.to_device(objective.train(), device)

    def run(height, width):
        batch = {name: value.to(device) for name, value in batch_of(4, height).items()}
        objective(batch, 0)["loss"].backward()
        objective.zero_grad(set_to_none=True)

    return seconds_of(run, (crop, crop)) / 4


def views(network, size, scales, device):
    """Time the views of an image, at all scales and mirrored, through a network."""
    import torch

    from tools import engine
    engine.to_device(network.eval(), device, inference=True)
    with torch.no_grad():
        one = seconds_of(lambda h, w: network(torch.randn(2, 3, h, w, device=device)), size)
    return one * sum(scale**2 for scale in scales)


def _training(words, layout, images, size, folder, device):
    """Predict train.py."""
    import torch

    from tools import engine
    run, model, (network, objective, *_) = _start(words, layout, folder)
    sample = getattr(model, "SAMPLE_TARGET", None)

    def batch(number, crop):
        label = torch.zeros(number, len(layout.classes))
        label[:, 0] = 1
        made = {"image": torch.randn(number, 3, crop, crop), "label": label}
        return made | ({"target": sample(label)} if sample else {})

    count = len(images[run.train_list])
    engine.fit_to(run, count)
    sizes = model.plan(run, count).batch_sizes if hasattr(model, "plan") else [run.batch_size] * run.max_epochs
    seconds = sum(count // b * b for b in sizes) * step(objective, batch, run.crop, device)
    watched = layout.ids(run.val_list) if run.val_every else ()
    if all(map(layout.has_ground_truth, watched)):
        cams = views(network, size, config.Infer.scales, device)
        seconds += -(-len(sizes) // max(1, run.val_every)) * len(watched) * cams
    return seconds


def _start(words, layout, folder):
    """Start a training, and those on which it builds, with random weights: its settings, model, what start returns."""
    from models import MODELS
    from networks.pretrained import official_state
    from tools.files import save_checkpoint, write_json
    run = flags.parse(config.Train, [*words, "--er_init", "random"], pipeline.settings_of_models())
    for flag, other in catalog.models()[run.model].starts_from.items():
        shared = words[:words.index("--model")]
        _, _, (network, _, description, _) = _start([*shared, "--model", other], layout, folder)
        save_checkpoint(folder / other / "000.pth", official_state(network))
        write_json(folder / other / "network.json", description)
        setattr(run, flag, str(folder / other / "000.pth"))
    model = MODELS[run.model]
    return run, model, model.start(run, Experiment(folder, run.name), layout)


def _later_training(script, words, layout, count, device):
    """Predict train_aff.py or train_seg.py."""
    import torch

    from methods.affinity import AffinityLearning
    from methods.segmentation import Segmentation
    from tools import engine
    affinity = script == "train_aff.py"
    run = flags.parse(config.TrainAff if affinity else config.TrainSeg, words)
    network = _network("AffinityNet" if affinity else _pixel_kind(run), run, layout)
    with torch.no_grad():
        features = network.eval()(torch.zeros(1, 3, SMALL, SMALL))
    cell = SMALL // features.shape[-1]              # pixels a side of a cell

    def batch(number, crop):
        label_map = torch.randint(0, 2, (number, -(-crop // cell), -(-crop // cell)))
        return {"image": torch.randn(number, 3, crop, crop), "label_map": label_map}

    engine.fit_to(run, count)
    objective, size = AffinityLearning(network) if affinity else Segmentation(network, IGNORE), run.batch_size
    return run.max_epochs * (count // size * size) * step(objective, batch, run.crop, device)


def _walk(shared, words, layout, size, device, workers):
    """Time the random walk, and the CRF after it, of an image."""
    import torch

    from methods.random_walk import walk_cams
    from tools import engine
    run, training = flags.parse(config.InferAff, words), flags.parse(config.TrainAff, shared)
    network = _network("AffinityNet", training, layout).eval()
    engine.to_device(network, device, inference=True)

    def walk(height, width):
        walk_cams(network, torch.randn(1, 3, height, width), torch.rand(2, height, width), run.dup, run.beta, run.logt)

    seconds = seconds_of(walk, size)
    return seconds + (_crf(size, run.crf_iterations, 1 + len(layout.classes)) / workers if run.crf_iterations else 0)


def _crf(size, iterations, rows=3):
    from tools.crf import dense_crf
    rng = np.random.default_rng(0)
    return seconds_of(lambda h, w: dense_crf(rng.integers(0, 256, (h, w, 3), np.uint8), rng.random((rows, h, w)),
                                             iterations), size)


def _network(kind, settings, layout):
    from networks import build, describe
    return build(describe(kind, layout.classes, settings))


def _pixel_kind(training):
    from networks.deeplab import HEADS
    return HEADS[training.network].__name__


if __name__ == "__main__":
    flags.run(main)
