"""The one training loop, and the authors' optimizer."""
import math
import time
from functools import partial

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from tools import distributed, interrupt
from tools.files import load_checkpoint, save_checkpoint
from tools.provenance import digest
from tools.recompute import InParts, recomputed


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

    load  path -> networks.pretrained.load_weights's {"loaded", "new", "unused"}
    """
    if path is None:
        return "random"
    names = load(path)
    distributed.say(f"--{flag}: {len(names['loaded'])} tensors from {path}; new: {', '.join(names['new']) or 'none'}; "
                    f"{len(names['unused'])} of the file are not used")
    return digest(path)


def run_training(objective, network, groups, train_loader, experiment, model, settings, record, *, steps, device,
                 weights, **hooks):
    """Open the training of a stage, or go on with it, and fit: what every training script ends with.

    train_loader  data.loader.train_loader with its dataset: what else it takes is read from settings
    settings  the stage's: lr, power, momentum, max_epochs, overwrite and those that fit takes by name are read here
    record    what must be equal for a run to go on (JSON);  hooks  ids, on_step, on_epoch of fit
    """
    part = distributed.world() * settings.accumulate
    if settings.batch_size % part:
        raise ValueError(f"--batch_size {settings.batch_size} cannot be cut into {settings.accumulate} equal parts in "
                         f"each of {distributed.world()} processes: take a multiple of {part}, or another --accumulate")
    optimizer, schedule = poly_sgd(groups, settings.lr, settings.max_epochs * steps, settings.power, settings.momentum)
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    distributed.on_main(lambda: experiment.open_training(model, vars(settings) | record, size, settings.overwrite,
                                                            record))
    make_loader = partial(train_loader, settings.batch_size, settings.max_epochs, settings.seed,
                          rank=distributed.rank(), world=distributed.world(), num_workers=settings.num_workers,
                          pin_memory=device.type == "cuda")
    fit(objective, network, optimizer, schedule, make_loader, experiment, f"train_{model}", record,
        epochs=settings.max_epochs, steps=steps, device=device, weights=weights, precision=settings.precision,
        seed=settings.seed, skip_nonfinite=settings.skip_nonfinite,
        save_minutes=settings.save_minutes, print_freq=settings.print_freq, **hooks)
    experiment.release()
    distributed.stop()


def fit(objective, network, optimizer, schedule, make_loader, experiment, stage, settings, *, epochs, steps, device,
        weights, precision="fp32", seed=0, skip_nonfinite=0, save_minutes=10, print_freq=100, ids=None,
        on_step=None, on_epoch=None):
    """Train `network` through `objective` until epoch `epochs`; called again on the same folder, go on.

    objective    nn.Module: (batch, epoch) -> dict of 0-d tensors with the key "loss"; the others are logged
    make_loader  start step -> batches from there to the end;  steps  of an epoch
    settings     what must be equal for a run to go on (JSON);  weights  network -> what EEE.pth holds
    skip_nonfinite   batches that may be left out; the next one is a ValueError with the images that ids, the dataset's
                 IDs, gives for batch["index"]
    on_step      (step, batch) -> None;  on_epoch  (epoch) -> {name: value} for the log
    Asked to stop (tools.interrupt) it saves after the step and leaves; so it does when a batch cannot be read.
    Writes ckpt/MODEL/EEE.pth, ckpt/MODEL/last.pth, log/STAGE.jsonl. stage is "train_MODEL".
    """
    run = _Run(network, optimizer, schedule, experiment, stage, settings, weights, steps, device, on_epoch)
    total = epochs * steps
    with interrupt.remembered():
        if run.resume():
            distributed.say(f"{stage}: goes on at epoch {run.step // steps}, step {run.step % steps} of {steps}"
                            if run.step < total else f"{stage}: whole, {epochs} epochs; nothing to do")
        if run.step >= total:
            return
        forward = objective
        if distributed.world() > 1:
            forward = DistributedDataParallel(objective, device_ids=[device.index] if device.type == "cuda" else None)
        objective.train()
        statistics = [b for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.training
                      for b in m.buffers()]
        bar = tqdm(total=total, initial=run.step, desc=stage, unit="step", disable=not distributed.is_main(),
                   mininterval=1, dynamic_ncols=True)
        for batch in _batches(run, make_loader, total, save_minutes):
            batch = {k: _to(v, device) for k, v in batch.items()}
            optimizer.zero_grad(set_to_none=True)
            before = [b.clone() for b in statistics]
            _draw_from(seed, run.step)
            with autocast(device, precision):
                terms = forward(batch, run.step // steps)
            terms["loss"].backward()
            checked = _checked(terms, network)
            bad = not all(math.isfinite(value) for value in checked.values())
            if distributed.agree(bad)[0]:
                for buffer, value in zip(statistics, before):
                    buffer.copy_(value)
                images = [ids[i] for i in batch["index"].tolist()] if ids else []
                run.skip_or_stop((checked, images) if bad else None, skip_nonfinite)
            else:
                if on_step:
                    on_step(run.step, batch)
                optimizer.step()
                run.meter.add(terms, len(batch["image"]) * distributed.world())
            schedule.step()
            run.step += 1
            bar.update()
            if run.step % print_freq == 0 or run.step % steps == 0:
                bar.set_postfix_str(run.summary())
            if run.step % steps == 0:
                run.save()
                run.close_epoch()
                objective.train()
        bar.close()


def _batches(run, make_loader, total, save_minutes):
    """Yield the batches from the run's step on. Between two of them: save when it is time, leave when asked to."""
    loader = iter(make_loader(run.step))
    while run.step < total:
        try:
            batch, failure = next(loader), None
        except Exception as error:
            failure = error
        failed, stop, due = distributed.agree(failure is not None, interrupt.asked(),
                                              run.minutes_unsaved() >= save_minutes)
        if (failed or stop or due) and run.step > run.saved_step:
            run.save()
        if stop:
            interrupt.leave()
        if failed:
            raise failure or ValueError("another process could not read its pictures: see its message")
        yield batch


def _draw_from(seed, step):
    """Let dropout draw what is this process's of this step: the same after a restart."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1009 + distributed.rank()) % 2**63)


def _checked(terms, network):
    """Return what must be finite, {name: number}: the losses, and the gradient's norm. One wait for the GPU."""
    norm = get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
    checked = {k: v.detach().float() for k, v in terms.items() if k.startswith("loss")} | {"gradient": norm}
    return dict(zip(checked, torch.stack(list(checked.values())).tolist()))


class _Run:
    """A training at a moment: what last.pth holds, and what it takes to write it."""

    def __init__(self, network, optimizer, schedule, experiment, stage, settings, weights, steps, device, on_epoch):
        self.network, self.optimizer, self.schedule = network, optimizer, schedule
        self.experiment, self.stage, self.settings, self.weights = experiment, stage, settings, weights
        self.steps, self.device, self.on_epoch = steps, device, on_epoch
        self.folder = experiment / f"ckpt/{stage.removeprefix('train_')}"
        self.step, self.meter, self.skipped, self.earlier = 0, Meter(), 0, 0.0
        self.started = self.saved = time.monotonic()
        self.saved_step = 0

    def seconds(self):
        """Return the seconds that the open epoch has taken, earlier runs included."""
        return self.earlier + time.monotonic() - self.started

    def minutes_unsaved(self):
        return (time.monotonic() - self.saved) / 60

    def summary(self):
        """Describe the open epoch for the screen."""
        words = " ".join(f"{name} {value:.3f}" for name, value in self.meter.means().items() if value is not None)
        return f"{words} {self.meter.images / self.seconds():.1f} images/s"

    def skip_or_stop(self, mine, allowed):
        """Leave out a step whose loss or gradient is not finite, or raise ValueError if no more may be.

        mine  (values {name: number}, images) of this process's part of the batch, None if nothing is wrong with it
        """
        self.meter.skipped += 1
        self.skipped += 1
        spoiled = [found for found in distributed.gather(mine) if found]
        words = ", ".join(f"{name} {value:.4g}" for name, value in spoiled[0][0].items())
        names = ", ".join(image for _, images in spoiled for image in images)
        text = (f"epoch {self.step // self.steps}, step {self.step % self.steps}: the loss or its gradient is not "
                f"finite ({words}) on the images {names or 'of this batch'}")
        if self.skipped <= allowed:
            if distributed.is_main():
                self.experiment.log(self.stage, text)
                tqdm.write(f"{text}: left out, {self.skipped} of at most {allowed}")
            return
        self.meter.skipped -= 1
        self.skipped -= 1
        self.save()
        raise ValueError(f"{text}. The last good checkpoint is {self.folder / 'last.pth'}, from before this step: the "
                         "same command goes on there. --skip_nonfinite N leaves out up to N such batches; look at the "
                         "images; a lower --lr, or --precision fp32, may help")

    def save(self):
        """Write last.pth."""
        state = {"settings": self.settings, "network": self.network.state_dict(),
                 "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(), "step": self.step,
                 "meter": self.meter.state(), "skipped": self.skipped, "seconds": self.seconds()}
        distributed.on_main(lambda: save_checkpoint(self.folder / "last.pth", state))
        self.saved, self.saved_step = time.monotonic(), self.step

    def resume(self):
        """Load last.pth; returns whether there was one. An epoch cut off while it was closed is closed."""
        path = self.folder / "last.pth"
        if not path.exists():
            return False
        saved = load_checkpoint(path)
        if not isinstance(saved, dict) or not isinstance(saved.get("settings"), dict):
            raise ValueError(f"{path} is not what training leaves to go on with: --overwrite starts again")
        old, new = saved["settings"], self.settings
        different = [f"{k}: then {old.get(k, 'absent')}, now {new.get(k, 'absent')}"
                     for k in sorted(set(old) | set(new)) if old.get(k) != new.get(k)]
        if different:
            raise ValueError(f"{path} was trained with other settings ({'; '.join(different)}). Go on with the old "
                             "ones, start anew with --overwrite, or take another --name")
        try:
            self.network.load_state_dict(saved["network"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.schedule.load_state_dict(saved["schedule"])
            self.step, self.meter, self.skipped = int(saved["step"]), Meter(saved["meter"]), int(saved["skipped"])
            self.earlier = float(saved["seconds"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{path} lacks what it takes to go on, or holds it in another form "
                             f"({type(error).__name__}): --overwrite with other settings, or deleting "
                             f"{self.folder}, starts again") from None
        self.saved_step = self.step
        if self.step and self.step % self.steps == 0:
            self.close_epoch()
        return True

    def close_epoch(self):
        """Write EEE.pth of the epoch that has ended, measure and log it, unless that is done, and begin the next."""
        epoch, seconds = self.step // self.steps - 1, self.seconds()
        weights = self.folder / f"{epoch:03d}.pth"
        if not distributed.on_main(weights.exists):
            distributed.on_main(lambda: save_checkpoint(weights, self.weights(self.network)))
        logged = distributed.on_main(lambda: any(r["epoch"] == epoch for r in self.experiment.epochs(self.stage)))
        if not logged:
            row = {"epoch": epoch, **self.meter.means(), "lr": self.optimizer.param_groups[0]["lr"],
                   "seconds": round(seconds, 2), "images_per_second": round(self.meter.images / seconds, 2)}
            if self.device.type == "cuda":
                row["memory_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
            if self.meter.skipped:
                row["skipped"] = self.meter.skipped
            if self.on_epoch:
                row.update(self.on_epoch(epoch))
            if distributed.is_main():
                self.experiment.log_epoch(self.stage, row)
                text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                                 if not isinstance(v, (list, dict)))
                self.experiment.log(self.stage, text)
                tqdm.write(f"{self.stage}  {text}")
        self.meter, self.earlier, self.started = Meter(), 0.0, time.monotonic()


def to_device(module, device, inference=False):
    """Move a module to its device, its weights in channels_last, which convolutions want, where that is safe.

    It is on a GPU, and for inference unless a backbone says that it is slower so. In training on a CPU it is not: torch
    2.13 and 2.15 corrupt memory in the backward pass of a narrow 1x1 convolution with stride 2.

    Under several processes BatchNorm that is trained gets the statistics of the whole batch.
    """
    if distributed.world() > 1 and device.type == "cuda":
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)       # replaces the layers in place
    elif distributed.world() > 1:
        for layer in module.modules():
            if type(layer) is torch.nn.BatchNorm2d:
                layer.__class__ = distributed.BatchNorm2d           # the same weights under the same names
    safe = device.type == "cuda" or inference and all(getattr(m, "channels_last", True) for m in module.modules())
    module.to(device, memory_format=torch.channels_last if safe else torch.contiguous_format)


def prepare(objective, device, settings):
    """Make an objective ready for training: on its device, and as --compile, --checkpoint_blocks, --accumulate say.

    Its children are networks. Each of them computes a batch in --accumulate parts; the objective sees the whole batch.
    """
    to_device(objective, device)
    for name, network in list(objective.named_children()):
        if settings.checkpoint_blocks:
            for part in network.modules():
                if hasattr(part, "recomputed"):
                    part.recomputed = recomputed
        if settings.compile:
            network.compile()
        if settings.accumulate > 1:
            setattr(objective, name, InParts(network, settings.accumulate))


def autocast(device, precision):
    """Return the context in which networks run. One context for many pictures keeps the weights it has rounded."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def loader_for(device, num_workers):
    """Say how inference reads pictures: a GPU is fed by processes; a CPU has none to spare."""
    return {"num_workers": num_workers, "pin_memory": True} if device.type == "cuda" else {}


class Meter:
    """Running means of an objective's terms. Terms that are nan (nothing to average) do not count; skipped: steps."""

    def __init__(self, state=None):
        self.sums, self.counts, self.images, self.skipped = {}, {}, 0, 0
        if state:
            self.images, self.skipped = state["images"], state["skipped"]
            self.sums = {k: torch.tensor(v, dtype=torch.float64) for k, v in state["sums"].items()}
            self.counts = {k: torch.tensor(v, dtype=torch.float64) for k, v in state["counts"].items()}

    def add(self, terms, images):
        self.images += images
        for name, value in terms.items():
            value = value.detach().double()
            known = torch.ones_like(value) if name == "loss" else (~value.isnan()).double()
            device = value.device
            self.sums[name] = self.sums.get(name, torch.zeros(())).to(device) + (
                value if name == "loss" else value.nan_to_num())
            self.counts[name] = self.counts.get(name, torch.zeros(())).to(device) + known

    def means(self):
        """Return {name: mean over steps and processes}, None where nothing counted."""
        names = list(self.sums)
        if not names:               # every step so far was left out
            return {}
        table = torch.stack([torch.stack([self.sums[n], self.counts[n]]) for n in names])       # (terms, 2)
        table = distributed.sum_over_processes(table).cpu()
        return {n: float(s / c) if c else None for n, (s, c) in zip(names, table)}

    def state(self):
        """Return what a checkpoint keeps: the processes' mean, so that every process may start from it."""
        sums, counts = ({k: float(distributed.global_mean(v)) for k, v in part.items()}
                        for part in (self.sums, self.counts))
        return {"images": self.images, "skipped": self.skipped, "sums": sums, "counts": counts}


def _to(value, device):
    if value.ndim == 4 and device.type == "cuda":
        return value.to(device, non_blocking=True, memory_format=torch.channels_last)
    return value.to(device, non_blocking=True)
