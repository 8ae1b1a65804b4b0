"""What a config must hold before anything is built from it: each mistake is one sentence."""

import difflib
import math
from typing import List, NamedTuple, Optional

from detectron2.config import CfgNode

from tood.modeling.assign import ASSIGNER_REGISTRY
from tood.modeling.dense_head import ANCHOR_TYPES, HEAD_REGISTRY
from tood.modeling.detector import PRECISIONS
from tood.utils.errors import UserError

__all__ = ["check_config", "check_nothing_removed", "check_training", "known_keys", "nearest_key"]


class Range(NamedTuple):
    """The numbers that an option may be, both ends included."""

    low: float
    high: float = math.inf
    above_low: bool = False  # the lower end is not included

    def holds(self, value) -> bool:
        return self.low <= value <= self.high and not (self.above_low and value == self.low)

    def __str__(self):
        text = f"more than {self.low}" if self.above_low else f"at least {self.low}"
        return text if self.high == math.inf else f"{text} and at most {self.high}"


POSITIVE = Range(0, above_low=True)
RANGES = {
    "MODEL.TOOD.NUM_CLASSES": Range(1),
    "MODEL.TOOD.NUM_CONVS": Range(1),
    "MODEL.TOOD.CONV_DIM": Range(8),
    "MODEL.TOOD.PRIOR_PROB": Range(0, 0.99, above_low=True),
    "MODEL.TOOD.NUM_DCN_CONVS": Range(0),
    "MODEL.TOOD.DCN_NUM_GROUPS": Range(1),
    "MODEL.TOOD.ATSS_ITERS": Range(0),
    "MODEL.TOOD.ATSS_TOPK": Range(1),
    "MODEL.TOOD.TAL_TOPK": Range(1),
    "MODEL.TOOD.TAL_ALPHA": Range(0),
    "MODEL.TOOD.TAL_BETA": Range(0),
    "MODEL.TOOD.FOCAL_LOSS_GAMMA": Range(0),
    "MODEL.TOOD.FOCAL_LOSS_ALPHA": Range(0, 1),
    "MODEL.TOOD.CLS_LOSS_WEIGHT": Range(0),
    "MODEL.TOOD.BOX_REG_LOSS_WEIGHT": Range(0),
    "MODEL.TOOD.SCORE_THRESH_TEST": Range(0, 1),
    "MODEL.TOOD.TOPK_CANDIDATES_TEST": Range(1),
    "MODEL.TOOD.NMS_THRESH_TEST": Range(0, 1),
    "MODEL.TOOD.EMA_DECAY": Range(0, 0.999999),
    "MODEL.TOOD.EARLY_STOP_PATIENCE": Range(0),
    "TEST.DETECTIONS_PER_IMAGE": Range(1),
    "TEST.EVAL_PERIOD": Range(0),
    "VIS_PERIOD": Range(0),
    "SOLVER.IMS_PER_BATCH": Range(1),
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.MAX_ITER": Range(0),
    "SOLVER.WARMUP_ITERS": Range(0),
    "SOLVER.CHECKPOINT_PERIOD": Range(1),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "DATALOADER.NUM_WORKERS": Range(0),
}
CHOICES = {
    "INPUT.FORMAT": ("RGB", "BGR"),
    "MODEL.TOOD.ANCHOR_TYPE": ANCHOR_TYPES,
    "MODEL.TOOD.PRECISION_TRAIN": tuple(PRECISIONS),
    "MODEL.TOOD.PRECISION_TEST": tuple(PRECISIONS),
}
REGISTRIES = {"MODEL.TOOD.HEAD": HEAD_REGISTRY, "MODEL.TOOD.ASSIGNER": ASSIGNER_REGISTRY}


def check_nothing_removed(cfg: CfgNode, defaults: CfgNode) -> None:
    """
    A config file can set anything to null, which yacs does not mind.

    Raises:
        UserError: with the key, for the first that has a default and is None.
    """
    for key in known_keys(defaults):
        if _value(cfg, key) is None and _value(defaults, key) is not None:
            raise UserError(f"{key} is None; leave it out, or set it.")


def check_config(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: with key and value, for the first that cannot be.
    """
    for key, allowed in RANGES.items():
        value = _value(cfg, key)
        if not allowed.holds(value):
            raise UserError(f"{key} is {value}; it must be {allowed}.")
    registered = {key: [name for name, _ in registry] for key, registry in REGISTRIES.items()}
    for key, allowed in {**CHOICES, **registered}.items():
        value = _value(cfg, key)
        if value not in allowed:
            raise UserError(f"{key} is {value!r}; it must be one of {', '.join(allowed)}.")
    _check_head(cfg.MODEL.TOOD)
    _check_levels(cfg)


def check_training(cfg: CfgNode) -> None:
    """
    Raises:
        UserError: for what a training cannot do, though all of it can be.
    """
    patience = cfg.MODEL.TOOD.EARLY_STOP_PATIENCE
    if patience and not (cfg.TEST.EVAL_PERIOD and cfg.DATASETS.TEST):
        raise UserError(
            f"MODEL.TOOD.EARLY_STOP_PATIENCE is {patience}, but nothing is evaluated on the way; "
            "set TEST.EVAL_PERIOD to a number of iterations, and name data with --val-data."
        )


def _check_head(tood: CfgNode) -> None:
    if tood.NORM == "GN" and tood.CONV_DIM % 32:
        raise UserError(
            f"MODEL.TOOD.CONV_DIM is {tood.CONV_DIM}; with MODEL.TOOD.NORM GN it must be a "
            "multiple of 32, the number of its groups."
        )
    if tood.CENTERNESS and (tood.HEAD, tood.ASSIGNER) != ("parallel", "atss"):
        raise UserError(
            f"MODEL.TOOD.CENTERNESS is True with the head {tood.HEAD} and the assigner "
            f"{tood.ASSIGNER}; it is for MODEL.TOOD.HEAD parallel with MODEL.TOOD.ASSIGNER atss."
        )
    if tood.CONV_DIM % 8:
        raise UserError(
            f"MODEL.TOOD.CONV_DIM is {tood.CONV_DIM}; it must be a multiple of 8, for some layers "
            "have an eighth or a quarter of it."
        )
    if tood.NUM_DCN_CONVS > tood.NUM_CONVS:
        raise UserError(
            f"MODEL.TOOD.NUM_DCN_CONVS is {tood.NUM_DCN_CONVS}, but there are only "
            f"{tood.NUM_CONVS} convolutions (MODEL.TOOD.NUM_CONVS)."
        )
    if tood.NUM_DCN_CONVS and tood.CONV_DIM % tood.DCN_NUM_GROUPS:
        raise UserError(
            f"MODEL.TOOD.DCN_NUM_GROUPS is {tood.DCN_NUM_GROUPS}; it must divide "
            f"MODEL.TOOD.CONV_DIM, {tood.CONV_DIM}."
        )
    weights = tood.BBOX_REG_WEIGHTS
    if len(weights) != 4 or not all(type(w) in (int, float) and w > 0 for w in weights):
        raise UserError(
            f"MODEL.TOOD.BBOX_REG_WEIGHTS is {tuple(weights)}; it must be four numbers above 0."
        )


def _check_levels(cfg: CfgNode) -> None:
    """One anchor a location, and as many sizes as there are feature maps."""
    features = cfg.MODEL.TOOD.IN_FEATURES
    if not features:
        raise UserError("MODEL.TOOD.IN_FEATURES is empty; name the feature maps, as p3 to p7.")
    if cfg.MODEL.BACKBONE.NAME == "build_tood_resnet_fpn_backbone":
        known = [f"p{name[len('res') :]}" for name in cfg.MODEL.FPN.IN_FEATURES] + ["p6", "p7"]
        unknown = [name for name in features if name not in known]
        if unknown:
            raise UserError(
                f"MODEL.TOOD.IN_FEATURES has {unknown[0]!r}, but the backbone makes "
                f"{', '.join(known)}."
            )
    generator = cfg.MODEL.ANCHOR_GENERATOR
    for key, values in (("SIZES", generator.SIZES), ("ASPECT_RATIOS", generator.ASPECT_RATIOS)):
        if not values or not all(isinstance(v, (list, tuple)) and len(v) == 1 for v in values):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} is {values}; TOOD has one anchor a location, so "
                "each level needs one, as in [[64], [128]]."
            )
        if len(values) not in (1, len(features)):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} has {len(values)} levels, but "
                f"MODEL.TOOD.IN_FEATURES has {len(features)}: {', '.join(features)}."
            )


def known_keys(cfg: CfgNode, prefix: str = "") -> List[str]:
    """Every key of a config, with dots."""
    keys = []
    for name, value in cfg.items():
        keys.append(prefix + name)
        if isinstance(value, CfgNode):
            keys += known_keys(value, f"{prefix}{name}.")
    return keys


def nearest_key(cfg: CfgNode, key: str) -> Optional[str]:
    """The known key that an unknown one was probably meant to be."""
    close = difflib.get_close_matches(key, known_keys(cfg), n=1, cutoff=0.6)
    return close[0] if close else None


def _value(cfg: CfgNode, key: str):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg
