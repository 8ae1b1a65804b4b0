"""The mapper from a record of a data set to the network's input; unreadable images are named."""

import copy
from typing import Callable, Dict, Optional, Sequence

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    SizeMismatchError,
    annotations_to_instances,
    check_image_size,
    filter_empty_instances,
)
from detectron2.structures import BoxMode, Instances

from tood.data.augmentation import (
    AUGMENTATION_REGISTRY,
    Sample,
    SampleAugmentation,
    TrainingSamples,
    check_augmentations,
)
from tood.data.augmentation.samples import make_sample
from tood.data.images import IMAGE_ERRORS, read_image
from tood.data.tiles import RecentImages
from tood.utils.errors import UserError, format_reason
from tood.utils.tiles import Tile


class CheckedMapper(DatasetMapper):
    """Detectron2's mapper, of boxes alone, that reads 16 bits and names what it could not read."""

    @configurable
    def __init__(
        self,
        *args,
        bit_depth: int = 16,
        sample_augmentations: Optional[Sequence[SampleAugmentation]] = None,
        records: Sequence[Dict] = (),
        **kwargs,
    ):
        """
        Args:
            bit_depth: argument of :func:`~tood.data.images.read_image`; others are Detectron2's.
            sample_augmentations: augmentations of several images, applied last. If this is not
                None, objects that are hardly visible after an augmentation are ignored.
            records: training images that they draw from.

        Raises:
            UserError: for records that an augmentation cannot draw from.
        """
        super().__init__(*args, **kwargs)
        self.bit_depth, self._recent = bit_depth, RecentImages(bit_depth=bit_depth)
        self.sample_augmentations = sample_augmentations
        if sample_augmentations:
            self._samples = _make_samples(records, self._load_sample, sample_augmentations)

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        options = {**super().from_config(cfg, is_train), "bit_depth": cfg.INPUT.BIT_DEPTH}
        names = check_augmentations(cfg.INPUT.AUGMENTATIONS) if is_train else ()
        if not names:
            return options
        built = [AUGMENTATION_REGISTRY.get(name)(cfg) for name in names]
        single = [x for x in built if not isinstance(x, SampleAugmentation)]
        before = [x for x in single if getattr(x, "at_own_size", False)]
        after = [x for x in single if not getattr(x, "at_own_size", False)]
        options["augmentations"] = [*before, *options["augmentations"], *after]
        options["sample_augmentations"] = [x for x in built if isinstance(x, SampleAugmentation)]
        return options

    def __call__(self, dataset_dict: Dict) -> Dict:
        """
        Args:
            dataset_dict: a record in Detectron2's format.

        Returns:
            with "image" (3, H, W) uint8, and "instances" for training.

        Raises:
            UserError: with the name of an image that cannot be used.
        """
        record = copy.deepcopy(dataset_dict)
        if self.sample_augmentations is None:
            return self._checked(self._map, record)
        sample = self._load_sample(record)
        for augmentation in self.sample_augmentations:
            sample = augmentation(sample, self._samples)
        record = {k: v for k, v in record.items() if k != "annotations"}
        return {**record, "image": _to_tensor(sample.image), "instances": _to_instances(sample)}

    def _checked(self, function: Callable, record: Dict):
        try:
            return function(record)
        except (*IMAGE_ERRORS, SizeMismatchError) as error:
            raise UserError(
                f"The image {record['file_name']} cannot be used ({format_reason(error)}); "
                "repair it, or take it out of the annotation file."
            ) from error

    def _load_sample(self, record: Dict) -> Sample:
        """Return the sample of a record after all augmentations of one image."""
        return self._checked(self._augment, record)

    def _augment(self, record: Dict) -> Sample:
        image = self._read(record)
        sample = make_sample(image, record.get("annotations", []))
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        return sample.cut(augmented.image, transforms.apply_box(sample.gt_boxes))

    def _read_tile(self, record: Dict) -> np.ndarray:
        image = self._recent.open(record["file_name"], self.image_format)
        width, height = record.pop("whole_size")
        shape = np.empty((image.height, image.width, 0))
        check_image_size({**record, "width": width, "height": height}, shape)
        return image.read(Tile(*record.pop("tile"))).copy()  # for augmentations in place

    def _read(self, record: Dict) -> np.ndarray:
        if "tile" in record:
            image = self._read_tile(record)
        else:
            image = read_image(record["file_name"], self.image_format, self.bit_depth)
        check_image_size(record, image)
        return image

    def _map(self, record: Dict) -> Dict:
        image = self._read(record)
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image = augmented.image
        record["image"] = _to_tensor(image)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, image.shape[:2])
        return record


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _to_instances(sample: Sample) -> Instances:
    """Return the objects of a sample without its crowds, as Detectron2's mapper does."""
    rows = zip(sample.gt_boxes[~sample.is_crowd], sample.gt_classes[~sample.is_crowd].tolist())
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": k} for box, k in rows
    ]
    return filter_empty_instances(annotations_to_instances(annotations, sample.image.shape[:2]))


def _make_samples(
    records: Sequence[Dict],
    load: Callable[[Dict], Sample],
    augmentations: Sequence[SampleAugmentation],
) -> TrainingSamples:
    if not records:
        raise UserError(
            "INPUT.AUGMENTATIONS has one that needs other images (docs/augmentations.md), but the "
            "loader does not name them; DATALOADER.SAMPLER_TRAIN TrainingSampler does."
        )
    samples = TrainingSamples(records, load)
    for augmentation in augmentations:
        augmentation.check(samples)
    return samples
