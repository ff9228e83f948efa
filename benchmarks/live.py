"""How many bytes of tensors live at once in a CSE step, and what are they?

Prints  the largest sum over the step, with weights, gradients and momentum, and what it consists of. On fake tensors,
        which have shapes and no values: any batch and crop in seconds, in no memory. A process needs more: itself, the
        workspace of the convolutions, gaps between blocks (benchmarks.memory measures all of it)
Run     python -m benchmarks.live --batch_size 8 --crop 384 [--checkpoint_blocks] [--accumulate 4]
"""
import argparse
import weakref
from collections import Counter

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.cse_step import make_batch
from methods.cse import CSE
from networks import parameter_groups
from networks.cam import CAMNet
from tools import engine
from tools.recompute import InParts, recomputed


def main():
    args = parse()
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        cgnet = CAMNet(20, args.width)
        objective = CSE(cgnet, CAMNet(20, args.width)).train()
        if args.checkpoint_blocks:                              # as tools.engine.prepare does
            cgnet.backbone.recomputed = objective.oc.backbone.recomputed = recomputed
        if args.accumulate > 1:
            objective.cgnet, objective.oc = (InParts(net, args.accumulate) for net in (cgnet, objective.oc))
        optimizer, _ = engine.poly_sgd(parameter_groups(cgnet, 1e-5, 5e-4), 1e-5, 1000)
        batch = make_batch(args, torch.device("cpu"))
        for name in ("the first step", "a later step"):         # from the first one's end on the momentum is there
            live.phase, live.peak = "forward", 0
            loss = objective(batch, 0)["loss"]
            live.phase = "backward"
            loss.backward()
            live.phase = "update"
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del loss
            print(f"{name}: at most {live.peak / 2**30:.2f} GiB live at once, in the {live.at}")
    for what, size in live.most.most_common(args.rows):
        print(f"{size / 2**20:9.1f} MiB  {what}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--crop", type=int, default=384)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--checkpoint_blocks", action="store_true")
    parser.add_argument("--rows", type=int, default=12, help="how many kinds of tensors are listed")
    return parser.parse_args()


class Live(TorchDispatchMode):
    """Count the storages that live: now, peak in bytes; at, most: where the peak is and what it consists of."""

    def __init__(self):
        super().__init__()
        self.phase, self.now, self.peak, self.at, self.most, self.sizes = "building", 0, 0, "", Counter(), {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage(), f"{self.phase}, {function.overloadpacket} {tuple(tensor.shape)}")
        if self.now > self.peak:
            self.peak, self.at, self.most = self.now, f"{self.phase}, {function.overloadpacket}", Counter()
            for size, what in self.sizes.values():
                self.most[what] += size
        return out

    def _see(self, storage, what):
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes(), "weights" if what.startswith("building") else what
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key):
        self.now -= self.sizes.pop(key)[0]


if __name__ == "__main__":
    main()
