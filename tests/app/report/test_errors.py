"""Kinds of error, confusion, curves and calibration: on cases worked out by hand, and against slow
loops.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from test_matching import (
    box,
    detection,
    image,
    klass,
    load_content,
    matched,
    run_pycocotools,
)

from tood.app.report.curves import (
    best_thresholds,
    calibration,
    class_curves,
    make_curve,
    pooled_curve,
)
from tood.app.report.errors import (
    CORRECT,
    IGNORED,
    KINDS,
    confusion_matrix,
    costs,
    count_kinds,
    find_errors,
)
from tood.app.report.matching import overlaps

A, B = 0, 1  # classes
# An object of A at the left, one of B at the right, and one of A below that nothing finds.
OBJECTS = [
    (0, A, (0, 0, 100, 100), False, 1e4),
    (0, B, (300, 0, 100, 100), False, 1e4),
    (0, A, (0, 300, 50, 50), False, 2500),
]
FOUND = [
    (0, A, (0, 0, 100, 100), 0.9),  # right
    (0, A, (0, 5, 100, 100), 0.8),  # once more
    (0, A, (300, 0, 100, 90), 0.7),  # the place of B's object, IoU 0.9
    (0, A, (60, 0, 100, 100), 0.6),  # IoU 0.25 with A's
    (0, A, (360, 0, 100, 100), 0.5),  # IoU 0.25 with B's, of the other class
    (0, B, (500, 300, 50, 50), 0.4),  # nothing there
]


def analyzed(content, found):
    table, matches = matched(content, found)
    pairs = overlaps(table)
    return table, pairs, matches, find_errors(table, pairs, matches)


def test_kinds_by_hand():
    table, pairs, matches, errors = analyzed(load_content(1, OBJECTS), FOUND)
    names = [*KINDS, "ignored", "correct"]
    assert [names[k] for k in errors.kinds] == [
        "correct",
        "duplicate",
        "classification",
        "localization",
        "both",
        "background",
    ]
    assert errors.objects.tolist() == [-1, -1, 1, 0, -1, -1]
    # B's object is not missed: it was found as another class.
    assert errors.missed.tolist() == [False, False, True]
    assert count_kinds(errors.kinds, errors.missed) == {**dict.fromkeys(KINDS, 1), "missed": 1}
    cost = costs(table, matches, errors)
    # AP50 is (51 / 101 + 0) / 2: half of A's recalls have the precision 1.
    assert cost["classification"] == pytest.approx(50 * 1.0)  # B's only object, and none less of A
    assert cost["missed"] == pytest.approx(50 * 50 / 101)
    for kind in ("localization", "both", "duplicate", "background"):
        assert cost[kind] == pytest.approx(0)  # below the last right one
    matrix = confusion_matrix(table, pairs, matches, np.array([0.65, 0.3]))
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 0], [1, 1, 0]]
    matrix = confusion_matrix(table, pairs, matches, np.array([0.95, 0.95]))
    assert matrix.tolist() == [[0, 0, 2], [0, 0, 1], [0, 0, 0]]


def test_crowds_count_neither_way():
    objects = [(0, A, (0, 0, 200, 200), True, 4e4), (0, A, (300, 0, 50, 50), False, 2500)]
    found = [(0, A, (10, 10, 50, 50), 0.9), (0, A, (80, 80, 50, 50), 0.8)]
    table, pairs, matches, errors = analyzed(load_content(1, objects), found)
    assert errors.kinds.tolist() == [IGNORED, IGNORED]
    assert errors.missed.tolist() == [False, True]
    assert confusion_matrix(table, pairs, matches, np.zeros(2)).sum() == 1
    (curve, _), pooled = class_curves(table, matches), pooled_curve(table, matches)
    assert curve.num_objects == pooled.num_objects == 1 and not len(curve.scores)
    assert sum(x.number for x in calibration(table, pairs, matches)) == 0


def slow_kinds(table, content, found):
    """The rules of find_errors, one detection at a time, by COCO's matching at 0.5."""
    order = sorted(range(len(found)), key=lambda i: (found[i][0], -found[i][3]))
    taken, kinds = set(), {}
    gts = [
        (a["image_id"] - 7, (a["category_id"] - 3) // 2, a["bbox"], a["iscrowd"])
        for a in content["annotations"]
    ]

    def iou(i, g):
        return float(
            coco_mask.iou(np.array([found[i][2]], float), np.array([g[2]], float), [g[3]])[0, 0]
        )

    for i in order:
        best, chosen = 0.0, None
        for crowd in (0, 1):
            for j, g in enumerate(gts):
                free = g[0] == found[i][0] and g[1] == found[i][1] and g[3] == crowd
                if free and (crowd or j not in taken) and iou(i, g) >= max(best, 0.5):
                    best, chosen = iou(i, g), j
            if chosen is not None:
                break
        if chosen is not None:
            kinds[i] = IGNORED if gts[chosen][3] else CORRECT
            if not gts[chosen][3]:
                taken.add(chosen)
    for i in order:
        if i in kinds:
            continue
        mine = [(iou(i, g), g[1] == found[i][1]) for g in gts if g[0] == found[i][0] and not g[3]]
        same = max([u for u, s in mine if s], default=0)
        other = max([u for u, s in mine if not s], default=0)
        if 0.1 <= same < 0.5:
            kinds[i] = KINDS.index("localization")
        elif other >= 0.5:
            kinds[i] = KINDS.index("classification")
        elif same >= 0.5:
            kinds[i] = KINDS.index("duplicate")
        elif max(same, other) < 0.1:
            kinds[i] = KINDS.index("background")
        else:
            kinds[i] = KINDS.index("both")
    return [kinds[i] for i in order]


gt = st.builds(
    lambda i, k, b, crowd: (i, k, b, crowd, float(b[2] * b[3])),
    *(image, klass, box, st.sampled_from([False, False, False, True])),
)
detections = st.lists(detection, min_size=1, max_size=12)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(gt, max_size=6), detections)
def test_kinds_by_slow_loops(objects, found):
    content = load_content(3, objects)
    table, _, _, errors = analyzed(content, found)
    assert errors.kinds.tolist() == slow_kinds(table, content, found)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(gt, min_size=1, max_size=6), detections)
def test_costs_are_those_of_mended_results(objects, found):
    """Mend the list of detections, and let pycocotools evaluate it."""
    objects = [x for x in objects if not x[3]]
    assume(objects)
    boxes = np.array([x[2] for x in objects], float)
    near = coco_mask.iou(boxes, boxes, [0] * len(boxes)) >= 0.5
    clash = [[x[:2] == y[:2] for y in objects] for x in objects]
    assume((near & clash).sum() == len(objects))  # or a mended box could find another object
    content = load_content(3, objects)
    table, _, matches, errors = analyzed(content, found)
    order = sorted(range(len(found)), key=lambda i: (found[i][0], -found[i][3]))
    found = [found[i] for i in order]
    before = run_pycocotools(content, found)[0]["AP50"]
    is_found = set(matches.objects[0, 0].tolist()) - {-1}
    cost = costs(table, matches, errors)
    for i, kind in enumerate(KINDS):
        mended, used = [], set(is_found)
        for d in np.argsort(-table.scores, kind="stable"):
            row, g = found[d], int(errors.objects[d])
            if errors.kinds[d] == i:
                if g < 0 or g in used:
                    continue
                used.add(g)
                row = (row[0], objects[g][1], objects[g][2], row[3])
            mended.append((d, row))
        mended = [row for _, row in sorted(mended, key=lambda x: x[0])]
        # pycocotools cannot evaluate an empty list: one detection that is the last.
        mended.append((0, A, (600, 400, 1, 1), 1e-9))
        after = run_pycocotools(content, mended)[0]["AP50"]
        assert cost[kind] == pytest.approx(after - before, abs=1e-9), kind
    seen = [x for x, missed in zip(objects, errors.missed) if not missed]
    if seen:
        after = run_pycocotools(load_content(3, seen), found)[0]["AP50"]
        assert cost["missed"] == pytest.approx(after - before, abs=1e-9)
    else:
        assert np.isnan(cost["missed"])


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(gt, max_size=6), detections, st.floats(0, 1))
def test_confusion_adds_up(objects, found, threshold):
    content = load_content(3, objects)
    table, pairs, matches, _ = analyzed(content, found)
    matrix = confusion_matrix(table, pairs, matches, np.full(2, threshold))
    for k, curve in enumerate(class_curves(table, matches)):
        row, column = matrix[k].sum(), matrix[:, k].sum()
        assert row == curve.num_objects
        # The diagonal is what precision and recall are counted from.
        at = curve.at(threshold)
        if column:
            assert at.precision == pytest.approx(matrix[k, k] / column)
        else:
            assert np.isnan(at.precision)
        if row:
            assert at.recall == pytest.approx(matrix[k, k] / row)
    assert matrix[-1, -1] == 0


def test_curve_by_hand():
    found = np.array([True, False, True, False])
    curve = make_curve(found, np.array([0.9, 0.8, 0.8, 0.2]), 4)
    assert curve.scores.tolist() == [0.9, 0.8, 0.2]
    assert curve.thresholds == pytest.approx([0.85, 0.5, 0.1])
    assert curve.precision == pytest.approx([1, 2 / 3, 1 / 2])
    assert curve.recall == pytest.approx([1 / 4, 1 / 2, 1 / 2])
    assert curve.f1 == pytest.approx([0.4, 4 / 7, 1 / 2])
    assert curve.best() == 1
    assert curve.at(0.8) == pytest.approx((2 / 3, 1 / 2, 4 / 7))
    assert curve.at(0.81) == pytest.approx((1, 1 / 4, 0.4))
    assert curve.at(0.95)[1:] == (0.0, 0.0)
    assert curve.precision_at_recalls()[[0, 25, 26, 50, 51]] == pytest.approx(
        [1, 1, 2 / 3, 2 / 3, 0]
    )
    nothing = make_curve(np.zeros(0, bool), np.zeros(0), 0)
    assert nothing.best() == -1 and np.isnan(nothing.precision_at_recalls()).all()
    assert best_thresholds([curve, nothing], curve).tolist() == [0.5, 0.5]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(gt, max_size=6), detections)
def test_best_threshold_is_the_best_of_all(objects, found):
    table, _, matches, _ = analyzed(load_content(3, objects), found)
    for curve in [*class_curves(table, matches), pooled_curve(table, matches)]:
        if curve.best() >= 0:
            best = curve.at(curve.thresholds[curve.best()]).f1
            assert best == max(curve.at(t).f1 for t in np.linspace(0, 1, 41))


def test_calibration_by_hand():
    table, pairs, matches, _ = analyzed(load_content(1, OBJECTS), FOUND)
    bins = calibration(table, pairs, matches)
    assert [x.number for x in bins] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert bins[9].mean_score == 0.9 and bins[9].correct == 1 and bins[9].mean_iou == 1
    assert bins[8].correct == 0 and bins[8].mean_iou == pytest.approx(95 / 105)
    assert bins[7].mean_iou == 0 and bins[6].mean_iou == pytest.approx(0.25)
