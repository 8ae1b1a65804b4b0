"""A training schedule in its own proportions, for other numbers of images per step or epochs."""

import math
from typing import Dict, NamedTuple, Optional, Tuple

from tood.utils.errors import UserError

# The warm-up of the learning rate takes no more than this part of a training.
MAX_WARMUP_SHARE = 1 / 8
MAX_ITERATIONS = 10**9


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
        solver = cfg.SOLVER
        return cls(
            ims_per_batch=solver.IMS_PER_BATCH,
            base_lr=solver.BASE_LR,
            max_iter=solver.MAX_ITER,
            steps=tuple(solver.STEPS),
            warmup_iters=solver.WARMUP_ITERS,
            atss_iters=cfg.MODEL.TOOD.ATSS_ITERS,
            checkpoint_period=solver.CHECKPOINT_PERIOD,
            eval_period=cfg.TEST.EVAL_PERIOD,
        )

    def options(self) -> Dict[str, object]:
        """Its keys and values in a config."""
        return {
            "SOLVER.IMS_PER_BATCH": self.ims_per_batch,
            "SOLVER.BASE_LR": self.base_lr,
            "SOLVER.MAX_ITER": self.max_iter,
            "SOLVER.STEPS": self.steps,
            "SOLVER.WARMUP_ITERS": self.warmup_iters,
            "MODEL.TOOD.ATSS_ITERS": self.atss_iters,
            "SOLVER.CHECKPOINT_PERIOD": self.checkpoint_period,
            "TEST.EVAL_PERIOD": self.eval_period,
        }


def scale_schedule(
    schedule: Schedule,
    *,
    images_per_step: Optional[int] = None,
    epochs: Optional[float] = None,
    num_images: Optional[int] = None,
) -> Schedule:
    """The rule. The learning rate is proportional to the images of a step (Goyal et al.,
    arXiv 1706.02677). Everything that is counted in iterations keeps its share of the training,
    whose length is ``epochs``, or else as many images as before. The warm-up of the learning rate
    keeps its number of images instead, but takes no more than an eighth of the training.

    Args:
        schedule: for its own images per step.
        images_per_step: of the new one; the same if left out.
        epochs: of the new one.
        num_images: in an epoch; needed for ``epochs`` only.

    Raises:
        UserError: for numbers that are not positive.
    """
    for name, value in (("--images-per-step", images_per_step), ("--epochs", epochs)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} is {value}; it must be more than 0.")
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
