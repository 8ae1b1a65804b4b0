"""From a command line to a config that has been checked."""

import logging
import os
import re
from typing import Dict, List, Optional, Sequence, Set, Tuple

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from tood.config.check import check_config, check_nothing_removed, known_keys, nearest_key
from tood.config.defaults import add_tood_config
from tood.config.lazy import is_lazy, keys_as_in, overridden_keys, read_lazy_config
from tood.config.lazy_view import LAZY_ARCHITECTURE, LAZY_KEYS
from tood.config.schedule import Schedule
from tood.utils.errors import UserError

__all__ = [
    "check_weights",
    "finish_config",
    "load_config",
    "read_schedule",
    "split_options",
    "typed_keys",
]

logger = logging.getLogger(__name__)


def load_config(
    config_file: str,
    opts: Sequence[str] = (),
    train_data: Optional[Sequence[str]] = None,
    val_data: Optional[Sequence[str]] = None,
    architectures: Sequence[str] = ("TOOD",),
    changes: Optional[Dict[str, object]] = None,
) -> CfgNode:
    """
    The config of a command: defaults, file, options, data sets, in this order. On a machine
    without a GPU its device is the CPU.

    Args:
        config_file: path, of a yacs config or of one in Python, which gives a ``LazyView``.
        opts: keys and values in turn; for a config in Python, "key=value" each.
        train_data, val_data: take the place of ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        architectures: that ``MODEL.META_ARCHITECTURE`` may be; only TOOD's options are checked.
        changes: further values by their yacs key.

    Raises:
        UserError: for a file or an option that cannot be used.
    """
    with keys_as_in(config_file):
        cfg = _read(config_file, opts)
        if cfg.MODEL.META_ARCHITECTURE not in (*architectures, LAZY_ARCHITECTURE):
            raise UserError(
                f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, not "
                f"{' or '.join(architectures)}; name one of the files in configs/ with "
                "--config-file."
            )
        if train_data:
            cfg.DATASETS.TRAIN = tuple(train_data)
        if val_data:
            cfg.DATASETS.TEST = tuple(val_data)
        for key, value in (changes or {}).items():
            cfg.merge_from_list([key, value])
        finish_config(cfg)
    return cfg


def finish_config(cfg) -> None:
    """
    What a config needs behind its last change: the CPU where there is no GPU, and its checks.

    Raises:
        UserError: for a value that cannot be.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found: using the CPU (as MODEL.DEVICE cpu does).")
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.META_ARCHITECTURE in ("TOOD", LAZY_ARCHITECTURE):
        check_config(cfg)
        _set_precision(cfg)


def split_options(values: Sequence[str]) -> Tuple[List[str], List[str]]:
    """
    Where a flag takes several values, argparse gives it the options behind them as well.

    Returns:
        the values in front of the first config key, and the options from there on.
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


def read_schedule(config_file: str) -> Schedule:
    """The schedule that a config file states, before any option behind it."""
    return Schedule.from_config(_read(config_file, ()))


def typed_keys(config_file: str, opts: Sequence[str]) -> Set[str]:
    """The yacs keys of a command's options."""
    return overridden_keys(opts) if is_lazy(config_file) else set(opts[::2])


def _read(config_file: str, opts: Sequence[str]) -> CfgNode:
    if is_lazy(config_file):
        return read_lazy_config(config_file, opts)
    cfg = get_cfg()
    add_tood_config(cfg)
    defaults = cfg.clone()
    _merge(cfg, config_file, opts)
    check_nothing_removed(cfg, defaults)
    return cfg


def _merge(cfg, config_file: str, opts: Sequence[str]) -> None:
    if config_file and not os.path.isfile(config_file):
        raise UserError(f"The config file {config_file} does not exist.")
    _refuse_overrides(opts, config_file)
    try:
        if config_file:
            cfg.merge_from_file(config_file)
        cfg.merge_from_list(list(opts))
    except (
        *(AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError),
        yaml.YAMLError,
    ) as error:
        reason = " ".join(str(error).strip("'\"").split()).rstrip(".") or type(error).__name__
        unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", reason)
        nearest = nearest_key(cfg, unknown[1]) if unknown else None
        raise UserError(
            f"The config file {config_file} or an option behind it is wrong: {reason}"
            + (f"; did you mean {nearest}?" if nearest else ".")
        ) from error


def _refuse_overrides(opts: Sequence[str], config_file: str) -> None:
    """Raise UserError for an option of a config in Python."""
    for opt in opts[::2]:
        path, equals, value = str(opt).partition("=")
        if equals:
            key = {lazy: key for key, lazy in LAZY_KEYS.items()}.get(path, "KEY")
            raise UserError(
                f"{opt} is an option for configs in Python; for {config_file or 'a .yaml config'}, "
                f"write {key} {value}, with a space."
            )


def _set_precision(cfg) -> None:
    """``SOLVER.AMP.ENABLED``, Detectron2's key, is the half precision of the device."""
    tood, on_cpu = cfg.MODEL.TOOD, cfg.MODEL.DEVICE == "cpu"
    if cfg.SOLVER.AMP.ENABLED and tood.PRECISION_TRAIN == "float32":
        tood.PRECISION_TRAIN = "bfloat16" if on_cpu else "float16"
    cfg.SOLVER.AMP.ENABLED = False  # or Detectron2 would make a step of its own
    for key in ("PRECISION_TRAIN", "PRECISION_TEST"):
        if on_cpu and tood[key] == "float16":
            raise UserError(f"MODEL.TOOD.{key} float16 needs a GPU; a CPU can do bfloat16.")


def check_weights(weights: str) -> None:
    """
    Args:
        weights: ``MODEL.WEIGHTS``; what it names is downloaded, if it has to be.

    Raises:
        UserError: where that cannot be had.
    """
    path = weights.split("?")[0]  # Detectron2 takes options behind a question mark
    if not path or os.path.isfile(path):
        return
    try:
        there = os.path.isfile(PathManager.get_local_path(path))
        reason = "there is no such file"
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        there, reason = False, " ".join(str(error).split())
    if not there:
        raise UserError(
            f"The weights {path} (MODEL.WEIGHTS) cannot be had: {reason}; name a file that is "
            "here, or '' to train from scratch."
        )
