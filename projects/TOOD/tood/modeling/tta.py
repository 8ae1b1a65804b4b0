"""
Test-time augmentation for dense detectors, which Detectron2 has for two-stage ones only: the
candidates of an image in several sizes and flipped, together, before NMS.
"""

from itertools import groupby
from typing import Callable, Dict, List

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import DatasetMapperTTA, detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn

from tood.modeling.detector import TOOD
from tood.modeling.postprocess import suppress_non_maxima
from tood.utils.errors import UserError

__all__ = ["TOODWithTTA"]


class TOODWithTTA(nn.Module):
    """
    A TOOD with test-time augmentation (``TEST.AUG``: sizes, flip), called like the model itself. It
    is best given images in their own size, for it resizes them. Boxes are mapped back; further
    fields of a head are kept as they were predicted for the augmented view.
    """

    @configurable
    def __init__(self, *, model: TOOD, augment: Callable[[Dict], List[Dict]], batch_size: int = 4):
        """
        Args:
            model: not wrapped.
            augment: makes the augmented views of an image, as Detectron2's ``DatasetMapperTTA``.
            batch_size: augmented views of one size in a batch.
        """
        super().__init__()
        self.model, self.augment, self.batch_size = model, augment, batch_size

    @classmethod
    def from_config(cls, cfg, model: TOOD):
        """
        Raises:
            UserError: if ``TEST.AUG`` names no size.
        """
        if not cfg.TEST.AUG.MIN_SIZES:
            raise UserError("TEST.AUG.MIN_SIZES is empty; name the sizes of the augmented views.")
        return {"model": model, "augment": DatasetMapperTTA(cfg)}

    @torch.no_grad()
    def forward(self, batched_inputs: List[Dict]) -> List[Dict[str, Instances]]:
        """Detect like the model in evaluation mode."""
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, image: Dict) -> Instances:
        height = image.get("height", image["image"].shape[1])
        width = image.get("width", image["image"].shape[2])
        augmented = self.augment({**image, "height": height, "width": width})
        found = []
        for batch in self._batches(augmented):
            for x, candidates in zip(batch, self.model.find_candidates(batch)):
                boxes = candidates.pred_boxes.tensor
                back = x["transforms"].inverse().apply_box(boxes.cpu().numpy())
                back = torch.from_numpy(np.ascontiguousarray(back)).to(boxes)
                candidates = Instances((height, width), **candidates.get_fields())
                candidates.pred_boxes = Boxes(back)
                found.append(candidates)
        model = self.model
        detections = suppress_non_maxima(
            Instances.cat(found), model.nms_thresh_test, model.max_detections_per_image
        )
        return detector_postprocess(detections, height, width)

    def _batches(self, images: List[Dict]) -> List[List[Dict]]:
        """Group views by size: padding would change what the network sees."""
        batches = []
        for _, same in groupby(
            sorted(images, key=lambda x: x["image"].shape), key=lambda x: x["image"].shape
        ):
            same = list(same)
            batches += [same[i : i + self.batch_size] for i in range(0, len(same), self.batch_size)]
        return batches
