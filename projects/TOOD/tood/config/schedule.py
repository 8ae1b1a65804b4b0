"""A training schedule in its own proportions, for other numbers of images per step or epochs."""

import math
from numbers import Real
from typing import Dict, Mapping, NamedTuple, Optional, Tuple

from tood.config.check import get_key
from tood.utils.errors import UserError

# The warm-up of the learning rate takes no more than this part of a training.
MAX_WARMUP_SHARE = 1 / 8
MAX_ITERATIONS = 10**9


KEYS = {
    "ims_per_batch": "SOLVER.IMS_PER_BATCH",
    "base_lr": "SOLVER.BASE_LR",
    "max_iter": "SOLVER.MAX_ITER",
    "steps": "SOLVER.STEPS",
    "warmup_iters": "SOLVER.WARMUP_ITERS",
    "atss_iters": "MODEL.TOOD.ATSS_ITERS",
    "checkpoint_period": "SOLVER.CHECKPOINT_PERIOD",
    "eval_period": "TEST.EVAL_PERIOD",
}


class Schedule(NamedTuple):
    """The options of ``SOLVER``, ``MODEL.TOOD`` and ``TEST`` that belong together."""

    ims_per_batch: int
    base_lr: float
    max_iter: int
    steps: Tuple[int, ...]
    warmup_iters: int  # of the learning rate
    atss_iters: int  # before TAL: MODEL.TOOD.ATSS_ITERS
    checkpoint_period: int
    eval_period: int

    @classmethod
    def from_config(cls, cfg) -> "Schedule":
        return cls(**{name: get_key(cfg, key) for name, key in KEYS.items()})

    def options(self) -> Dict[str, object]:
        """Return its keys and values in a config."""
        return {key: getattr(self, name) for name, key in KEYS.items()}


def scale_schedule(
    schedule: Schedule,
    *,
    images_per_step: Optional[int] = None,
    epochs: Optional[float] = None,
    num_images: Optional[int] = None,
) -> Schedule:
    """Return a schedule for another number of images per step or of epochs. The learning rate is
    proportional to the images of a step (Goyal et al., arXiv 1706.02677). Everything that is
    counted in iterations keeps its share of the training, whose length is ``epochs``, or else as
    many images as before. The warm-up of the learning rate keeps its number of images instead, but
    takes no more than an eighth of the training.

    Args:
        images_per_step, epochs: values of the new schedule; default: those of ``schedule``.
        num_images: number of images in an epoch; needed for ``epochs`` only.

    Raises:
        UserError: for numbers that are not positive.
    """
    check_wanted(images_per_step, epochs)
    images_per_step = images_per_step or schedule.ims_per_batch
    batch_factor = images_per_step / schedule.ims_per_batch
    max_iter = schedule.max_iter / batch_factor
    if epochs is not None:
        max_iter = epochs * num_images / images_per_step
    if not max_iter < MAX_ITERATIONS:
        raise UserError(f"--epochs is {epochs}; that would be {max_iter:.3g} iterations.")
    max_iter = max(1, round(max_iter))
    factor = max_iter / max(1, schedule.max_iter)

    def share(iterations: int) -> int:
        return max(1, round(iterations * factor)) if iterations else 0

    warmup_iters = round(schedule.warmup_iters / batch_factor)
    return Schedule(
        ims_per_batch=images_per_step,
        base_lr=schedule.base_lr * batch_factor,
        max_iter=max_iter,
        # Short trainings have no room for all of them.
        steps=tuple(sorted({s for s in map(share, schedule.steps) if s < max_iter})),
        warmup_iters=min(warmup_iters, int(max_iter * MAX_WARMUP_SHARE)),
        atss_iters=share(schedule.atss_iters),
        checkpoint_period=share(schedule.checkpoint_period),
        eval_period=share(schedule.eval_period),
    )


def check_wanted(images_per_step: Optional[int], epochs: Optional[float]) -> None:
    """Raise UserError for a value that is neither None nor a positive number."""
    for name, value in (("--images-per-step", images_per_step), ("--epochs", epochs)):
        if value is not None and not (isinstance(value, Real) and 0 < value < math.inf):
            raise UserError(f"{name} is {value!r}; it must be more than 0 and a number.")


def refuse_two_values(
    flag: str, value: object, key: str, wanted: object, typed: Mapping[str, object]
) -> None:
    """Raise UserError if a flag and an option ask for two values of one thing.

    Args:
        flag, value: flag and its value, from the command line.
        key, wanted: key of the config that the flag sets, and its value.
        typed: values of the options by their keys.
    """
    if typed.get(key, wanted) != wanted:
        value = f"{value:g}" if isinstance(value, float) else value
        raise UserError(
            f"{flag} {value} sets {key} to {wanted}, but {key} {typed[key]} is typed as well; omit "
            "one of them."
        )


def refuse_other_schedule(
    schedule: Schedule,
    typed: Mapping[str, object],
    *,
    epochs: Optional[float],
    images_per_step: Optional[int],
) -> None:
    """Raise UserError if options contradict the flags by which a schedule was scaled."""
    if images_per_step is not None:
        key = KEYS["ims_per_batch"]
        refuse_two_values("--images-per-step", images_per_step, key, schedule.ims_per_batch, typed)
    if epochs is not None:
        refuse_two_values("--epochs", float(epochs), KEYS["max_iter"], schedule.max_iter, typed)
