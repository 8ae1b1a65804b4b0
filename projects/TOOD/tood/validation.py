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
        the losses over the data set as if it were one batch, whatever its real
        batches and the number of processes.
    """
    was_training = model.training
    model.eval()
    total, names = torch.zeros(()), ()
    show = comm.is_main_process() and len(data_loader) > 50
    try:
        for batch in tqdm(data_loader, desc="validation loss", disable=not show):
            sums, weights = model.loss_sums_of(batch, warmup)
            names = tuple(sums)
            total = total + torch.stack([torch.stack(list(sums.values())), weights]).double().cpu()
    finally:
        model.train(was_training)
    # A process may have had no image at all.
    parts = comm.all_gather((names, total))
    names = max(part[0] for part in parts)
    sums, weights = sum(part[1] for part in parts)
    return dict(zip(names, (sums / weights.clamp(min=1)).tolist()))
