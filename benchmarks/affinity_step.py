"""What do labels and loss add to a training step of AffinityNet?

Prints  the median time of a step, of its network alone, of the pairs' affinities, and of labels and loss with their
        share of the step, peak memory
Run     python -m benchmarks.affinity_step --width 1 --batch_size 2 --crop 192
"""
import statistics
import time

import torch

from benchmarks.cse_step import machine, peak_memory, step_parser, synchronize
from methods.affinity import AffinityLearning, affinity_labels, affinity_loss, pair_affinity
from networks import parameter_groups
from networks.affinity import AffinityNet
from tools import distributed, engine


def main():
    args = step_parser(__doc__).parse_args()
    device = distributed.start(args.device)
    network = AffinityNet(args.width)
    objective = AffinityLearning(network)
    engine.to_device(objective, device)
    optimizer, _ = engine.poly_sgd(parameter_groups(network, 1e-5, 5e-4, network.new_layers), 1e-5, 1000)
    objective.train()
    batch = make_batch(args, device)

    times = {"network": [], "affinities": [], "labels and loss": [], "update": []}
    for i in range(args.steps + 1):
        for part, seconds in step(network, optimizer, batch, device, args.precision).items():
            if i:                       # the first is warm-up
                times[part].append(seconds)
    medians = {part: statistics.median(found) for part, found in times.items()}
    whole = sum(medians.values())
    print(f"{machine(device)}; width {args.width:g}, batch {args.batch_size}, crop {args.crop}, {args.precision}, "
          f"median of {args.steps}")
    for part, seconds in medians.items():
        print(f"{part:<18} {seconds:8.4f} s  {seconds / whole:6.1%}")
    print(f"{'step':<18} {whole:8.4f} s  {args.batch_size / whole:.2f} images/s")
    print(f"peak memory        {peak_memory(device):8.2f} GiB")


def make_batch(args, device):
    """Draw images and labels of three rows, unknown in blobs as where the CRF maps disagree."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(args.batch_size, 3, args.crop, args.crop, generator=generator)
    cells = args.crop // 8
    coarse = torch.randint(4, (args.batch_size, -(-cells // 4), -(-cells // 4)), generator=generator)
    label = torch.tensor([0, 1, 2, 255])[coarse].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :cells, :cells]
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return {"image": image.to(device, memory_format=layout), "label_map": label.contiguous().to(device)}


def step(network, optimizer, batch, device, precision):
    """Do one update; returns the seconds of its parts, forward and backward: {part: seconds}.

    What AffinityLearning does, cut where features and affinities leave it: each cut is the next part's input.
    """
    seconds, clock = {}, time.perf_counter

    def timed(part, call):
        synchronize(device)
        start = clock()
        result = call()
        synchronize(device)
        seconds[part] = seconds.get(part, 0) + clock() - start
        return result

    optimizer.zero_grad(set_to_none=True)
    with engine.autocast(device, precision):
        features = timed("network", lambda: network(batch["image"]))
        seen = features.detach().requires_grad_()
        affinity = timed("affinities", lambda: pair_affinity(seen))
        pairs = affinity.detach().requires_grad_()
        terms = timed("labels and loss", lambda: affinity_loss(pairs, *affinity_labels(batch["label_map"])))
    timed("labels and loss", terms["loss"].backward)
    timed("affinities", lambda: affinity.backward(pairs.grad))
    timed("network", lambda: features.backward(seen.grad))
    timed("update", optimizer.step)
    return seconds


if __name__ == "__main__":
    main()
