"""The parts of the task-aligned head that no library has.

Task decompositions and alignment branches begin with a 1x1 convolution of the interactive features
of all layers. Each gives its ``kernels``, one :func:`read_layers` multiplies for all of them, and
each takes its product from there.

Shapes: N images, C channels, L stacked interactive convolutions, H x W locations of one level.
"""

import functools
from typing import Callable, Sequence, Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import cat
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from tood.modeling.cpu import (
    SampleSides,
    convolve,
    has_quick_convs,
    make_norm,
    multiply,
    runs_now_on_cpu,
)


class TaskDecomposition(nn.Module):
    """Layer attention and the 1x1 reduction after it: from the features that both tasks share to
    the features of one task (Eq. 2, 3 and the first half of Eq. 4).

    Weighting the L layers and reducing them are both linear, so the weights are folded into the
    kernel of the reduction: one matrix product instead of a scaled copy of all L layers.
    """

    def __init__(self, *, conv_dim: int, num_convs: int, norm: str):
        """
        Args:
            conv_dim: channels C of each layer, and of the result. The attention's hidden width
                is C / 8, as in the released models.
            num_convs: number of layers L.
            norm: norm after the reduction, a name that Detectron2's ``get_norm`` knows.
        """
        super().__init__()
        self.conv_dim = conv_dim
        self.num_convs = num_convs
        self.attention = nn.Sequential(
            nn.Conv2d(conv_dim * num_convs, conv_dim // 8, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(conv_dim // 8, num_convs, 1),
            nn.Sigmoid(),
        )
        self.reduction = nn.Conv2d(conv_dim * num_convs, conv_dim, 1, bias=norm == "")
        self.norm = make_norm(norm, conv_dim)

        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01 if layer is self.reduction else 0.001)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def kernels(self, pooled_features: Tensor) -> Tensor:
        """
        Args:
            pooled_features: (N, L * C, 1, 1), the average of the interactive features of all
                layers over the locations.

        Returns:
            (N, C, L * C), the kernel of the reduction for each image, layer attention included.
        """
        N, C, L = pooled_features.shape[0], self.conv_dim, self.num_convs
        layer_weights = self.attention(pooled_features).view(N, 1, L, 1)
        return (layer_weights * self.reduction.weight.view(1, C, L, C)).view(N, C, L * C)

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (N, C, H, W), result of :func:`read_layers` for :meth:`kernels`.

        Returns:
            (N, C, H, W), the features of the task.
        """
        if self.reduction.bias is not None:
            x = x + self.reduction.bias.to(x.dtype).view(1, -1, 1, 1)
        if self.norm is not None:
            x = self.norm(x)
        return F.relu(x)


class AlignmentBranch(nn.Sequential):
    """The branch from features to the map M (Eq. 7) or to the offsets O (Eq. 8)."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, hidden_channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_channels, out_channels, 3, padding=1),
        )

    def kernels(self, pooled_features: Tensor) -> Tensor:
        """Return (N, hidden, L * C), the kernel of the 1x1 convolution, the same for each image."""
        return self[0].weight.flatten(1).expand(pooled_features.shape[0], -1, -1)

    def from_hidden(self, x: Tensor) -> Tensor:
        """Return (N, out, H, W) from (N, hidden, H, W), a result of :func:`read_layers`."""
        x = x + self[0].bias.to(x.dtype).view(1, -1, 1, 1)
        return self[2](self[1](x))


def average_locations(x: Tensor) -> Tensor:
    """Return the mean (N, C) of (N, C, H, W). Its gradient is never as large as the map, as that of
    PyTorch's ``mean`` is, except in float16, in which a sum may overflow.
    """
    x = x.flatten(2)
    if x.requires_grad and x.dtype != torch.float16:
        return x.sum(dim=2) / x.shape[2]
    return x.mean(dim=2)


def read_layers(layers: Sequence[Tensor], kernels: Sequence[Tensor]) -> Tuple[Tensor, ...]:
    """Apply several 1x1 convolutions to the interactive features of all layers, by one product per
    layer: the L maps are never copied into one.

    Args:
        layers: L maps (N, C, H, W).
        kernels: (N, width, L * C) each.

    Returns:
        for each kernel, (N, width, H, W).
    """
    widths = [kernel.shape[1] for kernel in kernels]
    joint_kernels = cat(list(kernels), dim=1).split(layers[0].shape[1], dim=2)
    read = convolve if has_quick_convs(layers[0]) else multiply
    return read(layers, joint_kernels).split(widths, dim=1)


def average_log_sigmoids(a: Tensor, b: Tensor) -> Tensor:
    """Compute ``log(sqrt(sigmoid(a) * sigmoid(b)))``, the logarithm of Eq. 5, elementwise.

    The plain form has a NaN gradient if the product underflows (fcjian/TOOD#11,
    open-mmlab/mmdetection#7151); a loss that starts from the logarithm has a correct one.
    """
    return 0.5 * (F.logsigmoid(a) + F.logsigmoid(b))


def sample_each_side(
    boxes: Tensor, offsets: Tensor, deform_conv2d: Callable = deform_conv2d
) -> Tensor:
    """Read each side of a box at its own offset (Eq. 6): bilinear, zero outside the map.

    Args:
        boxes: (N, 4, H, W), XYXY, any unit.
        offsets: (N, 8, H, W), the offset (dy, dx) of each of the four sides from the location,
            in locations of this level, not bounded.
        deform_conv2d: torchvision's, or an operator that does the same.

    Returns:
        (N, 4, H, W), XYXY in the unit of ``boxes``. If the sampled sides cross (x1 > x2 or
        y1 > y2), the box of the location itself: GIoU of a crossed box is not a loss
        (open-mmlab/mmdetection#7567).
    """
    # A NaN offset would crash torchvision's operator on the CPU; the box it belongs to is NaN.
    offsets = torch.nan_to_num(offsets)
    # One group per side: each channel is sampled with its own offset and multiplied by one.
    sample = functools.partial(deform_conv2d, weight=boxes.new_ones(4, 1, 1, 1))
    if runs_now_on_cpu(boxes) and (boxes.requires_grad or offsets.requires_grad):
        sampled = SampleSides.apply(sample, boxes, offsets)
    else:
        sampled = sample(boxes, offsets)
    x1, y1, x2, y2 = sampled.unbind(dim=1)
    crossed = (x1 > x2) | (y1 > y2)
    return torch.where(crossed.unsqueeze(1), boxes, sampled)
