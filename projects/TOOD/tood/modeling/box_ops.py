"""Geometry of boxes, elementwise and broadcast. Boxes are (..., 4), XYXY, points (..., 2), x and y,
in the same pixels.
"""

import torch
from torch import Tensor

# Numbers in the largest matrix objects x locations that exists at a time; there are a few such.
MAX_MATRIX_ELEMENTS = 2**20


def objects_at_once(num_locations: int) -> int:
    """Number of objects compared with all locations at once, so that memory stays bounded."""
    return max(1, MAX_MATRIX_ELEMENTS // max(1, num_locations))


def box_centers(boxes: Tensor) -> Tensor:
    """Return the centres (..., 2)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def inside_boxes(points: Tensor, boxes: Tensor, margin: float = 0.0) -> Tensor:
    """Return (...) bool, whether points lie more than ``margin`` pixels inside boxes."""
    low, high = points - boxes[..., :2], boxes[..., 2:] - points
    return torch.minimum(low, high).amin(dim=-1) > margin


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoUs (...). The same as Detectron2's ``pairwise_iou``, which takes six times as
    long on a CPU because of its inner dimension of two. Not differentiable: it works in place.
    """
    ax1, ay1, ax2, ay2 = a.unbind(dim=-1)
    bx1, by1, bx2, by2 = b.unbind(dim=-1)
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    intersection = width.mul_(height)
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)).sub_(intersection)
    # Two boxes without area have an IoU of 0.
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def paired_giou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the generalized IoUs (...) in [-1, 1] (arXiv 1902.09630). The same as in torchvision's
    and fvcore's losses, both of which make a GPU wait for the CPU; fvcore's also stops at NaN with
    an assertion about crossed boxes.

    Args:
        eps: keeps boxes without area from dividing by zero.
    """
    ax1, ay1, ax2, ay2 = a.unbind(dim=-1)
    bx1, by1, bx2, by2 = b.unbind(dim=-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    hull_width = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    hull_height = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    hull = hull_width * hull_height
    return intersection / (union + eps) - (hull - union) / (hull + eps)


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """Return (...), 1 at the centre of a box and 0 at its border (arXiv 1904.01355) or outside."""
    low, high = (points - boxes[..., :2]).clamp(min=0), (boxes[..., 2:] - points).clamp(min=0)
    ratios = torch.minimum(low, high) / torch.maximum(low, high).clamp(min=1e-12)
    return ratios.prod(dim=-1).sqrt()
