"""What does a training step of DeepLab cost, with LargeFOV or with torchvision's head?

Prints  the median time of a step, the share of the loss in it, peak memory, and of LargeFOV the rate, on a GPU as
        a share of its peak
Run     python -m benchmarks.seg_step --width 1 --batch_size 2 --crop 192
"""
import statistics
import time

import torch
import torch.nn.functional as F

from benchmarks.cse_step import machine, peak_memory, print_rate, step, step_parser, synchronize
from data.layout import IGNORE
from methods.segmentation import Segmentation
from networks import backbones, parameter_groups
from networks.deeplab import DeepLabV3, LargeFOV
from tools import distributed, engine

FORWARD_GFLOP_448 = 917     # one forward pass of LargeFOV at 448x448: ResNet38's 798, b8 118, b9 .6
STEP_IN_FORWARDS = 3        # forward, and a backward of twice its cost


def main():
    args = parse()
    device = distributed.start(args.device)
    if args.network == "largefov":
        network = LargeFOV(20, args.width)
    else:
        network = DeepLabV3(20, backbone=backbones.build(args.backbone))
    objective = Segmentation(network, IGNORE)
    engine.to_device(objective, device)
    optimizer, _ = engine.poly_sgd(parameter_groups(network, 1e-5, 5e-4, network.new_layers), 1e-5, 1000, momentum=0.9)
    objective.train()
    image = torch.randn(args.batch_size, 3, args.crop, args.crop)
    labels = torch.randint(21, (args.batch_size, args.crop, args.crop), dtype=torch.uint8)
    labels[:, : args.crop // 8] = 255
    batch = {"image": image.to(device), "label_map": labels.to(device)}
    if device.type == "cuda":
        batch["image"] = batch["image"].to(memory_format=torch.channels_last)

    times = {"step": [], "loss": []}
    for i in range(args.steps + 1):
        seconds = step(objective, optimizer, batch, device, args.precision), loss_alone(batch, device)
        if i:                           # the first is warm-up
            for case, value in zip(times, seconds):
                times[case].append(value)
    whole, loss = (statistics.median(times[case]) for case in times)
    print(f"{machine(device)}; {args.network}, width {args.width:g}, batch {args.batch_size}, crop {args.crop}, "
          f"{args.precision}, median of {args.steps}")
    print(f"step                       {whole:.3f} s  {args.batch_size / whole:.2f} images/s")
    print(f"upsampling and loss        {loss / whole:.1%} of it")
    if args.network == "largefov":
        print_rate(FORWARD_GFLOP_448 * STEP_IN_FORWARDS * (args.crop / 448) ** 2, args, whole)
    print(f"peak memory                {peak_memory(device):.2f} GiB")


def parse():
    parser = step_parser(__doc__)
    parser.add_argument("--network", default="largefov", choices=("largefov", "deeplabv3"))
    parser.add_argument("--backbone", default="resnet50", help="of deeplabv3")
    parser.add_argument("--peak_tflops", type=float, help="the chip's peak at this precision")
    return parser.parse_args()


def loss_alone(batch, device):
    """Time what follows the last convolution, forward and backward, in seconds."""
    size = batch["label_map"].shape[1:]
    cells = torch.randn(len(batch["image"]), 21, *(-(-side // 8) for side in size), device=device, requires_grad=True)
    objective = Segmentation(lambda image: F.interpolate(cells, size, mode="bilinear", align_corners=False), IGNORE)
    synchronize(device)
    start = time.perf_counter()
    objective(batch, 0)["loss"].backward()
    synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
