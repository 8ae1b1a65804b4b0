"""Select detections from dense predictions: candidates of a batch in tensors of one shape, then
NMS of each image.

Shapes: N images, R locations of all levels, K classes, T candidates of an image. Boxes are XYXY
pixels of the network's input.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms, cat
from detectron2.structures import Boxes, Instances
from torch import Tensor


class Candidates(NamedTuple):
    """Candidates for NMS, (location, class) pairs of each image sorted by descending score. Only
    the first ``counts`` rows are valid; the rest is padding with the score -1.
    """

    counts: Tensor  # (N,) int64
    scores: Tensor  # (N, T)
    boxes: Tensor  # (N, T, 4)
    classes: Tensor  # (N, T) int64
    extras: Dict[str, Tensor] = {}  # (N, T, X) each, if the head predicts more

    def to_instances(self, image_sizes: Sequence[Tuple[int, int]]) -> List[Instances]:
        """Return the valid candidates of each image; extras become fields of the same name."""
        counts = self.counts.tolist()  # the one moment when the CPU waits for a GPU
        return [
            Instances(
                image_size,
                pred_boxes=Boxes(self.boxes[i, :count]),
                scores=self.scores[i, :count],
                pred_classes=self.classes[i, :count],
                **{name: x[i, :count] for name, x in self.extras.items()},
            )
            for i, (count, image_size) in enumerate(zip(counts, image_sizes))
        ]


def select_candidates(
    pred_scores: Tensor,
    pred_boxes: Tensor,
    level_sizes: Sequence[int],
    score_thresh: float,
    topk: int,
    extras: Optional[Dict[str, Tensor]] = None,
) -> Candidates:
    """Return the best ``topk`` pairs above ``score_thresh`` of each level, or fewer.

    Args:
        pred_scores: (N, R, K). NaN is below every threshold.
        pred_boxes: (N, R, 4).
        level_sizes: number of locations of each level.
        extras: further predictions by name, (N, R, X) each.
    """
    R, K = pred_scores.shape[1:]
    best_scores, best_pairs, start = [], [], 0
    for level, size in zip(pred_scores.split(list(level_sizes), dim=1), level_sizes):
        level = torch.where(level > score_thresh, level, -1.0).flatten(1)
        # Padded, because a small level has fewer pairs, and a traced graph cannot branch on that.
        best = F.pad(level, (0, topk), value=-1.0).topk(topk, dim=1)
        best_scores.append(best.values)
        best_pairs.append(best.indices + start * K)
        start += size
    scores, pairs = cat(best_scores, dim=1), cat(best_pairs, dim=1).clamp(max=R * K - 1)
    locations = torch.div(pairs, K, rounding_mode="floor")
    boxes = gather_rows(pred_boxes, locations)
    # Sampling far outside of the map leaves boxes without area; NMS would keep them all. One box
    # without end would stop it from removing any other.
    valid = (boxes[..., 2:] > boxes[..., :2]).all(dim=2) & boxes.isfinite().all(dim=2)
    scores, order = torch.where(valid, scores, -1.0).sort(dim=1, descending=True, stable=True)
    locations = locations.gather(1, order) if extras else locations
    return Candidates(
        counts=(scores >= 0).sum(dim=1),
        scores=scores,
        boxes=gather_rows(boxes, order),
        classes=(pairs % K).gather(1, order),
        extras={name: gather_rows(x, locations) for name, x in (extras or {}).items()},
    )


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Return (N, T, X), the rows of (N, R, X) at ``indices`` (N, T)."""
    return x.gather(1, indices.unsqueeze(2).expand(-1, -1, x.shape[2]))


def suppress_non_maxima(
    candidates: Instances, iou_thresh: float, max_detections: int, class_agnostic: bool = False
) -> Instances:
    """Return the best candidates of an image without overlap, of each class or of all, sorted by
    descending score.
    """
    boxes, classes = candidates.pred_boxes.tensor, candidates.pred_classes
    groups = torch.zeros_like(classes) if class_agnostic else classes
    keep = batched_nms(boxes, candidates.scores, groups, iou_thresh)
    return candidates[keep[:max_detections]]
