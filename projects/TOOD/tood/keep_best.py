"""The best weights of a training, and an end to it when they get no better."""

import logging
import math
import os
from typing import Optional

from detectron2.engine import HookBase
from detectron2.utils import comm

from .files import read_tensors, write_atomically

__all__ = ["BestWeights", "EarlyStop", "StopEarly"]

logger = logging.getLogger(__name__)


class EarlyStop(BaseException):
    """Training is over before its last iteration. Detectron2 logs a trace of every Exception."""


class StopEarly(HookBase):
    """
    Ends a training when several evaluations in a row have not found better weights: with a
    checkpoint, as if that had been its last iteration. Its trainer has ``best``, a
    :class:`BestWeights` that only the main process keeps, and ``stopped_early``.
    """

    def __init__(self, eval_period: int, patience: int):
        """
        Args:
            eval_period: iterations between two evaluations.
            patience: evaluations without better weights that end the training, 0 for never.
        """
        self.eval_period, self.patience = eval_period, patience

    def after_step(self):
        iteration = self.trainer.iter
        last = iteration + 1 == self.trainer.max_iter
        if last or not self.patience or (iteration + 1) % self.eval_period:
            return
        best = self.trainer.best
        waited = (iteration - best.iteration) // self.eval_period
        if not any(comm.all_gather(comm.is_main_process() and waited >= self.patience)):
            return
        self.trainer.checkpointer.save("model_final", iteration=iteration)
        logger.info(
            f"Stopped after iteration {iteration}: {self.patience} evaluations in a row have found "
            f"nothing better than AP {best.AP} of iteration {best.iteration}."
        )
        self.trainer.stopped_early = True
        raise EarlyStop


class BestWeights:
    """
    The weights of the best evaluation so far, alone, in ``model_best.pth``. The file holds its own
    figure, so that a training that is resumed at an earlier iteration does not lose it.
    """

    def __init__(self, folder: str):
        self.path = os.path.join(folder, "model_best.pth")
        self.AP: Optional[float] = None
        self.iteration = -1

    def resume(self) -> None:
        """Go on from the file, if there is one."""
        if os.path.isfile(self.path):
            content = read_tensors(self.path)
            self.AP, self.iteration = content.get("AP"), content.get("iteration", -1)

    def offer(self, model, AP: float, iteration: int, name: str = "the weights") -> None:
        """
        Keep the weights of a model if its AP is the best so far.

        Args:
            name: of the weights, for the log.
        """
        if math.isnan(AP) or (self.AP is not None and AP <= self.AP):
            return
        content = {"model": model.state_dict(), "AP": AP, "iteration": iteration}
        write_atomically(content, self.path)
        self.AP, self.iteration = AP, iteration
        logger.info(f"AP {AP:.2f} of {name} is the best so far: saved to {self.path}")
