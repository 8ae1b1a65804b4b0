"""Annotated images that a model is calibrated on: which ones, of which classes, in which units."""

import os
from typing import Dict, List, NamedTuple, Sequence, Tuple

from detectron2.data import MetadataCatalog

from tood.app.convert.folder import relative_path
from tood.app.guarantee.unseen import check_unseen, read_seen
from tood.app.plan.split import find_groups
from tood.app.plan.state import CALIBRATION, read_begun, read_image_root
from tood.app.trained import Trained, read_predictor
from tood.data.annotations import class_names
from tood.data.check import image_paths
from tood.data.copies import find_copies
from tood.evaluation.coco import load_content
from tood.inference.predictor import Predictor
from tood.inference.thresholds import RAW_SCORE
from tood.utils.errors import UserError
from tood.utils.suggest import suggest


class CalibrationData(NamedTuple):
    """Annotated images that a model has not seen."""

    source: str  # as typed, or the file of the training
    name: str  # registered
    content: Dict  # annotations
    paths: List[str]
    group: str  # regular expression
    groups: List[List[int]]  # indices of the images of each unit
    notes: List[str]  # on what could not be checked


def read_calibration_data(
    trained: Trained, data: str, group: str, options: Sequence[str]
) -> Tuple[Predictor, CalibrationData]:
    """Return a model that finds detections from ``RAW_SCORE`` on, and its calibration data.

    Args:
        data: default: the part that ``tood train --calibration-share`` has split off.
        group: regular expression; default: that of the training, for its part.
        options: overrides of the config, keys and values in turn.

    Raises:
        UserError: for data that do not exist or cannot be used, and images that the model has seen.
    """
    data, group, root = (data, group, "") if data else _find_part(trained, group)
    predictor, _ = read_predictor(trained, data, options, RAW_SCORE, writes=False)
    name = predictor.options.data.test[0]
    metadata = MetadataCatalog.get(name)
    content, image_root = load_content(name, metadata), metadata.get("image_root", "")
    _check_classes(class_names(content), predictor.class_names, data)
    paths = image_paths(content["images"], image_root)
    notes = check_unseen(paths, read_seen(trained), predictor.options.weights)
    groups = group_images(content, image_root, group, root)
    return predictor, CalibrationData(data, name, content, paths, group, groups, notes)


def _find_part(trained: Trained, group: str) -> Tuple[str, str, str]:
    """Return the data that a training has drawn, and the expression and folder of its groups."""
    path = os.path.join(trained.folder, CALIBRATION)
    if not os.path.isfile(path):
        raise UserError(
            f"There are no calibration data in {trained.folder}; name annotated images that the "
            "model has not seen with --calibration-data, or keep some with tood train "
            "--calibration-share 0.2."
        )
    begun = read_begun(trained.folder)
    group = group or (begun.group if begun else "")
    return path, group, read_image_root(trained.folder)


def _check_classes(names: Sequence[str], known: Sequence[str], data: str) -> None:
    """
    Raises:
        UserError: for a class that the model does not have: others would take its place.
    """
    if list(known) == [str(i) for i in range(len(known))]:  # the model does not name them
        return
    for name in names:
        if name not in known:
            hint = suggest(name, known) or f"; its classes are {', '.join(known)}."
            raise UserError(f"{data} has the class {name!r}, which the model does not have{hint}")


def group_images(content: Dict, image_root: str, group: str, root: str = "") -> List[List[int]]:
    """Return the indices of the images of each unit: copies of an image, and images whose names
    share the match of an expression.

    Args:
        root: folder that names are relative to for the expression; default: as they are.

    Raises:
        UserError: for an expression that cannot be used, or that no name matches.
    """
    names = [x["file_name"] for x in content["images"]]
    paths = image_paths(content["images"], image_root)
    if root:
        root = os.path.realpath(root)
        names = [relative_path(os.path.realpath(x), root) for x in paths]
    return find_groups(names, find_copies(paths), group)
