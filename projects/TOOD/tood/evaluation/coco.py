"""COCO metrics of a data set, and the losses on one that is not trained on."""

from typing import Dict

import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from tqdm import tqdm

from tood.data.annotations import has_size


class SizedCOCOEvaluator(COCOEvaluator):
    """COCO evaluation without the objects that have no width or no height. Training leaves them out
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


@torch.no_grad()
def validation_loss(model, data_loader, *, assigner) -> Dict[str, float]:
    """
    Args:
        model: a TOOD, not wrapped.
        data_loader: of lists of images with "instances"; in each process its share.
        assigner: makes the targets, and has the options of the loss.

    Returns:
        the losses over the data set as if it were one batch, independent of its real
        batches and the number of processes.
    """
    was_training = model.training
    model.eval()
    total, names = torch.zeros(()), ()
    show = comm.is_main_process() and len(data_loader) > 50
    try:
        for batch in tqdm(data_loader, desc="validation loss", disable=not show):
            sums, weights = model.loss_sums_of(batch, assigner)
            names = tuple(sums)
            total = total + torch.stack([torch.stack(list(sums.values())), weights]).double().cpu()
    finally:
        model.train(was_training)
    # A process may have had no image at all.
    parts = comm.all_gather((names, total))
    names = max(part[0] for part in parts)
    sums, weights = sum(part[1] for part in parts)
    return dict(zip(names, (sums / weights.clamp(min=1)).tolist()))
