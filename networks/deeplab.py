"""DeepLab, the network that learns from the pseudo labels: LargeFOV on ResNet38d, or torchvision's DeepLabV3."""
import torch
import torch.nn.functional as F
from torch import nn

from networks.resnet38d import PAPER_BLOCKS, PAPER_DILATION, ResNet38d


class LargeFOV(nn.Module):
    """Classify every pixel: two 3x3 convolutions of dilation 12 on the backbone. Source: the network in AEFT's code.

    num_classes  object classes; the background is one more, and the first
    dropout is that of b6 and b7; the rest: ResNet38d. norm="frozen" freezes BatchNorm alone: conv1a and b2 are trained.
    forward: image (B, 3, H, W) -> logits (B, C + 1, H, W), float32 also under autocast.
    """

    new_layers = ("b8", "b9")                           # for networks.parameter_groups

    def __init__(self, num_classes=20, width=1.0, dropout=(0.3, 0.5), norm="frozen", blocks=PAPER_BLOCKS,
                 dilation=PAPER_DILATION):
        super().__init__()
        self.backbone = ResNet38d(width, dropout, norm, blocks, dilation)
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):
                module.requires_grad_(True)
        c512 = max(1, round(512 * width))
        self.b8 = nn.Conv2d(self.backbone.channels[2], c512, 3, padding=12, dilation=12)
        self.b9 = nn.Conv2d(c512, num_classes + 1, 3, padding=12, dilation=12)
        for layer in (self.b8, self.b9):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, image):
        _, _, conv6 = self.backbone(image)                          # (B, 4096, h, w)
        hidden = F.relu(self.b8(conv6))                             # (B, 512, h, w)
        return _pixel_logits(self.b9, hidden, image.shape[2:])      # (B, C + 1, H, W)


class DeepLabV3(nn.Module):
    """Promise the same as LargeFOV with torchvision's DeepLabV3: another backbone and an atrous pyramid as its head.

    name     deeplabv3_resnet50 or deeplabv3_resnet101
    weights  name of torchvision's weights of the backbone (IMAGENET1K_V1, IMAGENET1K_V2), which torchvision fetches;
             None: random. A file goes through networks.pretrained.load_weights with head="skip"
    norm     "frozen": the backbone's BatchNorm runs on its stored statistics and is not trained; "train": it is. The
             head's is new, so it is trained in any case
    """

    new_layers = ("classifier",)

    def __init__(self, name="deeplabv3_resnet50", num_classes=20, weights=None, norm="frozen"):
        from torchvision.models import segmentation  # here: LargeFOV needs no torchvision

        super().__init__()
        if name not in ("deeplabv3_resnet50", "deeplabv3_resnet101"):
            raise ValueError(f"the network is deeplabv3_resnet50 or deeplabv3_resnet101, not {name!r}")
        if norm not in ("frozen", "train"):
            raise ValueError(f"norm must be frozen or train, not {norm!r}")
        model = getattr(segmentation, name)(weights_backbone=weights, num_classes=num_classes + 1, aux_loss=False)
        self.backbone, self.classifier = model.backbone, model.classifier
        self.norm = norm
        self.train()

    def train(self, mode=True):
        super().train(mode)
        if self.norm == "frozen":
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.requires_grad_(False).eval()
        return self

    def forward(self, image):
        *layers, classify = self.classifier
        hidden = self.backbone(image)["out"]                        # (B, 2048, h, w)
        for layer in layers:
            hidden = layer(hidden)                                  # (B, 256, h, w)
        return _pixel_logits(classify, hidden, image.shape[2:])     # (B, C + 1, H, W)


def deeplab(network, num_classes, norm="frozen", **shape):
    """Make the network of that name: largefov, deeplabv3_resnet50 or _resnet101, whose shape is torchvision's own."""
    if network == "largefov":
        return LargeFOV(num_classes, norm=norm, **shape)
    return DeepLabV3(network, num_classes, norm=norm)


def _pixel_logits(classify, hidden, size):
    """Classify cells (B, D, h, w) in float32, and upsample to size (H, W)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return F.interpolate(classify(hidden.float()), size, mode="bilinear", align_corners=False)
