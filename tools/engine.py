"""The one training loop, and the authors' optimizer."""
import math
import time

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from tools import distributed
from tools.experiment import load_checkpoint, save_checkpoint


def poly_sgd(groups, lr, steps, power=0.9, momentum=5e-4):
    """SGD whose rate falls as (1 - step / steps)^power, at every step; after the last one it stays.

    groups  parameter groups with a rate of their own (networks.parameter_groups), or parameters
    The momentum's default is the authors': they pass the weight decay into its slot.
    Returns optimizer, schedule.
    """
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - min(step, steps - 1) / steps) ** power)
    return optimizer, schedule


def fit(objective, network, optimizer, schedule, make_loader, experiment, stage, settings, *, epochs, steps, device,
        weights, precision="fp32", seed=0, save_minutes=10, print_freq=100, on_step=None, on_epoch=None):
    """Train `network` through `objective` until epoch `epochs`; called again on the same folder, go on.

    objective    nn.Module: (batch, epoch) -> dict of 0-d tensors with the key "loss"; the others are logged
    make_loader  start step -> batches from there to the end;  steps  of an epoch
    settings     what must be equal for a run to go on (JSON);  weights  network -> what EEE.pth holds
    on_step      (step, batch) -> None;  on_epoch  (epoch) -> {name: value} for the log
    Writes ckpt/MODEL/EEE.pth, ckpt/MODEL/last.pth, log/STAGE.jsonl. stage is "train_MODEL".
    """
    run = _Run(network, optimizer, schedule, experiment, stage, settings, weights, steps, device, on_epoch)
    total = epochs * steps
    if run.resume():
        distributed.say(f"{stage}: goes on at epoch {run.step // steps}, step {run.step % steps} of {steps}"
                        if run.step < total else f"{stage}: whole, {epochs} epochs; nothing to do")
    if run.step >= total:
        return
    forward = objective
    if distributed.world() > 1:
        forward = DistributedDataParallel(objective, device_ids=[device.index] if device.type == "cuda" else None)
    objective.train()
    bar = tqdm(total=total, initial=run.step, desc=stage, unit="step", disable=not distributed.is_main(), mininterval=1,
               dynamic_ncols=True)
    for batch in make_loader(run.step):
        # Dropout draws from here: the same after a restart.
        torch.manual_seed(((seed * 1_000_003 + run.step) * 1009 + distributed.rank()) % 2**63)
        batch = {k: _to(v, device) for k, v in batch.items()}
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            terms = forward(batch, run.step // steps)
        terms["loss"].backward()
        if on_step:
            on_step(run.step, batch)
        optimizer.step()
        schedule.step()
        run.step += 1
        run.meter.add(terms, len(batch["image"]) * distributed.world())
        bar.update()
        epoch_ends = run.step % steps == 0
        due = epoch_ends or distributed.main_decides(run.minutes_unsaved() >= save_minutes, run.step)
        if due or run.step % print_freq == 0:
            bar.set_postfix_str(run.summary())
        if due:
            run.save()
        if epoch_ends:
            run.close_epoch()
            objective.train()
    bar.close()


class _Run:
    """A training at a moment: what last.pth holds, and what it takes to write it."""

    def __init__(self, network, optimizer, schedule, experiment, stage, settings, weights, steps, device, on_epoch):
        self.network, self.optimizer, self.schedule = network, optimizer, schedule
        self.experiment, self.stage, self.settings, self.weights = experiment, stage, settings, weights
        self.steps, self.device, self.on_epoch = steps, device, on_epoch
        self.folder = experiment / f"ckpt/{stage.removeprefix('train_')}"
        self.step, self.meter, self.earlier = 0, Meter(), 0.0
        self.started = self.saved = time.monotonic()

    def seconds(self):
        """Return the seconds that the open epoch has taken, earlier runs included."""
        return self.earlier + time.monotonic() - self.started

    def minutes_unsaved(self):
        return (time.monotonic() - self.saved) / 60

    def summary(self):
        """Describe the open epoch for the screen; raises ValueError if its losses are not finite."""
        means = self.meter.means()
        bad = [name for name, value in means.items() if name.startswith("loss") and value is not None
               and not math.isfinite(value)]
        if bad:
            raise ValueError(f"epoch {(self.step - 1) // self.steps}, step {self.step - 1}: {', '.join(bad)} is not "
                             f"finite. What {self.folder} holds is whole, from before; a lower --lr or --precision "
                             "fp32 may help")
        words = " ".join(f"{name} {value:.3f}" for name, value in means.items() if value is not None)
        return f"{words} {self.meter.images / self.seconds():.1f} images/s"

    def save(self):
        """Write last.pth."""
        state = {"settings": self.settings, "network": self.network.state_dict(),
                 "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(), "step": self.step,
                 "meter": self.meter.state(), "seconds": self.seconds()}
        if distributed.is_main():
            save_checkpoint(self.folder / "last.pth", state)
        distributed.barrier()
        self.saved = time.monotonic()

    def resume(self):
        """Load last.pth; returns whether there was one. An epoch cut off while it was closed is closed."""
        path = self.folder / "last.pth"
        if not path.exists():
            return False
        saved = load_checkpoint(path)
        if not isinstance(saved, dict) or "settings" not in saved:
            raise ValueError(f"{path} is not what training leaves to go on with: --overwrite starts again")
        old, new = saved["settings"], self.settings
        different = [f"{k}: then {old.get(k, 'absent')}, now {new.get(k, 'absent')}"
                     for k in sorted(set(old) | set(new)) if old.get(k) != new.get(k)]
        if different:
            raise ValueError(f"{path} was trained with other settings ({'; '.join(different)}). Go on with the old "
                             "ones, start anew with --overwrite, or take another --name")
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.step, self.meter, self.earlier = saved["step"], Meter(saved["meter"]), saved["seconds"]
        if self.step % self.steps == 0:
            self.close_epoch()
        return True

    def close_epoch(self):
        """Write EEE.pth of the epoch that has ended, measure and log it, unless that is done, and begin the next."""
        epoch, seconds = self.step // self.steps - 1, self.seconds()
        weights = self.folder / f"{epoch:03d}.pth"
        if distributed.is_main() and not weights.exists():
            save_checkpoint(weights, self.weights(self.network))
        logged = distributed.main_first(lambda: any(r["epoch"] == epoch for r in self.experiment.epochs(self.stage)))
        if not logged:
            row = {"epoch": epoch, **self.meter.means(), "lr": self.optimizer.param_groups[0]["lr"],
                   "seconds": round(seconds, 2), "images_per_second": round(self.meter.images / seconds, 2)}
            if self.device.type == "cuda":
                row["memory_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
            if self.on_epoch:
                row.update(self.on_epoch(epoch))
            if distributed.is_main():
                self.experiment.log_epoch(self.stage, row)
                text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                                 if not isinstance(v, (list, dict)))
                self.experiment.log(self.stage, text)
                tqdm.write(f"{self.stage}  {text}")
        self.meter, self.earlier, self.started = Meter(), 0.0, time.monotonic()


def place(module, device, compiled=False, inference=False):
    """Move a module to its device, its weights in channels_last, which convolutions want, where that is safe.

    It is on a GPU, and for inference. In training on a CPU it is not: torch 2.13 and 2.15 corrupt memory in the
    backward pass of a narrow 1x1 convolution with stride 2.

    Under several processes BatchNorm that is trained needs the statistics of the whole batch: torch has that for GPUs
    alone, so elsewhere it is a ValueError.
    """
    if distributed.world() > 1 and any(isinstance(m, torch.nn.BatchNorm2d) and m.training for m in module.modules()):
        if device.type != "cuda":
            raise ValueError("--norm train under several processes needs GPUs: run it as one process")
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)       # replaces the layers in place
    safe = device.type == "cuda" or inference
    module.to(device, memory_format=torch.channels_last if safe else torch.contiguous_format)
    if compiled:
        for network in module.children():
            network.compile()


def autocast(device, precision):
    """Return the context in which networks run. One context for many pictures keeps the weights it has rounded."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def loader_for(device, num_workers):
    """Say how inference reads pictures: a GPU is fed by processes; a CPU has none to spare."""
    return {"num_workers": num_workers, "pin_memory": True} if device.type == "cuda" else {}


class Meter:
    """Running means of an objective's terms. Terms that are nan (nothing to average) do not count."""

    def __init__(self, state=None):
        self.sums, self.counts, self.images = {}, {}, 0
        if state:
            self.images = state["images"]
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
        table = torch.stack([torch.stack([self.sums[n], self.counts[n]]) for n in names])       # (terms, 2)
        table = distributed.sum_over_processes(table).cpu()
        return {n: float(s / c) if c else None for n, (s, c) in zip(names, table)}

    def state(self):
        """Return what a checkpoint keeps: the processes' mean, so that every process may start from it."""
        sums, counts = ({k: float(distributed.global_mean(v)) for k, v in part.items()}
                        for part in (self.sums, self.counts))
        return {"images": self.images, "sums": sums, "counts": counts}


def _to(value, device):
    if value.ndim == 4 and device.type == "cuda":
        return value.to(device, non_blocking=True, memory_format=torch.channels_last)
    return value.to(device, non_blocking=True)
