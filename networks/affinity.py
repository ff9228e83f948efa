"""AffinityNet: features of an image whose distance tells whether two neighbouring cells belong together."""
import torch
import torch.nn.functional as F
from torch import nn

from networks.resnet38d import PAPER_BLOCKS, PAPER_DILATION, ResNet38d


class AffinityNet(nn.Module):
    """Compute the features between which methods.affinity measures distances. Source: AffinityNet, authors' code.

    backbone  a finished one (networks.backbones); without it ResNet38d of that width, dropout, norm, blocks, dilation
    stride    of the features: the finest of the backbone's three taps; the others are brought to it. An image whose
              sides are multiples of image_multiple has a whole number of cells in each tap
    forward: image (B, 3, H, W) -> features (B, 448, h, w), float32 also under autocast; width scales the 448 too.
    """

    new_layers = ("f8_3", "f8_4", "f8_5", "f9")         # for networks.parameter_groups

    def __init__(self, width=1.0, dropout=(0.3, 0.5), norm="frozen", blocks=PAPER_BLOCKS, dilation=PAPER_DILATION,
                 backbone=None):
        super().__init__()
        self.backbone = ResNet38d(width, dropout, norm, blocks, dilation) if backbone is None else backbone
        self.stride, self.image_multiple = min(self.backbone.strides), max(self.backbone.strides)
        c64, c128, c256 = (max(1, round(2**k * width)) for k in (6, 7, 8))
        conv4, conv5, conv6 = self.backbone.channels
        self.f8_3 = nn.Conv2d(conv4, c64, 1, bias=False)
        self.f8_4 = nn.Conv2d(conv5, c128, 1, bias=False)
        self.f8_5 = nn.Conv2d(conv6, c256, 1, bias=False)
        self.f9 = nn.Conv2d(c64 + c128 + c256, c64 + c128 + c256, 1, bias=False)
        for layer in (self.f8_3, self.f8_4, self.f8_5):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, image):
        conv4, conv5, conv6 = self.backbone(image)                  # (B, 512, h, w), (B, 1024, h, w), (B, 4096, h, w)
        with torch.autocast(image.device.type, enabled=False):
            low = F.elu(self.f8_3(conv4.float()))                   # (B, 64, h, w)
            middle = _to_size(F.elu(self.f8_4(conv5.float())), low)     # (B, 128, h, w)
            high = _to_size(F.elu(self.f8_5(conv6.float())), low)       # (B, 256, h, w)
            return F.elu(self.f9(torch.cat([low, middle, high], 1)))    # (B, 448, h, w)


def _to_size(features, finest):
    """Bring features of a coarser tap to the cells of the finest."""
    if features.shape[2:] == finest.shape[2:]:
        return features
    return F.interpolate(features, finest.shape[2:], mode="bilinear", align_corners=False)
