"""Test-time augmentation."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

import train_net
from tood.config.options import TTAOptions
from tood.engine import train as engine_train
from tood.inference.predictor import Predictor
from tood.inference.tta import TOODWithTTA
from tood.modeling.detector import TOOD
from tood.utils.errors import UserError


def with_tta(model, min_sizes, flip, **options):
    return TOODWithTTA(model, TTAOptions(True, min_sizes, max_size=400, flip=flip), **options)


class BrightSpots(torch.nn.Module):
    """A detector that treats left and right alike: a box for each bright row of pixels."""

    nms_thresh_test, max_detections_per_image, class_agnostic_nms = 0.6, 100, False
    suppress = TOOD.suppress

    def __init__(self):
        super().__init__()
        self.batches = []

    def find_candidates(self, batch):
        self.batches.append([tuple(x["image"].shape[1:]) for x in batch])
        return [self.look(x["image"].float().mean(dim=0)) for x in batch]

    def look(self, image):
        height, width = image.shape
        found = []
        for y in range(0, height, height // 8):
            row = image[y : y + height // 8]
            bright = (row.mean(dim=0) > 128).nonzero()[:, 0]
            if len(bright):
                found.append([bright.min(), y, bright.max() + 1, y + height // 8])
        boxes = torch.tensor(found, dtype=torch.float32).reshape(-1, 4)
        scores = torch.linspace(0.9, 0.5, len(boxes))
        classes = torch.zeros(len(boxes), dtype=torch.int64)
        return Instances(
            (height, width), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes
        )


def spots(height=64, width=96):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, 8:16, 10:40] = 255
    image[:, 40:48, 60:90] = 255
    return {"image": image, "height": height, "width": width}


def test_flip_changes_nothing_for_a_symmetric_model():
    plain = with_tta(BrightSpots(), [64], flip=False)([spots()])
    flipped = with_tta(BrightSpots(), [64], flip=True)([spots()])
    expected = [[10, 8, 40, 16], [60, 40, 90, 48]]
    for (output,) in (plain, flipped):
        assert output["instances"].pred_boxes.tensor.tolist() == expected
        assert output["instances"].scores.tolist() == pytest.approx([0.9, 0.5])


def test_sizes_are_mapped_back_and_batched_with_their_flips():
    model = BrightSpots()
    tta = with_tta(model, [64, 128], flip=True, batch_size=2)
    image = {**spots(), "height": 128, "width": 192}  # of an image twice as large
    (output,) = tta([image])
    assert model.batches == [[(64, 96)] * 2, [(128, 192)] * 2]
    boxes = output["instances"].pred_boxes.tensor
    assert output["instances"].image_size == (128, 192)
    expected = torch.tensor([[20.0, 16, 80, 32], [120, 80, 180, 96]])
    torch.testing.assert_close(boxes, expected, atol=3.0, rtol=0)


def test_one_look_is_the_model_itself(tiny_cfg, make_input):
    tiny_cfg.MODEL.TOOD.SCORE_THRESH_TEST = 0.0
    model = build_model(tiny_cfg).eval()
    image = {**make_input(64, 96), "height": 100, "width": 150}
    with torch.no_grad():
        (expected,) = model([image])
    (actual,) = with_tta(model, [64], flip=False)([image])
    assert len(actual["instances"]) == len(expected["instances"]) > 10
    for field in ("scores", "pred_classes"):
        assert torch.equal(actual["instances"].get(field), expected["instances"].get(field))
    torch.testing.assert_close(
        actual["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor
    )


def test_no_size_to_look_in():
    with pytest.raises(UserError, match="TEST.AUG.MIN_SIZES .*is empty"):
        with_tta(BrightSpots(), [], flip=True)


def test_nothing_found():
    black = {"image": torch.zeros(3, 64, 96, dtype=torch.uint8)}
    (output,) = with_tta(BrightSpots(), [64], flip=True)([black])
    assert len(output["instances"]) == 0


@pytest.mark.slow
def test_command_and_predictor(command, tmp_path, shapes):
    train_net.cli(command(opts=["SEED", "1"]))
    weights = str(tmp_path / "out" / "model_final.pth")
    aug = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)", "MODEL.WEIGHTS", weights]
    results = engine_train.main(train_net.parse_args(command("--eval-only", opts=aug)))
    assert {"bbox", "bbox_TTA"} <= set(results) and "AP50" in results["bbox_TTA"]
    written = tmp_path / "out" / "TTA" / "inference" / "coco_instances_results.json"
    assert written.exists()
    # The predictor says the same.
    config = str(tmp_path / "out" / "config.yaml")
    detect = Predictor(config, weights, augment=True, opts=aug[2:4], score_threshold="from-config")
    found = detect(sorted((shapes / "images").iterdir())[0])
    expected = [r["score"] for r in json.loads(written.read_text()) if r["image_id"] == 1]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4)
