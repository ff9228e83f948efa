"""BatchNorm that, once it is frozen, keeps nothing of its input for the backward pass.

torch's own keeps the whole input, for the gradient of its weights; where these are not trained the gradient of the
input needs the scale alone.
"""
import torch
import torch.nn.functional as F
from torch import nn


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
