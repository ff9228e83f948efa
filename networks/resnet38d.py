"""ResNet38d: the pre-activation network of AffinityNet and OC-CSE, output stride 8.

It keeps the promise of all backbones: see networks/backbones.py.
"""
import torch.nn.functional as F
from torch import nn

from networks.frozen import BatchNorm2d, Conv2d, relu

# Residual units in b2 .. b7, and the dilation of b5, b6, b7.
PAPER_BLOCKS = (3, 3, 6, 3, 1, 1)
PAPER_DILATION = (2, 4, 4)


class ResNet38d(nn.Module):
    """Compute three feature maps of an image batch.

    width     scales every channel count (1.0 is the paper's 105.07 M parameters)
    dropout   probability of Dropout2d inside b6 and b7
    norm      "frozen": BatchNorm runs on its stored statistics, and conv1a and b2 are not trained (the paper);
              "train": everything is trained, BatchNorm on the statistics of the batch (from scratch)
    blocks    residual units in b2 .. b7; 0 leaves the group out (b6, b7 alone)
    dilation  of b5, b6, b7 (3x3 convolutions)
    recomputed   None, or (unit, x) -> unit(x), how a residual unit is computed: see tools.recompute

    forward: (B, 3, H, W) -> conv4 (B, 512, h, w), conv5 (B, 1024, h, w), conv6 (B, 4096, h, w), h = ceil(H / 8).
    """

    stride, strides = 8, (8, 8, 8)
    channels_last = True                # measured: twice as fast in bf16

    def __init__(self, width=1.0, dropout=(0.3, 0.5), norm="frozen", blocks=PAPER_BLOCKS, dilation=PAPER_DILATION):
        super().__init__()
        if norm not in ("frozen", "train"):
            raise ValueError(f"norm must be frozen or train, not {norm!r}")
        if len(blocks) != 6 or min(blocks[:4]) < 1 or not all(n in (0, 1) for n in blocks[4:]):
            raise ValueError(f"blocks are six counts, b2 to b5 at least 1, b6 and b7 0 or 1, not {tuple(blocks)}")
        if len(dilation) != 3 or min(dilation) < 1:
            raise ValueError(f"dilation is three numbers from 1 up, not {tuple(dilation)}")
        c64, c128, c256, c512, c1024, c2048, c4096 = (max(1, round(2**k * width)) for k in range(6, 13))
        self.norm = norm
        self.recomputed = None

        self.conv1a = Conv2d(3, c64, 3, padding=1, bias=False)
        self._add_group("b2", blocks[0], c64, c128, c128, stride=2)
        self._add_group("b3", blocks[1], c128, c256, c256, stride=2)
        self._add_group("b4", blocks[2], c256, c512, c512, stride=2)
        self._add_group("b5", blocks[3], c512, c512, c1024, dilation=dilation[0])
        last = c1024
        self.bottlenecks = []
        for name, count, out, drop, dil in (("b6", blocks[4], c2048, dropout[0], dilation[1]),
                                            ("b7", blocks[5], c4096, dropout[1], dilation[2])):
            if count:
                self.add_module(name, Bottleneck(last, out, drop, dil))
                self.bottlenecks.append(name)
                last = out
        self.bn7 = BatchNorm2d(last)
        self.channels = (c512, c1024, last)
        if norm == "frozen":
            self.freeze()

    def _add_group(self, name, units, c_in, c_mid, c_out, stride=1, dilation=1):
        """Add units name, name_1, name_2 ...; in the first the dilation sets in only at the second convolution."""
        self.add_module(name, Block(c_in, c_mid, c_out, stride, 1, dilation))
        for i in range(1, units):
            self.add_module(f"{name}_{i}", Block(c_out, c_mid, c_out, 1, dilation, dilation))

    def freeze(self, stem=True):
        """Train no BatchNorm (weights and statistics); with stem, nor conv1a, b2, b2_1, b2_2."""
        self.norm = "frozen"
        for name, module in self.named_children():
            if name == "conv1a" or name.split("_")[0] == "b2":
                module.requires_grad_(not stem)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False).eval()

    def train(self, mode=True):
        super().train(mode)
        if self.norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, image):
        x = self.conv1a(image)                      # (B, 64, H, W)
        conv4 = None
        for name, module in self.named_children():
            if isinstance(module, Block):
                x, activated = self._run(module, x)     # b2: H/2, b3: H/4, b4 on: h w
                if name == "b5":
                    conv4 = activated               # (B, 512, h, w)
        conv5 = None
        for name in self.bottlenecks:
            x, activated = self._run(getattr(self, name), x)
            conv5 = activated if conv5 is None else conv5       # (B, 1024, h, w)
        conv6 = F.relu(self.bn7(x), inplace=True)   # (B, 4096, h, w)
        return conv4, conv6 if conv5 is None else conv5, conv6

    def _run(self, unit, x):
        """A frozen unit is not computed again: it keeps a byte an element of its ReLUs, less than its input is."""
        again = self.recomputed and any(parameter.requires_grad for parameter in unit.parameters())
        return self.recomputed(unit, x) if again else unit(x)


class Block(nn.Module):
    """Two 3x3 convolutions, pre-activated. forward: x -> (output, the activated input)."""

    def __init__(self, c_in, c_mid, c_out, stride, first_dilation, dilation):
        super().__init__()
        self.bn_branch2a = BatchNorm2d(c_in)
        self.conv_branch2a = _conv3x3(c_in, c_mid, stride, first_dilation)
        self.bn_branch2b1 = BatchNorm2d(c_mid)
        self.conv_branch2b1 = _conv3x3(c_mid, c_out, 1, dilation)
        self.conv_branch1 = None
        if c_in != c_out or stride != 1:
            self.conv_branch1 = Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x):
        activated = relu(self.bn_branch2a(x), self.conv_branch2a)
        y = self.conv_branch2a(activated)
        y = relu(self.bn_branch2b1(y), self.conv_branch2b1)
        y = self.conv_branch2b1(y)
        skip = x if self.conv_branch1 is None else self.conv_branch1(activated)
        return y.add_(skip), activated          # the skip last, and in place: two maps less at the peak


class Bottleneck(nn.Module):
    """1x1, dilated 3x3, 1x1, pre-activated, Dropout2d before the last two. forward: x -> (output, activated input)."""

    def __init__(self, c_in, c_out, dropout, dilation):
        super().__init__()
        self.bn_branch2a = BatchNorm2d(c_in)
        self.conv_branch2a = Conv2d(c_in, c_out // 4, 1, bias=False)
        self.bn_branch2b1 = BatchNorm2d(c_out // 4)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = _conv3x3(c_out // 4, c_out // 2, 1, dilation)
        self.bn_branch2b2 = BatchNorm2d(c_out // 2)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = Conv2d(c_out // 2, c_out, 1, bias=False)
        self.conv_branch1 = Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x):
        activated = relu(self.bn_branch2a(x), self.conv_branch2a)
        y = self.conv_branch2a(activated)
        y = relu(self.dropout_2b1(self.bn_branch2b1(y)), self.conv_branch2b1)
        y = self.conv_branch2b1(y)
        y = relu(self.dropout_2b2(self.bn_branch2b2(y)), self.conv_branch2b2)
        y = self.conv_branch2b2(y)
        return y.add_(self.conv_branch1(activated)), activated


def _conv3x3(c_in, c_out, stride, dilation):
    return Conv2d(c_in, c_out, 3, stride, padding=dilation, dilation=dilation, bias=False)
