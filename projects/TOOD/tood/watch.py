"""How a training is going: figures of the assignment, speed and memory."""

import logging
import resource
import sys
from typing import Dict, Sequence

import torch
from detectron2.utils.events import EventWriter, get_event_storage
from torch import Tensor

from .assign import box_iou_of_pairs

__all__ = ["STATISTICS_PERIOD", "StatusPrinter", "assignment_statistics"]

logger = logging.getLogger(__name__)

# Iterations between two looks at the assignment: as often as Detectron2 writes its log.
STATISTICS_PERIOD = 20


@torch.no_grad()
def assignment_statistics(
    pred_log_scores: Tensor, pred_boxes: Tensor, targets, num_objects: Sequence[int]
) -> Dict[str, float]:
    """
    Args:
        pred_log_scores: (N, R, K).
        pred_boxes: (N, R, 4).
        targets: the detector's ``Targets``.
        num_objects: of each image.

    Returns:
        "positives_per_object"; "objects_without_positive", their part of all objects;
        "mean_target", "mean_iou" of the positives, and "score_iou_correlation", Pearson's, of their
        scores for their object's class with the IoU of their boxes. What is not defined, for want
        of objects or positives, is left out.
    """
    image, location = targets.positive.nonzero(as_tuple=True)
    objects = sum(num_objects)
    statistics = {}
    if objects:
        pairs = torch.stack([image, targets.gt_index[image, location]], dim=1)
        found = len(pairs.unique(dim=0))
        statistics["positives_per_object"] = len(pairs) / objects
        statistics["objects_without_positive"] = 1 - found / objects
    if len(image):
        classes = targets.gt_classes[image, location]
        scores = pred_log_scores[image, location, classes].float().exp()
        ious = box_iou_of_pairs(pred_boxes[image, location], targets.gt_boxes[image, location])
        correlation = torch.corrcoef(torch.stack([scores, ious]))[0, 1]
        statistics["mean_target"] = targets.cls_targets[image, location].mean().item()
        statistics["mean_iou"] = ious.mean().item()
        if correlation.isfinite():
            statistics["score_iou_correlation"] = correlation.item()
    return statistics


class StatusPrinter(EventWriter):
    """
    One more line beside Detectron2's: the latest figures of the assignment, which are of the main
    process's images, the throughput of all processes, and the main process's largest memory.
    """

    TEXTS = {
        "positives_per_object": "positives per object {:.1f}",
        "objects_without_positive": "objects without {:.0%}",
        "mean_target": "mean target {:.2f}",
        "mean_iou": "mean IoU {:.2f}",
        "score_iou_correlation": "correlation of score and IoU {:.2f}",
        "images_per_second": "images per second {:.1f}",
        "memory_mb": "memory {:.0f} MB",
    }

    def __init__(self, ims_per_batch: int):
        """
        Args:
            ims_per_batch: images of a step, of all processes together.
        """
        self.ims_per_batch = ims_per_batch

    def write(self):
        storage = get_event_storage()
        latest = storage.latest()
        if "time" in latest:
            seconds = storage.history("time").avg(STATISTICS_PERIOD)
            speed = self.ims_per_batch / seconds
            storage.put_scalar("images_per_second", speed, smoothing_hint=False)
        storage.put_scalar("memory_mb", _peak_memory_mb(), smoothing_hint=False)
        latest = {name.rpartition("/")[2]: value for name, (value, _) in storage.latest().items()}
        texts = [text.format(latest[n]) for n, text in self.TEXTS.items() if n in latest]
        logger.info(" " + "  ".join(texts))


def _peak_memory_mb() -> float:
    """Of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
