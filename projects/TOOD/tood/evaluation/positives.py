"""Positives of objects by the size of the object, for small objects in particular.

Shapes: N images, R locations of all levels. Sizes are square roots of areas, in pixels of the
network's input, to be compared with strides.
"""

import math
from typing import Dict, Iterable, List, Sequence, Tuple

import torch
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor

# Limits between sizes, as multiples of the finest stride.
LIMITS = (1, 2, 4, 8)


def positives_by_object(gt_index: Tensor, num_objects: Sequence[int]) -> Tensor:
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


def compute_sizes(gt_instances: Sequence[Instances]) -> Tensor:
    """Return the size of each object, (M,) pixels, of all images one after the other."""
    areas = [gt.gt_boxes.area() for gt in gt_instances]
    return torch.cat(areas).sqrt() if areas else torch.zeros(0)


def tiny_object_statistics(
    gt_index: Tensor, gt_instances: Sequence[Instances], stride: float
) -> Dict[str, float]:
    """
    Args:
        gt_index: as in :func:`positives_by_object`.
        stride: the finest stride, in pixels.

    Returns:
        "positives_per_tiny_object", and "tiny_objects_without_positive", a share, for the objects
        that are smaller than the stride; empty if there are none.
    """
    counts = positives_by_object(gt_index, [len(gt) for gt in gt_instances])
    counts = counts[compute_sizes(gt_instances).to(counts.device) < stride].float()
    if not len(counts):
        return {}
    return {
        "positives_per_tiny_object": counts.mean().item(),
        "tiny_objects_without_positive": (counts == 0).float().mean().item(),
    }


@torch.no_grad()
def count_positives(model, data_loader: Iterable[List[Dict]]) -> List[Dict]:
    """Assign the objects of a data set by both assigners of a model.

    Args:
        model: a TOOD in evaluation mode, not wrapped.
        data_loader: lists of images with "instances", in each process its share.

    Returns:
        a row for each range of sizes with objects, the smallest first: "size", a text in pixels;
        "objects", their number; for each assigner, by the name of its class, "positives", the
        mean number, and "without", the share of objects that have none. The same in all processes.
    """
    assigners = {type(x).__name__: x for x in (model.warmup_assigner, model.assigner)}
    sizes, counts = [], {name: [] for name in assigners}
    for batch in data_loader:
        images, predictions = model.predict_with_images(batch)
        gt_instances = [x["instances"].to(model.device) for x in batch]
        sizes.append(compute_sizes(gt_instances).cpu())
        for name, assigner in assigners.items():
            targets = model.label_batch(images, predictions, gt_instances, assigner)
            numbers = positives_by_object(targets.gt_index, [len(gt) for gt in gt_instances])
            counts[name].append(numbers.cpu())
    parts = comm.all_gather((_cat(sizes), {name: _cat(x) for name, x in counts.items()}))
    sizes = torch.cat([part[0] for part in parts])
    merged = {name: torch.cat([part[1][name] for part in parts]) for name in assigners}
    return [
        row
        for title, low, high in _ranges(min(model.strides))
        if (row := _build_row(title, (sizes >= low) & (sizes < high), merged))["objects"]
    ]


def _build_row(title: str, chosen: Tensor, counts: Dict[str, Tensor]) -> Dict:
    row = {"size": title, "objects": int(chosen.sum())}
    for name, numbers in counts.items():
        mine = numbers[chosen].float()
        row[name] = {
            "positives": mine.mean().item(),
            "without": (mine == 0).float().mean().item(),
        }
    return row


def _ranges(stride: float) -> List[Tuple[str, float, float]]:
    limits = [x * stride for x in LIMITS]
    middle = [(f"{a:g} to {b:g}", a, b) for a, b in zip(limits, limits[1:])]
    return [
        (f"below {limits[0]:g}", 0, limits[0]),
        *middle,
        (f"{limits[-1]:g} and more", limits[-1], math.inf),
    ]


def _cat(parts: List[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0)
