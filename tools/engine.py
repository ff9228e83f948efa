"""The one training loop, and the authors' optimizer."""
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from tools import distributed, flags, interrupt
from tools.progress import Progress
from tools.provenance import digest
from tools.recompute import InParts, recomputed
from tools.words import counted


def poly_sgd(groups, lr, steps, power=0.9, momentum=5e-4):
    """SGD whose rate falls as (1 - step / steps)^power, at every step; after the last one it stays.

    groups  parameter groups with a rate of their own (networks.parameter_groups), or parameters
    The momentum's default is the authors': they pass the weight decay into its slot.
    Returns optimizer, schedule.
    """
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - min(step, steps - 1) / steps) ** power)
    return optimizer, schedule


def start_from(path, flag, load):
    """Load the weights that a flag names, and say what came of it; returns their digest, "random" where path is None.

    load  path -> networks.pretrained.load_weights's {"loaded", "new", "unused"}, with .place
    """
    if path is None:
        return "random"
    names = load(path)
    place = getattr(names, "place", "")
    under = f" ({place})" if place else ""
    new = ", ".join(names["new"]) or "none"
    distributed.say(f"--{flag}: {counted(len(names['loaded']), 'tensor')} from {path}{under}; new: {new}; not used: "
                    f"{len(names['unused'])} of the file")
    return digest(path)


@dataclass
class Run:
    """What a training is, beside its networks."""
    experiment: object          # tools.experiment.Experiment
    model: str                  # names its files: ckpt/MODEL, log/train_MODEL.jsonl
    settings: object            # the stage's
    record: dict                # what must be equal for it to resume (JSON)
    description: dict           # of its network: network.json
    plan: object                # data.loader.Plan: the batches
    device: torch.device
    weights: object             # function network -> what EEE.pth holds
    ids: list                   # the images' IDs, to name those of a batch
    images: object = None       # data.signatures.Signatures of them, compared when it resumes

    @property
    def stage(self):
        return f"train_{self.model}"


def fit_to(settings, images):
    """Reduce --batch_size to the number of images where that is smaller; add epochs for --least_steps; say so.

    Raises ValueError where not even one image is left for each process and each part of --accumulate.
    """
    _reduce_batch(settings, images)
    epochs = -(-settings.least_steps // (images // settings.batch_size))
    if epochs > settings.max_epochs == flags.defaults(type(settings), settings.recipe)["max_epochs"][0]:
        distributed.say(f"--max_epochs {settings.max_epochs} becomes {epochs}: {counted(images, 'image', 'makes')} "
                        f"few steps (--least_steps {settings.least_steps})")
        settings.max_epochs = epochs


def _reduce_batch(settings, images):
    if images >= settings.batch_size:
        return
    parts = distributed.world() * settings.accumulate
    size = images // parts * parts
    if not size:
        raise ValueError(f"{settings.train_list} has {counted(images, 'image')}, too few for {distributed.world()} "
                         "processes "
                         f"with --accumulate {settings.accumulate}: take fewer of both, or a longer --train_list")
    distributed.say(f"--batch_size {settings.batch_size} becomes {size}: {settings.train_list} has "
                    f"{counted(images, 'image')}")
    settings.batch_size = size


def run_training(objective, network, groups, train_loader, run, schedule_steps=None, on_step=None, on_epoch=None):
    """Open a training, or resume it, and fit: what every training stage ends with.

    train_loader    data.loader.train_loader with its dataset and plan
    schedule_steps  over which the rate falls; default: those of the plan
    """
    settings, plan, parts = run.settings, run.plan, distributed.world() * run.settings.accumulate
    for size in plan.batch_sizes:
        if size % parts:
            raise ValueError(f"--batch_size {size} cannot be cut into {settings.accumulate} equal parts in each of "
                             f"{distributed.world()} processes: take a multiple of {parts}, or another --accumulate")
    optimizer, schedule = poly_sgd(groups, settings.lr, schedule_steps or plan.steps, settings.power, settings.momentum)
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    distributed.on_main(lambda: run.experiment.open_training(run.model, vars(settings) | run.record, run.record,
                                                             run.description, plan.epochs, size, settings.overwrite,
                                                             run.images))
    loader = partial(train_loader, rank=distributed.rank(), world=distributed.world(),
                     num_workers=settings.num_workers, pin_memory=run.device.type == "cuda")
    fit(objective, network, optimizer, schedule, loader, run, on_step, on_epoch)
    run.experiment.release()
    distributed.stop()


def fit(objective, network, optimizer, schedule, make_loader, run, on_step=None, on_epoch=None):
    """Train `network` through `objective` until the plan's end; called again on the same folder, it resumes.

    objective    nn.Module: (batch, epoch) -> dict of 0-d tensors with the key "loss"; the others are logged
    make_loader  start step -> batches from there to the end
    on_step      (step, batch) -> None, before the update;  on_epoch  (epoch) -> {name: value} for the log
    Of the settings it reads precision, seed, print_freq, save_minutes and skip_nonfinite, the batches that may be left
    out: one more is a ValueError that names its images. When asked to stop (tools.interrupt) it saves after the step
    and leaves; when a batch cannot be read, likewise.
    Writes ckpt/MODEL/EEE.pth, ckpt/MODEL/last.pth, log/train_MODEL.jsonl.
    """
    settings, plan, state = run.settings, run.plan, Progress(run, network, optimizer, schedule, on_epoch)
    with interrupt.remembered():
        if state.resume():
            distributed.say("{}: resumes at epoch {}, step {} of {}".format(run.stage, *plan.place_of(state.step))
                            if state.step < plan.steps else
                            f"{run.stage}: complete, {plan.epochs} epochs; nothing to do")
        if state.step >= plan.steps:
            return
        forward = objective
        if distributed.world() > 1:
            forward = DistributedDataParallel(objective,
                                              device_ids=[run.device.index] if run.device.type == "cuda" else None)
        objective.train()
        statistics = [b for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.training
                      for b in m.buffers()]
        bar = tqdm(total=plan.steps, initial=state.step, desc=run.stage, unit="step",
                   disable=not distributed.is_main(), mininterval=1, dynamic_ncols=True)
        for batch in _batches(state, make_loader):
            batch = {k: _to(v, run.device) for k, v in batch.items()}
            optimizer.zero_grad(set_to_none=True)
            before = [b.clone() for b in statistics]
            _draw_from(settings.seed, state.step)
            with autocast(run.device, settings.precision):
                terms = forward(batch, plan.epoch_of(state.step))
            terms["loss"].backward()
            checked = _checked(terms, network)
            bad = not all(math.isfinite(value) for value in checked.values())
            if distributed.agree(bad)[0]:
                for buffer, value in zip(statistics, before):
                    buffer.copy_(value)
                images = [run.ids[i] for i in batch["index"].tolist()] if run.ids else []
                state.skip_or_stop((checked, images) if bad else None)
            else:
                if on_step:
                    on_step(state.step, batch)
                optimizer.step()
                state.meter.add(terms, len(batch["image"]) * distributed.world())
            schedule.step()
            state.step += 1
            bar.update()
            if state.step % settings.print_freq == 0 or plan.ends_epoch(state.step):
                bar.set_postfix_str(state.summary())
            if plan.ends_epoch(state.step):
                state.save()
                state.close_epoch()
                objective.train()
        bar.close()


def _batches(state, make_loader):
    """Yield the batches from the state's step on. Between two of them: save when it is time, leave when asked to."""
    loader = iter(make_loader(state.step))
    while state.step < state.run.plan.steps:
        try:
            batch, failure = next(loader), None
        except Exception as error:
            failure = error
        failed, stop, due = distributed.agree(failure is not None, interrupt.asked(),
                                              state.minutes_unsaved() >= state.run.settings.save_minutes)
        if (failed or stop or due) and state.step > state.saved_step:
            state.save()
        if stop:
            interrupt.leave()
        if failed:
            raise failure or ValueError("another process could not read its images: see its message")
        yield batch


def _draw_from(seed, step):
    """Let dropout draw what is this process's of this step: the same after a restart."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1009 + distributed.rank()) % 2**63)


def _checked(terms, network):
    """Return what must be finite, {name: number}: the losses, and the gradient's norm. One wait for the GPU."""
    norm = get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    checked = {k: v.detach().float() for k, v in terms.items() if k.startswith("loss")} | {"gradient": norm}
    return dict(zip(checked, torch.stack(list(checked.values())).tolist()))


def to_device(module, device, inference=False):
    """Move a module to its device, its weights in the memory layout that is right there.

    Under several processes BatchNorm that is trained gets the statistics of the whole batch.
    """
    if distributed.world() > 1:
        distributed.share_statistics(module, device)
    module.to(device, memory_format=layout_for(module, device, inference))


def layout_for(module, device, inference):
    """Choose the layout of a module's weights: channels_last, which convolutions want, where it is safe and faster.

    It is on a GPU and in inference, unless a backbone in the module says otherwise (`channels_last = False`). It is not
    in training on a CPU: torch 2.13 and 2.15 corrupt memory in the backward pass of a narrow 1x1 convolution with
    stride 2.
    """
    wanted = all(getattr(part, "channels_last", True) for part in module.modules())
    return torch.channels_last if wanted and (device.type == "cuda" or inference) else torch.contiguous_format


def prepare(objective, device, settings):
    """Make an objective ready for training: on its device, and as --compile, --checkpoint_blocks, --accumulate say.

    Its children are networks. Each of them computes a batch in --accumulate parts; the objective sees the whole batch.
    """
    objective.to(device)
    for name, network in list(objective.named_children()):
        to_device(network, device)              # each in its own layout
        if settings.checkpoint_blocks:
            for part in network.modules():
                if hasattr(part, "recomputed"):
                    part.recomputed = recomputed
        if settings.compile:
            network.compile()
        if settings.accumulate > 1:
            setattr(objective, name, InParts(network, settings.accumulate))


def autocast(device, precision):
    """Return the context in which networks run. One context for many images keeps the weights it has rounded."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def loader_for(device, num_workers):
    """Say how inference reads images: a GPU is fed by processes; a CPU has none to spare."""
    return {"num_workers": num_workers, "pin_memory": True} if device.type == "cuda" else {}


def _to(value, device):
    if value.ndim == 4 and device.type == "cuda":
        return value.to(device, non_blocking=True, memory_format=torch.channels_last)
    return value.to(device, non_blocking=True)
