"""Two detectors on the same images: differences of their metrics, with paired intervals."""

from typing import Dict, List

from tood.app.report.analysis import Analysis
from tood.app.report.intervals import class_intervals, class_metrics, coco_intervals, coco_metrics
from tood.utils.errors import UserError

NOT_DISTINGUISHABLE = "not distinguishable"


def compare_analyses(here: Analysis, there: Analysis) -> List[Dict]:
    """Compare without the same images each time: chance in the choice of the images cancels out.

    Returns:
        for each metric and the AP of each class "name", "here", "there", the difference "value"
        with its interval "low" and "high" (or a "note"), and a "verdict".

    Raises:
        UserError: if images or classes are not the same.
    """
    for name in ("image_ids", "class_names"):
        if getattr(here.table, name) != getattr(there.table, name):
            kind = name.replace("_ids", "s").replace("_", " ")
            raise UserError(f"Two results cannot be compared: their {kind} differ.")
    difference = (here.aps - there.aps, here.without - there.without, here.num_images, -100.0)
    intervals = coco_intervals(*difference)
    values = [coco_metrics(x.aps) for x in (here, there)]
    rows = [(name, x, *(v[name] for v in values)) for name, x in intervals.items()]
    values = [class_metrics(x.aps)["AP"] for x in (here, there)]
    for name, x, *pair in zip(here.table.class_names, class_intervals(*difference), *values):
        rows.append((f"AP of {name}", x["AP"], *pair))
    return [
        {
            **{"name": name, "here": float(first), "there": float(second)},
            **interval.as_values(),
            "verdict": _judge(interval),
        }
        for name, interval, first, second in rows
    ]


def _judge(difference) -> str:
    if difference.low > 0:
        return "better here"
    return "better there" if difference.high < 0 else NOT_DISTINGUISHABLE
