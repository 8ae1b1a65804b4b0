"""Detection in the tiles of large images: the candidates of all tiles, without those of objects
that a neighbouring tile sees whole, through one NMS. Boxes are XYXY pixels of the image.
"""

from typing import Dict, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from tood.utils.tiles import Tile, TileOptions, make_tiles

# A box that comes so near to a seam may be cut by it: pixels of the image.
SEAM = 2.0


class ResizedTOOD(nn.Module):
    """Finds candidates of images that it resizes first."""

    def __init__(self, model, resize: T.Augmentation):
        """
        Args:
            model: a TOOD, not wrapped, or what has its ``find_candidates``.
        """
        super().__init__()
        self.model, self.resize = model, resize

    def find_candidates(self, batched_inputs: List[Dict]) -> List[Instances]:
        """Return the candidates for NMS of each image, in pixels of the image."""
        images = [resized(x["image"], self.resize) for x in batched_inputs]
        found = self.model.find_candidates([{"image": x} for x in images])
        for x, image, candidates in zip(batched_inputs, images, found):
            size = x["image"].shape[1:]
            candidates.pred_boxes.scale(size[1] / image.shape[2], size[0] / image.shape[1])
        return found


class TiledTOOD(nn.Module):
    """A TOOD that sees images in tiles, called like the model itself. It is given images in their
    own size, each as "image", or as a "reader" of which one tile after the other is read.
    """

    def __init__(self, model, options: TileOptions, finder: nn.Module, batch_size: int = 4):
        """
        Args:
            model: a TOOD, not wrapped, or what has its ``suppress``.
            options: options with a size.
            finder: finds candidates in tiles, a :class:`ResizedTOOD` or a
                :class:`~tood.inference.tta.TOODWithTTA`.
            batch_size: tiles in a forward pass.
        """
        super().__init__()
        self.model, self.options, self.finder = model, options, finder
        self.batch_size = batch_size
        # An evaluation restores this mode afterwards, also of the model.
        self.train(model.training if isinstance(model, nn.Module) else False)

    @torch.no_grad()
    def forward(self, batched_inputs: List[Dict]) -> List[Dict[str, Instances]]:
        """Detect like the model in evaluation mode.

        Args:
            batched_inputs: each "image" (3, H, W), or "reader" with ``width``, ``height`` and
                ``read(tile)``; and the "height" and "width" to return boxes for.
        """
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, x: Dict) -> Instances:
        height, width = get_size(x)
        tiles = make_tiles(width, height, self.options.size, self.options.overlap)
        found = []
        for first in range(0, len(tiles), self.batch_size):
            batch = tiles[first : first + self.batch_size]
            images = [{"image": get_pixels(x, tile)} for tile in batch]
            for tile, candidates in zip(batch, self.finder.find_candidates(images)):
                boxes = candidates.pred_boxes.tensor
                boxes = boxes + boxes.new_tensor([tile.x, tile.y] * 2)
                moved = Instances((height, width), **candidates.get_fields())
                moved.pred_boxes = Boxes(boxes)
                found.append(moved[~seen_whole_elsewhere(boxes, tile, tiles, (width, height))])
        merged = self.model.suppress(Instances.cat(found))
        return detector_postprocess(merged, x.get("height", height), x.get("width", width))


def seen_whole_elsewhere(
    boxes: Tensor, tile: Tile, tiles: Sequence[Tile], image_size: Tuple[int, int]
) -> Tensor:
    """
    Args:
        boxes: (D, 4), found in a tile.
        tiles: tiles of the image.
        image_size: width and height.

    Returns:
        (D,) bool, whether a box comes near to a seam, a border of the tile inside of the image, and
        lies in another tile without coming near to its seams.
    """
    cut = ~_find_uncut(boxes, tile, image_size)
    if not cut.any():
        return cut
    whole = torch.zeros_like(cut)
    for other in _neighbours(tile, tiles):
        whole |= _find_uncut(boxes, other, image_size)
    return cut & whole


def _find_uncut(boxes: Tensor, tile: Tile, image_size: Tuple[int, int]) -> Tensor:
    """(D,) bool, whether boxes lie in a tile and are not cut by it, as far as can be seen."""
    low = boxes.new_tensor(tile[:2])
    high = low + boxes.new_tensor(tile[2:])
    # The image's own borders cut nothing off: boxes may reach over them.
    low = torch.where(low <= 0, -torch.inf, low + SEAM)
    high = torch.where(high >= boxes.new_tensor(image_size), torch.inf, high - SEAM)
    return ((boxes[:, :2] >= low) & (boxes[:, 2:] <= high)).all(dim=1)


def _neighbours(tile: Tile, tiles: Sequence[Tile]) -> Iterator[Tile]:
    """Yield the others that overlap a tile."""
    for other in tiles:
        apart_x = other.x >= tile.x + tile.width or tile.x >= other.x + other.width
        apart_y = other.y >= tile.y + tile.height or tile.y >= other.y + other.height
        if other != tile and not (apart_x or apart_y):
            yield other


def resized(image: Tensor, resize: T.Augmentation) -> Tensor:
    """Resize pixels (3, H, W) uint8 as in training."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    pixels = resize.get_transform(pixels).apply_image(pixels)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def get_size(x: Dict) -> Tuple[int, int]:
    """Return height and width of an input of :class:`TiledTOOD`."""
    if "reader" in x:
        return x["reader"].height, x["reader"].width
    return tuple(x["image"].shape[1:])


def get_pixels(x: Dict, tile: Tile) -> Tensor:
    """Return the pixels of a tile, (3, height, width) uint8."""
    if "reader" in x:
        pixels = x["reader"].read(tile)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return x["image"][:, tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
