"""Alignment of classification and localization (Table 6 of the paper; docs/alignment.md defines
its terms). Pure functions of one image.

Shapes: M objects, R locations (or anchors) of all levels, K classes, D detections. Boxes are XYXY,
all in the same pixels.
"""

from typing import NamedTuple, Tuple

import torch
from torch import Tensor

from tood.modeling.box_ops import inside_boxes, objects_at_once, paired_iou

# Number of predictions per object for the correlation, and for the mean IoU.
TOP_CORRELATED = 50
TOP_LOCALIZED = 10
# A detection with an IoU in between, both ends excluded, is an error; with a larger one, correct.
ERROR_IOU, CORRECT_IOU = 0.1, 0.5


class ObjectPredictions(NamedTuple):
    """The most confident predictions of each object, sorted by descending score."""

    scores: Tensor  # (M, T) for the class of the object
    ious: Tensor  # (M, T) of their boxes with the object's
    locations: Tensor  # (M, T) int64
    valid: Tensor  # (M, T) bool, False beyond the last prediction of an object


class InstanceAlignment(NamedTuple):
    """Metrics of each object; NaN if not defined."""

    correlation: Tensor  # (M,) rank correlation of score and IoU, top 50
    mean_iou: Tensor  # (M,) top 10


def compute_alignment(top: ObjectPredictions) -> InstanceAlignment:
    """
    Args:
        top: the ``TOP_CORRELATED`` most confident predictions of each object.
    """
    correlation = rank_correlation(top.scores, top.ious, top.valid)
    best = top.valid[:, :TOP_LOCALIZED]
    sums = torch.where(best, top.ious[:, :TOP_LOCALIZED], 0.0).sum(dim=1)
    return InstanceAlignment(correlation, sums / best.sum(dim=1))


@torch.no_grad()
def select_predictions(
    pred_scores: Tensor,
    pred_boxes: Tensor,
    points: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    top: int,
) -> ObjectPredictions:
    """Select the predictions of each object: those whose own location lies inside of its box,
    scored by its class. Among equal scores, the first location comes first.

    Args:
        pred_scores: (R, K), probabilities, before any threshold or NMS.
        pred_boxes: (R, 4).
        points: (R, 2), x and y of the locations.
        gt_boxes, gt_classes: (M, 4), (M,) int64.
        top: largest number of predictions of an object.
    """
    top = min(top, len(points))
    at_once = objects_at_once(len(points))
    chunks = []
    for boxes, classes in zip(gt_boxes.split(at_once), gt_classes.split(at_once)):
        inside = inside_boxes(points, boxes[:, None])
        scores = pred_scores.t()[classes].masked_fill(~inside, -1.0)
        scores, locations = (x[:, :top] for x in scores.sort(dim=1, descending=True, stable=True))
        ious = paired_iou(boxes[:, None], pred_boxes[locations])
        chunks.append(ObjectPredictions(scores, ious, locations, scores >= 0))
    if not chunks:
        empty = pred_scores.new_zeros(0, top)
        return ObjectPredictions(empty, empty, empty.long(), empty.bool())
    return ObjectPredictions(*(torch.cat(x) for x in zip(*chunks)))


def rank_correlation(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """Compute Pearson's correlation of the rankings of two values, which is Spearman's rho; ties
    share the mean of their ranks.

    Args:
        a, b: (M, T).
        valid: (M, T) bool, which of them to rank.

    Returns:
        (M,), NaN for rows of fewer than two values, or if all ranks of one value are equal.
    """
    a, b = (_centered_ranks(x, valid) for x in (a, b))
    norms = a.square().sum(dim=1) * b.square().sum(dim=1)
    return torch.where(norms > 0, (a * b).sum(dim=1) / norms.sqrt(), float("nan"))


def _centered_ranks(x: Tensor, valid: Tensor) -> Tensor:
    """Return ranks minus their mean, 0 if not valid; in float64, so that their sums are exact."""
    below = (x[:, None, :] < x[:, :, None]).double() + 0.5 * (x[:, None, :] == x[:, :, None])
    ranks = (below * valid[:, None, :]).sum(dim=2) * valid
    counts = valid.sum(dim=1, keepdim=True).clamp(min=1)
    return (ranks - ranks.sum(dim=1, keepdim=True) / counts) * valid


@torch.no_grad()
def count_detections(
    boxes: Tensor, classes: Tensor, gt_boxes: Tensor, gt_classes: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:
    """Count the detections of an image, after NMS, per object. A detection is matched to the object
    of its class with the largest IoU; ties go to the first.

    Args:
        boxes, classes: (D, 4), (D,) int64, of the detections.
        gt_boxes, gt_classes: (M, 4), (M,) int64.

    Returns:
        (M,) int64 each: correct, 1 if a detection has an IoU of at least 0.5; redundant, the
        further ones of at least 0.5; error, those between 0.1 and 0.5.
    """
    M = len(gt_boxes)
    counts = gt_classes.new_zeros(3, M)
    if M == 0 or len(boxes) == 0:
        return tuple(counts)
    ious = paired_iou(boxes[:, None], gt_boxes)
    ious = ious.masked_fill(classes[:, None] != gt_classes, -1.0)
    ious, matched = ious.max(dim=1)
    right = torch.bincount(matched[ious >= CORRECT_IOU], minlength=M)
    errors = torch.bincount(matched[(ious > ERROR_IOU) & (ious < CORRECT_IOU)], minlength=M)
    return right.clamp(max=1), (right - 1).clamp(min=0), errors
