"""The number of processes: no other file knows it. Without torchrun there is one, and every function is trivial."""
import atexit
import os
import sys

import torch
import torch.distributed as dist

from tools import memory

_joined = False         # whether this process is, or was, one of several


def start(device="auto"):
    """Join the other processes, if torchrun started this one, and return the torch device to compute on.

    Memory that is freed stays with this process from here on: see tools.memory.
    Raises ValueError if a GPU is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no GPU that torch can use; --device cpu or auto")
    memory.keep_freed_memory()
    use_gpu = device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if use_gpu:
        if local_rank >= torch.cuda.device_count():
            raise ValueError(f"{local_rank + 1} processes or more on {torch.cuda.device_count()} GPUs: torchrun "
                             "--nproc_per_node takes at most one a GPU; or --device cpu")
        torch.cuda.set_device(local_rank)
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo")
        global _joined
        _joined = True
    return torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")


def stop():
    if dist.is_initialized():
        dist.destroy_process_group()


def end(code):
    """End this process with sys.exit's argument as its exit code, if it is one of several.

    A gloo thread that frees a tensor during interpreter shutdown aborts the process, and torchrun then reports the run
    as failed: so leave by os._exit.
    """
    if not _joined:
        return
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    """Tell whether this process writes the shared files: logs, checkpoints, tables."""
    return rank() == 0


def is_first():
    """Tell, also before start, whether this process is alone or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def barrier():
    if dist.is_initialized():
        dist.barrier()


def say(text):
    """Print once, whatever the number of processes."""
    if is_main():
        print(text, flush=True)


def on_main(action):
    """Run action in the main process alone; the others wait and get its result, or its error as a ValueError."""
    if not dist.is_initialized():
        return action()
    box = [None, None]
    error = None
    if is_main():
        try:
            box[0] = action()
        except Exception as failure:
            error, box[1] = failure, str(failure) or type(failure).__name__
    dist.broadcast_object_list(box)
    if error:
        raise error
    if box[1] is not None:
        raise ValueError(box[1])
    return box[0]


def agree(*flags):
    """Return for each flag whether it is set in any of the processes."""
    if not dist.is_initialized():
        return flags
    seen = torch.tensor(flags, dtype=torch.int64)
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in seen)


def gather(value):
    """Return the list of all processes' values (anything that can be pickled), in the order of the ranks."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def share(items, part=0, parts=1):
    """Return this process's items of a list, or of the part `part` of `parts` of it."""
    return items[part + parts * rank() :: parts * world()]


def sum_over_processes(tensor):
    """Return the sum of a tensor over all processes."""
    if dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def sum_array(array, device):
    """Return the sum of a numpy array over all processes; device is where their torch computes."""
    return sum_over_processes(torch.from_numpy(array).to(device)).cpu().numpy()


def global_mean(tensor):
    """Return the mean of a tensor over all processes (no gradient)."""
    return sum_over_processes(tensor.detach()) / world()


def gather_rows(rows):
    """Return the rows (b, ...) of all processes' parts of a batch, in the order of the batch: (b * world, ...).

    Every process is to compute the same loss from them: backward, a process gets its rows' gradients from all.
    """
    return _GatherRows.apply(rows) if dist.is_initialized() else rows


def global_max(value):
    """Return the maximum of a 0-d tensor over all processes.

    Backward, the sum of all processes' gradients goes to the process that holds the maximum (the first of several).
    """
    return _GlobalMax.apply(value) if dist.is_initialized() else value


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows):
        parts = [torch.empty_like(rows) for _ in range(world())]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)              # a process has every world-th row of the batch

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank()::world()]


class _GlobalMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        values = [torch.empty_like(value) for _ in range(world())]
        dist.all_gather(values, value)
        values = torch.stack(values)
        ctx.holds_it = values.argmax() == rank()        # a tensor: its value would have to wait for the GPU
        return values.max()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient * ctx.holds_it


def share_statistics(module, device):
    """Let each BatchNorm2d of a module that is trained see all processes' batch; those that are frozen stay."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d) and any(p.requires_grad for p in layer.parameters(recurse=False)):
            layer.__class__ = SyncBatchNorm if device.type == "cuda" else BatchNorm2d   # the weights keep their names
            layer.process_group = None


class SyncBatchNorm(torch.nn.SyncBatchNorm, torch.nn.BatchNorm2d):
    """torch's own, for GPUs: but still a BatchNorm2d, and with the activation that timm's layers have."""

    def forward(self, x):
        return _activated(self, super().forward(x))


class BatchNorm2d(torch.nn.BatchNorm2d):
    """BatchNorm on the statistics of all processes' batch, for CPUs: torch's SyncBatchNorm is for GPUs alone."""

    def forward(self, x):
        if not self.training:
            return _activated(self, super().forward(x))
        mean = _GlobalMean.apply(x.mean((0, 2, 3)))                         # (C,)
        centred = x - mean[:, None, None]                                   # (B, C, h, w)
        var = _GlobalMean.apply(centred.square().mean((0, 2, 3)))           # (C,)
        count = x.numel() // x.shape[1] * world()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return _activated(self, centred * scale[:, None, None] + self.bias[:, None, None])


def _activated(layer, x):
    """Apply what timm's BatchNormAct2d does after it has normalised."""
    for name in ("drop", "act"):
        x = getattr(layer, name)(x) if hasattr(layer, name) else x
    return x


class _GlobalMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return sum_over_processes(value) / world()

    @staticmethod
    def backward(ctx, gradient):
        return sum_over_processes(gradient) / world()
