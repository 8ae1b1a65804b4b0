"""Plots of the alignment: where scores and IoUs are high in an image (Figures 1 and 4 of the
paper), and how they correlate over a data set.
"""

from typing import Dict, Sequence, Tuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from tood.evaluation.alignment_evaluator import DenseOutputs, ObjectMetrics
from tood.modeling.box_ops import inside_boxes, paired_iou

_SCORE_MARK, _IOU_MARK = "red", "lime"


@torch.no_grad()
def location_values(
    dense: DenseOutputs, image_index: int, gt_boxes: Tensor, gt_classes: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return score and IoU of each location for its object: the smallest one whose box it lies in.

    Args:
        dense: dense predictions of a batch.
        gt_boxes, gt_classes: (M, 4) and (M,), objects of one image, pixels of the network's input;
            at least one.

    Returns:
        (R,) int64, the object, -1 for none; (R,) the score for its class; (R,) the IoU of the
        location's box with it.
    """
    scores, boxes, points = dense.scores[image_index], dense.boxes[image_index], dense.points
    areas = (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(dim=1)
    inside = inside_boxes(points[:, None], gt_boxes)
    smallest = areas.expand_as(inside).masked_fill(~inside, float("inf")).min(dim=1)
    found = smallest.values.isfinite()
    matched = torch.where(found, smallest.indices, 0)
    s = scores.gather(1, gt_classes[matched][:, None]).squeeze(1)
    u = paired_iou(boxes, gt_boxes[matched])
    return torch.where(found, matched, -1), torch.where(found, s, 0.0), torch.where(found, u, 0.0)


def draw_maps(
    image: np.ndarray,
    dense: DenseOutputs,
    image_index: int,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    title: str,
) -> np.ndarray:
    """Draw scores and IoUs of all locations over an image, side by side. A star marks each object's
    location with the highest score and a circle that with the highest IoU, and their boxes are
    drawn in red and green: an aligned detector has both in one place.

    Args:
        image: (H, W, 3) uint8, RGB, the network's input.
        dense, image_index, gt_boxes, gt_classes: see :func:`location_values`.

    Returns:
        (H', W', 3) uint8.
    """
    matched, scores, ious = location_values(dense, image_index, gt_boxes, gt_classes)
    height, width = image.shape[:2]
    figure = Figure(figsize=(9, 4 * height / width + 0.5), dpi=110, layout="constrained")
    figure.suptitle(title)
    best = [
        (int(torch.where(mine, scores, -1.0).argmax()), int(torch.where(mine, ious, -1.0).argmax()))
        for mine in (matched == i for i in range(len(gt_boxes)))
        if mine.any()
    ]
    grey = image.mean(axis=2)
    for axes, values, name in zip(figure.subplots(1, 2), (scores, ious), ("score", "IoU")):
        axes.set_title(name)
        axes.axis("off")
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        heat = _paint(values, matched, gt_boxes, dense, (height, width))
        top = max(float(values.max()), 1e-6) if name == "score" else 1.0
        shown = axes.imshow(heat, cmap="inferno", vmin=0, vmax=top, alpha=0.75 * (heat > 0))
        figure.colorbar(shown, ax=axes, fraction=0.04)
        for x1, y1, x2, y2 in gt_boxes.tolist():
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="white", ls=":"))
        for by_score, by_iou in best:
            for row, color, marker in ((by_iou, _IOU_MARK, "o"), (by_score, _SCORE_MARK, "*")):
                x1, y1, x2, y2 = dense.boxes[image_index, row].tolist()
                box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, lw=1)
                axes.add_patch(box)
                axes.plot(*dense.points[row].tolist(), marker, c=color, ms=9, mec="black")
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
    return _pixels(figure)


def draw_legend(boxes: Sequence[Tuple[tuple, str]]) -> np.ndarray:
    """Draw the meaning of boxes of one's choice, of the dots of ``draw_points``, and of the marks
    of :func:`draw_maps`.

    Args:
        boxes: colours, RGB in [0, 1], and their meanings.

    Returns:
        (H, W, 3) uint8.
    """
    dots = colormaps["plasma"]
    entries = [
        *(("s", "none", color, 11, text) for color, text in boxes),
        ("o", dots(1.0), "black", 11, "location in the object, where score and IoU are high"),
        ("o", dots(0.0), "black", 4, "location in the object, with lower values"),
        ("*", _SCORE_MARK, "black", 12, "below: highest score, and its box"),
        ("o", _IOU_MARK, "black", 9, "below: highest IoU, and its box"),
    ]
    handles = [
        Line2D([], [], ls="", marker=mark, mfc=face, mec=edge, ms=size, mew=1.5, label=text)
        for mark, face, edge, size, text in entries
    ]
    figure = Figure(figsize=(4.4, 0.4 + 0.26 * len(entries)), dpi=110)
    figure.legend(handles=handles, loc="upper left", frameon=False, fontsize=9, borderaxespad=0.3)
    return _pixels(figure)


def draw_scatter(pairs: Dict[str, np.ndarray]) -> np.ndarray:
    """
    Args:
        pairs: scores and IoUs of confident predictions, (P, 2), by the name of the detector.

    Returns:
        (H', W', 3) uint8, one panel per detector: a histogram over score and IoU.
    """
    figure = Figure(figsize=(4.2 * len(pairs), 4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    for axes, (name, points) in zip(panels, pairs.items()):
        axes.set_title(f"{name}\nthe ten most confident predictions of each object", fontsize=9)
        axes.set_xlabel("score")
        if len(points):
            shown = axes.hexbin(
                *points.T, gridsize=30, extent=(0, 1, 0, 1), bins="log", mincnt=1, cmap="viridis"
            )
            figure.colorbar(shown, ax=axes, label="predictions")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
    panels[0].set_ylabel("IoU of the predicted box")
    return _pixels(figure)


def draw_histograms(metrics: Dict[str, ObjectMetrics]) -> np.ndarray:
    """
    Args:
        metrics: metrics of all objects, by the name of the detector.

    Returns:
        histograms over the objects of both measures, the detectors above each other,
        (H', W', 3) uint8; dashed lines are the means.
    """
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2)
    measures = (
        ("correlation", "rank correlation of score and IoU, top 50", (-1, 1)),
        ("mean_iou", "mean IoU of the top 10", (0, 1)),
    )
    for axes, (field, label, limits) in zip(panels, measures):
        for i, (name, found) in enumerate(metrics.items()):
            values = getattr(found, field)
            values = values[~np.isnan(values)]
            color = f"C{i}"
            axes.hist(
                values, bins=40, range=limits, histtype="step", color=color, label=name, lw=1.5
            )
            if len(values):
                axes.axvline(values.mean(), color=color, ls="--", lw=1)
        axes.set_xlabel(label)
        axes.set_ylabel("objects")
        axes.set_xlim(*limits)
    panels[1].legend(loc="upper left", fontsize=8)
    return _pixels(figure)


def _paint(
    values: Tensor, matched: Tensor, gt_boxes: Tensor, dense: DenseOutputs, size: Sequence[int]
) -> np.ndarray:
    """Return (H, W): inside of its object, each location fills the square of its stride; the larger
    value wins. A smaller object covers a larger one.
    """
    canvas = np.zeros(size)
    areas = (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(dim=1)
    for i in areas.argsort(descending=True).tolist():
        left, top, right, bottom = (int(x) for x in gt_boxes[i].clamp(min=0).round().tolist())
        canvas[top:bottom, left:right] = 0
        mine = (matched == i) & (values > 0)
        rows = zip(*(x[mine].tolist() for x in (values, dense.points, dense.strides)))
        for value, (x, y), stride in rows:
            x1, y1 = max(int(x - stride / 2), left), max(int(y - stride / 2), top)
            x2, y2 = min(int(x + stride / 2), right), min(int(y + stride / 2), bottom)
            square = canvas[y1 : max(y2, y1), x1 : max(x2, x1)]
            np.maximum(square, value, out=square)
    return canvas


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
