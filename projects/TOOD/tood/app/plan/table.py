"""The plan of ``tood train`` as a table: the data, and the values that the training will have."""

import textwrap
from typing import List, Sequence, Tuple

import torch
from tabulate import tabulate

from tood.app.check import list_paths
from tood.app.plan.choose import ORIGINS, PRECISION, Plan
from tood.app.plan.data import TrainingData, count_negatives
from tood.app.plan.duration import Duration, format_seconds
from tood.app.plan.memory import MiB
from tood.app.plan.rules import compute_statistics
from tood.app.plan.state import PLAN
from tood.config.check import get_key
from tood.config.options import read_training_options
from tood.data.annotations import class_names, join_names
from tood.data.check import MAX_IMAGES_LOOKED_AT
from tood.data.copies import trained_on
from tood.inference.teacher import NOT_CHECKED, list_taught_images
from tood.utils.errors import WIDTH, UserError, shorten

Row = Tuple[str, str]
# Keys whose values are in the rows.
SHOWN = (
    *("INPUT.TILES.SIZE", "INPUT.TILES.OVERLAP", "INPUT.MIN_SIZE_TRAIN", "INPUT.MAX_SIZE_TRAIN"),
    *("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER"),
    *("SOLVER.BASE_LR", "TEST.DETECTIONS_PER_IMAGE", "MODEL.DEVICE", "MODEL.WEIGHTS"),
    *(PRECISION, "OUTPUT_DIR"),
)


def make_table(data: TrainingData, plan: Plan, duration: Duration, output: str) -> str:
    """Return what was found, and what will be done."""
    teacher = read_training_options(plan.cfg).active_teacher
    rows = [*_list_data(data), *_list_teacher(data, teacher), *_list_settings(plan)]
    rows.append(("time", str(duration)))
    shown = {*SHOWN, *(["MODEL.TOOD.TEACHER"] if teacher else [])}
    others = [f"{key} {get_key(plan.cfg, key)}" for key in plan.typed if key not in shown]
    rows += [("options" if i == 0 else "", text) for i, text in enumerate(others)]
    rows.append(("output", f"{output}, config {PLAN}"))
    width = WIDTH - max(len(label) for label, _ in rows) - 2
    wrapped = [
        (label, textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False))
        for label, text in rows
    ]
    return tabulate(wrapped, tablefmt="simple")


def _list_data(data: TrainingData) -> List[Row]:
    content = data.train.content
    names = class_names(content)
    shown = join_names(names)
    statistics = compute_statistics(content)
    negatives = count_negatives(content)
    to_train = f"{statistics.num_images} images, {statistics.num_objects} objects"
    to_train += f"; {negatives} images without objects, as background" if negatives else ""
    kept = data.calibration
    to_calibrate = f"{len(kept.content['images'])} images, for tood guarantee" if kept else ""
    return [
        ("data", f"{data.checked.dataset.entry}, {data.format}"),
        *data.ledger.rows(),
        ("classes", f"{len(names)}: {shown}"),
        ("to train on", to_train),
        ("to validate on", data.how),
        *([("to calibrate on", to_calibrate)] if kept else []),
    ]


def _list_teacher(data: TrainingData, teacher: str) -> List[Row]:
    """Return the row on a teacher, which may know images that its student must not have seen.

    Raises:
        UserError: for images to calibrate on that it was trained on.
    """
    if not teacher:
        return []
    text, (taught, unknown) = teacher, list_taught_images(teacher)
    to_validate = [path for x in data.val for path in list_paths(x)]
    to_calibrate = list_paths(data.calibration) if data.calibration else []
    reason = f"{', '.join(unknown)} not found" if unknown else ""
    if len(taught) + len(to_validate) + len(to_calibrate) > MAX_IMAGES_LOOKED_AT:
        reason, taught = f"it was trained on {len(taught)} images", []
    shared = set(trained_on(taught, [*to_calibrate, *to_validate]) if taught else ())
    kept = [path for path in to_calibrate if path in shared]
    if kept:
        raise UserError(
            f"MODEL.TOOD.TEACHER {teacher} was trained on {len(kept)} of the images to calibrate "
            f"on, for example {shorten(kept[0])}; train it with the same --calibration-share."
        )
    number = sum(path in shared for path in to_validate)
    if number:
        text += f"; it was trained on {number} of the images to validate on: AP may be too high"
    if reason and (to_validate or to_calibrate):
        more = " or to calibrate on" * bool(to_calibrate)
        text += f"; {NOT_CHECKED}{more} ({reason})"
    return [("teacher", text)]


def _list_settings(plan: Plan) -> List[Row]:
    cfg = plan.cfg
    weights = f", from {cfg.MODEL.WEIGHTS or 'scratch'}"
    origin = weights if "MODEL.WEIGHTS" in plan.typed else ORIGINS.get(plan.name, "")
    device = f"CPU, threads: {torch.get_num_threads()}" if cfg.MODEL.DEVICE == "cpu" else "GPU"
    tiles, unit, rows = cfg.INPUT.TILES, "images", []
    if tiles.SIZE:
        unit = "tiles"
        text = f"of {tiles.SIZE} pixels that overlap by {tiles.OVERLAP}: {plan.num_images} to train"
        rows = [("tiles", f"{text} on")]
    per_step, solver = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER
    memory = ""
    if plan.memory is not None:
        needed = plan.memory.needed(per_step) / MiB
        memory = f", about {needed:.0f} of {plan.memory.free / MiB:.0f} MB that are free"
    passes = solver.MAX_ITER * per_step / plan.num_images
    return [
        ("model", f"{plan.name}{origin}"),
        ("device", device),
        ("precision", _describe_precision(plan)),
        *rows,
        (f"{unit[:-1]} size", _describe_size(plan)),
        ("images per step", f"{per_step}{memory}"),
        ("detections", f"at most {cfg.TEST.DETECTIONS_PER_IMAGE} of an image"),
        (
            "schedule",
            f"{solver.MAX_ITER} iterations, {passes:.3g} times all {unit}; learning rate "
            f"{solver.BASE_LR:g}",
        ),
    ]


def _describe_precision(plan: Plan) -> str:
    """Return the precision of the training, and the time of a step in each that was measured."""
    chosen, seconds = plan.cfg.MODEL.TOOD.PRECISION_TRAIN, dict(plan.seconds)
    if len(seconds) < 2:
        return chosen
    mine = f"{chosen}: {format_seconds(seconds.pop(chosen))} a step"
    others = [f"{format_seconds(x)} in {name}" for name, x in seconds.items()]
    return ", ".join([mine, *others])


def _describe_size(plan: Plan) -> str:
    size, statistics = plan.cfg.INPUT, plan.statistics
    shorter = _join(size.MIN_SIZE_TRAIN, size.MIN_SIZE_TRAIN_SAMPLING)
    # The longer side may limit the shorter one.
    actual = min(max(size.MIN_SIZE_TRAIN), size.MAX_SIZE_TRAIN / statistics.aspect)
    text = (
        f"{shorter}, longer side at most {size.MAX_SIZE_TRAIN}: the smallest tenth of the objects "
        f"is {statistics.small_object * actual:.0f} pixels there"
    )
    tested = (size.MIN_SIZE_TEST, size.MAX_SIZE_TEST)
    if tested != (max(size.MIN_SIZE_TRAIN), size.MAX_SIZE_TRAIN):
        text += f"; evaluated at {tested[0]}, at most {tested[1]}"
    return text


def _join(sizes: Sequence[int], sampling: str) -> str:
    return (" to " if sampling == "range" else ", ").join(map(str, dict.fromkeys(sizes)))
