"""How much faster is CAM inference than eight separate fp32 passes, and what does bf16 change?

Prints  images/s of both, the ratio (medians of one run), the largest change of the normalised CAMs, peak memory;
        with --name, the change of mIoU that bf16 makes with a trained network on its dataset
Run     python -m benchmarks.cam_inference --width 1 --precision bf16 [--name demo --data_root data/critters --list val]
"""
import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.cse_step import machine, peak_memory, synchronize
from data.layout import VOCLayout
from data.loader import view_loader
from data.transforms import views
from infer import trained_network
from methods.cam import image_cams, multi_scale_cam, to_device
from networks.cam import CAMNet
from tools import distributed, engine
from tools.experiment import Experiment
from tools.metrics import ThresholdHistogram

SCALES = (0.5, 1.0, 1.5, 2.0)


def main():
    args = parse()
    device = distributed.start(args.device)
    torch.manual_seed(0)
    plain, network = (CAMNet(20, args.width).eval() for _ in range(2))
    plain.load_state_dict(network.state_dict())
    engine.to_device(plain, device)
    engine.to_device(network, device, inference=True)
    image = np.random.default_rng(0).integers(0, 256, (args.height, args.width_px, 3), np.uint8)
    pyramid, size = views(image, SCALES), (args.height, args.width_px)
    label = torch.zeros(20)
    label[[2, 11]] = 1

    times, maps = {"eight fp32 passes": [], f"ours, {args.precision}": []}, {}
    with torch.no_grad():
        for i in range(args.runs + 1):
            for case in times:
                synchronize(device)
                start = time.perf_counter()
                if case.startswith("ours"):
                    with engine.autocast(device, args.precision):
                        maps[case] = multi_scale_cam(network, pyramid, size, label)[1]
                else:
                    maps[case] = eight_passes(plain, pyramid, size, label, device)
                synchronize(device)
                if i:
                    times[case].append(time.perf_counter() - start)
    slow, ours = (statistics.median(t) for t in times.values())
    a, b = maps.values()
    print(f"{machine(device)}; width {args.width:g}, image {args.width_px}x{args.height}, medians of {args.runs}")
    for case, t in times.items():
        print(f"{case:<24} {statistics.median(t):8.3f} s  {1 / statistics.median(t):.3f} images/s")
    print(f"ratio                    {slow / ours:8.2f}")
    print(f"largest change of a normalised CAM  {(a - b).abs().max():.4f} (network of random weights)")
    print(f"peak memory              {peak_memory(device):8.2f} GiB")
    if args.name:
        change_of_miou(args, device)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--width_px", type=int, default=500)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--name", help="experiment whose CGNet is measured in fp32 and in bf16")
    parser.add_argument("--model", default="model_cse")
    parser.add_argument("--experiment_root", default="experiment")
    parser.add_argument("--data_root", default="data/critters")
    parser.add_argument("--list", default="val")
    return parser.parse_args()


def eight_passes(network, pyramid, size, label, device):
    """Do what the paper describes, one view at a time."""
    present = label.nonzero()[:, 0].to(device)
    total = torch.zeros(len(present), *size, device=device)
    for pair in pyramid:
        for flipped in (0, 1):
            cam = network(to_device(pair[flipped, None], device))[0][:, present]
            cam = F.interpolate(cam, size, mode="bilinear", align_corners=False)[0].relu()
            total += cam.flip(-1) if flipped else cam
    return total / (total.amax((1, 2), keepdim=True) + 1e-5)


def change_of_miou(args, device):
    experiment = Experiment(args.experiment_root, args.name)
    weights, layout = experiment.weights(args.model), VOCLayout(args.data_root)
    network = trained_network(experiment, layout, weights).eval()
    engine.to_device(network, device, inference=True)
    ids, thresholds = layout.ids(args.list), [t / 100 for t in range(101)]
    best, kept, change = {}, {}, 0.0
    for precision in ("fp32", "bf16"):
        histogram = ThresholdHistogram(len(layout.classes), thresholds)
        with engine.autocast(device, precision):
            for image_id, classes, scores in image_cams(network, view_loader(layout, ids, SCALES)):
                histogram.add(classes, scores, layout.ground_truth(image_id))
                change = max(change, float(np.abs(kept.setdefault(image_id, scores) - scores).max(initial=0)))
        best[precision] = max(histogram.confusion(i).miou() for i in range(len(thresholds)))
    print(f"{Path(weights)} on {len(ids)} images of {args.list}: best mIoU {best['fp32']:.3f} in fp32, "
          f"{best['bf16']:.3f} in bf16, {best['bf16'] - best['fp32']:+.3f}; largest change of a CAM {change:.4f}")


if __name__ == "__main__":
    main()
