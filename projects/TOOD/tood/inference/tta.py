"""Test-time augmentation for dense detectors, which Detectron2 has for two-stage ones only: the
candidates of an image in several sizes and flipped, together, before NMS.
"""

from typing import Dict, Iterator, List, Sequence

import numpy as np
import torch
from detectron2.modeling import DatasetMapperTTA, detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn

from tood.config.options import TTAOptions
from tood.modeling.detector import TOOD
from tood.utils.errors import UserError


class TOODWithTTA(nn.Module):
    """A TOOD with test-time augmentation, called like the model itself. It is best given images in
    their own size, because it resizes them. Boxes are mapped back; further
    fields of a head are kept as they were predicted for the augmented view.
    """

    def __init__(self, model: TOOD, options: TTAOptions, batch_size: int = 4):
        """
        Args:
            model: not wrapped.
            options: whether they are enabled is the caller's business.
            batch_size: views of one size in a forward pass.

        Raises:
            UserError: for no size at all.
        """
        super().__init__()
        if not options.min_sizes:
            raise UserError("TEST.AUG.MIN_SIZES is empty; name sizes.")
        self.model = model
        self.augment = DatasetMapperTTA(
            min_sizes=list(options.min_sizes), max_size=options.max_size, flip=options.flip
        )
        self.batch_size = batch_size

    @torch.no_grad()
    def forward(self, batched_inputs: List[Dict]) -> List[Dict[str, Instances]]:
        """Detect like the model in evaluation mode."""
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, image: Dict) -> Instances:
        height = image.get("height", image["image"].shape[1])
        width = image.get("width", image["image"].shape[2])
        found = self.model.suppress(self._candidates(image, height, width))
        return detector_postprocess(found, height, width)

    @torch.no_grad()
    def find_candidates(self, batched_inputs: List[Dict]) -> List[Instances]:
        """Return the candidates for NMS of all views of each image, in pixels of the image."""
        return [self._candidates(x, *x["image"].shape[1:]) for x in batched_inputs]

    def _candidates(self, image: Dict, height: int, width: int) -> Instances:
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
        return Instances.cat(found)

    def _batches(self, images: List[Dict]) -> Iterator[List[Dict]]:
        for same in group_by_size(images):
            for first in range(0, len(same), self.batch_size):
                yield [images[i] for i in same[first : first + self.batch_size]]


def group_by_size(images: Sequence[Dict]) -> List[List[int]]:
    """Return the indices of images of one size each, which can share a batch: padding would change
    what the network sees.
    """
    groups: Dict = {}
    for i, x in enumerate(images):
        groups.setdefault(tuple(x["image"].shape), []).append(i)
    return [groups[size] for size in sorted(groups)]
