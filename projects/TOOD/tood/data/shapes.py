"""A small COCO-format data set of drawn shapes: something to train on without a download."""

import colorsys
import json
import math
import os
from typing import Dict, List, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from tood.utils.files import write_whole

SHAPES = ("disc", "square", "triangle", "star")
_OVERSAMPLING = 4


def draw_scene(
    rng: np.random.Generator, size: int = 128, *, crowded: bool = False
) -> Tuple[Image.Image, List[Dict]]:
    """
    Args:
        rng: every choice comes from it.
        size: width and height in pixels.
        crowded: many small shapes, of 8 to 28 pixels for every size, and about one for each
            64 x 64 pixels. For tiles of large images.

    Returns:
        an image of one to six shapes, a little tilted, on a mottled ground of any colour, and an
        object ``{"class": index into SHAPES, "box": (x1, y1, x2, y2)}`` for each, in pixels.
        Shapes may touch, but a later one hides at most a part of an earlier one.
    """
    # Drawn larger and scaled down, for smooth edges.
    image = _mottled_ground(rng, size).resize((size * _OVERSAMPLING,) * 2)
    draw = ImageDraw.Draw(image)
    objects: List[Dict] = []
    crowd = size**2 // 64**2
    count = rng.integers(max(crowd // 2, 1), crowd * 3 // 2 + 2) if crowded else rng.integers(1, 7)
    for _ in range(count):
        shape = int(rng.integers(len(SHAPES)))
        radius = rng.uniform(4, 14) if crowded else size * rng.uniform(0.09, 0.24)
        center = rng.uniform(radius + 1, size - radius - 1, 2)
        outline = _outline(SHAPES[shape], center, radius, tilt=rng.uniform(-0.3, 0.3))
        low, high = outline.min(axis=0), outline.max(axis=0)
        box = (*low.tolist(), *high.tolist())
        if any(_overlap(box, other["box"]) > 0.2 for other in objects):
            continue
        corners = [tuple(p) for p in outline * _OVERSAMPLING]
        draw.polygon(corners, fill=_color(rng, _hue(rng, shape), value=rng.uniform(0.6, 1.0)))
        objects.append({"class": shape, "box": box})
    return image.resize((size, size), Image.Resampling.BOX), objects


def write_shapes(
    folder: str,
    num_train: int,
    num_val: int,
    *,
    size: int = 128,
    seed: int = 0,
    crowded: bool = False,
) -> List[str]:
    """Write two data sets, ``folder/train`` and ``folder/val``, by :func:`write_shapes_dataset`.

    Returns:
        paths of the annotation files.
    """
    # Two streams of one seed: the val images do not depend on how many there are to train on.
    return [
        write_shapes_dataset(
            os.path.join(folder, part), num_images, 2 * seed + i, size, crowded=crowded
        )
        for i, (part, num_images) in enumerate((("train", num_train), ("val", num_val)))
    ]


def write_shapes_dataset(
    folder: str, num_images: int, seed: int, size: int = 128, *, crowded: bool = False
) -> str:
    """Write ``folder/images/*.jpg`` and ``folder/annotations.json``; the latter last, so that it
    stands for a finished data set. ``size`` and ``crowded`` are those of :func:`draw_scene`.

    Returns:
        path of the annotation file.
    """
    rng = np.random.default_rng(seed)
    images_folder = os.path.join(folder, "images")
    os.makedirs(images_folder, exist_ok=True)
    images: List[Dict] = []
    annotations: List[Dict] = []
    for i in tqdm(range(num_images), desc=f"drawing {folder}", disable=None):
        image, objects = draw_scene(rng, size, crowded=crowded)
        file_name = f"{i:05d}.jpg"
        image.save(os.path.join(images_folder, file_name), quality=90)
        images.append({"id": i + 1, "file_name": file_name, "width": size, "height": size})
        for o in objects:
            annotations.append(_annotation(len(annotations) + 1, i + 1, o))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(SHAPES)]
    json_file = os.path.join(folder, "annotations.json")
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_whole(json_file, json.dumps(content).encode())
    return json_file


def _annotation(annotation_id: int, image_id: int, shape: Dict) -> Dict:
    x1, y1, x2, y2 = (round(v, 2) for v in shape["box"])
    width, height = round(x2 - x1, 2), round(y2 - y1, 2)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": shape["class"] + 1,
        "bbox": [x1, y1, width, height],
        "area": round(width * height, 2),
        "iscrowd": 0,
    }


def _mottled_ground(rng: np.random.Generator, size: int) -> Image.Image:
    """Soft blotches around a dark colour, with grain."""
    base = np.array(_color(rng, rng.uniform(), rng.uniform(0.15, 0.5)), dtype=np.float32)
    blotches = rng.normal(0, 60, (size, size, 3)) + base
    image = Image.fromarray(blotches.clip(0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(size / 40))
    grain = rng.normal(0, 8, (size, size, 3))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def _hue(rng: np.random.Generator, shape: int) -> float:
    """Each shape has its part of the colour circle, so that a short training distinguishes them."""
    return (shape + rng.uniform(0.25, 0.75)) / len(SHAPES)


def _color(rng: np.random.Generator, hue: float, value: float) -> Tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1.0), value)
    return int(255 * red), int(255 * green), int(255 * blue)


def _outline(shape: str, center: np.ndarray, radius: float, tilt: float) -> np.ndarray:
    """Corners of a shape, (P, 2) in pixels; a disc has many. Tilt in radians."""
    corners = {"disc": 48, "square": 4, "triangle": 3, "star": 10}[shape]
    upright = math.pi / 4 if shape == "square" else -math.pi / 2  # else a corner on top
    angles = upright + tilt + np.arange(corners) * 2 * math.pi / corners
    radii = np.full(corners, radius)
    if shape == "star":
        radii[1::2] *= 0.45
    return center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _overlap(a: Tuple[float, ...], b: Tuple[float, ...]) -> float:
    """The part of the smaller box that the other one covers."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(width, 0) * max(height, 0) / smaller
