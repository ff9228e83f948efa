"""Do two neighbouring cells belong together? The affinities of AffinityNet (CVPR 2018) and how they are learned.

    image --net--> features --distance of each pair--> affinity (1: the same, 0: not)
                                                          |
    CRF maps of two alphas --where both are sure--> pairs of one kind, pairs of different kinds: the loss

A pair is a cell and one of its neighbours in the half disc of `offsets`, the other half being the same pairs again.
With the paper's backbone a cell of the maps has 8x8 pixels. Cells from which the half disc would leave the map are not
the first of a pair.
"""
import torch
import torch.nn.functional as F
from torch import nn


class AffinityLearning(nn.Module):
    """AffinityNet's objective. Source: AffinityNet, train_aff.

    net          network image -> features (B, D, h, w), trained
    global_mean  under several processes: the mean of a tensor over all of them

    forward: {"image" (B, 3, H, W), "label_map" (B, h, w): see confident_labels}, epoch -> what affinity_loss gives, and
    "affinity_same", "affinity_different": the mean affinity of pairs that belong together and that do not (nan where
    there is none).
    """

    def __init__(self, net, radius=5, global_mean=None):
        super().__init__()
        self.net = net
        self.radius = radius
        self.global_mean = global_mean

    def forward(self, batch, epoch):
        affinity = pair_affinity(self.net(batch["image"]), self.radius)                 # (B, P, N)
        bg_pos, fg_pos, neg = affinity_labels(batch["label_map"], self.radius)          # (B, P, N) each
        pairs = count_pairs(bg_pos, fg_pos, neg)                                        # (3,)
        if self.global_mean:            # each process divides by it, and the mean over the processes is exact
            pairs = self.global_mean(pairs)
        same, seen = bg_pos + fg_pos, affinity.detach()
        return affinity_loss(affinity, bg_pos, fg_pos, neg, pairs) | {
            "affinity_same": (seen * same).sum() / same.sum(),
            "affinity_different": (seen * neg).sum() / neg.sum(),
        }


def pair_affinity(features, radius=5):
    """Compare the cells of each pair: features (B, D, h, w) -> exp(-mean over D of |difference|), (B, P, N)."""
    here, there = pairs_of(features, radius)
    distances = [(other - here).abs().mean(1) for other in there]                       # (B, rows, columns) each
    return torch.exp(-_stack(distances, here[:, 0]))                                    # (B, P, N)


def affinity_labels(label, radius=5):
    """Sort pairs by what is known of their cells: (..., h, w) row numbers, 0 background, 255 unknown.

    Returns bg_pos (both background), fg_pos (both the same object class), neg (different), each (..., P, N) float32;
    a pair with an unknown cell is in none of them.
    """
    here, there = pairs_of(label, radius)
    there, here = _stack(there, here), _stack([here], here)                             # (..., P, N), (..., 1, N)
    known, equal = (here < 255) & (there < 255), here == there
    return (known & equal & (here == 0)).float(), (known & equal & (here > 0)).float(), (known & ~equal).float()


def confident_labels(low, high, stride=8):
    """Merge two CRF maps (R, H, W) of a crop, row 0 the background, into (H/8, W/8) int64 row numbers, 255 unknown.

    stride  pixels a cell, 8 with the paper's backbone
    low   of the smaller alpha, whose background is large: what is an object there is confidently one
    high  of the larger one: what is background there is confidently that
    Both are averaged over the cells first; a cell without scores (padding: 0 in all rows) is unknown.
    """
    if low.shape != high.shape or low.shape[1] % stride or low.shape[2] % stride:
        raise ValueError(f"CRF maps {tuple(low.shape)} and {tuple(high.shape)}: they must be of one shape, their sides "
                         f"multiples of {stride}")
    low, high = F.avg_pool2d(low, stride), F.avg_pool2d(high, stride)                   # (R, h, w)
    label = low.argmax(0)                                                               # (h, w)
    label[label == 0] = 255
    label[high.argmax(0) == 0] = 0
    label[torch.maximum(low.amax(0), high.amax(0)) < 1e-5] = 255
    return label


def affinity_loss(affinity, bg_pos, fg_pos, neg, pairs=None):
    """Draw pairs of one kind together and pairs of different kinds apart: all arguments (B, P, N).

    pairs  (3,) what each kind's sum is divided by; default: its pairs here
    Returns {"loss": bg / 4 + fg / 4 + neg / 2, "loss_bg", "loss_fg", "loss_neg": the mean over a kind's pairs}.
    """
    pairs = count_pairs(bg_pos, fg_pos, neg) if pairs is None else pairs
    apart, together = -torch.log(affinity + 1e-5), -torch.log(1 + 1e-5 - affinity)
    sums = torch.stack([(apart * bg_pos).sum(), (apart * fg_pos).sum(), (together * neg).sum()])
    loss_bg, loss_fg, loss_neg = sums / (pairs + 1e-5)
    return {"loss": loss_bg / 4 + loss_fg / 4 + loss_neg / 2, "loss_bg": loss_bg, "loss_fg": loss_fg,
            "loss_neg": loss_neg}


def effective_radius(h, w, radius=5, rule="psa"):
    """Shrink the radius for a small map of h x w cells; at 1 or less there are no pairs.

    rule  "aeft": the half disc's width must fit into the shorter edge; "psa": it is kept wherever one pair fits
    """
    if rule not in ("psa", "aeft"):
        raise ValueError(f"rule must be psa or aeft, not {rule!r}")
    if rule == "psa" and h >= radius and w >= 2 * radius - 1:
        return radius
    return min(radius, (min(h, w) - 1) // 2)


def offsets(radius):
    """List the P = 34 (at radius 5) steps (y, x) of a pair: half a disc, in raster order."""
    square = [(y, x) for y in range(radius) for x in range(1 - radius, radius)]
    return [(y, x) for y, x in square if (y, x) > (0, 0) and x**2 + y**2 < radius**2]


def pairs_of(maps, radius):
    """Cut the N cells of each pair out of maps (..., h, w), as views (..., rows, columns), N = rows * columns.

    Returns the first cells, and P times the second ones. Raises ValueError for a map without room for a pair.
    """
    margin, (h, w) = max(radius - 1, 0), maps.shape[-2:]
    rows, columns = h - margin, w - 2 * margin
    if rows < 1 or columns < 1:
        raise ValueError(f"no pair of radius {radius} fits into {h}x{w} cells: effective_radius tells which does")
    here, *there = (maps[..., y:y + rows, margin + x:margin + x + columns] for y, x in [(0, 0), *offsets(radius)])
    return here, there


def count_pairs(*kinds):
    """Count each kind's pairs: masks of 0 and 1 -> (kinds,)."""
    return torch.stack([kind.sum() for kind in kinds])


def _stack(views, view):
    """Stack P maps (..., rows, columns), each like `view`, to (..., P, N), also where P is 0."""
    stacked = torch.stack(views, -3) if views else view[..., None, :, :][..., :0, :, :]
    return stacked.flatten(-2)
