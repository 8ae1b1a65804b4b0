"""Copies of rare objects, pasted into other images."""

from typing import List, Optional, Tuple

import numpy as np
from detectron2.data import transforms as T

from tood.data.augmentation.registry import AUGMENTATION_REGISTRY, SampleAugmentation
from tood.data.augmentation.samples import Sample, TrainingSamples
from tood.utils.errors import UserError

RARE = 0.5  # a class is rare if it has fewer objects than this share of the classes' mean
MOST = 3  # maximum number of copies in an image; the minimum is 0
SCALES = (0.8, 1.25)  # factors of a copy's size
CONTEXT = 4  # pixels around an object that are copied with it, and fade to the outside
MAX_OVERLAP = 0.1  # overlap of a copy with a box of the image, over the smaller area
TRIES = 20  # number of places that are tried for a copy


class PasteRare(SampleAugmentation):
    """Paste objects of rare classes from other images at free places. Other objects that the copy
    shows come with it, like those of a crop.
    """

    def check(self, samples: TrainingSamples) -> None:
        if not find_rare(samples):
            raise UserError(
                "INPUT.AUGMENTATIONS has paste_rare, but no class of the training data is rare: "
                f"each has {RARE:.0%} of the mean number of objects or more; take it out."
            )

    def __call__(self, sample: Sample, samples: TrainingSamples) -> Sample:
        rare = find_rare(samples)
        for _ in range(np.random.randint(MOST + 1)):
            gt_class = rare[np.random.randint(len(rare))]
            cut = cut_object(samples.draw(gt_class), gt_class)
            if cut is not None and (place := find_place(sample, cut[0])) is not None:
                sample = sample.paste(cut[0], *place, alpha=cut[1])
        return sample


def find_rare(samples: TrainingSamples) -> List[int]:
    """Return the rare classes among those that have objects."""
    numbers = samples.num_objects
    mean = sum(numbers.values()) / max(len(numbers), 1)
    return [k for k, number in numbers.items() if number < RARE * mean]


def cut_object(sample: Sample, gt_class: int) -> Optional[Tuple[Sample, np.ndarray]]:
    """Cut a random object of a class out of an image, with its surroundings.

    Returns:
        the cut, which may be flipped and of another size, and the opacity (h, w) of its pixels;
        None if the image has no such object.
    """
    objects = np.flatnonzero((sample.gt_classes == gt_class) & ~sample.is_crowd)
    if not len(objects):
        return None
    box = sample.gt_boxes[objects[np.random.randint(len(objects))]]
    height, width = sample.image.shape[:2]
    x1, y1 = np.maximum(np.floor(box[:2]).astype(int) - CONTEXT, 0)
    x2, y2 = np.minimum(np.ceil(box[2:]).astype(int) + CONTEXT, (width, height))
    cut = sample.crop(int(x1), int(y1), int(x2 - x1), int(y2 - y1))
    alpha = make_opacity(box - np.array([x1, y1, x1, y1]), x2 - x1, y2 - y1)
    height, width = alpha.shape
    scale = np.exp(np.random.uniform(*np.log(SCALES)))
    new_height, new_width = (max(int(round(side * scale)), 1) for side in (height, width))
    transforms: List[T.Transform] = [T.ResizeTransform(height, width, new_height, new_width)]
    if np.random.rand() < 0.5:
        transforms.append(T.HFlipTransform(new_width))
    both = T.TransformList(transforms)
    return cut.transform(both), both.apply_image(alpha)


def make_opacity(box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the opacity (height, width) float32 of each pixel: 1 in the box, and falling to 0 at
    ``CONTEXT`` pixels outside of it.
    """
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    dx = np.maximum(box[0] - x, x - box[2]).clip(min=0)
    dy = np.maximum(box[1] - y, y - box[3]).clip(min=0)
    distances = np.maximum(dx, dy[:, None])
    return (1 - distances / CONTEXT).clip(min=0).astype(np.float32)


def find_place(sample: Sample, cut: Sample) -> Optional[Tuple[int, int]]:
    """Return a random place for the upper left corner of a cut; None if none was found that is
    free (``MAX_OVERLAP``).
    """
    spare = np.subtract(sample.image.shape[1::-1], cut.image.shape[1::-1])
    if (spare < 0).any():
        return None
    size = np.array(cut.image.shape[1::-1])
    boxes = sample.gt_boxes
    areas = np.minimum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), size.prod())
    for _ in range(TRIES):
        low = np.random.randint(spare + 1)
        sides = np.minimum(boxes[:, 2:], low + size) - np.maximum(boxes[:, :2], low)
        if (sides.clip(min=0).prod(axis=1) <= MAX_OVERLAP * areas).all():
            return int(low[0]), int(low[1])
    return None


@AUGMENTATION_REGISTRY.register()
def paste_rare(cfg) -> PasteRare:
    """Build copies of rare objects."""
    return PasteRare()
