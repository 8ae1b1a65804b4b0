"""A trained detector as the teacher of another one, in addition to the objects that people drew
(knowledge distillation): its aligned scores and boxes are soft targets at every location.

What is compared are the dense predictions of both. CrossKD (arXiv 2306.11369), which sends features
of the student through the teacher's head, gained less here (docs/results/small_data.md).

Shapes: N images, R locations of all levels of the student, K classes. Boxes are XYXY pixels of the
network's input.
"""

from typing import Any, Dict, NamedTuple, Sequence, Tuple

import torch
from detectron2.structures import ImageList
from torch import Tensor

from tood.modeling.dense_head import DensePredictions
from tood.modeling.losses import BoxRegLoss, aligned_focal_loss, mean_over_processes

# Boxes of lower scores are arbitrary, and not learned.
MIN_SCORE = 0.05


class SoftTargets(NamedTuple):
    """A teacher's predictions for a batch."""

    scores: Tensor  # (N, R, K), aligned probabilities, without centerness
    boxes: Tensor  # (N, R, 4)


class Teacher:
    """A trained TOOD and the weight of its losses. It is not part of the student's state: neither
    checkpoints nor copies of the student contain it, and the optimizer does not change it.
    """

    def __init__(self, model: Any, weight: float = 1.0):
        """
        Args:
            model: a TOOD that takes the same normalized images, and finds the same classes.
            weight: factor of both losses.
        """
        self.model, self.weight = model.eval().requires_grad_(False), weight

    def __deepcopy__(self, memo) -> "Teacher":
        return self

    @torch.no_grad()
    def predict(self, images: ImageList, strides: Sequence[int]) -> SoftTargets:
        """
        Args:
            images: normalized batch of the student.
            strides: those of the student's levels, which follow each other among the teacher's.
        """
        features = self.model.backbone(images.tensor)
        predictions = self.model.head([features[f] for f in self.model.head_in_features])
        levels = find_levels(self.model.strides, strides)
        start, stop = (sum(predictions.level_sizes[:i]) for i in (levels.start, levels.stop))
        scores = predictions.pred_log_scores.exp()
        return SoftTargets(scores[:, start:stop], predictions.pred_boxes[:, start:stop])

    def __call__(
        self, student: Any, images: ImageList, predictions: DensePredictions, valid: Tensor
    ) -> Dict[str, Tensor]:
        """
        Args:
            student: the TOOD that is trained, in the precision of its training.
            images: its normalized batch.
            predictions: its predictions for it.
            valid: (N, R), :attr:`~tood.modeling.targets.Targets.valid` of the batch.

        Returns:
            "loss_teacher_cls" and "loss_teacher_box_reg": the sums of
            :func:`compute_teacher_loss_sums` by the mean of its weights over all processes.
        """
        targets = self.predict(images, student.strides)
        with torch.autocast(images.device.type, enabled=False):
            options = dict(box_reg_loss=student.box_reg_loss, **student.loss_options)
            sums, weight = compute_teacher_loss_sums(predictions, targets, valid, **options)
            weight = mean_over_processes(weight).clamp(min=1)
            return {name: self.weight * x / weight for name, x in sums.items()}


def find_levels(strides: Sequence[int], wanted: Sequence[int]) -> slice:
    """Return which levels of a teacher with these strides are those of a student.

    Raises:
        ValueError: if one of them is missing.
    """
    strides, wanted = list(strides), list(wanted)
    start = strides.index(wanted[0]) if wanted[0] in strides else len(strides)
    levels = slice(start, start + len(wanted))
    if strides[levels] != wanted:
        raise ValueError(f"its levels have the strides {strides}, not {wanted}")
    return levels


def weigh_boxes(targets: SoftTargets) -> Tensor:
    """Return the weight (N, R) of each location's box: its best score, 0 below ``MIN_SCORE``."""
    best = targets.scores.amax(dim=2)
    return torch.where(best > MIN_SCORE, best, 0.0)


def compute_teacher_loss_sums(
    predictions: DensePredictions,
    targets: SoftTargets,
    valid: Tensor,
    *,
    box_reg_loss: BoxRegLoss,
    gamma: float,
    cls_weight: float,
    box_reg_weight: float,
) -> Tuple[Dict[str, Tensor], Tensor]:
    """
    Args:
        valid: (N, R), False for locations in the padding of a batch, which do not count: neither
            prediction depends on the image there.

    Returns:
        the weighted sums over the valid locations of :func:`aligned_focal_loss` with the teacher's
        scores as targets, in which each class counts, and of the box loss against its boxes, by
        :func:`weigh_boxes`; and the sum of these weights.
    """
    cls = aligned_focal_loss(predictions.pred_log_scores, targets.scores, gamma=gamma, alpha=None)
    # Not a product with a mask: inf * 0 is NaN.
    cls = torch.where(valid.unsqueeze(2), cls, 0.0).sum()
    weights = torch.where(valid, weigh_boxes(targets), 0.0)
    pred_boxes = torch.where(weights.unsqueeze(2) > 0, predictions.pred_boxes, targets.boxes)
    box_reg = (box_reg_loss(pred_boxes, targets.boxes) * weights).sum()
    sums = {"loss_teacher_cls": cls_weight * cls, "loss_teacher_box_reg": box_reg_weight * box_reg}
    return sums, weights.sum()
