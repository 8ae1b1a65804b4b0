"""Ctrl-C and SIGTERM end training between two steps, with a checkpoint."""

import logging
import signal
import threading

from detectron2.engine import HookBase
from detectron2.utils import comm

__all__ = ["StopOnSignal"]

logger = logging.getLogger(__name__)


class StopOnSignal(HookBase):
    """
    Finishes the step in which a signal came, saves a checkpoint, says how to go on, and exits
    with 128 + the signal's number, as shells expect it. A second signal ends it at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, checkpointer):
        self.checkpointer = checkpointer
        self.received = 0
        self._handlers = {}

    def before_train(self):
        if threading.current_thread() is threading.main_thread():  # the only one that may
            self._handlers = {s: signal.signal(s, self._receive) for s in self.SIGNALS}

    def _receive(self, number, frame):
        self.received = number
        self._restore()
        logger.warning(f"{signal.Signals(number).name}: stopping after this step ...")

    def after_step(self):
        # All processes stop after the same step, whichever of them the signal reached.
        received = max(comm.all_gather(self.received))
        if not received:
            return
        iteration = self.trainer.iter
        self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        logger.warning(
            f"Stopped after iteration {iteration}, which model_{iteration:07d}.pth in "
            f"{self.checkpointer.save_dir} holds; go on with the same command and --resume."
        )
        raise SystemExit(128 + received)

    def after_train(self):
        self._restore()

    def _restore(self):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
