"""The model of a config; and what a training builds, tried without weights before it begins."""

import logging
from typing import List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_model
from detectron2.solver import build_lr_scheduler, build_optimizer

from tood.config.unread import has_parts_of_a_user
from tood.modeling.detector import TOOD
from tood.utils.errors import UserError, format_reason
from tood.utils.logs import at_level

logger = logging.getLogger(__name__)


def build_detector(cfg: CfgNode) -> TOOD:
    """Build the model of a config.

    Raises:
        UserError: where that fails, with the options to look at. Errors of a user's parts are best
            shown with a traceback, and raised as they are.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = _tried(lambda: META_ARCH_REGISTRY.get(name), "MODEL.META_ARCHITECTURE")
    if architecture is not TOOD:
        return build_model(cfg)
    if has_parts_of_a_user(cfg):
        backbone = build_backbone(cfg)
        _check_levels(cfg, backbone.output_shape())
        return TOOD(cfg, backbone=backbone).to(cfg.MODEL.DEVICE)
    backbone = _tried(lambda: build_backbone(cfg), "MODEL.BACKBONE, MODEL.RESNETS, MODEL.FPN")
    _check_levels(cfg, backbone.output_shape())
    model = _tried(lambda: TOOD(cfg, backbone=backbone), "MODEL")
    return model.to(cfg.MODEL.DEVICE)  # whose memory may not suffice


def check_builds(cfg: CfgNode, *, built: bool = False) -> Optional[torch.nn.Module]:
    """Build what a training builds, on a device without numbers. Custom parts are not tried: they
    may need numbers.

    Args:
        built: the model was built before, and is not tried again.

    Returns:
        the model, if it was tried.

    Raises:
        UserError: where that fails, with the options to look at.
    """
    if has_parts_of_a_user(cfg):
        return None
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.TIMM.PRETRAINED = "meta", False
    if cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == "full_model":  # which Detectron2 does not know
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    with torch.device("meta"):
        model = None if built else build_detector(cfg)
    layer = torch.nn.Linear(1, 1)
    with at_level("detectron2", logging.ERROR):
        optimizer = _tried(lambda: build_optimizer(cfg, layer), "SOLVER")
        _tried(lambda: build_lr_scheduler(cfg, optimizer), "SOLVER")
    return model


def _tried(build, group: str):
    try:
        return build()
    except UserError:
        raise
    except Exception as error:  # of any value in a config
        raise UserError(
            f"The config cannot be built: {format_reason(error)}; look at the options of {group}."
        ) from error


def _check_levels(cfg: CfgNode, shapes) -> None:
    """Hold the levels of the head, and the sizes of its anchors, to those of the backbone."""
    features: List[str] = cfg.MODEL.TOOD.IN_FEATURES
    unknown = [name for name in features if name not in shapes]
    if unknown:
        by_stride = sorted(shapes, key=lambda name: shapes[name].stride)
        sizes = [[8 * shapes[name].stride] for name in by_stride]
        advice = (
            "set MODEL.TOOD.IN_FEATURES to some of them and MODEL.ANCHOR_GENERATOR.SIZES to 8 "
            f"strides each, {sizes} for all"
        )
        if unknown[0] == "p2":
            advice = "add res2 to MODEL.RESNETS.OUT_FEATURES and MODEL.FPN.IN_FEATURES"
        raise UserError(
            f"MODEL.TOOD.IN_FEATURES has {unknown[0]!r}, but {cfg.MODEL.BACKBONE.NAME} makes "
            f"{', '.join(by_stride)}; {advice}."
        )
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    sizes = sizes if len(sizes) == len(features) else sizes * len(features)
    wanted = [[8 * shapes[name].stride] for name in features]
    if [list(x) for x in sizes] != wanted:
        logger.warning(
            f"MODEL.ANCHOR_GENERATOR.SIZES is {sizes}; the released models have anchors of 8 "
            f"strides, here {wanted}."
        )
