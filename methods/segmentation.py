"""DeepLab learns from the pseudo labels, and tells the class of every pixel.

    image --network--> logits, one row a class, the background first: cross entropy with the label of each pixel
"""
import torch
import torch.nn.functional as F
from torch import nn

from methods.cam import to_device


class Segmentation(nn.Module):
    """Cross entropy, averaged over the pixels of the batch that have a label. Source: as usual for DeepLab.

    network      image (B, 3, H, W) -> logits (B, C + 1, H, W)
    ignore       the id of pixels that count for no class, such as the padding of a crop
    global_mean  under several processes: the mean of a tensor over all of them

    forward: {"image" (B, 3, H, W), "label_map" (B, H, W) class ids or ignore}, epoch -> {"loss", "accuracy",
    "accuracy_objects"}: the share of the labelled pixels that get their label, and of those labelled an object, which
    is 0 where a network has learned to call everything background (nan where there are none).
    """

    def __init__(self, network, ignore, global_mean=None):
        super().__init__()
        self.network, self.ignore = network, ignore
        self.global_mean = global_mean

    def forward(self, batch, epoch):
        label_map = batch["label_map"].long()                                   # (B, H, W)
        logits = self.network(batch["image"])                                   # (B, C + 1, H, W)
        known = label_map != self.ignore                                        # (B, H, W)
        pixels = torch.stack([known.sum(), (known & (label_map > 0)).sum()]).float()        # (2,)
        if self.global_mean:        # each process divides by it, and the mean over the processes is exact
            pixels = self.global_mean(pixels)
        right = logits.detach().argmax(1) == label_map                          # (B, H, W)
        shares = torch.stack([right.sum(), (right & (label_map > 0)).sum()]) / pixels
        loss = F.cross_entropy(logits, label_map, ignore_index=self.ignore, reduction="sum")
        return {"loss": loss / pixels[0].clamp(min=1e-6), "accuracy": shares[0], "accuracy_objects": shares[1]}


@torch.no_grad()
def multi_scale_scores(net, views, size):
    """Average the class probabilities of an image's views.

    net  network in eval mode;  views  [(2, 3, h_s, w_s)]: the image and its mirror image at each scale
    size (H, W) of the image.  Returns (C + 1, H, W) float32, sums to 1.
    """
    device = next(net.parameters()).device
    total = 0
    for view in views:
        logits = net(to_device(view, device)).float()                           # (2, C + 1, h_s, w_s)
        scores = F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1)
        total += scores[0] + scores[1].flip(-1)                                 # (C + 1, H, W)
    return total / (2 * len(views))


def windows(length, side, overlap):
    """Cut a length into overlapping windows of `side`, evenly: [(start, stop, first, last)].

    A window spans start .. stop and decides on first .. last; together these cover the length once, and each lies at
    least half of `overlap` inside its window, but at the image's border.
    """
    if length <= side:
        return [(0, length, 0, length)]
    count = -(-(length - overlap) // (side - overlap))
    starts = [i * (length - side) // (count - 1) for i in range(count)]
    borders = [0, *((start + side + after) // 2 for start, after in zip(starts, starts[1:])), length]
    return [(start, start + side, *borders[i:i + 2]) for i, start in enumerate(starts)]
