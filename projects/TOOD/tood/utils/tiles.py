"""Positions of the tiles of large images, in pixels of the image."""

import math
from typing import List, NamedTuple

from tood.utils.errors import UserError

MAX_TILES = 10_000  # per image


class TileOptions(NamedTuple):
    """``INPUT.TILES``."""

    size: int = 0  # side in pixels; 0: images stay whole
    overlap: int = 0  # minimum overlap of neighbours in pixels
    min_visible: float = 0.5  # share of an object's area in a tile that makes it one of its objects
    empty_share: float = 0.2  # tiles without objects in training, per tile with objects


WHOLE = TileOptions()  # no tiles


class Tile(NamedTuple):
    """A part of an image."""

    x: int
    y: int
    width: int
    height: int


def make_tiles(width: int, height: int, size: int, overlap: int) -> List[Tile]:
    """Cut an image into tiles of one size, row by row; the last ones end where the image ends.

    Returns:
        tiles that overlap by ``overlap`` or more. If a side of the image is not longer than
        ``size``, they have its length.

    Raises:
        UserError: for more than ``MAX_TILES``, which would take days and all memory.
    """
    number = count_tiles(width, size, overlap) * count_tiles(height, size, overlap)
    if number > MAX_TILES:
        raise UserError(
            f"Tiles of {size} pixels (INPUT.TILES.SIZE) that overlap by {overlap} cut an image of "
            f"{width} x {height} into {number:,}; at most {MAX_TILES:,} are possible: raise the "
            "size, or lower INPUT.TILES.OVERLAP."
        )
    columns, rows = (tile_starts(side, size, overlap) for side in (width, height))
    return [Tile(x, y, min(size, width), min(size, height)) for y in rows for x in columns]


def tile_starts(side: int, size: int, overlap: int) -> List[int]:
    """Return where the tiles of :func:`make_tiles` begin along a side of an image."""
    number = count_tiles(side, size, overlap)
    if number == 1:
        return [0]
    return [(side - size) * i // (number - 1) for i in range(number)]


def count_tiles(side: int, size: int, overlap: int) -> int:
    """Return the number of tiles along a side of an image."""
    return 1 + max(0, math.ceil((side - size) / (size - overlap)))
