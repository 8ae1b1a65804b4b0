"""Calibrate scores: what share of detections of a score is right, measured on annotated images that
the model has not seen. The curves, and what a watch over new images compares them with, are written
beside the weights.
"""

import dataclasses
import datetime
import math
import os
from typing import Dict, List, NamedTuple, Sequence, Tuple, Union

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from tabulate import tabulate
from tqdm import tqdm

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.app.guarantee.data import CalibrationData, read_calibration_data
from tood.app.guarantee.scores import (
    MIN_OWN,
    POOLED,
    Detections,
    Errors,
    Estimate,
    Fit,
    cross_fit,
    fit_classes,
    import_scipy,
    list_detections,
    measure_errors,
)
from tood.app.report.matching import make_table
from tood.app.trained import find_trained
from tood.checkpoint.identity import IDENTITY, hash_data, make_identity
from tood.data.images import read_bgr
from tood.inference.calibration import find_calibration
from tood.inference.drift import STATISTICS, measure
from tood.inference.predictor import Predictor
from tood.inference.thresholds import RAW_SCORE, parse_threshold
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError
from tood.utils.files import write_json

MIN_GROUPS = 2  # of images, for errors on images that a curve has not seen
ERRORS = ("D-ECE", "LaECE_0")


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A calibration that was written; ``str(calibrated)`` is its errors and classes."""

    path: str
    errors: Dict[str, Errors]  # "D-ECE" and "LaECE_0", of images that the curves have not seen
    summary: Dict = dataclasses.field(repr=False)  # content of the file
    text: str = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return f"{self.text}\nWritten: {self.path}"


class Material(NamedTuple):
    """Detections in calibration data, and what they depend on."""

    predictor: Predictor
    images: CalibrationData
    detections: List[Dict]  # in COCO's format, of at least ``RAW_SCORE``
    thresholds: List[float]  # (K,), in use, in the order of the model's classes
    words: str  # for them
    reference: List[List[float]]  # statistics of each image


@accept_paths("model", "calibration_data", "config")
def calibrate(
    model: str,
    *,
    calibration_data: str = "",
    group: str = "",
    score_threshold: Union[None, float, str] = None,
    seed: int = 0,
    overwrite: bool = False,
    config: str = "",
    options: Sequence[str] = (),
) -> Calibrated:
    """Find what scores mean, from annotated images that the model has not seen: the share of
    detections of a score that is right, and their average IoU::

        print(tood.calibrate("output/mine", calibration_data="new_photos/"))
        tood.load("output/mine").predict("photos/a.jpg")[0].calibrated_scores

    Args:
        model: an output folder, a checkpoint, or the name of a released model. The calibration is
            written beside the weights, and is refused for others.
        calibration_data: data in any format that ``tood.convert`` reads; default: the part that
            ``tood train --calibration-share`` has split off.
        group: regular expression; images whose names share its match are drawn together, as the
            frames of a video; default: that of the training, if it has drawn the calibration data.
            Copies of one image always are.
        score_threshold: threshold of the detections that the errors are measured on, as in
            ``tood.predict``.
        seed: random seed of the folds, the bootstrap and the watch.
        overwrite: replace a calibration that already exists.
        config: file of the model's config; default: config.yaml beside the checkpoint.
        options: overrides of the config, keys and values in turn.

    Raises:
        UserError: for a file or a value that cannot be used, images of the training, and data with
            too few images or right detections.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}; it must be from 0 to {2**32 - 1}.")
    import_scipy()
    choice, trained = parse_threshold(score_threshold), find_trained(model, config)
    predictor, images = read_calibration_data(trained, calibration_data, group, options)
    path = find_calibration(predictor.describe())
    if os.path.exists(path) and not overwrite:
        raise UserError(f"{path} already exists; add --overwrite to replace it.")
    _refuse_few(images)
    thresholds = predictor.find_thresholds(choice)
    found, reference = _detect(predictor, images, thresholds.values)
    material = Material(predictor, images, found, thresholds.values, thresholds.text, reference)
    summary, errors, text = _summarize(material, seed)
    write_json(summary, path)
    return Calibrated(path, errors, summary, thresholds.add_note("\n".join([text, *images.notes])))


def _refuse_few(images: CalibrationData) -> None:
    if not images.content.get("annotations"):
        raise UserError(
            f"{images.source} has no objects, so that no detection is right; name images with "
            "annotated objects."
        )
    if len(images.groups) < MIN_GROUPS:
        raise UserError(
            f"{images.source} has {len(images.groups)} image or group of images; at least "
            f"{MIN_GROUPS} are needed to measure the calibration on images that it was not fitted "
            "to."
        )


def _detect(
    predictor: Predictor, images: CalibrationData, thresholds: Sequence[float]
) -> Tuple[List[Dict], List[List[float]]]:
    """Return the detections in COCO's format, and the statistics of each image."""
    metadata = MetadataCatalog.get(images.name)
    ids = {k: id for id, k in metadata.thing_dataset_id_to_contiguous_id.items()}
    found, reference = [], []
    for image, path in zip(images.content["images"], tqdm(images.paths, desc="detecting")):
        pixels = read_bgr(path, predictor.options.bit_depth)
        (instances,) = predictor.find_all([pixels])
        reference.append(measure(instances, pixels, thresholds))
        for x in instances_to_coco_json(instances, image["id"]):
            found.append({**x, "category_id": ids[x["category_id"]]})
    return found, reference


def _summarize(material: Material, seed: int) -> Tuple[Dict, Dict[str, Errors], str]:
    """Return the content of the file, the errors, and both as text."""
    predictor, content = material.predictor, material.images.content
    data = material.images.source
    table = make_table(content, material.detections, data)
    # Images of a table are in the order of their ids.
    index = {image_id: i for i, image_id in enumerate(table.image_ids)}
    images = content["images"]
    groups = [[index[images[i]["id"]] for i in members] for members in material.images.groups]
    detections = list_detections(table, groups)
    if detections.right.sum() < MIN_OWN:
        raise UserError(
            f"{detections.right.sum()} detections in {data} are right; at least {MIN_OWN} are "
            "needed: name more annotated images."
        )
    fits = dict(zip(table.class_names, fit_classes(detections)))
    limits = dict(zip(predictor.class_names, material.thresholds))
    lowest = np.array([limits[name] for name in table.class_names])
    errors = compare_errors(detections, lowest, seed)
    rows = [
        _describe_class(detections, k, name, fits[name], limits[name])
        for k, name in enumerate(table.class_names)
    ]
    weights = predictor.describe().compute_hash()
    summary = {
        IDENTITY: make_identity(weights=weights, data=hash_data(content)),
        "data": data,
        "date": datetime.date.today().isoformat(),
        "settings": predictor.settings,
        "num_images": len(images),
        "num_groups": len(groups),
        "errors": {
            name: {key: x._asdict() for key, x in error._asdict().items()}
            for name, error in errors.items()
        },
        "classes": rows,
        "reference": {"statistics": STATISTICS, "values": material.reference, "seed": seed},
    }
    return summary, errors, _format(summary, errors, material.words)


def compare_errors(detections: Detections, lowest: np.ndarray, seed: int) -> Dict[str, Errors]:
    """Return D-ECE and LaECE_0 of the detections of at least the thresholds, in classes with
    objects, before and after a calibration by other images.

    Args:
        lowest: (K,), thresholds of the raw scores.
        seed: random seed of the folds and the bootstrap.
    """
    values = cross_fit(detections, seed)
    kept = detections.scores >= lowest[detections.classes]
    # No detection of a class without objects can be right.
    kept &= detections.has_objects[detections.classes] & ~np.isnan(values["precision"])
    shown = detections.select(kept)
    before = shown.scores.clip(0, 1)
    return {
        name: measure_errors(shown, before, values[key][kept], by_iou=key == "iou", seed=seed)
        for name, key in zip(ERRORS, ("precision", "iou"))
    }


def _describe_class(
    detections: Detections, k: int, name: str, fit: Fit, threshold: float
) -> Dict[str, object]:
    mine = detections.classes == k
    return {
        "name": name,
        "score_threshold": threshold,
        "detections": int(mine.sum()),
        "right": int((mine & detections.right).sum()),
        "has_objects": bool(detections.has_objects[k]),
        "method": fit.method,
        **{key: getattr(fit, key).as_values() for key in ("precision", "iou")},
    }


def _format(summary: Dict, errors: Dict[str, Errors], words: str) -> str:
    rows = [
        (x["name"], x["detections"], x["right"], x["method"], *_list_values(x))
        for x in summary["classes"]
    ]
    heads = ("class", "detections", "right", "curve", "0.3 means", "0.6 means", "0.9 means")
    notes = [
        f"{x['name']} {'has few right detections' if x['has_objects'] else 'has no objects'} in "
        "these data: its scores are calibrated by the curve of all classes with objects."
        for x in summary["classes"]
        if x["method"] == POOLED
    ]
    measured = [
        (name, *(_format_estimate(x) for x in (error.before, error.after, error.fall)))
        for name, error in errors.items()
    ]
    return "\n".join(
        [
            f"{summary['num_images']} images, raw detections of at least {RAW_SCORE}:",
            tabulate(rows, heads, floatfmt=".2f"),
            *notes,
            f"Errors of detections {words}, on images that the curves have not seen, with 95 % "
            "intervals over images:",
            tabulate(measured, ("", "raw scores", "calibrated", "fall")),
        ]
    )


def _list_values(row: Dict) -> List[float]:
    curve = row["precision"]
    return np.interp((0.3, 0.6, 0.9), curve["scores"], curve["values"]).tolist()


def _format_estimate(x: Estimate) -> str:
    if math.isnan(x.value):
        return "no detections"
    return f"{x.value:.3f} ({x.low:.3f} to {x.high:.3f})"
