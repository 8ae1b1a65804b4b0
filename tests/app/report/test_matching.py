"""Matching of detections and objects, AP and its intervals, against pycocotools and slow loops."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tood.app.report.analysis import analyze, summarize_analysis
from tood.app.report.intervals import (
    class_metrics,
    coco_metrics,
    weighted_average_precisions,
    without_each,
)
from tood.app.report.matching import make_table, match, overlaps
from tood.utils.errors import UserError

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def load_content(num_images, objects, num_classes=2):
    """objects: (image, class, box, crowd, area)."""
    return {
        "images": [
            {"id": 7 + i, "file_name": f"{i}.jpg", "width": 640, "height": 480}
            for i in range(num_images)
        ],
        "categories": [{"id": 3 + 2 * k, "name": f"class {k}"} for k in range(num_classes)],
        "annotations": [
            {
                "id": i,
                "image_id": 7 + image,
                "category_id": 3 + 2 * k,
                "bbox": list(box),
                "iscrowd": int(crowd),
                "area": area,
            }
            for i, (image, k, box, crowd, area) in enumerate(objects, 1)
        ],
    }


def make_detections(found):
    """found: (image, class, box, score)."""
    return [
        {"image_id": 7 + i, "category_id": 3 + 2 * k, "bbox": list(box), "score": score}
        for i, k, box, score in found
    ]


def matched(content, found):
    table = make_table(content, make_detections(found))
    return table, match(table, overlaps(table))


def average_precisions(table, matches):
    return weighted_average_precisions(table, matches, np.ones((len(table.image_ids), 1)))[..., 0]


def compute_metrics(content, found):
    table, matches = matched(content, found)
    aps = average_precisions(table, matches)
    per_class = {f"AP-class {k}": AP for k, AP in enumerate(class_metrics(aps)["AP"])}
    return {**coco_metrics(aps), **per_class}


def run_pycocotools(content, found):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(make_detections(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = np.where(evaluation.stats == -1, np.nan, 100 * evaluation.stats)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = [
        100 * np.mean(p[p > -1]) if (p > -1).any() else np.nan for p in np.moveaxis(precision, 2, 0)
    ]
    return dict(zip(KEYS, stats)), per_class


# On a grid, so that boxes coincide, scores are equal and IoUs lie on thresholds.
box = st.tuples(
    st.sampled_from([0, 5, 10, 40]),
    st.sampled_from([0, 5, 10]),
    st.sampled_from([10, 20, 31, 40, 100]),
    st.sampled_from([10, 20, 33, 100]),
)
image, klass = st.integers(0, 2), st.integers(0, 1)
gt = st.builds(
    lambda i, k, b, crowd, share: (i, k, b, crowd, share * b[2] * b[3]),
    *(image, klass, box, st.sampled_from([False, False, False, True])),
    st.sampled_from([1.0, 0.6]),  # areas of masks are less than those of boxes
)
detection = st.tuples(image, klass, box, st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(gt, max_size=8), st.lists(detection, min_size=1, max_size=14))
def test_metrics_are_pycocotools(objects, found):
    content = load_content(3, objects)
    actual = compute_metrics(content, found)
    expected, per_class = run_pycocotools(content, found)
    for key in KEYS:
        assert actual[key] == pytest.approx(expected[key], abs=1e-9, nan_ok=True), key
    for k, AP in enumerate(per_class):
        assert actual[f"AP-class {k}"] == pytest.approx(AP, abs=1e-9, nan_ok=True)


def random_set(num_images, seed=0, num_classes=2, objects=5, found=8):
    rng = np.random.default_rng(seed)
    gts, dets = [], []
    for i in range(num_images):
        for _ in range(rng.integers(0, objects)):
            x, y, w, h = (*rng.uniform(0, 300, size=2).tolist(), *rng.uniform(8, 150, 2).tolist())
            k = int(rng.integers(num_classes))
            gts.append((i, k, (x, y, w, h), bool(rng.random() < 0.05), w * h))
            if rng.random() < 0.8:
                dx, dy = rng.normal(0, 0.1, size=2).tolist()
                dets.append((i, k, (x + dx * w, y + dy * h, w, h), float(rng.random())))
        for _ in range(rng.integers(0, found)):
            b = (*rng.uniform(0, 300, 2).tolist(), *rng.uniform(8, 150, 2).tolist())
            dets.append((i, int(rng.integers(num_classes)), b, float(rng.random() * 0.7)))
    return load_content(num_images, gts, num_classes), dets


def test_a_weighted_image_is_as_many_copies_of_it():
    content, found = random_set(12, seed=3)
    table, matches = matched(content, found)
    weights = np.random.default_rng(1).integers(0, 4, (12, 6)).astype(np.float32)
    actual = weighted_average_precisions(table, matches, weights)
    for b in range(6):
        times = weights[:, b].astype(int)
        gts, dets, n = [], [], 0
        for i, number in enumerate(times):
            for _ in range(number):
                for a in content["annotations"]:
                    if a["image_id"] == 7 + i:
                        k = (a["category_id"] - 3) // 2
                        gts.append((n, k, a["bbox"], a["iscrowd"], a["area"]))
                dets += [(n, k, box, score) for image, k, box, score in found if image == i]
                n += 1
        copy = matched(load_content(n, gts), dets)
        np.testing.assert_allclose(actual[..., b], average_precisions(*copy), atol=2e-5)


@pytest.mark.slow
def test_what_an_image_costs():
    content, found = random_set(8, seed=2)
    table, matches = matched(content, found)
    whole = compute_metrics(content, found)["AP"]
    costs = without_each(table, matches, np.array([5, 2]))
    for cost, omitted in zip(costs, (5, 2)):
        rest = dict(content)
        for name, key in (("images", "id"), ("annotations", "image_id")):
            rest[name] = [x for x in content[name] if x[key] != 7 + omitted]
        AP = compute_metrics(rest, [x for x in found if x[0] != omitted])["AP"]
        assert cost == pytest.approx(AP - whole, abs=1e-3)


def test_nothing_found_and_nothing_to_find():
    content = load_content(2, [(0, 0, (0, 0, 50, 50), False, 2500)])
    metrics = compute_metrics(content, [])
    assert metrics["AP"] == 0 and metrics["APm"] == 0 and np.isnan(metrics["APs"])
    assert metrics["AP-class 0"] == 0 and np.isnan(metrics["AP-class 1"])
    metrics = compute_metrics(load_content(2, []), [(0, 0, (0, 0, 50, 50), 0.5)])
    assert np.isnan(metrics["AP"])


@pytest.mark.parametrize(
    "change, says",
    [
        ({"image_id": 99}, "entry 1 has the image_id 99, which the annotations do not have"),
        ({"category_id": 4}, "entry 1 has the category_id 4"),
        ({"bbox": [1, 2, 3]}, r"entry 1 needs a bbox \[x, y, width, height\]; it is \[1, 2, 3\]"),
        ({"bbox": [1, 2, -3, 4]}, "entry 1 needs a bbox"),
        ({"score": float("nan")}, "entry 1 needs a score, a number; it is nan"),
        ({"score": "high"}, "entry 1 needs a score"),
    ],
)
def test_detections_of_something_else(change, says):
    content = load_content(2, [(0, 0, (0, 0, 50, 50), False, 2500)])
    good = make_detections([(0, 0, (0, 0, 50, 50), 0.5)])[0]
    with pytest.raises(UserError, match=says):
        make_table(content, [good, {**good, **change}])
    with pytest.raises(UserError, match="entry 0 is not a detection in COCO's format"):
        make_table(content, [{"image_id": 7}])


def crowded(num_objects, num_detections):
    """One image of small boxes side by side, most of them found, some beside their place."""
    rng = np.random.default_rng(0)
    places = [(20.0 * (i % 30), 20.0 * (i // 30)) for i in range(num_detections)]
    objects = [(0, 0, (x, y, 12.0, 12.0), False, 144.0) for x, y in places[:num_objects]]
    shifts = rng.uniform(-4, 4, (num_detections, 2))
    scores = rng.uniform(0.1, 1, num_detections).round(6)
    found = [
        (0, 0, (x + a, y + b, 12.0, 12.0), score)
        for (x, y), (a, b), score in zip(places, shifts.tolist(), scores.tolist())
    ]
    return load_content(1, objects), found


def test_all_detections_of_a_crowded_image_count():
    content, found = crowded(130, 300)
    analysis = analyze(content, make_detections(found))
    assert len(analysis.table.scores) == 300 and analysis.table.max_detections == 300
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(make_detections(found)), "bbox")
        evaluation.params.maxDets = [300]
        evaluation.evaluate()
        evaluation.accumulate()
    expected = 100 * evaluation.eval["precision"][:, :, 0, 0, 0].mean()
    summary = summarize_analysis(analysis)
    assert summary["metrics"]["AP"]["value"] == pytest.approx(expected, abs=1e-9)
    assert summary["data"]["all_detections"] is True
    limited, _ = run_pycocotools(content, found)
    assert limited["AP"] < 0.8 * expected  # what the limit would leave


def test_coco_counts_at_most_100_objects():
    content, found = crowded(100, 300)
    analysis = analyze(content, make_detections(found))
    assert len(analysis.table.scores) == 100
    expected, _ = run_pycocotools(content, found)
    summary = summarize_analysis(analysis)
    assert summary["metrics"]["AP"]["value"] == pytest.approx(expected["AP"], abs=1e-9)
    assert summary["data"]["all_detections"] is False
