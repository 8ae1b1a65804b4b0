"""The score thresholds of detections that are counted, drawn and written: one decision for all."""

import json
import os
import shlex
from typing import Callable, Dict, List, NamedTuple, Sequence, Union

from tood.utils.errors import UserError
from tood.utils.reading import MAX_TEXT, guard_reading, parse_number, read_regular

SCORE_THRESHOLD = 0.3  # if there is no report
FROM_REPORT, FROM_CONFIG, GUARANTEED = "from-report", "from-config", "guaranteed"
CHOICES = (FROM_REPORT, FROM_CONFIG, GUARANTEED)
GUARANTEE = os.path.join("guarantee", "guarantee.json")  # in the folder of a model
RAW_SCORE = 0.001  # of the detections that guarantees and curves are found from
MAX_LISTED = 8  # classes of which a sentence names the threshold

Choice = Union[None, float, str, Sequence[float]]


class Thresholds(NamedTuple):
    """The score threshold of each class, and the words for it."""

    values: List[float]  # (K,)
    text: str  # follows the word "detections", as "of at least 0.3"
    note: str = ""  # a sentence, if those of the report cannot be used

    def add_note(self, text: str) -> str:
        """Return a text, with the note after it."""
        return f"{text}\n{self.note}" if self.note else text

    def select(self, instances):
        """Return the ``Instances`` of at least the threshold of their class."""
        limits = instances.scores.new_tensor(self.values)
        return instances[instances.scores >= limits[instances.pred_classes]]


class Model(NamedTuple):
    """Facts of a model that its thresholds depend on."""

    weights: str  # path of the checkpoint
    folder: str  # that its report may be in
    class_names: List[str]
    score_threshold: float  # of the config
    compute_hash: Callable[[], str]  # of :func:`tood.checkpoint.identity.hash_weights`
    settings: Dict[str, object] = {}  # of its predictor, which detections depend on


def choose_thresholds(choice: Choice, model: Model) -> Thresholds:
    """Return the thresholds that all commands, the predictor and exported files use: none below
    that of the model, ``MODEL.TOOD.SCORE_THRESH_TEST``, which finds nothing there.

    Args:
        choice: a number, one for each class, ``FROM_REPORT``, ``GUARANTEED``, or ``FROM_CONFIG``:
            all that the model finds. Default: those of the report, if it is on these weights, or
            ``SCORE_THRESHOLD``.

    Raises:
        UserError: for a value that is not a threshold, and for ``FROM_REPORT`` without a report,
            or ``GUARANTEED`` without a guarantee, on these weights.
    """
    number, lowest = len(model.class_names), model.score_threshold
    if choice is None:
        return _choose_default(model)
    if isinstance(choice, str) and choice == FROM_REPORT:
        values = [max(x, lowest) for x in read_thresholds(model)]
        return Thresholds(values, _describe(values, model.class_names, f"of {_report(model)} "))
    if isinstance(choice, str) and choice == GUARANTEED:
        return read_guarantee(model)
    if isinstance(choice, str) and choice == FROM_CONFIG:
        return Thresholds([0.0] * number, f"of at least {lowest:g}, as configured")
    if is_single(choice):
        value = max(_parse_number(choice), lowest)
        return Thresholds([value] * number, f"of at least {value:g}")
    if len(choice) != number:
        raise UserError(
            f"The score threshold is {choice!r:.80}; it must be a number, one for each of the "
            f'{number} classes, "{FROM_REPORT}", "{GUARANTEED}" or "{FROM_CONFIG}".'
        )
    values = [max(_parse_number(x), lowest) for x in choice]
    return Thresholds(values, _describe(values, model.class_names))


def _choose_default(model: Model) -> Thresholds:
    note = ""
    if os.path.exists(_summary(model)):
        try:
            return choose_thresholds(FROM_REPORT, model)
        except UserError as error:
            note = f"The thresholds of the report are not used: {error.sentence()}"
    return choose_thresholds(SCORE_THRESHOLD, model)._replace(note=note)


def is_single(choice: Choice) -> bool:
    """Return whether a threshold is the same for all classes."""
    is_text = isinstance(choice, (str, bytes))
    return is_text or not hasattr(choice, "__len__") or getattr(choice, "ndim", 1) == 0


def find_lowest(choice: Choice) -> float:
    """Return the lowest threshold that is chosen by a number, or that a guarantee may have; 1 if
    neither is chosen.

    Raises:
        UserError: for a value that is not a threshold.
    """
    if choice is None or (isinstance(choice, str) and choice in CHOICES):
        return RAW_SCORE if choice == GUARANTEED else 1.0
    return min(map(_parse_number, [choice] if is_single(choice) else choice), default=1.0)


def _describe(values: Sequence[float], class_names: Sequence[str], source: str = "") -> str:
    if len(values) > MAX_LISTED:
        listed = f"{min(values):.2f} to {max(values):.2f}"
    else:
        listed = ", ".join(f"{x:.2f} {name}" for x, name in zip(values, class_names))
    return f"at the thresholds {source}({listed})"


def _report(model: Model) -> str:
    return os.path.join(model.folder, "report")


def _summary(model: Model) -> str:
    return os.path.join(_report(model), "report.json")


def parse_threshold(value: Union[None, float, str]) -> Union[None, float, str]:
    """Return a score threshold, which may be text: a number, one of ``CHOICES``, or None for the
    default.

    Raises:
        UserError: for anything else.
    """
    is_name = isinstance(value, str) and value in CHOICES
    return value if value is None or is_name else _parse_number(value)


def _parse_number(value: Union[float, str]) -> float:
    try:
        return parse_number(value.item() if hasattr(value, "item") else value, 0, 1)
    except ValueError:
        raise UserError(
            f"--score-threshold is {value!s:.40}; it must be a number from 0 to 1, "
            f'"{FROM_REPORT}", "{GUARANTEED}" or "{FROM_CONFIG}".'
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


def read_thresholds(model: Model) -> List[float]:
    """Return the threshold of each class from the report of a model.

    Raises:
        UserError: if the report does not exist, or is on other weights or classes.
    """
    path, weights, class_names = _summary(model), model.weights, model.class_names
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
    if known != model.compute_hash():
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


def read_guarantee(model: Model) -> Thresholds:
    """Return the threshold of each class from the guarantee of a model, with words that say which
    guarantee it is, on how many images, and of which day.

    Raises:
        UserError: if the guarantee does not exist, is on other weights, classes or settings, or
            certifies no threshold.
    """
    path = os.path.join(model.folder, GUARANTEE)
    command = f"tood guarantee {shlex.quote(model.weights)} --miss-rate 0.1"
    if not os.path.exists(path):
        raise UserError(
            f"The guaranteed score threshold needs {path}, which does not exist; {command} writes "
            "it."
        )
    again = f"{command} --overwrite writes it again"
    found = read_summary(path, again)
    if find_weights_hash(found) != model.compute_hash():
        raise UserError(
            f"{path} is the guarantee of other weights than {model.weights}; {again}, for these."
        )
    with guard_reading(path, again):
        _check_settings(found["settings"], model.settings, path, command)
        if not found["certifiable"]:
            lacking = (x["sentence"] for x in found["classes"] if x["score_threshold"] is None)
            reason = next(lacking, found["sentences"][0])
            raise UserError(f"{path} has no threshold to use: {reason}")
        values = {x["name"]: x["score_threshold"] for x in found["classes"]}
        common, words = found["score_threshold"], _name_guarantee(found)
    names, where = model.class_names, f"{path}: the threshold"
    if values:
        limits = [_check(values.get(name), f"{where} of {name!r}", again) for name in names]
        text = _describe(limits, names)
    else:
        limits = [_check(common, where, again)] * len(names)
        text = f"of at least {limits[0]:g}"
    if min(limits) <= model.score_threshold:
        raise UserError(
            f"{where} is {min(limits):g}, but the model finds only detections above "
            f"{model.score_threshold:g}; use MODEL.TOOD.SCORE_THRESH_TEST {RAW_SCORE:g}."
        )
    return Thresholds(limits, f"{text}, {words}")


def find_difference(settings: Dict[str, object], known: Dict) -> str:
    """Return the first of a predictor's settings that differs from those in a file, with both
    values, as "INPUT.FORMAT BGR, and it is RGB here"; "" if none does. Earlier versions wrote fewer
    keys.
    """
    is_old = "INPUT.FORMAT" not in known
    settings = {key: x for key, x in settings.items() if not is_old or key in known}
    for key in {**settings, **known}:
        has, value = known.get(key, "by default"), settings.get(key, "the default")
        if settings.get(key) != known.get(key):
            return f"{key} {has}, and it is {value} here"
    return ""


def _check_settings(known: object, settings: Dict, path: str, command: str) -> None:
    if not isinstance(known, dict):
        raise UserError(
            f"{path} is the guarantee of a file of detections, of which neither NMS nor sizes are "
            f"known; {command} --overwrite writes one of the model."
        )
    different = find_difference(settings, known)
    if different:
        raise UserError(
            f"{path} is the guarantee of the model with {different}; use the same value, or "
            "calibrate with this one."
        )


def _name_guarantee(found: Dict) -> str:
    confidence = found["confidence"]
    kind = "on average" if confidence is None else f"confidence {100 * confidence:g} %"
    unit = "an image" if found["unit"] == "image" else "a group"
    each = "each class of " * bool(found["classes"])
    return (
        f"guaranteed to miss at most {100 * found['miss_rate']:g} % of the objects of {each}{unit} "
        f"({kind}; from {found['num_images']} images, {found['date']})"
    )


def _check(value: object, name: str, remedy: str) -> float:
    try:
        if isinstance(value, str):
            raise ValueError
        return parse_number(value, 0, 1)
    except ValueError:
        raise UserError(
            f"{name} is {value!r:.40}; it must be a number from 0 to 1; {remedy}."
        ) from None
