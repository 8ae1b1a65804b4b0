"""From a command line to a validated config, yaml or Python, and to the options of a run."""

import logging
import os
import re
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig

from tood.config.check import (
    check_config,
    check_nothing_removed,
    check_precision,
    get_key,
    known_keys,
    nearest_key,
)
from tood.config.defaults import add_tood_config
from tood.config.files import read_yaml_with_base
from tood.config.inferred import (
    infer_anchor_sizes,
    infer_num_classes,
    infer_pixels,
    is_typed,
)
from tood.config.lazy.check import IMAGES_PER_STEP
from tood.config.lazy.options import (
    apply_lazy_schedule,
    lazy_run_options,
    overridden_paths,
    read_lazy_schedule,
)
from tood.config.lazy.read import is_lazy, load_lazy_config, read_lazy_config
from tood.config.options import RunOptions, TTAOptions, finest_stride_of
from tood.config.schedule import Schedule
from tood.config.unread import check_unread
from tood.data.check import InputSize
from tood.data.datasets import DataOptions
from tood.utils.errors import UserError, reason_of
from tood.utils.tiles import TileOptions

logger = logging.getLogger(__name__)

Config = Union[CfgNode, DictConfig]
# Values that programs change, and their keys in yaml.
CHANGES = {
    "weights": "MODEL.WEIGHTS",
    "device": "MODEL.DEVICE",
    "precision_test": "MODEL.TOOD.PRECISION_TEST",
    "score_thresh_test": "MODEL.TOOD.SCORE_THRESH_TEST",
}


def load_config(
    config_file: str,
    opts: Sequence[str] = (),
    train_data: Optional[Sequence[str]] = None,
    val_data: Optional[Sequence[str]] = None,
    architectures: Sequence[str] = ("TOOD",),
    changes: Optional[Mapping[str, object]] = None,
    allow_python: bool = True,
    training: bool = False,
    resume: bool = False,
) -> Config:
    """Read the config of a command: defaults, file, overrides, data sets, in this order. On a
    machine without a GPU its device is the CPU. The number of classes that neither file nor
    overrides state is that of the data or of the weights.

    Args:
        config_file: path of a yaml config or of one in Python.
        opts: keys and values in turn; for a config in Python, "key=value" each.
        train_data, val_data: replace the config's data sets.
        architectures: allowed values of ``MODEL.META_ARCHITECTURE``; only TOOD's options are
            checked.
        changes: further values, by the names of ``CHANGES``.
        allow_python: False refuses configs in Python.
        training, resume: of :func:`~tood.config.inferred.infer_num_classes`.

    Returns:
        a ``CfgNode``, or a ``DictConfig`` of a config in Python.

    Raises:
        UserError: for a file or an option that cannot be used.
    """
    changes = changes or {}
    if is_lazy(config_file):
        if not allow_python:
            raise UserError(
                f"{config_file} is a config in Python, which this tool does not take; name the "
                "yaml config of the model."
            )
        return load_lazy_config(config_file, opts, train_data, val_data, changes)
    cfg = _read(config_file, opts)
    if cfg.MODEL.META_ARCHITECTURE not in architectures:
        raise UserError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, not "
            f"{' or '.join(architectures)}; name one of the files in configs/ with "
            "--config-file."
        )
    if train_data:
        cfg.DATASETS.TRAIN = tuple(train_data)
    if val_data:
        cfg.DATASETS.TEST = tuple(val_data)
    if cfg.MODEL.META_ARCHITECTURE == "TOOD":
        infer_anchor_sizes(cfg, config_file, opts)
    finish_config(cfg, changes)
    infer_pixels(cfg, config_file, opts)
    if cfg.MODEL.META_ARCHITECTURE == "TOOD" and not is_typed(config_file, opts):
        infer_num_classes(cfg, training=training, resume=resume)
    return cfg


def finish_config(cfg: CfgNode, changes: Optional[Mapping[str, object]] = None) -> None:
    """Apply ``changes``, move a config to the CPU where there is no GPU, and check it.

    Raises:
        UserError: for an invalid value.
    """
    for name, value in (changes or {}).items():
        cfg.merge_from_list([CHANGES[name], value])
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    cfg.MODEL.WEIGHTS = os.path.expanduser(cfg.MODEL.WEIGHTS)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found: using the CPU (as MODEL.DEVICE cpu does).")
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.META_ARCHITECTURE == "TOOD":
        check_config(cfg)
        check_unread(cfg)
        _set_precision(cfg)


def run_options(cfg: Config) -> RunOptions:
    """Return the options of a config of either kind."""
    if isinstance(cfg, DictConfig):
        return lazy_run_options(cfg)
    tiles = tile_options(cfg)
    data = DataOptions(
        train=cfg.DATASETS.TRAIN,
        test=cfg.DATASETS.TEST,
        num_classes=cfg.MODEL.TOOD.NUM_CLASSES,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        train_size=InputSize(min(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN, tiles),
        test_size=InputSize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, tiles),
        finest_stride=finest_stride_of(cfg.MODEL.TOOD.IN_FEATURES),
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    aug = cfg.TEST.AUG
    return RunOptions(
        data=data,
        weights=cfg.MODEL.WEIGHTS,
        weights_key="MODEL.WEIGHTS",
        output_dir=cfg.OUTPUT_DIR,
        device=cfg.MODEL.DEVICE,
        input_format=cfg.INPUT.FORMAT,
        min_size_test=cfg.INPUT.MIN_SIZE_TEST,
        max_size_test=cfg.INPUT.MAX_SIZE_TEST,
        tta=TTAOptions(aug.ENABLED, aug.MIN_SIZES, aug.MAX_SIZE, aug.FLIP),
        eval_period=cfg.TEST.EVAL_PERIOD,
        early_stop_patience=cfg.MODEL.TOOD.EARLY_STOP_PATIENCE,
        report=cfg.MODEL.TOOD.REPORT,
        tiles=tiles,
    )


def tile_options(cfg: CfgNode) -> TileOptions:
    """Return the options of ``INPUT.TILES``."""
    tiles = cfg.INPUT.TILES
    return TileOptions(tiles.SIZE, tiles.OVERLAP, tiles.MIN_VISIBLE, tiles.EMPTY_SHARE)


def check_training(cfg: Config) -> None:
    """
    Raises:
        UserError: for values that are valid, but not together in a training.
    """
    options = run_options(cfg)
    keys = ("MODEL.TOOD.EARLY_STOP_PATIENCE", "TEST.EVAL_PERIOD")
    if isinstance(cfg, DictConfig):
        keys = ("train.early_stop_patience", "train.eval_period")
    if options.early_stop_patience and not (options.eval_period and options.data.test):
        raise UserError(
            f"{keys[0]} is {options.early_stop_patience}, but nothing is evaluated during "
            f"training; set {keys[1]} to a number of iterations, and name data with --val-data."
        )


def split_options(values: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Split what argparse gives to a flag that takes several values.

    Returns:
        the values before the first config key, and the options from there on.
    """
    cfg = get_cfg()
    add_tood_config(cfg)
    keys = set(known_keys(cfg))
    values = list(values)
    for i, value in enumerate(values):
        misspelt = re.fullmatch(
            r"(MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER)\.[A-Z0-9_.]+", value
        )
        of_lazy = re.match(r"(model|dataloader|optimizer|lr_multiplier|train)\.[\w.]+=", value)
        if value in keys or misspelt or of_lazy:
            return values[:i], values[i:]
    return values, []


def read_schedule(cfg: Config) -> Schedule:
    """Return the schedule of a config of either kind."""
    if isinstance(cfg, DictConfig):
        return read_lazy_schedule(cfg)
    return Schedule.from_config(cfg)


def schedule_of_file(config_file: str) -> Schedule:
    """Return the schedule that a config file states, before any override."""
    if is_lazy(config_file):
        return read_schedule(read_lazy_config(config_file))
    return read_schedule(_read(config_file, ()))


def apply_schedule(cfg: Config, schedule: Schedule, overrides: Sequence[str]) -> Dict[str, object]:
    """Change a config to a schedule, except for the keys that the user's overrides set.

    Returns:
        the keys that were changed, and their values.
    """
    if isinstance(cfg, DictConfig):
        return apply_lazy_schedule(cfg, schedule, overrides)
    options = {k: v for k, v in schedule.options().items() if k not in overrides[::2]}
    for item in options.items():
        cfg.merge_from_list(item)
    return options


def sets_images_per_step(config_file: str, overrides: Sequence[str]) -> bool:
    """Return whether the user's overrides set the number of images per step."""
    if is_lazy(config_file):
        return IMAGES_PER_STEP in overridden_paths(overrides)
    return "SOLVER.IMS_PER_BATCH" in overrides[::2]


def _read(config_file: str, opts: Sequence[str]) -> CfgNode:
    cfg = get_cfg()
    add_tood_config(cfg)
    defaults = cfg.clone()
    merge_options(cfg, config_file, opts)
    check_nothing_removed(cfg, defaults)
    return cfg


def merge_options(cfg: CfgNode, config_file: str, opts: Sequence[str]) -> None:
    """Merge a file, "" for none, and KEY VALUE options.

    Raises:
        UserError: for what is wrong in them.
    """
    if config_file and not os.path.isfile(config_file):
        raise UserError(f"The config file {config_file} does not exist; name another one.")
    _refuse_lazy_overrides(opts, config_file)
    try:
        if config_file:
            cfg.merge_from_other_cfg(CfgNode(read_yaml_with_base(config_file)))
        cfg.merge_from_list(_with_floats(cfg, opts))
    except UserError:
        raise
    except (
        *(AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError, RecursionError),
        yaml.YAMLError,
    ) as error:
        reason = reason_of(error, limit=400).strip("'\"")
        unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", reason)
        nearest = nearest_key(cfg, unknown[1]) if unknown else None
        where = "An option"
        if config_file:
            where = f"The config file {config_file} or an option after it"
        raise UserError(
            f"{where} is wrong: {reason}" + (f"; did you mean {nearest}?" if nearest else ".")
        ) from error


def _with_floats(cfg: CfgNode, opts: Sequence[str]) -> List[str]:
    """Return options in which integers for floating point values are such values."""
    opts, floats = list(opts), {key for key in known_keys(cfg) if type(get_key(cfg, key)) is float}
    for i in range(1, len(opts), 2):
        if opts[i - 1] in floats and re.fullmatch(r"[+-]?\d+", str(opts[i])):
            opts[i] = f"{opts[i]}.0"
    return opts


def _refuse_lazy_overrides(opts: Sequence[str], config_file: str) -> None:
    for opt in opts[::2]:
        path, equals, value = str(opt).partition("=")
        if equals:
            key = path.upper() if path.isupper() else "KEY"
            raise UserError(
                f"{opt} is an override for configs in Python; for "
                f"{config_file or 'a .yaml config'}, write {key} {value}, with a space."
            )


def _set_precision(cfg: CfgNode) -> None:
    """Let ``SOLVER.AMP.ENABLED``, Detectron2's key, be the half precision of the device."""
    tood = cfg.MODEL.TOOD
    if cfg.SOLVER.AMP.ENABLED and tood.PRECISION_TRAIN == "float32":
        tood.PRECISION_TRAIN = "bfloat16" if cfg.MODEL.DEVICE == "cpu" else "float16"
    cfg.SOLVER.AMP.ENABLED = False  # or Detectron2 would make a step of its own
    for key in ("PRECISION_TRAIN", "PRECISION_TEST"):
        check_precision(f"MODEL.TOOD.{key}", tood[key], cfg.MODEL.DEVICE)


def check_weights(weights: str, key: str = "MODEL.WEIGHTS") -> None:
    """
    Args:
        weights: a path, or a name that is downloaded if it has to be.
        key: names it in messages.

    Raises:
        UserError: where they are not available.
    """
    path = weights.split("?")[0]  # Detectron2 takes options after a question mark
    if not path or os.path.isfile(path):
        return
    try:
        there = os.path.isfile(PathManager.get_local_path(path))
        reason = "the file does not exist"
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        there, reason = False, " ".join(str(error).split())
    if not there:
        raise UserError(
            f"The weights {path} ({key}) are not available: {reason}; name an existing file, or "
            "'' to train from scratch."
        )
