"""Erase and infer, the experiment with which OC-CSE begins: where an object is erased, its other parts light up.

    image --net--> CAM of a class --above the threshold--> region
      ^                                                      |
      +------------------ image * (1 - region) <-------------+        and so on; no training

Source: OC-CSE, first experiment (METHOD: erase and infer).
"""
import torch
import torch.nn.functional as F

from methods.cam import multi_scale_cam


@torch.no_grad()
def erase_rounds(net, views, size, label, rounds=3, threshold=0.5):
    """Infer the CAMs of an image, erase from it what each class's CAM covers, infer again, and so on.

    net, views, size (H, W), label (C,)   as multi_scale_cam takes them; each class has an erased image of its own
    rounds, threshold   how often the pixels whose score exceeds the threshold are erased. They stay erased
    Returns classes (K,) int64, ids 1..C, and the maps (rounds + 1, K, H, W) float32 in [0, 1], each scaled to its own
    maximum: first those of the whole image, then those after each erasing.
    """
    classes, scores = multi_scale_cam(net, views, size, label)                          # (K,), (K, H, W)
    maps, erased = [scores], torch.zeros_like(scores, dtype=torch.bool)
    for _ in range(rounds):
        erased = erased | (maps[-1] > threshold)                                        # (K, H, W)
        again = [multi_scale_cam(net, erase_region(views, region), size, _alone(label, c))[1]
                 for c, region in zip(classes, erased.cpu())]                           # K times (1, H, W)
        maps.append(torch.cat([scores[:0], *again]))
    return classes, torch.stack(maps)


def erase_region(views, region):
    """Set a region of an image to 0, the mean colour, in all of its views.

    views [(2, 3, h_s, w_s)], an image and its mirror image at each scale, normalised; region (H, W) bool,
    on the views' device
    """
    kept = (~region).float()[None, None]                                                # (1, 1, H, W)
    kept = torch.cat([kept, kept.flip(-1)])                                             # (2, 1, H, W)
    return [view * F.interpolate(kept, view.shape[2:], mode="nearest-exact") for view in views]


def _alone(label, class_id):
    """Keep one class of a label (C,)."""
    alone = torch.zeros_like(label)
    alone[class_id - 1] = label[class_id - 1]
    return alone
