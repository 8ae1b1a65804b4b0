"""The paper's switches: parallel head, alignment on or off, ATSS throughout."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from tood import model_zoo
from tood.config.check import check_config
from tood.modeling.assigners import TAL
from tood.modeling.dense_head import HEAD_REGISTRY
from tood.modeling.layers import sample_each_side
from tood.utils.errors import UserError

PAPER = sorted(p.stem for p in (ROOT / "configs" / "paper").glob("*.yaml"))
STRIDES = (8, 16, 32, 64, 128)
CENTERNESS = {"HEAD": "parallel", "ASSIGNER": "atss", "CENTERNESS": True}


def with_options(cfg, **options):
    for key, value in options.items():
        cfg.MODEL.TOOD[key] = value
    check_config(cfg)
    return cfg


def build_head(cfg, channels=32):
    return HEAD_REGISTRY.get(cfg.MODEL.TOOD.HEAD)(
        cfg, [ShapeSpec(channels=channels, stride=s) for s in STRIDES]
    )


def make_features(size=16):
    return [torch.randn(2, 32, max(1, size >> i), max(1, size >> i)) for i in range(5)]


@pytest.mark.parametrize("head", ["task_aligned", "parallel"])
@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("box", [True, False])
def test_each_alignment_can_be_turned_off(tiny_cfg, head, cls, box):
    """The outputs of a head without alignment are those of its predictors."""
    model = build_head(with_options(tiny_cfg, HEAD=head, ALIGN_CLS=cls, ALIGN_BOX=box))
    torch.nn.init.normal_(model.cls_pred.weight, std=0.3)
    names = {n.split(".")[0] for n, _ in model.named_parameters()}
    assert ("cls_align" in names) == cls and ("reg_align" in names) == box
    for branch in (model.cls_align, model.reg_align):
        if branch is not None:
            torch.nn.init.normal_(branch[-1].weight, std=0.5)
    cls_maps, reg_maps = [], []
    model.cls_pred.register_forward_hook(lambda m, i, o: cls_maps.append(o))
    model.reg_pred.register_forward_hook(lambda m, i, o: reg_maps.append(o))
    predictions = model(make_features())
    scores = cls_maps[0].sigmoid().flatten(2).transpose(1, 2)
    finest = slice(0, 16 * 16)
    assert torch.allclose(predictions.pred_scores[:, finest], scores, atol=1e-5) == (not cls)
    y, x = torch.meshgrid(torch.arange(16.0) * 8, torch.arange(16.0) * 8, indexing="ij")
    sides = reg_maps[0].exp() * 8
    boxes = torch.stack([x - sides[:, 0], y - sides[:, 1], x + sides[:, 2], y + sides[:, 3]], dim=1)
    plain = boxes.flatten(2).transpose(1, 2)
    assert torch.allclose(predictions.pred_boxes[:, finest], plain, atol=1e-3) == (not box)


def test_alignment_on_the_parallel_head_reads_the_last_features(tiny_cfg):
    head = build_head(with_options(tiny_cfg, HEAD="parallel"))
    torch.nn.init.normal_(head.reg_align[-1].weight, std=0.5)
    (x, *_) = features = make_features()
    predictions = head(features)
    for_cls, for_reg = head.cls_tower(x), head.reg_tower(x)
    scores = (head.cls_pred(for_cls).sigmoid() * head.cls_align(for_cls).sigmoid()).sqrt()
    finest = slice(0, 16 * 16)
    torch.testing.assert_close(
        predictions.pred_scores[:, finest], scores.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4
    )
    y, x = torch.meshgrid(torch.arange(16.0) * 8, torch.arange(16.0) * 8, indexing="ij")
    sides = head.reg_pred(for_reg).exp() * 8
    boxes = torch.stack([x - sides[:, 0], y - sides[:, 1], x + sides[:, 2], y + sides[:, 3]], dim=1)
    boxes = sample_each_side(boxes, head.reg_align(for_reg)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(predictions.pred_boxes[:, finest], boxes, atol=1e-3, rtol=1e-4)


def test_centerness_ranks_detections_and_is_learned(tiny_cfg, make_input):
    model = build_model(with_options(tiny_cfg, **CENTERNESS, ATSS_ITERS=0)).train()
    inputs = [make_input(), make_input(boxes=[])]
    with EventStorage(start_iter=10):
        losses = model(inputs)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_centerness"}
    sum(losses.values()).backward()
    assert model.head.centerness.weight.grad.abs().sum() > 0
    # Against a loop over the positives, whose targets are those of ATSS.
    with torch.no_grad():
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        predictions = model.head([features[f] for f in model.head_in_features])
        gt = [x["instances"] for x in inputs]
        targets = model.label_batch(images, predictions, gt, model.warmup_assigner)
        expected = [
            F.binary_cross_entropy_with_logits(
                predictions.centerness_logits[0, r], targets.box_weights[0, r]
            ).item()
            for r in targets.positive[0].nonzero()[:, 0]
        ]
        centerness = predictions.centerness_logits.sigmoid()[..., None]
        ranked = (predictions.pred_log_scores.exp() * centerness).sqrt()
        torch.testing.assert_close(predictions.pred_scores, ranked)
    assert losses["loss_centerness"].item() == pytest.approx(
        sum(expected) / len(expected), rel=1e-4
    )


def test_threshold_is_for_the_class_alone(tiny_cfg, make_input):
    model = build_model(with_options(tiny_cfg, **CENTERNESS, SCORE_THRESH_TEST=0.05)).eval()
    torch.nn.init.constant_(model.head.cls_pred.bias, 0.0)  # 0.5
    torch.nn.init.constant_(model.head.centerness.bias, -5.0)  # 0.007: the product is below 0.05
    with torch.no_grad():
        (output,) = model([make_input()])
    scores = output["instances"].scores
    assert len(scores) > 0 and scores.max() < 0.1
    torch.nn.init.constant_(model.head.cls_pred.bias, -5.0)
    torch.nn.init.constant_(model.head.centerness.bias, 5.0)
    with torch.no_grad():
        (output,) = model([make_input()])
    assert len(output["instances"]) == 0


def test_atss_throughout(tiny_cfg, make_input):
    """The same losses in the first iteration and in the last."""
    model = build_model(with_options(tiny_cfg, ASSIGNER="atss", ATSS_ITERS=2)).train()
    inputs = [make_input()]
    by_iteration = []
    for iteration in (0, 1000):
        with EventStorage(start_iter=iteration):
            by_iteration.append({k: v.item() for k, v in model(inputs).items()})
    assert by_iteration[0] == by_iteration[1]
    model.assigner = TAL()
    with EventStorage(start_iter=1000):
        assert model(inputs)["loss_cls"].item() != by_iteration[1]["loss_cls"]


@pytest.mark.parametrize("options", [{"HEAD": "task_aligned"}, {"ASSIGNER": "tal"}])
def test_centerness_elsewhere_is_refused(tiny_cfg, options):
    with pytest.raises(UserError, match="CENTERNESS is True with the head"):
        with_options(tiny_cfg, **{**CENTERNESS, **options})


@pytest.mark.parametrize("name", PAPER)
def test_configs_of_the_paper(name):
    cfg = model_zoo.get_config(f"paper/{name}")
    check_config(cfg)
    tood, base = cfg.MODEL.TOOD, model_zoo.get_config("tood_R50_FPN_1x").MODEL.TOOD
    assert (tood.HEAD == "parallel") == name.startswith("parallel")
    assert (tood.ASSIGNER == "atss") == ("ATSS" in name)
    assert (tood.ANCHOR_TYPE == "anchor_based") == ("anchor_based" in name)
    assert tood.ALIGN_CLS == tood.ALIGN_BOX == ("TAP" in name or "parallel" not in name)
    assert cfg.SOLVER.MAX_ITER == (18 if "18e" in name else 12) * 7330
    if name.startswith("tood_"):
        changed = {key for key in base if tood[key] != base[key]}
        assert changed and changed <= {"TAL_ALPHA", "TAL_BETA", "TAL_TOPK"}
