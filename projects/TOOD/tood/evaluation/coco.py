"""COCO metrics of a data set, and the losses on a validation set."""

import json
import os
import re
import tempfile
from typing import Dict, Optional, Sequence

import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from tood.data.annotations import class_names, clean_annotations, has_size
from tood.data.datasets import read_content

# Detections per image that count in COCO's metrics.
COCO_LIMIT = 100
# COCO's sizes, of an object's area in square pixels of the original image.
AREAS = {"APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, 1e10)}


class CleanCOCOEvaluator(COCOEvaluator):
    """COCO evaluation on the clean form of the annotations (:mod:`tood.data.annotations`), the
    objects that a training would see: fields that do not matter for boxes cannot change it.

    Annotations are renumbered, because pycocotools takes the id 0 for "unmatched"; objects without
    width or height, which no detection could match, are ignored. If nothing is found, metrics are
    0, as in pycocotools, not NaN. If an image may have more than 100 detections, "AP@N" is the AP
    with all of them, in addition to COCO's metrics.
    """

    def __init__(self, dataset_name: str, *, max_dets_per_image: Optional[int] = None, **kwargs):
        """
        Args:
            dataset_name: registered.
            max_dets_per_image: N of "AP@N"; default: the most that an image has.
            kwargs: arguments of Detectron2's ``COCOEvaluator``.
        """
        self._max_dets = max_dets_per_image
        metadata = MetadataCatalog.get(dataset_name)
        content = load_content(dataset_name, metadata)
        # Detectron2 reads the file that the metadata name: temporarily, one in the clean form.
        clean_name = f"{dataset_name} (clean)"
        with tempfile.TemporaryDirectory() as folder:
            json_file = os.path.join(folder, "clean.json")
            with open(json_file, "w") as f:
                json.dump(content, f)
            replaced = ("name", "json_file", "thing_classes")
            known = {k: v for k, v in metadata.as_dict().items() if k not in replaced}
            # In the order of pycocotools: by the ids of the categories.
            known["thing_classes"] = class_names(content)
            MetadataCatalog.get(clean_name).set(json_file=json_file, **known)
            try:
                super().__init__(clean_name, **kwargs)
            finally:
                MetadataCatalog.remove(clean_name)

    def _eval_predictions(self, predictions, img_ids=None):
        super()._eval_predictions(predictions, img_ids=img_ids)
        if not self._do_evaluation:
            return
        counts = [len(x["instances"]) for x in predictions]
        if not sum(counts):
            self._results["bbox"] = self._nothing_found(img_ids)
        limit = max(counts) if self._max_dets is None else self._max_dets
        if limit > COCO_LIMIT:
            AP = self._average_precision([a for x in predictions for a in x["instances"]], limit)
            self._results["bbox"][f"AP@{limit}"] = AP
            self._logger.info(
                f"AP {self._results['bbox']['AP']:.3f} counts at most {COCO_LIMIT} detections of "
                f"a class per image, as COCO does; with up to {limit}, AP@{limit} is {AP:.3f}."
            )

    def _average_precision(self, detections, limit: int) -> float:
        if not detections:
            return self._results["bbox"]["AP"]
        evaluation = self._evaluate_boxes(detections, maxDets=[1, 10, limit])
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        precision = precision[precision > -1]
        return 100 * float(precision.mean()) if precision.size else float("nan")

    def _nothing_found(self, img_ids) -> Dict[str, float]:
        """Return 0 for every metric that has objects, and NaN for the others: pycocotools' metrics
        of one detection without a size.
        """
        image_ids = self._coco_api.getImgIds() if img_ids is None else img_ids
        nothing = {"image_id": image_ids[0], "category_id": self._coco_api.getCatIds()[0]}
        evaluation = self._evaluate_boxes(
            [{**nothing, "bbox": [0, 0, 0, 0], "score": 0.0}], imgIds=image_ids
        )
        evaluation.summarize()
        names = self._metadata.get("thing_classes")
        return self._derive_coco_results(evaluation, "bbox", class_names=names)

    def _evaluate_boxes(self, detections, **params) -> COCOeval:
        evaluation = COCOeval(self._coco_api, self._coco_api.loadRes(detections), "bbox")
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


class DetectionCollector(DatasetEvaluator):
    """Collects detections in COCO's format, without evaluating them. The metadata of the registered
    data set map classes to ids of categories.
    """

    def __init__(self, dataset_name: str):
        ids = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
        self._category_ids = {k: id for id, k in ids.items()} if ids else None

    def reset(self):
        self._detections = []

    def process(self, inputs, outputs):
        for x, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            self._detections += instances_to_coco_json(instances, x["image_id"])

    def evaluate(self) -> Optional[Dict]:
        """
        Returns:
            {"detections": a list of {"image_id", "category_id", "bbox", "score"}}; None in all
            processes but the main one.
        """
        parts = comm.gather(self._detections)
        if not comm.is_main_process():
            return None
        detections = [x for part in parts for x in part]
        if self._category_ids is not None:
            for x in detections:
                x["category_id"] = self._category_ids[x["category_id"]]
        return {"detections": detections}


def load_content(dataset_name: str, metadata) -> Dict:
    """Return the annotations of a registered data set in the clean form that is evaluated."""
    json_file = metadata.get("json_file")
    if json_file is None:  # registered in Python; Detectron2 would keep a file that may be old
        content = convert_to_coco_dict(dataset_name)
        lists = {name: content[name] for name in ("images", "categories", "annotations")}
        content = clean_annotations(lists, dataset_name)
    else:
        content = read_content(dataset_name)
    content = {name: records for name, records in content.items() if name != "repairs"}
    names, own = metadata.get("thing_classes") or [], class_names(content)
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
    # Classes that only other data sets have.
    more = [{"id": id, "name": names[i]} for id, i in ids.items() if names[i] not in own]
    content["categories"] = [*content["categories"], *more]
    if "annotations" in content:
        objects = [a for a in content["annotations"] if has_size(a["bbox"])]
        content["annotations"] = [{**a, "id": i} for i, a in enumerate(objects, 1)]
    return content


def results_folder(output_dir: str, name: str, names: Sequence[str]) -> str:
    """Return ``output_dir``/inference, or, for one of several data sets, a separate folder there.

    Args:
        name: name of the data set.
        names: names of all data sets.
    """
    folder = os.path.join(output_dir, "inference")
    if len(names) == 1:
        return folder
    slugs = [re.sub(r"[^\w.-]+", "_", x).strip("_")[-80:] for x in names]
    index = list(names).index(name)
    is_unique = slugs.count(slugs[index]) == 1
    return os.path.join(folder, slugs[index] if is_unique else f"{index + 1}_{slugs[index]}")


def first_AP(results, metric: str = "AP") -> float:
    """Return the box AP, or another metric, on the first data set of Detectron2's results, "AP@N"
    if the model may return more than COCO's 100 detections; NaN if there is none.
    """
    if results and "bbox" not in results:
        results = next(iter(results.values()))
    metrics = results.get("bbox", {}) if results else {}
    name = next((x for x in metrics if x.startswith(f"{metric}@")), metric)
    return metrics.get(name, float("nan"))


@torch.no_grad()
def validation_loss(model, data_loader, *, assigner) -> Dict[str, float]:
    """
    Args:
        model: a TOOD, not wrapped.
        data_loader: lists of images with "instances", in each process its share.
        assigner: assigner of the targets, with the options of its loss.

    Returns:
        the losses over the data set as if it were one batch, independent of its real
        batches and the number of processes.
    """
    was_training = model.training
    model.eval()
    total, names = torch.zeros(()), ()
    show = comm.is_main_process() and len(data_loader) > 50
    try:
        bar = tqdm(data_loader, desc="validation loss", disable=None if show else True, leave=False)
        for batch in bar:
            sums, weights = model.compute_loss_sums(batch, assigner)
            names = tuple(sums)
            total = total + torch.stack([torch.stack(list(sums.values())), weights]).double().cpu()
    finally:
        model.train(was_training)
    # A process may have had no image at all.
    parts = comm.all_gather((names, total))
    names = max(part[0] for part in parts)
    sums, weights = sum(part[1] for part in parts)
    return dict(zip(names, (sums / weights.clamp(min=1)).tolist()))
