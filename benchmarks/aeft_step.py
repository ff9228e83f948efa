"""What does AEFT's triplet cost beside the two passes through its network?

Prints  the median time of a step, that of two forward and backward passes of the network on these images, their ratio
Run     python -m benchmarks.aeft_step --width .25 --batch_size 8 --crop 128
"""
import statistics

import torch
from torch import nn

from benchmarks.cse_step import machine, make_batch, peak_memory, step, step_parser
from methods.aeft import AEFT, draw
from networks import parameter_groups
from networks.gpp import GPPNet
from tools import distributed, engine

MOST = 6        # classes in a photo of VOC


class TwoPasses(nn.Module):
    """The passes alone: both outputs of each have a gradient."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, batch, epoch):
        passes = [self.net(batch["image"]) for _ in range(2)]
        return {"loss": sum(logits.mean() + gpp.mean() for _, logits, gpp in passes)}


def main():
    args = step_parser(__doc__).parse_args()
    device = distributed.start(args.device)
    net = GPPNet(20, args.width)
    cases = {"triplet": AEFT(net, first_epoch=0).train(), "passes": TwoPasses(net).train()}
    cases["triplet"].most = MOST
    engine.to_device(cases["triplet"], device)
    optimizer, _ = engine.poly_sgd(parameter_groups(net, 1e-5, 5e-4), 1e-5, 1000)
    batch = make_batch(args, device)
    batch["label"] = torch.eye(20, device=device)[torch.arange(args.batch_size) % 20]      # everyone has a negative
    batch["target"] = draw(batch["label"]).to(device)

    times = {name: [] for name in cases}
    for i in range(args.steps + 1):
        for name, objective in cases.items():       # in turn, so that a drift of the machine's speed meets both
            seconds = step(objective, optimizer, batch, device, args.precision)
            if i:                                   # the first is warm-up
                times[name].append(seconds)
    triplet, passes = (statistics.median(times[name]) for name in ("triplet", "passes"))
    print(f"{machine(device)}; width {args.width:g}, batch {args.batch_size}, crop {args.crop}, {args.precision}, "
          f"median of {args.steps}")
    print(f"step                       {triplet:.3f} s  {args.batch_size / triplet:.2f} images/s")
    print(f"two passes                 {passes:.3f} s")
    print(f"ratio                      {triplet / passes:.3f}")
    print(f"peak memory                {peak_memory(device):.2f} GiB")


if __name__ == "__main__":
    main()
