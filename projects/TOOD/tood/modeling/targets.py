"""Training targets of a batch, from an assigner of single images.

Shapes: N images, R locations of all levels, K classes. Boxes are XYXY pixels of the network's
input.
"""

import math
from typing import List, NamedTuple, Sequence, Tuple, Union

import torch
from detectron2.structures import Instances
from torch import Tensor

from tood.modeling.assigners import Assigner, ImagePredictions
from tood.modeling.dense_head import DensePredictions


class Targets(NamedTuple):
    """Training targets of a batch, the same for every assigner."""

    gt_index: Tensor  # (N, R) int64, the object a location is assigned to, -1 for background
    gt_classes: Tensor  # (N, R) int64, the class of this object, anything for background
    gt_boxes: Tensor  # (N, R, 4) the box of this object, anything for background
    cls_targets: Tensor  # (N, R) target score for this class, 0 for background
    box_weights: Tensor  # (N, R) weight in the box loss, 0 for background
    valid: Tensor  # (N, R) bool, False for locations in the padding of a batch

    @property
    def positive(self) -> Tensor:
        """(N, R) bool, whether a location is assigned to an object."""
        return self.gt_index >= 0


@torch.no_grad()
def label_batch(
    predictions: DensePredictions,
    image_sizes: Sequence[Tuple[int, int]],
    gt_instances: List[Instances],
    assigner: Assigner,
    *,
    strides: Sequence[int],
    size_divisibility: int,
) -> Targets:
    """Assign the locations of each image separately.

    Args:
        image_sizes: height and width of each image before padding, in pixels.
        gt_instances: "gt_boxes" and "gt_classes" of each image.
        strides, size_divisibility: as in :func:`find_locations`.
    """
    pred_boxes, anchors = predictions.pred_boxes, predictions.anchors.tensor
    N, R, _ = pred_boxes.shape
    indices = torch.zeros(N, R, dtype=torch.int64, device=pred_boxes.device)
    targets = Targets(
        gt_index=indices - 1,
        gt_classes=indices,
        gt_boxes=torch.zeros_like(pred_boxes),
        cls_targets=pred_boxes.new_zeros(N, R),
        box_weights=pred_boxes.new_zeros(N, R),
        valid=torch.zeros_like(indices, dtype=torch.bool),
    )
    for i, (gt, image_size) in enumerate(zip(gt_instances, image_sizes)):
        locations, level_sizes = find_locations(
            image_size, predictions.grid_sizes, strides, size_divisibility, pred_boxes.device
        )
        # Not True: PyTorch would copy it to a GPU, and wait.
        targets.valid[i, locations] = indices.new_ones(sum(level_sizes), dtype=torch.bool)
        if len(gt) == 0:
            continue
        log_scores = predictions.pred_log_scores[i]
        image = ImagePredictions(log_scores, pred_boxes[i], anchors, level_sizes, locations)
        assignment = assigner(image, gt)
        matched = assignment.gt_index.clamp(min=0)
        targets.gt_index[i, locations] = assignment.gt_index
        targets.gt_classes[i, locations] = gt.gt_classes[matched]
        targets.gt_boxes[i, locations] = gt.gt_boxes.tensor.float()[matched]
        targets.cls_targets[i, locations] = assignment.cls_target
        targets.box_weights[i, locations] = assignment.box_weight
    return targets


def find_locations(
    image_size: Tuple[int, int],
    grid_sizes: Sequence[torch.Size],
    strides: Sequence[int],
    size_divisibility: int,
    device: torch.device,
) -> Tuple[Union[Tensor, slice], List[int]]:
    """Find the locations of an image that is padded alone. Those beyond, in the padding of a batch
    of different sizes, are ignored in assignment and loss, so that targets do not depend on the
    other images.

    Args:
        image_size: height and width of the image before padding, in pixels.
        grid_sizes: (H, W) of each level of the batch.
        strides: stride of each level, in pixels.
        size_divisibility: a single image is padded to a multiple of this.

    Returns:
        indices (R',) int64 into the R locations of the batch, in order, or a slice if they are all
        of them; and the number of them on each level.
    """
    divisor = max(size_divisibility, 1)
    padded = [math.ceil(side / divisor) * divisor for side in image_size]
    own_sizes = [
        tuple(min(math.ceil(p / stride), size) for p, size in zip(padded, grid_size))
        for grid_size, stride in zip(grid_sizes, strides)
    ]
    level_sizes = [h * w for h, w in own_sizes]
    if own_sizes == [tuple(size) for size in grid_sizes]:
        return slice(None), level_sizes
    indices, start = [], 0
    for (h, w), (H, W) in zip(own_sizes, grid_sizes):
        level = torch.arange(start, start + H * W, device=device).view(H, W)
        indices.append(level[:h, :w].flatten())
        start += H * W
    return torch.cat(indices), level_sizes
