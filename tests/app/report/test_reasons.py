"""Why an object was missed: each cause, made on purpose in dense predictions."""

import numpy as np
import pytest
import torch
from conftest import CONFIG, TINY
from detectron2.modeling import build_model

from tood.app.explain import find_nearest, parse_box
from tood.app.report.reasons import (
    BEST_COLOR,
    CANDIDATES,
    CLASSIFICATION,
    FOUND,
    LIMIT,
    LOCALIZATION,
    NMS,
    OBJECT_COLOR,
    PREFERRED_COLOR,
    SCORE,
    SETTINGS,
    THRESHOLD,
    Objects,
    draw_reason,
    find_reason,
)
from tood.config.read import load_config
from tood.utils.errors import UserError

NAMES = ["disc", "ring"]
SIDE = 128  # one level of stride 8: 16 x 16 locations
BOX = [32.0, 32.0, 64.0, 64.0]
# A neighbour that overlaps it by a third.
OTHER = [48.0, 32.0, 80.0, 64.0]


@pytest.fixture(scope="module")
def model():
    opts = ["MODEL.TOOD.IN_FEATURES", "['p3']", "MODEL.TOOD.NUM_CLASSES", "2"]
    return build_model(load_config(CONFIG, [*TINY, *opts])).eval()


def answer(model, monkeypatch, written, objects=None, threshold=0.3, **options):
    """Explain the first object where the network says nothing but what is written.

    Args:
        written: {(x, y): (class, score, box)} of locations, in pixels.
    """
    image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    with torch.no_grad():
        images, predictions = model.predict_with_images([{"image": image}])
    scores = torch.full_like(predictions.pred_log_scores, 1e-4)
    boxes = torch.zeros_like(predictions.pred_boxes)
    for (x, y), (k, score, box) in written.items():
        i = y // 8 * (SIDE // 8) + x // 8
        scores[0, i, k], boxes[0, i] = score, torch.tensor(box)
    changed = predictions._replace(pred_log_scores=scores.log(), pred_boxes=boxes)
    monkeypatch.setattr(model, "predict_with_images", lambda batch: (images, changed))
    for name, value in options.items():
        monkeypatch.setattr(model, name, value)
    objects = objects or [(BOX, 0)]
    found, classes = zip(*objects)
    objects = Objects(torch.tensor(found), torch.tensor(classes), 0)
    return find_reason(model, image, objects, NAMES, threshold), objects


CLOSE = [32.0, 32.0, 64.0, 60.0]  # IoU 0.875
FAR = [32.0, 32.0, 64.0, 44.0]  # IoU 0.375


@pytest.mark.parametrize(
    "written, options, cause, says",
    [
        ({(48, 48): (0, 0.8, CLOSE)}, {}, FOUND, "the score 0.80 and an IoU of 0.88"),
        ({(48, 48): (0, 0.2, CLOSE)}, {}, THRESHOLD, "its score is 0.20, below the threshold 0.30"),
        (
            {(48, 48): (1, 0.6, CLOSE), (40, 40): (0, 0.1, BOX)},
            {},
            CLASSIFICATION,
            "It is found as ring, with the score 0.60, and as disc with 0.10 only",
        ),
        ({(48, 48): (1, 0.6, CLOSE)}, {}, CLASSIFICATION, "as ring, with the score 0.60."),
        (
            {(48, 48): (0, 0.5, CLOSE), (16, 16): (0, 0.9, [0.0, 0.0, 20.0, 20.0])},
            {"max_detections_per_image": 1},
            LIMIT,
            "but an image has at most 1 detections, and the others score higher.",
        ),
        (  # among fewer detections it would not count either
            {(48, 48): (0, 0.2, CLOSE), (16, 16): (0, 0.9, [0.0, 0.0, 20.0, 20.0])},
            {"max_detections_per_image": 1},
            THRESHOLD,
            "Its best box has the score 0.20 .* the score is below the threshold 0.30",
        ),
        (
            {(48, 48): (0, 0.5, CLOSE), (16, 16): (0, 0.9, [0.0, 0.0, 20.0, 20.0])},
            {"topk_candidates_test": 1},
            CANDIDATES,
            "the score 0.50, but is not among the best 1 of its level",
        ),
        (
            {(48, 48): (0, 0.03, CLOSE)},
            {},
            SCORE,
            "Boxes that fit it: 1, but their scores for disc are at most 0.030, and only boxes",
        ),
        (
            {(48, 48): (0, 0.9, FAR)},
            {},
            LOCALIZATION,
            "No box fits it: the best one has an IoU of 0.38; scores for disc .* 0.90",
        ),
        ({}, {}, LOCALIZATION, "an IoU of 0.00"),
    ],
)
def test_causes(model, monkeypatch, written, options, cause, says):
    found, _ = answer(model, monkeypatch, written, **options)
    assert found.cause == cause
    assert all(part in found.sentence for part in says.split(" .* "))
    assert "TEST" not in found.sentence  # keys are for the last line


def test_settings_exist():
    keys = [key for key in SETTINGS.values() if not key.startswith("--")]
    load_config(CONFIG, [x for key in keys for x in (key, "1")])
    assert len(keys) == 4


def test_classes_of_locations(model, monkeypatch):
    # Another class, below the threshold of detections that are reported.
    found, _ = answer(model, monkeypatch, {(48, 48): (1, 0.2, CLOSE)})
    assert found.cause == CLASSIFICATION
    assert found.sentence == (
        "Boxes fit it, but their scores are for ring, up to 0.20, not for disc, up to 0.000."
    )


def test_suppressed_by_the_detection_of_a_neighbour(model, monkeypatch):
    between = [38.0, 32.0, 72.0, 64.0]
    written = {(48, 48): (0, 0.5, [36.0, 32.0, 68.0, 64.0]), (64, 48): (0, 0.7, between)}
    objects = [(BOX, 0), ([40.0, 32.0, 72.0, 64.0], 0)]
    found, _ = answer(model, monkeypatch, written, objects)
    assert found.cause == NMS
    assert "dropped as a duplicate (NMS) of a detection with the score 0.70" in found.sentence
    assert "and finds the disc beside it" in found.sentence
    assert found.other_box.tolist() == between


def test_the_detection_of_a_neighbour_is_not_its_own(model, monkeypatch):
    written = {(64, 48): (0, 0.7, OTHER)}
    found, _ = answer(model, monkeypatch, written, [([44.0, 32.0, 76.0, 64.0], 0), (OTHER, 0)])
    assert found.cause != FOUND


def test_who_takes_its_locations_in_training(model, monkeypatch):
    locations = {(x, y): (0, 0.5, OTHER) for x in (56,) for y in (40, 48)}
    found, _ = answer(model, monkeypatch, locations, [(BOX, 0), (OTHER, 1)])
    alone, _ = answer(model, monkeypatch, {(40, 40): (0, 0.5, BOX)})
    assert "1 locations would be assigned to it." in alone.assignment
    assert "go to others" not in alone.assignment
    assert "0 locations would be assigned" in found.assignment
    assert "2 go to others, most to the ring beside it" in found.assignment


def test_drawing(model, monkeypatch):
    written = {(48, 48): (0, 0.5, [36.0, 32.0, 68.0, 64.0]), (64, 48): (0, 0.7, OTHER)}
    found, objects = answer(model, monkeypatch, written, [(BOX, 0), (OTHER, 0)])
    image = np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
    drawing = draw_reason(found, image, objects, NAMES)
    assert drawing.dtype == np.uint8 and drawing.shape[0] > 600
    # The legend is to the right of the object, one row per colour.
    legend = drawing[: 22 + 480, 490:]
    for color in (OBJECT_COLOR, BEST_COLOR, PREFERRED_COLOR):
        near = np.abs(legend - np.array(color) * 255).max(axis=2) < 40
        assert near.sum() > 20, color
    # An object that reaches over the border of the image.
    edge = objects._replace(boxes=torch.tensor([[-9.0, -9.0, 20.0, 20.0], OTHER]))
    assert draw_reason(found, image, edge, NAMES).std() > 0


def test_boxes():
    assert parse_box("1,2,3.5,4") == parse_box("1 2 3.5 4") == parse_box((1, 2, 3.5, 4))
    for box in ("1,2,3", "a,b,c,d", "1,2,0,4", "", (1, 2, 3), (1, None, 3, 4)):
        with pytest.raises(UserError, match="write x,y,width,height"):
            parse_box(box)


def test_the_annotation_that_a_box_means():
    assert find_nearest([0.6, 0.8, 0.1], [0, 1, 0], None) == 1
    assert find_nearest([0.6, 0.8, 0.1], [0, 1, 0], 0) == 0
    assert find_nearest([0.4, 0.8, 0.1], [0, 1, 0], 0) is None
    assert find_nearest([], [], None) is None
