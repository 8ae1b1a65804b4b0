import math

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from tood.modeling.losses import GIoULoss, aligned_focal_loss


def test_literal_values():
    p = torch.tensor([0.5, 0.5, 0.2])
    target = torch.tensor([0.0, 0.9, 0.2])
    expected = [
        0.5**2 * math.log(2),  # background: p^2 * BCE(p, 0)
        0.4**2 * math.log(2),  # |0.9 - 0.5|^2 * BCE(0.5, 0.9), and BCE(0.5, any) = log 2
        0.0,  # the target is reached, for any BCE
    ]
    assert aligned_focal_loss(p.log(), target).tolist() == pytest.approx(expected)


def test_is_the_focal_loss_on_hard_targets():
    logits = torch.randn(50, 4)
    targets = (torch.rand(50, 4) > 0.7).float()
    expected = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
    log_scores = torch.nn.functional.logsigmoid(logits)
    actual = aligned_focal_loss(log_scores, targets, gamma=2.0, alpha=0.25)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("target", [0.0, 0.4, 1.0])
def test_extreme_logits_have_the_gradient_of_double_precision(target):
    values = [-200.0, -60.0, -20.0, -1.0, 0.0, 1.0, 15.0, 20.0, 30.0]
    gradients = []
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor(values, dtype=dtype, requires_grad=True)
        log_scores = torch.nn.functional.logsigmoid(logits)
        loss = aligned_focal_loss(log_scores, torch.full_like(log_scores, target))
        loss.sum().backward()
        gradients.append(logits.grad.double())
    assert gradients[0].abs().max() > 0.1 or target == 0.4
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("target", [0.0, 0.4, 1.0])
def test_saturated_logits_have_a_finite_loss_and_gradient(target):
    logits = torch.tensor([-1e4, -200.0, 89.0, 200.0, 1e4], requires_grad=True)
    log_scores = torch.nn.functional.logsigmoid(logits)
    loss = aligned_focal_loss(log_scores, torch.full_like(log_scores, target))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()


def test_nan_stays_nan():
    assert aligned_focal_loss(torch.tensor([math.nan]), torch.tensor([0.0])).isnan().all()


def test_background_is_a_target_of_zero():
    log_scores = torch.nn.functional.logsigmoid(torch.randn(50, 4) * 5)
    for alpha in (None, 0.25):
        expected = aligned_focal_loss(log_scores, torch.zeros(50, 4), alpha=alpha)
        torch.testing.assert_close(aligned_focal_loss(log_scores, alpha=alpha), expected)


def test_giou_loss_literal_values():
    gt_boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(4, 4)
    pred_boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10], [5, 5, 5, 5]])
    # The third: no overlap, areas of 200 in a hull of 300; the last: no area.
    assert GIoULoss()(pred_boxes, gt_boxes).tolist() == pytest.approx([0, 0.5, 4 / 3, 1])


def test_giou_loss_equals_torchvisions():
    low = torch.rand(2, 60, 2) * 50
    pred_boxes, gt_boxes = torch.cat([low, low + torch.rand(2, 60, 2) * 40], dim=2)
    pred_boxes.requires_grad_()
    losses = [f(pred_boxes, gt_boxes) for f in (GIoULoss(), generalized_box_iou_loss)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss.sum(), pred_boxes)[0] for loss in losses]
    torch.testing.assert_close(*gradients)
