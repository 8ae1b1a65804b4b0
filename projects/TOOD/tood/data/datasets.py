"""
Data sets by name or by file: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` may hold beside
Detectron2's registered names.

A user's own data set is an entry ``ANNOTATIONS.json`` or ``ANNOTATIONS.json:IMAGES``, a file in
COCO's instances format and the folder of its images (the folder of the file if left out).
"""

import difflib
import logging
import os
import re
from typing import Dict, List, NamedTuple, Optional

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils import comm

from tood.data.annotations import has_size, read_annotations
from tood.data.check import DataReport, InputSize, check_data, check_images
from tood.utils.errors import UserError

__all__ = ["load_own_data", "parse_own_data", "prepare_datasets"]

logger = logging.getLogger(__name__)

# The images of a larger data set are not opened before a training; on a network's disk that could
# take an hour.
MAX_IMAGES_LOOKED_AT = 50_000


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


def prepare_datasets(cfg, *, training: bool) -> List[DataReport]:
    """
    Register the own data sets of a config, and check all its data sets before a long run: all
    that their files tell, short of decoding the images.

    Args:
        cfg: its ``DATASETS``, ``MODEL.TOOD.NUM_CLASSES`` and sizes of images are read.
        training: whether ``DATASETS.TRAIN`` is going to be used, too.

    Returns:
        what was found in the data sets whose files are known, none of it an error.

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
    reports = []
    for entry in entries:
        own_data = parse_own_data(entry)
        uses = dict(to_train=entry in train, to_test=entry in cfg.DATASETS.TEST)
        if own_data is None:
            report = _check_registered(entry, cfg, **uses)
        else:
            report = _register(entry, own_data, cfg, **uses)
        if report is not None:
            reports.append(report)
    _check_classes(entries, cfg.MODEL.TOOD.NUM_CLASSES)
    return reports


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


def _register(name: str, own_data: OwnData, cfg, *, to_train: bool, to_test: bool) -> DataReport:
    json_file, image_root = own_data
    content = read_annotations(json_file, to_test=to_test)
    report = _check_content(content, own_data, cfg, to_train)
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
    return report


def _check_content(content: Dict, own_data: OwnData, cfg, to_train: bool) -> DataReport:
    json_file, image_root = own_data
    report = check_data(
        json_file,
        content,
        _input_size(cfg, to_train),
        _finest_stride(cfg),
        to_train=to_train,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
    )
    # One of several processes opens the files, and all hear of it: they must end together.
    found = []
    if comm.is_main_process() and len(content["images"]) <= MAX_IMAGES_LOOKED_AT:
        found = check_images(content["images"], image_root)
    found = comm.all_gather(found)[0]
    report = report._replace(findings=[*report.findings, *found])
    _raise_errors(report)
    if to_train and not any(
        has_size(a["bbox"]) for a in content["annotations"] if not a.get("iscrowd")
    ):
        raise UserError(
            f"{json_file} has no objects with a size; there is nothing to train on in it."
        )
    return report


def _raise_errors(report: DataReport) -> None:
    if not report.errors:
        return
    if comm.is_main_process():
        logger.error(str(report))
    first = report.errors[0]
    more = sum(finding.count for finding in report.errors) - 1
    raise UserError(
        f"{report.json_file} has {first.count} {first.what}, for example {first.example}; "
        f"{first.consequence}" + (f" (the table above has {more} more)." if more else ".")
    )


def _input_size(cfg, to_train: bool) -> InputSize:
    if to_train:
        return InputSize(min(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN)
    return InputSize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


def _finest_stride(cfg) -> int:
    """Feature maps are named after the logarithm of their stride: p3, res4."""
    level = re.search(r"\d+$", cfg.MODEL.TOOD.IN_FEATURES[0])
    return 2 ** int(level[0]) if level else 8


def _check_registered(name: str, cfg, *, to_train: bool, to_test: bool) -> Optional[DataReport]:
    """As much as its metadata allow: None for a set that does not say where its files are."""
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
    metadata = MetadataCatalog.get(name)
    image_root = metadata.get("image_root")
    if metadata.get("evaluator_type") != "coco" or not (json_file and image_root):
        return None
    if "://" in json_file or "://" in image_root:
        return None
    content = read_annotations(json_file, to_test=to_test)
    return _check_content(content, OwnData(json_file, image_root), cfg, to_train)


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
