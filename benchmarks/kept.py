"""How much does autograd keep for the backward pass of the CGNet, and of the ordinary classifier that it is shown to?

Prints  MiB of what each network keeps beside its weights, each storage once
Run     python -m benchmarks.kept --batch_size 2 --crop 128 [--backbone tf_efficientnet_lite0 --output_stride 16]
"""
import argparse

import torch

from networks import backbones
from networks.cam import CAMNet
from tools import distributed, engine


def main():
    args = parse()
    distributed.start("cpu")
    shape = {"width": args.width} if args.backbone == "resnet38d" else {}
    image = torch.randn(args.batch_size, 3, args.crop, args.crop, generator=torch.Generator().manual_seed(0))
    print(f"{args.backbone}, width {args.width:g}, batch {args.batch_size}, crop {args.crop}, {args.precision}")
    for name in ("CGNet", "OC"):
        network = CAMNet(20, backbone=backbones.build(args.backbone, args.output_stride, **shape)).train()
        if name == "OC":                # frozen, and the gradient goes through it to the erased image
            network.requires_grad_(False).eval()
        _, kept = run(network, image.clone().requires_grad_(name == "OC"), args.precision)
        print(f"{name:6} {kept / 2**20:.1f} MiB")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet38d")
    parser.add_argument("--output_stride", type=int, default=8)
    parser.add_argument("--width", type=float, default=1.0, help="of resnet38d")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    return parser.parse_args()


def run(network, image, precision="fp32", own=None):
    """Compute a batch (B, 3, H, W); returns the output, and the bytes that autograd keeps beside weights and input.

    own  the weights, where network is a function
    """
    own = (*network.parameters(), *network.buffers()) if own is None else own
    own = {tensor.untyped_storage().data_ptr() for tensor in (*own, image)}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), \
            engine.autocast(image.device, precision):
        output = network(image)
    return output, sum(kept.values())


if __name__ == "__main__":
    main()
