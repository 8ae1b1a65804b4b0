"""The duration of a training, estimated from one step that is measured."""

from typing import Dict, NamedTuple, Optional, Sequence

from detectron2.config import CfgNode

from tood.app.plan.choose import Plan
from tood.app.plan.memory import estimate_evaluation, time_step
from tood.app.plan.rules import FEW, choose_epochs, num_views
from tood.config.build import build_detector
from tood.config.read import tile_options
from tood.engine.progress import count_evaluations
from tood.engine.trainer import attach_teacher
from tood.utils.errors import is_out_of_memory


class Duration(NamedTuple):
    """A number of steps, and what they take."""

    steps: int
    evaluations: int
    step_seconds: Optional[float] = None  # None if it was not measured
    evaluation_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of all steps and evaluations."""
        return self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds

    def __str__(self) -> str:
        if self.step_seconds is None:
            return f"{self.steps} steps"
        each = f"{format_seconds(self.step_seconds)} a step"
        if self.evaluations:
            number = "1 evaluation" if self.evaluations == 1 else f"{self.evaluations} evaluations"
            each += f", {number} of {format_seconds(self.evaluation_seconds)}"
        return f"{self.steps} steps, about {format_seconds(self.seconds)}: {each}"


def estimate_duration(plan: Plan, val: Sequence[Dict]) -> Duration:
    """Return how long a training takes; on a GPU, no step is measured.

    Args:
        val: contents of the data to validate on.
    """
    cfg, solver, tood = plan.cfg, plan.cfg.SOLVER, plan.cfg.MODEL.TOOD
    views = num_views(val, tile_options(cfg))
    number = count_evaluations(solver.MAX_ITER, cfg.TEST.EVAL_PERIOD) if views else 0
    seconds = plan.seconds.get(tood.PRECISION_TRAIN) or _measure_step(plan)
    if seconds is None:
        return Duration(solver.MAX_ITER, number)
    alone = plan.seconds.get(tood.PRECISION_TEST, seconds)
    if tood.TEACHER:
        alone = _measure_step(plan, tood.PRECISION_TEST) or alone
    evaluation = estimate_evaluation(cfg, alone / solver.IMS_PER_BATCH, views)
    return Duration(solver.MAX_ITER, number, seconds, evaluation)


def _measure_step(plan: Plan, precision: str = "") -> Optional[float]:
    """Return the seconds of a step, or of one without a teacher in a precision; None if it cannot
    be measured.
    """
    if plan.cfg.MODEL.DEVICE != "cpu":
        return None
    try:
        model = build_detector(plan.cfg)
        if precision:
            model.precision_train = precision
        else:
            attach_teacher(plan.cfg, model, plan.class_names)
        return time_step(model, plan.cfg.SOLVER.IMS_PER_BATCH, *_find_size(plan.cfg))
    except RuntimeError as error:
        if is_out_of_memory(error):  # the images of a step are the user's choice
            return None
        raise


def _find_size(cfg: CfgNode):
    size = cfg.INPUT
    shorter = max(size.MIN_SIZE_TRAIN)
    return min(shorter, size.MAX_SIZE_TRAIN), size.MAX_SIZE_TRAIN


def warn_if_short(plan: Plan, duration: Duration) -> str:
    """Return a line for a training that is far shorter than the rule's; "" for others."""
    per_step = plan.cfg.SOLVER.IMS_PER_BATCH
    rule = round(choose_epochs(plan.num_images) * plan.num_images / per_step)
    if duration.steps >= FEW * rule:
        return ""
    time = ""
    if duration.step_seconds is not None:
        time = f", about {format_seconds(duration._replace(steps=rule).seconds)}"
    return f"{duration.steps} steps; the rule takes {rule}{time}; expect little."


def format_seconds(seconds: float) -> str:
    """Return "0.05 s", "2.1 s", "30 s", "29 min" or "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
