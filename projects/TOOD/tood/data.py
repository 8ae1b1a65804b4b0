"""
Data sets by name or by file: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` may hold beside
Detectron2's registered names, and the checks that come before a long run.

A user's own data set is an entry ``ANNOTATIONS.json`` or ``ANNOTATIONS.json:IMAGES``, a file in
COCO's instances format and the folder of its images (the folder of the file if left out).
"""

import difflib
import json
import logging
import math
import os
import re
from collections import Counter
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .errors import UserError

__all__ = ["CheckedMapper", "load_own_data", "parse_own_data", "prepare_datasets"]

logger = logging.getLogger(__name__)


class OwnData(NamedTuple):
    """A COCO-format data set that is named by its files."""

    json_file: str
    image_root: str


def parse_own_data(entry: str) -> Optional[OwnData]:
    """
    Args:
        entry: of ``DATASETS.TRAIN`` or ``DATASETS.TEST``.

    Returns:
        its files, or None for a registered name.
    """
    match = re.fullmatch(r"(.+\.json)(?::(.+))?", entry)
    if match is None:
        return None
    json_file, image_root = match.groups()
    return OwnData(json_file, image_root or os.path.dirname(json_file) or ".")


def prepare_datasets(cfg, *, training: bool) -> None:
    """
    Register the own data sets of a config, and check all its data sets as far as their
    annotation files tell.

    Args:
        cfg: its ``DATASETS`` and ``MODEL.TOOD.NUM_CLASSES`` are read.
        training: whether ``DATASETS.TRAIN`` is going to be used, too.

    Raises:
        UserError: for no data set at all, an unknown name, a missing or unusable file, no
            objects to train on, or a number of classes that is not the config's.
    """
    if training and not cfg.DATASETS.TRAIN:
        raise UserError(
            "No training data: name it with --train-data ANNOTATIONS.json:IMAGES or in "
            "DATASETS.TRAIN."
        )
    if not training and not cfg.DATASETS.TEST:
        raise UserError(
            "No data to evaluate on: name it with --val-data ANNOTATIONS.json:IMAGES or in "
            "DATASETS.TEST."
        )
    train = list(cfg.DATASETS.TRAIN) if training else []
    for entry in dict.fromkeys(train + list(cfg.DATASETS.TEST)):
        own_data = parse_own_data(entry)
        if own_data is None:
            _check_registered(entry)
        else:
            _register(entry, own_data, to_train=entry in train, to_test=entry in cfg.DATASETS.TEST)
        _check_num_classes(entry, cfg.MODEL.TOOD.NUM_CLASSES)


def load_own_data(json_file: str, image_root: str, name: Optional[str] = None) -> List[Dict]:
    """
    Detectron2's ``load_coco_json`` with checks.

    Boxes without width or height are left out with a warning, as Detectron2 leaves out boxes
    that an augmentation emptied.

    Returns:
        dicts in Detectron2's standard format.

    Raises:
        UserError: for an unusable file, or images that are not there.
    """
    records = load_coco_json(json_file, image_root, name)
    missing = [r["file_name"] for r in records if not os.path.isfile(r["file_name"])]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(records)} images of {json_file} are not there, for example "
            f"{missing[0]}; name their folder behind the file: {json_file}:IMAGES."
        )
    dropped = 0
    for record in records:
        boxes = record["annotations"]
        record["annotations"] = [a for a in boxes if a["bbox"][2] > 0 and a["bbox"][3] > 0]
        dropped += len(boxes) - len(record["annotations"])
    if dropped:
        logger.warning(
            f"{json_file}: left out {dropped} annotations whose box has no width or no height."
        )
    return records


class CheckedMapper:
    """A dataset mapper that names the image it could not read, instead of a traceback."""

    def __init__(self, mapper: Callable[[Dict], Dict]):
        self.mapper = mapper

    @classmethod
    def from_config(cls, cfg, is_train: bool) -> "CheckedMapper":
        return cls(DatasetMapper(cfg, is_train))

    def __call__(self, dataset_dict: Dict) -> Dict:
        try:
            return self.mapper(dataset_dict)
        # What Pillow raises for broken files, and Detectron2 for images of another size.
        except (OSError, SyntaxError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"The image {dataset_dict['file_name']} cannot be used ({reason}); repair it, or "
                "take it out of the annotation file."
            ) from error


def _register(name: str, own_data: OwnData, *, to_train: bool, to_test: bool) -> None:
    annotations = _read_annotations(own_data.json_file)
    _check_annotations(annotations, own_data.json_file, to_test=to_test)
    if to_train and not annotations["annotations"]:
        raise UserError(
            f"{own_data.json_file} has no annotations; there is nothing to train on in it."
        )
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: load_own_data(*own_data, name))
    categories = sorted(annotations["categories"], key=lambda c: c["id"])
    MetadataCatalog.get(name).set(
        json_file=own_data.json_file,
        image_root=own_data.image_root,
        evaluator_type="coco",
        thing_classes=[c["name"] for c in categories],
    )


def _read_annotations(json_file: str) -> Dict:
    try:
        with open(json_file, encoding="utf-8") as f:
            annotations = json.load(f)
    except OSError as error:
        raise UserError(
            f"The annotation file {json_file} cannot be read ({error.strerror})."
        ) from error
    except ValueError as error:
        raise UserError(f"The annotation file {json_file} is not JSON ({error}).") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(annotations, dict) or not all(
        isinstance(annotations.get(key), list) for key in keys
    ):
        raise UserError(
            f"{json_file} is not in COCO's instances format: it must hold the lists "
            f"{', '.join(keys)}."
        )
    return annotations


def _check_annotations(annotations: Dict, json_file: str, *, to_test: bool) -> None:
    """Raise UserError for the first thing in an annotation file that cannot be used."""
    for key in ("images", "categories"):
        if not annotations[key]:
            raise UserError(f"{json_file} lists no {key}; the data set is empty.")
    _check_keys(annotations["images"], ("id", "file_name", "width", "height"), json_file, "image")
    _check_keys(annotations["categories"], ("id", "name"), json_file, "category")
    # pycocotools evaluates with the last two.
    needed = ("id", "image_id", "category_id", "bbox") + (("area", "iscrowd") if to_test else ())
    _check_keys(annotations["annotations"], needed, json_file, "annotation")

    for what, records in (("category", "categories"), ("image", "images")):
        known = Counter(record["id"] for record in annotations[records])
        twice = [i for i, count in known.items() if count > 1]
        if twice:
            raise UserError(f"{json_file} has two {records} with the id {twice[0]}.")
        for annotation in annotations["annotations"]:
            if annotation[f"{what}_id"] not in known:
                raise UserError(
                    f"{json_file}: annotation {annotation['id']} has {what}_id "
                    f"{annotation[f'{what}_id']}, which is not among its {records}."
                )
    for annotation in annotations["annotations"]:
        if not _is_box(annotation["bbox"]):
            raise UserError(
                f"{json_file}: annotation {annotation['id']} has the bbox {annotation['bbox']}; "
                "it must be four numbers, [x, y, width, height]."
            )


def _check_keys(records: List, keys: Iterable[str], json_file: str, what: str) -> None:
    for i, record in enumerate(records):
        for key in keys:
            if not isinstance(record, dict) or key not in record:
                raise UserError(f"{json_file}: {what} number {i} has no {key!r}.")


def _is_box(bbox) -> bool:
    return (
        isinstance(bbox, list)
        and len(bbox) == 4
        and all(isinstance(x, (int, float)) and math.isfinite(x) for x in bbox)
    )


def _check_registered(name: str) -> None:
    if name not in DatasetCatalog.list():
        close = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"There is no data set named {name!r}; {hint}A data set of your own is named by its "
            "file: ANNOTATIONS.json:IMAGES."
        )
    json_file = MetadataCatalog.get(name).get("json_file")
    if json_file and "://" not in json_file and not os.path.isfile(json_file):
        raise UserError(
            f"The data set {name} needs {json_file}, which is not there; set the environment "
            "variable DETECTRON2_DATASETS to the folder that holds it, or name other data with "
            "--train-data and --val-data."
        )


def _check_num_classes(name: str, num_classes: int) -> None:
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        DatasetCatalog.get(name)  # a set registered in Python learns its classes by loading
    classes = metadata.get("thing_classes") or []
    if len(classes) != num_classes:
        raise UserError(
            f"The data set {name} has {len(classes)} classes, but MODEL.TOOD.NUM_CLASSES is "
            f"{num_classes}; set it to {len(classes)}."
        )
