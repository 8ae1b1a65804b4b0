"""Normalized Wasserstein distance (arXiv 2110.13389): small boxes attract each other before they
overlap.
"""

import torch

from tood.modeling.box_ops import box_centers
from tood.modeling.losses import BOX_REG_LOSS_REGISTRY, BoxRegLoss


@BOX_REG_LOSS_REGISTRY.register()
class WassersteinLoss(BoxRegLoss):
    ceiling = 1.0  # boxes far apart

    def __init__(self, cfg):
        self.unit = cfg.MODEL.ANCHOR_GENERATOR.SIZES[0][0] / 2  # pixels, the size of objects

    def __call__(self, pred_boxes, gt_boxes):
        centers = box_centers(pred_boxes) - box_centers(gt_boxes)
        sizes, gt_sizes = (x[..., 2:] - x[..., :2] for x in (pred_boxes, gt_boxes))
        squared = torch.cat([centers, (sizes - gt_sizes) / 2], dim=-1).square().sum(dim=-1)
        # The gradient of a square root is infinite at 0.
        return 1 - torch.exp(-squared.clamp(min=1e-6).sqrt() / self.unit)
