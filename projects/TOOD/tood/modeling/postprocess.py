"""
From dense predictions to what takes part in NMS: tensors of one shape for a whole batch.

Shapes: N images, R locations of all levels, K classes, T candidates of an image. Boxes are XYXY
pixels of the network's input.
"""

from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import cat
from torch import Tensor

__all__ = ["Candidates", "select_candidates"]


class Candidates(NamedTuple):
    """
    (location, class) pairs of each image by falling score, of which the first ``counts`` count;
    the rest fills the rows and has the score -1.
    """

    counts: Tensor  # (N,) int64
    scores: Tensor  # (N, T)
    boxes: Tensor  # (N, T, 4)
    classes: Tensor  # (N, T) int64


def select_candidates(
    pred_scores: Tensor,
    pred_boxes: Tensor,
    level_sizes: Sequence[int],
    score_thresh: float,
    topk: int,
) -> Candidates:
    """
    Args:
        pred_scores: (N, R, K). NaN is below every threshold.
        pred_boxes: (N, R, 4).
        level_sizes: locations of each level.

    Returns:
        the best ``topk`` pairs above ``score_thresh`` of each level, or fewer.
    """
    R, K = pred_scores.shape[1:]
    scores, pairs, start = [], [], 0
    for level, size in zip(pred_scores.split(list(level_sizes), dim=1), level_sizes):
        level = torch.where(level > score_thresh, level, -1.0).flatten(1)
        # A small level has fewer pairs than that, which a traced graph could not decide upon.
        best = F.pad(level, (0, topk), value=-1.0).topk(topk, dim=1)
        scores.append(best.values)
        pairs.append(best.indices + start * K)
        start += size
    scores, pairs = cat(scores, dim=1), cat(pairs, dim=1).clamp(max=R * K - 1)
    locations = torch.div(pairs, K, rounding_mode="floor")
    boxes = pred_boxes.gather(1, locations.unsqueeze(2).expand(-1, -1, 4))
    # Sampling far outside of the map leaves boxes without area; NMS would keep them all. One box
    # without end would stop it from removing any other.
    sound = (boxes[..., 2:] > boxes[..., :2]).all(dim=2) & boxes.isfinite().all(dim=2)
    scores, order = torch.where(sound, scores, -1.0).sort(dim=1, descending=True, stable=True)
    return Candidates(
        counts=(scores >= 0).sum(dim=1),
        scores=scores,
        boxes=boxes.gather(1, order.unsqueeze(2).expand(-1, -1, 4)),
        classes=(pairs % K).gather(1, order),
    )
