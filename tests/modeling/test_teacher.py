"""The losses of a teacher, against slow loops and finite differences, and its levels."""

import copy
import math

import pytest
import torch
from conftest import CONFIG, TINY
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import EventStorage

from tood.config.read import load_config
from tood.engine.hooks import WeightAverage
from tood.modeling import teacher
from tood.modeling.box_ops import paired_giou
from tood.modeling.dense_head import DensePredictions
from tood.modeling.losses import GIoULoss
from tood.modeling.teacher import (
    MIN_SCORE,
    SoftTargets,
    Teacher,
    compute_teacher_loss_sums,
    find_levels,
)

OPTIONS = dict(box_reg_loss=GIoULoss(), gamma=2.0, cls_weight=1.0, box_reg_weight=2.0)
FINE = [
    *("MODEL.RESNETS.OUT_FEATURES", "['res2','res3','res4','res5']"),
    *("MODEL.FPN.IN_FEATURES", "['res2','res3','res4','res5']"),
    *("MODEL.TOOD.IN_FEATURES", "['p2','p3','p4','p5','p6']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32],[64],[128],[256],[512]]"),
]
COARSE = [
    *("MODEL.TOOD.IN_FEATURES", "['p3','p4','p5']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[64],[128],[256]]"),
]


def build(*opts):
    return build_model(load_config(CONFIG, [*TINY, "MODEL.TOOD.NUM_CLASSES", "4", *opts]))


def draw_boxes(*shape):
    corners = torch.rand(*shape, 2) * 40
    return torch.cat([corners, corners + 5 + 20 * torch.rand(*shape, 2)], dim=-1)


def make_predictions(scores, boxes):
    return DensePredictions(scores.log(), boxes, Boxes(torch.zeros(boxes.shape[1], 4)), [])


def sum_losses(scores, boxes, targets, **changed):
    options = {**OPTIONS, **changed}
    predictions, valid = make_predictions(scores, boxes), torch.ones(boxes.shape[:2]).bool()
    return compute_teacher_loss_sums(predictions, targets, valid, **options)[0]


def test_options_of_the_losses():
    scores, boxes = torch.full((1, 1, 1), 0.25), torch.tensor([[[0.0, 0, 4, 4]]])
    targets = SoftTargets(torch.full((1, 1, 1), 0.75), torch.tensor([[[0.0, 0, 4, 2]]]))
    bce = -0.75 * math.log(0.25) - 0.25 * math.log(0.75)
    losses = sum_losses(scores, boxes, targets, gamma=1.0, cls_weight=3.0, box_reg_weight=5.0)
    assert losses["loss_teacher_cls"].item() == pytest.approx(3 * 0.5 * bce, rel=1e-5)
    assert losses["loss_teacher_box_reg"].item() == pytest.approx(5 * 0.75 * 0.5, rel=1e-5)


def test_boxes_that_are_not_learned_need_not_be_sound():
    """Not even numbers: box losses are finite for equal boxes alone."""
    scores, boxes = torch.tensor([[[0.5], [0.5]]]), torch.tensor([[[0.0, 0, 4, 4], [math.nan] * 4]])
    targets = SoftTargets(torch.tensor([[[0.5], [0.01]]]), torch.tensor([[[0.0, 0, 4, 2]] * 2]))
    losses = sum_losses(scores, boxes.requires_grad_(), targets)
    losses["loss_teacher_box_reg"].backward()
    assert losses["loss_teacher_box_reg"].item() == pytest.approx(0.5, rel=1e-4)
    assert boxes.grad.isfinite().all()


def test_losses_against_a_loop():
    scores, targets = torch.rand(2, 7, 3), torch.rand(2, 7, 3) * 0.5
    targets[0, :3] = 0.01  # no boxes are learned there
    boxes, wanted = draw_boxes(2, 7), draw_boxes(2, 7)
    cls = box_reg = 0.0
    for n in range(2):
        for r in range(7):
            for k in range(3):
                s, t = scores[n, r, k].item(), targets[n, r, k].item()
                bce = -t * math.log(s) - (1 - t) * math.log(1 - s)
                cls += abs(t - s) ** 2 * bce
            weight = targets[n, r].max().item()
            if weight > MIN_SCORE:
                box_reg += weight * (1 - paired_giou(boxes[n, r], wanted[n, r]).item())
    losses = sum_losses(scores, boxes, SoftTargets(targets, wanted))
    assert losses["loss_teacher_cls"].item() == pytest.approx(cls, rel=1e-4)
    assert losses["loss_teacher_box_reg"].item() == pytest.approx(2 * box_reg, rel=1e-4)


def test_padding_does_not_count():
    """The sums of a batch are those of the locations of each image alone, and numbers in the
    padding need not be finite.
    """
    scores, boxes, wanted = torch.rand(2, 7, 3), draw_boxes(2, 7), draw_boxes(2, 7)
    targets = SoftTargets(torch.rand(2, 7, 3), wanted)
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, [1, 4, 5]] = False
    expected, weight = {"loss_teacher_cls": 0.0, "loss_teacher_box_reg": 0.0}, 0.0
    for n, r in valid.nonzero().tolist():
        here = SoftTargets(targets.scores[n : n + 1, r : r + 1], wanted[n : n + 1, r : r + 1])
        alone = sum_losses(scores[n : n + 1, r : r + 1], boxes[n : n + 1, r : r + 1], here)
        expected = {name: expected[name] + alone[name].item() for name in expected}
        weight += targets.scores[n, r].max().item()
    boxes[1, 4], scores = math.nan, scores.requires_grad_()
    predictions = make_predictions(scores, boxes.requires_grad_())
    sums, found = compute_teacher_loss_sums(predictions, targets, valid, **OPTIONS)
    assert found.item() == pytest.approx(weight, rel=1e-5)
    assert {k: v.item() for k, v in sums.items()} == pytest.approx(expected, rel=1e-4)
    sum(sums.values()).backward()
    assert boxes.grad.isfinite().all() and not scores.grad[1, [1, 4, 5]].any()
    assert scores.grad[valid].any(dim=1).all()


def test_a_batch_of_images_of_two_sizes(make_input):
    """The teacher's losses are of the locations that the image has alone, by a loop over them."""
    student, model = build().train(), build()
    for layer in (model.head.cls_pred, model.head.cls_align[-1]):
        torch.nn.init.zeros_(layer.bias)  # scores of a quarter to a half, whose boxes are learned
    student.teacher = Teacher(model)
    batch = [make_input(64, 160, boxes=[]), make_input(128, 96)]
    with EventStorage(0):
        losses = student(batch)
    images, predictions = student.predict_with_images(batch)
    targets, options = student.teacher.predict(images, student.strides), OPTIONS
    padded = [(64, 160), (128, 96)]  # multiples of 32
    totals, weight, start = {}, 0.0, 0
    for (H, W), stride in zip(predictions.grid_sizes, student.strides):
        for n, (height, width) in enumerate(padded):
            for y in range(-(-height // stride)):
                for x in range(-(-width // stride)):
                    at = (slice(n, n + 1), slice(start + y * W + x, start + y * W + x + 1))
                    here = SoftTargets(targets.scores[at], targets.boxes[at])
                    scores, boxes = predictions.pred_scores[at], predictions.pred_boxes[at]
                    for name, loss in sum_losses(scores, boxes, here, **options).items():
                        totals[name] = totals.get(name, 0.0) + loss.item()
                    weight += here.scores.max().item()
        start += H * W
    for name, total in totals.items():
        assert losses[name].item() == pytest.approx(total / weight, rel=1e-3)


def test_gradients_against_finite_differences():
    scores = torch.rand(1, 4, 2, dtype=torch.float64) * 0.8 + 0.1
    boxes, wanted = draw_boxes(1, 4).double(), draw_boxes(1, 4).double()
    targets = SoftTargets(torch.rand(1, 4, 2, dtype=torch.float64), wanted)
    targets.scores[0, 0] = 0.001

    def total(scores, boxes):
        return sum(sum_losses(scores, boxes, targets).values())

    inputs = (scores.requires_grad_(), boxes.requires_grad_())
    assert torch.autograd.gradcheck(total, inputs)
    total(*inputs).backward()
    assert not boxes.grad[0, 0].any() and boxes.grad[0, 1:].abs().sum() > 0


def test_nothing_is_learned_from_an_equal():
    scores, boxes = (torch.rand(1, 5, 2) * 0.9 + 0.05).requires_grad_(), draw_boxes(1, 5)
    targets = SoftTargets(scores.detach().clone(), boxes.clone())
    losses = sum_losses(scores, boxes, targets)
    sum(losses.values()).backward()
    assert sum(losses.values()).item() == pytest.approx(0, abs=1e-5)
    assert scores.grad.abs().max() < 1e-5


@pytest.mark.parametrize(
    "strides, wanted, levels",
    [
        ([8, 16, 32, 64, 128], [8, 16, 32, 64], slice(0, 4)),
        ([4, 8, 16, 32], [8, 16, 32], slice(1, 4)),
        ([8, 16], [8, 16], slice(0, 2)),
        ([8, 16, 32], [4, 8, 16], None),
        ([8, 16], [8, 16, 32], None),
        ([8, 32], [8, 16], None),
    ],
)
def test_levels(strides, wanted, levels):
    if levels is None:
        with pytest.raises(ValueError, match="strides"):
            find_levels(strides, wanted)
    else:
        assert find_levels(strides, wanted) == levels


def test_its_locations_are_the_students():
    """A teacher whose weights are the student's, with one more level below and above."""
    student, model = build(*COARSE).eval(), build(*FINE)
    state = student.state_dict()
    own = model.state_dict()
    own.update({k: v for k, v in state.items() if k in own and not k.startswith("head.scales")})
    own.update({f"head.scales.{i + 1}": state[f"head.scales.{i}"] for i in range(3)})
    model.load_state_dict(own)
    images = ImageList(torch.randn(2, 3, 64, 96), [(64, 96), (50, 96)])
    with torch.no_grad():
        features = student.backbone(images.tensor)
        expected = student.head([features[f] for f in student.head_in_features])
    found = Teacher(model).predict(images, student.strides)
    torch.testing.assert_close(found.scores, expected.pred_scores)
    torch.testing.assert_close(found.boxes, expected.pred_boxes, atol=1e-3, rtol=1e-4)


def test_the_losses_are_in_float32(make_input):
    student = build("MODEL.TOOD.PRECISION_TRAIN", "bfloat16").train()
    student.teacher = Teacher(build())
    with EventStorage(0):
        losses = student([make_input()])
    assert {x.dtype for x in losses.values()} == {torch.float32}


def test_losses_of_several_processes(make_input, monkeypatch):
    """They are divided by the mean of the weights, here as if the others had none."""
    torch.manual_seed(0)
    student, model = build().train(), build()
    for layer in (model.head.cls_pred, model.head.cls_align[-1]):
        torch.nn.init.zeros_(layer.bias)
    student.teacher = Teacher(model)
    images, predictions = student.predict_with_images([make_input()])
    valid = torch.ones(predictions.pred_boxes.shape[:2], dtype=torch.bool)
    alone = student.teacher(student, images, predictions, valid)
    monkeypatch.setattr(teacher, "mean_over_processes", lambda weight: weight / 4)
    one_of_four = student.teacher(student, images, predictions, valid)
    for name, loss in alone.items():
        torch.testing.assert_close(one_of_four[name], 4 * loss)


def test_a_teacher_is_no_part_of_the_student(make_input):
    student, model = build(), build()
    for layer in (model.head.cls_pred, model.head.cls_align[-1]):
        torch.nn.init.zeros_(layer.bias)  # scores of a quarter to a half, whose boxes are learned
    before = {k: v.clone() for k, v in model.state_dict().items()}
    names = [*student.state_dict()]
    student.teacher = Teacher(model, weight=3.0)
    assert [*student.state_dict()] == names
    assert copy.deepcopy(student).teacher.model is model
    batch = [make_input(), make_input(boxes=[])]
    with EventStorage(0):
        thrice = student.train()(batch)
        student.teacher.weight = 1.0
        once = student(batch)
    images, predictions = student.predict_with_images(batch)
    targets = student.teacher.predict(images, student.strides)
    best = targets.scores.amax(dim=2)
    assert best.min() > MIN_SCORE
    valid = torch.ones(best.shape, dtype=torch.bool)  # images of one size
    expected, weight = compute_teacher_loss_sums(predictions, targets, valid, **OPTIONS)
    torch.testing.assert_close(weight, best.sum())
    for name, total in expected.items():
        assert once[name] > 0
        torch.testing.assert_close(once[name], total / best.sum(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(thrice[name], 3 * once[name])
    sum(thrice.values()).backward()
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all((v == before[k]).all() for k, v in model.state_dict().items())
    averaged = WeightAverage(student, decay=0.9)
    assert averaged.model.teacher is None and student.teacher is not None
    student.teacher = None
    with EventStorage(0):
        assert {*student(batch)} == {"loss_cls", "loss_box_reg"}
