"""The registry of augmentations, and the interface of those that need several images."""

from typing import Sequence

from detectron2.utils.registry import Registry

from tood.data.augmentation.samples import Sample, TrainingSamples
from tood.utils.errors import UserError

AUGMENTATION_REGISTRY = Registry("TOOD_AUGMENTATION")
AUGMENTATION_REGISTRY.__doc__ = """
Augmentations, or functions that build one, called with the config: Detectron2's, of one image, or
a :class:`SampleAugmentation`. An augmentation of one image with the attribute ``at_own_size`` True
comes before Detectron2's crop, resize and flip, others come after them.
"""


class SampleAugmentation:
    """Base class of augmentations that need other images of the training set as well. All random
    numbers come from NumPy's global state, which is set for each image: a training can be resumed.
    """

    def check(self, samples: TrainingSamples) -> None:
        """Raise UserError for a training set that this augmentation does not change."""

    def __call__(self, sample: Sample, samples: TrainingSamples) -> Sample:
        """
        Args:
            sample: an image at the network's size. Its arrays may be kept, not changed.
            samples: the training set, to draw others from.
        """
        raise NotImplementedError


def check_augmentations(names: Sequence[str]) -> Sequence[str]:
    """Return ``INPUT.AUGMENTATIONS``.

    Raises:
        UserError: for a name that is not registered.
    """
    known = [name for name, _ in AUGMENTATION_REGISTRY]
    for name in names:
        if name not in known:
            raise UserError(
                f"INPUT.AUGMENTATIONS has {name!r}; it must contain names of {', '.join(known)}."
            )
    return names
