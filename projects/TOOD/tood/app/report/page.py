"""The page: metrics and images in one HTML file that loads nothing from elsewhere."""

import base64
import math
import os
from typing import Dict, List, Mapping, NamedTuple, Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tood.app.report.gallery import Drawing

MATRIX_CLASSES = 25  # of a confusion matrix on the page, with the background
TABLE_ROWS = 300
FOLDER, TEMPLATE = os.path.dirname(__file__), "page.html.jinja"


class Gallery(NamedTuple):
    """Drawings under a heading."""

    title: str
    text: str
    drawings: Sequence[Drawing]


class Facts(NamedTuple):
    """The content of a page beside the metrics."""

    title: str
    command: str
    versions: Dict[str, str]
    plots: Dict[str, bytes] = {}  # PNG, by the names of their files
    galleries: Sequence[Gallery] = ()
    sections: Mapping[str, object] = {}  # content of the sections, by their names


def render(summary: Dict, facts: Facts) -> str:
    """Return the page.

    Args:
        summary: of :func:`tood.app.report.analysis.summarize_analysis`.
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
        most_rows=TABLE_ROWS,
    )


CAPTIONS = {
    "precision_recall.png": "Precision over recall; AP50 is the mean of a curve.",
    "f1.png": "The highest point of a curve is the threshold in the table of classes.",
    "confusion.png": "Objects in rows, detections in columns, at the thresholds.",
    "errors.png": "How many points AP50 would gain without each kind of error.",
    "calibration.png": "On the dashed line, a score is the probability of being right.",
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
