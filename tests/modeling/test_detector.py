"""The whole detector, tiny: both phases, objects and none, images of different size, bad values."""

import copy
import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from tood.deploy.module import ExportableTOOD
from tood.modeling.dense_head import DensePredictions
from tood.modeling.losses import aligned_focal_loss
from tood.modeling.postprocess import select_candidates, suppress_non_maxima
from tood.modeling.targets import Targets

PHASES = {"warmup": 0, "tal": 1}  # iteration of each, with a warm-up of one


@pytest.fixture
def model(tiny_cfg):
    tiny_cfg.MODEL.TOOD.ATSS_ITERS = 1
    return build_model(tiny_cfg)


def train_losses(model, inputs, phase):
    model.train()
    with EventStorage(start_iter=PHASES[phase]):
        return model(inputs)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("anchor_type", ["anchor_free", "anchor_based"])
def test_every_parameter_has_a_finite_gradient(tiny_cfg, make_input, phase, anchor_type):
    tiny_cfg.MODEL.TOOD.ATSS_ITERS = 1
    tiny_cfg.MODEL.TOOD.ANCHOR_TYPE = anchor_type
    model = build_model(tiny_cfg)
    # An object for each level, so that the scales of all levels learn.
    inputs = [
        make_input(256, 256, [(8.0, 8, 40, 48), (100, 90, 180, 170), (0, 0, 256, 256)]),
        make_input(192, 256, [(60.0, 60, 70, 70), (4, 4, 140, 130), (30, 50, 60, 90)]),
    ]
    losses = train_losses(model, inputs, phase)
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    still = [n for n, p in model.named_parameters() if p.grad.abs().sum() == 0]
    # A level without a positive teaches nothing to its scale; everything else learns.
    assert all(n.startswith("head.scales.") for n in still), still


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("boxes", [[[]], [[], [(8.0, 8.0, 40.0, 48.0)]]], ids=["none", "in one"])
def test_images_without_objects(model, make_input, phase, boxes):
    inputs = [make_input(boxes=b) for b in boxes]
    losses = train_losses(model, inputs, phase)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_cls"] > 0
    if len(boxes) == 1:
        assert losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_phase_follows_the_iteration(model, make_input):
    inputs = [make_input()]
    warmup, tal = (train_losses(model, inputs, phase) for phase in PHASES)
    assert not torch.isclose(warmup["loss_cls"], tal["loss_cls"])
    model.atss_iters = 0
    assert torch.equal(train_losses(model, inputs, "warmup")["loss_cls"], tal["loss_cls"])


@pytest.mark.parametrize("phase", PHASES)
def test_targets_do_not_depend_on_the_rest_of_the_batch(model, make_input, phase):
    small, large = make_input(64, 96), make_input(160, 224, [(20.0, 30, 120, 140)])
    alone, together = label(model, [small], phase), label(model, [small, large], phase)
    assert together.positive[0].sum() == alone.positive[0].sum() > 0
    assert together.valid[0].sum() == alone.valid[0].sum() < together.valid.shape[1]
    assert not (together.positive & ~together.valid).any()
    valid = together.valid[0]
    for a, b in zip(alone, together):
        assert torch.equal(a[0], b[0][valid])


def label(model, inputs, phase):
    """Targets of made-up predictions that are the same for a location in every batch."""
    images = model.preprocess_image(inputs)
    with torch.no_grad():
        features = model.backbone(images.tensor)
        predictions = model.head([features[f] for f in model.head_in_features])
    anchors = predictions.anchors.tensor
    N = len(inputs)
    scores = (anchors.sum(dim=1, keepdim=True) * 0.1).sin().abs().expand(-1, 4)
    boxes = torch.cat([anchors[:, :2] * 0.7, anchors[:, 2:] * 0.6 + 10], dim=1)
    predictions = predictions._replace(
        pred_log_scores=scores.repeat(N, 1, 1).log(), pred_boxes=boxes.repeat(N, 1, 1)
    )
    gt_instances = [x["instances"] for x in inputs]
    return model.label_batch(images, predictions, gt_instances, model.assigner_at(PHASES[phase]))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_inf_and_nan_features(model, make_input, value):
    model.eval()
    inputs = [make_input(64, 64)]
    images = model.preprocess_image(inputs)
    features = [torch.full((1, 32, 64 // s, 64 // s), value) for s in (8, 16, 32, 64)]
    features.append(torch.full((1, 32, 1, 1), value))
    predictions = model.head(features)
    (instances,) = model.forward_inference(images, features, predictions)
    assert torch.isfinite(instances.pred_boxes.tensor).all()
    assert torch.isfinite(instances.scores).all()

    gt = [x["instances"] for x in inputs]
    for iteration in PHASES.values():
        with EventStorage(start_iter=iteration):
            losses = model.forward_training(images, features, predictions, gt)
        assert not torch.isfinite(losses["loss_cls"])  # for the trainer to see, not hidden


def test_predict_dense(model, make_input):
    model.eval()
    inputs = [make_input(64, 96), make_input(50, 70)]
    scores, boxes, anchors = model.predict_dense(inputs)
    R = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1
    assert scores.shape == (2, R, 4) and boxes.shape == (2, R, 4) and len(anchors) == R
    assert isinstance(anchors, Boxes)
    assert ((scores > 0) & (scores < 1)).all()


def test_inference_keeps_what_it_should(model, make_input):
    model.eval()
    torch.nn.init.normal_(model.head.cls_pred.weight, std=1.0)
    torch.nn.init.zeros_(model.head.cls_align[-1].bias)
    model.max_detections_per_image = 20
    x = make_input(64, 96)
    x["height"], x["width"] = 128, 192  # of the image before resizing
    with torch.no_grad():
        instances = model([x])[0]["instances"]
    assert 0 < len(instances) <= 20
    assert instances.image_size == (128, 192)
    assert instances.pred_boxes.tensor[:, 2].max() <= 192
    assert instances.pred_boxes.tensor.max() > 96
    assert (instances.scores > 0.05).all()
    assert (instances.scores.diff() <= 0).all()
    assert instances.pred_classes.dtype == torch.int64


def test_select_candidates():
    nan = float("nan")
    # Two levels of two locations and of one; each box encodes its location.
    scores = torch.tensor([[[0.9, 0.01], [0.3, 0.8], [0.05, nan]], [[0.0, 0], [0, 0], [0.2, 0.9]]])
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]]).expand(2, 3, 4)
    candidates = select_candidates(scores, boxes, [2, 1], score_thresh=0.05, topk=2)
    assert candidates.counts.tolist() == [2, 2]
    assert candidates.scores[0, :2].tolist() == pytest.approx([0.9, 0.8])
    assert candidates.boxes[0, :2, 2].tolist() == [1, 2]
    assert candidates.classes[0, :2].tolist() == [0, 1]
    assert candidates.scores[1, :2].tolist() == pytest.approx([0.9, 0.2])
    assert candidates.boxes[1, :2, 2].tolist() == [3, 3]
    assert candidates.classes[1, :2].tolist() == [1, 0]
    counts = select_candidates(scores, boxes, [2, 1], score_thresh=0.95, topk=2).counts
    assert counts.tolist() == [0, 0]


def detect(model, boxes, scores):
    """Detections of the model for an image of made-up predictions."""
    scores = torch.tensor(scores)[None, :, None]
    predictions = DensePredictions(
        pred_log_scores=torch.cat([scores, torch.zeros(1, len(boxes), 3)], dim=2).log(),
        pred_boxes=torch.tensor([boxes]),
        anchors=None,
        grid_sizes=[(1, len(boxes))],
    )
    images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    (instances,) = model.forward_inference(images, [], predictions)
    return instances


def test_boxes_without_end_are_not_detections(model):
    boxes = [[0.0, 0, math.inf, 50], [5, 5, 25, 25], [5, 5, 25, 25.5]]
    instances = detect(model, boxes, [0.9, 0.8, 0.7])
    assert instances.scores.tolist() == pytest.approx([0.8])  # and NMS removed the last


def test_boxes_without_area_are_not_detections(model):
    instances = detect(model, [[0.0, 0, 0, 50], [5, 5, 25, 25]], [0.9, 0.8])
    assert instances.scores.tolist() == pytest.approx([0.8])


def make_predictions(log_scores, boxes):
    return DensePredictions(log_scores, boxes, anchors=None, grid_sizes=[])


def make_targets(gt_index, **changes):
    """Targets (N, R) of objects of class 1, with nothing else in them."""
    gt_index = torch.as_tensor(gt_index)
    N, R = gt_index.shape
    targets = Targets(
        gt_index=gt_index,
        gt_classes=torch.ones(N, R, dtype=torch.int64),
        gt_boxes=torch.zeros(N, R, 4),
        cls_targets=torch.zeros(N, R),
        box_weights=torch.zeros(N, R),
        valid=torch.ones(N, R, dtype=torch.bool),
    )
    return targets._replace(**changes)


def test_losses_without_objects_are_divided_by_one(model):
    log_scores = torch.full((1, 129, 4), math.log(0.5))
    targets = make_targets([[-1] * 129])
    boxes = torch.zeros(1, 129, 4)
    losses = model.losses(make_predictions(log_scores, boxes), targets, model.assigner)
    assert losses["loss_cls"].item() == pytest.approx(129 * 4 * 0.25 * math.log(2), rel=1e-5)
    # Locations outside of the image do not count, with any prediction.
    targets.valid[0, 100:] = False
    log_scores[0, 100:] = math.log(0.9)
    losses = model.losses(make_predictions(log_scores, boxes), targets, model.assigner)
    assert losses["loss_cls"].item() == pytest.approx(100 * 4 * 0.25 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("warmup", [True, False])
def test_loss_cls_against_the_loss_of_dense_targets(model, warmup):
    log_scores = torch.nn.functional.logsigmoid(torch.randn(2, 30, 4)).requires_grad_()
    positive = torch.rand(2, 30) < 0.3
    targets = make_targets(
        torch.where(positive, 0, -1),
        gt_classes=torch.randint(4, (2, 30)),
        cls_targets=torch.where(positive, 1.0 if warmup else torch.rand(2, 30), 0.0),
        valid=positive | (torch.rand(2, 30) < 0.8),
    )
    dense_targets = torch.zeros(2, 30, 4)
    dense_targets.scatter_(2, targets.gt_classes[..., None], targets.cls_targets[..., None])
    assigner = model.assigner_at(0 if warmup else 1)
    expected = aligned_focal_loss(
        log_scores, dense_targets, gamma=2.0, alpha=0.25 if warmup else None
    )
    expected = (expected * targets.valid[..., None]).sum() / targets.cls_targets.sum().clamp(min=1)
    predictions = make_predictions(log_scores, torch.zeros(2, 30, 4))
    actual = model.losses(predictions, targets, assigner)["loss_cls"]
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(loss, log_scores)[0] for loss in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_loss_weights_and_normalizers(model):
    targets = make_targets(
        [[0, 0, -1]],
        gt_boxes=torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 0, 0]]]),
        box_weights=torch.tensor([[1.0, 3.0, 0.0]]),
    )
    # What background predicts of boxes is never looked at.
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5], [0, math.nan, math.inf, 1]]])
    boxes.requires_grad_()
    losses = model.losses(
        make_predictions(torch.full((1, 3, 4), -1.0), boxes), targets, model.assigner
    )
    # GIoU losses 0 and 0.5, weighted by 1 and 3, over their sum 4; times 2.
    assert losses["loss_box_reg"].item() == pytest.approx(2 * (3 * 0.5) / 4, rel=1e-5)
    losses["loss_box_reg"].backward()
    assert boxes.grad[0, 1].abs().sum() > 0 and boxes.grad[0, 2].abs().sum() == 0


def test_batch_norm_keeps_its_statistics_and_learns_its_weights(tiny_cfg, make_input):
    tiny_cfg.MODEL.RESNETS.NORM = "BN"
    tiny_cfg.MODEL.BACKBONE.FREEZE_AT = 2
    model = build_model(tiny_cfg)
    buffers = copy.deepcopy(dict(model.named_buffers()))
    losses = train_losses(model, [make_input()], "warmup")
    sum(losses.values()).backward()
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    norm = model.backbone.bottom_up.res3[0].conv1.norm
    assert norm.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in model.backbone.bottom_up.res2.parameters())

    tiny_cfg.MODEL.TOOD.FREEZE_BN_STATS = False
    model = build_model(tiny_cfg)
    before = model.backbone.bottom_up.res3[0].conv1.norm.running_mean.clone()
    train_losses(model, [make_input()], "warmup")
    assert not torch.equal(before, model.backbone.bottom_up.res3[0].conv1.norm.running_mean)


def test_autocast_keeps_assignment_and_loss_in_float32(model, make_input):
    inputs = [make_input()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = train_losses(model, inputs, "tal")
        images, predictions = model.predict_with_images(inputs)
    targets = model.label_batch(
        images, predictions, [x["instances"] for x in inputs], model.assigner
    )
    for name, expected in model.losses(predictions, targets, model.assigner).items():
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], expected)
    # What comes out of the half-precision convolutions is decoded in float32 as well.
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        scores, boxes, _ = model.predict_dense(inputs)
    assert scores.dtype == boxes.dtype == torch.float32
    widths = boxes[..., 2] - boxes[..., 0]
    assert not torch.equal(widths, widths.bfloat16().float())


def test_inference_in_half_precision(tiny_cfg, make_input):
    torch.manual_seed(1)
    model = build_model(tiny_cfg).eval()
    model.score_thresh_test = 0.0
    inputs = [make_input()]
    with torch.no_grad():
        exact = model(inputs)[0]["instances"]
        model.precision_test = "bfloat16"
        dtypes = []
        model.head.reg_pred.register_forward_hook(lambda *x: dtypes.append(x[-1].dtype))
        rounded = model(inputs)[0]["instances"]
    assert set(dtypes) == {torch.bfloat16}
    assert rounded.scores.dtype == rounded.pred_boxes.tensor.dtype == torch.float32
    assert rounded.scores[0].item() == pytest.approx(exact.scores[0].item(), rel=0.05)
    assert not torch.equal(rounded.scores, exact.scores)


def test_unknown_precision_is_named(tiny_cfg):
    tiny_cfg.MODEL.TOOD.PRECISION_TEST = "half"
    with pytest.raises(ValueError, match="PRECISION_TEST is 'half'"):
        build_model(tiny_cfg)


class NoWaiting(TorchDispatchMode):
    """Refuses what would make a CPU wait for a GPU: to read a value, or to pick by a mask."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        assert name not in self.FORBIDDEN, name
        if name in ("index", "index_put", "index_put_"):
            masks = [x for x in args[1] if x is not None and x.dtype == torch.bool]
            assert not masks, f"{name} by a mask"
        return function(*args, **(kwargs or {}))


def test_no_waiting_tells():
    x = torch.ones(3)
    for wait in (lambda: x[x > 0], lambda: x.sum().item(), lambda: x.nonzero()):
        with NoWaiting(), pytest.raises(AssertionError):
            wait()


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_in_head_assignment_and_losses_waits_for_a_gpu(model, make_input, phase):
    inputs = [make_input(64, 96), make_input(128, 128, [])]
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    features = [features[f] for f in model.head_in_features]
    gt_instances = [x["instances"] for x in inputs]
    with EventStorage(start_iter=PHASES[phase]), NoWaiting():
        losses = model.forward_training(images, features, model.head(features), gt_instances)
    assert losses["loss_box_reg"] > 0


def extreme_predictions(kind, R):
    """Log-scores (1, R, 4) and boxes (1, R, 4) that no sound network makes."""
    logits = {"high": 200.0, "low": -200.0, "equal": 0.0, "far": 0.0}[kind]
    logits = torch.full((1, R, 4), logits, requires_grad=True)
    boxes = torch.tensor([0.0, 0, 30, 30]).repeat(1, R, 1)
    if kind == "far":
        boxes = boxes * 1e6 + 1e8
    return logits, boxes.requires_grad_()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["high", "low", "equal", "far"])
def test_extreme_predictions_have_a_finite_loss_and_gradient(model, make_input, kind, phase):
    inputs = [make_input(64, 96, [(8.0, 8.0, 40.0, 48.0), (0.0, 0.0, 96.0, 64.0)])]
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    predictions = model.head([features[f] for f in model.head_in_features])
    logits, boxes = extreme_predictions(kind, len(predictions.anchors))
    log_scores = torch.nn.functional.logsigmoid(logits)
    predictions = predictions._replace(pred_log_scores=log_scores, pred_boxes=boxes)
    with EventStorage(start_iter=PHASES[phase]):
        losses = model.forward_training(images, [], predictions, [x["instances"] for x in inputs])
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert torch.isfinite(logits.grad).all() and torch.isfinite(boxes.grad).all()


def test_gradients_in_bfloat16_on_the_smallest_maps(tiny_cfg):
    top_block = build_model(tiny_cfg).backbone.top_block
    p5 = torch.randn(2, 32, 2, 1)
    gradients = []
    for enabled in (False, True):
        top_block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            sum(p.float().sum() for p in top_block(p5)).backward()
        gradients.append([p.grad.clone() for p in top_block.parameters()])
    for exact, rounded in zip(*gradients):
        assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_nms_between_classes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    candidates = Instances((64, 64), pred_boxes=Boxes(boxes), scores=torch.tensor([0.9, 0.8, 0.7]))
    candidates.pred_classes = torch.tensor([0, 1, 1])
    assert suppress_non_maxima(candidates, 0.5, 9).scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    found = suppress_non_maxima(candidates, 0.5, 9, class_agnostic=True)
    assert found.pred_classes.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])


def test_class_agnostic_nms_is_a_key(tiny_cfg, make_input):
    tiny_cfg.MODEL.TOOD.SCORE_THRESH_TEST = 0.0
    image = make_input()
    for agnostic in (False, True):
        tiny_cfg.MODEL.TOOD.CLASS_AGNOSTIC_NMS = agnostic
        torch.manual_seed(0)
        model = build_model(tiny_cfg).eval()
        with torch.no_grad():
            instances = model.suppress(model.find_candidates([image])[0])
            module = ExportableTOOD(model).eval()
            count = module(image["image"][None].float())[0].item()
        boxes = instances.pred_boxes
        overlap = (pairwise_iou(boxes, boxes) - torch.eye(len(boxes))).max()
        assert agnostic == (overlap <= tiny_cfg.MODEL.TOOD.NMS_THRESH_TEST)
        assert count == len(instances) > 5
