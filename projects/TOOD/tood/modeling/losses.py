"""The losses: functions that neither pick elements nor wait for a GPU, and the mean over processes
by which their sums are divided.

``MODEL.TOOD.BOX_REG_LOSS`` names one of ``BOX_REG_LOSS_REGISTRY``, which is called with the config;
docs/extending.md adds one.

Shapes: N images, R locations of all levels, K classes. Boxes are XYXY pixels of the network's
input.
"""

from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor

from tood.modeling.box_ops import paired_giou
from tood.modeling.dense_head import DensePredictions
from tood.modeling.targets import Targets

BOX_REG_LOSS_REGISTRY = Registry("TOOD_BOX_REG_LOSS")
BOX_REG_LOSS_REGISTRY.__doc__ = "Box losses, or functions that build one, called with the config."

# Logarithm of a score that counts as 0.
LOG_ZERO = -100.0
# 1 - p of a score that float32 cannot distinguish from 1. Keeps log(1 - p) and its gradient finite.
SMALLEST_COMPLEMENT = 1e-30


def aligned_focal_loss(
    pred_log_scores: Tensor,
    targets: Optional[Tensor] = None,
    *,
    gamma: float = 2.0,
    alpha: Optional[float] = None,
) -> Tensor:
    """Compute ``|target - p|^gamma * BCE(p, target)`` (Eq. 10, 11), elementwise.

    On targets of 0 and 1 it *is* the focal loss (arXiv 1708.02002), so the warm-up needs no other
    loss, only the weight ``alpha`` of positives and ``1 - alpha`` of negatives.

    It starts from log p because p itself cannot distinguish small probabilities from 0, nor
    large ones from 1; and unlike ``torch.nn.functional.binary_cross_entropy``, it propagates
    NaN instead of stopping a CUDA device.

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


class BoxRegLoss:
    """Base class: a differentiable function of predicted boxes and the boxes of their objects."""

    # The loss of boxes that are far too large or far apart, if its gradient vanishes there; None
    # for a loss that has a gradient everywhere. A training that stays at it is reported.
    ceiling: Optional[float] = None

    def __call__(self, pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
        """
        Args:
            pred_boxes: (..., 4).
            gt_boxes: (..., 4), the same as ``pred_boxes`` at locations without an object.

        Returns:
            (...), the loss of each pair, before weights. It must be finite for equal boxes, and
            so must its gradient.
        """
        raise NotImplementedError


class GIoULoss(BoxRegLoss):
    """``1 - GIoU``, in [0, 2]."""

    ceiling = 1.0  # GIoU 0

    def __call__(self, pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
        return 1 - paired_giou(pred_boxes, gt_boxes)


@BOX_REG_LOSS_REGISTRY.register()
def giou(cfg) -> GIoULoss:
    """Build the loss of ``MODEL.TOOD.BOX_REG_LOSS`` "giou"."""
    return GIoULoss()


def compute_loss_sums(
    predictions: DensePredictions,
    targets: Targets,
    *,
    box_reg_loss: BoxRegLoss,
    gamma: float,
    alpha: Optional[float],
    cls_weight: float,
    box_reg_weight: float,
) -> Tuple[Dict[str, Tensor], Tensor]:
    """
    Args:
        gamma, alpha: as in :func:`aligned_focal_loss`.
        cls_weight, box_reg_weight: weights of the two losses.

    Returns:
        the weighted sum of each loss over the batch, and for each the sum of its targets' weights,
        as one tensor.
    """
    loss_cls = sum_cls_losses(predictions.pred_log_scores, targets, gamma=gamma, alpha=alpha)
    loss_box_reg = sum_box_reg_losses(predictions.pred_boxes, targets, box_reg_loss)
    sums = {"loss_cls": cls_weight * loss_cls, "loss_box_reg": box_reg_weight * loss_box_reg}
    weights = [targets.cls_targets.sum(), targets.box_weights.sum()]
    if predictions.centerness_logits is not None:
        sums["loss_centerness"] = sum_centerness_losses(predictions.centerness_logits, targets)
        weights.append(weights[0])  # in ATSS, the number of positives
    return sums, torch.stack(weights)


def sum_cls_losses(
    pred_log_scores: Tensor, targets: Targets, *, gamma: float, alpha: Optional[float]
) -> Tensor:
    """Sum :func:`aligned_focal_loss` over the valid locations and all classes.

    Nearly every score is background and needs only half of the loss; each positive's score for the
    class of its object is masked out of it and has the whole loss.

    Args:
        pred_log_scores: (N, R, K).
    """
    options: Dict[str, Any] = dict(gamma=gamma, alpha=alpha)
    classes = targets.gt_classes.unsqueeze(2)
    of_objects = pred_log_scores.gather(2, classes)
    masked = torch.where(targets.positive.unsqueeze(2), LOG_ZERO, of_objects)
    background = aligned_focal_loss(pred_log_scores.scatter(2, classes, masked), **options)
    objects = aligned_focal_loss(of_objects.squeeze(2), targets.cls_targets, **options)
    # Not a product with a mask: inf * 0 is NaN.
    background = torch.where(targets.valid, background.sum(dim=2), 0.0)
    return background.sum() + torch.where(targets.positive, objects, 0.0).sum()


def sum_box_reg_losses(pred_boxes: Tensor, targets: Targets, box_reg_loss: BoxRegLoss) -> Tensor:
    """Sum the weighted box losses of the positives; ``pred_boxes`` is (N, R, 4)."""
    # Over all locations, because picking the positives would make a GPU wait for the CPU.
    pred_boxes = torch.where(targets.positive.unsqueeze(2), pred_boxes, targets.gt_boxes)
    return (box_reg_loss(pred_boxes, targets.gt_boxes) * targets.box_weights).sum()


def sum_centerness_losses(centerness_logits: Tensor, targets: Targets) -> Tensor:
    """Sum the binary cross-entropy (N, R) of the positives, whose centerness is their box weight in
    ATSS.
    """
    losses = F.binary_cross_entropy_with_logits(
        centerness_logits, targets.box_weights, reduction="none"
    )
    return torch.where(targets.positive, losses, 0.0).sum()


def mean_over_processes(x: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes of a training."""
    world_size = comm.get_world_size()
    if world_size == 1:
        return x
    x = x / world_size
    torch.distributed.all_reduce(x)
    return x
