"""A watch over a stream of images: are they still like those of the calibration?

Images of one kind, in an order that says nothing, are exchangeable. Then the rank of each new image
among the calibration images and all earlier ones, ties broken at random, is a uniform p-value that
does not depend on the earlier ones (Vovk, Gammerman, Shafer 2005, section 8.1). A bettor against
this multiplies its money by f(p), whose mean is 1; money that reaches 100 times its start is an
alarm, and its probability in a stream of any length is at most 1 % (Ville's inequality).

Each bet is made with a share w_n = 1 / (n (n + 1)) of the money from image n on, so that a change
after many images costs 2 log n, not what was lost before (a mixture over the time of the change).
The money on a statistic is fair given its earlier p-values, not given those of the others: how
these rank the same images may say something about the next one. So statistics are not averaged:
each one has its own account, and the alarm is that of one of S accounts at 100 S.

Shapes: S statistics, F bets; further dimensions are those of simulated streams.
"""

import bisect
import threading
from typing import List, NamedTuple, Sequence

import numpy as np

from tood.utils.errors import UserError

STATISTICS = ("number of detections", "sum of scores", "largest score", "brightness", "sharpness")
FLOOR = 0.05  # lowest score of a detection in the sum and the maximum
ALARM = 100.0  # 1 / 0.01
POWERS = np.array([0.25, 0.5, 0.75])
MIN_REFERENCE = 10  # images, for p-values that can be small


class Bets(NamedTuple):
    """Money on each bet; that which is not yet bet is 1 / (n + 1) after n images."""

    wealth: np.ndarray  # (..., S, F)
    num_images: int = 0

    def update(self, p_values: np.ndarray) -> "Bets":
        """Return the bets after one more image, with its p-values (..., S)."""
        n = self.num_images + 1
        return Bets((self.wealth + 1 / (n * (n + 1))) * compute_factors(p_values), n)

    def measure(self) -> np.ndarray:
        """Return the money (..., S) of each statistic, as a multiple of its start."""
        return self.wealth.mean(axis=-1) + 1 / (self.num_images + 1)

    def weigh(self) -> np.ndarray:
        """Return the evidence of a change (...): that it ever reaches ``ALARM`` has a probability
        of at most 1 / ``ALARM``, by Ville's inequality for each of the S statistics at S times it.
        """
        return self.measure().max(axis=-1) / len(STATISTICS)


def start_bets(*shape: int) -> Bets:
    """Return bets without money on them, for streams of a shape."""
    return Bets(np.zeros((*shape, len(STATISTICS), 2 * len(POWERS))))


def compute_factors(p_values: np.ndarray) -> np.ndarray:
    """Return f(p) = e p^(e - 1) for the powers e in ``POWERS``, (..., S, F): the first half of the
    bets is on small p-values, the second on large ones.
    """
    p = np.stack([p_values, 1 - p_values], axis=-1)[..., None]  # (..., S, 2, 1)
    factors = POWERS * np.maximum(p, 1e-12) ** (POWERS - 1)
    return factors.reshape(*p_values.shape, 2 * len(POWERS))


def compute_p_value(value: float, earlier: Sequence[float], uniform: float) -> float:
    """Return the randomised rank of a value from above: small for a large one.

    Args:
        earlier: sorted.
        uniform: a random number from 0 to 1, which breaks ties, also that with itself.
    """
    start, end = bisect.bisect_left(earlier, value), bisect.bisect_right(earlier, value)
    larger, equal = len(earlier) - end, end - start + 1
    return (larger + uniform * equal) / (len(earlier) + 1)


def measure(instances, pixels: np.ndarray, thresholds: Sequence[float]) -> List[float]:
    """Return the values of ``STATISTICS`` for an image.

    Args:
        instances: all detections of the image, Detectron2's ``Instances`` on the CPU.
        pixels: (H, W, 3) uint8; a sixteenth of them is looked at.
        thresholds: (K,), of detections that are counted; those below ``FLOOR`` never are, because
            the model may not find them with another limit.
    """
    scores, classes = instances.scores.numpy(), instances.pred_classes.numpy()
    limits = np.maximum(np.asarray(thresholds, dtype=scores.dtype), FLOOR)
    number = (scores >= limits[classes]).sum()
    kept = scores[scores >= FLOOR]
    brightness = pixels[::4, ::4].mean()
    # Between neighbours in a row, relative to the brightness: darker images are not blurred ones.
    steps = np.abs(pixels[::4, 1::4].astype(np.int16) - pixels[::4, :-1:4])
    sharpness = steps.mean() / brightness if steps.size and brightness else 0
    return [float(x) for x in (number, kept.sum(), kept.max(initial=0), brightness, sharpness)]


class Watch:
    """Watches a stream of images; several threads may show it theirs."""

    def __init__(self, reference: np.ndarray, thresholds: Sequence[float], seed: int = 0):
        """
        Args:
            reference: (M, S), statistics of the calibration images.
            thresholds: (K,), see :func:`measure`.
            seed: random seed for ties.

        Raises:
            UserError: for fewer than ``MIN_REFERENCE`` images.
        """
        if len(reference) < MIN_REFERENCE:
            raise UserError(
                f"The calibration has {len(reference)} images; a watch needs at least "
                f"{MIN_REFERENCE}: calibrate with more images."
            )
        self.thresholds = list(thresholds)
        self.alarm = ""  # the sentence, once it was raised
        self.largest = 0.0  # evidence so far
        self._earlier = [sorted(column) for column in np.asarray(reference, dtype=float).T.tolist()]
        self._bets, self._rng = start_bets(), np.random.default_rng(seed)
        self._lock = threading.Lock()

    @property
    def num_images(self) -> int:
        """Number of images that were watched."""
        return self._bets.num_images

    def observe(self, instances, pixels: np.ndarray, name: str = "") -> str:
        """Watch one more image; arguments of :func:`measure`.

        Returns:
            a sentence if it raises the alarm, which it does at most once; "" otherwise.
        """
        return self.add(measure(instances, pixels, self.thresholds), name)

    def add(self, values: Sequence[float], name: str = "") -> str:
        """Watch one more image by the values of its statistics; see :meth:`observe`."""
        with self._lock:
            uniform = self._rng.random(len(values))
            p = [compute_p_value(*x) for x in zip(values, self._earlier, uniform)]
            for value, earlier in zip(values, self._earlier):
                bisect.insort(earlier, value)
            if self.alarm:
                return ""
            self._bets = self._bets.update(np.array(p))
            evidence = float(self._bets.weigh())
            self.largest = max(self.largest, evidence)
            if evidence < ALARM:
                return ""
            self.alarm = self._describe(int(self._bets.measure().argmax()), name)
            return self.alarm

    def _describe(self, s: int, name: str) -> str:
        wealth = self._bets.wealth[s]
        is_high = wealth[: len(POWERS)].sum() > wealth[len(POWERS) :].sum()
        return (
            f"Images are not like those of the calibration any more, as of image "
            f"{self.num_images}{f' ({name})' if name else ''}: the {STATISTICS[s]} is "
            f"{'higher' if is_high else 'lower'}. The probability of a false alarm is at most "
            f"{1 / ALARM:.0%}."
        )

    def __str__(self) -> str:
        if self.alarm:
            return self.alarm
        return (
            f"Watched {self.num_images} images: no alarm (evidence of a change {self.largest:.1f}, "
            f"alarm at {ALARM:.0f})."
        )
