"""docs/extending.md's three tasks, each in one short file outside the package."""

import pytest
import torch
from conftest import EXTENSIONS, ROOT, assert_from_their_locations, load_extension
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from tood.config.build import check_builds
from tood.config.check import check_config
from tood.config.options import TTAOptions
from tood.config.unread import check_unread
from tood.inference.tta import TOODWithTTA
from tood.modeling.assigners import ImagePredictions

TASKS = ("assigner", "head", "backbone")


for task in TASKS:
    load_extension(task)


def losses_of(model, inputs):
    model.train()
    with EventStorage(start_iter=0):
        losses = model(inputs)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_one_short_file_that_the_guide_quotes(name):
    text = (EXTENSIONS / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 40
    assert text in (ROOT / "docs" / "extending.md").read_text()


def test_an_assigner(tiny_cfg, make_input):
    tiny_cfg.MODEL.TOOD.ASSIGNER, tiny_cfg.MODEL.TOOD.ATSS_ITERS = "CenterSampling", 0
    check_config(tiny_cfg)
    model = build_model(tiny_cfg)
    # The location (24, 24) of stride 8 is 4 pixels from the centre of both; the smaller has it.
    anchors = torch.tensor([[-8.0, -8, 56, 56], [72, -8, 136, 56]])
    boxes = torch.tensor([[4.0, 4, 52, 52], [8, 8, 48, 48]])
    gt = Instances((64, 96), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1]))
    assignment = model.assigner(ImagePredictions(None, anchors, anchors, [2, 0, 0, 0, 0]), gt)
    assert assignment.gt_index.tolist() == [1, -1]
    losses = losses_of(model, [make_input(), make_input(boxes=[])])
    assert losses["loss_box_reg"] > 0 and model.head.reg_pred.weight.grad.abs().sum() > 0


def test_a_backbone(tiny_cfg, make_input):
    tiny_cfg.MODEL.BACKBONE.NAME, tiny_cfg.MODEL.TOOD.ATSS_ITERS = "FiveConvs", 0
    check_config(tiny_cfg)
    model = build_model(tiny_cfg)
    losses_of(model, [make_input(128, 128), make_input(100, 90)])
    assert model.backbone.stem.weight.grad.abs().sum() > 0
    with torch.no_grad():
        (output,) = model.eval()([make_input(100, 90)])
    assert output["instances"].image_size == (100, 90)


@pytest.fixture
def uncertain(tiny_cfg):
    tiny_cfg.MODEL.TOOD.HEAD = "UncertainHead"
    tiny_cfg.MODEL.TOOD.NUM_CONVS, tiny_cfg.MODEL.TOOD.TOPK_CANDIDATES_TEST = 1, 60
    tiny_cfg.MODEL.TOOD.IN_FEATURES = ["p3", "p6"]
    tiny_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64], [512]]
    tiny_cfg.MODEL.RESNETS.NORM = "BN"
    check_config(tiny_cfg)
    model = build_model(tiny_cfg).eval()
    torch.nn.init.normal_(model.head.cls_pred.weight, std=0.5)
    torch.nn.init.normal_(model.head.reg_pred.weight, std=0.05)
    return model


def test_a_head_with_one_more_output(uncertain, make_input):
    image = make_input(64, 96)
    with torch.no_grad():
        (plain,) = uncertain([image])
    assert_from_their_locations(uncertain, image, plain["instances"])
    (augmented,) = TOODWithTTA(uncertain, TTAOptions(True, [64], 400, flip=False))([image])
    assert torch.equal(augmented["instances"].uncertainty, plain["instances"].uncertainty)


def test_parts_of_a_user_are_not_tried_without_numbers(tiny_cfg):
    """They may compute with numbers where they are built, as transformers do."""

    @BACKBONE_REGISTRY.register()
    def needs_numbers(cfg, input_shape):
        assert torch.ones(1).item() == 1
        return BACKBONE_REGISTRY.get("FiveConvs")(cfg, input_shape)

    tiny_cfg.MODEL.BACKBONE.NAME = "needs_numbers"
    tiny_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.3  # which it may read
    check_unread(tiny_cfg)
    check_builds(tiny_cfg)
    assert build_model(tiny_cfg).backbone.channels == tiny_cfg.MODEL.FPN.OUT_CHANNELS
