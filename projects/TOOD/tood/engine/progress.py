"""One live line of a training, and one line per evaluation: the output of ``tood train``, whose log
is in log.txt alone.
"""

import contextlib
import logging
import math
import os
import shutil
import sys
import time
from datetime import timedelta
from typing import Iterator, List, Mapping, Optional, TextIO

from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage
from tqdm import tqdm

from tood.data.loader import TrainingLoader
from tood.evaluation.coco import first_AP

logger = logging.getLogger(__name__)

PERIOD = 30.0  # seconds between two lines if there is no terminal
BAR_WIDTH = 10
BAR = f"{{bar:{BAR_WIDTH}}} {{desc}}"
SMOOTHED = 20  # steps, of the loss


class Progress(HookBase):
    """Shows the progress of its trainer while it is :meth:`shown`; it is called after each step,
    before the evaluation.
    """

    def __init__(self):
        self.stream: Optional[TextIO] = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show a bar if standard output is a terminal, otherwise a line every ``PERIOD`` seconds.
        What libraries print meanwhile goes to the log.
        """
        self.stream = stream = sys.stdout
        self.bar = tqdm(
            file=stream,
            disable=not is_terminal(stream),
            bar_format=BAR,
            dynamic_ncols=True,
            leave=False,
        )
        try:
            with printed_to_log():
                yield
            self._finish_evaluation()
            if self.trainer.stopped_early:
                self._print(f"No better AP in the last evaluations: stopped at step {self.done}.")
        finally:
            self.bar.close()
            self.stream = None

    def before_train(self):
        if self.stream is None:
            return
        trainer = self.trainer
        self.done, self.evaluated = trainer.start_iter, trainer.evaluated
        self.step_times: List[float] = []
        self.evaluation_times: List[float] = []
        self.AP, self.printed, self.evaluation_start = math.nan, -math.inf, None
        self.bar.reset(total=trainer.max_iter)
        self.bar.update(self.done)

    def before_step(self):
        if self.stream is not None:
            self._finish_evaluation()
            self.step_start = time.monotonic()

    def after_step(self):
        if self.stream is None:
            return
        now = time.monotonic()
        self.step_times.append(now - self.step_start)
        self.done = self.trainer.iter + 1
        self._show_bar()
        if self.bar.disable and now - self.printed >= PERIOD:
            self._print(self._describe())
            self.printed = now
        period = self.trainer.options.eval_period
        if self.done == self.trainer.max_iter or (period and self.done % period == 0):
            self.evaluation_start = now
            self.bar.set_description_str(f"step {self.done}: evaluating ...")

    def _show_bar(self) -> None:
        """Show the line, and the bar before it if the terminal is wide enough for both."""
        text = self._describe()
        if not self.bar.disable:
            width = shutil.get_terminal_size().columns - 1
            text = text if len(text) <= width else self._describe(short=True)
            self.bar.bar_format = BAR if len(text) + BAR_WIDTH < width else "{desc}"
        self.bar.set_description_str(text, refresh=False)
        self.bar.update()

    def _finish_evaluation(self) -> None:
        """Print the line of an evaluation, if there was one since the last call."""
        trainer = self.trainer
        if trainer.evaluated == self.evaluated:
            return
        self.evaluated, results = trainer.evaluated, trainer.best_results
        self.AP = first_AP(results)
        if self.evaluation_start is not None:
            self.evaluation_times.append(time.monotonic() - self.evaluation_start)
        self._print(describe_evaluation(self.evaluated, results, trainer.best))

    def _print(self, line: str) -> None:
        tqdm.write(line, file=self.stream)
        self.stream.flush()

    def _describe(self, short: bool = False) -> str:
        trainer, options = self.trainer, self.trainer.options
        parts = [f"step {self.done}/{trainer.max_iter}"]
        loader = trainer._trainer.data_loader
        # Other loaders do not say how many images there are.
        if isinstance(loader, TrainingLoader) and not short:
            per_epoch = len(loader.dataset) / options.ims_per_batch
            epochs = (math.ceil(x / per_epoch) for x in (self.done, trainer.max_iter))
            parts.append("epoch {}/{}".format(*epochs))
        losses = get_event_storage().histories().get("total_loss")
        if losses is not None:
            parts.append(f"loss {losses.median(SMOOTHED):.2f}")
        if not math.isnan(self.AP):
            best = "" if short else f" (best {trainer.best.AP:.1f})"
            parts.append(f"AP {self.AP:.1f}{best}")
        parts.append(f"{format_clock(self._estimate_seconds_left())} left")
        is_unicode = "utf" in (getattr(self.stream, "encoding", None) or "").lower()
        return (" · " if is_unicode else " | ").join(parts)

    def _estimate_seconds_left(self) -> float:
        # The first steps start workers, and take longer.
        steps = self.step_times[2:] or self.step_times
        last, period = self.trainer.max_iter, self.trainer.options.eval_period
        # That of this step has not begun.
        left = count_evaluations(last, period) - ((self.done - 1) // period if period else 0)
        seconds = (last - self.done) * sum(steps) / len(steps)
        if self.evaluation_times:
            seconds += left * sum(self.evaluation_times) / len(self.evaluation_times)
        return seconds


def printed_to_log() -> contextlib.AbstractContextManager:
    """Send what libraries print to the log."""
    return contextlib.redirect_stdout(_LogLines())


class _LogLines:
    """Standard output of libraries, as lines of the log."""

    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            logger.info(line)
        return len(text)

    def flush(self) -> None:
        """Do nothing: lines are not kept."""

    def isatty(self) -> bool:
        return False


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal with lines: tqdm shows nothing in one of 0 lines, such
    as that of script(1).
    """
    lines = 1
    with contextlib.suppress(OSError, ValueError):
        lines = os.get_terminal_size(stream.fileno()).lines
    return stream.isatty() and lines > 0


def count_evaluations(steps: int, period: int) -> int:
    """Return the number of evaluations in the first steps of a training, with one at their end.

    Args:
        period: steps between two evaluations; 0: there is none before the end.
    """
    return math.ceil(steps / period) if period else 1


def describe_evaluation(iteration: int, results: Mapping, best) -> str:
    """
    Args:
        iteration: the last one before it.
        results: Detectron2's, of the better ones of the weights and their average.
        best: the :class:`~tood.engine.hooks.BestWeights` after it.
    """
    AP, AP50 = first_AP(results), first_AP(results, "AP50")
    if math.isnan(AP):
        return f"step {iteration + 1}: evaluated; AP is not defined without objects"
    is_best = best.iteration == iteration
    rest = "best so far" if is_best else f"best {best.AP:.1f} at step {best.iteration + 1}"
    return f"step {iteration + 1}: AP {AP:.1f}, AP50 {AP50:.1f}; {rest}"


def format_clock(seconds: float) -> str:
    """Return "0:09", "2:10" or "1:02:10"."""
    text = str(timedelta(seconds=round(seconds)))
    return text[3:] if text.startswith("0:0") else text[2:] if text.startswith("0:") else text
