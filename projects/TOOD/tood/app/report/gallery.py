"""Drawings of a report: the worst images, objects that are missed, detections of nothing."""

from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
from tqdm import tqdm

from tood.app.report.analysis import Analysis
from tood.app.report.errors import CORRECT, KINDS
from tood.utils.files import encode_image
from tood.visualization.draw import draw_boxes

RIGHT, WRONG, MISSED = (0.1, 0.65, 0.2), (0.9, 0.1, 0.1), (1.0, 0.6, 0.0)
IMAGE_SIDE, CROP_SIDE = 560, 260  # longer side in pixels
LARGEST_SCALE = 3.0
NUM_IMAGES, NUM_CROPS = 6, 12
# Of a crop: how much of its surroundings is seen, in sizes of the box, and at least in pixels.
CONTEXT, LEAST_CONTEXT = 1.0, 24


# From the index of an image to its pixels (H, W, 3) uint8, RGB; None if it cannot be read.
Read = Callable[[int], Optional[np.ndarray]]


class Drawing(NamedTuple):
    """A drawing and what it shows."""

    jpeg: bytes
    caption: str


class _Drawn(NamedTuple):
    """Boxes of an image, XYXY in pixels, and how they are drawn."""

    boxes: np.ndarray
    classes: List[int]
    scores: List[float]  # NaN for objects
    colors: List[tuple]


def draw_worst_images(analysis: Analysis, rows: Sequence[Dict], read: Read) -> List[Drawing]:
    """Draw each image with its correct and wrong detections and its missed objects.

    Args:
        rows: of :func:`tood.app.report.analysis.worst_images`.
        read: images that it cannot read are omitted.
    """
    drawings = []
    for row in tqdm(rows[:NUM_IMAGES], desc="drawing", disable=len(rows) < 5):
        image = read(row["image"])
        if image is None:
            continue
        scale = min(LARGEST_SCALE, IMAGE_SIDE / max(image.shape[:2]))
        caption = (
            f"{row['file_name']}: {row['AP_lost']:.2f} points of AP, {row['missed']} missed, "
            f"{row['wrong']} wrong"
        )
        drawn = _collect_outcomes(analysis, row["image"])
        drawings.append(Drawing(_draw(image, drawn, analysis, scale), caption))
    return drawings


def draw_missed_objects(
    analysis: Analysis, read: Read, explain: Callable[[int, np.ndarray], str]
) -> List[Drawing]:
    """Draw objects that are not found at the thresholds, the largest first.

    Args:
        explain: from the index of an object and the pixels of its image to a sentence.
    """
    table = analysis.table
    left = np.flatnonzero(analysis.matches.counted[0] & ~analysis.found_above())
    order = left[np.argsort(-table.gt_areas[left], kind="stable")]

    def caption(g: int, image: np.ndarray) -> str:
        return f"{table.class_names[table.gt_classes[g]]}: {explain(g, image)}"

    return _draw_crops(analysis, read, order, table.gt_images, table.gt_boxes, caption)


def draw_false_positives(analysis: Analysis, read: Read) -> List[Drawing]:
    """Draw wrong detections, the surest first, with their kind of error."""
    table, kinds = analysis.table, analysis.errors.kinds
    wrong = np.flatnonzero(analysis.above & (kinds >= 0))
    order = wrong[np.argsort(-table.scores[wrong], kind="stable")]

    def caption(d: int, image: np.ndarray) -> str:
        name = table.class_names[table.classes[d]]
        return f"{name}, score {table.scores[d]:.2f}: {KINDS[kinds[d]]}"

    return _draw_crops(analysis, read, order, table.images, table.boxes, caption)


def _draw_crops(
    analysis: Analysis,
    read: Read,
    order: np.ndarray,
    images: np.ndarray,
    boxes: np.ndarray,
    caption: Callable[[int, np.ndarray], str],
) -> List[Drawing]:
    """Draw the surroundings of some boxes.

    Args:
        order: indices into ``images`` and ``boxes``, the first ones are drawn.
    """
    drawings = []
    for x in _spread(order, images[order])[:NUM_CROPS]:
        image = read(images[x])
        if image is not None:
            drawn = _collect_outcomes(analysis, images[x])
            drawings.append(_draw_crop(image, boxes[x], drawn, analysis, caption(x, image)))
    return drawings


def _spread(order: np.ndarray, images: np.ndarray) -> List[int]:
    """Order by at most two of an image first, so that one bad image does not fill the page."""
    seen: Dict[int, int] = {}
    first, later = [], []
    for entry, image in zip(order.tolist(), images.tolist()):
        seen[image] = seen.get(image, 0) + 1
        (first if seen[image] <= 2 else later).append(entry)
    return first + later


def _collect_outcomes(analysis: Analysis, i: int) -> _Drawn:
    table = analysis.table
    shown = np.flatnonzero((table.images == i) & analysis.above)
    left = (table.gt_images == i) & analysis.matches.counted[0] & ~analysis.found_above()
    objects = np.flatnonzero(left)
    boxes = np.concatenate([table.gt_boxes[objects], table.boxes[shown]])
    is_right = analysis.errors.kinds[shown] == CORRECT
    return _Drawn(
        np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        [*table.gt_classes[objects].tolist(), *table.classes[shown].tolist()],
        [float("nan")] * len(objects) + table.scores[shown].tolist(),
        [MISSED] * len(objects) + [RIGHT if x else WRONG for x in is_right],
    )


def _draw_crop(
    image: np.ndarray, box: np.ndarray, drawn: _Drawn, analysis: Analysis, caption: str
) -> Drawing:
    """Draw what lies around a box, x, y, width, height."""
    x, y, w, h = box
    margin = max(CONTEXT * max(w, h), LEAST_CONTEXT)
    H, W = image.shape[:2]
    left, top = (int(max(0, v - margin)) for v in (x, y))
    right, bottom = int(min(W, x + w + margin)) + 1, int(min(H, y + h + margin)) + 1
    left, top = min(left, W - 1), min(top, H - 1)
    part = np.ascontiguousarray(image[top:bottom, left:right])
    boxes = drawn.boxes - np.array([left, top, left, top])
    limits = np.array([part.shape[1], part.shape[0]] * 2)
    inside = (boxes[:, :2] < limits[:2]).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    chosen = np.flatnonzero(inside)
    mine = _Drawn(
        boxes[chosen].clip(0, limits),
        *([values[i] for i in chosen] for values in (drawn.classes, drawn.scores, drawn.colors)),
    )
    return Drawing(_draw(part, mine, analysis, CROP_SIDE / max(part.shape[:2])), caption)


def _draw(image: np.ndarray, drawn: _Drawn, analysis: Analysis, scale: float) -> bytes:
    names = analysis.table.class_names
    drawing = draw_boxes(
        image, drawn.boxes, drawn.classes, names, drawn.scores, scale=scale, colors=drawn.colors
    )
    return encode_image(drawing, "JPEG", quality=85)
