"""The one training loop, and the authors' optimizer."""
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
    folder = experiment / f"ckpt/{stage.removeprefix('train_')}"
    total = epochs * steps
    step, meter, seconds = _resume(folder / "last.pth", settings, network, optimizer, schedule, device, steps)
    if step:
        distributed.say(f"{stage}: goes on at epoch {step // steps}, step {step % steps} of {steps}"
                        if step < total else f"{stage}: whole, {epochs} epochs; nothing to do")
    if step >= total:
        return
    forward = objective
    if distributed.world() > 1:
        forward = DistributedDataParallel(objective, broadcast_buffers=False,
                                          device_ids=[device.index] if device.type == "cuda" else None)
    objective.train()
    saved = started = time.monotonic()
    bar = tqdm(total=total, initial=step, desc=stage, unit="step", disable=not distributed.is_main(), mininterval=1,
               dynamic_ncols=True)
    for batch in make_loader(step):
        epoch = step // steps
        # Dropout draws from here: the same after a restart.
        torch.manual_seed((seed * 1_000_003 + step) * 1009 + distributed.rank())
        batch = {k: _to(v, device) for k, v in batch.items()}
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            terms = forward(batch, epoch)
        terms["loss"].backward()
        if on_step:
            on_step(step, batch)
        optimizer.step()
        schedule.step()
        step += 1
        meter.add(terms, len(batch["image"]) * distributed.world())
        bar.update()
        due = step % steps == 0 or distributed.main_decides(time.monotonic() - saved >= save_minutes * 60, device)
        if due or step % print_freq == 0:
            means = meter.means()
            _require_finite(means, epoch, step - 1, folder)
            now = time.monotonic() - started
            rate = meter.images / max(now + seconds, 1e-9)
            bar.set_postfix_str(" ".join(f"{k} {v:.3f}" for k, v in means.items() if v is not None)
                                + f" {rate:.1f} images/s")
        if step % steps == 0:
            seconds += time.monotonic() - started
            _close_epoch(epoch, meter, seconds, optimizer, experiment, stage, on_epoch, device)
            if distributed.is_main():
                save_checkpoint(folder / f"{epoch:03d}.pth", weights(network))
            objective.train()
            meter, seconds, started = Meter(), 0.0, time.monotonic()
        if due:
            elapsed = seconds + time.monotonic() - started if step % steps else 0.0
            _save(folder / "last.pth", settings, network, optimizer, schedule, step, meter, elapsed)
            saved = time.monotonic()
    bar.close()


def place(module, device, compiled=False):
    """Move a module to its device; channels_last, which convolutions on a GPU want, there only.

    Under several processes BatchNorm that is trained needs the statistics of the whole batch: torch has that for GPUs
    alone, so elsewhere it is a ValueError.
    """
    if distributed.world() > 1 and any(isinstance(m, torch.nn.BatchNorm2d) and m.training for m in module.modules()):
        if device.type != "cuda":
            raise ValueError("--norm train under several processes needs GPUs: run it as one process")
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)       # replaces the layers in place
    module.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.contiguous_format)
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


def _close_epoch(epoch, meter, seconds, optimizer, experiment, stage, on_epoch, device):
    row = {"epoch": epoch, **meter.means(), "lr": optimizer.param_groups[0]["lr"], "seconds": round(seconds, 2),
           "images_per_second": round(meter.images / seconds, 2)}
    if device.type == "cuda":
        row["memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    if on_epoch:
        row.update(on_epoch(epoch) or {})
    if distributed.is_main():
        experiment.log_epoch(stage, row)
        text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                         if not isinstance(v, (list, dict)))
        experiment.log(stage, text)
        tqdm.write(f"{stage}  {text}")


def _save(path, settings, network, optimizer, schedule, step, meter, seconds):
    state = {"settings": settings, "network": network.state_dict(), "optimizer": optimizer.state_dict(),
             "schedule": schedule.state_dict(), "step": step, "meter": meter.state(), "seconds": seconds}
    if distributed.is_main():
        save_checkpoint(path, state)
    distributed.barrier()


def _resume(path, settings, network, optimizer, schedule, device, steps):
    """Load last.pth, if there is one: returns the step to go on at, the open epoch's meter and its seconds so far."""
    if not path.exists():
        return 0, Meter(), 0.0
    saved = load_checkpoint(path)
    if not isinstance(saved, dict) or "settings" not in saved:
        raise ValueError(f"{path} is not what training leaves to go on with: delete it, training then starts again")
    different = [f"{k}: then {saved['settings'].get(k, 'absent')}, now {settings.get(k, 'absent')}"
                 for k in sorted(set(settings) | set(saved["settings"])) if saved["settings"].get(k) != settings.get(k)]
    if different:
        raise ValueError(f"{path} was trained with other settings ({'; '.join(different)}). Go on with the old ones, "
                         "start anew with --overwrite, or take another --name")
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    return saved["step"], Meter(saved["meter"]) if saved["step"] % steps else Meter(), saved["seconds"]


def _require_finite(means, epoch, step, folder):
    bad = [name for name, value in means.items() if name.startswith("loss") and value is not None
           and not abs(value) < float("inf")]
    if bad:
        raise ValueError(f"epoch {epoch}, step {step}: {', '.join(bad)} is not finite. The weights before this epoch "
                         f"are whole in {folder}; a lower --lr or --precision fp32 may help")
