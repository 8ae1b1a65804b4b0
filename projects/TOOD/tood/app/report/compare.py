"""Two detectors on the same images: differences of their metrics, with paired intervals."""

from typing import Dict, List

from tood.app.report.analysis import Analysis
from tood.app.report.intervals import class_metrics, coco_metrics, make_interval
from tood.utils.errors import UserError

NOT_DISTINGUISHABLE = "not distinguishable"


def compare_analyses(here: Analysis, there: Analysis) -> List[Dict]:
    """Compare on the same bootstrap samples: chance in the choice of the images cancels out.

    Returns:
        for each metric and the AP of each class "name", "here", "there", the difference "value"
        with its interval "low" and "high", and a "verdict".

    Raises:
        UserError: where images or classes are not the same.
    """
    for name in ("image_ids", "class_names"):
        if getattr(here.table, name) != getattr(there.table, name):
            kind = name.replace("_ids", "s").replace("_", " ")
            raise UserError(f"Two results cannot be compared: their {kind} differ.")
    rows = []
    values = [coco_metrics(x.aps) for x in (here, there)]
    samples = [coco_metrics(x.samples) for x in (here, there)]
    for name in values[0]:
        rows.append(_make_row(name, *(x[name] for x in (*values, *samples))))
    values = [class_metrics(x.aps)["AP"] for x in (here, there)]
    samples = [class_metrics(x.samples)["AP"] for x in (here, there)]
    for k, name in enumerate(here.table.class_names):
        rows.append(_make_row(f"AP of {name}", *(x[k] for x in (*values, *samples))))
    return rows


def _make_row(name, here, there, samples_here, samples_there) -> Dict:
    interval = make_interval(float(here - there), samples_here - samples_there)
    verdict = NOT_DISTINGUISHABLE
    if interval.low > 0:
        verdict = "better here"
    elif interval.high < 0:
        verdict = "better there"
    values = {"name": name, "here": float(here), "there": float(there)}
    return {**values, **interval._asdict(), "verdict": verdict}
