"""COCO's figures, and the one that weights are compared by."""

from detectron2.evaluation import COCOEvaluator

from .annotations import has_size

__all__ = ["SizedCOCOEvaluator", "first_AP"]


class SizedCOCOEvaluator(COCOEvaluator):
    """
    COCO evaluation without the objects that have no width or no height. Training leaves them out
    as well, and no detection could ever match them.
    """

    def __init__(self, dataset_name, **kwargs):
        super().__init__(dataset_name, **kwargs)
        dataset = self._coco_api.dataset
        annotations = dataset.get("annotations", [])
        dataset["annotations"] = [a for a in annotations if has_size(a["bbox"])]
        if len(dataset["annotations"]) < len(annotations):
            self._coco_api.createIndex()


def first_AP(results) -> float:
    """Box AP on the first data set of Detectron2's results, NaN where there is none."""
    if results and "bbox" not in results:
        results = next(iter(results.values()))
    return results.get("bbox", {}).get("AP", float("nan")) if results else float("nan")
