"""Group norms whose gradients are quick in half precision on a CPU.

PyTorch's takes 25 times as long for channels-last maps in bfloat16 as for plain ones
(docs/results/performance.md), and convolutions make their maps channels-last.
"""

from typing import Optional

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def make_norm(name: str, channels: int) -> Optional[nn.Module]:
    """Return Detectron2's norm of a name; a group norm is a :class:`GroupNorm`."""
    norm = get_norm(name, channels)
    if type(norm) is nn.GroupNorm:
        norm.__class__ = GroupNorm
    return norm


class GroupNorm(nn.GroupNorm):
    """PyTorch's, with the same results and gradients, of copies in plain memory order where that
    is quicker.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        slow = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
        if slow and self.affine and torch.is_grad_enabled():
            return _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        N, C, H, W = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, N, C, H * W, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, mean, rstd = ctx.saved_tensors
        N, C, H, W = x.shape
        grads = torch.ops.aten.native_group_norm_backward(
            *(grad.contiguous(), x.contiguous(), mean, rstd, weight),
            *(N, C, H * W, ctx.groups, [True] * 3),
        )
        return (*grads, None, None)
