"""Mosaic: images that are cut out around the point at which four images meet."""

import numpy as np

from tood.data.augmentation.registry import AUGMENTATION_REGISTRY, SampleAugmentation
from tood.data.augmentation.samples import Sample, TrainingSamples
from tood.data.augmentation.single import find_padding

PROBABILITY = 0.5
MARGIN = 0.25  # share of a side: the four images meet no closer to a border


class Mosaic(SampleAugmentation):
    """Put the image and three others together at a random point of an image of the same size. Each
    keeps its scale, and shows the corner at which it meets the others.
    """

    def __init__(self, fill, probability: float = PROBABILITY):
        """
        Args:
            fill: (3,), color of the pixels that a smaller image does not reach.
            probability: share of the images that become a mosaic.
        """
        self.fill, self.probability = np.asarray(fill, dtype=np.uint8), probability

    def __call__(self, sample: Sample, samples: TrainingSamples) -> Sample:
        if np.random.rand() >= self.probability:
            return sample
        height, width = sample.image.shape[:2]
        x, y = (
            int(round(side * np.random.uniform(MARGIN, 1 - MARGIN))) for side in (width, height)
        )
        tiles = [sample, *(samples.draw() for _ in range(3))]
        tiles = [tiles[i] for i in np.random.permutation(4)]
        canvas = np.empty_like(sample.image)
        canvas[:] = self.fill
        mosaic = Sample(canvas, *(field[:0] for field in sample[1:]))
        for i, tile in enumerate(tiles):
            is_right, is_lower = i % 2, i // 2
            tile_height, tile_width = tile.image.shape[:2]
            w = min(tile_width, width - x if is_right else x)
            h = min(tile_height, height - y if is_lower else y)
            # The corner at the point is the lower right one of the upper left image, and so on.
            part = tile.crop(
                0 if is_right else tile_width - w, 0 if is_lower else tile_height - h, w, h
            )
            mosaic = mosaic.paste(part, x if is_right else x - w, y if is_lower else y - h)
        return mosaic


@AUGMENTATION_REGISTRY.register()
def mosaic(cfg) -> Mosaic:
    """Build the mosaic of half of the images."""
    return Mosaic(find_padding(cfg.MODEL.PIXEL_MEAN))
