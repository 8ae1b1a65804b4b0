"""The convolutions of timm's models, quicker in training: with the fixed norm after them in their
kernel, and in float32 where the CPU's bfloat16 is slower.
"""

import functools
from collections import Counter
from typing import Any, Dict, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tood.modeling.backbone.fixed_norm import fold_norm, is_fixed
from tood.modeling.backbone.separable import Float32Conv
from tood.modeling.cpu import has_slow_bias

Pair = Tuple[str, str]  # names of a convolution and of its batch norm


def speed_up_convs(model: nn.Module, pairs: Sequence[Pair]) -> None:
    """Exchange the forward passes of convolutions and of the batch norms after them, in place; all
    parameters, buffers and their names stay. Results are equal but for rounding.

    While a norm's statistics are fixed, it scales and shifts each channel: its convolution does
    that to the kernel, which is small, instead of the map. Of gradients, too, only those of the
    kernel are computed, and no map is kept for the norm. In half precision on a CPU, depthwise
    convolutions stay in float32.

    Args:
        pairs: what :func:`find_pairs` returns for such a model.
    """
    for pair in pairs:
        places = [_find_place(model, name) for name in pair]
        for place, partner, mixin in zip(places, reversed(places), (_FoldedConv, _FoldedNorm)):
            layer = getattr(*place)
            layer.__class__ = _make_class(mixin, layer.__class__)
            # Found by its name, since it may be replaced; then nothing is folded.
            object.__setattr__(layer, "partner", partner)
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels > 1:
            # mypy takes the class for one without a hash.
            conv.__class__ = _make_class(Float32Conv, type(conv))  # type: ignore[arg-type]


@torch.no_grad()
def find_pairs(model: nn.Module, size: int) -> List[Pair]:
    """Return names of convolutions and of the batch norm that is the only layer to take the result;
    from a forward pass, because the order of modules need not be that of it.

    Args:
        size: side of an image that the model accepts, in pixels.
    """
    made: Dict[int, str] = {}
    calls: Counter = Counter()
    takers: Dict[str, List[str]] = {}
    kept = []  # so that no two tensors have the same address

    def note(name: str):
        def hook(layer, inputs, output):
            calls[name] += 1
            for x in inputs:
                if id(x) in made:
                    takers.setdefault(made[id(x)], []).append(name)
            if isinstance(output, Tensor) and _is_conv(layer):
                made[id(output)] = name
                kept.append(output)

        return hook

    layers, was_training = dict(model.named_modules()), model.training
    handles = [
        layer.register_forward_hook(note(name))
        for name, layer in layers.items()
        if _is_norm(layer) or not list(layer.children())
    ]
    try:
        maps = model.eval()(next(model.parameters()).new_zeros(1, 3, size, size))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    taken = {made.get(id(x)) for x in maps}
    pairs = [(conv, norms[0]) for conv, norms in takers.items() if conv not in taken]
    return [
        (conv, norm)
        for conv, norm in pairs
        if len(takers[conv]) == calls[conv] == calls[norm] == 1 and _is_norm(layers[norm])
    ]


@torch.no_grad()
def fold_convs(model: nn.Module) -> None:
    """Fold fixed norms into the convolutions of :func:`speed_up_convs` for good, in place: an
    exported file then contains kernels, which can be quantized, not their computation.
    """
    for conv in [x for x in model.modules() if isinstance(x, _FoldedConv)]:
        norm = getattr(*conv.partner)
        if isinstance(norm, _FoldedNorm) and is_fixed(norm):
            weight, bias = fold_norm(conv, norm)
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            is_activated = hasattr(norm, "act")
            rest = nn.Sequential(norm.drop, norm.act) if is_activated else nn.Identity()
            setattr(*conv.partner, rest)


def _find_place(model: nn.Module, name: str) -> Tuple[nn.Module, str]:
    parent, _, child = name.rpartition(".")
    return model.get_submodule(parent), child


def _is_conv(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d or type(layer).__name__ == "Conv2dSame"


def _is_norm(layer: nn.Module) -> bool:
    return type(layer) is nn.BatchNorm2d or type(layer).__name__ == "BatchNormAct2d"


@functools.cache
def _make_class(mixin: type, base: type) -> type:
    return type(f"{mixin.__name__.lstrip('_')}{base.__name__}", (mixin, base), {})


class _FoldedConv(nn.Conv2d):
    """A convolution that does the work of its norm while that is fixed."""

    partner: Tuple[nn.Module, str]  # where its norm is

    def forward(self, x: Tensor) -> Tensor:
        norm = getattr(*self.partner)
        if not (isinstance(norm, _FoldedNorm) and is_fixed(norm)):
            return super().forward(x)
        weight, bias = fold_norm(self, norm)
        options: Tuple[Any, ...] = (self.stride, self.padding, self.dilation, self.groups)
        convolve: Any = F.conv2d
        if type(self).__name__.endswith("Conv2dSame"):
            # An extra, which is there if there is such a layer.
            from timm.layers import conv2d_same as convolve
        if has_slow_bias(self, x, bias):
            return convolve(x, weight, None, *options).add_(bias.view(-1, 1, 1))
        return convolve(x, weight, bias, *options)


class _FoldedNorm(nn.BatchNorm2d):
    """The norm of a folded convolution: only the activation remains."""

    partner: Tuple[nn.Module, str]  # where its convolution is
    drop: nn.Module  # these two only of timm's BatchNormAct2d
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        if not (isinstance(getattr(*self.partner), _FoldedConv) and is_fixed(self)):
            return super().forward(x)
        return self.act(self.drop(x)) if hasattr(self, "act") else x
