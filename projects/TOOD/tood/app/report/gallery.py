"""Drawings of a report: the worst images, objects that are missed, detections of nothing."""

from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

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
MAX_BOXES = 100  # in a drawing
# Of a crop: how much of its surroundings is seen, in sizes of the box, and at least in pixels.
CONTEXT, LEAST_CONTEXT = 1.0, 24


# From the index of an image to its pixels (H, W, 3) uint8, RGB; None if it cannot be read.
Read = Callable[[int], Optional[np.ndarray]]


class Drawing(NamedTuple):
    """A drawing and what it shows."""

    jpeg: bytes
    caption: str


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
        drawings.append(Drawing(_draw(analysis, row["image"], image, (0, 0), scale), caption))
    return drawings


def draw_missed_objects(
    analysis: Analysis, read: Read, explain: Callable[[int, np.ndarray], str]
) -> List[Drawing]:
    """Draw objects that are not found at the thresholds, the largest first.

    Args:
        explain: from the index of an object and the pixels of its image to a sentence.
    """
    table = analysis.table
    left = np.flatnonzero(analysis.missed_above)
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
        if image is None:
            continue
        part, corner = crop_around(image, boxes[x])
        jpeg = _draw(analysis, images[x], part, corner, CROP_SIDE / max(part.shape[:2]))
        drawings.append(Drawing(jpeg, caption(x, image)))
    return drawings


def crop_around(image: np.ndarray, box: Sequence[float]) -> Tuple[np.ndarray, Tuple[int, int]]:
    """Return what surrounds a box, x, y, width, height, in an image, and its upper left corner."""
    x, y, w, h = box
    margin = max(CONTEXT * max(w, h), LEAST_CONTEXT)
    left, top = (int(min(max(0, v - margin), n - 1)) for v, n in zip((x, y), image.shape[1::-1]))
    part = image[top : int(y + h + margin) + 1, left : int(x + w + margin) + 1]
    return np.ascontiguousarray(part), (left, top)


def _spread(order: np.ndarray, images: np.ndarray) -> List[int]:
    """Order by at most two of an image first, so that one bad image does not fill the page."""
    seen: Dict[int, int] = {}
    first, later = [], []
    for entry, image in zip(order.tolist(), images.tolist()):
        seen[image] = seen.get(image, 0) + 1
        (first if seen[image] <= 2 else later).append(entry)
    return first + later


def _draw(
    analysis: Analysis, i: int, part: np.ndarray, corner: Tuple[int, int], scale: float
) -> bytes:
    """Draw the detections and missed objects in a part of an image.

    Args:
        corner: x and y of the part in the image.
    """
    table = analysis.table
    objects = np.flatnonzero((table.gt_images == i) & analysis.missed_above)
    shown = np.flatnonzero((table.images == i) & analysis.above)
    boxes = np.concatenate([table.gt_boxes[objects], table.boxes[shown]])
    boxes[:, 2:] += boxes[:, :2]
    boxes -= np.array([*corner, *corner])
    limits = np.array(part.shape[1::-1])
    inside = (boxes[:, :2] < limits).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    classes = np.concatenate([table.gt_classes[objects], table.classes[shown]])
    scores = np.concatenate([np.full(len(objects), np.nan), table.scores[shown]])
    colors = [MISSED] * len(objects)
    colors += [RIGHT if x == CORRECT else WRONG for x in analysis.errors.kinds[shown]]
    drawing = draw_boxes(
        part,
        boxes[inside].clip(0, np.tile(limits, 2)),
        classes[inside].tolist(),
        table.class_names,
        scores[inside].tolist(),
        scale=scale,
        colors=[colors[j] for j in np.flatnonzero(inside)],
        max_boxes=MAX_BOXES,
    )
    return encode_image(drawing, "JPEG", quality=85)
