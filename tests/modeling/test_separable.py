"""Depthwise separable convolutions of head and FPN, and the config that is made of them."""

import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIG, TINY
from count_cost import build, multiply_adds
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from tood.config.read import load_config
from tood.modeling.backbone.fpn import LastLevelP6P7NoReLU
from tood.modeling.backbone.separable import DepthwiseConv2d, SeparableConv2d, make_conv
from tood.modeling.dense_head import HEAD_REGISTRY, init_convs, stack_convs
from tood.utils.errors import UserError

DEPTHWISE = ["MODEL.TOOD.CONV_TYPE", "depthwise"]
PICO = "tood_lite0_Pico_small_data"


def build_small(*opts):
    return build_model(load_config(CONFIG, [*TINY, "MODEL.TOOD.NUM_CLASSES", "4", *opts]))


@pytest.mark.parametrize("stride", [1, 2])
def test_both_convolutions_are_one_of_a_product_of_kernels(stride):
    conv = SeparableConv2d(6, 4, stride=stride)
    torch.nn.init.normal_(conv.bias)
    kernel = conv.weight * conv.depthwise.weight.transpose(0, 1)  # (4, 6, 5, 5)
    x = torch.randn(2, 6, 9, 12)
    expected = F.conv2d(x, kernel, conv.bias, stride=stride, padding=2)
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)


def test_first_weights_keep_the_scale():
    conv = DepthwiseConv2d(512)
    x = torch.randn(1, 512, 20, 20)
    assert conv(x)[..., 2:-2, 2:-2].std().item() == pytest.approx(1, rel=0.05)


def test_outputs_begin_as_large_as_those_of_plain_convolutions():
    x, stds = torch.randn(1, 256, 24, 24), []
    for conv_type in ("plain", "depthwise"):
        conv = make_conv(conv_type, 256, 64)
        init_convs(torch.nn.ModuleList([conv]))
        assert not conv.bias.any()
        stds.append(conv(x)[..., 2:-2, 2:-2].std().item())
    assert stds[0] == pytest.approx(stds[1], rel=0.1)


@pytest.mark.parametrize("head", ["task_aligned", "parallel"])
def test_every_wide_convolution_is_depthwise_and_trained(make_input, head):
    model = build_small(*DEPTHWISE, "MODEL.TOOD.HEAD", head).train()
    wide = {
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Conv2d)
        and layer.kernel_size[0] > 1
        and layer.groups == 1
        and not name.startswith("backbone.bottom_up.")
    }
    # An eighth of the channels, which are few.
    assert wide == {"head.cls_align.2", "head.reg_align.2"}
    with EventStorage(0):
        sum(model([make_input(), make_input(boxes=[])]).values()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
    depthwise = [x for x in model.modules() if isinstance(x, DepthwiseConv2d)]
    assert len(depthwise) > 8 and all(x.weight.grad.abs().sum() > 0 for x in depthwise)


def test_first_predictions_are_those_of_plain_convolutions():
    shapes = [ShapeSpec(channels=32, stride=s) for s in (8, 16, 32, 64, 128)]
    maps, scores = [torch.randn(2, 32, size, size) for size in (16, 8, 4, 2, 1)], []
    for opts in ([], DEPTHWISE):
        head = HEAD_REGISTRY.get("task_aligned")(load_config(CONFIG, [*TINY, *opts]), shapes)
        scores.append(head(maps).pred_scores)
    assert scores[0].mean().item() == pytest.approx(0.01, rel=0.02)
    assert scores[1].mean().item() == pytest.approx(scores[0].mean().item(), rel=0.02)
    assert scores[1].std().item() == pytest.approx(scores[0].std().item(), rel=0.15)
    assert head.inter_convs[1][0].weight.std().item() == pytest.approx(0.03, rel=0.1)
    # Small objects are found late with random kernels.
    identity = torch.zeros(5, 5)
    identity[2, 2] = 1
    noise = head.inter_convs[1][0].depthwise.weight - identity
    assert noise.std().item() == pytest.approx(0.02, rel=0.1) and noise.abs().max() < 0.12


def test_levels_above_p5():
    p6, p7 = LastLevelP6P7NoReLU(8, conv_type="depthwise")(torch.randn(1, 8, 5, 7))
    assert p6.shape == (1, 8, 3, 4) and p7.shape == (1, 8, 2, 2)


def test_depthwise_convolutions_stay_in_float32(make_input):
    """A CPU's bfloat16 is slower for them; the 1x1 convolutions use it."""
    model = build_small(*DEPTHWISE, "MODEL.TOOD.PRECISION_TRAIN", "bfloat16").train()
    types = {DepthwiseConv2d: set(), SeparableConv2d: set()}
    for name, layer in model.named_modules():
        # P6 and P7 are in float32 as a whole.
        if type(layer) in types and ".top_block." not in name:
            layer.register_forward_hook(lambda layer, _, x: types[type(layer)].add(x.dtype))
    with EventStorage(0):
        sum(model([make_input()]).values()).backward()
    assert types == {DepthwiseConv2d: {torch.float32}, SeparableConv2d: {torch.bfloat16}}


def test_mistakes():
    with pytest.raises(UserError, match="CONV_TYPE is 'dense'; it must be one of plain, depthwise"):
        load_config(CONFIG, ["MODEL.TOOD.CONV_TYPE", "dense"])
    with pytest.raises(UserError, match="NUM_DCN_CONVS is 2 with MODEL.TOOD.CONV_TYPE depthwise"):
        load_config(CONFIG, [*DEPTHWISE, "MODEL.TOOD.NUM_DCN_CONVS", "2"])
    with pytest.raises(ValueError, match="deformable convolutions are for the type plain"):
        stack_convs(8, 32, "GN", [4, 0], "depthwise")
    with pytest.raises(ValueError, match="CONV_TYPE is 'dense'; it must be one of plain, depth"):
        make_conv("dense", 8, 8)


def test_pico_needs_less_than_a_billion_multiply_adds():
    pytest.importorskip("timm", reason="an extra")
    model = build(PICO)
    sizes = {"p3": 40, "p4": 20, "p5": 10, "p6": 5}
    assert model.head_in_features == list(sizes)
    features = tuple(torch.zeros(1, 96, size, size) for size in sizes.values())
    with torch.no_grad():
        backbone = multiply_adds(model.backbone, (torch.zeros(1, 3, 320, 320),))
        head = multiply_adds(model.head, features)
    # For each of 2125 locations: two layers of 5 x 5 and 1x1; both reductions and both hidden
    # layers of the alignment; predictors of 80 classes and 4 sides; M and O; the sampled sides.
    C, H = 96, 24
    location = 2 * C * (25 + C) + 2 * C * (C + C + H + H) + C * (2 * 25 + 80 + 4) + 9 * H * 9 + 4
    attention = 4 * 2 * (2 * C * 12 + 12 * 2)  # of each level and task
    assert head == 2125 * location + attention
    assert head + backbone < 1e9
    assert sum(p.numel() for p in model.parameters()) == 3_141_013
