"""The page: metrics and images in one HTML file that loads nothing from elsewhere."""

import base64
import math
import os
from typing import Dict, List, Mapping, NamedTuple, Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tood.app.plan.advice import count_shown
from tood.app.report.gallery import Drawing
from tood.app.report.plots import FALSE_ALARM, MISSED
from tood.utils.errors import shorten

MATRIX_CLASSES = 25  # of a confusion matrix on the page, with the background
TABLE_ROWS = 300
FOLDER, TEMPLATE = os.path.dirname(__file__), "page.html.jinja"


class Gallery(NamedTuple):
    """Drawings under a heading."""

    title: str
    text: str
    drawings: Sequence[Drawing]
    part: str = ""  # of the page, with more on the same: "suspects"


class Facts(NamedTuple):
    """The content of a page beside the metrics."""

    title: str
    command: str
    versions: Dict[str, str]
    name: str = ""  # of the model or the detections
    plots: Dict[str, bytes] = {}  # PNG, by the names of their files
    galleries: Sequence[Gallery] = ()
    sections: Mapping[str, object] = {}  # content of the sections, by their names


def render(summary: Dict, facts: Facts) -> str:
    """Return the page.

    Args:
        summary: result of :func:`tood.app.report.analysis.summarize_analysis`.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        short=shorten,
        interval=interval,
        png=lambda x: _data_url(x, "png"),
        jpeg=lambda x: _data_url(x, "jpeg"),
    )
    worst = max(summary["errors"], key=lambda x: _or_zero(x["AP50_lost"]))
    return environment.get_template(TEMPLATE).render(
        summary=summary,
        facts=facts,
        worst=worst,
        captions=CAPTIONS,
        shares=_shares(summary),
        classes=_choose_classes(summary),
        num_shown=count_shown(summary),
        terms=TERMS,
        meanings=MEANINGS,
        false_alarm=FALSE_ALARM,
        missed=MISSED,
        most_rows=TABLE_ROWS,
    )


TERMS = {
    "AP": "average precision, 0 to 100: how many objects are found, in how good boxes, and how few "
    "detections are wrong; the mean over the classes and ten demands on the boxes",
    "AP50, AP75": "the same with one demand: a box counts from an IoU of 0.5 or 0.75 on",
    "APs, APm, APl": "AP of small (below 32 x 32 pixels), medium and large (from 96 x 96) objects",
    "IoU": "overlap of two boxes: the area that they share over the area that they cover",
    "interval": "19 times of 20, it contains the metric on very many photographs of this kind",
    "score": "how sure the model is of a detection, 0 to 1",
    "threshold": "the score from which on detections count; for each class that of the best F1",
    "at the thresholds": "counting only the detections that reach the threshold of their class, as "
    "an application does; AP counts detections of any score",
    "precision, recall": "the share of detections that are right, of objects that are found",
    "F1": "their harmonic mean: high only if both are",
    "points": "of AP50, which has at most 100: what it would gain without errors of one kind",
}

MEANINGS = {
    "classification": "right box, wrong class",
    "localization": "right class, IoU of 0.1 to 0.5",
    "both": "wrong class, IoU of 0.1 to 0.5",
    "duplicate": "an object that is already found",
    "background": "a false alarm: no object there",
    "missed": "an object that is not found",
}

CAPTIONS = {
    "objects.png": "The objects of each class in these images.",
    "box_sizes.png": "The sizes of their boxes; dashed: between small, medium and large objects.",
    "precision_recall.png": "Precision over recall; AP50 is the mean of a curve.",
    "f1.png": "The highest point of a curve is the threshold in the table of classes.",
    "confusion.png": "Which classes are taken for which, at the thresholds: objects in rows.",
    "errors.png": "How many points AP50 would gain without each kind of error.",
    "calibration.png": "On the dashed line, a score is the probability of being right.",
    "guarantee.png": "Missed objects over the threshold, the bound for new images, the price.",
    "training.png": "Losses, and AP on the validation data, over the iterations.",
    "alignment.png": "Scores and IoUs of the most confident predictions of each object.",
}


def number(x, digits: int = 1) -> str:
    """Format a number; a dash if it is not defined."""
    if x is None or (isinstance(x, float) and math.isnan(x)):
        return "–"
    return f"{x:.{digits}f}"


def interval(x: Dict, digits: int = 1) -> str:
    """Format an interval; a dash if there is none."""
    return "–" if "note" in x else f"{number(x['low'], digits)} to {number(x['high'], digits)}"


def _or_zero(x: float) -> float:
    return 0.0 if math.isnan(x) else x


def _shares(summary: Dict) -> List[List[float]]:
    """Return the shares of each row of the confusion matrix; none if it is not on the page."""
    rows = summary["confusion"]["rows"]
    totals = [max(sum(row), 1) for row in rows]
    small = len(rows) <= MATRIX_CLASSES
    return [[x / total for x in row] for row, total in zip(rows, totals)] if small else []


def _choose_classes(summary: Dict) -> List[Dict]:
    """Return the rows of the table of classes: those with the most objects, in their order."""
    classes = summary["classes"]
    order = sorted(range(len(classes)), key=lambda k: -classes[k]["objects"])
    return [classes[k] for k in sorted(order[:TABLE_ROWS])]


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
