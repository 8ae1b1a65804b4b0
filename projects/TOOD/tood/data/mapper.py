"""The mapper from a record of a data set to the network's input; unreadable images are named."""

import copy
from typing import Dict

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, check_image_size

from tood.data.images import IMAGE_ERRORS, read_image
from tood.data.tiles import RecentImages
from tood.utils.errors import UserError, format_reason
from tood.utils.tiles import Tile


class CheckedMapper(DatasetMapper):
    """Detectron2's mapper, of boxes alone, that reads 16 bits and names what it could not read."""

    @configurable
    def __init__(self, *args, bit_depth: int = 16, **kwargs):
        """
        Args:
            bit_depth: of :func:`~tood.data.images.read_image`; the others are Detectron2's.
        """
        super().__init__(*args, **kwargs)
        self.bit_depth, self._recent = bit_depth, RecentImages(bit_depth=bit_depth)

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        return {**super().from_config(cfg, is_train), "bit_depth": cfg.INPUT.BIT_DEPTH}

    def __call__(self, dataset_dict: Dict) -> Dict:
        """
        Args:
            dataset_dict: in Detectron2's format.

        Returns:
            with "image" (3, H, W) uint8, and "instances" for training.

        Raises:
            UserError: with the name of an image that cannot be used.
        """
        try:
            return self._map(copy.deepcopy(dataset_dict))
        except (*IMAGE_ERRORS, SizeMismatchError) as error:
            raise UserError(
                f"The image {dataset_dict['file_name']} cannot be used ({format_reason(error)}); "
                "repair it, or take it out of the annotation file."
            ) from error

    def _read_tile(self, record: Dict) -> np.ndarray:
        image = self._recent.open(record["file_name"], self.image_format)
        width, height = record.pop("whole_size")
        shape = np.empty((image.height, image.width, 0))
        check_image_size({**record, "width": width, "height": height}, shape)
        return image.read(Tile(*record.pop("tile"))).copy()  # for augmentations in place

    def _map(self, record: Dict) -> Dict:
        if "tile" in record:
            image = self._read_tile(record)
        else:
            image = read_image(record["file_name"], self.image_format, self.bit_depth)
        check_image_size(record, image)
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image = augmented.image
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, image.shape[:2])
        return record
