"""The alignment of classification and localization over a data set, as a Detectron2 evaluator."""

import logging
import os
from typing import Dict, List, NamedTuple, Optional

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import cat
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, BoxMode
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor

from tood.evaluation.alignment import (
    TOP_CORRELATED,
    TOP_LOCALIZED,
    compute_alignment,
    count_detections,
    select_predictions,
)
from tood.modeling.detector import TOOD
from tood.utils.files import write_json

logger = logging.getLogger(__name__)

# COCO's limits between small, medium and large, of the box: square pixels of the original image.
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}
# Pairs of score and IoU that are kept for a plot, the first of the data set.
MAX_PAIRS = 20_000


class DenseOutputs(NamedTuple):
    """Dense predictions of a detector for a batch, before thresholding and NMS."""

    scores: Tensor  # (N, R, K), probabilities
    boxes: Tensor  # (N, R, 4), XYXY pixels of the network's input
    points: Tensor  # (R, 2), x and y of the locations
    strides: Tensor  # (R,), of their feature maps, pixels


class DenseReader:
    """Keeps the :class:`DenseOutputs` of a detector's latest forward pass, by a hook on its head.
    For further detectors, add a function of (model, head's inputs, head's outputs) to
    ``ADAPTERS``.
    """

    def __init__(self, model):
        """
        Raises:
            TypeError: for a model without an adapter.
        """
        adapt = next((f for kind, f in ADAPTERS.items() if isinstance(model, kind)), None)
        if adapt is None:
            names = " and ".join(architecture.__name__ for architecture in ADAPTERS)
            raise TypeError(
                f"The dense predictions of a {type(model).__name__} are not available; those of "
                f"{names} are."
            )
        self.latest: Optional[DenseOutputs] = None

        def keep(head, inputs, outputs):
            self.latest = adapt(model, inputs, outputs)

        self._handle = model.head.register_forward_hook(keep)

    def close(self) -> None:
        self._handle.remove()
        self.latest = None


def _read_tood(model, inputs, predictions) -> DenseOutputs:
    points = predictions.anchors.get_centers()
    strides = torch.tensor(model.strides, device=points.device)
    strides = strides.repeat_interleave(torch.tensor(predictions.level_sizes, device=points.device))
    return DenseOutputs(predictions.pred_scores, predictions.pred_boxes, points, strides)


def _read_retinanet(model, inputs, outputs) -> DenseOutputs:
    (features,) = inputs
    pred_logits, pred_deltas = outputs
    levels = model.anchor_generator(features)
    anchors = Boxes.cat(levels).tensor
    strides = [
        anchors.new_full((len(level),), stride)
        for level, stride in zip(levels, model.anchor_generator.strides)
    ]
    logits = cat([permute_to_N_HWA_K(x, model.num_classes) for x in pred_logits], dim=1)
    deltas = cat([permute_to_N_HWA_K(x, 4) for x in pred_deltas], dim=1)
    boxes = [model.box2box_transform.apply_deltas(x.float(), anchors) for x in deltas]
    points = Boxes(anchors).get_centers()
    return DenseOutputs(logits.float().sigmoid(), torch.stack(boxes), points, cat(strides))


ADAPTERS = {TOOD: _read_tood, RetinaNet: _read_retinanet}


class ObjectMetrics(NamedTuple):
    """Measurements, one number for each object of a data set."""

    correlation: np.ndarray  # NaN if not defined
    mean_iou: np.ndarray  # NaN if not defined
    correct: np.ndarray
    redundant: np.ndarray
    error: np.ndarray
    area: np.ndarray  # area of the box, square pixels of the original image
    gt_class: np.ndarray

    @classmethod
    def cat(cls, parts: List["ObjectMetrics"]) -> "ObjectMetrics":
        if not parts:
            return cls(*(np.zeros(0) for _ in cls._fields))
        return cls(*(np.concatenate(x) for x in zip(*parts)))


class AlignmentEvaluator(DatasetEvaluator):
    """Table 6 of the paper for any data set in Detectron2's format, sliced by size and class;
    docs/alignment.md defines the metrics. Crowds and boxes without size are ignored.

    In the main process, ``metrics`` (:class:`ObjectMetrics`) and ``pairs`` (P, 2), scores and IoUs
    of confident predictions, are kept for plots.
    """

    def __init__(
        self,
        dataset_name: str,
        model,
        output_dir: Optional[str] = None,
        records: Optional[List[Dict]] = None,
    ):
        """
        Args:
            dataset_name: registered.
            model: model to evaluate, one of ``ADAPTERS``; not wrapped.
            output_dir: folder for ``alignment_DATASET.json``.
            records: records of the data set in Detectron2's format, if they are read already.
        """
        self.dataset_name = dataset_name
        self.model = model
        self.output_dir = output_dir
        records = DatasetCatalog.get(dataset_name) if records is None else records
        self.objects = {record["image_id"]: read_objects(record) for record in records}
        self.class_names = MetadataCatalog.get(dataset_name).thing_classes
        self.reader: Optional[DenseReader] = None
        self.metrics: Optional[ObjectMetrics] = None
        self.pairs = np.zeros((0, 2))

    def reset(self):
        self._parts, self._pairs = [], []
        if self.reader is None:
            self.reader = DenseReader(self.model)

    def process(self, inputs: List[Dict], outputs: List[Dict]):
        dense = self.reader.latest
        for i, (record, output) in enumerate(zip(inputs, outputs)):
            gt_boxes, gt_classes = (
                x.to(dense.boxes.device) for x in self.objects[record["image_id"]]
            )
            if len(gt_boxes) == 0:
                continue
            seen_boxes = gt_boxes * compute_input_scale(record).to(gt_boxes)
            seen = (dense.scores[i], dense.boxes[i], dense.points, seen_boxes, gt_classes)
            top = select_predictions(*seen, TOP_CORRELATED)
            detections = output["instances"].to(gt_boxes.device)
            boxes, classes = detections.pred_boxes.tensor, detections.pred_classes
            counts = count_detections(boxes, classes, gt_boxes, gt_classes)
            areas = (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(dim=1)
            columns = (*compute_alignment(top), *counts, areas, gt_classes)
            self._parts.append(ObjectMetrics(*(x.cpu().numpy() for x in columns)))
            if sum(map(len, self._pairs)) < MAX_PAIRS:
                best = top.valid[:, :TOP_LOCALIZED]
                pairs = [x[:, :TOP_LOCALIZED][best] for x in (top.scores, top.ious)]
                pairs = torch.stack(pairs, dim=1)
                self._pairs.append(pairs.cpu().numpy())

    def evaluate(self) -> Optional[Dict]:
        """
        Returns:
            {"alignment": metrics over all objects and for each size}; None in all processes but
            the main one. Metrics for each class are logged.
        """
        self.reader.close()
        self.reader = None
        parts = comm.gather((ObjectMetrics.cat(self._parts), self._pairs))
        if not comm.is_main_process():
            return None
        self.metrics = ObjectMetrics.cat([part for part, _ in parts if len(part.area)])
        pairs = [x for _, kept in parts for x in kept]
        self.pairs = np.concatenate(pairs)[:MAX_PAIRS] if pairs else self.pairs
        rows = summarize(self.metrics, self.class_names)
        logger.info(f"Alignment on {self.dataset_name}:\n{format_table(rows)}")
        if self.output_dir:
            os.makedirs(self.output_dir, exist_ok=True)
            name = "".join(c if c.isalnum() or c in "-_" else "_" for c in self.dataset_name)
            write_json(rows, os.path.join(self.output_dir, f"alignment_{name[-80:]}.json"))
        results = dict(rows["all"])
        for size in SIZES:
            results.update({f"{key}-{size}": value for key, value in rows[size].items()})
        return {"alignment": results}


def summarize(metrics: ObjectMetrics, class_names: List[str]) -> Dict[str, Dict[str, float]]:
    """
    Args:
        metrics: metrics of all objects.

    Returns:
        for "all", the sizes, and each class: "objects", "PCC", "IoU", means over the objects for
        which they are defined, and the sums "correct", "redundant" and "error".
    """
    slices = {"all": np.ones(len(metrics.area), dtype=bool)}
    for size, (low, high) in SIZES.items():
        slices[size] = (metrics.area >= low) & (metrics.area < high)
    for i, name in enumerate(class_names):
        slices[name if name not in slices else f"class {name}"] = metrics.gt_class == i
    return {
        name: {
            "objects": int(chosen.sum()),
            "PCC": _mean(metrics.correlation[chosen]),
            "IoU": _mean(metrics.mean_iou[chosen]),
            "correct": int(metrics.correct[chosen].sum()),
            "redundant": int(metrics.redundant[chosen].sum()),
            "error": int(metrics.error[chosen].sum()),
        }
        for name, chosen in slices.items()
    }


def format_table(rows: Dict[str, Dict[str, float]]) -> str:
    """Format the rows of :func:`summarize` as Markdown."""
    headers = ["", "objects", "PCC top-50", "IoU top-10", "correct", "redundant", "error"]
    body = [[name, *row.values()] for name, row in rows.items()]
    return tabulate(body, headers=headers, tablefmt="pipe", floatfmt=".3f")


def compute_input_scale(record: Dict) -> Tensor:
    """Return (4,), factors from pixels of the original image to those of the network's input."""
    height, width = record["image"].shape[-2:]
    return torch.tensor([width / record["width"], height / record["height"]] * 2)


def _mean(x: np.ndarray) -> float:
    x = x[~np.isnan(x)]
    return float(x.mean()) if len(x) else float("nan")


def read_objects(record: Dict):
    """Return boxes (M, 4), XYXY pixels of the original image, and classes (M,) of its objects."""
    annotations = [a for a in record["annotations"] if not a.get("iscrowd")]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
    has_size = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return boxes[has_size], classes[has_size]
