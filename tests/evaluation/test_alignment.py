"""Table 6's metrics: hand-worked cases, a slow literal version, and whole evaluations."""

import json
import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou

import train_net
from tood.data.datasets import load_own_data
from tood.data.shapes import SHAPES
from tood.engine import train as engine_train
from tood.evaluation.alignment import (
    TOP_CORRELATED,
    compute_alignment,
    count_detections,
    rank_correlation,
    select_predictions,
)
from tood.evaluation.alignment_evaluator import (
    AlignmentEvaluator,
    DenseReader,
    ObjectMetrics,
    summarize,
)
from tood.modeling import box_ops


def measure_alignment(*image):
    return compute_alignment(select_predictions(*image, TOP_CORRELATED))


def all_valid(x):
    return torch.ones_like(x, dtype=torch.bool)


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([0.1, 0.5, 0.9], [0.2, 0.3, 0.4], 1.0),
        ([0.1, 0.5, 0.9], [0.4, 0.3, 0.2], -1.0),
        # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15).
        ([1.0, 2.0, 3.0, 4.0], [6.0, 5.0, 8.0, 7.0], 0.6),
        # Equals share a rank: 1.5 1.5 3 against 1 2 3, 1.5 / sqrt(1.5 * 2).
        ([1.0, 1.0, 2.0], [1.0, 2.0, 3.0], 1.5 / math.sqrt(3)),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], math.nan),
        ([1.0], [2.0], math.nan),
    ],
)
def test_rank_correlation_by_hand(a, b, expected):
    a, b = torch.tensor([a]), torch.tensor([b])
    assert rank_correlation(a, b, all_valid(a)).item() == pytest.approx(expected, nan_ok=True)


def test_rank_correlation_of_a_part():
    a = torch.tensor([[1.0, 2, 3, 9, 9], [5, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    b = torch.tensor([[1.0, 3, 2, 0, 5], [7, 1, 2, 3, 4], [0, 0, 0, 0, 0]])
    valid = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    first, *others = rank_correlation(a, b, valid).tolist()
    assert first == pytest.approx(0.5) and all(math.isnan(x) for x in others)


def slow_alignment(scores, boxes, points, gt_boxes, gt_classes):
    """Compute the metrics of docs/alignment.md, one object and one prediction at a time."""
    correlations, ious = [], []
    for gt_box, gt_class in zip(gt_boxes.tolist(), gt_classes.tolist()):
        mine = []
        for r, (x, y) in enumerate(points.tolist()):
            if gt_box[0] < x < gt_box[2] and gt_box[1] < y < gt_box[3]:
                iou = pairwise_iou(Boxes(boxes[r][None]), Boxes(torch.tensor([gt_box]))).item()
                mine.append((scores[r, gt_class].item(), iou))
        mine.sort(key=lambda pair: -pair[0])
        top = mine[:50]
        ranks = [[sum(o[k] < p[k] for o in top) for p in top] for k in (0, 1)]
        ranks = [
            [r + sum(o[k] == p[k] for o in top) / 2 for r, p in zip(ranks[k], top)] for k in (0, 1)
        ]
        defined = len(top) > 1 and all(len(set(r)) > 1 for r in ranks)
        correlations.append(np.corrcoef(*ranks)[0, 1] if defined else math.nan)
        ious.append(np.mean([iou for _, iou in mine[:10]]) if mine else math.nan)
    return correlations, ious


def random_image(num_objects, ties):
    generator = torch.Generator().manual_seed(num_objects)
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    points = torch.stack([x, y], dim=2).reshape(-1, 2) * 8
    corners = points + torch.rand(len(points), 2, generator=generator) * 20 - 30
    boxes = torch.cat(
        [corners, corners + 10 + torch.rand(len(points), 2, generator=generator) * 60], 1
    )
    scores = torch.rand(len(points), 3, generator=generator)
    if ties:
        scores, boxes = (scores * 4).round() / 4, (boxes / 16).round() * 16
    low = torch.rand(num_objects, 2, generator=generator) * 150
    size = torch.rand(num_objects, 2, generator=generator) ** 2 * 120
    classes = torch.randint(3, (num_objects,), generator=generator)
    return scores, boxes, points, torch.cat([low, low + size], dim=1), classes


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("at_once", [1, 1000])
def test_alignment_equals_the_slow_version(monkeypatch, ties, at_once):
    scores, boxes, points, gt_boxes, gt_classes = image = random_image(25, ties)
    monkeypatch.setattr(box_ops, "MAX_MATRIX_ELEMENTS", at_once * len(points))
    measured = measure_alignment(*image)
    top = select_predictions(*image, 50)
    # Few and many predictions, and objects between the locations.
    counts = top.valid.sum(dim=1)
    assert counts.max() == 50 and (counts == 0).any() and ((counts > 2) & (counts < 50)).any()
    for actual, expected in zip(measured, slow_alignment(*image)):
        assert actual.tolist() == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert (~measured.correlation.isnan()).sum() > 5


def test_no_objects():
    scores, boxes, points, _, _ = random_image(1, ties=False)
    nothing = measure_alignment(scores, boxes, points, torch.zeros(0, 4), torch.zeros(0).long())
    assert all(len(x) == 0 for x in nothing)


def test_detections_are_counted():
    gt_boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0.0, 0, 10, 9]])
    gt_classes = torch.tensor([0, 0, 1])
    detections = [
        ([0.0, 0, 10, 10], 0),  # correct
        ([0.0, 0, 10, 8], 0),  # again: redundant
        ([0.0, 0, 5, 10], 0),  # IoU 0.5: redundant
        ([0.0, 0, 4.9, 10], 0),  # error
        ([20.0, 0, 30, 1.1], 0),  # IoU 0.11: error
        ([20.0, 0, 30, 1.0], 0),  # IoU 0.1: nothing
        ([0.0, 0, 10, 9], 1),  # correct for the third, not the first
        ([20.0, 0, 30, 10], 1),  # of another class: nothing
        ([50.0, 50, 60, 60], 0),  # nowhere
    ]
    boxes, classes = (
        torch.tensor([b for b, _ in detections]),
        torch.tensor([c for _, c in detections]),
    )
    counts = [x.tolist() for x in count_detections(boxes, classes, gt_boxes, gt_classes)]
    assert counts == [[1, 0, 1], [2, 0, 0], [1, 1, 0]]
    none = count_detections(boxes[:0], classes[:0], gt_boxes, gt_classes)
    assert [x.tolist() for x in none] == [[0, 0, 0]] * 3
    assert [len(x) for x in count_detections(boxes, classes, gt_boxes[:0], gt_classes[:0])] == [
        0
    ] * 3


def test_summary_by_size_and_class():
    metrics = ObjectMetrics(
        correlation=np.array([0.5, np.nan, 0.1]),
        mean_iou=np.array([0.6, 0.8, np.nan]),
        correct=np.array([1, 0, 1]),
        redundant=np.array([2, 0, 0]),
        error=np.array([0, 3, 1]),
        area=np.array([100.0, 32**2, 1e6]),
        gt_class=np.array([0, 1, 0]),
    )
    rows = summarize(metrics, ["cat", "small"])
    assert rows["all"] == dict(objects=3, PCC=0.3, IoU=0.7, correct=2, redundant=2, error=4)
    assert [rows[s]["objects"] for s in ("small", "medium", "large")] == [1, 1, 1]
    assert rows["cat"]["PCC"] == 0.3 and math.isnan(rows["class small"]["PCC"])
    empty = summarize(ObjectMetrics.cat([]), ["cat"])
    assert empty["all"]["objects"] == 0 and math.isnan(empty["all"]["IoU"])


@pytest.mark.slow
def test_evaluation_with_alignment(command, tmp_path, shapes):
    opts = ["MODEL.TOOD.EVAL_ALIGNMENT", "True", "MODEL.TOOD.SCORE_THRESH_TEST", "0.001"]
    engine_train.main(train_net.parse_args(command(opts=opts)))
    metrics = [json.loads(x) for x in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    last = metrics[-1]
    (path,) = (tmp_path / "out" / "inference").glob("alignment_*.json")
    rows = json.loads(path.read_text())
    assert rows["all"]["objects"] == 21 and -1 <= rows["all"]["PCC"] <= 1
    assert last["alignment/PCC"] == pytest.approx(rows["all"]["PCC"])
    assert sum(rows[s]["objects"] for s in ("small", "medium", "large")) == 21
    opts += ["MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth")]
    results = engine_train.main(train_net.parse_args(command("--eval-only", opts=opts)))
    assert results["alignment"]["PCC"] == pytest.approx(rows["all"]["PCC"])
    written = json.loads((tmp_path / "out" / "inference" / "results.json").read_text())
    assert written["alignment"]["objects"] == 21 and "AP50" in written["bbox"]


def test_evaluator_sees_what_the_model_says(tiny_cfg, shapes):
    """Computed by hand from predict_dense, for an image that is resized."""
    name = "shapes of test_alignment"
    if name not in DatasetCatalog.list():
        images = (str(shapes / "annotations.json"), str(shapes / "images"))
        DatasetCatalog.register(name, lambda: load_own_data(*images))
        MetadataCatalog.get(name).set(thing_classes=list(SHAPES))
    model = build_model(tiny_cfg).eval()
    records = DatasetCatalog.get(name)[:2]
    evaluator = AlignmentEvaluator(name, model)
    evaluator.reset()
    expected = []
    for record in records:
        image = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8)  # twice the drawing's size
        inputs = [{**record, "image": image}]
        with torch.no_grad():
            evaluator.process(inputs, model(inputs))
            scores, boxes, anchors = model.predict_dense(inputs)
        xywh = torch.tensor([a["bbox"] for a in record["annotations"]])
        gt_boxes = 2 * torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
        gt_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        seen = (scores[0], boxes[0], anchors.get_centers(), gt_boxes, gt_classes)
        expected += measure_alignment(*seen).correlation.tolist()
    results = evaluator.evaluate()["alignment"]
    assert results["PCC"] == pytest.approx(np.nanmean(expected), rel=1e-4)
    assert evaluator.metrics.correlation.tolist() == pytest.approx(expected, rel=1e-4, nan_ok=True)
    assert 0 < len(evaluator.pairs) <= 10 * len(expected)
    assert evaluator.reader is None and not model.head._forward_hooks


def test_retinanet_can_be_measured():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "RetinaNet", "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x, x * 1.26] for x in (32, 64, 128, 256, 512)]
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.WEIGHTS = ""
    model = build_model(cfg).eval()
    reader = DenseReader(model)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        (output,) = model([{"image": image, "height": 64, "width": 96}])
    locations = (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1) * 2 * 3
    assert reader.latest.scores.shape == (1, locations, 3)
    assert reader.latest.boxes.shape == (1, locations, 4)
    assert reader.latest.points.shape == (locations, 2)
    assert reader.latest.strides.unique(return_counts=True)[1].tolist() == [
        6 * n for n in (96, 24, 6, 2, 1)
    ]
    # Its detections are what some locations say.
    model.test_score_thresh = 0.0
    with torch.no_grad():
        (output,) = model([{"image": image, "height": 64, "width": 96}])
    clipped = Boxes(reader.latest.boxes[0].clone())
    clipped.clip((64, 96))
    detections = output["instances"]
    assert len(detections) > 3
    for i in range(len(detections)):
        one = detections[i]
        same_box = (clipped.tensor - one.pred_boxes.tensor).abs().amax(dim=1) < 1e-3
        same_score = (reader.latest.scores[0, :, one.pred_classes[0]] - one.scores).abs() < 1e-6
        assert (same_box & same_score).any()


def test_other_models_are_refused():
    with pytest.raises(
        TypeError, match="of a Linear are not available; those of TOOD and RetinaNet"
    ):
        DenseReader(torch.nn.Linear(1, 1))
