"""Size and cost of the released head, which the paper compares by."""

import pytest
import torch
from count_cost import multiply_adds
from detectron2.layers import ShapeSpec

from tood import TOODHead, model_zoo
from tood.modeling.backbone.deform_conv import DeformConvPack


def test_multiply_adds_at_1280_x_800():
    cfg = model_zoo.get_config("tood_R50_FPN_1x")
    strides = (8, 16, 32, 64, 128)
    head = TOODHead(cfg, [ShapeSpec(channels=256, stride=s) for s in strides])
    features = tuple(torch.zeros(1, 256, -(-800 // s), -(-1280 // s)) for s in strides)
    with torch.no_grad():
        assert multiply_adds(head, features) / 1e9 == pytest.approx(100.69, rel=0.005)


def test_deformable_convolutions_are_counted():
    class Dict(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pack = DeformConvPack(8, 4, num_groups=2, bias=False)

        def forward(self, x):
            return {"x": self.pack(x)}

    # 54 offsets and masks, then 4 channels, each from 8 channels of 3 x 3.
    with torch.no_grad():
        count = multiply_adds(Dict().eval(), (torch.zeros(1, 8, 5, 6),))
    assert count == (54 + 4) * 8 * 9 * 30
