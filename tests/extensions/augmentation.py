"""Two augmentations: some grey images, and mixup (arXiv 1710.09412), two images seen as one."""

import numpy as np
from detectron2.data import transforms as T

from tood.data.augmentation import AUGMENTATION_REGISTRY, SampleAugmentation


@AUGMENTATION_REGISTRY.register()
def grey(cfg):
    return T.RandomApply(T.RandomSaturation(0, 0), prob=0.1)


@AUGMENTATION_REGISTRY.register()
class Mixup(SampleAugmentation):
    def __init__(self, cfg):
        self.probability = 0.15

    def __call__(self, sample, samples):
        if np.random.rand() >= self.probability:
            return sample
        other = samples.draw()
        height, width = np.minimum(sample.image.shape[:2], other.image.shape[:2]).tolist()
        part = other.crop(0, 0, width, height)
        return sample.paste(part, 0, 0, alpha=np.full((height, width), 0.5))
