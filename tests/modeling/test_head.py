import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform

from tood.modeling.dense_head import decode_deltas, decode_distances, make_anchors
from tood.modeling.head import TOODHead


def build_head(cfg, channels, strides=(8, 16, 32, 64, 128)):
    return TOODHead(cfg, [ShapeSpec(channels=channels, stride=s) for s in strides])


def test_initial_values(tiny_cfg):
    tiny_cfg.MODEL.TOOD.CONV_DIM = 256
    head = build_head(tiny_cfg, channels=256)
    for conv, std in [
        (head.inter_convs[1][0], 0.01),
        (head.reg_pred, 0.01),
        (head.cls_align[0], 0.01),
        (head.reg_align[0], 0.001),
        (head.reg_align[2], 0.001),
        (head.cls_decomp.reduction, 0.01),
        (head.cls_decomp.attention[0], 0.001),
    ]:
        assert conv.weight.std().item() == pytest.approx(std, rel=0.1)
    for bias in (head.cls_pred.bias, head.cls_align[2].bias):
        assert bias.tolist() == pytest.approx([-math.log(99)] * len(bias))
    assert [scale.item() for scale in head.scales] == [1] * 5


@pytest.mark.parametrize("anchor_type", ["anchor_free", "anchor_based"])
def test_shapes_and_first_predictions(tiny_cfg, anchor_type):
    tiny_cfg.MODEL.TOOD.ANCHOR_TYPE = anchor_type
    head = build_head(tiny_cfg, channels=32)
    features = [torch.randn(2, 32, size, size + 1) for size in (16, 8, 4, 2, 1)]
    predictions = head(features)
    assert predictions.level_sizes == [16 * 17, 8 * 9, 4 * 5, 2 * 3, 1 * 2]
    R = sum(predictions.level_sizes)
    scores, boxes = predictions.pred_scores, predictions.pred_boxes
    assert scores.shape == (2, R, 4) and boxes.shape == (2, R, 4)
    assert len(predictions.anchors) == R
    # Each class starts with the prior, each box around its location.
    torch.testing.assert_close(scores, torch.full_like(scores, 0.01), atol=4e-3, rtol=0)
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_memory_format_changes_nothing(tiny_cfg):
    head = build_head(tiny_cfg, channels=32)
    features = [torch.randn(2, 32, size, size + 1) for size in (16, 8, 4, 2, 1)]
    plain = head(features)
    channels_last = head([x.contiguous(memory_format=torch.channels_last) for x in features])
    for name in ("pred_log_scores", "pred_boxes"):
        torch.testing.assert_close(
            getattr(channels_last, name), getattr(plain, name), atol=1e-4, rtol=1e-5
        )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch, "compiler"), reason="needs PyTorch 2.1")
def test_compiled_head_is_the_same(tiny_cfg):
    tiny_cfg.MODEL.TOOD.NUM_CONVS = 1
    tiny_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64], [128]]  # each level is compiled
    head = build_head(tiny_cfg, channels=32, strides=(8, 16))
    features = [torch.randn(1, 32, size, size) for size in (8, 4)]
    with torch.no_grad():
        expected = head(features)
        actual = torch.compile(head, backend="aot_eager")(features)  # needs no C++ compiler
    torch.testing.assert_close(actual.pred_log_scores, expected.pred_log_scores)
    torch.testing.assert_close(actual.pred_boxes, expected.pred_boxes, atol=1e-3, rtol=1e-4)


def test_first_boxes_are_one_stride_to_each_side(tiny_cfg):
    head = build_head(tiny_cfg, channels=32)
    torch.nn.init.zeros_(head.reg_pred.weight)  # exp(0) = 1 stride
    torch.nn.init.zeros_(head.reg_align[-1].weight)
    features = [torch.randn(1, 32, 2, 2) for _ in range(5)]
    (boxes,) = head(features).pred_boxes
    assert boxes[0].tolist() == [-8, -8, 8, 8]
    assert boxes[4 + 3].tolist() == [0, 0, 32, 32]  # the location at (16, 16) of the next level


def test_decode_distances():
    # Locations at (0, 0) and (16, 0).
    anchors = torch.tensor([[-64.0, -64, 64, 64], [-48, -64, 80, 64]])
    distances = torch.tensor([[[16.0, 32, 48, 64], [8, 8, 8, 8]]])
    boxes = decode_distances(distances, anchors)
    assert boxes.tolist() == [[[-16, -32, 48, 64], [8, -8, 24, 8]]]


def test_decode_deltas():
    anchors = torch.tensor([[-32.0, -32, 32, 32]])
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    # dx 0.5 of 64 px, twice the width, half the height.
    deltas = torch.tensor([[[5.0, 0.0, 5 * math.log(2), -5 * math.log(2)]]])
    boxes = decode_deltas(deltas, anchors, transform)
    assert boxes.flatten().tolist() == pytest.approx([-32, -16, 96, 16], abs=1e-4)


def test_decode_deltas_is_bounded_both_ways():
    anchors = torch.tensor([[-32.0, -32, 32, 32]])
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    deltas = torch.tensor([[[0.0, 0.0, 1000.0, -1000.0]]])
    x1, y1, x2, y2 = decode_deltas(deltas, anchors, transform).flatten().tolist()
    assert x2 - x1 == pytest.approx(64 * 1000 / 16, rel=1e-4)
    assert y2 - y1 == pytest.approx(64 * 16 / 1000, rel=1e-4)


def test_unknown_anchor_type_is_named(tiny_cfg):
    tiny_cfg.MODEL.TOOD.ANCHOR_TYPE = "anchor_made"
    with pytest.raises(ValueError, match="ANCHOR_TYPE is 'anchor_made'"):
        build_model(tiny_cfg)


def test_more_than_one_anchor_a_location_is_refused(tiny_cfg):
    tiny_cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0]]
    with pytest.raises(ValueError, match=r"ANCHOR_GENERATOR makes \[2, 2, 2, 2, 2\]"):
        build_model(tiny_cfg)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_anchors_equal_detectron2s(tiny_cfg, offset):
    tiny_cfg.MODEL.ANCHOR_GENERATOR.OFFSET = offset
    generator = build_head(tiny_cfg, channels=32).anchor_generator
    grid_sizes = [(3, 4), (2, 2), (1, 2), (1, 1), (1, 1)]
    expected = generator([torch.zeros(1, 1, *size) for size in grid_sizes])
    actual = make_anchors(generator, grid_sizes)
    assert torch.equal(actual, torch.cat([boxes.tensor for boxes in expected]))


def test_anchors_are_centred_on_multiples_of_the_stride(tiny_cfg):
    head = build_head(tiny_cfg, channels=32)
    assert isinstance(head.anchor_generator, DefaultAnchorGenerator)
    anchors = head([torch.zeros(1, 32, 2, 2) for _ in range(5)]).anchors.tensor
    assert anchors[3].tolist() == [8 - 32, 8 - 32, 8 + 32, 8 + 32]
    assert anchors[16].tolist() == [-512, -512, 512, 512]
