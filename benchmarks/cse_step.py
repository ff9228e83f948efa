"""What does a CSE training step cost, and what do the ordinary classifier's unused weight gradients add to it?

Prints  the median time of a step with and without them, their ratio (frozen layers alike), the loader's rate beside the
        step's, peak memory, and on a GPU the share of its peak
Run     python -m benchmarks.cse_step --width 1 --batch_size 2 --crop 192 --data_root DATASET
"""
import argparse
import resource
import statistics
import time
from functools import partial

import torch

from data.dataset import TrainSet
from data.layout import VOCLayout
from data.loader import Plan, train_loader
from data.transforms import augment
from methods.cse import CSE, sample_target
from networks import parameter_groups
from networks.cam import CAMNet
from tools import distributed, engine

FORWARD_GFLOP_384 = 586     # one forward pass of ResNet38 at 384x384, multiply and add counted apart
STEP_IN_FORWARDS = 4.8      # a CSE step: two forward passes, the CGNet's backward, the OC's to its input


def main():
    args = parse()
    device = distributed.start(args.device)
    cgnet, oc = (CAMNet(20, args.width) for _ in range(2))
    objective = CSE(cgnet, oc)
    engine.to_device(objective, device)
    optimizer, _ = engine.poly_sgd(parameter_groups(cgnet, 1e-5, 5e-4), 1e-5, 1000)
    objective.train()
    batch = make_batch(args, device)
    trained = [p for (_, p), (_, q) in zip(oc.named_parameters(), cgnet.named_parameters()) if q.requires_grad]

    times = {"without": [], "with": []}
    for i in range(args.steps + 1):
        for case in times:              # in turn, so that a drift of the machine's speed meets both
            for p in trained:
                p.requires_grad_(case == "with")
                p.grad = None
            seconds = step(objective, optimizer, batch, device, args.precision)
            if i:                       # the first is warm-up
                times[case].append(seconds)
    without, with_ = (statistics.median(times[case]) for case in times)
    print(f"{machine(device)}; width {args.width:g}, batch {args.batch_size}, crop {args.crop}, {args.precision}, "
          f"median of {args.steps}")
    print(f"step                       {without:.3f} s  {args.batch_size / without:.2f} images/s")
    print(f"with the OC's gradients    {with_:.3f} s")
    print(f"ratio                      {without / with_:.3f}")
    print_rate(FORWARD_GFLOP_384 * STEP_IN_FORWARDS * (args.crop / 384) ** 2, args, without)
    print(f"peak memory                {peak_memory(device):.2f} GiB")
    if args.data_root:
        rate = loader_rate(args)
        print(f"loader                     {rate:.1f} images/s with {args.num_workers} processes: "
              f"{rate * without / args.batch_size:.1f} times the step's rate")


def parse():
    parser = step_parser(__doc__)
    parser.add_argument("--peak_tflops", type=float, help="the chip's peak at this precision")
    parser.add_argument("--data_root", help="dataset for the loader's rate")
    parser.add_argument("--train_list", default="train")
    parser.add_argument("--num_workers", type=int, default=1)
    return parser.parse_args()


def step_parser(doc):
    """Make a parser of what each benchmark of a training step takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser


def make_batch(args, device):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(args.batch_size, 3, args.crop, args.crop, generator=generator)
    label = (torch.rand(args.batch_size, 20, generator=generator) < 0.1).float()
    label[:, 0] = 1
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return {"image": image.to(device, memory_format=layout), "label": label.to(device),
            "target": sample_target(label, generator).to(device)}


def step(objective, optimizer, batch, device, precision):
    """Time one update, in seconds."""
    synchronize(device)
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    with engine.autocast(device, precision):
        terms = objective(batch, 0)
    terms["loss"].backward()
    optimizer.step()
    synchronize(device)
    return time.perf_counter() - start


def print_rate(gflop, args, seconds):
    """Print the rate of a step, whose images cost so many GFLOP at width 1, and on demand its share of the peak."""
    tflops = gflop * args.width**2 * args.batch_size / seconds / 1e3
    print(f"rate                       {tflops:.2f} TFLOP/s")
    if args.peak_tflops:
        print(f"share of the peak          {tflops / args.peak_tflops:.1%}")


def loader_rate(args):
    """Read and change images as the recipe voc does, in images/s, the loader's start left out."""
    layout = VOCLayout(args.data_root)
    dataset = TrainSet(layout, layout.ids(args.train_list), 0, partial(augment, crop_size=384), sample_target)
    loader = iter(train_loader(dataset, Plan(len(dataset), [8] * 3, 0), num_workers=args.num_workers))
    next(loader)
    start, images = time.perf_counter(), 0
    for batch in loader:
        images += len(batch["image"])
        if time.perf_counter() - start > 10:
            break
    return images / (time.perf_counter() - start)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(device):
    """Return GiB: allocated on a GPU, else the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine(device):
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
