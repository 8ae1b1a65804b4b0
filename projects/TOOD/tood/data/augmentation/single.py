"""Augmentations of one image."""

import math
from typing import Sequence, Tuple

import numpy as np
from detectron2.data import transforms as T

from tood.data.augmentation.registry import AUGMENTATION_REGISTRY

COLORS = (0.8, 1.2)  # factors of brightness, contrast and saturation
SCALES = (0.7, 1.4)  # factors of the size of objects


class ScaleJitter(T.Augmentation):
    """Show objects smaller or larger in an image of the same shape: a random part of the image, or
    the image at a random place of a larger one. Detectron2's resize, which comes next, makes this
    as large as every image, from the pixels of the file.
    """

    at_own_size = True

    def __init__(self, scales: Tuple[float, float] = SCALES, pad_value: float = 0.0):
        """
        Args:
            scales: lowest and highest factor of an object's size; halving is as likely as doubling.
            pad_value: value of the pixels around a smaller image.
        """
        super().__init__()
        self.scales, self.pad_value = scales, pad_value

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        scale = math.exp(np.random.uniform(*np.log(self.scales)))
        new_height, new_width = (max(round(side / scale), 1) for side in (height, width))
        spare_x, spare_y = abs(width - new_width), abs(height - new_height)
        x, y = np.random.randint(spare_x + 1), np.random.randint(spare_y + 1)
        if scale > 1:
            return T.CropTransform(x, y, new_width, new_height, width, height)
        right, bottom = spare_x - x, spare_y - y
        return T.PadTransform(x, y, right, bottom, width, height, pad_value=self.pad_value)


class QuarterTurn(T.Augmentation):
    """Turn the image by 0, 90, 180 or 270 degrees."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        return QuarterTurnTransform(np.random.randint(4), width, height)


class VerticalFlip(T.Augmentation):
    """Turn half of the images upside down. Detectron2's RandomFlip does it by a tensor, and PyTorch
    warns of images that are not writable, as those that were resized.
    """

    def get_transform(self, image: np.ndarray) -> T.Transform:
        if np.random.rand() < 0.5:
            return T.NoOpTransform()
        height, width = image.shape[:2]
        return T.TransformList([QuarterTurnTransform(2, width, height), T.HFlipTransform(width)])


class QuarterTurnTransform(T.Transform):
    """A turn to the left, without the resampling of Detectron2's RotationTransform."""

    def __init__(self, turns: int, width: int, height: int):
        """
        Args:
            turns: number of quarters.
            width, height: size of the image in pixels.
        """
        super().__init__()
        self.turns, self.width, self.height = turns, width, height

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(image, self.turns))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        (x, y), (right, bottom) = coords.T, (self.width, self.height)
        turned = ((x, y), (y, right - x), (right - x, bottom - y), (bottom - y, x))
        return np.stack(turned[self.turns % 4], axis=1)


def find_padding(pixel_mean: Sequence[float]) -> np.ndarray:
    """Return the color (3,) uint8 of pixels without an image: about 0 for the network, as those
    with which it fills up a batch.
    """
    return np.rint(np.clip(pixel_mean, 0, 255)).astype(np.uint8)


@AUGMENTATION_REGISTRY.register()
def color_jitter(cfg) -> T.Augmentation:
    """Build random brightness, contrast and saturation."""
    parts = (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)
    return T.AugmentationList([part(*COLORS) for part in parts])


@AUGMENTATION_REGISTRY.register()
def scale_jitter(cfg) -> ScaleJitter:
    """Build smaller and larger objects in images of the same size."""
    return ScaleJitter(pad_value=int(find_padding(cfg.MODEL.PIXEL_MEAN).mean()))


@AUGMENTATION_REGISTRY.register()
def vertical_flip(cfg) -> VerticalFlip:
    """Build a flip upside down of half of the images."""
    return VerticalFlip()


@AUGMENTATION_REGISTRY.register()
def rotate90(cfg) -> QuarterTurn:
    """Build a turn by a random multiple of 90 degrees."""
    return QuarterTurn()
