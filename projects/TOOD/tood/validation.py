"""The losses of a data set that is not trained on."""

from typing import Dict

import torch
from detectron2.utils import comm
from tqdm import tqdm

__all__ = ["validation_loss"]


@torch.no_grad()
def validation_loss(model, data_loader, *, warmup: bool) -> Dict[str, float]:
    """
    Args:
        model: a TOOD, not wrapped.
        data_loader: of lists of images with "instances"; in each process its share.
        warmup: whether it is the loss of the warm-up, or of TAL.

    Returns:
        "loss_cls", "loss_box_reg": over the data set as if it were one batch, whatever its real
        batches and the number of processes.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros(2, 2, dtype=torch.float64)
    show = comm.is_main_process() and len(data_loader) > 50
    try:
        for batch in tqdm(data_loader, desc="validation loss", disable=not show):
            sums, weights = model.loss_sums_of(batch, warmup)
            total += torch.stack([sums, weights]).double().cpu()
    finally:
        model.train(was_training)
    sums, weights = sum(comm.all_gather(total))
    loss_cls, loss_box_reg = (sums / weights.clamp(min=1)).tolist()
    return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}
