"""Configs in Python, Detectron2's LazyConfig: read, checked and built. Errors are one sentence."""

import builtins
import difflib
import logging
import os
import re
import traceback
from typing import Any, List, Mapping, Optional, Sequence

import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf

from tood.config.check import check_precision
from tood.config.files import check_targets, read_yaml
from tood.config.lazy.check import (
    IMAGES_PER_STEP,
    check_keywords,
    check_types,
    check_values,
    default_train,
    target_of,
)
from tood.utils.errors import UserError, first_line

logger = logging.getLogger(__name__)

# Parts that a config in Python must have, and whether they are calls.
PARTS = {
    "model": True,
    "optimizer": True,
    "lr_multiplier": True,
    "dataloader": False,
    "train": False,
}
# Values that it must have, and what for.
VALUES = {
    "dataloader.train.dataset.names": "by which data are checked and their classes named",
    IMAGES_PER_STEP: "from which speed and schedule are computed",
    "model.num_classes": "which the data are compared with",
    "model.head_in_features": "which the data are compared with",
}
# Values that programs change, by the names of tood.config.read.CHANGES.
CHANGES = {
    "weights": "train.init_checkpoint",
    "device": "train.device",
    "precision_test": "model.precision_test",
    "score_thresh_test": "model.score_thresh_test",
}
_MISSING = object()


def is_lazy(config_file: str) -> bool:
    """Return whether a file is a config in Python, or what a training by one has left."""
    if str(config_file).endswith(".py"):
        return True
    if not os.path.isfile(config_file):
        return False
    with open(config_file, encoding="utf-8", errors="replace") as f:
        return any(line.startswith("model:") for line in f)  # yaml configs have MODEL


def load_lazy_config(
    config_file: str,
    overrides: Sequence[str] = (),
    train_data: Optional[Sequence[str]] = None,
    val_data: Optional[Sequence[str]] = None,
    changes: Optional[Mapping[str, object]] = None,
) -> DictConfig:
    """Read a config in Python, apply overrides and changes, and check it.

    Args:
        changes: values by the names of ``CHANGES``; the others as in
            :func:`tood.config.read.load_config`.

    Raises:
        UserError: for a file or an override that cannot be used.
    """
    lazy = read_lazy_config(config_file, overrides)
    for path, names in (("train", train_data), ("test", val_data)):
        if names:
            names = names[0] if len(names) == 1 else list(names)
            OmegaConf.update(lazy, f"dataloader.{path}.dataset.names", names, merge=False)
    for name, value in (changes or {}).items():
        OmegaConf.update(lazy, CHANGES[name], value, merge=False)
    if lazy.train.device.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found: using the CPU (as train.device=cpu does).")
        lazy.train.device = "cpu"
    for path in ("train.output_dir", "train.init_checkpoint"):
        OmegaConf.update(lazy, path, os.path.expanduser(OmegaConf.select(lazy, path)), merge=False)
    check_values(lazy)
    _set_precision(lazy)
    return lazy


def read_lazy_config(config_file: str, overrides: Sequence[str] = ()) -> DictConfig:
    """
    Args:
        config_file: in Python, or as ``LazyConfig.save`` writes it.
        overrides: "key=value", as Detectron2's ``LazyConfig.apply_overrides`` takes them.

    Raises:
        UserError: for a file or an override that cannot be used.
    """
    lazy = _load(config_file)
    if isinstance(lazy.get("train"), DictConfig):
        lazy.train = OmegaConf.merge(default_train(), lazy.train)
    for override in overrides:
        _override(lazy, override, config_file)
    for name, is_call in PARTS.items():
        node = lazy.get(name)
        if not isinstance(node, DictConfig) or (is_call and "_target_" not in node):
            raise UserError(
                f"The config file {config_file} has no {name}{' to call' if is_call else ''}; "
                "write it as the files in configs/lazy do, or import theirs."
            )
    check_keywords(lazy)
    for path, use in VALUES.items():
        if OmegaConf.select(lazy, path) is None:
            raise UserError(f"The config file {config_file} has no {path}, {use}; add it.")
    check_types(lazy.train, default_train(), "train")
    return lazy


def build_part(lazy: DictConfig, path: str) -> Any:
    """Call Detectron2's ``instantiate`` for one node.

    Raises:
        UserError: where that fails.
    """
    try:
        return instantiate(OmegaConf.select(lazy, path))
    except UserError:
        raise
    except Exception as error:  # of whatever a config calls
        raise UserError(
            f"{path} of the config cannot be built: {first_line(error)}; look at its arguments."
        ) from error


def build_lazy_model(lazy: DictConfig):
    """Return the ``model`` of a config on its device."""
    return build_part(lazy, "model").to(lazy.train.device)


def _set_precision(lazy: DictConfig) -> None:
    """Let ``train.amp.enabled``, Detectron2's key, be the half precision of the device."""
    model, device = lazy.model, lazy.train.device
    if lazy.train.amp.enabled and model.get("precision_train", "float32") == "float32":
        model.precision_train = "bfloat16" if device == "cpu" else "float16"
    lazy.train.amp.enabled = False
    for key in ("precision_train", "precision_test"):
        check_precision(f"model.{key}", model.get(key, "float32"), device)


def _load(config_file: str) -> DictConfig:
    if not os.path.isfile(config_file):
        raise UserError(f"The config file {config_file} does not exist; name another one.")
    import_function = builtins.__import__
    if not config_file.endswith(".py"):
        content = read_yaml(config_file)
        check_targets(content, config_file)
        if not isinstance(content, dict):
            raise UserError(f"{config_file} is not what LazyConfig.save writes; name another file.")
        return OmegaConf.create(content, flags={"allow_objects": True})
    try:
        lazy = LazyConfig.load(config_file)
    except Exception as error:  # of whatever a config in Python does
        raise UserError(
            f"The config file {config_file} cannot be used: {first_line(error)}{_place(error)}."
        ) from error
    finally:
        builtins.__import__ = import_function  # Detectron2 leaves its own after an error
    return lazy


def _override(lazy: DictConfig, override: str, config_file: str) -> None:
    match = re.fullmatch(r"\+*([\w.]+)=(.*)", override, re.DOTALL)
    key = match[1] if match else override
    if re.fullmatch(r"[A-Z][A-Z0-9_]+(\.[A-Z0-9_]+)*", key):
        raise UserError(
            f"{key!r} is a key of .yaml configs; for {config_file}, write KEY=VALUE with its own "
            "keys, as train.init_checkpoint=model.pth."
        )
    if match is None:
        advice = "write KEY=VALUE, as train.max_iter=100"
        if override.startswith("--"):
            advice = "flags go before the overrides"
        raise UserError(f"{override!r} is not an override for {config_file}; {advice}.")
    before = _find(lazy, key)
    # Another argument of a call may be added; its name is checked later.
    if before is _MISSING and target_of(_find(lazy, key.rpartition(".")[0])) is None:
        close = difflib.get_close_matches(key, _all_keys(lazy), n=1)
        raise UserError(
            f"There is no {key} in {config_file}"
            + (f"; did you mean {close[0]}?" if close else ".")
        )
    try:
        LazyConfig.apply_overrides(lazy, [f"{key}={match[2]}"])
        after = _find(lazy, key)
    except Exception as error:  # of Detectron2, OmegaConf and Hydra
        raise UserError(
            f"The override {override} cannot be used: {first_line(error)}; a value with special "
            "characters needs quotes of its own, as 'key=\"value\"'."
        ) from error
    if isinstance(before, DictConfig) and not isinstance(after, DictConfig):
        raise UserError(
            f"{key} is {after!r}, but it has keys of its own, as {key}.{next(iter(before))}; set "
            "one of them."
        )


def _find(lazy: DictConfig, key: str) -> Any:
    if not key:
        return None
    return OmegaConf.select(
        lazy, key, default=_MISSING, throw_on_resolution_failure=False, throw_on_missing=False
    )


def _all_keys(node: DictConfig, prefix: str = "") -> List[str]:
    keys = []
    for name in node:
        keys.append(f"{prefix}{name}")
        if not OmegaConf.is_interpolation(node, name) and isinstance(node[name], DictConfig):
            keys += _all_keys(node[name], f"{prefix}{name}.")
    return keys


def _place(error: BaseException) -> str:
    """Return the line of a config in Python that an error comes from."""
    if isinstance(error.__cause__, SyntaxError):
        return f" (line {error.__cause__.lineno}: {error.__cause__.msg})"
    frames = [x for x in traceback.extract_tb(error.__traceback__) if x.name == "<module>"]
    return f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
