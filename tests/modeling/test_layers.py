import math

import pytest
import torch
import torch.nn.functional as F

from tood.modeling.layers import TaskDecomposition, average_log_sigmoids, sample_each_side


def test_geometric_mean_values():
    a, b = torch.tensor([0.0, 2.0]), torch.tensor([0.0, -1.0])
    expected = [0.5, math.sqrt(1 / (1 + math.exp(-2)) / (1 + math.exp(1)))]
    actual = average_log_sigmoids(a, b).exp()
    assert actual.tolist() == pytest.approx(expected, rel=1e-6)


def test_geometric_mean_gradient_is_finite_where_the_product_underflows():
    a = torch.tensor([-200.0, 200.0, -60.0, 0.0], requires_grad=True)
    b = torch.tensor([-200.0, -200.0, -60.0, 0.0], requires_grad=True)
    average_log_sigmoids(a, b).exp().sum().backward()
    assert torch.isfinite(a.grad).all() and torch.isfinite(b.grad).all()
    # d/da sqrt(s(a) s(b)) = s / 2 * (1 - s(a)), at 0: 0.5 / 2 * 0.5.
    assert a.grad[3].item() == pytest.approx(0.125)

    # The plain form fails here, or this test would show nothing.
    c = torch.tensor([-200.0], requires_grad=True)
    (c.sigmoid() * c.sigmoid()).sqrt().backward()
    assert not torch.isfinite(c.grad).all()


def slow_sample(box_map, offsets):
    """Bilinear reading of each side at its own place, zero outside, location by location."""
    _, H, W = box_map.shape
    result = torch.zeros_like(box_map)
    for side in range(4):
        for y in range(H):
            for x in range(W):
                py = y + offsets[2 * side, y, x].item()
                px = x + offsets[2 * side + 1, y, x].item()
                for iy in (math.floor(py), math.floor(py) + 1):
                    for ix in (math.floor(px), math.floor(px) + 1):
                        if 0 <= iy < H and 0 <= ix < W:
                            weight = (1 - abs(py - iy)) * (1 - abs(px - ix))
                            result[side, y, x] += weight * box_map[side, iy, ix]
    for y in range(H):
        for x in range(W):
            x1, y1, x2, y2 = result[:, y, x].tolist()
            if x1 > x2 or y1 > y2:
                result[:, y, x] = box_map[:, y, x]
    return result


def test_sampling_against_slow_loop():
    low = torch.rand(2, 2, 4, 5) * 50
    boxes = torch.cat([low, low + 1 + torch.rand(2, 2, 4, 5) * 50], dim=1)
    offsets = torch.randn(2, 8, 4, 5) * 2
    sampled = sample_each_side(boxes, offsets)
    for image in range(2):
        expected = slow_sample(boxes[image], offsets[image])
        torch.testing.assert_close(sampled[image], expected, atol=1e-4, rtol=1e-5)


def test_sampling_without_offsets_changes_nothing():
    boxes = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1).expand(1, 4, 3, 3).contiguous()
    assert torch.equal(sample_each_side(boxes, torch.zeros(1, 8, 3, 3)), boxes)


def test_nan_offsets_are_survived():
    boxes = torch.full((1, 4, 3, 3), math.nan)
    assert sample_each_side(boxes, torch.full((1, 8, 3, 3), math.nan)).isnan().any()


def test_crossed_sides_fall_back_to_the_unsampled_box():
    # Two neighbours; the left one reads its x1 from the right one, beyond its own x2.
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 10]]).t().reshape(1, 4, 1, 2)
    offsets = torch.zeros(1, 8, 1, 2)
    offsets[0, 1, 0, 0] = 1  # dx of x1 of the left location
    assert sample_each_side(boxes, offsets)[0, :, 0, 0].tolist() == [0, 0, 10, 10]
    offsets[0, 5, 0, 0] = 1  # and of its x2 as well: not crossed any more
    assert sample_each_side(boxes, offsets)[0, :, 0, 0].tolist() == [50, 0, 60, 10]


@pytest.mark.parametrize("norm", ["GN", ""])
def test_folded_layer_attention_equals_weighting_the_layers(norm):
    C, L = 32, 3
    layer = TaskDecomposition(conv_dim=C, num_convs=L, norm=norm)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, L * C, 4, 5)
    pooled = x.mean(dim=(2, 3), keepdim=True)
    kernels = layer.kernels(pooled)
    reduced = torch.stack([F.conv2d(x[i], kernels[i, :, :, None, None]) for i in range(2)])

    weights = layer.attention(pooled)  # (N, L, 1, 1)
    assert weights.std() > 0.01
    scaled = (x.view(2, L, C, 4, 5) * weights.unsqueeze(2)).view(2, L * C, 4, 5)
    expected = F.conv2d(scaled, layer.reduction.weight, layer.reduction.bias)
    expected = F.relu(expected if layer.norm is None else layer.norm(expected))
    torch.testing.assert_close(layer(reduced), expected, atol=1e-5, rtol=1e-5)
