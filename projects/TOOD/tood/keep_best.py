"""The best weights of a training, and an end to it when they get no better."""

import logging
import math
import os
from typing import Dict, Optional

from detectron2.engine import HookBase
from detectron2.utils import comm

from .errors import UserError
from .files import read_tensors, write_atomically

__all__ = ["BestWeights", "EarlyStop", "StopEarly"]

logger = logging.getLogger(__name__)


class EarlyStop(BaseException):
    """Training is over before its last iteration. Detectron2 logs a trace of every Exception."""


class BestWeights:
    """
    The weights of the best evaluation so far, alone, in ``model_best.pth``. The file holds its own
    figure, so that a training that is resumed at an earlier iteration does not lose it.
    """

    def __init__(self, folder: str, constants: Optional[Dict] = None):
        """
        Args:
            constants: what the file holds as well.
        """
        self.constants = constants or {}
        self.path = os.path.join(folder, "model_best.pth")
        self.AP: Optional[float] = None
        self.iteration = -1

    def resume(self, run_id: str) -> None:
        """Go on from the file, if there is one of the same training."""
        if not os.path.isfile(self.path):
            return
        try:
            content = read_tensors(self.path)
        except UserError as error:
            logger.warning(f"{error.sentence()} The next evaluation writes it anew.")
            return
        if content.get("run_id") == run_id:
            self.AP, self.iteration = content["AP"], content["iteration"]

    def offer(self, model, AP: float, iteration: int, *, run_id: str, name: str) -> None:
        """
        Keep the weights of a model if its AP is the best so far; NaN, of a model that detects
        nothing, never is.

        Args:
            run_id: of the training.
            name: of the weights, for the log.
        """
        if math.isnan(AP) or (self.AP is not None and AP <= self.AP):
            return
        figures = {"AP": AP, "iteration": iteration, "run_id": run_id}
        content = {"model": model.state_dict(), **figures, **self.constants}
        write_atomically(content, self.path)
        self.AP, self.iteration = AP, iteration
        logger.info(f"AP {AP:.2f} of {name} is the best so far: saved to {self.path}")


class StopEarly(HookBase):
    """
    Ends a training when several evaluations in a row have not found better weights, with a
    checkpoint; and at once, when such a training is resumed. Its trainer has ``best``, a
    :class:`BestWeights` that only the main process keeps, and ``stopped_early``.
    """

    def __init__(self, eval_period: int, patience: int):
        """
        Args:
            eval_period: iterations between two evaluations.
            patience: evaluations without better weights that end the training, 0 for never.
        """
        self.eval_period, self.patience = eval_period, patience

    def before_train(self):
        if self.patience and self.trainer.start_iter > 0:
            self._stop_if_over(self.trainer.start_iter - 1, save=False)

    def after_step(self):
        iteration = self.trainer.iter
        last = iteration + 1 == self.trainer.max_iter
        if self.patience and not last and (iteration + 1) % self.eval_period == 0:
            self._stop_if_over(iteration, save=True)

    def _stop_if_over(self, iteration: int, *, save: bool) -> None:
        best = self.trainer.best
        over = best.AP is not None and (
            iteration - best.iteration >= self.patience * self.eval_period
        )
        if not any(comm.all_gather(over)):
            return
        if save:
            self.trainer.checkpointer.save("model_final", iteration=iteration)
        if comm.is_main_process():
            logger.info(
                f"Stopped after iteration {iteration}: {self.patience} evaluations in a row have "
                f"found nothing better than AP {best.AP:.2f} of iteration {best.iteration}."
            )
        self.trainer.stopped_early = True
        raise EarlyStop
