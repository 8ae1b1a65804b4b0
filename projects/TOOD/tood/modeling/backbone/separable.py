"""Depthwise separable convolutions, for CPUs: ``MODEL.TOOD.CONV_TYPE`` "depthwise"."""

from typing import Optional

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

CONV_TYPES = ("plain", "depthwise")
KERNEL_SIZE = 5  # of the depthwise convolutions
NOISE = 0.02  # standard deviation of their first weights around the identity


class Float32Conv(nn.Conv2d):
    """A convolution in float32 also under a CPU's autocast, for depthwise ones, whose bfloat16 is
    slower there. Also a mixin for other kinds of ``nn.Conv2d``.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))


class DepthwiseConv2d(Float32Conv):
    """5 x 5 convolution of each channel, without bias. It begins close to the identity: a random
    kernel blurs and shifts its channel, and small objects are then found late
    (docs/results/small_data.md).
    """

    def __init__(self, channels: int, stride: int = 1):
        padding = KERNEL_SIZE // 2
        super().__init__(
            channels, channels, KERNEL_SIZE, stride, padding, groups=channels, bias=False
        )

    def reset_parameters(self) -> None:
        center = KERNEL_SIZE // 2
        nn.init.normal_(self.weight, std=NOISE)
        with torch.no_grad():
            self.weight[:, :, center, center] += 1


class SeparableConv2d(Conv2d):
    """:class:`DepthwiseConv2d`, then 1x1 convolution, and Detectron2's norm and activation if
    there are any. ``weight`` and ``bias`` are those of the 1x1 convolution.

    Nothing is between the two, as in Xception. A group norm in between cannot be folded, and at
    inference it reads and writes the map once more, as the depthwise convolution does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        bias: bool = True,
        norm: Optional[nn.Module] = None,
    ):
        super().__init__(in_channels, out_channels, 1, bias=bias, norm=norm)
        self.depthwise = DepthwiseConv2d(in_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride)."""
        return super().forward(self.depthwise(x))


def make_conv(
    conv_type: str, in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True
) -> nn.Conv2d:
    """Return a 3x3 convolution for "plain", a :class:`SeparableConv2d` for "depthwise".

    Raises:
        ValueError: for another type.
    """
    check_conv_type(conv_type)
    if conv_type == "depthwise":
        return SeparableConv2d(in_channels, out_channels, stride=stride, bias=bias)
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)


def check_conv_type(conv_type: str) -> None:
    """Raise ValueError for a type that is not in ``CONV_TYPES``."""
    if conv_type not in CONV_TYPES:
        raise ValueError(
            f"MODEL.TOOD.CONV_TYPE is {conv_type!r}; it must be one of {', '.join(CONV_TYPES)}."
        )
