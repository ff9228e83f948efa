"""Layers that, once they are frozen, keep nothing of their input for the backward pass.

torch's own keep the whole input, for the gradient of their weights; where these are not trained the gradient of the
input needs the weights alone, and that of ReLU where the result is above 0.
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv2d_input


class BatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, bit by bit in the forward pass. Frozen is what is in eval mode and has no trained weight."""

    def forward(self, x):
        if not x.requires_grad or self.training or self.running_var is None or self._trained():
            return super().forward(x)
        return _Frozen.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.eps)

    def _trained(self):
        return any(parameter.requires_grad for parameter in (self.weight, self.bias) if parameter is not None)


class BatchNormAct2d(BatchNorm2d):
    """timm's BatchNormAct2d, whose attributes it takes over: the activation belongs to the layer."""

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Conv2d(nn.Conv2d):
    """torch's Conv2d without a bias, bit by bit in the forward pass."""

    def forward(self, x):
        if not x.requires_grad or self.weight.requires_grad or self.bias is not None:
            return super().forward(x)
        return _FrozenConvolution.apply(x, self.weight, self.stride, self.padding, self.dilation, self.groups)


def relu(x, *readers):
    """Rectify x in place. readers: the convolutions that are given the result.

    One that is trained keeps the result, and what ReLU needs is in it; else a byte an element is kept.
    """
    if not x.requires_grad or any(reader.weight.requires_grad for reader in readers):
        return F.relu(x, inplace=True)
    return _MaskedReLU.apply(x)


class _Frozen(torch.autograd.Function):
    """x (B, C, ...) -> the same shape; the gradient is that of x alone."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, eps):
        ctx.save_for_backward(weight, var)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx, gradient):
        weight, var = ctx.saved_tensors
        scale = torch.rsqrt(var + ctx.eps)                                  # (C,)
        if weight is not None:
            scale = weight * scale
        shape = (-1,) + (1,) * (gradient.ndim - 2)
        return (gradient * scale.view(shape)).to(gradient.dtype), None, None, None, None, None


class _FrozenConvolution(torch.autograd.Function):
    """x (B, C, H, W) -> (B, D, h, w); the gradient is that of x alone."""

    @staticmethod
    def forward(ctx, x, weight, stride, padding, dilation, groups):
        ctx.save_for_backward(weight)
        ctx.shape, ctx.rest = x.shape, (stride, padding, dilation, groups)
        return F.conv2d(x, weight, None, *ctx.rest)

    @staticmethod
    def backward(ctx, gradient):
        weight, = ctx.saved_tensors             # under autocast the output, and so the gradient, is of another type
        return conv2d_input(ctx.shape, weight.to(gradient.dtype), gradient, *ctx.rest), None, None, None, None, None


class _MaskedReLU(torch.autograd.Function):
    """x -> x, rectified in place."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        x.relu_()
        ctx.save_for_backward(x > 0)
        return x

    @staticmethod
    def backward(ctx, gradient):
        above, = ctx.saved_tensors
        return gradient.masked_fill(~above, 0)
