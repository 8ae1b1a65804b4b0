"""Convolutions followed by a batch norm of fixed statistics: cheaper at inference, smaller in
training.

Such a norm scales and shifts each channel. At inference that is done to the kernel instead of the
map (:func:`fold_norm`). In training the result stays that of both layers one after the other, bit
by bit, but the map between them, as large as their result, is not kept for the gradient: the
gradients of the kernel and of the norm follow from that of the folded kernel.
"""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.nn.modules.batchnorm import _BatchNorm


def is_fixed(norm: Optional[nn.Module]) -> bool:
    """Return whether a norm is a scale and a shift that do not depend on its input."""
    if isinstance(norm, _BatchNorm):
        return not norm.training and norm.track_running_stats
    return isinstance(norm, FrozenBatchNorm2d)


def fold_norm(conv: Any, norm: Any) -> Tuple[Tensor, Tensor]:
    """
    Args:
        conv: anything with a ``weight`` (C', C, h, w) and a ``bias`` (C',) or None.
        norm: a norm for which :func:`is_fixed` is true, with C' channels.

    Returns:
        weight and bias of a convolution that is equivalent to both.
    """
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    return conv.weight * scale.view(-1, 1, 1, 1), bias


@torch.no_grad()
def fold_fixed_norms(module: nn.Module) -> None:
    """Fold the fixed norm of every convolution that has one, as Detectron2's and
    :class:`tood.modeling.backbone.deform_conv.PortableDeformConv` do, into its kernel, in place.
    """
    for conv in module.modules():
        # Not by their classes: without its extension, Detectron2's main lacks ModulatedDeformConv.
        if hasattr(conv, "weight") and is_fixed(getattr(conv, "norm", None)):
            weight, bias = fold_norm(conv, conv.norm)
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            conv.norm = None  # type: ignore[assignment]


class FixedNormConv2d(Conv2d):
    """Detectron2's ``Conv2d``, with a separate computation if its norm is fixed."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        if not is_fixed(self.norm):
            return super().forward(x)
        if not self.training:
            weight, bias = fold_norm(self, self.norm)
            x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        elif isinstance(self.norm, _BatchNorm) and self.bias is None:
            norm = self.norm
            x = _ConvFixedNorm.apply(
                *(x, self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var),
                norm.eps,
                (self.stride, self.padding, self.dilation, self.groups),
            )
        else:  # a FrozenBatchNorm2d learns nothing and keeps nothing
            return super().forward(x)
        return x if self.activation is None else self.activation(x)


class _ConvFixedNorm(torch.autograd.Function):
    """Convolution without bias, then batch norm on its statistics."""

    @staticmethod
    def forward(ctx, x, weight, norm_weight, norm_bias, mean, var, eps, options):
        ctx.save_for_backward(x, weight, norm_weight, mean, var)
        ctx.eps, ctx.options = eps, options
        x = F.conv2d(x, weight, None, *options)
        return F.batch_norm(x, mean, var, norm_weight, norm_bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx, grad):
        x, weight, norm_weight, mean, var = ctx.saved_tensors
        grad_x = grad_weight = grad_norm_weight = grad_norm_bias = None
        inverse_std = (var + ctx.eps).rsqrt()
        scale = (norm_weight * inverse_std).view(-1, 1, 1, 1)
        # Under autocast, what arrives is of the type that the convolution computed in.
        if ctx.needs_input_grad[0]:
            folded = (weight * scale).to(grad.dtype)
            grad_x = conv2d_input(x.shape, folded, grad, *ctx.options).to(x.dtype)
        if any(ctx.needs_input_grad[1:3]):
            of_folded = conv2d_weight(x.to(grad.dtype), weight.shape, grad, *ctx.options)
            of_folded = of_folded.to(weight.dtype)
        if any(ctx.needs_input_grad[2:4]):
            # In the norm's own type: a sum over all locations overflows float16.
            grad_norm_bias = grad.sum(dim=(0, 2, 3), dtype=norm_weight.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = of_folded * scale
        if ctx.needs_input_grad[2]:
            of_scale = (of_folded * weight).sum(dim=(1, 2, 3))
            grad_norm_weight = (of_scale - mean * grad_norm_bias) * inverse_std
        return grad_x, grad_weight, grad_norm_weight, grad_norm_bias, None, None, None, None


def use_fixed_norms(module: nn.Module) -> None:
    """Make every Detectron2 ``Conv2d`` with a batch norm a :class:`FixedNormConv2d`, in place."""
    for conv in module.modules():
        if type(conv) is Conv2d and isinstance(conv.norm, (_BatchNorm, FrozenBatchNorm2d)):
            # The same object with its parameters and hooks; only its forward differs.
            conv.__class__ = FixedNormConv2d
