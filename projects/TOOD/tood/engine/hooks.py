"""Hooks of a training: the best weights, early stop, averaged weights, and signals."""

import contextlib
import copy
import logging
import math
import operator
import os
import re
import signal
import sys
from typing import Dict, Optional

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn

from tood.data.loader import WorkersEnded
from tood.utils.errors import UserError
from tood.utils.files import write_atomically
from tood.utils.signals import Stopped, handled, stop
from tood.utils.tensors import check_types, read_tensors

logger = logging.getLogger(__name__)


class EarlyStop(BaseException):
    """Ends a training before its last iteration. Detectron2 logs a trace of every Exception."""


class BestWeights:
    """The weights of the best evaluation so far, without other state, in ``model_best.pth``. The
    file contains its AP, so that a training that is resumed at an earlier iteration keeps it.
    """

    def __init__(self, folder: str, extra_metadata: Optional[Dict] = None):
        """
        Args:
            extra_metadata: further content of the file.
        """
        self.extra_metadata = extra_metadata or {}
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
            logger.warning(f"{error.sentence()} The next evaluation writes it again.")
            return
        AP, iteration = content.get("AP"), content.get("iteration")
        if content.get("run_id") != run_id:
            return
        if not isinstance(AP, (int, float)) or not math.isfinite(AP) or type(iteration) is not int:
            logger.warning(f"{self.path} lacks its AP. The next evaluation writes it again.")
            return
        self.AP, self.iteration = AP, iteration

    def offer(self, model, AP: float, iteration: int, *, run_id: str, name: str) -> None:
        """Keep the weights of a model if its AP is the best so far; NaN, the
        AP of a model that detects nothing, never is.

        Args:
            run_id: identifier of the training.
            name: name of the weights, for the log.
        """
        if math.isnan(AP) or (self.AP is not None and AP <= self.AP):
            return
        metrics = {"AP": AP, "iteration": iteration, "run_id": run_id}
        content = {"model": model.state_dict(), **metrics, **self.extra_metadata}
        write_atomically(content, self.path)
        self.AP, self.iteration = AP, iteration
        logger.info(f"AP {AP:.2f} of {name} is the best so far: saved to {self.path}")


class Evaluation(hooks.EvalHook):
    """Detectron2's hook, which also repeats an evaluation during which a training was stopped,
    after the checkpoint of the same iteration.
    """

    def before_train(self):
        trainer, start = self.trainer, self.trainer.start_iter
        due = self._period > 0 and 0 < start < trainer.max_iter and start % self._period == 0
        if due and trainer.evaluated < start - 1:
            trainer.iter = start - 1
            self._do_eval()
            trainer.iter = start

    def after_train(self):
        # Detectron2's hook evaluates at the last iteration even if its step has failed.
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()
        else:
            del self._func  # it refers to the trainer


class Checkpoints(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which also counts the checkpoints from before a resumed training among
    those to keep.
    """

    def before_train(self):
        super().before_train()
        if self.max_to_keep and self.trainer.start_iter > 0:
            folder = self.checkpointer.save_dir
            found = [re.fullmatch(r"model_(\d{7,})\.pth", x) for x in os.listdir(folder)]
            earlier = [(int(m[1]), m[0]) for m in found if m]
            self.recent_checkpoints = [
                os.path.join(folder, name)
                for iteration, name in sorted(earlier)
                if iteration < self.trainer.start_iter
            ]


class StopEarly(HookBase):
    """Ends a training, with a checkpoint, if several evaluations in a row have not found better
    weights; and at once if such a training is resumed. Its trainer has ``best``, a
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


class WeightAverage:
    """A copy of a model whose parameters follow its own slowly; its buffers are copied. (PyTorch's
    ``AveragedModel`` reads its number of steps from a tensor for every parameter, and a GPU would
    wait for it.)
    """

    def __init__(self, model: nn.Module, decay: float):
        """
        Args:
            model: not wrapped.
            decay: decay of the average at each step. The first steps have a smaller one,
                (1 + n) / (10 + n) after n steps and 0 at the first, so that the average does not
                depend on the initial weights.
        """
        self.decay = decay
        self.num_steps = 0
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.teacher = None  # needed in training only

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        n = self.num_steps
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        for average, current in zip(self.model.parameters(), model.parameters()):
            average.lerp_(current, 1 - decay)
        for average, current in zip(self.model.buffers(), model.buffers()):
            average.copy_(current)
        self.num_steps += 1

    def state_dict(self) -> Dict:
        return {"num_steps": self.num_steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: Dict) -> None:
        self.num_steps = operator.index(state["num_steps"])
        check_types(state["model"], self.model.state_dict())
        self.model.load_state_dict(state["model"])


class AverageWeights(HookBase):
    """Updates the trainer's ``averaged`` after each step; saves it to ``model_final_ema.pth``."""

    def after_step(self):
        self.trainer.averaged.update(self.trainer.experiment.model)

    def after_train(self):
        trainer, checkpointer = self.trainer, self.trainer.checkpointer
        finished = trainer.iter + 1 >= trainer.max_iter or trainer.stopped_early
        if finished and comm.is_main_process():
            content = {"model": trainer.averaged.model.state_dict(), **checkpointer.extra_metadata}
            write_atomically(content, os.path.join(checkpointer.save_dir, "model_final_ema.pth"))


class StopOnSignal(HookBase):
    """Finishes the current step after a signal, saves a checkpoint and raises Stopped. The hooks
    after this one, such as an evaluation, change no state of the training: in one process, they
    are not finished. A second signal ends the training at once, but not the checkpoint that the
    first one, or a lost worker, asks for; a third one does.
    """

    def __init__(self, checkpointer):
        self.checkpointer = checkpointer
        self.received = 0
        self._finished: Optional[int] = None  # the last iteration
        self._in_step = self._is_saving = False
        self._may_stop = False  # whether a signal raises at once
        self._handling = contextlib.ExitStack()

    def before_train(self):
        self._may_stop = comm.get_world_size() == 1
        self._handling.enter_context(handled(self._receive))

    def _receive(self, number):
        name = signal.Signals(number).name
        if self._is_saving:
            self._is_saving = False
            logger.warning(f"{name}: stopping after the checkpoint; another one stops at once.")
            self.received = self.received or number
            return
        if self.received:
            logger.warning(f"{name} again: stopping at once, without another checkpoint.")
            stop(number)
        self.received = number
        if self._may_stop:
            raise Stopped(number)
        logger.warning(f"{name}: stopping after this step ...")

    def before_step(self):
        self._in_step, self._may_stop = True, False

    def after_step(self):
        self._finished, self._in_step = self.trainer.iter, False
        self._may_stop = comm.get_world_size() == 1
        # All processes stop after the same step, even if the signal reached only one.
        self.received = max(comm.all_gather(self.received))
        if self.received:
            raise Stopped(self.received)

    def after_train(self):
        with self._handling:
            if isinstance(sys.exc_info()[1], WorkersEnded):  # before the step changed anything
                self._save()
            elif self.received and not self._in_step:
                self._save()
                comm.synchronize()  # Detectron2 terminates the others when one has ended

    def _save(self) -> None:
        """Save the state after the last finished step."""
        iteration = self._finished
        if iteration is None:
            return
        self.trainer.iter = iteration  # the loop may have counted on
        self._is_saving = True
        self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        name, folder = f"model_{iteration:07d}.pth", self.checkpointer.save_dir
        logger.warning(
            f"Stopped after {iteration + 1} iterations; the checkpoint is {name} in {folder}, from "
            "which --resume continues."
        )
