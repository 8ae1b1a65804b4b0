"""Boxes and points drawn on images, by Detectron2's Visualizer, and image grids."""

import colorsys
import logging
from typing import List, Optional, Sequence, Tuple

import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

from tood.visualization.labels import fonts_for, move_labels_inside, printable

logger = logging.getLogger(__name__)

MAX_PIXELS = 16_000_000  # of a drawing
MAX_BOXES = 500  # in a drawing; each takes 4 ms
# Shorter side in pixels of the drawing of a training image.
_MIN_IMAGE_SIDE = 400


def class_colors(num_classes: int) -> List[tuple]:
    """Return a separate colour for each class, RGB in [0, 1], the same every time."""
    # Steps of the golden ratio keep neighbouring classes apart however many there are.
    return [colorsys.hsv_to_rgb(0.61803 * i % 1, 0.75, 1.0) for i in range(num_classes)]


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int],
    class_names: Sequence[str],
    scores: Optional[Sequence[float]] = None,
    scale: float = 1.0,
    colors: Optional[Sequence[tuple]] = None,
    max_boxes: int = MAX_BOXES,
) -> np.ndarray:
    """
    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (D, 4), XYXY pixels of the image.
        classes: (D,), indices into ``class_names``.
        scores: (D,), written after the names; not written if NaN.
        scale: size of the drawing over the size of the image.
        colors: (D,) colours of the boxes, RGB in [0, 1]; default: those of their classes.
        max_boxes: of more boxes, those of the highest scores are drawn, after those whose score is
            NaN; without scores, the largest. A line in the drawing says so.

    Returns:
        (H * scale, W * scale, 3) uint8, RGB; smaller if that is more than ``MAX_PIXELS``.
    """
    boxes, number = np.asarray(boxes, dtype=np.float32).reshape(-1, 4), len(boxes)
    if number > max_boxes:
        kept = _choose_boxes(boxes, scores, max_boxes)
        boxes, classes = boxes[kept], [classes[i] for i in kept]
        scores, colors = (x and [x[i] for i in kept] for x in (scores, colors))
    scale, shrink = _limit(scale, *image.shape[:2])
    if shrink < 1:  # matplotlib takes a hundred bytes for a pixel
        size = [max(1, int(shrink * side)) for side in image.shape[1::-1]]
        image, boxes = np.asarray(Image.fromarray(image).resize(size)), boxes * shrink
        logger.info(f"Drawn at {size[0]} x {size[1]}, because more pixels take too much memory.")
    if colors is None:
        of_classes = class_colors(len(class_names))
        colors = [of_classes[c] for c in classes]
    labels = [printable(class_names[c]) for c in classes]
    if scores is not None:
        labels = [
            label if np.isnan(score) else f"{label} {score:.2f}"
            for label, score in zip(labels, scores)
        ]
    with fonts_for(labels):
        output = Visualizer(image, scale=scale).overlay_instances(
            boxes=boxes, labels=labels, assigned_colors=list(colors)
        )
        move_labels_inside(output)
        drawing = output.get_image()
    if number > max_boxes:
        text = f"{max_boxes} of {number} boxes: {'the largest' if scores is None else 'the best'}"
        drawing = _write_line(drawing, text)
    return drawing


def _limit(scale: float, height: int, width: int) -> Tuple[float, float]:
    """Return the scale of a drawing, and how much smaller the image must be before it."""
    aspect = min(height, width) / max(height, width)
    scale = min(scale, (MAX_PIXELS * aspect) ** 0.5)  # of more, a side would have no pixel
    return scale, min(1.0, (MAX_PIXELS / (scale**2 * height * width)) ** 0.5)


def _choose_boxes(boxes: np.ndarray, scores: Optional[Sequence[float]], limit: int) -> List[int]:
    if scores is None:
        keys = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    else:
        keys = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=np.inf, posinf=np.inf)
    return sorted(np.argsort(-keys, kind="stable")[:limit].tolist())


def _write_line(drawing: np.ndarray, text: str) -> np.ndarray:
    """Write a line into the lower left corner of a drawing, whose size does not change."""
    image = Image.fromarray(drawing)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((4, 0), text)
    y = image.height - bottom - 4
    draw.rectangle((0, y + top - 4, right + 4, image.height), fill="white")
    draw.text((4, y), text, fill="black")
    return np.asarray(image)


def draw_training(
    image: np.ndarray,
    gt_instances: Instances,
    points: Tensor,
    positive: Tensor,
    weights: Tensor,
    detections: Instances,
    class_names: Sequence[str],
) -> np.ndarray:
    """Draw one image of a training batch twice: with its objects and the locations assigned to
    them, and with its detections.

    Args:
        image: (H, W, 3) uint8, RGB.
        gt_instances: instances with "gt_boxes" and "gt_classes".
        points: (R, 2), x and y of the locations.
        positive, weights: (R,), whether a location is assigned to an object, and its weight in the
            box loss: t_hat in TAL, the centerness in the warm-up. Dots are larger and brighter
            the larger it is.
        detections: instances with "pred_boxes", "scores" and "pred_classes", the best first; drawn
            are those of at least a third of the best score, and at most 20.

    Returns:
        (H', W', 3) uint8, RGB; small images are enlarged.
    """
    scale = max(1.0, _MIN_IMAGE_SIDE / min(image.shape[:2]))
    boxes, classes = gt_instances.gt_boxes.tensor.cpu(), gt_instances.gt_classes.tolist()
    objects = draw_boxes(image, boxes, classes, class_names, scale=scale)
    objects = draw_points(objects, points[positive] * scale, weights[positive])
    # Early in training, all scores are low: the threshold is relative to the best.
    best = detections[detections.scores >= detections.scores[:1].sum() / 3][:20].to("cpu")
    detected = draw_boxes(
        image,
        best.pred_boxes.tensor,
        best.pred_classes.tolist(),
        class_names,
        best.scores.tolist(),
        scale=scale,
    )
    headings = ("objects and their positives", "detections")
    return image_grid([[add_heading(*x) for x in zip((objects, detected), headings)]])


def draw_points(
    drawing: np.ndarray,
    points: Tensor,
    weights: Tensor,
    outlines: Optional[Sequence[tuple]] = None,
) -> np.ndarray:
    """
    Args:
        drawing: (H, W, 3) uint8, RGB.
        points: (P, 2), x and y in pixels of the drawing.
        weights: (P,) in [0, 1]; a dot is larger and brighter the larger it is.
        outlines: (P,) colours around the dots, RGB in [0, 1]; default: black.
    """
    image = Image.fromarray(drawing)
    draw = ImageDraw.Draw(image)
    order = weights.argsort()  # the brightest on top
    for i in order.tolist():
        (x, y), weight = points[i].tolist(), weights[i].item()
        radius = 2 + 4 * weight
        color = tuple(int(255 * c) for c in colormaps["plasma"](weight)[:3])
        corners = (x - radius, y - radius, x + radius, y + radius)
        outline = tuple(int(255 * c) for c in outlines[i]) if outlines else "black"
        draw.ellipse(corners, fill=color, outline=outline, width=2 if outlines else 1)
    return np.asarray(image)


def add_heading(image: np.ndarray, text: str, height: int = 22) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with a line of text above it: (H + height, W, 3)."""
    canvas = Image.new("RGB", (image.shape[1], image.shape[0] + height), "white")
    canvas.paste(Image.fromarray(image), (0, height))
    ImageDraw.Draw(canvas).text((4, height // 5), text, fill="black")
    return np.asarray(canvas)


def image_grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """
    Args:
        rows: images (H, W, 3) uint8 of any size, row by row.
        gap: white pixels between them.

    Returns:
        one image; each row is as high as its highest member.
    """
    row_heights = [max(p.shape[0] for p in row) for row in rows]
    width = max(sum(p.shape[1] + gap for p in row) for row in rows) - gap
    sheet = np.full((sum(row_heights) + gap * (len(rows) - 1), width, 3), 255, dtype=np.uint8)
    y = 0
    for row, height in zip(rows, row_heights):
        x = 0
        for image in row:
            sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
            x += image.shape[1] + gap
        y += height + gap
    return sheet
