"""Losses of images at every threshold, against pycocotools at that threshold alone."""

import contextlib
import io
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_matching import detection, gt, load_content, make_detections, random_set

from tood.app.guarantee.misses import NEVER, find_outcome


def count_by_pycocotools(content, detections, num_images=3):
    """Return missed and counted objects of each image and false detections of all, at IoU 0.5."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.maxDets = [1000]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.evaluate()
    missed, counted, false = np.zeros(num_images, int), np.zeros(num_images, int), 0
    for x in evaluation.evalImgs:
        if x is None:
            continue
        i = x["image_id"] - 7
        kept = ~np.array(x["gtIgnore"], dtype=bool)
        counted[i] += kept.sum()
        missed[i] += (x["gtMatches"][0][kept] == 0).sum()
        false += ((x["dtMatches"][0] == 0) & ~x["dtIgnore"][0]).sum()
    return missed, counted, false


def check_against_pycocotools(objects, found, num_images=3):
    content, detections = load_content(num_images, objects), make_detections(found)
    outcome = find_outcome(content, detections)
    for t in sorted({x["score"] for x in detections}):
        above = [x for x in detections if x["score"] >= t]
        missed, counted, false = count_by_pycocotools(content, above, num_images)
        shares = [Fraction(int(m), int(c)) for m, c in zip(missed, counted) if c]
        assert outcome.sum_losses(t) == sum(shares, Fraction(0))
        expected = [m / c if c else 0 for m, c in zip(missed, counted)]
        assert outcome.list_losses(t).tolist() == expected
        assert outcome.count_false(t) == false
        assert outcome.count_found(t) == counted.sum() - missed.sum()


@settings(max_examples=60)
@given(st.lists(gt, max_size=8), st.lists(detection, min_size=1, max_size=14))
def test_losses_are_pycocotools_at_each_threshold(objects, found):
    """One matching of all detections gives those of every threshold; with crowds and ties."""
    check_against_pycocotools(objects, found)


def test_losses_of_a_crowded_set_are_pycocotools():
    content, found = random_set(4, seed=2)
    objects = [
        (a["image_id"] - 7, (a["category_id"] - 3) // 2, a["bbox"], a["iscrowd"], a["area"])
        for a in content["annotations"]
    ]
    check_against_pycocotools(objects, found, num_images=4)


A, B, C = (0, 0, 20, 20), (50, 0, 20, 20), (100, 0, 20, 20)


def make_outcome(groups=()):
    """Image 0: two objects of class 0 and one of class 1; image 1: one of class 0; 2: none."""
    boxes = [(0, 0, A), (0, 0, B), (0, 1, C), (1, 0, A)]
    content = load_content(3, [(i, k, box, False, 400) for i, k, box in boxes])
    found = [(0, 0, A, 0.9), (0, 0, A, 0.8), (0, 1, C, 0.3), (1, 0, A, 0.5), (2, 0, A, 0.3)]
    return find_outcome(content, make_detections(found), groups)


def test_a_threshold_counts_the_score_itself():
    outcome = make_outcome()
    assert sorted(outcome.scores) == [NEVER, 0.3, 0.5, 0.9]
    assert outcome.candidates.tolist() == [0.3, 0.5, 0.9]
    third = Fraction(1, 3)
    for t, total in ((0.3, third), (0.30001, 2 * third), (0.5, 2 * third), (0.9, 2 * third + 1)):
        assert outcome.sum_losses(t) == total
    assert outcome.sum_losses(1.0) == 2
    # The second detection of an object is false, and so is one where nothing is.
    assert [outcome.count_false(t) for t in (0.3, 0.8, 0.81)] == [2, 1, 0]


def test_the_loss_of_a_group_is_the_share_of_its_objects():
    outcome = make_outcome(groups=[[0, 1], [2]])
    assert outcome.num_units == 2 and outcome.num_images == 3
    assert outcome.sum_losses(0.6) == Fraction(3, 4)


def test_a_class_counts_in_its_images_alone():
    outcome = make_outcome()
    first, second = outcome.select_class(0), outcome.select_class(1)
    assert first.num_units == 2 and first.sum_losses(0.6) == Fraction(1, 2) + 1
    assert second.num_units == 1 and second.sum_losses(0.3) == 0
    assert second.sum_losses(0.31) == 1 and second.count_false(0.0) == 0


def test_more_than_a_hundred_detections_count():
    """All are used; COCO's evaluation stops there."""
    content = load_content(1, [(0, 0, A, False, 400)])
    found = [(0, 0, (200, 200, 9, 9), 0.9)] * 150 + [(0, 0, A, 0.1)]
    outcome = find_outcome(content, make_detections(found))
    assert outcome.sum_losses(0.1) == 0 and outcome.count_false(0.1) == 150


@pytest.mark.parametrize("order", [1, -1])
def test_units_follow_the_images_however_they_are_sorted(order):
    content = load_content(3, [(2, 0, A, False, 400)])
    content["images"] = content["images"][::order]
    last = [i for i, x in enumerate(content["images"]) if x["id"] == 9]
    others = [i for i in range(3) if i not in last]
    assert find_outcome(content, [], [others, last]).units.tolist() == [1]
