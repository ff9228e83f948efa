"""DeepLab, the network that learns from the pseudo labels: LargeFOV, or DeepLabV3 with torchvision's head."""
import torch
import torch.nn.functional as F
from torch import nn

from networks.resnet38d import PAPER_BLOCKS, PAPER_DILATION, ResNet38d

FIELD_OF_VIEW = 96      # pixels between the taps of LargeFOV's 3x3 convolutions: dilation 12 at stride 8


class LargeFOV(nn.Module):
    """Classify every pixel: two 3x3 convolutions of dilation 12 on the backbone. Source: the network in AEFT's code.

    num_classes  object classes; the background is one more, and the first
    backbone     a finished one (networks.backbones); without it ResNet38d of that width, dropout, norm, blocks ...
                 If its BatchNorm is frozen, all else is trained, its first layers too. At another stride than 8 the
                 dilation is 96 / stride
    forward: image (B, 3, H, W) -> logits (B, C + 1, H, W), float32 also under autocast.
    """

    new_layers = ("b8", "b9")                           # for networks.parameter_groups
    least_images = 1                                    # of a batch in training

    def __init__(self, num_classes=20, width=1.0, dropout=(0.3, 0.5), norm="frozen", blocks=PAPER_BLOCKS,
                 dilation=PAPER_DILATION, backbone=None):
        super().__init__()
        self.backbone = _with_stem(backbone or ResNet38d(width, dropout, norm, blocks, dilation))
        apart = FIELD_OF_VIEW // self.backbone.stride
        c512 = max(1, round(512 * width))
        self.b8 = nn.Conv2d(self.backbone.channels[2], c512, 3, padding=apart, dilation=apart)
        self.b9 = nn.Conv2d(c512, num_classes + 1, 3, padding=apart, dilation=apart)
        for layer in (self.b8, self.b9):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, image):
        _, _, conv6 = self.backbone(image)                          # (B, 4096, h, w)
        hidden = F.relu(self.b8(conv6))                             # (B, 512, h, w)
        return _pixel_logits(self.b9, hidden, image.shape[2:])      # (B, C + 1, H, W)


class DeepLabV3(nn.Module):
    """Promise the same as LargeFOV with torchvision's DeepLabV3 head, an atrous pyramid, on any backbone.

    The head has BatchNorm of its own, which is new and so is trained in any case: a batch needs two images.
    """

    new_layers, least_images = ("classifier",), 2

    def __init__(self, num_classes=20, width=1.0, dropout=(0.3, 0.5), norm="frozen", blocks=PAPER_BLOCKS,
                 dilation=PAPER_DILATION, backbone=None):
        from torchvision.models.segmentation.deeplabv3 import DeepLabHead  # here: LargeFOV needs no torchvision

        super().__init__()
        self.backbone = _with_stem(backbone or ResNet38d(width, dropout, norm, blocks, dilation))
        rates = [rate * FIELD_OF_VIEW // self.backbone.stride for rate in (1, 2, 3)]        # 12 24 36 at stride 8
        self.classifier = DeepLabHead(self.backbone.channels[2], num_classes + 1, rates)

    def forward(self, image):
        *layers, classify = self.classifier
        _, _, hidden = self.backbone(image)                         # (B, D, h, w)
        for layer in layers:
            hidden = layer(hidden)                                  # (B, 256, h, w)
        return _pixel_logits(classify, hidden, image.shape[2:])     # (B, C + 1, H, W)


HEADS = {"largefov": LargeFOV, "deeplabv3": DeepLabV3}


def _with_stem(backbone):
    """Train the first layers too, where BatchNorm is frozen: the authors freeze nothing else."""
    if backbone.norm == "frozen":
        backbone.freeze(stem=False)
    return backbone


def _pixel_logits(classify, hidden, size):
    """Classify cells (B, D, h, w) in float32, and upsample to size (H, W)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return F.interpolate(classify(hidden.float()), size, mode="bilinear", align_corners=False)
