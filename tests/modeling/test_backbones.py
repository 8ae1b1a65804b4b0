"""Detectron2's own backbones below the head, by configs of both kinds, and other levels."""

import pytest
import torch
from conftest import CONFIG, EXTENSIONS, ROOT, TINY, get_error
from detectron2 import modeling
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from tood.config.read import load_config
from tood.modeling.backbone.levels import get_size_divisibility, get_strides, pad_to_multiple

# The files that docs/backbones.md quotes, made narrow, and where Detectron2 has the class.
NARROW = {
    "regnet": ("RegNet", ["depth=10", "w_0=24", "group_width=8", "stem_width=8"]),
    "swin": ("SwinTransformer", ["embed_dim=12", "depths=[1,1,1,1]"]),
    "mvit": ("MViT", ["embed_dim=24", "depth=4", "last_block_indexes=[0,1,2,3]"]),
    "vit": ("ViT", ["embed_dim=48", "depth=2", "window_block_indexes=[0]"]),
}
HEAD = ["model.num_classes=3", "model.head.num_convs=1", "model.head.conv_dim=64"]
P2_TO_P6 = ["MODEL.TOOD.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']"]


def lazy_model(name, *overrides):
    class_name, narrow = NARROW[name]
    if not hasattr(modeling, class_name) and not hasattr(modeling.backbone, class_name):
        pytest.skip(f"this Detectron2 has no {class_name}")
    node = "model.backbone.net" if name == "vit" else "model.backbone.bottom_up"
    narrow = [f"{node}.{override}" for override in narrow]
    options = [*HEAD, "model.backbone.out_channels=32", *narrow, *overrides]
    config = LazyConfig.load(str(EXTENSIONS / "backbones" / f"{name}.py"))
    return instantiate(LazyConfig.apply_overrides(config, options).model)


@pytest.mark.parametrize("name", NARROW)
def test_the_guide_quotes_the_file(name):
    text = (EXTENSIONS / "backbones" / f"{name}.py").read_text()
    assert text in (ROOT / "docs" / "backbones.md").read_text()


@pytest.mark.parametrize("name", NARROW)
def test_a_backbone_of_detectron2_learns(name, make_input):
    model = lazy_model(name)
    learns(model, make_input)
    assert model.strides == [8, 16, 32, 64, 128]
    assert model.size_divisibility == 32


def learns(model, make_input):
    """Take the gradients of a step, and predict."""
    inputs = [make_input(90, 120), make_input(64, 64, boxes=[])]
    with EventStorage(0):
        losses = model.train()(inputs)
        sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
    with torch.no_grad():
        (output,) = model.eval()(inputs[:1])
    assert output["instances"].image_size == (90, 120)


def test_images_of_a_vit_are_padded_to_whole_patches(make_input):
    model = lazy_model("vit").eval()
    images, predictions = model.predict_with_images([make_input(90, 120)])
    assert images.tensor.shape[-2:] == (96, 128) and images.image_sizes == [(90, 120)]
    assert [tuple(size) for size in predictions.grid_sizes[:2]] == [(12, 16), (6, 8)]


def test_padding():
    images = torch.ones(1, 1, 2, 3)
    padded = pad_to_multiple(images, 4)
    assert padded.tolist() == [[[[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]]]
    assert pad_to_multiple(images, 0) is images and pad_to_multiple(images, 1) is images


@pytest.mark.parametrize(
    "constraints, divisibility",
    [({}, 8), ({"size_divisiblity": 32, "square_size": 0}, 32), ({"size_divisibility": 16}, 16)],
)
def test_divisibility_of_a_backbone(constraints, divisibility):
    class Fake:
        size_divisibility = 8
        padding_constraints = constraints

    assert get_size_divisibility(Fake()) == divisibility


def test_a_head_of_other_strides_than_the_backbone():
    model = lazy_model("regnet")
    model.head.strides = [4, 8]
    wanted = r"strides \[4, 8\], but its feature maps have \[8, 16\]; .* to \[\[64\], \[128\]\]"
    with pytest.raises(ValueError, match=wanted):
        get_strides(model.backbone, ["p3", "p4"], model.head)
    with pytest.raises(ValueError, match="has 'p9', but the backbone makes p3, p4, p5, p6, p7"):
        get_strides(model.backbone, ["p3", "p9"], model.head)
    with pytest.raises(ValueError, match="the head has the strides .* set head.strides to them"):
        lazy_model("regnet", "model.head.strides=[4,8,16,32,64]")


@pytest.mark.parametrize(
    "name, opts",
    [
        ("build_retinanet_resnet_fpn_backbone", []),
        ("build_resnet_fpn_backbone", P2_TO_P6),
        ("build_tood_resnet_fpn_backbone", P2_TO_P6),
    ],
)
def test_resnets_of_detectron2(name, opts, make_input):
    features = []
    if opts:
        features = ["MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"]
        features += ["MODEL.RESNETS.OUT_FEATURES", features[1]]
    learns(build("MODEL.BACKBONE.NAME", name, *features, *opts), make_input)


def build(*opts):
    return build_model(load_config(CONFIG, [*TINY, "MODEL.TOOD.NUM_CLASSES", "4", *opts]))


def test_levels_decide_on_the_anchors_and_on_what_is_made():
    four = ["MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"]
    four += ["MODEL.RESNETS.OUT_FEATURES", four[1]]
    model = build(*P2_TO_P6, *four)
    assert model.strides == [4, 8, 16, 32, 64]
    sizes = [x[2] - x[0] for (x,) in (c.tolist() for c in model.head.anchor_generator.cell_anchors)]
    assert sizes == [32, 64, 128, 256, 512]
    assert not hasattr(model.backbone.top_block, "p7")
    without_top = build("MODEL.TOOD.IN_FEATURES", "['p3', 'p4', 'p5']")
    assert without_top.backbone.top_block is None and without_top.strides == [8, 16, 32]
    typed = ["MODEL.ANCHOR_GENERATOR.SIZES", "[[20], [40], [80], [160], [320]]"]
    (first, *_) = build(*P2_TO_P6, *four, *typed).head.anchor_generator.cell_anchors
    assert first.tolist() == [[-10, -10, 10, 10]]


def test_other_architectures_keep_their_anchors():
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "RetinaNet"], architectures=("RetinaNet",))
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[32, 64, 128, 256, 512]]  # Detectron2's default
    assert load_config(CONFIG, []).MODEL.ANCHOR_GENERATOR.SIZES == [
        [64],
        [128],
        [256],
        [512],
        [1024],
    ]


def test_levels_that_are_not_there(command):
    message = get_error(command(opts=P2_TO_P6))
    assert "has 'p2', but build_tood_resnet_fpn_backbone makes p3, p4, p5, p6;" in message
    assert "add res2 to MODEL.RESNETS.OUT_FEATURES and MODEL.FPN.IN_FEATURES" in message
    message = get_error(command(opts=["MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbon"]))
    assert "did you mean build_retinanet_resnet_fpn_backbone?" in message
