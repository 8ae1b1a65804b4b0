"""Detections of a data set, which a report is on, and what else is known about them."""

import json
import os
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm

from tood.app.check import read_validation_data
from tood.app.plan.advice import History
from tood.app.plan.history import read_data_name, read_history
from tood.app.plan.rules import STRIDE, choose_input
from tood.app.report import plots
from tood.app.trained import name_data, read_records
from tood.checkpoint.identity import (
    hash_weights,
)
from tood.data.annotations import read_annotations
from tood.data.check import check_data
from tood.data.entries import parse_own_data
from tood.evaluation.alignment_evaluator import AlignmentEvaluator, summarize
from tood.evaluation.coco import DetectionCollector, load_content
from tood.evaluation.positives import PositivesEvaluator
from tood.inference.predictor import Predictor
from tood.inference.thresholds import GUARANTEE, find_weights_hash, read_summary
from tood.inference.views import build_training_views
from tood.utils.errors import UserError
from tood.utils.files import (
    encode_image,
)
from tood.utils.reading import MAX_TEXT, guard_reading, read_regular
from tood.visualization.alignment import draw_scatter

MOST_ASSIGNED = 500  # images or tiles whose objects' positives are counted


class Subject(NamedTuple):
    """Detections of a data set, and what else is known about them."""

    name: str
    content: Dict  # annotations
    detections: List[Dict]
    image_root: str
    notes: Sequence[str]  # of the data check
    data: str = ""  # name of the data set
    weights: str = ""  # hash of those that have found them, if it is known
    history: Optional[History] = None  # of the training
    predictor: Optional[Predictor] = None
    alignment: Dict[str, Dict] = {}
    positives: Sequence[Dict] = ()  # of objects by size
    guarantee: Dict = {}  # of guarantee.json, if it is on these weights
    plots: Dict[str, bytes] = {}


def examine(
    predictor: Predictor, detections: Optional[List[Dict]] = None, notes: Sequence[str] = ()
) -> Optional[Subject]:
    """Find detections, alignment and positives in one pass over the first validation data set of
    the predictor's config, which is registered.

    Args:
        detections, notes: see :func:`tood.app.report.make.report_on`.

    Returns:
        the subject of a report; None in all processes but the main one.
    """
    name = predictor.options.data.test[0]
    found: Dict = {"detections": detections}
    if detections is None:
        found = _run_detector(predictor, name)
    if not comm.is_main_process():
        return None
    folder, drawn = predictor.options.output_dir, {}
    history, records = None, list(read_records(folder))
    if records:
        history = read_history(predictor, records)
        drawn["training.png"] = plots.draw_training(records)
    pairs = found.pop("pairs", ())
    if len(pairs):
        drawn["alignment.png"] = encode_image(draw_scatter({"this model": pairs}), "PNG")
    metadata, weights = MetadataCatalog.get(name), hash_weights(predictor.model.state_dict())
    guarantee = _read_guarantee(os.path.join(folder, GUARANTEE), weights, drawn)
    return Subject(
        name=predictor.options.weights,
        content=load_content(name, metadata),
        image_root=metadata.get("image_root", ""),
        notes=notes,
        data=name_data(read_data_name(folder) or name) or name,
        history=history,
        weights=weights,
        guarantee=guarantee,
        predictor=predictor,
        plots=drawn,
        **found,
    )


def _run_detector(predictor: Predictor, name: str) -> Dict:
    """Return results by the names of :class:`Subject`, and the "pairs" of the alignment plot."""
    records = DatasetCatalog.get(name)
    # Of tiles and augmented views, alignment is not defined.
    is_plain = predictor.detector is predictor.model
    views = build_training_views(predictor, records, MOST_ASSIGNED)
    positives = PositivesEvaluator(predictor.model, views, reuse=is_plain)
    evaluators = [DetectionCollector(name), positives]
    alignment = AlignmentEvaluator(name, predictor.model, records=records) if is_plain else None
    evaluators += [] if alignment is None else [alignment]
    loader = predictor.build_test_loader(records)
    with torch.no_grad():
        found = inference_on_dataset(predictor.detector, loader, DatasetEvaluators(evaluators))
    if alignment is not None and alignment.metrics is not None:  # in the main process
        found["alignment"] = summarize(alignment.metrics, predictor.class_names)
        found["pairs"] = alignment.pairs
    return found


def _read_guarantee(path: str, weights: str, drawn: Dict[str, bytes]) -> Dict:
    """Return the content of a guarantee, and draw its curve, if it is on these weights."""
    if not os.path.exists(path):
        return {}
    remedy = "write it again with tood guarantee --overwrite, or remove it"
    found = read_summary(path, remedy)
    if find_weights_hash(found) != weights:
        return {}
    with guard_reading(path, remedy):
        curve = found["curve"], found["miss_rate"], found["score_threshold"]
        shown = {key: found[key] for key in ("sentences", "notes", "date", "num_images")}
    drawn["guarantee.png"] = plots.draw_guarantee(*curve)
    return shown


def read_data(entry: str) -> Tuple[Dict, str, List[str]]:
    """Return the annotations of a data set, the folder of its images, which need not exist, and
    the reports of the data check.
    """
    own_data = parse_own_data(entry)
    if own_data is None:
        (datasets, names) = read_validation_data(entry)
        if datasets:
            return datasets[0].content, datasets[0].image_root, []
        metadata = MetadataCatalog.get(names[0])
        return load_content(names[0], metadata), metadata.get("image_root", ""), []
    content = read_annotations(*own_data, to_train=True)
    checked = check_data(entry, content, choose_input(content, allow_tiles=False), STRIDE)
    if checked.errors:
        raise UserError(checked.error_sentence())
    return content, own_data.image_root, [str(checked)]


def read_results(path: str) -> List[Dict]:
    """Read detections in COCO's format, without checking each of them."""
    with guard_reading(path, "name a JSON file of detections"):
        content = json.loads(read_regular(path, MAX_TEXT))
    if not isinstance(content, list):
        raise UserError(f"{path} is not a list of detections, COCO's format of results.")
    return content
