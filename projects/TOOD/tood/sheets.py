"""Pictures beside and above each other."""

from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["add_heading", "stack_pictures"]


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
