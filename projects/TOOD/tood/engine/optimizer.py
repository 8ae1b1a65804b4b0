"""An optimizer whose step is bounded: the norm of all gradients together."""

import torch
from torch.optim import SGD, Optimizer


def clipped_sgd(params, *, max_norm: float, norm_type: float = 2.0, **options) -> SGD:
    """Return PyTorch's ``SGD`` with :func:`clip_full_model`, for configs in Python.

    Args:
        params, options: of ``SGD``.
        max_norm, norm_type: of :func:`clip_full_model`.
    """
    optimizer = SGD(params, **options)
    clip_full_model(optimizer, max_norm, norm_type)
    return optimizer


def clip_full_model(optimizer: Optimizer, max_norm: float, norm_type: float = 2.0) -> None:
    """Let an optimizer bound the norm of all its gradients together, where Detectron2's own
    CLIP_TYPE "norm" bounds each parameter's.
    """

    # In the optimizer's step, where a gradient scaler has undone its scaling already.
    def clip_gradients(*_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip_gradients)
