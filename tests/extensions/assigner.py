"""Centre sampling (FCOS): locations within 1.5 strides of an object's centre are its positives."""

import torch

from tood.modeling.assigners import ASSIGNER_REGISTRY, Assigner, Assignment
from tood.modeling.box_ops import box_centers, inside_boxes


@ASSIGNER_REGISTRY.register()
class CenterSampling(Assigner):
    focal_loss_alpha = 0.25  # the targets are 0 and 1

    def __init__(self, cfg):
        strides = [size[0] / 8 for size in cfg.MODEL.ANCHOR_GENERATOR.SIZES]
        self.radii = [1.5 * stride for stride in strides]

    @torch.no_grad()
    def __call__(self, predictions, gt):
        points = box_centers(predictions.anchors)  # (R, 2)
        gt_boxes = gt.gt_boxes.tensor  # (M, 4)
        radii = [x for r, n in zip(self.radii, predictions.level_sizes) for x in [r] * n]
        radii = torch.tensor(radii, device=points.device)
        distances = (points - box_centers(gt_boxes)[:, None]).abs().amax(dim=2)
        candidate = (distances < radii) & inside_boxes(points, gt_boxes[:, None])  # (M, R)
        # A location in several objects goes to the smallest.
        areas = gt.gt_boxes.area()[:, None].expand_as(candidate)
        area, gt_index = areas.masked_fill(~candidate, float("inf")).min(dim=0)
        positive = area.isfinite()
        target = positive.to(points.dtype)
        return Assignment(torch.where(positive, gt_index, -1), target, target)
