"""Convolutions with a fixed norm against the two layers one after the other."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from torch import nn

from tood.modeling.backbone.fixed_norm import FixedNormConv2d, use_fixed_norms


def make_layers(norm="BN", **options):
    """A layer of Detectron2 and its counterpart, with separate statistics and weights."""
    plain = Conv2d(6, 8, 3, bias=False, norm=get_norm(norm, 8), activation=nn.ReLU(), **options)
    for name in ("running_mean", "bias"):
        nn.init.normal_(getattr(plain.norm, name))
    for name in ("running_var", "weight"):
        nn.init.uniform_(getattr(plain.norm, name), 0.5, 2)
    for layer in plain.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    ours = copy.deepcopy(plain)
    use_fixed_norms(ours)
    assert isinstance(ours, FixedNormConv2d) and type(plain) is Conv2d
    return plain, ours


def gradients(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return {"x": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}


@pytest.mark.parametrize("options", [dict(padding=1), dict(stride=2, groups=2, dilation=2)])
def test_training_is_the_same(options):
    plain, ours = make_layers(**options)
    x = torch.randn(2, 6, 9, 11)
    assert ours.training and torch.equal(plain(x), ours(x))
    # The gradients are computed differently; only double precision distinguishes errors from noise.
    plain, ours, x = plain.double(), ours.double(), x.double()
    expected, actual = gradients(plain, x), gradients(ours, x)
    assert set(actual) == {"x", "weight", "norm.weight", "norm.bias"}
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0.1
        torch.testing.assert_close(actual[name], gradient)


@pytest.mark.parametrize("frozen", ["weight", "norm.weight", "norm.bias"])
def test_frozen_parameters(frozen):
    plain, ours = (layer.double() for layer in make_layers())
    x = torch.randn(2, 6, 9, 11).double()
    for layer in (plain, ours):
        layer.get_parameter(frozen).requires_grad_(False)
    expected, actual = gradients(plain, x), gradients(ours, x)
    assert actual[frozen] is None
    for name in set(expected) - {frozen}:
        torch.testing.assert_close(actual[name], expected[name])


def test_the_map_between_is_not_kept():
    def kept(layer):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(tuple(t.shape)) or t, lambda t: t
        ):
            layer(torch.randn(2, 6, 9, 11, requires_grad=True))
        return sizes.count((2, 8, 7, 9))

    plain, ours = make_layers()
    assert kept(plain) == 2  # before the norm, and behind the ReLU
    assert kept(ours) == 1


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_inference_is_folded(norm):
    plain, ours = make_layers(norm)
    plain.eval(), ours.eval()
    x = torch.randn(2, 6, 9, 11)
    calls = []
    ours.norm.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(ours(x), plain(x), atol=1e-5, rtol=1e-5)
    assert not calls


def test_statistics_that_are_still_learned_are_left_alone():
    plain, ours = make_layers()
    plain.train(), ours.train()
    x = torch.randn(2, 6, 9, 11)
    assert torch.equal(plain(x), ours(x))
    assert torch.equal(plain.norm.running_mean, ours.norm.running_mean)


def test_frozen_norms_are_found_too():
    layer = Conv2d(4, 4, 1, norm=FrozenBatchNorm2d(4))
    use_fixed_norms(layer)
    assert isinstance(layer, FixedNormConv2d)
    other = Conv2d(4, 4, 1, norm=nn.GroupNorm(2, 4))
    use_fixed_norms(other)
    assert type(other) is Conv2d


def test_mixed_precision():
    _, ours = make_layers()
    x = torch.randn(2, 6, 9, 11)
    expected = gradients(ours, x)
    ours.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    assert y.dtype == torch.bfloat16
    (y.float() * torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.dtype == torch.float32
        difference = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert difference < 0.05, name
