"""Match detections to objects as COCO does, for all ranges of areas and IoU thresholds at once, and
find overlaps between classes, which COCO ignores. AP by size and class, its intervals, curves,
confusion and kinds of error are all counted from this.

pycocotools matches one class, image and range at a time in Python, which takes too long for reports
of large data sets; tests compare the AP with that of pycocotools, within 1e-9.

Shapes: N images, K classes, G objects and D detections of all images, A ranges of areas, T
thresholds. Boxes are COCO's, x, y, width, height in pixels.
"""

from collections import Counter
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from tood.data.annotations import class_names, has_size, is_box
from tood.evaluation.coco import AREAS, COCO_LIMIT
from tood.utils.errors import UserError

RANGES = {"AP": (0.0, 1e10), **AREAS}
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Pairs that overlap less are not localization errors (TIDE's background threshold).
MIN_IOU = 0.1
LARGEST_SCORE = 1e9


class Table(NamedTuple):
    """Objects and detections of a data set, in columns. Images are in the order of their ids;
    detections in that of their images, then of their scores.
    """

    image_ids: List
    file_names: List[str]
    sizes: np.ndarray  # (N, 2) int64, width and height
    class_names: List[str]
    gt_images: np.ndarray  # (G,) int64
    gt_classes: np.ndarray  # (G,) int64
    gt_boxes: np.ndarray  # (G, 4)
    gt_areas: np.ndarray  # (G,)
    gt_crowd: np.ndarray  # (G,) bool
    images: np.ndarray  # (D,) int64
    classes: np.ndarray  # (D,) int64
    boxes: np.ndarray  # (D, 4)
    scores: np.ndarray  # (D,)
    max_detections: int = COCO_LIMIT  # of an image and class


class Pairs(NamedTuple):
    """Detections and objects of the same image that overlap, P of them, sorted by detection."""

    detections: np.ndarray  # (P,) int64
    objects: np.ndarray  # (P,) int64
    ious: np.ndarray  # (P,) of a crowd, the share of the detection that lies in it


class Matches(NamedTuple):
    """The result of COCO's matching for every detection and object."""

    objects: np.ndarray  # (A, T, D) int32, the object that a detection finds, -1 for none
    ignored: np.ndarray  # (A, T, D) bool, detections that count neither way
    counted: np.ndarray  # (A, G) bool, objects that count


def make_table(
    content: Dict,
    detections: Sequence[Dict],
    source: str = "the results",
    limit: Optional[int] = None,
) -> Table:
    """
    Args:
        content: annotations in the clean form of :mod:`tood.data.annotations`. Objects without
            width or height are ignored, as in evaluation.
        detections: in COCO's format of results: "image_id", "category_id", "bbox", "score". Of an
            image and class, the best 100 count, as in COCO's evaluation; all of them where an image
            has more objects of a class than that, most of which would count as missed otherwise.
        source: name of the detections in errors.
        limit: another number of detections of an image and class that count.

    Raises:
        UserError: for detections that are not in the format, or are of other images or classes.
    """
    images = sorted(content["images"], key=lambda x: x["id"])
    image_index = {x["id"]: i for i, x in enumerate(images)}
    categories = sorted(x["id"] for x in content["categories"])
    class_index = {id: i for i, id in enumerate(categories)}
    objects = [a for a in content.get("annotations", ()) if has_size(a["bbox"])]
    rows = [_read_row(x, i, image_index, class_index, source) for i, x in enumerate(detections)]
    found = np.array(rows, dtype=np.float64).reshape(len(rows), 7)
    limit = limit or _find_limit(objects, len(found))
    order = np.lexsort((-found[:, 2], found[:, 0]))  # stable: equal scores stay as they are
    found = found[order]
    found = found[_rank_in_group(found[:, 0] * len(categories) + found[:, 1]) < limit]
    return Table(
        image_ids=[x["id"] for x in images],
        file_names=[x["file_name"] for x in images],
        sizes=np.array([(x["width"], x["height"]) for x in images]).reshape(-1, 2),
        class_names=class_names(content),
        gt_images=np.array([image_index[a["image_id"]] for a in objects], dtype=np.int64),
        gt_classes=np.array([class_index[a["category_id"]] for a in objects], dtype=np.int64),
        gt_boxes=np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4),
        gt_areas=np.array([a["area"] for a in objects], dtype=np.float64),
        gt_crowd=np.array([bool(a["iscrowd"]) for a in objects], dtype=bool),
        images=found[:, 0].astype(np.int64),
        classes=found[:, 1].astype(np.int64),
        boxes=found[:, 3:],
        scores=found[:, 2],
        max_detections=limit,
    )


def _find_limit(objects: Sequence[Dict], num_detections: int) -> int:
    """Return how many detections of an image and class count."""
    each = Counter((a["image_id"], a["category_id"]) for a in objects if not a["iscrowd"])
    is_crowded = max(each.values(), default=0) > COCO_LIMIT
    return max(num_detections, COCO_LIMIT) if is_crowded else COCO_LIMIT


def _read_row(x, i: int, image_index: Dict, class_index: Dict, source: str):
    name = f"{source}: entry {i}"
    if not isinstance(x, dict) or not {"image_id", "category_id", "bbox", "score"} <= set(x):
        raise UserError(
            f"{name} is not a detection in COCO's format: it needs image_id, category_id, bbox and "
            "score."
        )
    if not is_box(x["bbox"]) or min(x["bbox"][2:]) < 0:
        raise UserError(f"{name} needs a bbox [x, y, width, height]; it is {x['bbox']!r:.80}.")
    if type(x["score"]) not in (int, float) or not abs(x["score"]) < LARGEST_SCORE:
        raise UserError(f"{name} needs a score, a number; it is {x['score']!r:.80}.")
    for key, index in (("image_id", image_index), ("category_id", class_index)):
        if type(x[key]) not in (int, float, str):
            raise UserError(f"{name} has the {key} {x[key]!r:.80}, which is not an id.")
        if x[key] not in index:
            raise UserError(
                f"{name} has the {key} {x[key]!r:.80}, which the annotations do not have; are they "
                "of another data set?"
            )
    return image_index[x["image_id"]], class_index[x["category_id"]], x["score"], *x["bbox"]


def _rank_in_group(groups: np.ndarray) -> np.ndarray:
    """Return how many of the same group come before each entry."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(groups[order]) != 0]) if len(groups) else order
    sizes = np.diff(np.r_[starts, len(groups)])
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return ranks


def overlaps(table: Table) -> Pairs:
    """Return all pairs of an IoU of at least ``MIN_IOU``, of any classes, by pycocotools."""
    parts: List[Pairs] = []
    num_images = len(table.image_ids)
    gt_order = np.argsort(table.gt_images, kind="stable")
    gt_ends = np.searchsorted(table.gt_images[gt_order], np.arange(num_images + 1))
    ends = np.searchsorted(table.images, np.arange(num_images + 1))
    crowd = table.gt_crowd.astype(np.uint8)
    for i in tqdm(range(num_images), desc="overlaps", disable=num_images < 1000):
        objects = gt_order[gt_ends[i] : gt_ends[i + 1]]
        first, last = ends[i], ends[i + 1]
        if first == last or not len(objects):
            continue
        ious = coco_mask.iou(table.boxes[first:last], table.gt_boxes[objects], crowd[objects])
        rows, columns = np.nonzero(ious >= MIN_IOU)
        parts.append(Pairs(rows + first, objects[columns], ious[rows, columns]))
    if not parts:
        nothing = np.zeros(0, dtype=np.int64)
        return Pairs(nothing, nothing, np.zeros(0))
    return Pairs(*(np.concatenate(x) for x in zip(*parts)))


def match(table: Table, pairs: Pairs) -> Matches:
    """Match as COCO's evaluation does: of an image and class, detections choose in the order of
    their scores, and take an object that does not count (a crowd, or of another size) only where
    none is left that does.
    """
    limits = np.array(list(RANGES.values()))[:, :, None]
    areas = table.boxes[:, 2] * table.boxes[:, 3]
    outside = (areas < limits[:, 0]) | (areas > limits[:, 1])  # (A, D)
    counted = (table.gt_areas >= limits[:, 0]) & (table.gt_areas <= limits[:, 1])
    counted &= ~table.gt_crowd
    shape = (len(RANGES), len(IOU_THRESHOLDS))
    objects = np.full((*shape, len(table.scores)), -1, dtype=np.int32)
    taken = np.zeros((*shape, len(table.gt_images)), dtype=bool)
    for d, candidates, ious in _choices(table, pairs):
        chosen = _choose(counted[:, candidates], taken[:, :, candidates], ious)
        ranges, levels = np.nonzero(chosen >= 0)
        found = candidates[chosen[ranges, levels]]
        objects[ranges, levels, d] = found
        taken[ranges, levels, found] = ~table.gt_crowd[found]
    ignored = np.where(
        objects >= 0,
        ~counted[np.arange(len(RANGES))[:, None, None], objects] if counted.size else False,
        outside[:, None],
    )
    return Matches(objects, ignored, counted)


def _choices(table: Table, pairs: Pairs):
    """Yield each detection that overlaps objects of its class by 0.5 or more, with them and the
    IoUs, in the order in which detections choose.
    """
    same = table.classes[pairs.detections] == table.gt_classes[pairs.objects]
    # The last of equal IoUs is taken: objects go backwards, and argmax takes the first.
    order = np.flatnonzero(same & (pairs.ious >= IOU_THRESHOLDS[0]))[::-1]
    order = order[np.argsort(pairs.detections[order], kind="stable")]
    detections, starts = np.unique(pairs.detections[order], return_index=True)
    ends = [*starts[1:], len(order)]
    progress = tqdm(detections.tolist(), desc="matching", disable=len(detections) < 20_000)
    for d, start, end in zip(progress, starts.tolist(), ends):
        yield d, pairs.objects[order[start:end]], pairs.ious[order[start:end]]


def _choose(counted: np.ndarray, taken: np.ndarray, ious: np.ndarray) -> np.ndarray:
    """
    Args:
        counted: (A, C) bool, of the candidates of a detection.
        taken: (A, T, C) bool.
        ious: (C,).

    Returns:
        (A, T) int64, the candidate that it finds, -1 for none.
    """
    free = ~taken & (ious >= np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None])
    # An IoU is at most 1: objects that count come first.
    values = np.where(free, ious + 2.0 * counted[:, None], -1.0)
    return np.where(free.any(axis=2), values.argmax(axis=2), -1)
