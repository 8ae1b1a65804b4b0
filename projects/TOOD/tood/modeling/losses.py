"""Both losses, elementwise: pure functions that neither pick elements nor wait for a GPU."""

from typing import Optional

import torch
from torch import Tensor

__all__ = ["aligned_focal_loss", "giou_loss"]

# 1 - p of a score that float32 cannot tell from 1. Keeps log(1 - p) and its gradient finite.
SMALLEST_COMPLEMENT = 1e-30


def aligned_focal_loss(
    pred_log_scores: Tensor,
    targets: Optional[Tensor] = None,
    *,
    gamma: float = 2.0,
    alpha: Optional[float] = None,
) -> Tensor:
    """
    ``|target - p|^gamma * BCE(p, target)`` (Eq. 10, 11), elementwise.

    On targets of 0 and 1 it *is* the focal loss (arXiv 1708.02002), so the warm-up needs no loss
    of its own, only the weight ``alpha`` of positives and ``1 - alpha`` of negatives.

    It starts from log p because p itself cannot tell small probabilities from 0, nor large ones
    from 1; and unlike ``torch.nn.functional.binary_cross_entropy``, it answers NaN to NaN instead
    of stopping a CUDA device.

    Args:
        pred_log_scores: log p, any shape, float32.
        targets: probabilities to reach, of the same shape, or None for background: 0 everywhere,
            in half the time.
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


def giou_loss(pred_boxes: Tensor, gt_boxes: Tensor, eps: float = 1e-7) -> Tensor:
    """
    ``1 - GIoU`` (arXiv 1902.09630). The same as torchvision's and fvcore's, both of which make a
    GPU wait for the CPU; fvcore's also stops at NaN with an assertion about crossed boxes.

    Args:
        pred_boxes, gt_boxes: (..., 4), XYXY, float32.
        eps: keeps boxes without area from dividing by zero.

    Returns:
        (...), in [0, 2].
    """
    x1, y1, x2, y2 = pred_boxes.unbind(dim=-1)
    gt_x1, gt_y1, gt_x2, gt_y2 = gt_boxes.unbind(dim=-1)
    width = (torch.minimum(x2, gt_x2) - torch.maximum(x1, gt_x1)).clamp(min=0)
    height = (torch.minimum(y2, gt_y2) - torch.maximum(y1, gt_y1)).clamp(min=0)
    intersection = width * height
    union = (x2 - x1) * (y2 - y1) + (gt_x2 - gt_x1) * (gt_y2 - gt_y1) - intersection
    hull_width = torch.maximum(x2, gt_x2) - torch.minimum(x1, gt_x1)
    hull_height = torch.maximum(y2, gt_y2) - torch.minimum(y1, gt_y1)
    hull = hull_width * hull_height
    giou = intersection / (union + eps) - (hull - union) / (hull + eps)
    return 1 - giou
