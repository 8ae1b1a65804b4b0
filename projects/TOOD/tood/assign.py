"""
Which location answers for which object: task alignment learning (TAL, Section 3.2) and ATSS.

Pure functions of one image. Shapes: M objects, R locations of all levels, K classes. Boxes are
XYXY pixels of the network's input. Everything between is a matrix objects x locations, (M, R).
"""

import math
from typing import List, NamedTuple, Sequence, Tuple

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

__all__ = ["Assignment", "assign_atss", "assign_tal", "centerness", "locations_of_image"]

# A location belongs to a box only if it is more than this many pixels inside of it.
INSIDE_MARGIN = 0.01


class Assignment(NamedTuple):
    """What each location has to learn."""

    gt_index: Tensor  # (R,) int64, index of its object, -1 for background
    cls_target: Tensor  # (R,) the score to reach for the class of its object, 0 for background
    box_weight: Tensor  # (R,) weight in the box loss, 0 for background


@torch.no_grad()
def assign_tal(
    pred_scores: Tensor,
    pred_boxes: Tensor,
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    *,
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Assignment:
    """
    Task alignment learning: the locations that score and localize an object best, together, are
    its positives; their targets grow with the alignment metric.

    Top-k comes first, over all locations, and only then those outside of the object are dropped,
    as in the released code: an object may keep fewer than ``topk`` positives, or none.

    Args:
        pred_scores: (R, K), aligned probabilities.
        pred_boxes: (R, 4), aligned boxes.
        anchors: (R, 4), whose centres are the locations.
        gt_boxes: (M, 4).
        gt_classes: (M,) int64.
        topk: candidates of an object (m).
        alpha, beta: exponents of the score and of the IoU (Eq. 9).
    """
    if len(gt_boxes) == 0:
        return _background(anchors)
    ious = pairwise_iou(Boxes(gt_boxes), Boxes(pred_boxes))
    metrics = pred_scores[:, gt_classes].t() ** alpha * ious**beta  # Eq. 9

    candidates = torch.zeros_like(metrics, dtype=torch.bool)
    topk_locations = metrics.topk(min(topk, metrics.shape[1]), dim=1).indices
    candidates.scatter_(1, topk_locations, True)
    candidates &= (metrics > 0) & _centers_inside(anchors, gt_boxes)

    gt_index, matched = _one_object_each(candidates, ious)
    # t_hat: the largest target of an object is its largest IoU.
    metrics = metrics.masked_fill(~matched, 0)
    max_metrics = metrics.amax(dim=1, keepdim=True)
    max_ious = ious.masked_fill(~matched, 0).amax(dim=1, keepdim=True)
    targets = (metrics / (max_metrics + 1e-7) * max_ious).amax(dim=0)
    return Assignment(gt_index, targets, targets)


@torch.no_grad()
def assign_atss(
    anchors: Tensor,
    level_sizes: Sequence[int],
    gt_boxes: Tensor,
    *,
    topk: int = 9,
) -> Assignment:
    """
    ATSS (arXiv 1912.02424), the warm-up of the released schedule: of the anchors nearest to an
    object on each level, those whose IoU is at least the mean plus the standard deviation of all
    these candidates. Positives learn a score of 1, and boxes weighted by their centerness.

    Args:
        anchors: (R, 4).
        level_sizes: locations of each level; their sum is R.
        gt_boxes: (M, 4).
        topk: candidates of an object on each level.
    """
    if len(gt_boxes) == 0:
        return _background(anchors)
    ious = pairwise_iou(Boxes(gt_boxes), Boxes(anchors))
    nearest = _nearest_of_each_level(anchors, level_sizes, gt_boxes, topk)

    candidate_ious = ious.gather(1, nearest)
    thresholds = candidate_ious.mean(1, keepdim=True) + candidate_ious.std(1, keepdim=True)
    candidates = torch.zeros_like(ious, dtype=torch.bool)
    candidates.scatter_(1, nearest, candidate_ious >= thresholds)
    candidates &= _centers_inside(anchors, gt_boxes)

    gt_index, _ = _one_object_each(candidates, ious)
    positive = gt_index >= 0
    box_weight = centerness(_centers(anchors), gt_boxes[gt_index.clamp(min=0)])
    return Assignment(gt_index, positive.to(ious.dtype), torch.where(positive, box_weight, 0.0))


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """
    Args:
        points: (R, 2), x and y.
        boxes: (R, 4).

    Returns:
        (R,), 1 at the centre of the box and 0 at its border (FCOS, arXiv 1904.01355); 0 outside.
    """
    low, high = (points - boxes[:, :2]).clamp(min=0), (boxes[:, 2:] - points).clamp(min=0)
    ratios = torch.minimum(low, high) / torch.maximum(low, high).clamp(min=1e-12)
    return ratios.prod(dim=1).sqrt()


def locations_of_image(
    image_size: Tuple[int, int],
    grid_sizes: Sequence[Tuple[int, int]],
    strides: Sequence[int],
    size_divisibility: int,
    device: torch.device,
) -> Tuple[Tensor, List[int]]:
    """
    The locations that an image has when it is not padded further than its own size asks for.
    In a batch of different sizes the others have nothing to do with it, and stay out of its
    assignment and its loss: what an image learns does not depend on its neighbours.

    Args:
        image_size: height and width of the image before padding, in pixels.
        grid_sizes: (H, W) of each level of the batch.
        strides: of each level, in pixels.
        size_divisibility: an image alone is padded to a multiple of this.

    Returns:
        indices (R',) int64 into the R locations of the batch, in order, and how many of them
        each level has.
    """
    padded = [
        math.ceil(s / max(size_divisibility, 1)) * max(size_divisibility, 1) for s in image_size
    ]
    indices, level_sizes, start = [], [], 0
    for (H, W), stride in zip(grid_sizes, strides):
        h, w = (min(math.ceil(p / stride), size) for p, size in zip(padded, (H, W)))
        level = torch.arange(start, start + H * W, device=device).view(H, W)
        indices.append(level[:h, :w].flatten())
        level_sizes.append(h * w)
        start += H * W
    return torch.cat(indices), level_sizes


def _background(anchors: Tensor) -> Assignment:
    zeros = anchors.new_zeros(len(anchors))
    return Assignment(torch.full_like(zeros, -1, dtype=torch.int64), zeros, zeros)


def _centers(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _centers_inside(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """(M, R), whether the centre of an anchor lies inside an object."""
    x, y = _centers(anchors).unbind(dim=1)
    x1, y1, x2, y2 = gt_boxes[:, :, None].unbind(dim=1)
    nearest_side = torch.minimum(torch.minimum(x - x1, x2 - x), torch.minimum(y - y1, y2 - y))
    return nearest_side > INSIDE_MARGIN


def _nearest_of_each_level(
    anchors: Tensor, level_sizes: Sequence[int], gt_boxes: Tensor, topk: int
) -> Tensor:
    """(M, about topk * levels) int64, the anchors of each level nearest to each object."""
    offsets = _centers(anchors)[None] - _centers(gt_boxes)[:, None]
    distances = offsets.pow(2).sum(-1).sqrt()
    nearest, start = [], 0
    for distance, size in zip(distances.split(list(level_sizes), dim=1), level_sizes):
        nearest.append(distance.topk(min(topk, size), dim=1, largest=False).indices + start)
        start += size
    return torch.cat(nearest, dim=1)


def _one_object_each(candidates: Tensor, ious: Tensor) -> Tuple[Tensor, Tensor]:
    """
    Give a location that several objects chose to the one of them with the highest IoU.

    Args:
        candidates: (M, R) bool.
        ious: (M, R).

    Returns:
        gt_index (R,), -1 where nobody chose, and the same as a mask (M, R).
    """
    best = ious.masked_fill(~candidates, -1).argmax(dim=0)
    gt_index = torch.where(candidates.any(dim=0), best, -1)
    matched = gt_index == torch.arange(len(ious), device=ious.device)[:, None]
    return gt_index, matched
