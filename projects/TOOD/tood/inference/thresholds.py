"""The score thresholds that a report has found."""

import json
import os
import shlex
from typing import Dict, List, Sequence, Union

from tood.utils.errors import UserError
from tood.utils.reading import MAX_TEXT, guard_reading, parse_number, read_regular

FROM_REPORT = "from-report"


def parse_threshold(value: Union[float, str]) -> Union[float, str]:
    """Return a score threshold, which may be text: a number, or ``FROM_REPORT``.

    Raises:
        UserError: for anything else.
    """
    if isinstance(value, str) and value == FROM_REPORT:
        return FROM_REPORT
    try:
        return parse_number(value, 0, 1)
    except ValueError:
        raise UserError(
            f"--score-threshold is {value!s:.40}; it must be a number from 0 to 1, or "
            f'"{FROM_REPORT}".'
        ) from None


def read_summary(path: str, remedy: str = "write the report again") -> Dict:
    """Return the content of a ``report.json``.

    Raises:
        UserError: for a file that cannot be read.
    """
    with guard_reading(path, remedy):
        content = json.loads(read_regular(path, MAX_TEXT))
        if not isinstance(content, dict):
            raise ValueError("it is not a report")
    return content


def find_weights_hash(summary: Dict) -> str:
    """Return the hash of the weights that a report is on; "" if it does not say so."""
    identity = summary.get("identity")
    found = identity.get("weights") if isinstance(identity, dict) else None
    return found if isinstance(found, str) else ""


def read_thresholds(weights: str, class_names: Sequence[str], weights_hash: str) -> List[float]:
    """Return the threshold of each class from the report beside a checkpoint.

    Args:
        weights: path of the checkpoint.
        weights_hash: of :func:`tood.checkpoint.identity.hash_weights`.

    Raises:
        UserError: if the report does not exist, or is on other weights or classes.
    """
    path = os.path.join(os.path.dirname(weights), "report", "report.json")
    command = f"tood report {shlex.quote(weights)}"
    if not os.path.exists(path):
        raise UserError(
            f"The score thresholds need the report {path}, which does not exist; {command} writes "
            "it."
        )
    again = f"{command} --overwrite writes it again"
    summary = read_summary(path, again)
    known = find_weights_hash(summary)
    if not known:
        raise UserError(f"{path} does not say which weights it is on; {again}.")
    if known != weights_hash:
        raise UserError(
            f"{path} is the report on other weights than {weights}; {command} --overwrite writes "
            "one on these."
        )
    with guard_reading(path, again):
        found = {x["name"]: x["threshold"] for x in summary["classes"]}
    missing = [name for name in class_names if name not in found]
    if missing:
        raise UserError(f"{path} has no class {missing[0]!r}: it is of another model.")
    return [
        _check(found[name], f"{path}: the threshold of {name!r}", again) for name in class_names
    ]


def _check(value: object, name: str, remedy: str) -> float:
    try:
        if isinstance(value, str):
            raise ValueError
        return parse_number(value, 0, 1)
    except ValueError:
        raise UserError(
            f"{name} is {value!r:.40}; it must be a number from 0 to 1; {remedy}."
        ) from None
