"""The classification loss. The box loss is torchvision's ``generalized_box_iou_loss``."""

from typing import Optional

import torch
from torch import Tensor

__all__ = ["aligned_focal_loss"]

# 1 - p of a score that float32 cannot tell from 1. Keeps log(1 - p) and its gradient finite.
SMALLEST_COMPLEMENT = 1e-30


def aligned_focal_loss(
    pred_log_scores: Tensor,
    targets: Tensor,
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
        targets: probabilities to reach, of the same shape.
        gamma: focusing exponent.
        alpha: weight of positives, or None for no weights; for targets of 0 and 1 only.

    Returns:
        the loss of each element.
    """
    log_complements = torch.log(-torch.expm1(pred_log_scores.clamp(max=-SMALLEST_COMPLEMENT)))
    bce = -targets * pred_log_scores - (1 - targets) * log_complements
    loss = (targets - pred_log_scores.exp()).abs() ** gamma * bce
    if alpha is not None:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss
