"""Checks of a config before anything is built from it; each mistake is one sentence."""

from typing import Dict, List

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY

from tood.config.defaults import add_tood_config
from tood.config.options import Range, get_training_ranges
from tood.modeling.assigners import ASSIGNER_REGISTRY
from tood.modeling.backbone.separable import CONV_TYPES
from tood.modeling.dense_head import ANCHOR_TYPES, HEAD_REGISTRY
from tood.modeling.detector import PRECISIONS
from tood.modeling.head import TOODHead
from tood.modeling.losses import BOX_REG_LOSS_REGISTRY
from tood.utils.errors import UserError
from tood.utils.suggest import suggest

LARGEST = 2**63
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
    "TEST.DETECTIONS_PER_IMAGE": Range(1),
    "TEST.EVAL_PERIOD": Range(0),
    "VIS_PERIOD": Range(0),
    "SOLVER.IMS_PER_BATCH": Range(1),
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.MAX_ITER": Range(1),
    "SOLVER.MOMENTUM": Range(0, 0.999999),
    "SOLVER.WEIGHT_DECAY": Range(0),
    "SOLVER.WEIGHT_DECAY_NORM": Range(0),
    "SOLVER.GAMMA": POSITIVE,
    "SOLVER.WARMUP_FACTOR": Range(0, 1),
    "SOLVER.BIAS_LR_FACTOR": POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": POSITIVE,
    "MODEL.FPN.OUT_CHANNELS": Range(1),
    "MODEL.BACKBONE.FREEZE_AT": Range(0),
    "MODEL.TIMM.FREEZE_AT": Range(0),
    "MODEL.TIMM.DROP_PATH": Range(0, 1),
    "MODEL.RESNETS.NUM_GROUPS": Range(1),
    "MODEL.RESNETS.WIDTH_PER_GROUP": Range(1),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": Range(1),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": Range(1),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": Range(1),
    "INPUT.MIN_SIZE_TEST": Range(0),
    "INPUT.MAX_SIZE_TEST": Range(1),
    "INPUT.MAX_SIZE_TRAIN": Range(1),
    "INPUT.BIT_DEPTH": Range(8, 16),
    "INPUT.TILES.SIZE": Range(0),
    "INPUT.TILES.OVERLAP": Range(0),
    "INPUT.TILES.MIN_VISIBLE": Range(0, 1, above_low=True),
    "INPUT.TILES.EMPTY_SHARE": Range(0),
    "TEST.PRECISE_BN.NUM_ITER": Range(1),
    "SOLVER.WARMUP_ITERS": Range(0),
    "SOLVER.CHECKPOINT_PERIOD": Range(1),
    "SOLVER.CHECKPOINT_KEEP": Range(0),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "DATALOADER.NUM_WORKERS": Range(0),
    "DATALOADER.REPEAT_THRESHOLD": Range(0),
}
# Detectron2's norms; a newer one has LN as well.
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
CHOICES = {
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "DATALOADER.SAMPLER_TRAIN": (
        *("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
    ),
    "SOLVER.LR_SCHEDULER_NAME": (
        *("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": NORMS,
    "MODEL.FPN.NORM": NORMS,
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.TOOD.NORM": NORMS,
    "MODEL.TOOD.ANCHOR_TYPE": ANCHOR_TYPES,
    "MODEL.TOOD.CONV_TYPE": CONV_TYPES,
    "MODEL.TOOD.TRACKER": ("", "mlflow", "wandb"),
    "MODEL.TOOD.PRECISION_TRAIN": tuple(PRECISIONS),
    "MODEL.TOOD.PRECISION_TEST": tuple(PRECISIONS),
}
# Lists of numbers: their length, 0 for any, and what each may be.
LISTS = {
    "INPUT.MIN_SIZE_TRAIN": (0, Range(1)),
    "MODEL.PIXEL_MEAN": (3, Range(0, 255)),
    "MODEL.PIXEL_STD": (3, POSITIVE),
    "MODEL.TOOD.BBOX_REG_WEIGHTS": (4, POSITIVE),
}
REGISTRIES = {
    "MODEL.TOOD.HEAD": HEAD_REGISTRY,
    "MODEL.TOOD.ASSIGNER": ASSIGNER_REGISTRY,
    "MODEL.TOOD.BOX_REG_LOSS": BOX_REG_LOSS_REGISTRY,
}


def check_nothing_removed(cfg: CfgNode, defaults: CfgNode) -> None:
    """Raise UserError for a key that a file sets to null, which yacs accepts for all of them."""
    for key in known_keys(defaults):
        if get_key(cfg, key) is None and get_key(defaults, key) is not None:
            raise UserError(f"{key} is None; remove it, or set it.")


def refuse_huge(cfg: CfgNode) -> None:
    """Raise UserError for an integer that no library takes, in any value or list of values."""
    for key in known_keys(cfg):
        values = [get_key(cfg, key)]
        for x in values:
            if isinstance(x, (list, tuple)):
                values.extend(x)
            elif isinstance(x, int) and abs(x) >= LARGEST:
                bits = x.bit_length()  # Python refuses to write thousands of digits
                raise UserError(f"{key} has an integer of {bits} bits; it must be less than 2^63.")


def check_config(cfg: CfgNode) -> None:
    """Raise UserError with key and value for the first value that is not possible."""
    for key, allowed in {**RANGES, **get_training_ranges()}.items():
        allowed.check(key, get_key(cfg, key))
    registered = {key: [name for name, _ in registry] for key, registry in REGISTRIES.items()}
    for key, allowed in {**CHOICES, **registered}.items():
        value = get_key(cfg, key)
        if value not in allowed:
            names = ", ".join(str(x) or "''" for x in allowed)
            yours = ", or of a file of yours that is imported first" * (key in registered)
            raise UserError(f"{key} is {value!r}; it must be one of {names}{yours}.")
    for key, (length, allowed) in LISTS.items():
        values = get_key(cfg, key)
        values = values if isinstance(values, (list, tuple)) else [values]
        fits = len(values) == length if length else len(values) > 0
        if not fits or not all(map(allowed.contains, values)):
            number = length or "one or more"
            raise UserError(f"{key} is {values}; it must be {number} numbers, each {allowed}.")
    _check_device(cfg.MODEL.DEVICE)
    _check_steps(cfg.SOLVER.STEPS)
    _check_names(cfg)
    _check_head(cfg.MODEL.TOOD)
    _check_levels(cfg)
    _check_tiles(cfg)
    _check_repetition(cfg.DATALOADER)


def _check_tiles(cfg: CfgNode) -> None:
    tiles, sampler = cfg.INPUT.TILES, cfg.DATALOADER.SAMPLER_TRAIN
    if tiles.SIZE and tiles.OVERLAP >= tiles.SIZE:
        raise UserError(
            f"INPUT.TILES.OVERLAP is {tiles.OVERLAP}; it must be less than the size of a tile, "
            f"{tiles.SIZE}."
        )
    if tiles.SIZE and sampler == "RandomSubsetTrainingSampler":
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN is {sampler}, which does not know tiles (INPUT.TILES); set "
            "it to TrainingSampler."
        )


def _check_repetition(options: CfgNode) -> None:
    """Check that images are repeated by a threshold, and a threshold repeats images."""
    sampler, threshold = options.SAMPLER_TRAIN, options.REPEAT_THRESHOLD
    if sampler == "RepeatFactorTrainingSampler" and not threshold:
        raise UserError(
            "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler repeats nothing while "
            "DATALOADER.REPEAT_THRESHOLD is 0; set it to a share of the images, as 0.3: images of "
            "classes in fewer come more often."
        )
    if threshold and sampler != "RepeatFactorTrainingSampler":
        raise UserError(
            f"DATALOADER.REPEAT_THRESHOLD is {threshold}, which needs DATALOADER.SAMPLER_TRAIN "
            f"RepeatFactorTrainingSampler, not {sampler}."
        )


def _check_head(tood: CfgNode) -> None:
    """Check the rules between the options of a head."""
    conv_dim, groups = tood.CONV_DIM, tood.DCN_NUM_GROUPS
    if tood.NORM == "GN" and conv_dim % 32:
        raise UserError(
            f"MODEL.TOOD.CONV_DIM is {conv_dim}; with MODEL.TOOD.NORM GN it must be a multiple of "
            "32, the number of its groups."
        )
    head = HEAD_REGISTRY.get(tood.HEAD)  # a function, or a user's class
    is_aligned = (
        tood.HEAD == "task_aligned" or isinstance(head, type) and issubclass(head, TOODHead)
    )
    if tood.CENTERNESS and (is_aligned or tood.ASSIGNER == "tal"):
        raise UserError(
            f"MODEL.TOOD.CENTERNESS is True with the head {tood.HEAD} and the assigner "
            f"{tood.ASSIGNER}; it is for MODEL.TOOD.HEAD parallel with MODEL.TOOD.ASSIGNER atss."
        )
    if conv_dim % 8:
        raise UserError(
            f"MODEL.TOOD.CONV_DIM is {conv_dim}; it must be a multiple of 8, because some layers "
            "have an eighth or a quarter of it."
        )
    if tood.NUM_DCN_CONVS > tood.NUM_CONVS:
        raise UserError(
            f"MODEL.TOOD.NUM_DCN_CONVS is {tood.NUM_DCN_CONVS}, but there are only "
            f"{tood.NUM_CONVS} convolutions (MODEL.TOOD.NUM_CONVS)."
        )
    if tood.NUM_DCN_CONVS and tood.CONV_TYPE != "plain":
        raise UserError(
            f"MODEL.TOOD.NUM_DCN_CONVS is {tood.NUM_DCN_CONVS} with MODEL.TOOD.CONV_TYPE "
            f"{tood.CONV_TYPE}; set it to 0, or the type to plain."
        )
    if tood.NUM_DCN_CONVS and conv_dim % groups:
        raise UserError(
            f"MODEL.TOOD.DCN_NUM_GROUPS is {groups}; it must divide MODEL.TOOD.CONV_DIM, "
            f"{conv_dim}."
        )


def _check_device(device: str) -> None:
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UserError(
            f"MODEL.DEVICE is {device!r}; it must be cpu, cuda, or a GPU's name, as cuda:1."
        ) from error


def _check_names(cfg: CfgNode) -> None:
    names = {"DATASETS.TRAIN": "data sets, files or folders", "MODEL.TOOD.IN_FEATURES": "maps"}
    names["DATASETS.TEST"] = names["DATASETS.TRAIN"]
    for key, meaning in names.items():
        wrong = [x for x in get_key(cfg, key) if not isinstance(x, str)]
        if wrong:
            raise UserError(f"{key} has {wrong[0]!r}; it must contain names of {meaning}.")


def _check_steps(steps) -> None:
    if not all(type(x) is int and x > 0 for x in steps) or sorted(set(steps)) != list(steps):
        raise UserError(
            f"SOLVER.STEPS is {tuple(steps)}; it must be increasing numbers of iterations, from 1 "
            "on, or () for none."
        )


def _check_levels(cfg: CfgNode) -> None:
    """One anchor per location, and as many sizes as there are feature maps."""
    features = cfg.MODEL.TOOD.IN_FEATURES
    if not features:
        raise UserError("MODEL.TOOD.IN_FEATURES is empty; name the feature maps, as p3 to p7.")
    backbones = [name for name, _ in BACKBONE_REGISTRY]
    backbone = cfg.MODEL.BACKBONE.NAME
    if backbone not in backbones:
        hint = suggest(backbone, backbones, cutoff=0)
        raise UserError(f"There is no backbone {backbone!r} (MODEL.BACKBONE.NAME){hint}")
    timm = cfg.MODEL.TIMM.NAME
    if bool(timm) != (backbone == "build_timm_fpn_backbone"):
        raise UserError(
            f"MODEL.TIMM.NAME is {timm!r} with MODEL.BACKBONE.NAME {backbone}; a timm model needs "
            "both its name and build_timm_fpn_backbone."
        )
    generator = cfg.MODEL.ANCHOR_GENERATOR
    for key, values in (("SIZES", generator.SIZES), ("ASPECT_RATIOS", generator.ASPECT_RATIOS)):
        if not values or not all(isinstance(v, (list, tuple)) and len(v) == 1 for v in values):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} is {values}; TOOD has one anchor per location, so "
                "each level needs one, as in [[64], [128]]."
            )
        if len(values) not in (1, len(features)):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} has {len(values)} levels, but "
                f"MODEL.TOOD.IN_FEATURES has {len(features)}: {', '.join(features)}."
            )


def known_keys(cfg: Dict, prefix: str = "") -> List[str]:
    """Return every key of a config and of the nodes in it, with dots."""
    keys = []
    for name, value in cfg.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, dict):
            keys += known_keys(value, f"{prefix}{name}.")
    return keys


def get_key(cfg: CfgNode, key: str):
    """Return the value of a key with dots."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def list_changes(cfg: CfgNode, group: str) -> List[str]:
    """Return the keys of a group whose values are not the defaults."""
    defaults = get_cfg()
    add_tood_config(defaults)
    known = set(known_keys(defaults))
    values = {key: get_key(cfg, key) for key in known_keys(cfg[group], f"{group}.")}
    return [
        key
        for key, value in values.items()
        if not isinstance(value, CfgNode) and (key not in known or value != get_key(defaults, key))
    ]
