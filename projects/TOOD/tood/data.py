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
from typing import Callable, Dict, List, NamedTuple, Optional

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from .errors import UserError

__all__ = ["CheckedMapper", "has_size", "load_own_data", "parse_own_data", "prepare_datasets"]

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
    Register the own data sets of a config, and check all its data sets before a long run: all
    that their files tell, short of reading the images.

    Args:
        cfg: its ``DATASETS`` and ``MODEL.TOOD.NUM_CLASSES`` are read.
        training: whether ``DATASETS.TRAIN`` is going to be used, too.

    Raises:
        UserError: for no data set at all, an unknown name, a missing or unusable file, no
            objects to train on, or classes that are not the config's or not those of the others.
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
    entries = list(dict.fromkeys(train + list(cfg.DATASETS.TEST)))
    for entry in entries:
        own_data = parse_own_data(entry)
        if own_data is None:
            _check_registered(entry)
        else:
            _register(entry, own_data, to_train=entry in train, to_test=entry in cfg.DATASETS.TEST)
    _check_classes(entries, cfg.MODEL.TOOD.NUM_CLASSES)


def load_own_data(json_file: str, image_root: str, name: Optional[str] = None) -> List[Dict]:
    """
    Detectron2's ``load_coco_json`` without the boxes that have no width or no height, which it
    warns of.

    Returns:
        dicts in Detectron2's standard format.
    """
    records = load_coco_json(json_file, image_root, name)
    left_out = 0
    for record in records:
        annotations = record["annotations"]
        record["annotations"] = [a for a in annotations if has_size(a["bbox"])]
        left_out += len(annotations) - len(record["annotations"])
    if left_out:
        logger.warning(
            f"{json_file}: left out {left_out} annotations whose box has no width or no height."
        )
    return records


def has_size(bbox: List[float]) -> bool:
    """Whether a COCO box [x, y, width, height] has a width and a height."""
    return bbox[2] > 0 and bbox[3] > 0


class CheckedMapper:
    """A dataset mapper that names the image it could not read."""

    # What Pillow raises for files that are broken or too large, and Detectron2 for an image of
    # another size than its annotations say.
    ERRORS = (OSError, SyntaxError, Image.DecompressionBombError, SizeMismatchError)

    def __init__(self, mapper: Callable[[Dict], Dict]):
        self.mapper = mapper

    @classmethod
    def from_config(cls, cfg, is_train: bool) -> "CheckedMapper":
        return cls(DatasetMapper(cfg, is_train))

    def __call__(self, dataset_dict: Dict) -> Dict:
        try:
            return self.mapper(dataset_dict)
        except self.ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"The image {dataset_dict['file_name']} cannot be used ({reason}); repair it, or "
                "take it out of the annotation file."
            ) from error


def _register(name: str, own_data: OwnData, *, to_train: bool, to_test: bool) -> None:
    json_file, image_root = own_data
    content = _read_annotations(json_file)
    _check_records(content, json_file, to_test=to_test)
    _check_references(content, json_file)
    _check_images(content["images"], own_data)
    objects = [a for a in content["annotations"] if has_size(a["bbox"]) and not a.get("iscrowd")]
    if to_train and not objects:
        raise UserError(
            f"{json_file} has no objects with a size; there is nothing to train on in it."
        )
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: load_own_data(json_file, image_root, name))
    categories = sorted(content["categories"], key=lambda c: c["id"])
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
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


_INTEGER, _TEXT, _NUMBER = (int,), (str,), (int, float)
# What the records must hold, for Detectron2 and for pycocotools behind it.
_KEYS = {
    "images": {"id": _INTEGER, "file_name": _TEXT, "width": _NUMBER, "height": _NUMBER},
    "categories": {"id": _INTEGER, "name": _TEXT},
    "annotations": {"id": _INTEGER, "image_id": _INTEGER, "category_id": _INTEGER, "bbox": (list,)},
}
_KEYS_TO_EVALUATE = {"area": _NUMBER, "iscrowd": _INTEGER}


def _check_records(content: Dict, json_file: str, *, to_test: bool) -> None:
    """Raise UserError for a record that lacks something or repeats an id."""
    for records, keys in _KEYS.items():
        if not content[records] and records != "annotations":
            raise UserError(f"{json_file} lists no {records}; the data set is empty.")
        if records == "annotations" and to_test:
            keys = {**keys, **_KEYS_TO_EVALUATE}
        seen = set()
        for i, record in enumerate(content[records]):
            for key, types in keys.items():
                if not isinstance(record, dict) or not isinstance(record.get(key), types):
                    value = record.get(key, "missing") if isinstance(record, dict) else record
                    raise UserError(
                        f"{json_file}: entry {i} of its {records} needs a {key!r} of type "
                        f"{types[-1].__name__}; it is {value!r}."
                    )
            if record["id"] in seen:
                raise UserError(f"{json_file} has two {records} with the id {record['id']}.")
            seen.add(record["id"])


def _check_references(content: Dict, json_file: str) -> None:
    """Raise UserError for an annotation of an unknown image or category, or without a box."""
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        for key, known in (("category_id", categories), ("image_id", images)):
            if annotation[key] not in known:
                raise UserError(
                    f"{json_file}: annotation {annotation['id']} has {key} {annotation[key]}, "
                    f"which is not among its {'categories' if known is categories else 'images'}."
                )
        if not _is_box(annotation["bbox"]):
            raise UserError(
                f"{json_file}: annotation {annotation['id']} has the bbox {annotation['bbox']}; "
                "it must be four numbers, [x, y, width, height]."
            )
        if annotation.get("ignore"):
            raise UserError(
                f"{json_file}: annotation {annotation['id']} is marked 'ignore', which Detectron2 "
                "does not support; mark it 'iscrowd' or take it out."
            )


def _check_images(images: List[Dict], own_data: OwnData) -> None:
    paths = (os.path.join(own_data.image_root, image["file_name"]) for image in images)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images)} images of {own_data.json_file} are not there, for "
            f"example {missing[0]}; name their folder behind the file: {own_data.json_file}:IMAGES."
        )


def _is_box(bbox: List) -> bool:
    return len(bbox) == 4 and all(isinstance(x, (int, float)) and math.isfinite(x) for x in bbox)


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


def _check_classes(names: List[str], num_classes: int) -> None:
    """Raise UserError unless all data sets have the same classes, as many as the config says."""
    first = None
    for name in names:
        metadata = MetadataCatalog.get(name)
        if metadata.get("thing_classes") is None:
            DatasetCatalog.get(name)  # a set registered in Python learns its classes by loading
        classes = list(metadata.get("thing_classes") or [])
        if len(classes) != num_classes:
            raise UserError(
                f"The data set {name} has {len(classes)} classes, but MODEL.TOOD.NUM_CLASSES is "
                f"{num_classes}; set it to {len(classes)}."
            )
        first = first or classes
        if classes != first:
            a, b = next((a, b) for a, b in zip(first, classes) if a != b)
            raise UserError(
                f"The data sets {names[0]} and {name} have different classes, or the same in "
                f"another order of their ids: where one has {a!r}, the other has {b!r}."
            )
