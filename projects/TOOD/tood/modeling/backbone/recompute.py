"""Less memory for a longer step: blocks of a backbone that keep only their input, and are computed
again in the backward pass (activation checkpointing, arXiv 1604.06174).
"""

import contextlib
from typing import Iterator

import torch
from detectron2.modeling import Backbone
from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from tood.modeling.backbone.timm_fpn import TimmBackbone
from tood.utils.errors import UserError


class RecomputedBlocks(nn.Sequential):
    """Blocks one after the other, each of which is computed twice in training. What they compute,
    their gradients and the names of their parameters are those of ``nn.Sequential``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        for block in self:
            if self.training and torch.is_grad_enabled():
                # No block draws random numbers: their state need not be kept.
                x = checkpoint(_Twice(block), x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        return x


class _Twice:
    """A block whose second computation does not update the running statistics of batch norms."""

    def __init__(self, block: nn.Module):
        self.block, self.computed = block, False

    def __call__(self, x: Tensor) -> Tensor:
        with _keep_statistics(self.block) if self.computed else contextlib.nullcontext():
            self.computed = True
            return self.block(x)


@contextlib.contextmanager
def _keep_statistics(module: nn.Module) -> Iterator[None]:
    norms = [x for x in module.modules() if isinstance(x, _BatchNorm) and x.training]
    counts = [x.num_batches_tracked for x in norms if x.num_batches_tracked is not None]
    before = [x.momentum for x in norms], [x.clone() for x in counts]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before[0]):
            norm.momentum = momentum
        for count, value in zip(counts, before[1]):
            count.copy_(value)  # in place: DistributedDataParallel keeps references to buffers


def recompute_blocks(backbone: Backbone, *, freeze_bn_stats: bool = True) -> None:
    """Make a backbone compute its blocks twice, in place: those of Detectron2's ``ResNet``, or the
    stages of a timm model, as timm has them.

    Args:
        backbone: one of these, or an FPN on it.
        freeze_bn_stats: whether batch norms keep their running statistics, or count each batch:
            timm's would count it twice.

    Raises:
        UserError: for another backbone, or one of timm's that would count a batch twice.
    """
    bottom_up = getattr(backbone, "bottom_up", backbone)
    if isinstance(bottom_up, ResNet):
        for i, name in enumerate(bottom_up.stage_names):
            bottom_up.stages[i] = RecomputedBlocks(*bottom_up.stages[i])
            setattr(bottom_up, name, bottom_up.stages[i])
        return
    model = getattr(bottom_up, "model", None) if isinstance(bottom_up, TimmBackbone) else None
    # timm's wrapper for transformers has the switch on the model inside of it.
    owners = (model, getattr(model, "model", None))
    switches = (getattr(x, "set_grad_checkpointing", None) for x in owners)
    switch = next(filter(callable, switches), None)
    if switch is None:
        raise UserError(
            "MODEL.TOOD.CHECKPOINT_BACKBONE is for Detectron2's ResNets and timm's models, not for "
            f"{type(model or bottom_up).__name__}; set it to False, or use an "
            "option of this backbone."
        )
    if not freeze_bn_stats and any(isinstance(x, _BatchNorm) for x in bottom_up.modules()):
        raise UserError(
            "With MODEL.TOOD.CHECKPOINT_BACKBONE, timm's batch norms would count each batch twice; "
            "set MODEL.TOOD.FREEZE_BN_STATS True."
        )
    switch()
