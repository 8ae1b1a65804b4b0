"""Read command lines into a validated config, and that into the options of a run."""

import logging
import os
import re
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from tood.config.check import (
    check_config,
    check_nothing_removed,
    get_key,
    known_keys,
    refuse_huge,
)
from tood.config.defaults import add_tood_config
from tood.config.files import ConfigFile, read_config_file
from tood.config.inferred import (
    infer_anchor_sizes,
    infer_num_classes,
    infer_pixels,
    is_typed,
)
from tood.config.options import RunOptions, TTAOptions, get_finest_stride, read_training_options
from tood.config.schedule import Schedule, refuse_two_values
from tood.config.unread import OF_TRAININGS, check_switches, check_unread, is_tood
from tood.config.zoo import get_config_file
from tood.data.augmentation import check_augmentations
from tood.data.check import InputSize
from tood.data.datasets import DataOptions
from tood.utils.errors import UserError, format_reason
from tood.utils.logs import at_level
from tood.utils.suggest import suggest
from tood.utils.tiles import TileOptions

logger = logging.getLogger(__name__)


def load_config(
    config: Union[str, ConfigFile],
    opts: Sequence[str] = (),
    train_data: Optional[Sequence[str]] = None,
    val_data: Optional[Sequence[str]] = None,
    architectures: Sequence[str] = ("TOOD",),
    training: bool = False,
    resume: bool = False,
) -> CfgNode:
    """Read the config of a command: defaults, file, overrides, data sets, in this order. On a
    machine without a GPU its device is the CPU. The number of classes that neither file nor
    overrides set is that of the data or of the weights.

    Args:
        config: path of a config, or a file that has been read, of which nothing is opened again.
        opts: keys and values in turn.
        train_data, val_data: replace the config's data sets.
        architectures: allowed values of ``MODEL.META_ARCHITECTURE``, beside classes that derive
            from TOOD; the options of these and of TOOD are checked.
        training, resume: see :func:`~tood.config.inferred.infer_num_classes`.

    Raises:
        UserError: for a file or an option that cannot be used.
    """
    config_file = config if isinstance(config, ConfigFile) else read_config_file(config)
    cfg = _merged(config_file, opts)
    is_ours = is_tood(cfg)
    if cfg.MODEL.META_ARCHITECTURE not in architectures and not is_ours:
        raise UserError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, not "
            f"{' or '.join(architectures)}; name one of the files in configs/ with "
            "--config-file, or import the file that registers a class of yours first."
        )
    typed = _get_values(cfg, opts[::2])
    for flag, key, names in (
        ("--train-data", "DATASETS.TRAIN", train_data),
        ("--val-data", "DATASETS.TEST", val_data),
    ):
        if names:
            refuse_two_values(flag, ", ".join(names), key, tuple(names), typed)
            cfg.merge_from_list([key, tuple(names)])
    if is_ours:
        infer_anchor_sizes(cfg, config_file, opts)
    refuse_missing_gpu(str(typed.get("MODEL.DEVICE", "")))
    finish_config(cfg, training=training or "MODEL.TOOD.PRECISION_TRAIN" in typed)
    if training or "INPUT.AUGMENTATIONS" in typed:  # a trained model does not need them
        check_augmentations(cfg.INPUT.AUGMENTATIONS)
    infer_pixels(cfg, config_file, opts)
    if is_ours:
        check_switches(cfg, [*typed], lambda: _merged(config_file, ()))
    if is_ours and not is_typed(config_file, opts):
        infer_num_classes(cfg, training=training, resume=resume)
    return cfg


def refuse_missing_gpu(device: str) -> None:
    """Raise UserError for a GPU that is typed, on a machine without one; a file may name one."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"MODEL.DEVICE, or --device of tood train, is {device}, but PyTorch finds no GPU; omit "
            "it, or write cpu."
        )


def finish_config(cfg: CfgNode, training: bool = False) -> None:
    """Move a config to the CPU if there is no GPU, and check it.

    Args:
        training: whether the device must have the precision of trainings: a model that was trained
            on a GPU may be used on a CPU.

    Raises:
        UserError: for an invalid value.
    """
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    cfg.MODEL.WEIGHTS = os.path.expanduser(cfg.MODEL.WEIGHTS)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found: using the CPU (as MODEL.DEVICE cpu does).")
        cfg.MODEL.DEVICE = "cpu"
    if is_tood(cfg):
        check_config(cfg)
        check_unread(cfg)
        _set_precision(cfg, training)


def run_options(cfg: CfgNode) -> RunOptions:
    """Return the values of a config that data checks, programs and tools need."""
    tiles = tile_options(cfg)
    data = DataOptions(
        train=cfg.DATASETS.TRAIN,
        test=cfg.DATASETS.TEST,
        num_classes=cfg.MODEL.TOOD.NUM_CLASSES,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        train_size=InputSize(min(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN, tiles),
        test_size=InputSize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, tiles),
        finest_stride=get_finest_stride(cfg.MODEL.TOOD.IN_FEATURES),
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    aug = cfg.TEST.AUG
    return RunOptions(
        data=data,
        weights=cfg.MODEL.WEIGHTS,
        output_dir=cfg.OUTPUT_DIR,
        device=cfg.MODEL.DEVICE,
        input_format=cfg.INPUT.FORMAT,
        bit_depth=cfg.INPUT.BIT_DEPTH,
        min_size_test=cfg.INPUT.MIN_SIZE_TEST,
        max_size_test=cfg.INPUT.MAX_SIZE_TEST,
        tta=TTAOptions(aug.ENABLED, aug.MIN_SIZES, aug.MAX_SIZE, aug.FLIP),
        tiles=tiles,
    )


def tile_options(cfg: CfgNode) -> TileOptions:
    """Return the options of ``INPUT.TILES``."""
    tiles = cfg.INPUT.TILES
    return TileOptions(tiles.SIZE, tiles.OVERLAP, tiles.MIN_VISIBLE, tiles.EMPTY_SHARE)


def check_training(cfg: CfgNode) -> None:
    """Raise UserError for values that are valid, but not together in a training."""
    patience = read_training_options(cfg).early_stop_patience
    if patience and not (cfg.TEST.EVAL_PERIOD and cfg.DATASETS.TEST):
        raise UserError(
            f"MODEL.TOOD.EARLY_STOP_PATIENCE is {patience}, but nothing is evaluated during "
            "training; set TEST.EVAL_PERIOD to a number of iterations, and name data with "
            "--val-data."
        )


def read_schedule(config_file: ConfigFile) -> Schedule:
    """Return the schedule that a config file states, before any override."""
    return Schedule.from_config(_merged(config_file, ()))


def get_config(name: str, options: Sequence = ()) -> CfgNode:
    """Return the config of a model by its name, see :func:`~tood.config.zoo.get_config_file`, with
    the anchors and pixels that follow from its levels and its backbone, as commands have them.

    Args:
        options: keys and values in turn.

    Raises:
        UserError: for an unknown name, or options that cannot be used.
    """
    config_file = read_config_file(get_config_file(name))
    cfg = _merged(config_file, options)
    infer_anchor_sizes(cfg, config_file, options)
    infer_pixels(cfg, config_file, options)
    return cfg


def read_origin(path: str) -> Tuple[Sequence[str], str]:
    """Return the names of the data sets that a config trains on, and its teacher, "" for none.

    Raises:
        UserError: for a file that cannot be read.
    """
    with at_level("tood", logging.ERROR):  # nothing is computed in its precision
        cfg = load_config(path, ["MODEL.TOOD.PRECISION_TEST", "float32"])
    return cfg.DATASETS.TRAIN, read_training_options(cfg).active_teacher


def differing_options(name: str, options: Mapping[str, object]) -> List:
    """Return KEY, VALUE, ... of the options whose values differ from those of a config."""
    cfg = get_config(name)
    return [x for key, value in options.items() if get_key(cfg, key) != value for x in (key, value)]


def apply_schedule(cfg: CfgNode, schedule: Schedule, overrides: Sequence[str]) -> Dict[str, object]:
    """Change a config to a schedule, except for the keys that the user's overrides set.

    Returns:
        the keys that were changed, and their values.
    """
    options = {k: v for k, v in schedule.options().items() if k not in overrides[::2]}
    for item in options.items():
        cfg.merge_from_list(item)
    return options


def _merged(config_file: ConfigFile, opts: Sequence[str]) -> CfgNode:
    """Return the defaults, changed by a file and by options."""
    cfg = get_cfg()
    add_tood_config(cfg)
    defaults = cfg.clone()
    merge_options(cfg, opts, config_file)
    check_nothing_removed(cfg, defaults)
    return cfg


def read_options(
    config_file: ConfigFile, opts: Sequence[str], keys: Optional[Sequence[str]] = None
) -> Dict[str, object]:
    """Return values by their keys; default: those of KEY VALUE options.

    Raises:
        UserError: for the first mistake in the options.
    """
    cfg = _merged(config_file, opts)
    return _get_values(cfg, opts[::2] if keys is None else keys)


def refuse_training_options(config: str, opts: Sequence[str]) -> None:
    """Raise UserError for options that would change only trainings, typed for a trained model. The
    values of its config may be repeated.
    """
    keys = [*filter(OF_TRAININGS.fullmatch, opts[::2])]
    if not keys:
        return
    config_file = read_config_file(config)
    after = read_options(config_file, opts, keys)  # first: it knows mistakes in their names
    before = read_options(config_file, (), keys)
    for key in after:
        if after[key] != before[key]:
            raise UserError(f"{key} is an option of trainings; a trained model has no use for it.")


def _get_values(cfg: CfgNode, keys: Sequence[str]) -> Dict[str, object]:
    """Return values by their keys, without keys of earlier versions, which are ignored."""
    return {key: get_key(cfg, key) for key in keys if not cfg.key_is_deprecated(key)}


def merge_options(
    cfg: CfgNode, opts: Sequence[str], config_file: Optional[ConfigFile] = None
) -> None:
    """Merge a file, if given, and KEY VALUE options.

    Raises:
        UserError: for the first mistake in them.
    """
    for opt in opts[::2]:
        key, equals, value = str(opt).partition("=")
        if equals:
            raise UserError(f"{opt} is not an option; write {key} {value}, with a space.")
    try:
        if config_file is not None:
            cfg.merge_from_other_cfg(CfgNode(config_file.content))
        cfg.merge_from_list(_as_typed(cfg, opts))
    except Exception as error:  # of many kinds
        reason = format_reason(error, limit=400).strip("'\"")
        unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", reason)
        hint = suggest(unknown[1], known_keys(cfg)) if unknown else ""
        where = "An option"
        if config_file is not None and config_file.path:
            where = f"The config file {config_file.path} or an option after it"
        raise UserError(f"{where} is wrong: {reason}{hint or '.'}") from error
    refuse_huge(cfg)


def _as_typed(cfg: CfgNode, opts: Sequence[str]) -> List[str]:
    """Return options in which integers for floating point values are such values, and augmentations
    separated by commas are a list.
    """
    opts, floats = list(opts), {key for key in known_keys(cfg) if type(get_key(cfg, key)) is float}
    for i in range(1, len(opts), 2):
        if opts[i - 1] in floats and re.fullmatch(r"[+-]?\d+", str(opts[i])):
            opts[i] = f"{opts[i]}.0"
        elif opts[i - 1] == "INPUT.AUGMENTATIONS" and re.fullmatch(r"[\w,]+", str(opts[i])):
            opts[i] = str(opts[i].split(","))
    return opts


def _set_precision(cfg: CfgNode, training: bool) -> None:
    """Translate ``SOLVER.AMP.ENABLED``, Detectron2's key, into the half precision of the device.

    Raises:
        UserError: for a precision that the device does not have.
    """
    tood = cfg.MODEL.TOOD
    if cfg.SOLVER.AMP.ENABLED and tood.PRECISION_TRAIN == "float32":
        tood.PRECISION_TRAIN = "bfloat16" if cfg.MODEL.DEVICE == "cpu" else "float16"
    cfg.SOLVER.AMP.ENABLED = False  # or Detectron2 would make another step
    for key in ("PRECISION_TEST", *["PRECISION_TRAIN"] * training):
        if cfg.MODEL.DEVICE == "cpu" and tood[key] == "float16":
            raise UserError(f"MODEL.TOOD.{key} float16 needs a GPU; a CPU can do bfloat16.")


def check_weights(weights: str) -> None:
    """Raise UserError for weights that are not available: a path, or a name, whose file is fetched
    if necessary.
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
            f"The weights {path} (MODEL.WEIGHTS) are not available: {reason}; name an existing "
            "file, or '' to train from scratch."
        )
