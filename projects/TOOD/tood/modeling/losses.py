"""The losses: functions that neither pick elements nor wait for a GPU, and the mean over processes
that their sums are divided by.

Shapes: N images, R locations of all levels, K classes. Boxes are XYXY pixels of the network's
input.
"""

from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor

from tood.modeling.box_ops import paired_giou
from tood.modeling.dense_head import DensePredictions
from tood.modeling.targets import Targets

# Logarithm of a score that counts as 0.
LOG_ZERO = -100.0
# 1 - p of a score that float32 cannot tell from 1. Keeps log(1 - p) and its gradient finite.
SMALLEST_COMPLEMENT = 1e-30


def aligned_focal_loss(
    pred_log_scores: Tensor,
    targets: Optional[Tensor] = None,
    *,
    gamma: float = 2.0,
    alpha: Optional[float] = None,
) -> Tensor:
    """``|target - p|^gamma * BCE(p, target)`` (Eq. 10, 11), elementwise.

    On targets of 0 and 1 it *is* the focal loss (arXiv 1708.02002), so the warm-up needs no loss
    of its own, only the weight ``alpha`` of positives and ``1 - alpha`` of negatives.

    It starts from log p because p itself cannot tell small probabilities from 0, nor large ones
    from 1; and unlike ``torch.nn.functional.binary_cross_entropy``, it propagates NaN instead of
    stopping a CUDA device.

    Args:
        pred_log_scores: log p, any shape, float32.
        targets: target probabilities of the same shape, or None for background: 0 everywhere, in
            half the time.
        gamma: focusing exponent.
        alpha: weight of positives, or None for no weights; for targets of 0 and 1 only.

    Returns:
        the loss of each element.
    """
    log_complements = torch.log(-torch.expm1(pred_log_scores.clamp(max=-SMALLEST_COMPLEMENT)))
    if targets is None:
        loss = torch.exp(gamma * pred_log_scores) * -log_complements
        return loss if alpha is None else (1 - alpha) * loss
    bce = -targets * pred_log_scores - (1 - targets) * log_complements
    loss = (targets - pred_log_scores.exp()).abs() ** gamma * bce
    if alpha is not None:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss


def giou_loss(pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Return ``1 - GIoU`` (...) of boxes (..., 4), in [0, 2]."""
    return 1 - paired_giou(pred_boxes, gt_boxes)


def loss_sums(
    predictions: DensePredictions,
    targets: Targets,
    *,
    gamma: float,
    alpha: Optional[float],
    cls_weight: float,
    box_reg_weight: float,
) -> Tuple[Dict[str, Tensor], Tensor]:
    """
    Args:
        gamma, alpha: of :func:`aligned_focal_loss`.

    Returns:
        the weighted sum of each loss over the batch, and for each the sum of its targets' weights,
        as one tensor.
    """
    loss_cls = classification_loss(predictions.pred_log_scores, targets, gamma=gamma, alpha=alpha)
    sums = {
        "loss_cls": cls_weight * loss_cls,
        "loss_box_reg": box_reg_weight * box_loss(predictions.pred_boxes, targets),
    }
    weights = [targets.cls_targets.sum(), targets.box_weights.sum()]
    if predictions.centerness_logits is not None:
        sums["loss_centerness"] = centerness_loss(predictions.centerness_logits, targets)
        weights.append(weights[0])  # in ATSS, the number of positives
    return sums, torch.stack(weights)


def classification_loss(
    pred_log_scores: Tensor, targets: Targets, *, gamma: float, alpha: Optional[float]
) -> Tensor:
    """Sum :func:`aligned_focal_loss` over the valid locations and all classes.

    Nearly every score is background and needs only half of the loss; each positive's score for the
    class of its object is masked out of it and has the whole loss.

    Args:
        pred_log_scores: (N, R, K).
    """
    options = dict(gamma=gamma, alpha=alpha)
    classes = targets.gt_classes.unsqueeze(2)
    of_objects = pred_log_scores.gather(2, classes)
    masked = torch.where(targets.positive.unsqueeze(2), LOG_ZERO, of_objects)
    background = aligned_focal_loss(pred_log_scores.scatter(2, classes, masked), **options)
    objects = aligned_focal_loss(of_objects.squeeze(2), targets.cls_targets, **options)
    # Not a product with a mask: inf * 0 is NaN.
    background = torch.where(targets.valid, background.sum(dim=2), 0.0)
    return background.sum() + torch.where(targets.positive, objects, 0.0).sum()


def box_loss(pred_boxes: Tensor, targets: Targets) -> Tensor:
    """Sum the weighted GIoU losses of the positives; ``pred_boxes`` is (N, R, 4)."""
    # Over all locations, for picking the positives would make a GPU wait for the CPU.
    pred_boxes = torch.where(targets.positive.unsqueeze(2), pred_boxes, targets.gt_boxes)
    return (giou_loss(pred_boxes, targets.gt_boxes) * targets.box_weights).sum()


def centerness_loss(centerness_logits: Tensor, targets: Targets) -> Tensor:
    """Sum the binary cross-entropy (N, R) of the positives, whose centerness is their box weight in
    ATSS.
    """
    losses = F.binary_cross_entropy_with_logits(
        centerness_logits, targets.box_weights, reduction="none"
    )
    return torch.where(targets.positive, losses, 0.0).sum()


def mean_over_processes(x: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes of a training: itself where there is one."""
    world_size = comm.get_world_size()
    if world_size == 1:
        return x
    x = x / world_size
    torch.distributed.all_reduce(x)
    return x
