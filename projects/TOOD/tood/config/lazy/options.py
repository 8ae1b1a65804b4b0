"""Of configs in Python, what the rest of the project takes: options of a run, and the schedule."""

from typing import Dict, Sequence, Set, Tuple

from detectron2.data.transforms import ResizeShortestEdge
from omegaconf import DictConfig, OmegaConf

from tood.config.lazy.check import IMAGES_PER_STEP, input_format_of, target_of
from tood.config.options import RunOptions, TTAOptions, finest_stride_of
from tood.config.schedule import Schedule
from tood.data.check import InputSize
from tood.data.datasets import DataOptions
from tood.utils.errors import UserError
from tood.utils.tiles import TileOptions

_SCHEDULE = {
    "ims_per_batch": IMAGES_PER_STEP,
    "base_lr": "optimizer.lr",
    "max_iter": "train.max_iter",
    "atss_iters": "model.atss_iters",
    "checkpoint_period": "train.checkpointer.period",
    "eval_period": "train.eval_period",
}
_WARMUP = "lr_multiplier.warmup_length"


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
        input_format=input_format_of(lazy),
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


def _input_size(lazy: DictConfig, use: str) -> InputSize:
    """Return the smallest size that images are resized to, (0, 0) for images as they are."""
    for node in OmegaConf.select(lazy, f"dataloader.{use}.mapper.augmentations") or ():
        if target_of(node) is ResizeShortestEdge:
            sides = node.short_edge_length
            smallest = sides if isinstance(sides, int) else min(sides)
            return InputSize(smallest, node.get("max_size", 2**31))
    return InputSize(0, 0)
