import math

import pytest
import torch
from detectron2.layers import ModulatedDeformConv
from detectron2.modeling import build_model

from tood import model_zoo
from tood.modeling.backbone.deform_conv import (
    HAS_EXTENSION,
    DeformConvPack,
    DeformConvParameters,
    PortableDeformConv,
    make_deform_convs_portable,
)


def slow_deform_conv(x, offset, mask, weight, groups):
    """A 3x3 modulated deformable convolution with padding 1, tap by tap, of one image."""
    C, H, W = x.shape
    out = torch.zeros(weight.shape[0], H, W, dtype=x.dtype)
    for y in range(H):
        for xx in range(W):
            for c in range(C):
                group = c // (C // groups)
                for tap in range(9):
                    i = group * 9 + tap
                    py = y - 1 + tap // 3 + offset[2 * i, y, xx].item()
                    px = xx - 1 + tap % 3 + offset[2 * i + 1, y, xx].item()
                    value = 0.0
                    for iy in (math.floor(py), math.floor(py) + 1):
                        for ix in (math.floor(px), math.floor(px) + 1):
                            if 0 <= iy < H and 0 <= ix < W:
                                part = (1 - abs(py - iy)) * (1 - abs(px - ix))
                                value += part * x[c, iy, ix].item()
                    value *= mask[i, y, xx].item()
                    out[:, y, xx] += weight[:, c, tap // 3, tap % 3] * value
    return out


def make_pack(groups, dtype=torch.float64):
    pack = DeformConvPack(8, 4, num_groups=groups, bias=False).to(dtype)
    torch.nn.init.normal_(pack.conv_offset.weight, std=0.3)
    torch.nn.init.normal_(pack.conv_offset.bias, std=0.3)
    return pack


@pytest.mark.parametrize("groups", [1, 4])
def test_against_slow_loop(groups):
    pack = make_pack(groups)
    x = torch.randn(1, 8, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        raw = pack.conv_offset(x)[0]
        offset, mask = raw[: 18 * groups], raw[18 * groups :].sigmoid()
        expected = slow_deform_conv(x[0], offset, mask, pack.weight, groups)
        torch.testing.assert_close(pack(x)[0], expected)


def test_gradients():
    pack = make_pack(groups=2)
    x = torch.randn(1, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pack, (x,))
    pack(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in pack.parameters())


def test_starts_as_half_a_convolution():
    pack = DeformConvPack(8, 4, num_groups=4, bias=True)
    x = torch.randn(2, 8, 5, 6)
    expected = torch.nn.functional.conv2d(x, pack.weight / 2, pack.bias, padding=1)
    torch.testing.assert_close(pack(x), expected, atol=1e-5, rtol=1e-5)


def test_nan_does_not_crash():
    assert make_pack(1, torch.float32)(torch.full((1, 8, 4, 4), math.nan)).isnan().any()


def test_autocast():
    pack, x = make_pack(4, torch.float32), torch.randn(1, 8, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = pack(x)
    torch.testing.assert_close(half.float(), pack(x), atol=0.3, rtol=0.1)


def test_layers_of_a_backbone_are_exchanged_with_their_parameters():
    cfg = model_zoo.get_config("tood_R101_DCN_FPN_mstrain_2x")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 50])
    resnet = build_model(cfg).backbone.bottom_up
    kinds = [type(m) for m in resnet.modules() if hasattr(m, "deformable_groups")]
    assert kinds == [PortableDeformConv] * (4 + 6 + 3)  # res3 to res5
    names = [n for n, _ in resnet.named_parameters()]
    before = dict(resnet.named_parameters())
    make_deform_convs_portable(resnet)
    assert [n for n, _ in resnet.named_parameters()] == names
    assert all(p is before[n] for n, p in resnet.named_parameters())
    assert "res3.0.conv2_offset.weight" in before and "res3.0.conv2.norm.weight" in before


@pytest.mark.skipif(
    not (HAS_EXTENSION and torch.cuda.is_available()), reason="needs Detectron2 compiled for CUDA"
)
def test_both_operators_give_the_same():
    pack = make_pack(4, torch.float32).cuda()
    x = torch.randn(2, 8, 7, 9, device="cuda")
    compiled = pack(x)
    torch.testing.assert_close(compiled.cpu(), pack.cpu()(x.cpu()), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(
    not issubclass(ModulatedDeformConv, torch.nn.Module), reason="Detectron2 has a placeholder"
)
@pytest.mark.parametrize("kernel_size, groups, bias", [(3, 1, True), ((3, 1), 2, False)])
def test_parameters_are_those_of_detectron2(kernel_size, groups, bias):
    options = dict(kernel_size=kernel_size, groups=groups, deformable_groups=2, bias=bias)
    layers = []
    for kind in (ModulatedDeformConv, DeformConvParameters):
        torch.manual_seed(1)
        layers.append(kind(4, 8, stride=2, padding=1, **options))
    ours, theirs = layers[1], layers[0]
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.groups, ours.deformable_groups) == (theirs.groups, theirs.deformable_groups)
