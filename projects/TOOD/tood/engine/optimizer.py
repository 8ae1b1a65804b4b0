"""An optimizer whose step is bounded, and its hyperparameters in a resumed training."""

from typing import Dict, List

import torch
from detectron2.solver import LRMultiplier
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler


def clipped_sgd(
    params, *, max_norm: float, norm_type: float = 2.0, each: bool = False, **options
) -> SGD:
    """Return PyTorch's ``SGD`` with :func:`clip_gradients`, for ``configs/lazy``.

    Args:
        params, options: see ``SGD``.
        max_norm, norm_type, each: see :func:`clip_gradients`.
    """
    optimizer = SGD(params, **options)
    clip_gradients(optimizer, max_norm, norm_type, each=each)
    return optimizer


def clip_gradients(
    optimizer: Optimizer, max_norm: float, norm_type: float = 2.0, *, each: bool = False
) -> None:
    """Make an optimizer clip its gradients.

    Args:
        optimizer: clips from now on at the start of each step.
        max_norm, norm_type: see PyTorch's ``clip_grad_norm_``.
        each: clip the norm of each parameter's gradient, as Detectron2's CLIP_TYPE "norm" does,
            instead of the norm of all gradients together.
    """

    # In the optimizer's step, because a gradient scaler has unscaled the gradients by then.
    def clip(*_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if not each:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
            return
        # What clip_grad_norm_ does to each, in a third of its time.
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms = [gradient.norm(float(norm_type)) for gradient in gradients]
        scales = (max_norm / (torch.stack(norms) + 1e-6)).clamp(max=1) if norms else ()
        for gradient, scale in zip(gradients, scales):
            gradient.mul_(scale)

    optimizer.register_step_pre_hook(clip)


def get_hyperparameters(optimizer: Optimizer) -> List[Dict]:
    """Return the numbers of each group of parameters; "lr" is the rate that a schedule scales."""
    return [
        {
            **{k: v for k, v in group.items() if k not in ("params", "initial_lr")},
            "lr": group.get("initial_lr", group["lr"]),
        }
        for group in optimizer.param_groups
    ]


def set_hyperparameters(
    optimizer: Optimizer, scheduler: LRScheduler, wanted: List[Dict]
) -> List[str]:
    """Replace the hyperparameters that were loaded from a checkpoint.

    Args:
        optimizer, scheduler: optimizer and scheduler with the state of the checkpoint.
        wanted: those of the config, from :func:`get_hyperparameters`.

    Returns:
        the changes as texts for a log, such as "lr 0.01 -> 0.001".
    """
    changes = []
    for group, before, after in zip(optimizer.param_groups, get_hyperparameters(optimizer), wanted):
        for key, value in after.items():
            if key not in before or before[key] == value:
                continue
            text = f"{key} {before[key]} -> {value}"
            changes += [] if text in changes else [text]
            if key == "lr":
                group["lr"] *= value / before["lr"] if before["lr"] else 1
                group["initial_lr"] = value
            else:
                group[key] = value
    scheduler.base_lrs = [x["lr"] for x in wanted]
    if isinstance(scheduler, LRMultiplier):  # its length may have changed as well
        for group, lr in zip(optimizer.param_groups, scheduler.get_lr()):
            group["lr"] = lr
    return changes
