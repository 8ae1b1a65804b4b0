"""Both assigners against literal values and slow loops over objects and locations."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou

from tood.modeling import assigners as assign
from tood.modeling import box_ops
from tood.modeling.assigners import ATSS, TAL, ImagePredictions
from tood.modeling.box_ops import centerness, paired_iou
from tood.modeling.targets import find_locations

GRIDS, STRIDES = [(8, 10), (4, 5), (2, 3)], [8, 16, 32]
LEVEL_SIZES = [h * w for h, w in GRIDS]


def objects(gt_boxes, gt_classes):
    return Instances((100, 100), gt_boxes=Boxes(gt_boxes), gt_classes=gt_classes)


def assign_tal(pred_scores, pred_boxes, anchors, gt_boxes, gt_classes, **options):
    predictions = ImagePredictions(pred_scores.log(), pred_boxes, anchors, [len(anchors)])
    return TAL(**options)(predictions, objects(gt_boxes, gt_classes))


def assign_atss(anchors, level_sizes, gt_boxes, **options):
    """Assign without scores, which ATSS must not read."""
    predictions = ImagePredictions(None, anchors, anchors, level_sizes)
    return ATSS(**options)(predictions, objects(gt_boxes, torch.zeros(len(gt_boxes)).long()))


def make_anchors(grids=GRIDS, strides=STRIDES):
    anchors = [
        (x * s - 4 * s, y * s - 4 * s, x * s + 4 * s, y * s + 4 * s)
        for (h, w), s in zip(grids, strides)
        for y in range(h)
        for x in range(w)
    ]
    return torch.tensor(anchors, dtype=torch.float32)


def random_objects(generator, num_objects, num_classes=3):
    low = torch.rand(num_objects, 2, generator=generator) * torch.tensor([60.0, 45.0])
    size = torch.rand(num_objects, 2, generator=generator) ** 2 * 40 + 8
    classes = torch.randint(num_classes, (num_objects,), generator=generator)
    return torch.cat([low, low + size], dim=1), classes


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return width * height / (sum(areas) - width * height)


def inside(anchor, box):
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    return min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01


def winners(chosen, ious, num_locations):
    """Return the object with the highest IoU of those that chose a location; -1 if none did."""
    owner = [-1] * num_locations
    for r in range(num_locations):
        for m in range(len(chosen)):
            if r in chosen[m] and (owner[r] < 0 or ious[m][r] > ious[owner[r]][r]):
                owner[r] = m
    return owner


def slow_tal(scores, boxes, anchors, gt_boxes, gt_classes, topk, alpha, beta):
    R, M = len(anchors), len(gt_boxes)
    ious = [[iou(g, b) for b in boxes] for g in gt_boxes]
    t = [
        [scores[r][gt_classes[m]] ** alpha * ious[m][r] ** beta for r in range(R)] for m in range(M)
    ]
    chosen = []
    for m in range(M):
        best = sorted(range(R), key=lambda r: -t[m][r])[:topk]  # over all locations first
        chosen.append({r for r in best if t[m][r] > 0 and inside(anchors[r], gt_boxes[m])})
    owner = winners(chosen, ious, R)
    targets = [0.0] * R
    for m in range(M):
        mine = [r for r in range(R) if owner[r] == m]
        for r in mine:
            largest_t, largest_u = max(t[m][q] for q in mine), max(ious[m][q] for q in mine)
            targets[r] = t[m][r] / (largest_t + 1e-7) * largest_u
    return owner, targets


def slow_atss(anchors, level_sizes, gt_boxes, topk):
    R = len(anchors)
    ious = [[iou(g, a) for a in anchors] for g in gt_boxes]
    chosen = []
    for m, g in enumerate(gt_boxes):
        candidates, start = [], 0
        for size in level_sizes:
            level = range(start, start + size)
            candidates += sorted(level, key=lambda r: center_distance(anchors[r], g))[:topk]
            start += size
        values = [ious[m][r] for r in candidates]
        mean = sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        chosen.append({r for r in candidates if ious[m][r] >= mean + std and inside(anchors[r], g)})
    return winners(chosen, ious, R)


def center_distance(a, b):
    return math.hypot((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("alpha, beta, topk", [(1.0, 6.0, 13), (0.5, 2.0, 5)])
def test_tal_against_slow_loop(seed, alpha, beta, topk):
    generator = torch.Generator().manual_seed(seed)
    anchors = make_anchors()
    gt_boxes, gt_classes = random_objects(generator, num_objects=6)
    # Each location predicts about one of the objects that hold it, or any if none does.
    guesses = []
    for anchor in anchors.tolist():
        holders = [m for m in range(6) if inside(anchor, gt_boxes[m].tolist())] or range(6)
        guesses.append(holders[torch.randint(len(holders), (), generator=generator)])
    pred_boxes = gt_boxes[guesses] + torch.randn(len(anchors), 4, generator=generator) * 3
    pred_boxes[:, 2:] = torch.maximum(pred_boxes[:, 2:], pred_boxes[:, :2] + 1)
    pred_scores = torch.rand(len(anchors), 3, generator=generator)

    actual = assign_tal(
        pred_scores, pred_boxes, anchors, gt_boxes, gt_classes, topk=topk, alpha=alpha, beta=beta
    )
    gt_index, targets = slow_tal(
        pred_scores.double().tolist(),
        pred_boxes.double().tolist(),
        anchors.tolist(),
        gt_boxes.double().tolist(),
        gt_classes.tolist(),
        topk,
        alpha,
        beta,
    )
    assert max(gt_index) >= 0
    assert actual.gt_index.tolist() == gt_index
    assert actual.cls_target.tolist() == pytest.approx(targets, abs=1e-4)
    assert torch.equal(actual.box_weight, actual.cls_target)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("topk", [9, 3])
def test_atss_against_slow_loop(seed, topk):
    generator = torch.Generator().manual_seed(seed)
    anchors = make_anchors()
    # Large ones too, so that every level has its say.
    gt_boxes, _ = random_objects(generator, num_objects=5)
    gt_boxes[0] = torch.tensor([0.3, 0.4, 79.1, 63.2])
    actual = assign_atss(anchors, LEVEL_SIZES, gt_boxes, topk=topk)
    expected = slow_atss(anchors.tolist(), LEVEL_SIZES, gt_boxes.double().tolist(), topk)
    assert max(expected) >= 0
    assert actual.gt_index.tolist() == expected
    assert torch.equal(actual.cls_target > 0, actual.gt_index >= 0)
    assert set(actual.cls_target.tolist()) == {0.0, 1.0}


def three_locations():
    """Anchors whose centres are (0, 0), (8, 0) and (16, 0)."""
    return make_anchors(grids=[(1, 3)], strides=[8])


def test_tal_literal_values():
    gt_boxes = torch.tensor([[-4.0, -4.0, 20.0, 4.0]])  # 24 x 8, contains all three locations
    pred_boxes = torch.tensor([[-4.0, -4, 20, 4], [-4, -4, 8, 4], [100, 100, 110, 110]])
    pred_scores = torch.tensor([[0.5], [0.8], [0.9]])
    assignment = assign_tal(pred_scores, pred_boxes, three_locations(), gt_boxes, torch.tensor([0]))
    # IoUs 1, 0.5, 0; t = 0.5 * 1, 0.8 * 0.5^6 = 0.0125, 0 (dropped).
    assert assignment.gt_index.tolist() == [0, 0, -1]
    # t_hat = t / max t * max IoU = 1 and 0.025.
    assert assignment.cls_target.tolist() == pytest.approx([1.0, 0.025, 0.0], abs=1e-5)


def test_tal_selects_before_it_tests_inside():
    # The best location for the object lies outside of it: it takes the only place, and is lost.
    gt_boxes = torch.tensor([[6.0, -4.0, 10.0, 4.0]])  # contains only the location (8, 0)
    pred_boxes = torch.tensor([[6.0, -4, 10, 4], [6, -4, 9, 4], [0, 0, 1, 1]])
    pred_scores = torch.full((3, 1), 0.5)
    arguments = (pred_scores, pred_boxes, three_locations(), gt_boxes, torch.tensor([0]))
    assert assign_tal(*arguments, topk=1).gt_index.tolist() == [-1, -1, -1]
    assert assign_tal(*arguments, topk=2).gt_index.tolist() == [-1, 0, -1]


def test_contested_location_goes_to_the_highest_iou():
    gt_boxes = torch.tensor([[-4.0, -4, 4, 4], [-4, -4, 5, 4]])
    pred_boxes = torch.tensor([[-4.0, -4, 5, 4], [90, 90, 91, 91], [90, 90, 91, 91]])
    pred_scores = torch.tensor([[0.9, 0.1], [0.1, 0.1], [0.1, 0.1]])  # class 0 looks better
    assignment = assign_tal(
        pred_scores, pred_boxes, three_locations(), gt_boxes, torch.tensor([0, 1])
    )
    assert assignment.gt_index.tolist() == [1, -1, -1]


def test_identical_objects_share_nothing():
    gt_boxes = torch.tensor([[-4.0, -4, 4, 4], [-4, -4, 4, 4]])
    pred_boxes = gt_boxes[:1].expand(3, 4)
    assignment = assign_tal(
        torch.full((3, 1), 0.5), pred_boxes, three_locations(), gt_boxes, torch.tensor([0, 0])
    )
    assert assignment.gt_index.tolist() == [0, -1, -1]


@pytest.mark.parametrize("num_locations", [1, 3, 12])
def test_fewer_locations_than_topk(num_locations):
    anchors = make_anchors(grids=[(1, num_locations)], strides=[8])
    gt_boxes = torch.tensor([[-4.0, -4.0, 8.0 * num_locations, 4.0]])
    pred_boxes = gt_boxes.expand(num_locations, 4)
    scores = torch.full((num_locations, 1), 0.5)
    assignment = assign_tal(scores, pred_boxes, anchors, gt_boxes, torch.tensor([0]), topk=13)
    assert (assignment.gt_index == 0).all()
    assert assignment.cls_target.tolist() == pytest.approx([1.0] * num_locations, abs=1e-5)


def test_atss_with_fewer_anchors_than_topk():
    anchors = three_locations()
    gt_boxes = torch.tensor([[-32.0, -32.0, 32.0, 32.0]])
    assignment = assign_atss(anchors, [3], gt_boxes)
    # IoUs 1, 56/72, 48/80: mean 0.793, std 0.201.
    assert assignment.gt_index.tolist() == [0, -1, -1]
    assert assignment.box_weight.tolist() == [1, 0, 0]


def test_one_pixel_boxes():
    anchors = make_anchors()
    gt_boxes = torch.tensor([[7.5, 7.5, 8.5, 8.5], [11.0, 11.0, 12.0, 12.0]])
    # The first one contains the location (8, 8); no location lies in the second.
    for assignment in (
        assign_atss(anchors, LEVEL_SIZES, gt_boxes),
        assign_tal(
            torch.full((len(anchors), 2), 0.5),
            gt_boxes[:1].expand(len(anchors), 4).clone(),
            anchors,
            gt_boxes,
            torch.tensor([0, 1]),
            topk=len(anchors),
        ),
    ):
        assert 1 not in assignment.gt_index.tolist()
        assert assignment.gt_index[11].item() == 0
        assert torch.isfinite(assignment.cls_target).all()
        assert torch.isfinite(assignment.box_weight).all()


def test_a_location_on_the_border_is_outside():
    anchors = three_locations()
    scores, classes = torch.full((3, 1), 0.5), torch.tensor([0])
    for x1, expected in ((8 - 0.005, [-1, -1, 0]), (8 - 0.02, [-1, 0, 0])):
        gt_boxes = torch.tensor([[x1, -4.0, 20.0, 4.0]])  # (8, 0) is near its left side
        assignment = assign_tal(scores, gt_boxes.expand(3, 4), anchors, gt_boxes, classes)
        assert assignment.gt_index.tolist() == expected


def test_no_objects():
    anchors = make_anchors()
    no_boxes, no_classes = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    boxes, scores = anchors.clone(), torch.rand(len(anchors), 3)
    for assignment in (
        assign_atss(anchors, LEVEL_SIZES, no_boxes),
        assign_tal(scores, boxes, anchors, no_boxes, no_classes),
    ):
        assert (assignment.gt_index == -1).all() and len(assignment.gt_index) == len(anchors)
        assert assignment.cls_target.sum() == 0 and assignment.box_weight.sum() == 0


def test_centerness():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0]]).expand(4, 4)
    points = torch.tensor([[5.0, 10.0], [1.0, 10.0], [2.0, 4.0], [-1.0, 5.0]])
    expected = [1.0, math.sqrt(1 / 9), math.sqrt(2 / 8 * 4 / 16), 0.0]
    assert centerness(points, boxes).tolist() == pytest.approx(expected)


def test_locations_of_a_smaller_image_in_a_batch():
    # An image of 20 x 40 pixels is padded to 32 x 64 alone, in a batch of 64 x 96.
    grids, strides = [(8, 12), (4, 6), (1, 1)], [8, 16, 128]
    indices, level_sizes = find_locations((20, 40), grids, strides, 32, torch.device("cpu"))
    assert level_sizes == [4 * 8, 2 * 4, 1]
    first_rows = [y * 12 + x for y in range(4) for x in range(8)]
    assert indices[:32].tolist() == first_rows
    assert indices[32:40].tolist() == [96 + y * 6 + x for y in range(2) for x in range(4)]
    assert indices[40].item() == 96 + 24


def crowd(num_objects):
    """Objects all over a grid, and predictions that are near some of them."""
    generator = torch.Generator().manual_seed(num_objects)
    anchors = make_anchors(grids=[(20, 30), (10, 15), (5, 8)])
    gt_boxes, gt_classes = random_objects(generator, num_objects)
    gt_boxes = gt_boxes + torch.rand(num_objects, 1, generator=generator) * 100
    guesses = torch.randint(num_objects, (len(anchors),), generator=generator)
    pred_boxes = gt_boxes[guesses] + torch.randn(len(anchors), 4, generator=generator)
    pred_scores = torch.rand(len(anchors), 3, generator=generator)
    return pred_scores, pred_boxes, anchors, gt_boxes, gt_classes


@pytest.mark.parametrize("at_once", [1, 7, 299])
def test_crowds_are_assigned_in_pieces_with_the_same_result(monkeypatch, at_once):
    pred_scores, pred_boxes, anchors, gt_boxes, gt_classes = crowd(num_objects=300)
    level_sizes = [600, 150, 40]

    def assign_both():
        return (
            *assign_tal(pred_scores, pred_boxes, anchors, gt_boxes, gt_classes),
            *assign_atss(anchors, level_sizes, gt_boxes),
        )

    monkeypatch.setattr(box_ops, "MAX_MATRIX_ELEMENTS", 300 * len(anchors))
    whole = assign_both()
    assert (whole[0] >= 0).sum() > 20 and (whole[3] >= 0).sum() > 10

    largest = [0]

    def recorded_iou(a, b):
        result = paired_iou(a, b)
        largest[0] = max(largest[0], result.numel() if result.shape[1] == len(anchors) else 0)
        return result

    monkeypatch.setattr(assign, "paired_iou", recorded_iou)
    monkeypatch.setattr(box_ops, "MAX_MATRIX_ELEMENTS", at_once * len(anchors))
    for a, b in zip(whole, assign_both()):
        assert torch.equal(a, b)
    assert largest == [at_once * len(anchors)]  # no larger matrix ever was


def test_iou_equals_detectron2s():
    a, b = (torch.rand(40, 2) * 50 for _ in range(2))
    a, b = (torch.cat([x, x + torch.rand(40, 2) * 30], dim=1) for x in (a, b))
    b[:3, 2:] = b[:3, :2]  # no area
    b[3:6, 2:] = b[3:6, :2] - 5  # crossed
    b[0] = a[0, [0, 1, 0, 1]]
    a[1] = b[1]
    ious = paired_iou(a[:, None], b)
    assert torch.equal(ious, pairwise_iou(Boxes(a), Boxes(b))) and (ious > 0).sum() > 100


def test_an_image_that_fills_its_batch_has_all_locations():
    grids, strides = [(8, 12), (4, 6)], [8, 16]
    indices, level_sizes = find_locations((64, 90), grids, strides, 32, torch.device("cpu"))
    assert indices == slice(None) and level_sizes == [96, 24]
