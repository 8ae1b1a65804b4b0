"""Progress of a training: metrics of the assignment, images, speed and memory."""

import json
import logging
import sys
from typing import Dict, Sequence, TextIO, Tuple

import torch
from detectron2.utils.events import EventWriter, get_event_storage
from torch import Tensor

from tood.evaluation.positives import tiny_object_statistics
from tood.modeling.box_ops import paired_iou
from tood.utils.errors import UserError
from tood.utils.files import encode_json

logger = logging.getLogger(__name__)

# Iterations between two measurements of the assignment: as often as Detectron2 writes its log.
STATISTICS_PERIOD = 20


class TrainingWatcher:
    """A detector's ``watcher``, called in each training step with the batch's predictions and
    targets: it periodically puts metrics and images into Detectron2's event storage. This makes a
    GPU wait, and is for the main process only, whose writers clear the storage.
    """

    def __init__(self, vis_period: int, class_names: Sequence[str], image_format: str):
        """
        Args:
            vis_period: iterations between two images, 0 for none.
            class_names: names of the classes, for the images.
            image_format: "RGB" or "BGR", of the network's input.

        Raises:
            UserError: if a library for drawing images is missing.
        """
        self.vis_period, self.class_names, self.image_format = vis_period, class_names, image_format
        if vis_period:
            try:
                from tood.visualization.draw import draw_training  # not needed without images
            except ImportError as error:
                raise UserError(
                    f"VIS_PERIOD is {vis_period}, but its images cannot be drawn ({error}); "
                    "pip install opencv-python, or set VIS_PERIOD 0."
                ) from error
            self._draw = draw_training

    @torch.no_grad()
    def __call__(self, model, images, features, predictions, targets, gt_instances) -> None:
        """Arguments as in the detector's ``forward_training``, and its ``Targets``."""
        storage = get_event_storage()
        if (storage.iter + 1) % STATISTICS_PERIOD == 0:
            metrics = assignment_statistics(
                predictions.pred_log_scores,
                predictions.pred_boxes,
                targets,
                [len(gt) for gt in gt_instances],
            )
            metrics.update(
                tiny_object_statistics(targets.gt_index, gt_instances, min(model.strides))
            )
            metrics["median_box"] = median_box(predictions.pred_boxes, images.tensor.shape[-2:])
            storage.put_scalars(**{f"assignment/{name}": x for name, x in metrics.items()})
        if self.vis_period and (storage.iter + 1) % self.vis_period == 0:
            detections = model.forward_inference(images, features, predictions)
            drawing = self._draw(
                self._input_image(model, images),
                gt_instances[0],
                predictions.anchors.get_centers(),
                targets.positive[0],
                targets.box_weights[0],
                detections[0],
                self.class_names,
            )
            storage.put_image("training", drawing.transpose(2, 0, 1))

    def _input_image(self, model, images):
        """Return the first image of a batch as the network sees it, (H, W, 3) uint8, RGB."""
        drawing = (images[0] * model.pixel_std + model.pixel_mean).clamp(0, 255).byte()
        drawing = drawing.permute(1, 2, 0).cpu().numpy()
        return drawing if self.image_format == "RGB" else drawing[:, :, ::-1]


@torch.no_grad()
def assignment_statistics(
    pred_log_scores: Tensor, pred_boxes: Tensor, targets, num_objects: Sequence[int]
) -> Dict[str, float]:
    """
    Args:
        pred_log_scores: (N, R, K).
        pred_boxes: (N, R, 4).
        targets: the detector's ``Targets``.
        num_objects: number of objects of each image.

    Returns:
        "positives_per_object"; "objects_without_positive", their share;
        "mean_target" and "mean_iou" of the positives; and "score_iou_correlation", Pearson's
        correlation of their scores for their object's class with the IoUs of their boxes. Metrics
        that are not defined without objects or positives are omitted.
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
        ious = paired_iou(pred_boxes[image, location], targets.gt_boxes[image, location])
        statistics["mean_target"] = targets.cls_targets[image, location].mean().item()
        statistics["mean_iou"] = ious.mean().item()
    if len(image) > 1:
        classes = targets.gt_classes[image, location]
        scores = pred_log_scores[image, location, classes].float().exp()
        correlation = torch.corrcoef(torch.stack([scores, ious]))[0, 1]
        if correlation.isfinite():
            statistics["score_iou_correlation"] = correlation.item()
    return statistics


@torch.no_grad()
def median_box(pred_boxes: Tensor, image_size: Tuple[int, int]) -> float:
    """Return the median longer side of boxes (N, R, 4), as a multiple of the image's longer side.

    Args:
        image_size: (height, width) of the padded images.
    """
    sides = (pred_boxes[..., 2:] - pred_boxes[..., :2]).amax(dim=-1)
    return sides.float().median().item() / max(image_size)


class StatusPrinter(EventWriter):
    """Logs one more line after Detectron2's: the latest metrics of the assignment, measured on the
    main process's images; the throughput of all processes; the main process's peak memory.
    """

    TEXTS = {
        "positives_per_object": "positives per object {:.1f}",
        "objects_without_positive": "objects without {:.0%}",
        "positives_per_tiny_object": "per object below a stride {:.1f}",
        "tiny_objects_without_positive": "of them without {:.0%}",
        "mean_target": "mean target {:.2f}",
        "mean_iou": "mean IoU {:.2f}",
        "score_iou_correlation": "correlation of score and IoU {:.2f}",
        "images_per_second": "images per second {:.1f}",
        "memory_mb": "memory {:.0f} MB",
    }

    def __init__(self, ims_per_batch: int):
        """
        Args:
            ims_per_batch: images per step, of all processes together.
        """
        self.ims_per_batch = ims_per_batch

    def write(self):
        storage = get_event_storage()
        if "time" in storage.latest():
            seconds = storage.history("time").avg(STATISTICS_PERIOD)
            speed = self.ims_per_batch / seconds
            storage.put_scalar("images_per_second", speed, smoothing_hint=False)
        storage.put_scalar("memory_mb", _peak_memory() / 2**20, smoothing_hint=False)
        latest = {name.rpartition("/")[2]: value for name, (value, _) in storage.latest().items()}
        texts = [text.format(latest[n]) for n, text in self.TEXTS.items() if n in latest]
        logger.info(" " + "  ".join(texts))


def _peak_memory() -> int:
    """Return the peak memory of the GPU if there is one, else of this process, bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource  # not available on Windows

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class StrictLines:
    """A file of JSON lines, as Detectron2's ``JSONWriter`` writes it, with null for NaN and
    infinity, which JSON does not have.
    """

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, line: str) -> None:
        self.file.write(encode_json(json.loads(line)) + "\n")

    def __getattr__(self, name: str):
        return getattr(self.file, name)
