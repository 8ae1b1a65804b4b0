"""The score thresholds that a report has found."""

import json
import math
import os
from typing import List, Sequence, Union

from tood.utils.errors import UserError

FROM_REPORT = "from-report"


def parse_threshold(value: Union[float, str]) -> Union[float, str]:
    """Return a score threshold, which may be text: a number, or ``FROM_REPORT``.

    Raises:
        UserError: for anything else.
    """
    if value == FROM_REPORT:
        return FROM_REPORT
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise UserError(
            f'--score-threshold is {value}; it must be a number from 0 to 1, or "{FROM_REPORT}".'
        )
    return number


def read_thresholds(weights: str, class_names: Sequence[str]) -> List[float]:
    """Return the threshold of each class from the report beside a checkpoint.

    Raises:
        UserError: if there is none, or one of other classes.
    """
    path = os.path.join(os.path.dirname(weights), "report", "report.json")
    try:
        with open(path, encoding="utf-8") as f:
            found = {x["name"]: x["threshold"] for x in json.load(f)["classes"]}
    except OSError as error:
        raise UserError(
            f"There is no report at {path} to take score thresholds from: tood report "
            f"{os.path.dirname(weights) or '.'} writes one."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a report ({error!r}); write it again.") from error
    missing = [name for name in class_names if name not in found]
    if missing:
        raise UserError(f"{path} has no class {missing[0]!r}: it is of another model.")
    return [float(found[name]) for name in class_names]
