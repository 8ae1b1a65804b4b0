"""Find the score threshold that misses at most a share of the objects, with a guarantee."""

import datetime
import os
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.evaluation import inference_on_dataset

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.app.guarantee.certify import (
    Promise,
    certify,
    describe,
    is_near_refusal,
    trace_curve,
)
from tood.app.guarantee.data import group_images, read_calibration_data
from tood.app.guarantee.misses import Outcome, find_outcome
from tood.app.report.plots import draw_guarantee
from tood.app.report.subject import read_data, read_results
from tood.app.trained import Trained, find_trained, name_data
from tood.checkpoint.identity import (
    IDENTITY,
    check_same_data,
    hash_data,
    hash_weights,
    make_identity,
    read_identity,
)
from tood.evaluation.coco import DetectionCollector
from tood.inference.thresholds import GUARANTEE
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError
from tood.utils.files import check_folder, choose_output, refuse_existing, write_json, write_whole

NEAR = (
    "Even if all its detections count, the detector misses nearly as much as is promised: other "
    "images like these might certify nothing, and the average is over these choices, too. Promise "
    "less, or use --confidence."
)
# Of a Certificate; None if each class has its own threshold.
THRESHOLD_FIELDS = (
    *("score_threshold", "empirical_miss_rate", "bound", "false_per_image", "precision"),
    "images_needed",
)
SUMMARY, CURVE = os.path.basename(GUARANTEE), "guarantee.png"


@dataclass(frozen=True)
class Guarantee:
    """A threshold with a guarantee, or the reason why there is none; ``str(guarantee)`` says it."""

    folder: str
    summary: Dict = field(repr=False)  # content of guarantee.json
    hint: str = field(default="", repr=False)  # on how to use it

    @property
    def certifiable(self) -> bool:
        """True if there is a threshold; of each class, if they are apart."""
        return self.summary["certifiable"]

    @property
    def score_threshold(self) -> Optional[float]:
        """None if no threshold is certifiable, or each class has its own."""
        return self.summary["score_threshold"]

    @property
    def score_thresholds(self) -> Dict[str, Optional[float]]:
        """Threshold of each class by its name, with ``per_class``; otherwise empty."""
        return {x["name"]: x["score_threshold"] for x in self.summary["classes"]}

    def __str__(self) -> str:
        path = os.path.join(self.folder, SUMMARY)
        lines = [*self.summary["sentences"], *self.summary["notes"], f"Written: {path}"]
        return "\n".join([*lines, self.hint] if self.hint else lines)


class Calibration(NamedTuple):
    """Detections in calibration data."""

    name: str  # of the data
    content: Dict  # annotations
    detections: List[Dict]
    source: str  # of the detections, for errors
    groups: List[List[int]]  # indices of the images of each unit
    weights: str = ""  # hash, if it is known
    settings: Optional[Dict] = None  # that detections depend on; None if they are not known
    notes: Sequence[str] = ()  # on what could not be checked
    group: str = ""  # regular expression


@accept_paths("model", "calibration_data", "val_data", "results", "output", "config")
def guarantee(
    model: str = "",
    *,
    miss_rate: float,
    calibration_data: str = "",
    confidence: Optional[float] = None,
    per_class: bool = False,
    group: str = "",
    results: str = "",
    val_data: str = "",
    output: str = "",
    overwrite: bool = False,
    config: str = "",
    options: Sequence[str] = (),
) -> Guarantee:
    """Find the highest score threshold at which at most a share of the objects of an image is
    missed on average, from annotated images that the detector has not seen::

        found = tood.guarantee("output/mine", calibration_data="new_photos/", miss_rate=0.1)
        print(found, found.score_threshold)
        tood.predict("output/mine", "photos/", score_threshold="guaranteed")

    Args:
        model: an output folder, a checkpoint, or the name of a released model.
        miss_rate: share of the objects of an image, between 0 and 1.
        calibration_data: a folder or ANNOTATIONS.json:IMAGES; default: the part that
            ``tood train --calibration-share`` has split off.
        confidence: probability that the promise is kept by the threshold that is found, e.g. 0.95;
            default: it is kept on average over the choice of the calibration images.
        per_class: a threshold for each class, over the images that have objects of it.
        group: regular expression; images whose names share its match are one unit, as the frames
            of a video; default: that of the training, if it has drawn the calibration data.
            Copies of one image always are one unit.
        results: a JSON file of the detections of any detector in COCO's format, instead of a
            model.
        val_data: the data that the results are of.
        output: folder of guarantee.json and its curve; default: "guarantee" in the model's output
            folder, with a number if it exists. Thresholds are read from "guarantee".
        overwrite: replace a guarantee that already exists.
        config: file of the model's config; default: config.yaml beside the checkpoint.
        options: overrides of the config, keys and values in turn.

    Returns:
        the guarantee; that nothing can be certified is a result as well.

    Raises:
        UserError: for a file or a value that cannot be used, and data without objects.
    """
    _check_values(miss_rate, confidence)
    if bool(model) == bool(results):
        raise UserError("Name either a model, or a file of detections with --results.")
    if results and (calibration_data or not (val_data and output)):
        raise UserError("--results needs --val-data, the annotations, and --output.")
    if results and (config or options):
        raise UserError("--results needs no config; omit --config-file and options of the config.")
    if model and val_data:
        raise UserError("--val-data is for --results; use --calibration-data with a model.")
    trained, hint = find_trained(model, config) if model else None, ""
    if trained:
        default = os.path.join(_find_home(trained, options), os.path.dirname(GUARANTEE))
        output = choose_output(output, default, overwrite)
        if os.path.realpath(output) != os.path.realpath(default):
            hint = f"--score-threshold guaranteed uses that in {default}, not this one."
    _check_output(output, overwrite)
    if trained:
        found = _detect(trained, calibration_data, options, group)
    else:
        found = _read_results(results, val_data, group)
    summary, png = _summarize(found, miss_rate, confidence, per_class)
    write_whole(os.path.join(output, CURVE), png)
    write_json(summary, os.path.join(output, SUMMARY))
    return Guarantee(output, summary, hint)


def _find_home(trained: Trained, options: Sequence[str]) -> str:
    """Return the folder of the weights, in which predictions look for their guarantee."""
    typed = dict(zip(options[::2], options[1::2])).get("MODEL.WEIGHTS", "")
    return os.path.dirname(typed) or "." if os.path.isfile(typed) else trained.folder


def _check_values(miss_rate: float, confidence: Optional[float]) -> None:
    if not 0 < miss_rate < 1:
        hint = "; no number of images can show that nothing is ever missed" * (miss_rate == 0)
        raise UserError(f"--miss-rate is {miss_rate:g}; it must be between 0 and 1, as 0.1{hint}.")
    if confidence is not None and not 0 < confidence < 1:
        raise UserError(f"--confidence is {confidence:g}; it must be between 0 and 1, as 0.95.")


def _check_output(folder: str, overwrite: bool) -> None:
    check_folder(folder, "--output")
    refuse_existing(folder, (SUMMARY, CURVE), overwrite)


def _read_results(results: str, val_data: str, group: str) -> Calibration:
    content, image_root, _ = read_data(val_data)
    unknown = [" ".join(x.split()) for x in check_same_data(results, content)]
    weights = read_identity(results).get("weights", "")
    name = name_data(val_data) or val_data
    detections = read_results(results)
    notes = ["Not checked: the detector may not have been trained on any of these images."]
    notes += unknown
    groups = group_images(content, image_root, group)
    return Calibration(
        name, content, detections, results, groups, weights=weights, notes=notes, group=group
    )


def _detect(trained: Trained, data: str, options: Sequence[str], group: str) -> Calibration:
    """Detect in the calibration data all that the model finds from ``RAW_SCORE`` on."""
    predictor, images = read_calibration_data(trained, data, group, options)
    loader = predictor.build_test_loader(images.name)
    with torch.no_grad():
        collector = DetectionCollector(images.name)
        found = inference_on_dataset(predictor.detector, loader, collector)
    return Calibration(
        name=name_data(images.source) or images.source,
        content=images.content,
        detections=found["detections"],
        source=predictor.options.weights,
        groups=images.groups,
        weights=hash_weights(predictor.model.state_dict()),
        settings=predictor.settings,
        notes=images.notes,
        group=images.group,
    )


def _summarize(
    found: Calibration, miss_rate: float, confidence: Optional[float], per_class: bool
) -> Tuple[Dict, bytes]:
    """Return the content of guarantee.json, and the drawing of the curve."""
    content, promise = found.content, Promise(miss_rate, confidence)
    promise = promise._replace(unit="group") if found.group else promise
    outcome = find_outcome(content, found.detections, found.groups, found.source)
    if not len(outcome.scores):
        raise UserError(
            f"The calibration data ({found.name}) have no objects, so that none can be missed; "
            "name images with annotated objects."
        )
    pooled = certify(outcome, promise)
    curve = trace_curve(outcome, promise)
    classes = _certify_classes(outcome, promise) if per_class else []
    certificate = pooled._asdict()
    if per_class:
        certifiable = all(x["certifiable"] for x in classes)
        certificate.update(dict.fromkeys(THRESHOLD_FIELDS), certifiable=certifiable)
    sentences = [x["sentence"] for x in classes] or [describe(pooled, promise)]
    notes = [*found.notes, *_list_notes(outcome, found.group)]
    if not per_class and is_near_refusal(outcome, promise):
        notes.append(NEAR)
    summary = {
        **certificate,
        **promise._asdict(),
        "group": found.group,
        "num_images": outcome.num_images,
        "num_images_with_objects": len(
            {x["image_id"] for x in content["annotations"] if not x["iscrowd"]}
        ),
        "classes": classes,
        "sentences": sentences,
        "notes": notes,
        "curve": curve,
        "data": found.name,
        "date": datetime.date.today().isoformat(),
        "settings": found.settings,
        IDENTITY: make_identity(weights=found.weights, data=hash_data(content)),
    }
    return summary, draw_guarantee(curve, promise.miss_rate, pooled.score_threshold)


def _certify_classes(outcome: Outcome, promise: Promise) -> List[Dict]:
    rows = []
    for k, name in enumerate(outcome.class_names):
        found = certify(outcome.select_class(k), promise)
        rows.append({"name": name, **found._asdict(), "sentence": describe(found, promise, name)})
    return rows


def _list_notes(outcome: Outcome, group: str) -> List[str]:
    notes, n = [], outcome.num_units
    if n < outcome.num_images and not group:
        number = outcome.num_images - n
        notes.append(f"{number} copies of images count together with their originals.")
    known = set(outcome.classes.tolist())
    unknown = [name for k, name in enumerate(outcome.class_names) if k not in known]
    if unknown:
        notes.append(
            f"Nothing is said of classes without objects in these images: {', '.join(unknown)}."
        )
    empty = n - len(set(outcome.units.tolist()))
    if empty:
        notes.append(f"{empty} of the {n} have no objects, and count as without a miss.")
    return notes
