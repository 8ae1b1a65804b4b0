"""Signs that a training learns nothing: a warning with cause and remedy, and in the end a stop."""

import logging
from typing import Callable, Mapping, NamedTuple, Optional

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from tood.engine.watch import STATISTICS_PERIOD
from tood.utils.errors import UserError

logger = logging.getLogger(__name__)

# Median side of the boxes, as a multiple of the image's: below 1 in a sound model.
LARGEST_BOXES = 10.0
# Mean IoU of the positives' boxes with their objects: 0.1 to 0.3 at the start of a sound training.
SMALLEST_IOU = 0.05
MOST_WITHOUT_POSITIVE = 0.95
# Relative distance to the box loss without a gradient.
CEILING_TOLERANCE = 0.01

TOO_FAST = (
    "the steps are too large: lower the learning rate (SOLVER.BASE_LR), or bound each parameter's "
    "gradient (SOLVER.CLIP_GRADIENTS.ENABLED True, SOLVER.CLIP_GRADIENTS.CLIP_TYPE norm), and "
    "start again"
)
TOO_SMALL = "they are too small: train on larger images, or on tiles (INPUT.TILES.SIZE)"
TOO_EARLY = (
    "boxes did not fit before task alignment learning began: raise MODEL.TOOD.ATSS_ITERS, or train "
    "longer"
)


class Symptom(NamedTuple):
    """A problem of a training, and its remedy."""

    name: str
    text: str
    remedy: str

    def __str__(self):
        return f"{self.text}; {self.remedy}"


def diagnose(
    metrics: Mapping[str, float], *, box_reg_ceiling: Optional[float] = None, warmup: bool = False
) -> Optional[Symptom]:
    """Look for a sign that nothing is learned.

    Args:
        metrics: values of one batch with objects, by the names of
            :func:`~tood.engine.watch.assignment_statistics`, "median_box" and "loss_box_reg";
            missing ones are not checked.
        box_reg_ceiling: the "loss_box_reg" that has no gradient, None if there is none.
        warmup: whether the positives are those of ATSS, which do not depend on the model.

    Returns:
        the first sign, or None.
    """
    get = metrics.get
    if get("median_box", 0) > LARGEST_BOXES:
        text = f"the median predicted box is {get('median_box'):.3g} times as long as the image"
        return Symptom("huge boxes", text, TOO_FAST)
    without = get("objects_without_positive", 0)
    if without > MOST_WITHOUT_POSITIVE:
        text = f"{without:.0%} of the objects have no positive location"
        return Symptom("no positives", text, TOO_SMALL if warmup else TOO_EARLY)
    if get("mean_iou", 1) < SMALLEST_IOU:
        text = f"the boxes of the positives have a mean IoU of {get('mean_iou'):.2g} with their"
        return Symptom("no overlap", f"{text} objects", TOO_FAST)
    loss, ceiling = get("loss_box_reg", 0), box_reg_ceiling or 0
    if abs(loss - ceiling) < CEILING_TOLERANCE * ceiling:
        text = f"loss_box_reg is {loss:.3f}, the loss of huge or distant boxes, without a gradient"
        return Symptom("ceiling", text, TOO_FAST)
    return None


class LearningCheck(HookBase):
    """Checks the measurements of the main process's :class:`~tood.engine.watch.TrainingWatcher`:
    warns if a symptom is seen twice in a row, and ends a training with symptoms for too long.
    """

    def __init__(
        self,
        save: Callable[[str], object],
        *,
        max_dead_iters: int,
        max_iter: int,
        box_reg_ceiling: Optional[float],
        is_warmup: Callable[[int], bool],
    ):
        """
        Args:
            save: saves a checkpoint of the given name.
            max_dead_iters: iterations with symptoms that end the training, or a quarter of it if
                that is less; 0 for never.
            max_iter: iterations of the training.
            box_reg_ceiling: see :func:`diagnose`.
            is_warmup: whether an iteration assigns by ATSS.
        """
        self.save, self.is_warmup = save, is_warmup
        # At least two looks.
        limit = max(min(max_dead_iters, max_iter // 4), 2 * STATISTICS_PERIOD)
        self.max_dead_iters = limit if max_dead_iters else 0
        self.box_reg_ceiling = box_reg_ceiling
        self.dead_iters, self.warned = 0, ""

    def after_step(self):
        iteration = self.trainer.iter
        if (iteration + 1) % STATISTICS_PERIOD:
            return
        # Only the main process measures; all processes stop together.
        symptom = self._look(iteration) if comm.is_main_process() else None
        symptom = comm.all_gather(symptom)[0]
        if symptom is not None and self.max_dead_iters and self.dead_iters >= self.max_dead_iters:
            self._stop(iteration, symptom)

    def _look(self, iteration: int) -> Optional[Symptom]:
        metrics = {
            name.rpartition("/")[2]: value
            for name, (value, of) in get_event_storage().latest().items()
            if of == iteration and (name.startswith("assignment/") or name == "loss_box_reg")
        }
        if "objects_without_positive" not in metrics:  # no objects in this batch
            return None
        warmup = self.is_warmup(iteration)
        symptom = diagnose(metrics, box_reg_ceiling=self.box_reg_ceiling, warmup=warmup)
        if symptom is None:
            if self.warned:
                logger.info(f"Training learns again: the sign of iteration {iteration} is sound.")
            self.dead_iters, self.warned = 0, ""
            return None
        self.dead_iters += STATISTICS_PERIOD
        if self.dead_iters > STATISTICS_PERIOD and symptom.name != self.warned:
            logger.warning(f"Nothing is learned at iteration {iteration}: {symptom}.")
            self.warned = symptom.name
        return symptom

    def _stop(self, iteration: int, symptom: Symptom) -> None:
        name = f"model_{iteration:07d}"
        self.save(name)
        raise UserError(
            f"Training stopped at iteration {iteration}, because nothing was learned in the "
            f"last {self.dead_iters} iterations: {symptom}. {name}.pth contains its state; "
            "with MODEL.TOOD.MAX_DEAD_ITERS 0 such a training continues."
        )
