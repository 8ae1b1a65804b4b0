"""Pictures of boxes, by Detectron2's Visualizer."""

import colorsys
from typing import List, Optional, Sequence

import numpy as np
from detectron2.utils.visualizer import Visualizer
from PIL import Image, ImageDraw

__all__ = ["add_heading", "class_colors", "draw_boxes", "stack_pictures"]


def class_colors(num_classes: int) -> List[tuple]:
    """A colour of its own for each class, RGB in [0, 1], the same every time."""
    # Steps of the golden ratio keep neighbouring classes apart however many there are.
    return [colorsys.hsv_to_rgb(0.61803 * i % 1, 0.75, 1.0) for i in range(num_classes)]


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int],
    class_names: Sequence[str],
    scores: Optional[Sequence[float]] = None,
    scale: float = 1.0,
) -> np.ndarray:
    """
    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (D, 4), XYXY pixels of the image.
        classes: (D,), indices into ``class_names``.
        scores: (D,), written behind the names.
        scale: size of the picture over the size of the image.

    Returns:
        (H * scale, W * scale, 3) uint8, RGB.
    """
    colors = class_colors(len(class_names))
    labels = [class_names[c] for c in classes]
    if scores is not None:
        labels = [f"{label} {score:.2f}" for label, score in zip(labels, scores)]
    visualizer = Visualizer(image, scale=scale)
    output = visualizer.overlay_instances(
        boxes=np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        labels=labels,
        assigned_colors=[colors[c] for c in classes],
    )
    return output.get_image()


def add_heading(picture: np.ndarray, text: str, height: int = 22) -> np.ndarray:
    """A picture (H, W, 3) uint8 with a line of text above it: (H + height, W, 3)."""
    image = Image.new("RGB", (picture.shape[1], picture.shape[0] + height), "white")
    image.paste(Image.fromarray(picture), (0, height))
    ImageDraw.Draw(image).text((4, height // 5), text, fill="black")
    return np.asarray(image)


def stack_pictures(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """
    Args:
        rows: pictures (H, W, 3) uint8 of any size, row by row.
        gap: white pixels between them.

    Returns:
        one picture; each row is as high as its highest member.
    """
    row_heights = [max(p.shape[0] for p in row) for row in rows]
    width = max(sum(p.shape[1] + gap for p in row) for row in rows) - gap
    sheet = np.full((sum(row_heights) + gap * (len(rows) - 1), width, 3), 255, dtype=np.uint8)
    y = 0
    for row, height in zip(rows, row_heights):
        x = 0
        for picture in row:
            sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            x += picture.shape[1] + gap
        y += height + gap
    return sheet
