"""What the data ask of a training: the size of its images, and its length."""

import math
from collections import Counter
from typing import Dict, NamedTuple

import numpy as np

from tood.data.annotations import has_size

STRIDE = 8  # of the finest feature map, pixels of the network's input
# The smallest tenth of the objects is to measure this many strides.
STRIDES = 2
SMALLEST_SIZE, LARGEST_SIZE = 240, 800
STEP = 16  # sizes are its multiples
LARGEST_ASPECT = 2.0  # of the longer side to the shorter one
# Images that a training sees: as many as the small config's 800 steps of four, or more passes of
# larger sets; of tiny sets no more than this many passes.
IMAGES_SEEN, PASSES, MOST_PASSES = 3200, 12, 100
EVALUATIONS = 4


class DataStatistics(NamedTuple):
    """A data set in the numbers that decide."""

    num_images: int
    num_objects: int
    small_object: float  # size of the smallest tenth, as a part of its image's shorter side
    aspect: float  # longer by shorter side, which nine tenths of the images do not exceed
    most_objects: int = 0  # of an image


def statistics_of(content: Dict) -> DataStatistics:
    """
    Args:
        content: as :func:`tood.data.annotations.read_annotations` returns it.

    Returns:
        its statistics; the size of an object is the square root of its area, as in COCO.
    """
    sizes = {i["id"]: (i["width"], i["height"]) for i in content["images"]}
    each = Counter(a["image_id"] for a in content["annotations"] if not a["iscrowd"])
    parts = [
        math.sqrt(a["bbox"][2] * a["bbox"][3]) / min(sizes[a["image_id"]])
        for a in content["annotations"]
        if has_size(a["bbox"]) and not a["iscrowd"]
    ]
    aspects = [max(size) / min(size) for size in sizes.values()]
    return DataStatistics(
        num_images=len(sizes),
        num_objects=len(parts),
        small_object=float(np.quantile(parts, 0.1)) if parts else 1.0,
        aspect=float(np.quantile(aspects, 0.9)) if aspects else 1.0,
        most_objects=max(each.values(), default=0),
    )


class ImageSize(NamedTuple):
    """Of the network's input, pixels."""

    shorter: int
    longer: int
    small_object: float  # what the smallest tenth measures there


def choose_size(statistics: DataStatistics, largest: int = LARGEST_SIZE) -> ImageSize:
    """Return the smallest size at which the smallest tenth of the objects measures ``STRIDES``
    times ``STRIDE``, between ``SMALLEST_SIZE`` and ``largest``.
    """
    wanted = STRIDES * STRIDE / max(statistics.small_object, 1e-6)
    shorter = min(max(STEP * math.ceil(wanted / STEP), SMALLEST_SIZE), largest)
    aspect = min(max(statistics.aspect, 4 / 3), LARGEST_ASPECT)
    longer = STEP * math.ceil(shorter * aspect / STEP)
    return ImageSize(shorter, longer, statistics.small_object * shorter)


def choose_max_detections(statistics: DataStatistics) -> int:
    """Return how many detections of an image are kept: COCO's 100, or in hundreds twice the objects
    of the fullest image, for not all detections are right.
    """
    return max(100 * math.ceil(2 * statistics.most_objects / 100), 100)


def choose_epochs(num_images: int) -> float:
    """Return the passes over the training images."""
    return min(max(IMAGES_SEEN / num_images, PASSES), MOST_PASSES)
