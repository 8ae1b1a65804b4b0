import functools

import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIG
from detectron2.modeling import build_model
from torch import nn
from torch._subclasses import FakeTensorMode
from torchvision.ops import deform_conv2d

from tood.config.read import load_config
from tood.modeling import cpu, layers
from tood.modeling.cpu import GroupNorm, SampleSides, make_norm

ORDERS = [torch.contiguous_format, torch.channels_last]


def draw(seed, order, dtype=torch.float32):
    x = torch.randn(2, 64, 7, 5, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).contiguous(memory_format=order)


def gradients(norm, x, grad):
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(grad)
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("order", ORDERS, ids=["plain", "channels_last"])
@pytest.mark.parametrize("grad_order", ORDERS, ids=["plain", "channels_last"])
def test_results_and_gradients_are_pytorchs(dtype, order, grad_order):
    norms = make_norm("GN", 64), nn.GroupNorm(32, 64)
    assert type(norms[0]) is GroupNorm
    x, grad = draw(0, order, dtype), draw(1, grad_order, dtype)
    for norm in norms:
        torch.manual_seed(0)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    # In float32 they are PyTorch's; in bfloat16 sums are added up in another order.
    plain = [t if dtype == torch.float32 else t.contiguous() for t in (x, grad)]
    rtol = 0.0 if dtype == torch.float32 else 0.01
    for own, theirs in zip(gradients(norms[0], x, grad), gradients(norms[1], *plain)):
        torch.testing.assert_close(own, theirs, rtol=rtol, atol=rtol / 10)
    # All of them are those of float64, but for rounding.
    exact = gradients(norms[1].double(), x.double(), grad.double())
    limit = 0.03 if dtype == torch.bfloat16 else 1e-5
    for own, expected in zip(gradients(norms[0], x, grad), exact):
        torch.testing.assert_close(own.double(), expected, rtol=limit, atol=limit)


@pytest.mark.parametrize("cached", [1, 2 * 64 * 7 * 5, 2**20])
def test_gradients_of_some_images_at_a_time(monkeypatch, cached):
    """One by one, two of three, or all at once: the same maps, and sums but for rounding."""
    x, grad = (draw(i, torch.channels_last, torch.bfloat16)[[0, 1, 0]] for i in range(2))
    at_once = gradients(GroupNorm(32, 64), x, grad)
    monkeypatch.setattr(cpu, "CACHED", cached)
    parts = gradients(GroupNorm(32, 64), x, grad)
    assert torch.equal(parts[1], at_once[1])
    for some, all_of_them in zip(parts, at_once):
        torch.testing.assert_close(some, all_of_them)


def test_without_gradients_it_is_pytorchs():
    x = draw(0, torch.channels_last, torch.bfloat16)
    with torch.no_grad():
        y = GroupNorm(32, 64)(x)
    assert y.grad_fn is None and torch.equal(
        y, F.group_norm(x, 32, torch.ones(64), torch.zeros(64))
    )


def test_the_head_has_it_with_the_names_of_before():
    head = build_model(load_config(CONFIG, ["MODEL.DEVICE", "cpu"])).head
    norms = [name for name, layer in head.named_modules() if type(layer) is GroupNorm]
    assert "inter_convs.0.1" in norms and "cls_decomp.norm" in norms
    assert not [x for x in head.modules() if type(x) is nn.GroupNorm]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_convolutions_and_matrix_products_read_the_same(order):
    """Values and gradients of both forms, against the concatenated maps."""
    N, C, H, W, L, widths = 3, 6, 5, 4, 2, (7, 2)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    maps = [draw(N, C, H, W).contiguous(memory_format=order) for _ in range(L)]
    kernels = [draw(N, width, L * C) for width in widths]
    grads = [draw(N, width, H, W) for width in widths]
    inputs = [x.requires_grad_() for x in (*maps, *kernels)]
    joint = torch.cat(maps, dim=1)
    expected = [torch.einsum("nchw,nkc->nkhw", joint, k) for k in kernels]
    expected += torch.autograd.grad(expected, inputs, grads)
    split = torch.cat(kernels, dim=1).split(C, dim=2)
    for read in (cpu.multiply, cpu.convolve):
        actual = list(read(maps, split).split(widths, dim=1))
        actual += torch.autograd.grad(actual, inputs, grads, retain_graph=True)
        for x, y in zip(actual, expected):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_are_read_by_what_is_quicker(dtype, monkeypatch):
    used = []
    for form in (cpu.multiply, cpu.convolve):

        def note(*args, form=form):
            used.append(form.__name__)
            return form(*args)

        monkeypatch.setattr(layers, form.__name__, note)
    maps, kernels = [torch.ones(1, 4, 2, 2, dtype=dtype)], [torch.ones(1, 3, 4, dtype=dtype)]
    layers.read_layers(maps, kernels)
    has_convs = dtype == torch.float32 and torch.backends.mkldnn.is_available()
    assert used == ["convolve" if has_convs else "multiply"]
    used.clear()
    inputs = (maps[0], kernels[0])
    torch.jit.trace(lambda x, k: layers.read_layers([x], [k]), inputs, check_trace=False)
    assert set(used) == {"multiply"}  # or the program would have the number of images in it


@pytest.mark.parametrize("has_avx2_alone", [False, True])
def test_maps_are_plain_in_training_with_avx2_alone(has_avx2_alone, monkeypatch):
    monkeypatch.setattr(cpu, "_has_avx2_alone", lambda: has_avx2_alone)
    x = draw(0, torch.channels_last)
    assert cpu.order_for_gradients(x).is_contiguous() is has_avx2_alone
    torch.testing.assert_close(cpu.order_for_gradients(x), x, rtol=0, atol=0)
    with torch.no_grad():  # inference is quicker as it is
        assert cpu.order_for_gradients(x) is x
    assert cpu.order_for_gradients(x.bfloat16()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 20.0])
def test_gradients_of_sampling_are_torchvisions(share, spread):
    """Offsets that are integers, that reach the border and beyond it, and that are enormous."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    boxes, offsets = draw(2, 4, 5, 6), spread * draw(2, 8, 5, 6)
    offsets[0] = offsets[0].round()
    offsets[1, :, 0] = 1e30
    grad = draw(2, 4, 5, 6) * (torch.rand(2, 4, 5, 6, generator=generator) < share)
    inputs = boxes.requires_grad_(), offsets.requires_grad_()
    sample = functools.partial(deform_conv2d, weight=boxes.new_ones(4, 1, 1, 1))
    expected = sample(*inputs)
    actual = SampleSides.apply(sample, *inputs)
    assert torch.equal(actual, expected)
    expected, actual = (torch.autograd.grad(x, inputs, grad) for x in (expected, actual))
    for x, y in zip(actual, expected):
        torch.testing.assert_close(x, y)


def test_nothing_is_exchanged_in_programs_and_on_fakes(monkeypatch):
    """They could not be saved, or not be differentiated."""
    monkeypatch.setattr(SampleSides, "apply", None)
    boxes, offsets = torch.rand(1, 4, 3, 3, requires_grad=True), torch.rand(1, 8, 3, 3)
    torch.jit.trace(layers.sample_each_side, (boxes, offsets), check_trace=False)
    with FakeTensorMode():
        boxes, offsets = torch.rand(1, 4, 3, 3, requires_grad=True), torch.rand(1, 8, 3, 3)
        layers.sample_each_side(boxes, offsets).sum().backward()
    with pytest.raises(TypeError):
        layers.sample_each_side(torch.rand(1, 4, 3, 3, requires_grad=True), torch.rand(1, 8, 3, 3))


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)])
def test_without_images_or_locations(shape):
    (x,) = layers.read_layers([torch.ones(shape)], [torch.ones(shape[0], 5, 4)])
    assert x.shape == (shape[0], 5, *shape[2:])


def test_a_part_of_the_channels_is_normalized_in_bfloat16():
    """What the task decompositions pass on is a part of a larger map."""
    x = draw(0, torch.channels_last, torch.bfloat16)
    part = torch.cat([x, x], dim=1).split([64, 64], dim=1)[1].requires_grad_()
    norm = make_norm("GN", 64)
    norm(part).sum().backward()
    assert torch.equal(norm(part), norm(x))
