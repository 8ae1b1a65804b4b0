"""Reasons why an object was not found: its locations, from scores and boxes to candidates, NMS and
the threshold, and the locations that training would assign to it.

Shapes: M objects, R locations of all levels, K classes. Boxes are XYXY pixels of the network's
input.
"""

from typing import List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import Tensor

from tood.app.report.gallery import crop_around
from tood.evaluation.alignment_evaluator import DenseOutputs
from tood.modeling.assigners import TAL, alignment_metric
from tood.modeling.box_ops import inside_boxes, paired_iou
from tood.visualization.alignment import draw_legend, draw_maps
from tood.visualization.draw import add_heading, draw_boxes, draw_points, image_grid

IOU = 0.5  # of a box that finds the object
# Causes, by the stage at which an object is lost.
FOUND, THRESHOLD, NMS, LIMIT = "found", "threshold", "NMS", "limit"
CANDIDATES, SCORE = "candidates", "score"
CLASSIFICATION, LOCALIZATION = "classification", "localization"
SETTINGS = {  # key of the config, or flag, by which an object may be kept
    THRESHOLD: "--score-threshold",
    NMS: "MODEL.TOOD.NMS_THRESH_TEST",
    LIMIT: "TEST.DETECTIONS_PER_IMAGE",
    CANDIDATES: "MODEL.TOOD.TOPK_CANDIDATES_TEST",
    SCORE: "MODEL.TOOD.SCORE_THRESH_TEST",
}
OBJECT_COLOR, BEST_COLOR, PREFERRED_COLOR = (1.0, 0.6, 0.0), (0.1, 0.75, 0.9), (0.9, 0.1, 0.1)
SIDE = 480  # longer side of the drawing in pixels


class Objects(NamedTuple):
    """The objects of an image, one of which is to be explained."""

    boxes: Tensor  # (M, 4)
    classes: Tensor  # (M,) int64
    asked: int  # the index of this one

    @property
    def box(self) -> Tensor:
        """(4,)"""
        return self.boxes[self.asked]

    @property
    def class_index(self) -> int:
        """Class of the object to be explained."""
        return int(self.classes[self.asked])


class Reason(NamedTuple):
    """The reason why an object was found or was not, and the values to draw."""

    cause: str
    sentence: str
    assignment: str  # a sentence on the locations that training would assign to it
    scores: Tensor  # (R,) for its class
    ious: Tensor  # (R,) of the locations' boxes with it
    metrics: Tensor  # (R,) alignment metric t (Eq. 9)
    inside: Tensor  # (R,) bool, locations in its box
    best_box: Optional[Tensor]  # (4,) the box that the sentence is about
    other_box: Optional[Tensor]  # (4,) of the detection that was preferred
    dense: DenseOutputs


@torch.no_grad()
def find_reason(
    model, image: Tensor, objects: Objects, class_names: Sequence[str], score_threshold: float
) -> Reason:
    """Follow an object through the network until it is lost.

    Args:
        model: a TOOD in evaluation mode.
        image: (3, H, W), as the model takes it.
        objects: all objects of the image; without the others, neighbours are not mentioned.
        score_threshold: threshold of detections that count.
    """
    images, predictions = model.predict_with_images([{"image": image}])
    objects = Objects(*(x.to(predictions.pred_boxes.device) for x in objects[:2]), objects.asked)
    scores, boxes = predictions.pred_scores[0], predictions.pred_boxes[0]
    points = predictions.anchors.get_centers()
    ious = paired_iou(boxes, objects.box)
    own = scores[:, objects.class_index]
    tal = model.assigner if isinstance(model.assigner, TAL) else TAL()
    metrics = alignment_metric(own, ious, tal.alpha, tal.beta)
    inside = inside_boxes(points, objects.box)
    (candidates,) = model.select(predictions).to_instances(images.image_sizes)
    detections = model.suppress(candidates)
    search = _Search(model, objects, class_names, score_threshold)
    cause = search.in_detections(detections) or search.in_candidates(candidates, detections)
    cause = cause or search.in_locations(scores, ious, inside, boxes)
    sizes = points.new_tensor(predictions.level_sizes, dtype=torch.int64)
    strides = points.new_tensor(model.strides).repeat_interleave(sizes)
    return Reason(
        *(cause.kind, cause.sentence),
        _describe_assignment(model, images, predictions, objects, class_names, metrics),
        *(own, ious, metrics, inside),
        *(cause.best_box, cause.other_box),
        DenseOutputs(scores[None], boxes[None], points, strides),
    )


class _Cause(NamedTuple):
    kind: str
    sentence: str
    best_box: Optional[Tensor] = None
    other_box: Optional[Tensor] = None


class _Search:
    """The stages of the network, each of which returns a cause, or None."""

    def __init__(self, model, objects: Objects, class_names: Sequence[str], threshold: float):
        self.model, self.objects, self.threshold = model, objects, threshold
        self.names, self.k = class_names, objects.class_index

    def in_detections(self, found: Instances) -> Optional[_Cause]:
        boxes, scores, classes = found.pred_boxes.tensor, found.scores, found.pred_classes
        ious = paired_iou(boxes, self.objects.box)
        near = ious >= IOU
        mine = near & (classes == self.k) & self._are_mine(boxes)
        others = near & (classes != self.k) & (scores >= self.threshold)
        if mine.any():
            i = int(torch.where(mine, scores, -1.0).argmax())
            score, limit = float(scores[i]), self.threshold
            if score >= limit:
                text = f"It is found, with the score {score:.2f} and an IoU of {ious[i]:.2f}."
                return _Cause(FOUND, text, boxes[i])
            if not others.any():
                text = (
                    f"It is found, but its score is {score:.2f}, below the threshold {limit:.2f}."
                )
                return _Cause(THRESHOLD, text, boxes[i])
        if others.any():
            i = int(torch.where(others, scores, -1.0).argmax())
            text = f"It is found as {self.names[int(classes[i])]}, with the score {scores[i]:.2f}"
            if mine.any():
                text += f", and as {self.names[self.k]} with {scores[mine].max():.2f} only"
            return _Cause(CLASSIFICATION, f"{text}.", None, boxes[i])
        return None

    def in_candidates(self, candidates: Instances, found: Instances) -> Optional[_Cause]:
        boxes, scores = candidates.pred_boxes.tensor, candidates.scores
        ious = paired_iou(boxes, self.objects.box)
        mine = (ious >= IOU) & (candidates.pred_classes == self.k)
        if not mine.any():
            return None
        i = int(torch.where(mine, scores, -1.0).argmax())
        what = f"Its best box has the score {scores[i]:.2f} and an IoU of {ious[i]:.2f}"
        if scores[i] < self.threshold:  # regardless of the later steps
            text = f"{what}: the score is below the threshold {self.threshold:.2f}."
            return _Cause(THRESHOLD, text, boxes[i])
        overlaps = paired_iou(found.pred_boxes.tensor, boxes[i])
        rivals = (overlaps > self.model.nms_thresh_test) & (found.scores >= scores[i])
        if not self.model.class_agnostic_nms:
            rivals &= found.pred_classes == self.k
        if not rivals.any():
            limit = self.model.max_detections_per_image
            text = (
                f"{what}, but an image has at most {limit} detections, and the others score higher."
            )
            return _Cause(LIMIT, text, boxes[i])
        j = int(torch.where(rivals, overlaps, -1.0).argmax())
        rival = found.pred_boxes.tensor[j]
        text = (
            f"{what}, but it is dropped as a duplicate (NMS) of a detection with the score "
            f"{found.scores[j]:.2f} that overlaps it by {overlaps[j]:.2f}{self._name_found(rival)}."
        )
        return _Cause(NMS, text, boxes[i], rival)

    def in_locations(self, scores: Tensor, ious: Tensor, inside: Tensor, boxes: Tensor) -> _Cause:
        own, name = scores[:, self.k], self.names[self.k]
        near = ious >= IOU
        if not near.any():
            i = int(ious.argmax())
            score = float(own[inside].max()) if inside.any() else 0.0
            text = (
                f"No box fits it: the best one has an IoU of {ious[i]:.2f}; scores for {name} "
                f"inside of it are at most {score:.2f}."
            )
            return _Cause(LOCALIZATION, text, boxes[i])
        i = int(torch.where(near, own, -1.0).argmax())
        score, limit = float(own[i]), self.model.score_thresh_test
        if score > limit:
            text = (
                f"Its best box has the score {score:.2f}, but is not among the best "
                f"{self.model.topk_candidates_test} of its level, which alone are considered."
            )
            return _Cause(CANDIDATES, text, boxes[i])
        other = scores[near].max(dim=0).values
        other[self.k] = -1
        c = int(other.argmax())
        if other[c] > max(score, limit):
            text = (
                f"Boxes fit it, but their scores are for {self.names[c]}, up to {other[c]:.2f}, "
                f"not for {name}, up to {score:.3f}."
            )
            return _Cause(CLASSIFICATION, text, boxes[i])
        text = (
            f"Boxes that fit it: {int(near.sum())}, but their scores for {name} are at most "
            f"{score:.3f}, and only boxes above {limit:g} are considered."
        )
        return _Cause(SCORE, text, boxes[i])

    def _are_mine(self, boxes: Tensor) -> Tensor:
        """(D,) bool, boxes that overlap no other object of the class more."""
        same = self.objects.boxes[self.objects.classes == self.k]
        best = paired_iou(boxes[:, None], same).amax(dim=1)
        return paired_iou(boxes, self.objects.box) >= best

    def _name_found(self, box: Tensor) -> str:
        """Name the other object that a detection finds, for a sentence."""
        ious = paired_iou(self.objects.boxes, box)
        best = int(ious.argmax())
        if best == self.objects.asked or ious[best] < IOU:
            return ""
        return f" and finds the {self.names[int(self.objects.classes[best])]} beside it"


def _describe_assignment(
    model, images, predictions, objects: Objects, class_names, metrics: Tensor
) -> str:
    """Say how many locations are assigned to the object, and which objects take its best ones."""
    gt = Instances(images.image_sizes[0])
    gt.gt_boxes, gt.gt_classes = Boxes(objects.boxes), objects.classes
    gt_index = model.label_batch(images, predictions, [gt], model.assigner).gt_index[0]
    number = int((gt_index == objects.asked).sum())
    text = f"In training, {number} locations would be assigned to it"
    top = metrics.topk(min(getattr(model.assigner, "topk", 13), len(metrics))).indices
    takers = gt_index[top]
    takers = takers[(takers >= 0) & (takers != objects.asked)]
    if len(takers):
        taker = int(takers.mode().values)
        name = class_names[int(objects.classes[taker])]
        text += (
            f"; of its {len(top)} best, {len(takers)} go to others, most to the {name} beside it"
        )
    return f"{text}."


def draw_reason(
    reason: Reason, image: np.ndarray, objects: Objects, class_names: Sequence[str]
) -> np.ndarray:
    """Draw the object with its locations, larger and brighter the higher their alignment metric,
    and the boxes that the sentence is about, beside a legend; below, scores and IoUs of the
    locations.

    Args:
        image: (H, W, 3) uint8, RGB, the network's input.

    Returns:
        (H', W', 3) uint8.
    """
    x1, y1, x2, y2 = objects.box.tolist()
    part, corner = crop_around(image, (x1, y1, x2 - x1, y2 - y1))
    scale = SIDE / max(part.shape[:2])
    size = [max(1, round(side * scale)) for side in part.shape[1::-1]]
    part = np.asarray(Image.fromarray(part).resize(size))
    offset = torch.tensor(corner, dtype=torch.float32)

    def moved(boxes: Tensor) -> Tensor:
        return (boxes.cpu() - offset.repeat(boxes.shape[-1] // 2)) * scale

    shown = _list_boxes(reason, objects)
    limits = torch.tensor([size[0], size[1]] * 2)
    boxes = torch.stack([moved(x.box).clamp(min=0).minimum(limits) for x in shown])
    drawing = draw_boxes(
        part, boxes, range(len(shown)), [x.name for x in shown], colors=[x.color for x in shown]
    )
    points, metrics = moved(reason.dense.points), reason.metrics.cpu()
    mine = reason.inside.cpu() & (metrics > 0)
    weights = metrics[mine] / metrics[mine].max().clamp(min=1e-12) if mine.any() else metrics[mine]
    drawing = add_heading(draw_points(drawing, points[mine], weights), "alignment of its locations")
    scores, boxes, _, strides = reason.dense
    dense = DenseOutputs(scores.cpu(), moved(boxes), points, strides.cpu() * scale)
    k, box = objects.class_index, moved(objects.box)
    maps = draw_maps(part, dense, 0, box[None], torch.tensor([k]), class_names[k])
    legend = draw_legend([(x.color, f"{x.name}: {x.meaning}") for x in shown])
    return image_grid([[drawing, legend], [maps]])


class _ShownBox(NamedTuple):
    name: str
    meaning: str  # in the legend
    box: Tensor  # (4,)
    color: tuple


def _list_boxes(reason: Reason, objects: Objects) -> List[_ShownBox]:
    boxes = [
        _ShownBox("object", "the box that is explained", objects.box, OBJECT_COLOR),
        _ShownBox("best box", "of the model, for its class", reason.best_box, BEST_COLOR),
        _ShownBox("preferred", "detection that is kept instead", reason.other_box, PREFERRED_COLOR),
    ]
    return [x for x in boxes if x.box is not None]


def make_objects(
    boxes: List, classes: List[int], asked: int, scale: float, corner: Sequence[int] = (0, 0)
) -> Objects:
    """Move the objects of an image to the network's input.

    Args:
        boxes: x, y, width, height in pixels of the image.
        scale: scale of the network's input.
        corner: x and y in the image of the part of it that the network sees.
    """
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    corners[:, :2] -= torch.tensor(corner, dtype=torch.float32)
    corners = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], dim=1) * scale
    return Objects(corners, torch.tensor(classes, dtype=torch.int64), asked)
