"""AEFT's network (ECCV 2022): a CAM head of two layers, and gated pyramid pooling in place of the global average."""
import torch
import torch.nn.functional as F
from torch import nn

from networks.resnet38d import PAPER_BLOCKS, PAPER_DILATION, ResNet38d

BINS = (2, 4, 8, 16)
ORDERS = ("coarse_to_fine", "fine_to_coarse", "averaged")


class GPPNet(nn.Module):
    """Compute class activation maps, the class logits that gated pyramid pooling makes of them, and its map.

    backbone    a finished one (networks.backbones); without it ResNet38d of that width, dropout, norm, blocks ...
    bins, order of the pooling: see GatedPyramidPooling
    forward: image (B, 3, H, W) -> cam (B, C, h, w) without ReLU, logits (B, C), gpp (B, C, h, w); all float32 also
    under autocast. Width scales the 256 channels between the head's two layers too.
    """

    new_layers = ("fc8", "fc9", "pool")                 # for networks.parameter_groups

    def __init__(self, num_classes=20, width=1.0, dropout=(0.2, 0.2), norm="frozen", blocks=PAPER_BLOCKS,
                 dilation=PAPER_DILATION, backbone=None, bins=BINS, order=ORDERS[0]):
        super().__init__()
        self.backbone = ResNet38d(width, dropout, norm, blocks, dilation) if backbone is None else backbone
        middle = max(1, round(256 * width))
        self.fc8 = nn.Conv2d(self.backbone.channels[2], middle, 1, bias=False)
        # The authors' checkpoints hold this BatchNorm, their network has no use for it.
        self.bn8 = nn.BatchNorm2d(middle).requires_grad_(False).eval()
        self.fc9 = nn.Conv2d(middle, num_classes, 1, bias=False)
        self.pool = GatedPyramidPooling(num_classes, bins, order)
        for layer in (self.fc8, self.fc9):
            nn.init.xavier_uniform_(layer.weight)

    def train(self, mode=True):
        super().train(mode)
        self.bn8.eval()
        return self

    def forward(self, image):
        _, _, conv6 = self.backbone(image)                          # (B, 4096, h, w)
        with torch.autocast(image.device.type, enabled=False):
            cam = self.fc9(F.relu(self.fc8(conv6.float())))         # (B, C, h, w)
            logits, gpp = self.pool(cam)
        return cam, logits, gpp


class GatedPyramidPooling(nn.Module):
    """Pool class maps from coarse to fine, each level gated by the one before it.

    bins    cells a side of each level's average pooling; a level may have more cells than the map
    order   "coarse_to_fine": gates go from few cells to many (AEFT); "fine_to_coarse": the other way; "averaged": no
            gates, the mean of the levels
    forward: cam (B, C, h, w) -> logits (B, C), gpp (B, C, h, w). The logit of a class is the mean of cam * gpp over the
    cells where both are positive, less that over the cells where both are negative.
    """

    def __init__(self, num_classes, bins=BINS, order=ORDERS[0]):
        super().__init__()
        if not bins or min(bins) < 1:
            raise ValueError(f"bins are numbers of cells from 1 up, not {tuple(bins)}")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
        self.bins = tuple(bins)[::-1] if order == "fine_to_coarse" else tuple(bins)
        self.gates = [] if order == "averaged" else [f"gconv{i}" for i in range(1, len(bins))]
        for name in self.gates:
            self.add_module(name, Gate(num_classes))

    def forward(self, cam):
        levels = [F.interpolate(F.adaptive_avg_pool2d(cam, count), cam.shape[2:], mode="bilinear", align_corners=False)
                  for count in self.bins]                           # each (B, C, h, w)
        gpp = levels[0]
        for name, level in zip(self.gates, levels[1:]):
            gpp = getattr(self, name)(gpp, level)
        if not self.gates:
            gpp = torch.stack(levels).mean(0)
        logits = (cam.relu() * gpp.relu()).mean((2, 3)) - ((-cam).relu() * (-gpp).relu()).mean((2, 3))
        return logits, gpp


class Gate(nn.Module):
    """Weigh two maps against each other at each position, their positive and their negative parts apart.

    forward: x, y (B, C, h, w) -> (B, C, h, w)
    """

    def __init__(self, num_classes):
        super().__init__()
        self.att_p, self.att_n = (nn.Sequential(nn.Conv2d(2 * num_classes, 2, 3, padding=1, bias=False), nn.Sigmoid())
                                  for _ in range(2))

    def forward(self, x, y):
        return self._part(self.att_p, x.relu(), y.relu()) - self._part(self.att_n, (-x).relu(), (-y).relu())

    @staticmethod
    def _part(attention, x, y):
        weight = attention(torch.cat([x, y], 1))                    # (B, 2, h, w)
        return (x * weight[:, :1] + y * weight[:, 1:]) / 2
