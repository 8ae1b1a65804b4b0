"""Positives of objects by the size of the object, for small objects in particular.

Shapes: N images, R locations of all levels. Sizes are square roots of areas, in pixels of the
network's input, to be compared with strides.
"""

from typing import Callable, Dict, List, Sequence, Tuple

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import ImageList, Instances
from detectron2.utils import comm
from torch import Tensor

# Limits between sizes, as multiples of the finest stride.
LIMITS = (1, 2, 4, 8)


def count_positives(gt_index: Tensor, num_objects: Sequence[int]) -> Tensor:
    """
    Args:
        gt_index: (N, R) int64, the object that each location is assigned to, -1 for none.
        num_objects: number of objects of each image.

    Returns:
        (M,) int64, the number of locations of each object, of all images one after the other.
    """
    counts = [
        torch.bincount(index[index >= 0], minlength=count)
        for index, count in zip(gt_index, num_objects)
    ]
    return torch.cat(counts) if counts else gt_index.new_zeros(0)


def measure_sizes(gt_instances: Sequence[Instances]) -> Tensor:
    """Return the size of each object, (M,) pixels, of all images one after the other."""
    areas = [gt.gt_boxes.area() for gt in gt_instances]
    return torch.cat(areas).sqrt() if areas else torch.zeros(0)


def tiny_object_statistics(
    gt_index: Tensor, gt_instances: Sequence[Instances], stride: float
) -> Dict[str, float]:
    """
    Args:
        gt_index: see :func:`count_positives`.
        stride: the finest one, pixels.

    Returns:
        "positives_per_tiny_object", and "tiny_objects_without_positive", a share, for the objects
        that are smaller than the stride; empty if there are none.
    """
    counts = count_positives(gt_index, [len(gt) for gt in gt_instances])
    counts = counts[measure_sizes(gt_instances).to(counts.device) < stride].float()
    if not len(counts):
        return {}
    names = ("positives_per_tiny_object", "tiny_objects_without_positive")
    return dict(zip(names, _summarize(counts)))


class PositivesEvaluator(DatasetEvaluator):
    """Assigns the objects of a data set by both assigners of a model, with its present weights."""

    def __init__(self, model, views: Callable[[Dict], List[Dict]], *, reuse: bool = False):
        """
        Args:
            model: a TOOD in evaluation mode, not wrapped.
            views: function from an image of the evaluation to the model's inputs in training, with
                "instances": the image, its tiles, or nothing.
            reuse: whether the evaluation calls the model itself on the views, one at a time, so
                that its predictions need not be computed again.
        """
        self.model, self.views, self.reuse = model, views, reuse
        self.assigners = {type(x).__name__: x for x in (model.warmup_assigner, model.assigner)}
        self._handle, self._latest = None, None

    def reset(self):
        # (M, 1 + assigners) of each view: size, and positives by each assigner.
        self._parts = [torch.zeros(0, 1 + len(self.assigners))]
        if self.reuse and self._handle is None:
            self._handle = self.model.head.register_forward_hook(self._keep)

    def _keep(self, head, inputs, predictions):
        self._latest = predictions

    @torch.no_grad()
    def process(self, inputs: List[Dict], outputs: List[Dict]):
        for view in (view for x in inputs for view in self.views(x)):
            images, predictions = self._predict(view)
            gt = view["instances"].to(self.model.device)
            columns = [measure_sizes([gt])]
            for assigner in self.assigners.values():
                targets = self.model.label_batch(images, predictions, [gt], assigner)
                columns.append(count_positives(targets.gt_index, [len(gt)]))
            self._parts.append(torch.stack([x.float().cpu() for x in columns], dim=1))

    def _predict(self, view: Dict):
        if self.reuse:
            image = view["image"]
            return ImageList(image[None], [tuple(image.shape[1:])]), self._latest
        return self.model.predict_with_images([view])

    def evaluate(self) -> Dict:
        """
        Returns:
            {"positives": for each size with objects, the smallest first: "size", pixels in words;
            "objects"; and for each assigner, by the name of its class, "positives", the mean, and
            "without", the part of the objects that have none}. The same in all processes.
        """
        if self._handle is not None:
            self._handle.remove()
            self._handle, self._latest = None, None
        table = torch.cat(comm.all_gather(torch.cat(self._parts)))
        limits = [x * min(self.model.strides) for x in LIMITS]
        titles = [f"below {limits[0]:g}"]
        titles += [f"{a:g} to {b:g}" for a, b in zip(limits, limits[1:])]
        titles += [f"{limits[-1]:g} and more"]
        sizes = torch.bucketize(table[:, 0].contiguous(), torch.tensor(limits), right=True)
        rows = []
        for i, title in enumerate(titles):
            counts = table[sizes == i, 1:]
            row = {"size": title, "objects": len(counts)}
            for name, column in zip(self.assigners, counts.t()):
                positives, without = _summarize(column)
                row[name] = {"positives": positives, "without": without}
            rows.append(row)
        return {"positives": [row for row in rows if row["objects"]]}


def _summarize(counts: Tensor) -> Tuple[float, float]:
    """Return the mean of (M,) counts, and the share of zeros."""
    return counts.mean().item(), (counts == 0).float().mean().item()
