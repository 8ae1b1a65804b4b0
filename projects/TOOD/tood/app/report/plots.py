"""Plots of a report, by matplotlib: each a function of plain values that returns PNG bytes."""

import io
from typing import Dict, List, Optional, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tood.utils.errors import shorten
from tood.visualization.labels import fonts_for, printable

# With more classes, only the mean has a separate colour.
NAMED_CLASSES = 10
LABELLED_CLASSES = 100  # in the confusion matrix
COUNTED_CLASSES = 20  # in the plot of objects
MAX_LABEL = 30  # characters
SIZE = (5.2, 3.9)
# The background's row and column of the confusion matrix.
FALSE_ALARM, MISSED = "false alarm", "missed"
BORDERS = (32, 96)  # between COCO's small, medium and large objects, pixels
# Files of a report, some of which depend on what is known.
NAMES = (
    *("objects.png", "box_sizes.png", "precision_recall.png", "f1.png", "confusion.png"),
    *("errors.png", "calibration.png", "training.png", "alignment.png", "guarantee.png"),
)


def draw_plots(summary: Dict, class_names: Sequence[str]) -> Dict[str, bytes]:
    """
    Args:
        summary: result of :func:`tood.app.report.analysis.summarize_analysis`.

    Returns:
        file names and their content.
    """
    curves = summary["curves"]
    with fonts_for(class_names):
        return {
            "objects.png": draw_objects(summary["classes"]),
            "box_sizes.png": draw_box_sizes(summary["box_sizes"]),
            "precision_recall.png": draw_precision_recall(curves, class_names),
            "f1.png": draw_f1(curves, class_names),
            "confusion.png": draw_confusion(summary["confusion"]),
            "errors.png": draw_errors(summary["errors"]),
            "calibration.png": draw_calibration(summary["calibration"]),
        }


def draw_objects(classes: List[Dict]) -> bytes:
    """Draw the number of objects of each class, the most frequent first."""
    shown = sorted(classes, key=lambda x: -x["objects"])[:COUNTED_CLASSES]
    omitted = len(classes) - len(shown)
    title = f"Objects of the {len(shown)} most frequent classes" if omitted else "Objects"
    figure, axes = _panel("objects", "", title, unit=False)
    bars = axes.barh(range(len(shown)), [x["objects"] for x in shown], color="C0")
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_yticks(
        range(len(shown)), [_label(shorten(x["name"], MAX_LABEL)) for x in shown], fontsize=8
    )
    axes.margins(x=0.15)
    axes.invert_yaxis()
    return _png(figure)


def draw_box_sizes(sizes: Dict) -> bytes:
    """Draw how large objects are, and which of them are small, medium and large."""
    figure, axes = _panel(
        "square root of the area, pixels of the image", "objects", "Sizes", unit=False
    )
    axes.stairs(sizes["numbers"], sizes["edges"], fill=True, color="C0")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    for side in BORDERS:
        axes.axvline(side, color="0.4", ls="--", lw=1)
    return _png(figure)


def draw_precision_recall(curves: Dict, class_names: Sequence[str]) -> bytes:
    """Precision over recall of each class, and their mean."""
    figure, axes = _panel("recall", "precision", "Precision and recall at an IoU of 0.5")
    _draw_classes(axes, curves["recall"], curves["precision"], class_names)
    defined = [x for x in curves["precision"] if not np.isnan(x).any()]
    if defined:
        mean = np.mean(defined, axis=0)
        axes.plot(curves["recall"], mean, color="black", lw=2.2, label="mean of the classes")
    return _finished(figure, axes)


def draw_f1(curves: Dict, class_names: Sequence[str]) -> bytes:
    """F1 over the score threshold of each class, and of all detections together."""
    figure, axes = _panel("score threshold", "F1", "F1 over the score threshold")
    _draw_classes(axes, curves["score"], curves["f1"], class_names)
    axes.plot(
        curves["score"], curves["f1_of_all"], color="black", lw=2.2, label="all, one threshold"
    )
    return _finished(figure, axes)


def _draw_classes(
    axes, x: List[float], rows: List[List[float]], class_names: Sequence[str]
) -> None:
    for k, (row, name) in enumerate(zip(rows, class_names)):
        if len(rows) > NAMED_CLASSES:
            axes.plot(x, row, color="0.75", lw=0.8, label="a class" if k == 0 else None)
        else:
            axes.plot(x, row, lw=1.4, label=_label(name))


def draw_confusion(confusion: Dict) -> bytes:
    """Draw the confusion matrix: shares of each row, with numbers if there is space."""
    rows, labels = np.array(confusion["rows"]), [_label(x) for x in confusion["labels"][:-1]]
    columns, labels = [*labels, MISSED], [*labels, FALSE_ALARM]
    side = float(np.clip(2.2 + 0.42 * len(labels), *(3.6, 12)))
    figure = Figure(figsize=(side + 1.4, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, fraction=0.045, label="share of the row")
    font = {"fontsize": 8 if len(labels) <= 25 else 5}
    if len(labels) <= LABELLED_CLASSES:
        axes.set_xticks(range(len(labels)), columns, rotation=90, **font)
        axes.set_yticks(range(len(labels)), labels, **font)
    axes.set_xlabel("detected")
    axes.set_ylabel("object")
    if len(labels) <= 25:
        for (i, j), count in np.ndenumerate(rows):
            if count:
                color = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, count, ha="center", va="center", color=color, fontsize=8)
    return _png(figure)


def draw_errors(errors: List[Dict]) -> bytes:
    """Draw the cost of each kind of error."""
    figure, axes = _panel("points of AP50 that it costs", "", "Kinds of error", unit=False)
    costs = [np.nan_to_num(x["AP50_lost"]) for x in errors]
    bars = axes.barh([x["kind"] for x in errors], costs, color="C0")
    axes.bar_label(bars, [f"{x:.1f}" for x in costs], padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    return _png(figure)


def draw_calibration(bins: List[Dict]) -> bytes:
    """Correctness and IoU of detections over their score, and how many there are."""
    figure = Figure(figsize=SIZE, dpi=120, layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    bins = [x for x in bins if x["number"]]
    scores = [x["mean_score"] for x in bins]
    axes.set_title("What a score means", fontsize=10)
    axes.plot([0, 1], [0, 1], color="0.7", ls="--", lw=1)
    axes.plot(scores, [x["correct"] for x in bins], "o-", label="share that is correct, IoU 0.5")
    axes.plot(scores, [x["mean_iou"] for x in bins], "s-", label="mean IoU with its object")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    middles = [(x["low"] + x["high"]) / 2 for x in bins]
    below.bar(middles, [x["number"] for x in bins], width=0.09, color="0.6")
    below.set_yscale("log")
    below.set_xlabel("score")
    below.set_ylabel("detections")
    return _png(figure)


def draw_training(records: List[Dict]) -> bytes:
    """Losses and AP over the iterations.

    Args:
        records: lines of Detectron2's ``metrics.json``.
    """
    figure = Figure(figsize=(2 * SIZE[0], SIZE[1]), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2)
    names = ("total_loss", "loss_cls", "loss_box_reg", "loss_teacher_cls", "loss_teacher_box_reg")
    for axes, keys, title in zip(
        panels, (names, ("bbox/AP", "ema/bbox/AP")), ("losses", "AP on the validation data")
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.3)
        for key in keys:
            points = [(x["iteration"], x[key]) for x in records if key in x and "iteration" in x]
            if points:
                label = {"bbox/AP": "weights", "ema/bbox/AP": "their moving average"}.get(key, key)
                axes.plot(*zip(*points), "." * (len(points) < 30) + "-", lw=1.2, label=label)
        if axes.lines:
            axes.legend(fontsize=8)
    return _png(figure)


def draw_guarantee(curve: Dict, miss_rate: float, threshold: Optional[float]) -> bytes:
    """Draw the share of missed objects, the bound on it, and the price, over the threshold.

    Args:
        curve: result of :func:`tood.app.guarantee.certify.trace_curve`.
        miss_rate: promised miss rate.
        threshold: that keeps the promise, if there is one.
    """
    figure, axes = _panel("score threshold", "share of the objects", "Missed objects", unit=False)
    scores = curve["score_threshold"]
    axes.plot(scores, curve["empirical_miss_rate"], label="missed in these images")
    axes.plot(scores, curve["bound"], label="bound, for new images")
    axes.axhline(miss_rate, color="0.4", ls="--", lw=1, label="promised at most")
    if threshold is not None:
        axes.axvline(threshold, color="black", lw=1, label="guaranteed threshold")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    price = axes.twinx()
    price.plot(scores, curve["false_per_image"], color="C3", ls=":")
    price.set_ylabel("false detections per image (dotted)")
    price.set_yscale("symlog", linthresh=0.1)
    price.set_ylim(bottom=0)
    # Below the curves, of which none would be free of it.
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2)
    return _png(figure)


def _label(name: str) -> str:
    """Return a name that matplotlib neither takes for a formula nor omits from a legend."""
    text = printable(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _panel(xlabel: str, ylabel: str, title: str, unit: bool = True):
    figure = Figure(figsize=SIZE, dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    if unit:
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
    return figure, axes


def _finished(figure: Figure, axes) -> bytes:
    axes.legend(fontsize=8, loc="lower left")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
