"""The mapper from a record of a data set to the network's input; unreadable images are named."""

import copy
from typing import Dict

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, check_image_size

from tood.data.images import IMAGE_ERRORS, read_image
from tood.utils.errors import UserError, reason_of


class CheckedMapper(DatasetMapper):
    """Detectron2's mapper, of boxes alone, that reads 16 bits and names what it could not read."""

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
                f"The image {dataset_dict['file_name']} cannot be used ({reason_of(error)}); "
                "repair it, or take it out of the annotation file."
            ) from error

    @staticmethod
    def _cut(record: Dict, image: np.ndarray) -> np.ndarray:
        width, height = record.pop("whole_size")
        check_image_size({**record, "width": width, "height": height}, image)
        x, y, w, h = record.pop("tile")
        return image[y : y + h, x : x + w]

    def _map(self, record: Dict) -> Dict:
        image = read_image(record["file_name"], self.image_format)
        if "tile" in record:
            image = self._cut(record, image)
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
