"""Advice on what to do next with a model: by rules on its training, its data and its report."""

import shlex
import textwrap
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence

from tood.app.plan.rules import (
    FEW,
    LARGEST_SIZE,
    STRIDE,
    DataStatistics,
    choose_epochs,
    choose_size,
    choose_tiles,
)
from tood.config.schedule import KEYS
from tood.utils.errors import WIDTH
from tood.utils.tiles import WHOLE, TileOptions

LOW_AP = 5.0  # below, nothing worth a look was learned
RISING = 0.05  # of AP, in a quarter of a training, as a part of it
FEW_OBJECTS = 50  # of a class
MANY = 0.25  # of the objects missed, of the detections wrong
SURE_DOUBT = 0.5  # of suspect labels
TRUSTED_AP = 20.0  # below, detections say little about labels
MOST = 4  # pieces of advice
NAMED = 5  # classes
PHOTOS = "NEW_PHOTOS"  # what a user has to replace
# What --epochs and --image-size choose.
LENGTH = [KEYS[x] for x in ("max_iter", "steps", "warmup_iters", "atss_iters")]
SIZE = [f"INPUT.{side}_SIZE_{use}" for side in ("MIN", "MAX") for use in ("TRAIN", "TEST")]


class Advice(NamedTuple):
    """One sentence, and a command that follows it, if there is one."""

    sentence: str
    command: str = ""


class History(NamedTuple):
    """A training, and the data that it was on."""

    words: Sequence[str] = ()  # that were typed: data, flag, value, ...; none if not known
    output: str = ""  # folder of another training; "" for the default
    aps: Sequence[float] = ()  # of its evaluations
    steps: int = 0
    images_per_step: int = 1
    input_size: int = 0  # shorter side in pixels; 0 if images stay as they are
    tiles: TileOptions = WHOLE
    num_images: int = 0  # or tiles, to train on; 0 if they are not known
    entry: str = ""  # the training data, as --val-data names them
    class_counts: Mapping[str, int] = {}  # objects
    statistics: Optional[DataStatistics] = None


def list_advice(
    model: str = "", history: Optional[History] = None, summary: Optional[Mapping] = None
) -> List[Advice]:
    """
    Args:
        model: name of the model in commands; "" for detections of another program.
        history: of its training, if it is known.
        summary: content of its report.json, if there is a report.

    Returns:
        the most useful first, at most ``MOST``; to export the model if there is nothing else.
    """
    found: List[Advice] = []
    if history is not None:
        found += _advise_length(history) + _advise_size(history) + _advise_classes(model, history)
    if summary is not None and summary["metrics"]["AP"]["value"] >= LOW_AP:
        found += _advise_labels(model, history, summary) + _advise_errors(model, summary)
    if not found and model:
        text = (
            "Nothing stands out. Try the model on photographs that it has not seen, or export it."
        )
        found = [Advice(text, _command("export", model, "--format onnx --output model.onnx"))]
    return found[:MOST]


def format_advice(advice: Sequence[Advice], width: int = WIDTH) -> str:
    """Return lines for a terminal; commands are not broken."""
    lines = ["What next:"] if advice else []
    for sentence, command in advice:
        lines += textwrap.wrap(
            sentence, width, initial_indent="- ", subsequent_indent="  ", break_long_words=False
        )
        lines += [f"    {command}"] if command else []
    return "\n".join(lines)


def list_aps(records: Iterable[Mapping]) -> List[float]:
    """Return the AP of each evaluation, of the weights or their average, if that is higher.

    Args:
        records: lines of Detectron2's metrics.json.
    """
    found: Dict[int, float] = {}
    for record in records:
        values = [record.get(key) for key in ("bbox/AP", "ema/bbox/AP")]
        values = [x for x in values if isinstance(x, (int, float)) and x == x]
        if values and isinstance(record.get("iteration"), int):
            found[record["iteration"]] = max(values)
    return [AP for _, AP in sorted(found.items())]


def count_shown(summary: Mapping) -> int:
    """Return the number of detections at the thresholds: the right ones, and those with errors."""
    counts = {x["kind"]: x["count_above"] for x in summary["errors"]}
    return summary["data"]["objects"] - 2 * counts["missed"] + sum(counts.values())


def _command(name: str, model: str, rest: str) -> str:
    return f"tood {name} {shlex.quote(model)} {rest}" if model else ""


def _train_again(history: History, *changes: str, instead_of: Sequence[str] = ()) -> str:
    """Return the command of the same training with changes, words that replace those of the same
    flag, and of flags and keys that ask for the same.
    """
    if not history.words:
        return ""
    gone = {"--output", *changes[::2], *instead_of}
    data, *rest = history.words
    pairs = [pair for pair in zip(rest[::2], rest[1::2]) if pair[0] not in gone]
    flags = [x for pair in pairs if pair[0].startswith("-") for x in pair]
    keys = [x for pair in pairs if not pair[0].startswith("-") for x in pair]
    output = ["--output", history.output] if history.output else []
    new = [list(changes), []] if changes[0].startswith("-") else [[], list(changes)]
    words = ["tood", "train", data, *flags, *output, *new[0], *keys, *new[1]]
    return " ".join(map(shlex.quote, words))


def _advise_length(history: History) -> List[Advice]:
    aps, steps = history.aps, history.steps
    if not aps or not history.num_images:
        return []
    rule = choose_epochs(history.num_images)
    done = steps * history.images_per_step / history.num_images
    # Of few evaluations, the last two are further apart.
    enough = RISING * max(4 / len(aps), 1) * aps[-1]
    is_rising = len(aps) > 1 and aps[-1] - aps[-2] > enough
    epochs = "--epochs", f"{max(rule, 2 * done):.0f}"
    if max(aps) < LOW_AP and (done < 0.9 * rule or is_rising):
        text = f"The model has learned little in {steps} steps (AP {max(aps):.1f}): train longer."
        return [Advice(text, _train_again(history, *epochs, instead_of=LENGTH))]
    if done < FEW * rule:
        usual = f"{rule * history.num_images / history.images_per_step:.0f}"
        text = f"The training was short, {steps} steps where {usual} are usual: train longer."
        return [Advice(text, _train_again(history, *epochs, instead_of=LENGTH))]
    if max(aps) < LOW_AP:
        text = f"The model has learned little (AP {max(aps):.1f}): are the boxes and classes right?"
        data = [shlex.quote(x) for x in history.words[:1]]
        return [Advice(text, f"tood check {data[0]} --output boxes.png" if data else "")]
    if is_rising:
        text = (
            f"AP was still rising when the training ended (from {aps[-2]:.1f} to {aps[-1]:.1f}): "
            "train longer."
        )
        return [Advice(text, _train_again(history, *epochs, instead_of=LENGTH))]
    return []


def _advise_size(history: History) -> List[Advice]:
    statistics, size = history.statistics, history.input_size
    small = statistics.small_object * size if statistics and size else STRIDE
    if small >= STRIDE:
        return []
    text = f"A tenth of the objects measure less than {small:.1f} pixels in the network's input"
    tiles = choose_tiles(statistics)
    if tiles.size and not history.tiles.size:
        keys = ("INPUT.TILES.SIZE", tiles.size, "INPUT.TILES.OVERLAP", tiles.overlap)
        command = _train_again(history, *map(str, keys), instead_of=SIZE)
        return [Advice(f"{text}: train on tiles.", command)]
    larger = choose_size(statistics, 2 * LARGEST_SIZE, tiled=history.tiles.size > 0).shorter
    if larger <= size:
        return []
    command = _train_again(history, "--image-size", str(larger), instead_of=SIZE)
    return [Advice(f"{text}: train on larger images.", command)]


def _advise_classes(model: str, history: History) -> List[Advice]:
    few = [(number, name) for name, number in history.class_counts.items() if number < FEW_OBJECTS]
    few = sorted(few)
    if not few:
        return []
    named = ", ".join(f"{name} ({number})" for number, name in few[:NAMED])
    named += f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
    text = f"Few objects to learn from: {named}. Annotate more, if possible {FEW_OBJECTS} of each"
    if max(history.aps, default=0.0) < LOW_AP:
        return [Advice(f"{text} class.")]
    text += " class; the model can draw the first boxes for you to correct."
    return [Advice(text, _command("predict", model, f"{PHOTOS} --save-as labelme --output drafts"))]


def _advise_labels(model: str, history: Optional[History], summary: Mapping) -> List[Advice]:
    number = sum(x["doubt"] >= SURE_DOUBT for x in summary.get("suspects", ()))
    if not number or summary["metrics"]["AP"]["value"] < TRUSTED_AP:
        return []
    labels = "1 label" if number == 1 else f"{number} labels"
    text = f"{labels} may be wrong or missing: look at “Suspect labels” in the report"
    if history is None or not history.entry:
        return [Advice(f"{text}.")]
    rest = f"--val-data {shlex.quote(history.entry)} --output labels"
    return [Advice(f"{text}, and at those to train on.", _command("report", model, rest))]


def _advise_errors(model: str, summary: Mapping) -> List[Advice]:
    counts = {x["kind"]: x["count_above"] for x in summary["errors"]}
    objects, missed, false = summary["data"]["objects"], counts["missed"], counts["background"]
    shown = count_shown(summary)
    threshold = summary["all_classes"]["threshold"]
    found = []
    if missed > MANY * objects:
        text = (
            f"{missed} of {objects} objects are missed: add photographs like those under “Missed "
            "objects”. A lower threshold finds more, with more false alarms."
        )
        rest = f"{PHOTOS} --score-threshold {threshold / 2:.2f}"
        # A poor model finds anything at a lower threshold.
        useful = model if summary["metrics"]["AP"]["value"] >= TRUSTED_AP else ""
        found.append((missed / objects, Advice(text, _command("predict", useful, rest))))
    if false > MANY * shown:
        text = (
            f"{false} of {shown} detections are false alarms: add photographs of such places, "
            "without boxes. A higher threshold avoids them, and misses more."
        )
        rest = f"{PHOTOS} --score-threshold {(1 + threshold) / 2:.2f}"
        found.append((false / shown, Advice(text, _command("predict", model, rest))))
    return [advice for _, advice in sorted(found, key=lambda x: -x[0])]
