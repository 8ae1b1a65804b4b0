"""Drawings of a report: the worst images, objects that are missed, detections of nothing, suspect
labels.
"""

from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from tood.app.report.analysis import Analysis
from tood.app.report.errors import CORRECT, KINDS
from tood.utils.errors import shorten
from tood.utils.files import encode_image
from tood.visualization.draw import draw_boxes

RIGHT, WRONG, MISSED = (0.1, 0.65, 0.2), (0.9, 0.1, 0.1), (1.0, 0.6, 0.0)
SUSPECT = (0.2, 0.45, 1.0)
IMAGE_SIDE, CROP_SIDE = 640, 360  # longer side in pixels
LARGEST_SCALE = 3.0
NUM_IMAGES, NUM_CROPS = 6, 12
MAX_BOXES = 100  # in a drawing
MAX_NAME = 36  # characters of the name of a file
DIMMED = 0.4  # visibility of the other objects in a crop
# Margin of a crop, in sizes of the box, and at least in pixels.
CONTEXT, LEAST_CONTEXT = 1.0, 24


# From the index of an image to its pixels (H, W, 3) uint8, RGB; None if it cannot be read.
Read = Callable[[int], Optional[np.ndarray]]


class Drawing(NamedTuple):
    """A drawing and what it shows."""

    jpeg: bytes
    caption: str
    file_name: str = ""  # of the image


class Boxes(NamedTuple):
    """B boxes in an image."""

    boxes: np.ndarray  # (B, 4), x, y, width, height
    names: Sequence[str]
    scores: np.ndarray  # (B,), NaN if there is none
    colors: Sequence[tuple]

    def select(self, chosen: np.ndarray) -> "Boxes":
        """Return the boxes of some indices."""
        names, colors = ([x[i] for i in chosen] for x in (self.names, self.colors))
        return Boxes(self.boxes[chosen], names, self.scores[chosen], colors)


def draw_worst_images(analysis: Analysis, rows: Sequence[Dict], read: Read) -> List[Drawing]:
    """Draw each image with its correct and wrong detections and its missed objects.

    Args:
        rows: result of :func:`tood.app.report.analysis.worst_images`.
        read: images that it cannot read are omitted.
    """
    drawings = []
    for row in tqdm(rows[:NUM_IMAGES], desc="drawing", disable=len(rows) < 5 or None, leave=False):
        image = read(row["image"])
        if image is None:
            continue
        scale = min(LARGEST_SCALE, IMAGE_SIDE / max(image.shape[:2]))
        caption = (
            f"{shorten(row['file_name'], MAX_NAME)}: {row['missed']} missed, {row['wrong']} wrong, "
            f"{row['AP_lost']:.2f} points of AP"
        )
        drawing = _draw(image, _list_boxes(analysis, row["image"]), (0, 0), scale)
        drawings.append(Drawing(_encode(drawing), caption, row["file_name"]))
    return drawings


def draw_missed_objects(
    analysis: Analysis, read: Read, explain: Callable[[int, np.ndarray], str]
) -> List[Drawing]:
    """Draw objects that are not found at the thresholds, the largest first.

    Args:
        explain: function from the index of an object and the pixels of its image to a sentence.
    """
    table = analysis.table
    left = np.flatnonzero(analysis.missed_above)
    order = left[np.argsort(-table.gt_areas[left], kind="stable")]

    def caption(g: int, image: np.ndarray) -> str:
        return f"{table.class_names[table.gt_classes[g]]}: {explain(g, image)}"

    subjects = _list_objects(analysis, order)
    return _draw_crops(analysis, read, table.gt_images[order], subjects, order, caption)


def draw_false_positives(analysis: Analysis, read: Read) -> List[Drawing]:
    """Draw wrong detections, the surest first, with their kind of error."""
    table, kinds = analysis.table, analysis.errors.kinds
    wrong = np.flatnonzero(analysis.above & (kinds >= 0))
    order = wrong[np.argsort(-table.scores[wrong], kind="stable")]

    def caption(d: int, image: np.ndarray) -> str:
        name = table.class_names[table.classes[d]]
        return f"{name}, score {table.scores[d]:.2f}: {KINDS[kinds[d]]}"

    subjects = _list_detections(analysis, order)
    return _draw_crops(analysis, read, table.images[order], subjects, order, caption)


def draw_suspects(analysis: Analysis, rows: Sequence[Dict], read: Read) -> List[Drawing]:
    """Draw suspect labels, those of the most doubt first.

    Args:
        rows: result of :func:`tood.app.report.suspects.list_suspects`.
    """
    boxes = np.array([x["bbox"] for x in rows], dtype=np.float64).reshape(-1, 4)
    names, scores = [x["class_name"] for x in rows], np.full(len(rows), np.nan)
    images = np.array([x["image"] for x in rows], dtype=np.int64)

    def caption(i: int, image: np.ndarray) -> str:
        return f"{shorten(rows[i]['file_name'], MAX_NAME)}: {rows[i]['reason']}"

    subjects = Boxes(boxes, names, scores, [SUSPECT] * len(rows))
    return _draw_crops(analysis, read, images, subjects, np.arange(len(rows)), caption)


def _draw_crops(
    analysis: Analysis,
    read: Read,
    images: np.ndarray,
    subjects: Boxes,
    order: np.ndarray,
    caption: Callable[[int, np.ndarray], str],
) -> List[Drawing]:
    """Draw the surroundings of some boxes, of which the first ones are drawn.

    Args:
        images: (B,) of the subjects.
        order: (B,) what ``caption`` is called with.
    """
    drawings = []
    for x in _spread(np.arange(len(order)), images)[:NUM_CROPS]:
        image = read(images[x])
        if image is None:
            continue
        subject = subjects.select(np.array([x]))
        part, corner = crop_around(image, subject.boxes[0])
        others = _omit(_list_boxes(analysis, images[x]), subject)
        drawing = _draw_subject(part, subject, others, corner)
        name = analysis.table.file_names[images[x]]
        drawings.append(Drawing(_encode(drawing), caption(order[x], image), name))
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


def _list_objects(analysis: Analysis, chosen: np.ndarray) -> Boxes:
    table = analysis.table
    names = [table.class_names[k] for k in table.gt_classes[chosen]]
    unknown = np.full(len(chosen), np.nan)
    return Boxes(table.gt_boxes[chosen], names, unknown, [MISSED] * len(chosen))


def _list_detections(analysis: Analysis, chosen: np.ndarray) -> Boxes:
    table = analysis.table
    names = [table.class_names[k] for k in table.classes[chosen]]
    colors = [RIGHT if x == CORRECT else WRONG for x in analysis.errors.kinds[chosen]]
    return Boxes(table.boxes[chosen], names, table.scores[chosen], colors)


def _list_boxes(analysis: Analysis, i: int) -> Boxes:
    """Return the missed objects and the detections of an image."""
    table = analysis.table
    missed = np.flatnonzero((table.gt_images == i) & analysis.missed_above)
    shown = np.flatnonzero((table.images == i) & analysis.above)
    pair = _list_objects(analysis, missed), _list_detections(analysis, shown)
    boxes, scores = (np.concatenate([x[column] for x in pair]) for column in (0, 2))
    names, colors = ([*pair[0][column], *pair[1][column]] for column in (1, 3))
    return Boxes(boxes, names, scores, colors)


def _omit(others: Boxes, subject: Boxes) -> Boxes:
    """Return the boxes that are not the subject's."""
    is_other = (others.boxes != subject.boxes).any(axis=1)
    return others.select(np.flatnonzero(is_other))


def _draw_subject(
    part: np.ndarray, subject: Boxes, others: Boxes, corner: Tuple[int, int]
) -> np.ndarray:
    """Draw the box that a crop is about over the others, which are dimmed and not labelled.

    Args:
        corner: x and y of the crop in the image.
    """
    scale = CROP_SIDE / max(part.shape[:2])
    plain = Image.fromarray(part)
    plain = plain.resize([max(1, round(scale * side)) for side in plain.size])
    subject, others = (
        x._replace(boxes=(x.boxes - [*corner, 0, 0]) * scale) for x in (subject, others)
    )
    drawing = Image.blend(plain, _outline(plain, others, 1), DIMMED)
    return _draw(np.asarray(_outline(drawing, subject, 3)), subject, (0, 0), 1.0)


def _outline(image: Image.Image, boxes: Boxes, width: int) -> Image.Image:
    """Return a copy of an image with the outlines of boxes."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for (x, y, w, h), color in zip(boxes.boxes, boxes.colors):
        draw.rectangle(
            (x, y, x + w, y + h), outline=tuple(int(255 * c) for c in color), width=width
        )
    return image


def _draw(part: np.ndarray, boxes: Boxes, corner: Tuple[int, int], scale: float) -> np.ndarray:
    """Draw those of the boxes that are in a part of an image.

    Args:
        corner: x and y of the part in the image.
    """
    corners = boxes.boxes - [*corner, 0, 0]
    corners[:, 2:] += corners[:, :2]
    limits = np.array(part.shape[1::-1])
    inside = (corners[:, :2] < limits).all(axis=1) & (corners[:, 2:] > 0).all(axis=1)
    seen = boxes.select(np.flatnonzero(inside))
    return draw_boxes(
        part,
        corners[inside].clip(0, np.tile(limits, 2)),
        range(len(seen.names)),
        seen.names,
        seen.scores.tolist(),
        scale=scale,
        colors=seen.colors,
        max_boxes=MAX_BOXES,
    )


def _encode(drawing: np.ndarray) -> bytes:
    return encode_image(drawing, "JPEG", quality=80)
