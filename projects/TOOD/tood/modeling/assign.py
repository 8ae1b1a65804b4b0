"""
Which location answers for which object: task alignment learning (TAL, Section 3.2) and ATSS.

Pure functions of one image. Shapes: M objects, R locations of all levels, K classes. Boxes are
XYXY pixels of the network's input. The time is that of a few matrices objects x locations, of
which only a part exists at any moment; what an object chose of a row is kept, (M, topk).
"""

import math
from typing import List, NamedTuple, Sequence, Tuple, Union

import torch
from torch import Tensor

__all__ = [
    "Assignment",
    "assign_atss",
    "assign_tal",
    "box_iou_of_pairs",
    "centerness",
    "locations_of_image",
]

# A location belongs to a box only if it is more than this many pixels inside of it.
INSIDE_MARGIN = 0.01
# Numbers in the largest matrix objects x locations that exists at a time; there are a few such.
MAX_MATRIX_ELEMENTS = 2**20


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
    columns = pred_boxes.t().contiguous().t()  # each coordinate in one piece
    chunks = [
        _most_aligned(pred_scores, columns, boxes, classes, topk, alpha, beta)
        for boxes, classes in zip(
            *(x.split(_objects_at_once(len(anchors))) for x in (gt_boxes, gt_classes))
        )
    ]
    locations, ious, metrics = (torch.cat(x) for x in zip(*chunks))
    chosen = (metrics > 0) & _inside(_centers(anchors)[locations], gt_boxes[:, None])

    gt_index = _one_object_each(locations, chosen, ious, len(anchors))
    matched = chosen & (gt_index[locations] == _arange_like(gt_boxes)[:, None])
    # t_hat: the largest target of an object is its largest IoU.
    metrics = metrics.masked_fill(~matched, 0)
    max_metrics = metrics.amax(dim=1, keepdim=True)
    max_ious = ious.masked_fill(~matched, 0).amax(dim=1, keepdim=True)
    targets = metrics / (max_metrics + 1e-7) * max_ious
    targets = _scatter_max(locations, targets, len(anchors), empty=0.0)
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
    points = _centers(anchors)
    chunks = gt_boxes.split(_objects_at_once(len(anchors)))
    locations = torch.cat([_nearest_of_each_level(points, level_sizes, b, topk) for b in chunks])

    ious = box_iou_of_pairs(gt_boxes[:, None], anchors[locations])
    thresholds = ious.mean(1, keepdim=True) + ious.std(1, keepdim=True)
    chosen = (ious >= thresholds) & _inside(points[locations], gt_boxes[:, None])
    gt_index = _one_object_each(locations, chosen, ious, len(anchors))
    positive = gt_index >= 0
    box_weight = centerness(points, gt_boxes[gt_index.clamp(min=0)])
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
) -> Tuple[Union[Tensor, slice], List[int]]:
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
        indices (R',) int64 into the R locations of the batch, in order, or a slice if they are all
        of them; and how many of them each level has.
    """
    padded = [
        math.ceil(s / max(size_divisibility, 1)) * max(size_divisibility, 1) for s in image_size
    ]
    own_sizes = [
        tuple(min(math.ceil(p / stride), size) for p, size in zip(padded, grid_size))
        for grid_size, stride in zip(grid_sizes, strides)
    ]
    level_sizes = [h * w for h, w in own_sizes]
    if own_sizes == [tuple(size) for size in grid_sizes]:
        return slice(None), level_sizes
    indices, start = [], 0
    for (h, w), (H, W) in zip(own_sizes, grid_sizes):
        level = torch.arange(start, start + H * W, device=device).view(H, W)
        indices.append(level[:h, :w].flatten())
        start += H * W
    return torch.cat(indices), level_sizes


def _background(anchors: Tensor) -> Assignment:
    zeros = anchors.new_zeros(len(anchors))
    return Assignment(torch.full_like(zeros, -1, dtype=torch.int64), zeros, zeros)


def _centers(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _arange_like(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (..., 2) lie inside boxes (..., 4)."""
    low, high = points - boxes[..., :2], boxes[..., 2:] - points
    return torch.minimum(low, high).amin(dim=-1) > INSIDE_MARGIN


def box_iou_of_pairs(a: Tensor, b: Tensor) -> Tensor:
    """
    IoU of boxes (..., 4), broadcast. The same as Detectron2's ``pairwise_iou``, which takes six
    times as long on a CPU, for its inner dimension of two.
    """
    ax1, ay1, ax2, ay2 = a.unbind(dim=-1)
    bx1, by1, bx2, by2 = b.unbind(dim=-1)
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    intersection = width.mul_(height)
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)).sub_(intersection)
    # Two boxes without area have an IoU of 0.
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def _objects_at_once(num_locations: int) -> int:
    """How many objects are held against all locations together, so that memory stays bounded."""
    return max(1, MAX_MATRIX_ELEMENTS // max(1, num_locations))


def _most_aligned(
    pred_scores: Tensor,
    pred_boxes: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    topk: int,
    alpha: float,
    beta: float,
) -> Tuple[Tensor, Tensor, Tensor]:
    """The best ``topk`` locations of each object, their IoUs and their metrics t; (M, topk)."""
    ious = box_iou_of_pairs(gt_boxes[:, None], pred_boxes)
    # Eq. 9. Of u^6 as (u^2)^3, PyTorch makes products, which are quicker than its power.
    metrics = ious.square().pow_(beta / 2).mul_(pred_scores.t()[gt_classes] ** alpha)
    best = metrics.topk(min(topk, metrics.shape[1]), dim=1)
    return best.indices, ious.gather(1, best.indices), best.values


def _nearest_of_each_level(
    points: Tensor, level_sizes: Sequence[int], gt_boxes: Tensor, topk: int
) -> Tensor:
    """(M, about topk * levels) int64, the locations of each level nearest to each object."""
    x, y = points.unbind(dim=1)
    gt_x, gt_y = _centers(gt_boxes)[:, :, None].unbind(dim=1)
    distances = ((x - gt_x).square_() + (y - gt_y).square_()).sqrt_()
    nearest, start = [], 0
    for distance, size in zip(distances.split(list(level_sizes), dim=1), level_sizes):
        nearest.append(distance.topk(min(topk, size), dim=1, largest=False).indices + start)
        start += size
    return torch.cat(nearest, dim=1)


def _one_object_each(locations: Tensor, chosen: Tensor, ious: Tensor, num_locations: int) -> Tensor:
    """
    Give a location that several objects chose to the one of them with the highest IoU, and of
    equals to the first.

    Args:
        locations: (M, X) int64, each at most once in a row.
        chosen: (M, X) bool, which of them the object really chose.
        ious: (M, X).

    Returns:
        (R,) int64, the object of each location, -1 where nobody chose.
    """
    ious = ious.masked_fill(~chosen, -1)
    highest = _scatter_max(locations, ious, num_locations, empty=-1.0)
    wins = chosen & (ious == highest[locations])
    # The first is the highest of the negated indices.
    M = len(ious)
    rank = (M - _arange_like(ious))[:, None] * wins
    rank = _scatter_max(locations, rank, num_locations, empty=0)
    return torch.where(rank > 0, M - rank, -1)


def _scatter_max(locations: Tensor, values: Tensor, num_locations: int, *, empty: float) -> Tensor:
    """(R,), the largest of a location's values and ``empty``."""
    result = values.new_full((num_locations,), empty)
    return result.scatter_reduce_(0, locations.flatten(), values.flatten(), "amax")
