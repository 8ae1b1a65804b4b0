"""Checks of configs in Python: types, ranges, and arguments of calls."""

import difflib
import functools
import inspect
from typing import Callable, Iterator, List, Optional, Tuple

from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf

from tood.config.check import RANGES, check_head, check_tiles
from tood.config.zoo import get_config_file
from tood.modeling.assigners import ATSS
from tood.utils.errors import UserError, first_line

IMAGES_PER_STEP = "dataloader.train.total_batch_size"
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


def check_values(lazy: DictConfig) -> None:
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
                "model.head.centerness is True; it is for model.assigner "
                "tood.modeling.assigners.ATSS."
            )
    input_format = input_format_of(lazy)
    for use in ("train", "test"):
        path = f"dataloader.{use}.mapper.image_format"
        image_format = OmegaConf.select(lazy, path, default=input_format)
        if image_format != input_format:
            raise UserError(
                f"{path} is {image_format!r}, but model.input_format is {input_format!r}; they "
                "must be the same."
            )


@functools.cache
def default_train() -> DictConfig:
    """Return everything that is read of a config's "train", of which it may leave out any key."""
    return LazyConfig.load(get_config_file("common/train.py")).train


def check_types(node: DictConfig, defaults: DictConfig, path: str) -> None:
    for key, default in defaults.items():
        value, kind = node[key], type(default)
        if kind is DictConfig and isinstance(value, DictConfig):
            check_types(value, default, f"{path}.{key}")
        elif not (default is None or type(value) is kind or (kind is float and type(value) is int)):
            raise UserError(
                f"{path}.{key} is {value!r}, of type {type(value).__name__}; it must be "
                f"{kind.__name__}."
            )


def check_keywords(lazy: DictConfig) -> None:
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


def input_format_of(lazy: DictConfig) -> str:
    return lazy.model.get("input_format", "RGB")  # TOOD's default


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
