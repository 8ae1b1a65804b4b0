"""Augmentations of training images by name, ``INPUT.AUGMENTATIONS`` (docs/augmentations.md)."""

from tood.data.augmentation.mosaic import Mosaic
from tood.data.augmentation.paste import PasteRare
from tood.data.augmentation.registry import (
    AUGMENTATION_REGISTRY,
    SampleAugmentation,
    check_augmentations,
)
from tood.data.augmentation.samples import MIN_VISIBLE, Sample, TrainingSamples
from tood.data.augmentation.single import QuarterTurn, ScaleJitter, VerticalFlip

__all__ = [
    "AUGMENTATION_REGISTRY",
    "MIN_VISIBLE",
    "Mosaic",
    "PasteRare",
    "QuarterTurn",
    "Sample",
    "SampleAugmentation",
    "ScaleJitter",
    "TrainingSamples",
    "VerticalFlip",
    "check_augmentations",
]
