"""Assignment of locations to objects: task alignment learning (TAL, Section 3.2) and ATSS.

An assigner maps the :class:`ImagePredictions` and the ground truth of one image to an
:class:`Assignment`. ``MODEL.TOOD.ASSIGNER`` names one of ``ASSIGNER_REGISTRY``, which is called
with the config; docs/extending.md adds one.

Shapes: M objects, R locations of all levels, K classes. Boxes are XYXY pixels of the network's
input. Matrices objects x locations are made for a few objects at a time; only each object's
candidates are kept, (M, topk).
"""

from typing import NamedTuple, Optional, Sequence, Tuple, Union

import torch
from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from torch import Tensor

from tood.modeling.box_ops import (
    box_centers,
    centerness,
    inside_boxes,
    objects_at_once,
    paired_iou,
)

ASSIGNER_REGISTRY = Registry("TOOD_ASSIGNER")
ASSIGNER_REGISTRY.__doc__ = "Assigners, or functions that build one, called with the config."

# A location belongs to a box only if it is more than this many pixels inside of it.
INSIDE_MARGIN = 0.01


class ImagePredictions:
    """Dense predictions for one image of a batch, at its own locations."""

    def __init__(
        self,
        pred_log_scores: Tensor,
        pred_boxes: Tensor,
        anchors: Tensor,
        level_sizes: Sequence[int],
        locations: Union[Tensor, slice] = slice(None),
    ):
        """
        Args:
            pred_log_scores: (R', K), logarithms of the aligned probabilities.
            pred_boxes: (R', 4), aligned boxes.
            anchors: (R', 4), whose centres are the locations.
            level_sizes: number of the image's locations on each level; their sum is R.
            locations: (R,) int64, indices of the image's locations among the R' of the batch.
        """
        self.pred_boxes, self.anchors = pred_boxes[locations], anchors[locations]
        self.level_sizes = list(level_sizes)
        self._pred_log_scores, self._locations = pred_log_scores, locations

    @property
    def pred_scores(self) -> Tensor:
        """Aligned probabilities (R, K), computed on demand, because ATSS does not need them."""
        return self._pred_log_scores[self._locations].exp()


class Assignment(NamedTuple):
    """Training targets of each location of one image."""

    gt_index: Tensor  # (R,) int64, index of its object, -1 for background
    cls_target: Tensor  # (R,) target score for the class of its object, 0 for background
    box_weight: Tensor  # (R,) weight in the box loss, 0 for background

    @classmethod
    def background(cls, anchors: Tensor) -> "Assignment":
        """Return the assignment of an image without objects."""
        zeros = anchors.new_zeros(len(anchors))
        return cls(torch.full_like(zeros, -1, dtype=torch.int64), zeros, zeros)


class Assigner:
    """Base class: a function of one image, with the options of its classification loss."""

    # Weight of positives in the classification loss, whose negatives have 1 - alpha; None for no
    # weights. For targets of 0 and 1 only.
    focal_loss_alpha: Optional[float] = None

    def __call__(self, predictions: ImagePredictions, gt: Instances) -> Assignment:
        """
        Args:
            predictions: dense predictions for one image.
            gt: its "gt_boxes" and "gt_classes", M objects.
        """
        raise NotImplementedError


class TAL(Assigner):
    """Task alignment learning: the positives of an object are the locations that score and localize
    it best, together; their targets grow with the alignment metric.

    Top-k comes first, over all locations, and only then those outside of the object are dropped,
    as in the released code: an object may keep fewer than ``topk`` positives, or none.
    """

    def __init__(self, topk: int = 13, alpha: float = 1.0, beta: float = 6.0):
        """
        Args:
            topk: candidates of each object (m).
            alpha, beta: exponents of score and IoU in the alignment metric (Eq. 9).
        """
        self.topk, self.alpha, self.beta = topk, alpha, beta

    @torch.no_grad()
    def __call__(self, predictions: ImagePredictions, gt: Instances) -> Assignment:
        anchors, gt_boxes = predictions.anchors, gt.gt_boxes.tensor.float()
        if len(gt_boxes) == 0:
            return Assignment.background(anchors)
        locations, ious, metrics = self._most_aligned(predictions, gt_boxes, gt.gt_classes)
        points = box_centers(anchors)[locations]
        chosen = (metrics > 0) & inside_boxes(points, gt_boxes[:, None], INSIDE_MARGIN)

        gt_index = resolve_conflicts(locations, chosen, ious, len(anchors))
        matched = chosen & (gt_index[locations] == _arange_like(gt_boxes)[:, None])
        # t_hat: the largest target of an object is its largest IoU.
        metrics = metrics.masked_fill(~matched, 0)
        max_metrics = metrics.amax(dim=1, keepdim=True)
        max_ious = ious.masked_fill(~matched, 0).amax(dim=1, keepdim=True)
        targets = metrics / (max_metrics + 1e-7) * max_ious
        targets = _scatter_max(locations, targets, len(anchors), empty=0.0)
        return Assignment(gt_index, targets, targets)

    def _most_aligned(
        self, predictions: ImagePredictions, gt_boxes: Tensor, gt_classes: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Return each object's ``topk`` locations, their IoUs and their metrics t, (M, topk)."""
        class_scores = predictions.pred_scores.t()
        pred_boxes = predictions.pred_boxes.t().contiguous().t()  # each coordinate in one piece
        at_once = objects_at_once(len(pred_boxes))
        chunks = []
        for boxes, classes in zip(gt_boxes.split(at_once), gt_classes.split(at_once)):
            ious = paired_iou(boxes[:, None], pred_boxes)
            metrics = alignment_metric(class_scores[classes], ious, self.alpha, self.beta)
            best = metrics.topk(min(self.topk, metrics.shape[1]), dim=1)
            chunks.append((best.indices, ious.gather(1, best.indices), best.values))
        locations, ious, metrics = (torch.cat(x) for x in zip(*chunks))
        return locations, ious, metrics


def alignment_metric(scores: Tensor, ious: Tensor, alpha: float, beta: float) -> Tensor:
    """Return t = s^alpha * u^beta, elementwise; u^beta as (u^2)^(beta / 2), a faster power."""
    return scores**alpha * ious.square() ** (beta / 2)  # Eq. 9


class ATSS(Assigner):
    """ATSS (arXiv 1912.02424), the warm-up of the released schedule: of the anchors nearest to an
    object on each level, those whose IoU is at least the mean plus the standard deviation of all
    these candidates. Positives learn a score of 1, and boxes weighted by their centerness.
    """

    def __init__(self, topk: int = 9, focal_loss_alpha: float = 0.25):
        """
        Args:
            topk: candidates of each object on each level.
            focal_loss_alpha: weight of positives in the focal loss.
        """
        self.topk, self.focal_loss_alpha = topk, focal_loss_alpha

    @torch.no_grad()
    def __call__(self, predictions: ImagePredictions, gt: Instances) -> Assignment:
        anchors, gt_boxes = predictions.anchors, gt.gt_boxes.tensor.float()
        if len(gt_boxes) == 0:
            return Assignment.background(anchors)
        points = box_centers(anchors)
        chunks = gt_boxes.split(objects_at_once(len(anchors)))
        locations = torch.cat([self._nearest(points, predictions.level_sizes, x) for x in chunks])

        ious = paired_iou(gt_boxes[:, None], anchors[locations])
        thresholds = ious.mean(1, keepdim=True) + ious.std(1, keepdim=True)
        inside = inside_boxes(points[locations], gt_boxes[:, None], INSIDE_MARGIN)
        chosen = (ious >= thresholds) & inside
        gt_index = resolve_conflicts(locations, chosen, ious, len(anchors))
        positive = gt_index >= 0
        box_weight = centerness(points, gt_boxes[gt_index.clamp(min=0)])
        return Assignment(gt_index, positive.to(ious.dtype), torch.where(positive, box_weight, 0.0))

    def _nearest(self, points: Tensor, level_sizes: Sequence[int], gt_boxes: Tensor) -> Tensor:
        """Return (M, about topk * levels) int64, each level's locations nearest to each object."""
        x, y = points.unbind(dim=1)
        gt_x, gt_y = box_centers(gt_boxes)[:, :, None].unbind(dim=1)
        distances = ((x - gt_x).square_() + (y - gt_y).square_()).sqrt_()
        nearest, start = [], 0
        for distance, size in zip(distances.split(list(level_sizes), dim=1), level_sizes):
            best = distance.topk(min(self.topk, size), dim=1, largest=False)
            nearest.append(best.indices + start)
            start += size
        return torch.cat(nearest, dim=1)


@ASSIGNER_REGISTRY.register()
def tal(cfg) -> TAL:
    """Build the assigner of ``MODEL.TOOD.ASSIGNER`` "tal"."""
    tood = cfg.MODEL.TOOD
    return TAL(tood.TAL_TOPK, tood.TAL_ALPHA, tood.TAL_BETA)


@ASSIGNER_REGISTRY.register()
def atss(cfg) -> ATSS:
    """Build the assigner of ``MODEL.TOOD.ASSIGNER`` "atss", and of the first iterations."""
    tood = cfg.MODEL.TOOD
    return ATSS(tood.ATSS_TOPK, tood.FOCAL_LOSS_ALPHA)


def resolve_conflicts(
    locations: Tensor, chosen: Tensor, ious: Tensor, num_locations: int
) -> Tensor:
    """Give a location that several objects chose to the one with the highest IoU; ties go to the
    first.

    Args:
        locations: (M, X) int64, candidates of each object, each at most once in a row.
        chosen: (M, X) bool, whether the object chose the candidate.
        ious: (M, X).

    Returns:
        (R,) int64, the object of each location, -1 if no object chose it.
    """
    ious = ious.masked_fill(~chosen, -1)
    highest = _scatter_max(locations, ious, num_locations, empty=-1.0)
    wins = chosen & (ious == highest[locations])
    # The first is the highest of the negated indices.
    M = len(ious)
    rank = (M - _arange_like(ious))[:, None] * wins
    rank = _scatter_max(locations, rank, num_locations, empty=0)
    return torch.where(rank > 0, M - rank, -1)


def _arange_like(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _scatter_max(locations: Tensor, values: Tensor, num_locations: int, *, empty: float) -> Tensor:
    """Return (R,), the largest of each location's values and ``empty``."""
    result = values.new_full((num_locations,), empty)
    return result.scatter_reduce_(0, locations.flatten(), values.flatten(), "amax")
