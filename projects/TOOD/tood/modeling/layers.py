"""
The parts of the task-aligned head that no library has.

Shapes: N images, C channels, L stacked interactive convolutions, H x W locations of one level.
"""

from typing import Callable

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

__all__ = ["TaskDecomposition", "log_geometric_mean_of_sigmoids", "sample_each_side"]


class TaskDecomposition(nn.Module):
    """
    Layer attention and the 1x1 reduction behind it: from the features that both tasks share to
    the features of one task (Eq. 2, 3 and the first half of Eq. 4).

    Weighting the L layers and reducing them are both linear, so the weights are folded into the
    kernel of the reduction: one matrix product instead of a scaled copy of all L layers. The
    product itself is the head's, which does it for both tasks at once.
    """

    def __init__(self, *, conv_dim: int, num_convs: int, norm: str):
        """
        Args:
            conv_dim: channels C of each layer, and of the result. The attention's hidden width
                is C / 8, as in the released models.
            num_convs: number of layers L.
            norm: norm behind the reduction, a name that Detectron2's ``get_norm`` knows.
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
        self.norm = get_norm(norm, conv_dim)

        for layer in self.attention:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.001)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.reduction.weight, std=0.01)
        if self.reduction.bias is not None:
            nn.init.zeros_(self.reduction.bias)

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
            x: (N, C, H, W), the interactive features of all layers times :meth:`kernels`.

        Returns:
            (N, C, H, W), the features of the task.
        """
        if self.reduction.bias is not None:
            x = x + self.reduction.bias.to(x.dtype).view(1, -1, 1, 1)
        if self.norm is not None:
            x = self.norm(x)
        return F.relu(x)


def log_geometric_mean_of_sigmoids(a: Tensor, b: Tensor) -> Tensor:
    """
    ``log(sqrt(sigmoid(a) * sigmoid(b)))`` (the logarithm of Eq. 5), elementwise and broadcast.

    The plain form has a NaN gradient where the product underflows (fcjian/TOOD#11,
    open-mmlab/mmdetection#7151); a loss that starts from the logarithm has the right one.
    """
    return 0.5 * (F.logsigmoid(a) + F.logsigmoid(b))


def sample_each_side(
    boxes: Tensor, offsets: Tensor, deform_conv2d: Callable = deform_conv2d
) -> Tensor:
    """
    Read each side of a box at a place of its own (Eq. 6): bilinear, zero outside the map.

    Args:
        boxes: (N, 4, H, W), XYXY, any unit.
        offsets: (N, 8, H, W), the offset (dy, dx) of each of the four sides from the location,
            in locations of this level, not bounded.
        deform_conv2d: torchvision's, or an operator that does the same.

    Returns:
        (N, 4, H, W), XYXY in the unit of ``boxes``. Where the sampled sides cross (x1 > x2 or
        y1 > y2), the box of the location itself: GIoU of a crossed box is not a loss
        (open-mmlab/mmdetection#7567).
    """
    # A NaN offset would crash torchvision's operator on the CPU; the box it belongs to is NaN.
    offsets = torch.nan_to_num(offsets)
    # One group a side: each channel is sampled with its own offset and multiplied by one.
    sampled = deform_conv2d(boxes, offsets, weight=boxes.new_ones(4, 1, 1, 1))
    x1, y1, x2, y2 = sampled.unbind(dim=1)
    crossed = (x1 > x2) | (y1 > y2)
    return torch.where(crossed.unsqueeze(1), boxes, sampled)
