"""Operators in the form that takes less time on a CPU than PyTorch's own, with the same results but
for rounding (docs/results/performance.md). Where a program is traced, and on other devices, nothing
of it is used.

Shapes: N images, C channels, H x W locations of one level.
"""

import functools
from typing import Iterable, Optional, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import cat, get_norm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def runs_now_on_cpu(x: Tensor) -> bool:
    """Return whether operators on a tensor run on a CPU now: they are not traced, nor on fakes."""
    compiler = getattr(torch, "compiler", None)  # since PyTorch 2.1
    is_traced = torch.jit.is_tracing() or getattr(compiler, "is_compiling", bool)()
    return type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and not is_traced


# --- 1x1 convolutions with other kernels for each image ---------------------------------------


def has_quick_convs(x: Tensor) -> bool:
    """Return whether to :func:`convolve`, which PyTorch computes with oneDNN, instead of to
    :func:`multiply`, with MKL: it had half the speed on an AMD processor. In a traced program, the
    number of images must not be a constant.
    """
    if x.dtype != torch.float32 or x.numel() == 0 or not torch.backends.mkldnn.is_available():
        return False
    return runs_now_on_cpu(x)


def multiply(layers: Sequence[Tensor], kernels: Sequence[Tensor]) -> Tensor:
    """Return the sum of the products of L maps (N, C, H, W) and L kernels (N, width, C)."""
    H, W = layers[0].shape[2:]
    # Locations x channels, in and out: without a copy if the memory is channels-last.
    layers = [x.flatten(2).transpose(1, 2) for x in layers]
    x = _add_up(torch.bmm(x, kernel.transpose(1, 2)) for x, kernel in zip(layers, kernels))
    return x.transpose(1, 2).unflatten(2, (H, W))


def convolve(layers: Sequence[Tensor], kernels: Sequence[Tensor]) -> Tensor:
    """:func:`multiply`, by a convolution for each image and layer."""
    images = zip(*(x.split(1) for x in layers))
    kernels = [kernel.unflatten(2, (-1, 1, 1)) for kernel in kernels]
    return cat([_add_up(map(F.conv2d, image, k)) for image, k in zip(images, zip(*kernels))])


def _add_up(values: Iterable[Tensor]) -> Tensor:
    """Return the sum of new tensors, in the memory of the first."""
    return functools.reduce(Tensor.add_, values)


# --- memory order of training -----------------------------------------------------------------


def order_for_gradients(x: Tensor) -> Tensor:
    """Return a map in the plain order if that makes a step quicker: without AVX-512, gradients of
    3x3 kernels take oneDNN twice as long in channels-last order.
    """
    is_slow = x.dtype == torch.float32 and runs_now_on_cpu(x) and _has_avx2_alone()
    return x.contiguous() if is_slow and torch.is_grad_enabled() else x


@functools.cache
def _has_avx2_alone() -> bool:
    cpu = getattr(torch.backends, "cpu", None)  # since PyTorch 2.1
    return cpu is not None and cpu.get_cpu_capability() == "AVX2"


# --- group norms -----------------------------------------------------------------------------

CACHED = 2**20  # elements of a map in float32 of which a CPU's cache has room for some


def make_norm(name: str, channels: int) -> Optional[nn.Module]:
    """Return Detectron2's norm of a name; a group norm is a :class:`GroupNorm`."""
    norm = get_norm(name, channels)
    if type(norm) is nn.GroupNorm:
        norm.__class__ = GroupNorm
    return norm


class GroupNorm(nn.GroupNorm):
    """PyTorch's, with other gradients where its own are slow: those of half precision take 25 times
    as long in channels-last order as in the plain one, which takes copies. They cannot be
    differentiated again.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        is_half = x.dtype in (torch.bfloat16, torch.float16) and x.dim() == 4
        is_slow = is_half and x.stride(1) == 1 and runs_now_on_cpu(x)  # in channels-last order
        if is_slow and self.affine and torch.is_grad_enabled():
            return _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        N, C, H, W = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        y, mean, rstd = torch.native_group_norm(x, weight, bias, N, C, H * W, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """Return rstd (g - mean of g - x' mean of g x') as the gradient of x, where
        x' = (x - mean) rstd and g = grad weight; means are over a group's channels and locations.
        """
        x, weight, mean, rstd = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        width = x.shape[1] // mean.shape[1]  # channels of a group
        grad_x = torch.empty_like(x)
        # N x locations x channels, some images at a time: maps in float32 then fit into the cache.
        rows = [v.flatten(2).transpose(1, 2) for v in (x, grad, grad_x)]
        # N x 1 x channels.
        of_channels = [v.repeat_interleave(width, dim=1).unsqueeze(1) for v in (mean, rstd)]
        number = max(CACHED // x.shape[1:].numel(), 1)
        parts = zip(*(v.split(number) for v in (*rows, *of_channels)))
        grads = [_differentiate_norm(weight, width, *part) for part in parts]
        grad_weight, grad_bias = (cat(v).sum(dim=(0, 1)).to(weight.dtype) for v in zip(*grads))
        return grad_x, grad_weight, grad_bias, None, None


def _differentiate_norm(weight, width, x, grad, out, mean, rstd):
    """Write the gradient of x to ``out``; return those of weight and bias, for each image."""
    x, grad = x.float(), grad.float()
    of_bias = grad.sum(dim=1, keepdim=True)
    of_weight = ((grad * x).sum(dim=1, keepdim=True) - of_bias * mean) * rstd
    of_bias_mean, of_weight_mean = (
        (v * weight).unflatten(2, (-1, width)).sum(dim=3).repeat_interleave(width, dim=2)
        / (width * x.shape[1])
        for v in (of_bias, of_weight)
    )
    slope = -rstd * rstd * of_weight_mean
    shift = -slope * mean - rstd * of_bias_mean
    out.copy_(x.mul_(slope).add_(shift).addcmul_(grad, rstd * weight))
    return of_weight, of_bias


# --- depthwise convolutions --------------------------------------------------------------------


def has_slow_bias(conv: nn.Conv2d, x: Tensor, bias: Tensor) -> bool:
    """Return whether the gradient of a convolution's bias, which is a sum, takes oneDNN as long as
    that of its kernel: as depthwise ones of 5x5 do, and smaller ones do not.
    """
    is_large = conv.groups > 1 and max(conv.kernel_size) > 3
    return is_large and bias.requires_grad and runs_now_on_cpu(x)


# --- sampling ---------------------------------------------------------------------------------


class SampleSides(torch.autograd.Function):
    """The ``deform_conv2d`` of :func:`~tood.modeling.layers.sample_each_side`. Only boxes of
    positives have a loss: gradients are computed where the one that arrives is not zero. A GPU
    would have to wait for that list.
    """

    @staticmethod
    def forward(ctx, sample, boxes, offsets):
        ctx.save_for_backward(boxes, offsets)
        return sample(boxes, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        boxes, offsets = ctx.saved_tensors
        grad_boxes, grad_offsets = torch.zeros_like(boxes), torch.zeros_like(offsets)
        H, W = boxes.shape[2:]
        image, side, row, column = index = grad.nonzero(as_tuple=True)
        grad = grad[index]
        place_y, place_x = ((image, 2 * side + i, row, column) for i in (0, 1))
        y, x = row + offsets[place_y], column + offsets[place_x]
        y0, x0 = y.floor(), x.floor()
        # Of each of the four neighbours: weights (dy, dx), and their derivatives -1 or 1.
        for corner_y, dy, sign_y in ((y0, 1 - (y - y0), -1), (y0 + 1, y - y0, 1)):
            for corner_x, dx, sign_x in ((x0, 1 - (x - x0), -1), (x0 + 1, x - x0, 1)):
                inside = (corner_y >= 0) & (corner_y < H) & (corner_x >= 0) & (corner_x < W)
                rows, columns = corner_y.clamp(0, H - 1).long(), corner_x.clamp(0, W - 1).long()
                corner = (image, side, rows, columns)
                from_here = torch.where(inside, grad, 0.0)
                grad_boxes.index_put_(corner, from_here * dy * dx, accumulate=True)
                product = torch.where(inside, grad * boxes[corner], 0.0)
                grad_offsets[place_y] += sign_y * dx * product
                grad_offsets[place_x] += sign_x * dy * product
        return None, grad_boxes, grad_offsets
