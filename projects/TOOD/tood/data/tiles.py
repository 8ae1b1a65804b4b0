"""Large images in tiles: which objects a tile contains, which tiles are trained on, and how a part
of an image is read. Boxes are x, y, width, height in pixels of the image.
"""

import os
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from PIL import ImageFile

from tood.data.images import EXIF_ORIENTATION, decode_image, opened
from tood.utils.tiles import Tile, TileOptions, make_tiles, tile_starts


def visible_in(boxes: np.ndarray, tile: Tile) -> np.ndarray:
    """Return which share of each box's area (M, 4) lies in a tile: (M,)."""
    low = np.maximum(boxes[:, :2], tile[:2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], np.add(tile[:2], tile[2:]))
    areas = boxes[:, 2:].prod(axis=1)
    return (high - low).clip(min=0).prod(axis=1) / np.maximum(areas, 1e-12)


def largest_shares(boxes: np.ndarray, image_sizes: np.ndarray, options: TileOptions) -> np.ndarray:
    """Return how much of each box is seen in the tile that shows the most of it.

    Args:
        boxes: (M, 4), which overlap their images.
        image_sizes: (M, 2), width and height of the image of each.
        options: without a size, images are in one piece.

    Returns:
        (M,), shares of the area inside of the image; 1 if a tile shows all of it.
    """
    if not options.size:
        return np.ones(len(boxes))
    # Tiles are a grid: each axis by itself.
    per_axis = [
        _largest_overlaps(boxes[:, i], boxes[:, i + 2], image_sizes[:, i], options) for i in (0, 1)
    ]
    return per_axis[0] * per_axis[1]


def _largest_overlaps(
    starts: np.ndarray, lengths: np.ndarray, sides: np.ndarray, options: TileOptions
) -> np.ndarray:
    low, high = starts.clip(min=0), np.minimum(starts + lengths, sides)
    shares = np.empty(len(starts))
    for side in np.unique(sides):
        of = sides == side
        first = np.array(tile_starts(int(side), options.size, options.overlap))
        last = first + min(options.size, side)
        seen = np.minimum(high[of, None], last) - np.maximum(low[of, None], first)
        shares[of] = seen.max(axis=1) / (high[of] - low[of])
    return shares


def clip_to(box: Sequence[float], tile: Tile) -> List[float]:
    """Return the part of a box that lies in a tile, in pixels of the tile."""
    x1, y1 = max(box[0] - tile.x, 0), max(box[1] - tile.y, 0)
    x2 = min(box[0] + box[2] - tile.x, tile.width)
    y2 = min(box[1] + box[3] - tile.y, tile.height)
    return [x1, y1, x2 - x1, y2 - y1]


def tile_records(
    records: Sequence[Dict], options: TileOptions, *, empty: bool = True
) -> List[Dict]:
    """Cut records of whole images, in Detectron2's format, into tiles.

    Args:
        empty: whether tiles of images that have no object at all are among them.

    Returns:
        records of tiles, with "tile". An object belongs to every tile in which ``min_visible`` of
        its area is seen, and its box there is the part that is seen. Of the tiles without an
        object, a share is chosen from all of the data, the same every time.
    """
    with_objects, without = [], []
    for record in records:
        annotations = [_as_xywh(a) for a in record["annotations"]]
        boxes = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
        for tile in make_tiles(record["width"], record["height"], options.size, options.overlap):
            shares = visible_in(boxes, tile)
            mine = [
                {**annotations[i], "bbox": clip_to(boxes[i], tile)}
                for i in np.flatnonzero(shares >= options.min_visible)
            ]
            size = {"width": tile.width, "height": tile.height}
            whole = {"whole_size": (record["width"], record["height"])}
            row = {**record, **size, **whole, "tile": tuple(tile), "annotations": mine}
            # A tile with too small a part of an object is not used: the part would be background.
            if mine:
                with_objects.append(row)
            elif not (shares > 0).any() and (empty or len(boxes)):
                without.append(row)
    number = min(len(without), round(options.empty_share * len(with_objects)))
    chosen = np.random.default_rng(0).choice(len(without), number, replace=False)
    return [*with_objects, *(without[i] for i in sorted(chosen.tolist()))]


def _as_xywh(annotation: Dict) -> Dict:
    """Return the parts of an annotation that a detector of boxes needs."""
    from detectron2.structures import BoxMode

    mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    kept = {k: annotation[k] for k in ("iscrowd", "category_id") if k in annotation}
    box = BoxMode.convert(list(annotation["bbox"]), mode, BoxMode.XYWH_ABS)
    return {**kept, "bbox": box, "bbox_mode": BoxMode.XYWH_ABS}


class LargeImage:
    """An image of which parts are read: of an uncompressed TIFF from the file itself, of others
    from the one decoded image.
    """

    def __init__(self, path: str, format: str = "RGB", bit_depth: int = 16):
        """
        Args:
            path: as :func:`tood.data.images.read_image` takes it.
            format: "RGB" or "BGR".

        Raises:
            one of IMAGE_ERRORS: for a file that is not an image.
        """
        self.format = format
        with opened(path) as (_, image):
            # A file elsewhere, which PathManager reads, cannot be mapped.
            strips = _find_strips(image) if os.path.isfile(path) else []
            self.width, self.height = image.size
            channels = len(image.getbands())
            if not strips:
                self._pixels = decode_image(image, format, bit_depth)
                self.height, self.width = self._pixels.shape[:2]
        self._strips = [
            (top, np.memmap(path, np.uint8, "r", offset, (bottom - top, self.width, channels)))
            for top, bottom, offset in strips
        ]

    @property
    def num_bytes(self) -> int:
        """Memory of its pixels in bytes: 0 for a file that is mapped."""
        return 0 if self._strips else self._pixels.nbytes

    def read(self, tile: Tile) -> np.ndarray:
        """Return the pixels of a tile, (height, width, 3) uint8."""
        columns, bottom = slice(tile.x, tile.x + tile.width), tile.y + tile.height
        if not self._strips:
            return self._pixels[tile.y : bottom, columns]
        parts = [
            rows[max(tile.y - top, 0) : max(bottom - top, 0), columns]
            for top, rows in self._strips
            if top < bottom and top + len(rows) > tile.y
        ]
        pixels = np.concatenate(parts)
        if pixels.shape[2] == 1:
            return np.repeat(pixels, 3, axis=2)
        return pixels if self.format == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])


class RecentImages:
    """Keeps the images that were read last, for example for the next of their tiles, because
    decoding takes longer than all the rest of a tile.
    """

    def __init__(self, max_bytes: int = 256 * 1024**2, max_images: int = 16, bit_depth: int = 16):
        """
        Args:
            max_bytes: memory of all images that are kept; a larger image is not kept.
            max_images: number of images that are kept; a mapped file needs only its handle.
            bit_depth: argument of :func:`~tood.data.images.read_image`.
        """
        self.max_bytes, self.max_images, self.bit_depth = max_bytes, max_images, bit_depth
        self._images: Dict[Tuple[str, str], LargeImage] = {}  # the latest is the last

    def open(self, path: str, format: str) -> LargeImage:
        """Return a :class:`LargeImage`, whose errors are raised."""
        key = (path, format)
        image = self._images.pop(key, None) or LargeImage(path, format, self.bit_depth)
        kept = {**self._images, key: image}
        while len(kept) > self.max_images or _count_bytes(kept) > self.max_bytes:
            del kept[next(iter(kept))]
        self._images = kept
        return image

    def read(self, path: str) -> np.ndarray:
        """Return the whole image, (H, W, 3) uint8, RGB, which may be read by others as well."""
        image = self.open(path, "RGB")
        return image.read(Tile(0, 0, image.width, image.height))

    def __repr__(self):
        return f"RecentImages(max_bytes={self.max_bytes}, max_images={self.max_images})"

    def __getstate__(self):
        return {**vars(self), "_images": {}}  # a loader's processes read their own


def _count_bytes(images: Dict) -> int:
    return sum(x.num_bytes for x in images.values())


def _find_strips(image: ImageFile.ImageFile) -> List[Tuple[int, int, int]]:
    """Return first row, end and offset in the file of each strip of an upright TIFF whose pixels
    stand there as they are; none for other images.
    """
    if image.format != "TIFF" or image.mode not in ("RGB", "L"):
        return []
    strips: List[Any] = image.tile
    plain = all(
        codec == "raw"
        and (extents[0], extents[2]) == (0, image.width)
        and args[:2] in ((image.mode, 0), (image.mode, image.width * len(image.getbands())))
        for codec, extents, _, args in strips
    )
    if not plain or image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        return []
    return sorted((extents[1], extents[3], offset) for _, extents, offset, _ in strips)
