import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIG
from detectron2.modeling import build_model
from torch import nn

from tood.config.read import load_config
from tood.modeling.group_norm import GroupNorm, make_norm

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
    # PyTorch's of plain maps, but for the rounding of means, which are added up in another order.
    plain = [t if dtype == torch.float32 else t.contiguous() for t in (x, grad)]
    rtol = 0.0 if order == torch.contiguous_format or dtype == torch.float32 else 0.01
    for own, theirs in zip(gradients(norms[0], x, grad), gradients(norms[1], *plain)):
        torch.testing.assert_close(own, theirs, rtol=rtol, atol=rtol / 10)
    # And of float64, but for rounding.
    y, x_grad, *_ = gradients(nn.GroupNorm(32, 64).double(), x.double(), grad.double())
    nn.init.ones_(norms[0].weight)
    nn.init.zeros_(norms[0].bias)
    own = gradients(norms[0], x, grad)
    limit = 0.03 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(own[0].double(), y, rtol=limit, atol=limit)
    torch.testing.assert_close(own[1].double(), x_grad, rtol=limit, atol=limit)


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
