"""The classification loss. The box loss is fvcore's ``giou_loss``."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor

__all__ = ["aligned_focal_loss"]


def aligned_focal_loss(
    pred_scores: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: Optional[float] = None
) -> Tensor:
    """
    ``|target - p|^gamma * BCE(p, target)`` (Eq. 10, 11), elementwise.

    On targets of 0 and 1 it *is* the focal loss (arXiv 1708.02002), so the warm-up needs no loss
    of its own, only the weight ``alpha`` of positives and ``1 - alpha`` of negatives.

    Args:
        pred_scores: probabilities p, any shape, float32.
        targets: probabilities to reach, of the same shape.
        gamma: focusing exponent.
        alpha: weight of positives, or None for no weights; for targets of 0 and 1 only.

    Returns:
        the loss of each element.
    """
    loss = F.binary_cross_entropy(pred_scores, targets, reduction="none")
    loss = loss * (targets - pred_scores).abs() ** gamma
    if alpha is not None:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss
