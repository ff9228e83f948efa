"""CAMNet: a backbone, a 1x1 convolution without bias, global average pooling.

The ordinary classifier (model_oc) and the CGNet (model_cse) are both this network.
"""
import torch
from torch import nn

from networks.resnet38d import PAPER_BLOCKS, PAPER_DILATION, ResNet38d


class CAMNet(nn.Module):
    """Compute class activation maps and, as their spatial means, the class logits.

    backbone      a finished one (networks.backbones); without it ResNet38d of that width, dropout, norm, blocks ...
    dropout_head  a Dropout2d before fc8 (.5 in the ordinary classifier)
    forward: image (B, 3, H, W) -> cam (B, C, h, w) without ReLU, logits (B, C); both float32 also under autocast.
    """

    new_layers = ("fc8",)                               # for networks.parameter_groups

    def __init__(self, num_classes=20, width=1.0, dropout=(0.3, 0.5), dropout_head=0.0, norm="frozen",
                 blocks=PAPER_BLOCKS, dilation=PAPER_DILATION, backbone=None):
        super().__init__()
        self.backbone = ResNet38d(width, dropout, norm, blocks, dilation) if backbone is None else backbone
        self.dropout7 = nn.Dropout2d(dropout_head)
        self.fc8 = nn.Conv2d(self.backbone.channels[2], num_classes, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)

    def forward(self, image):
        _, _, conv6 = self.backbone(image)                          # (B, 4096, h, w)
        with torch.autocast(image.device.type, enabled=False):
            cam = self.fc8(self.dropout7(conv6.float()))            # (B, C, h, w)
            logits = cam.mean((2, 3))                               # (B, C)
        return cam, logits
