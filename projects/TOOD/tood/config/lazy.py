"""Configs in Python, Detectron2's LazyConfig: read and checked, each mistake told in one sentence,
and the options of a run and its schedule, which the rest of the project takes as arguments.
"""

import builtins
import difflib
import functools
import inspect
import logging
import os
import re
import traceback
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf

from tood.config.check import RANGES, check_head, check_precision, check_tiles
from tood.config.files import check_targets, read_yaml
from tood.config.options import RunOptions, finest_stride_of
from tood.config.schedule import Schedule
from tood.config.zoo import get_config_file
from tood.data.check import InputSize
from tood.data.datasets import DataOptions
from tood.modeling.assign import ATSS
from tood.modeling.views.tta import TTAOptions
from tood.utils.errors import UserError, first_line
from tood.utils.tiles import TileOptions

logger = logging.getLogger(__name__)

# Parts that a config in Python must have, and whether they are calls.
PARTS = {
    "model": True,
    "optimizer": True,
    "lr_multiplier": True,
    "dataloader": False,
    "train": False,
}
IMAGES_PER_STEP = "dataloader.train.total_batch_size"
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
# Where a value that yaml has a range for is, unless its name is the yaml key's in lower case.
RANGED = {
    "model.assigner.topk": "MODEL.TOOD.TAL_TOPK",
    "model.assigner.alpha": "MODEL.TOOD.TAL_ALPHA",
    "model.assigner.beta": "MODEL.TOOD.TAL_BETA",
    "model.warmup_assigner.topk": "MODEL.TOOD.ATSS_TOPK",
    "model.warmup_assigner.focal_loss_alpha": "MODEL.TOOD.FOCAL_LOSS_ALPHA",
    "model.max_detections_per_image": "TEST.DETECTIONS_PER_IMAGE",
    "train.checkpointer.period": "SOLVER.CHECKPOINT_PERIOD",
    IMAGES_PER_STEP: "SOLVER.IMS_PER_BATCH",
    "dataloader.train.num_workers": "DATALOADER.NUM_WORKERS",
    "optimizer.lr": "SOLVER.BASE_LR",
    "optimizer.max_norm": "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
}
_SCHEDULE = {
    "ims_per_batch": IMAGES_PER_STEP,
    "base_lr": "optimizer.lr",
    "max_iter": "train.max_iter",
    "atss_iters": "model.atss_iters",
    "checkpoint_period": "train.checkpointer.period",
    "eval_period": "train.eval_period",
}
_WARMUP = "lr_multiplier.warmup_length"
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
    _check_values(lazy)
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
        lazy.train = OmegaConf.merge(_default_train(), lazy.train)
    for override in overrides:
        _override(lazy, override, config_file)
    for name, is_call in PARTS.items():
        node = lazy.get(name)
        if not isinstance(node, DictConfig) or (is_call and "_target_" not in node):
            raise UserError(
                f"The config file {config_file} has no {name}{' to call' if is_call else ''}; "
                "write it as the files in configs/lazy do, or import theirs."
            )
    _check_keywords(lazy)
    for path, use in VALUES.items():
        if OmegaConf.select(lazy, path) is None:
            raise UserError(f"The config file {config_file} has no {path}, {use}; add it.")
    _check_types(lazy.train, _default_train(), "train")
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


def lazy_run_options(lazy: DictConfig) -> RunOptions:
    """Return what data checks and programs need to know of a config in Python."""
    train, aug = lazy.train, lazy.train.test_aug
    tiles = TileOptions(**train.tiles)
    train_size, test_size = (
        _input_size(lazy, use)._replace(tiles=tiles) for use in ("train", "test")
    )
    data = DataOptions(
        train=_names(lazy, "train"),
        test=_names(lazy, "test"),
        num_classes=lazy.model.num_classes,
        filter_empty=lazy.dataloader.train.dataset.get("filter_empty", True),
        train_size=train_size,
        test_size=test_size,
        finest_stride=finest_stride_of(lazy.model.head_in_features),
        max_detections=lazy.model.get("max_detections_per_image", 0),
        num_classes_key="model.num_classes",
    )
    return RunOptions(
        data=data,
        weights=train.init_checkpoint,
        weights_key="train.init_checkpoint",
        output_dir=train.output_dir,
        device=train.device,
        input_format=_input_format(lazy),
        min_size_test=test_size.shorter,
        max_size_test=test_size.longer,
        tta=TTAOptions(aug.enabled, list(aug.min_sizes), aug.max_size, aug.flip),
        eval_period=train.eval_period,
        early_stop_patience=train.early_stop_patience,
        report=train.report,
        tiles=tiles,
    )


def read_lazy_schedule(lazy: DictConfig) -> Schedule:
    """Return a schedule without steps: in a config in Python, they are shares of the training."""
    values = {name: OmegaConf.select(lazy, path) for name, path in _SCHEDULE.items()}
    missing = [path for name, path in _SCHEDULE.items() if values[name] is None]
    if missing:
        raise UserError(f"The config has no {missing[0]}, which belongs to its schedule; add it.")
    share = OmegaConf.select(lazy, _WARMUP, default=0.0)
    return Schedule(**values, steps=(), warmup_iters=round(share * values["max_iter"]))


def apply_lazy_schedule(
    lazy: DictConfig, schedule: Schedule, overrides: Sequence[str]
) -> Dict[str, object]:
    """See :func:`tood.config.read.apply_schedule`."""
    values = {path: getattr(schedule, name) for name, path in _SCHEDULE.items()}
    if OmegaConf.select(lazy, _WARMUP) is not None:
        values[_WARMUP] = schedule.warmup_iters / schedule.max_iter
    values = {k: v for k, v in values.items() if k not in overridden_paths(overrides)}
    for path, value in values.items():
        OmegaConf.update(lazy, path, value, merge=False)
    return values


def overridden_paths(overrides: Sequence[str]) -> Set[str]:
    """Return the keys that overrides set."""
    return {override.lstrip("+").partition("=")[0] for override in overrides}


def _names(lazy: DictConfig, use: str) -> Tuple[str, ...]:
    names = OmegaConf.select(lazy, f"dataloader.{use}.dataset.names", default=())
    return (names,) if isinstance(names, str) else tuple(names)


def _input_format(lazy: DictConfig) -> str:
    return lazy.model.get("input_format", "RGB")  # TOOD's default


def _input_size(lazy: DictConfig, use: str) -> InputSize:
    """Return the smallest size that images are resized to, (0, 0) for images as they are."""
    for node in OmegaConf.select(lazy, f"dataloader.{use}.mapper.augmentations") or ():
        if target_of(node) is ResizeShortestEdge:
            sides = node.short_edge_length
            smallest = sides if isinstance(sides, int) else min(sides)
            return InputSize(smallest, node.get("max_size", 2**31))
    return InputSize(0, 0)


def _set_precision(lazy: DictConfig) -> None:
    """Let ``train.amp.enabled``, Detectron2's key, be the half precision of the device."""
    model, device = lazy.model, lazy.train.device
    if lazy.train.amp.enabled and model.get("precision_train", "float32") == "float32":
        model.precision_train = "bfloat16" if device == "cpu" else "float16"
    lazy.train.amp.enabled = False
    for key in ("precision_train", "precision_test"):
        check_precision(f"model.{key}", model.get(key, "float32"), device)


def _check_values(lazy: DictConfig) -> None:
    """Raise UserError for the first value that is out of its range, or does not fit another."""
    lower = {key.rpartition(".")[2].lower(): allowed for key, allowed in RANGES.items()}
    ranged = {path: RANGES[key] for path, key in RANGED.items()}
    for node in ("model", "model.head", "train", "train.tiles"):
        names = OmegaConf.select(lazy, node, default={})
        ranged.update({f"{node}.{name}": lower[name] for name in names if name in lower})
    for path, allowed in ranged.items():
        value = OmegaConf.select(lazy, path)
        if value is not None:
            allowed.check(path, value)
    check_tiles(lazy.train.tiles.size, lazy.train.tiles.overlap, "train.tiles.overlap")
    head = lazy.model.get("head")
    if isinstance(head, DictConfig):
        values = {k.upper(): head[k] for k in head if not OmegaConf.is_missing(head, k)}
        check_head(values, lambda key: f"model.head.{key.lower()}")
        if head.get("centerness") and target_of(lazy.model.get("assigner")) is not ATSS:
            raise UserError(
                "model.head.centerness is True; it is for model.assigner tood.modeling.assign.ATSS."
            )
    input_format = _input_format(lazy)
    for use in ("train", "test"):
        path = f"dataloader.{use}.mapper.image_format"
        image_format = OmegaConf.select(lazy, path, default=input_format)
        if image_format != input_format:
            raise UserError(
                f"{path} is {image_format!r}, but model.input_format is {input_format!r}; they "
                "must be the same."
            )


@functools.cache
def _default_train() -> DictConfig:
    """Return everything that is read of a config's "train", of which it may leave out any key."""
    return LazyConfig.load(get_config_file("common/train.py")).train


def _check_types(node: DictConfig, defaults: DictConfig, path: str) -> None:
    for key, default in defaults.items():
        value, kind = node[key], type(default)
        if kind is DictConfig and isinstance(value, DictConfig):
            _check_types(value, default, f"{path}.{key}")
        elif not (default is None or type(value) is kind or (kind is float and type(value) is int)):
            raise UserError(
                f"{path}.{key} is {value!r}, of type {type(value).__name__}; it must be "
                f"{kind.__name__}."
            )


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


def target_of(node) -> Optional[Callable]:
    """Return what a node calls, None for no call.

    Raises:
        UserError: where that is not available.
    """
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target is None:
        return None
    try:
        found = locate(target) if isinstance(target, str) else target
    except Exception as error:  # of an import
        raise UserError(f"{target} (_target_) is not available: {first_line(error)}.") from error
    if not callable(found):
        raise UserError(f"{target} (_target_) cannot be called.")
    return found


def _check_keywords(lazy: DictConfig) -> None:
    """Raise UserError for an argument that the called function does not take."""
    for path, node in _calls(lazy):
        target = target_of(node)
        keywords = _keywords_of(target)
        for key in node:
            if keywords is None or key == "_target_" or key in keywords:
                continue
            close = difflib.get_close_matches(key, keywords, n=1)
            raise UserError(
                f"{path}.{key} is not an argument of {getattr(target, '__name__', target)}"
                + (f"; did you mean {path}.{close[0]}?" if close else ".")
            )


def _calls(node, path: str = "") -> Iterator[Tuple[str, DictConfig]]:
    """Yield every node that is a call, with its path."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        keys = list(node)
    elif isinstance(node, ListConfig):
        keys = range(len(node))
    else:
        return
    for key in keys:
        if not OmegaConf.is_interpolation(node, key):
            yield from _calls(node[key], f"{path}.{key}" if path else key)


def _keywords_of(target) -> Optional[List[str]]:
    """Return the names of its arguments, None if it takes any."""
    names = []
    classes = inspect.getmro(target) if inspect.isclass(target) else ()
    for function in [vars(c)["__init__"] for c in classes if "__init__" in vars(c)] or [target]:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # not written in Python
            return None
        names += [p.name for p in parameters]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return None


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
