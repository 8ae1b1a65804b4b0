"""Losses of images at every score threshold: the share of an image's objects that are missed.

Detections find objects as in COCO's evaluation at an IoU of 0.5: one to one, within a class, in the
order of their scores. Those of at least a threshold are the first ones in this order, so that they
find the same objects with or without the rest: an object is found from the score of its detection
down, and one matching gives the losses at all thresholds.

Shapes: N images, G objects that count, F false detections, n units.
"""

from fractions import Fraction
from typing import Dict, List, NamedTuple, Sequence

import numpy as np

from tood.app.report.matching import make_table, match, overlaps

NEVER = -np.inf  # score of an object that is not found


class Outcome(NamedTuple):
    """The objects of a data set that count, and the scores from which on they are found."""

    class_names: List[str]
    scores: np.ndarray  # (G,), NEVER for an object that is not found
    classes: np.ndarray  # (G,) int64
    units: np.ndarray  # (G,) int64
    num_units: int  # with those without objects, whose loss is 0
    num_images: int
    false_scores: np.ndarray  # (F,), of detections that count and find nothing
    false_classes: np.ndarray  # (F,) int64

    @property
    def candidates(self) -> np.ndarray:
        """Different scores at which objects are found, ascending: between them, no loss changes."""
        return np.unique(self.scores[self.scores > NEVER])

    def sum_losses(self, threshold: float) -> Fraction:
        """Return the exact sum over units of the share of their objects that detections of at least
        this score do not find.
        """
        sizes = np.bincount(self.units, minlength=self.num_units)[self.units]
        missed = np.bincount(sizes[self.scores < threshold])
        return sum((Fraction(int(missed[m]), int(m)) for m in np.flatnonzero(missed)), Fraction(0))

    def list_losses(self, threshold: float) -> np.ndarray:
        """Return the loss of each unit, (n,); their sum is that of :meth:`sum_losses`."""
        missed = np.bincount(self.units[self.scores < threshold], minlength=self.num_units)
        return missed / np.maximum(np.bincount(self.units, minlength=self.num_units), 1)

    def count_false(self, threshold: float) -> int:
        """Return how many detections of at least this score find nothing."""
        return int((self.false_scores >= threshold).sum())

    def count_found(self, threshold: float) -> int:
        """Return how many objects are found by detections of at least this score."""
        return int((self.scores >= threshold).sum())

    def select_class(self, k: int) -> "Outcome":
        """Return the same for one class, of the units that have objects of it."""
        mine, false = self.classes == k, self.false_classes == k
        kept, units = np.unique(self.units[mine], return_inverse=True)
        return self._replace(
            scores=self.scores[mine],
            classes=self.classes[mine],
            units=units.reshape(-1),
            num_units=len(kept),
            false_scores=self.false_scores[false],
            false_classes=self.false_classes[false],
        )


def find_outcome(
    content: Dict,
    detections: Sequence[Dict],
    groups: Sequence[Sequence[int]] = (),
    source: str = "the results",
) -> Outcome:
    """
    Args:
        content: annotations in the clean form of :mod:`tood.data.annotations`.
        detections: in COCO's format of results; all of them count, however many an image has.
        groups: indices of the images in ``content`` that are one unit; default: each is one.
        source: name of the detections in errors.

    Raises:
        UserError: as of :func:`tood.app.report.matching.make_table`.
    """
    table = make_table(content, detections, source, limit=len(detections) + 1)
    matches = match(table, overlaps(table))
    finds, ignored = matches.objects[0, 0], matches.ignored[0, 0]
    scores = np.full(len(table.gt_images), NEVER)
    found = finds >= 0
    scores[finds[found]] = table.scores[found]  # a crowd's is any of them, and does not count
    counted, false = matches.counted[0], ~found & ~ignored
    units = np.arange(len(table.image_ids))
    position = {id: i for i, id in enumerate(table.image_ids)}
    for number, group in enumerate(groups):
        units[[position[content["images"][i]["id"]] for i in group]] = number
    return Outcome(
        class_names=table.class_names,
        scores=scores[counted],
        classes=table.gt_classes[counted],
        units=units[table.gt_images[counted]],
        num_units=len(groups) or len(table.image_ids),
        num_images=len(table.image_ids),
        false_scores=table.scores[false],
        false_classes=table.classes[false],
    )
