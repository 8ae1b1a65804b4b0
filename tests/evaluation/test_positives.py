"""Number of positives of objects by their size."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from tood.evaluation.positives import (
    PositivesEvaluator,
    count_positives,
    measure_sizes,
    tiny_object_statistics,
)


def objects(*boxes):
    gt = Instances((64, 96))
    gt.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    gt.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    return gt


def test_positives_of_each_object():
    gt_index = torch.tensor([[-1, 0, 0, 2], [1, -1, 1, 1], [-1, -1, -1, -1]])
    assert count_positives(gt_index, [3, 2, 0]).tolist() == [2, 0, 1, 0, 3]
    assert count_positives(gt_index[:0], []).tolist() == []


def test_tiny_objects():
    gts = [objects((0, 0, 4, 4), (0, 0, 2, 8)), objects(), objects((0, 0, 8, 8))]
    assert measure_sizes(gts).tolist() == [4, 4, 8]
    gt_index = torch.tensor([[0, 0, -1], [-1, -1, -1], [0, 0, 0]])
    # Of two objects below 8 pixels, one has two positives and one has none.
    assert tiny_object_statistics(gt_index, gts, 8) == {
        "positives_per_tiny_object": 1.0,
        "tiny_objects_without_positive": 0.5,
    }
    assert tiny_object_statistics(gt_index, gts, 4) == {}


def evaluate(model, batches, **options):
    evaluator = PositivesEvaluator(model, lambda x: [x], **options)
    evaluator.reset()
    for batch in batches:
        with torch.no_grad():
            evaluator.process(batch, model(batch) if options else [])
    return evaluator.evaluate()["positives"]


def test_both_assigners_by_size_against_a_loop(tiny_cfg, make_input):
    model = build_model(tiny_cfg).eval()
    sides = [(5.0, 40.0), (6.0, 12.0), (30.0, 70.0)]
    batches = [[make_input(96, 96, [(8.3, 9.1, 8.3 + s, 9.1 + s) for s in mine])] for mine in sides]
    rows = evaluate(model, batches)
    # The predictions of the evaluation itself.
    assert evaluate(model, batches, reuse=True) == rows and not model.head._forward_hooks
    assert [(x["size"], x["objects"]) for x in rows] == [
        ("below 8", 2),
        ("8 to 16", 1),
        ("16 to 32", 1),
        ("32 to 64", 1),
        ("64 and more", 1),
    ]
    for name, assigner in (("ATSS", model.warmup_assigner), ("TAL", model.assigner)):
        tiny = []
        for batch in batches[:2]:
            with torch.no_grad():
                images, predictions = model.predict_with_images(batch)
            gts = [x["instances"] for x in batch]
            targets = model.label_batch(images, predictions, gts, assigner)
            tiny.append((targets.gt_index == 0).sum().item())
        assert rows[0][name]["positives"] == pytest.approx(np.mean(tiny))
        assert rows[0][name]["without"] == np.mean([x == 0 for x in tiny])
    assert rows[-1]["ATSS"]["positives"] > rows[0]["ATSS"]["positives"]


def test_a_data_set_without_objects(tiny_cfg, make_input):
    model = build_model(tiny_cfg).eval()
    assert evaluate(model, []) == []
    assert evaluate(model, [[make_input(boxes=())]]) == []
