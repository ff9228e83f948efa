"""Does a classifier trained on the critters look at heads, and what does it make of a body alone?

Prints  the share of its activation (above half the maximum, inside the class's own pixels) that lies on heads, beside
        their share of the area; the probability of the class as it is, and with its heads painted in the body's colour
Run     python -m benchmarks.heads --name demo [--model model_oc]
"""
import argparse

import numpy as np
import torch
from PIL import Image

from data.images import read_image
from data.layout import VOCLayout
from data.transforms import views
from infer import trained_network
from methods.cam import multi_scale_cam
from tools.experiment import Experiment


def main():
    args = parse()
    layout = VOCLayout(args.data_root)
    experiment = Experiment(args.experiment_root, args.name)
    network = trained_network(experiment, layout, experiment.weights(args.model)).eval()
    on_heads, area, whole, headless = [], [], [], []
    for image_id in layout.ids(args.list):
        image, truth = read_image(layout.image_path(image_id)), layout.ground_truth(image_id)
        heads = np.asarray(Image.open(layout.root / f"Heads/{image_id}.png")) > 0
        label = torch.from_numpy(layout.label(image_id))
        classes, scores = multi_scale_cam(network, views(image, (1.0,)), truth.shape, label)
        before = probabilities(network, image)
        for c, score in zip(classes.tolist(), scores.numpy()):
            own = truth == c
            head = own & heads
            if not head.any() or head.all():
                continue
            active = own & (score > 0.5)
            if active.any():
                on_heads.append(head[active].mean())
                area.append(head[own].mean())
            painted = image.copy()
            painted[head] = image[own & ~heads].mean(0) if (own & ~heads).any() else image.mean((0, 1))
            whole.append(before[c - 1])
            headless.append(probabilities(network, painted)[c - 1])
    print(f"{args.name}/{args.model} on {len(whole)} classes in the images of {args.list}")
    print(f"share of the activation on heads        {np.mean(on_heads):6.1%}   (of the area {np.mean(area):.1%})")
    for name, p in (("as it is", whole), ("heads painted over", headless)):
        print(f"probability, {name:<26} {np.mean(p):6.2f}   (median {np.median(p):.2f}; above .5: "
              f"{np.mean(np.array(p) > 0.5):.0%})")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="demo")
    parser.add_argument("--model", default="model_oc")
    parser.add_argument("--list", default="train")
    parser.add_argument("--data_root", default="data/critters")
    parser.add_argument("--experiment_root", default="experiment")
    return parser.parse_args()


@torch.no_grad()
def probabilities(network, image):
    """Return the probability of each class, (C,), the mean over the image and its mirror image."""
    return network(views(image, (1.0,))[0])[1].sigmoid().mean(0).numpy()


if __name__ == "__main__":
    main()
