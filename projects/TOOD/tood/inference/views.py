"""Views of an image, as the network sees them: resized, or tiles of it."""

from typing import Callable, Dict, List, NamedTuple, Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from tood.data.tiles import tile_records, visible_in
from tood.evaluation.alignment_evaluator import read_objects
from tood.inference.predictor import Image, Predictor
from tood.inference.tiles import get_pixels, get_size, resized
from tood.utils.tiles import Tile, make_tiles


class View(NamedTuple):
    """A part of an image as the network sees it."""

    image: torch.Tensor  # (3, H, W) uint8
    x: int  # position in the image, pixels
    y: int
    scale: float  # of the network's input


def find_view(predictor: Predictor, image: Image, box: Sequence[float]) -> View:
    """Return the network's input in which a box, x, y, width, height in pixels of the image, is
    seen: the whole image, or the tile that shows most of it, in the middle of which it is.
    """
    if not predictor.is_tiled:
        x = predictor.make_input(image)
        return View(x["image"], 0, 0, x["image"].shape[2] / x["width"])
    x = predictor.make_large_input(image)
    options = predictor.options.tiles
    height, width = get_size(x)
    tiles = make_tiles(width, height, options.size, options.overlap)
    boxes = np.array([box], dtype=float)
    middle = np.array(box[:2]) + np.array(box[2:]) / 2

    def order(tile: Tile):
        distance = np.abs(middle - np.add(tile[:2], np.divide(tile[2:], 2))).max()
        return -visible_in(boxes, tile)[0], distance

    tile = min(tiles, key=order)
    pixels = resized(get_pixels(x, tile), predictor.resize)
    return View(pixels, tile.x, tile.y, pixels.shape[2] / tile.width)


def build_training_views(predictor: Predictor, records: List[Dict], limit: int) -> Callable:
    """Return a function from an image of ``predictor.build_test_loader`` to a list of the inputs of
    its model in training, with "instances": the resized image, or those of its tiles that have
    objects. At most ``limit`` of the images or tiles with objects are chosen, evenly spread; for
    the others the list is empty.

    Args:
        records: records of the data set in Detectron2's format.
    """
    if predictor.is_tiled:
        records = tile_records(records, predictor.options.tiles, empty=False)
    records = [x for x in records if any(not a.get("iscrowd") for a in x["annotations"])]
    chosen: Dict = {}
    for record in records[:: -(-len(records) // limit) or 1]:
        chosen.setdefault(record["image_id"], []).append(record)
    return lambda x: [_view_in_training(predictor, x, y) for y in chosen.get(x["image_id"], ())]


def _view_in_training(predictor: Predictor, x: Dict, record: Dict) -> Dict:
    image = x["image"]
    if "tile" in record:
        image = get_pixels(x, Tile(*record["tile"]))
    # The images of the loader are resized already, unless tiles or augmented views are cut from it.
    is_original = predictor.is_tiled or predictor.is_augmented
    if is_original and predictor.options.min_size_test > 0:
        image = resized(image, predictor.resize)
    height, width = image.shape[1:]
    boxes, classes = read_objects(record)
    boxes = Boxes(boxes)
    boxes.scale(width / record["width"], height / record["height"])
    boxes.clip((height, width))
    instances = Instances((height, width), gt_boxes=boxes, gt_classes=classes)
    return {"image": image, "instances": instances[boxes.nonempty(1e-5)]}
