"""Modulated deformable convolution (DCNv2, arXiv 1811.11168) that works everywhere: Detectron2's
compiled layer on CUDA if it is available, torchvision's operator otherwise, with the same names of
parameters and the same results. Detectron2's own layer needs its extension and CUDA.
"""

import torch
import torchvision
from detectron2.layers import ModulatedDeformConv
from detectron2.modeling.backbone import resnet
from detectron2.modeling.backbone.resnet import DeformBottleneckBlock
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from tood.modeling.backbone.fixed_norm import fold_norm, is_fixed

try:
    from detectron2 import _C

    HAS_EXTENSION = _C.has_cuda()  # it may be compiled for CPUs alone
except ImportError:
    HAS_EXTENSION = False


class DeformConvParameters(nn.Module):
    """Parameters of Detectron2's ``ModulatedDeformConv``, with its arguments and first values."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        deformable_groups=1,
        bias=True,
        norm=None,
        activation=None,
    ):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.deformable_groups = groups, deformable_groups
        self.norm, self.activation = norm, activation
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None


# Without its extension, Detectron2's main branch has a class that cannot be built in its place.
if not issubclass(ModulatedDeformConv, nn.Module):
    ModulatedDeformConv = resnet.ModulatedDeformConv = DeformConvParameters


class PortableDeformConv(ModulatedDeformConv):
    """Detectron2's ``ModulatedDeformConv``, with torchvision's operator if its own cannot run."""

    # Replaced in an export by an operator that its target supports.
    deform_conv2d = staticmethod(torchvision.ops.deform_conv2d)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            x: (N, C, H, W).
            offset: (N, 2 * groups * kernel size, H', W'), (dy, dx) of each tap, in pixels of x.
            mask: (N, groups * kernel size, H', W'), in [0, 1].

        Returns:
            (N, C', H', W').
        """
        # The compiled layer takes no mixed types, and autocast does not know it.
        if HAS_EXTENSION and x.is_cuda and not torch.is_autocast_enabled():
            return super().forward(x, offset, mask)
        fold = not self.training and is_fixed(self.norm)
        weight, bias = fold_norm(self, self.norm) if fold else (self.weight, self.bias)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, enabled=False):
            # At least float32: the operator has no bfloat16, and offsets are pixels.
            dtype = torch.promote_types(weight.dtype, torch.float32)
            x = self.deform_conv2d(
                x.to(dtype),
                torch.nan_to_num(offset.to(dtype)),  # a NaN would crash it on the CPU
                weight.to(dtype),
                None if bias is None else bias.to(dtype),
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                mask=mask.to(dtype),
            ).to(weight.dtype)
        if channels_last:  # the operator's own output never is
            x = x.contiguous(memory_format=torch.channels_last)
        if self.norm is not None and not fold:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


class DeformConvPack(PortableDeformConv):
    """A 3x3 deformable convolution that predicts its offsets and masks by another convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, num_groups: int, bias: bool):
        """
        Args:
            num_groups: deformable groups; each has its own offsets and masks.
        """
        super().__init__(
            in_channels,
            out_channels,
            kernel_size=3,
            padding=1,
            deformable_groups=num_groups,
            bias=bias,
        )
        self.conv_offset = nn.Conv2d(in_channels, 27 * num_groups, 3, padding=1)
        for parameter in self.conv_offset.parameters():  # starts as a plain convolution, halved
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # it makes the other two
        """(N, C, H, W) to (N, C', H, W)."""
        taps = 9 * self.deformable_groups
        offset, mask = self.conv_offset(x).split([2 * taps, taps], dim=1)
        return super().forward(x, offset, mask.sigmoid())


def make_deform_convs_portable(backbone: nn.Module) -> None:
    """Replace the deformable convolutions of a Detectron2 ResNet, parameters and all, in place."""
    for block in backbone.modules():
        if isinstance(block, DeformBottleneckBlock) and block.deform_modulated:
            block.conv2 = _portable(block.conv2)


def _portable(conv: ModulatedDeformConv) -> PortableDeformConv:
    portable = PortableDeformConv(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        deformable_groups=conv.deformable_groups,
        bias=conv.bias is not None,
        norm=conv.norm,
        activation=conv.activation,
    )
    portable.weight, portable.bias = conv.weight, conv.bias
    return portable
