"""Files of version 0.1: a checkpoint, its config and two exported files, and what they detected
there. All were written by the package as it was at commit a631ff7, on random weights.
"""

import gzip
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from detectron2.data import transforms as T

import tood
from tood.inference.exported import ExportedDetector, ExportedFile, compare_detections

FIXTURES = ROOT / "tests" / "fixtures" / "version_0_1"
CLASSES = ["disc", "square", "triangle", "star"]


def draw_image():
    """Draw what the detections are of, (120, 150, 3) uint8, BGR."""
    y, x, c = np.meshgrid(np.arange(120), np.arange(150), np.arange(3), indexing="ij")
    return ((x * 7 + y * 13 + (x // 10) * (y // 10) * 31 + c * 29) % 256).astype(np.uint8)


def as_arrays(scores, boxes, classes):
    return {"scores": np.array(scores), "boxes": np.array(boxes), "classes": np.array(classes)}


def read_expected():
    rows = json.loads((FIXTURES / "detections.json").read_text())
    return as_arrays(*zip(*((row[0], row[1:5], row[5]) for row in rows)))


def unpack(name, folder):
    path = folder / name
    path.write_bytes(gzip.decompress((FIXTURES / f"{name}.gz").read_bytes()))
    return str(path)


def check(instances):
    expected = read_expected()
    arrays = (instances.scores, instances.pred_boxes.tensor, instances.pred_classes)
    found = compare_detections(expected, as_arrays(*(x.tolist() for x in arrays)))
    assert len(expected["scores"]) == 95
    assert (found.matched, found.unmatched) == (95, 0)
    assert found.score_difference < 1e-5 and found.box_difference < 0.02


def test_its_checkpoints_detect_the_same(tmp_path):
    config, weights = str(FIXTURES / "config.yaml"), unpack("model.pth", tmp_path)
    predictor = tood.Predictor(config, weights, score_threshold=0.0)
    assert predictor.class_names == CLASSES
    check(predictor(draw_image()))


@pytest.mark.parametrize("name", ["model.onnx", "model.ts"])
def test_its_exported_files_detect_the_same(name, tmp_path):
    if name == "model.onnx":
        pytest.importorskip("onnxruntime")
    file = ExportedFile(unpack(name, tmp_path))
    assert file.metadata["classes"] == CLASSES and file.metadata["input_format"] == "RGB"
    image = draw_image()[:, :, ::-1]
    resize = T.ResizeShortestEdge([file.metadata["min_size"]] * 2, file.metadata["max_size"])
    resized = resize.get_transform(image).apply_image(np.ascontiguousarray(image))
    pixels = torch.as_tensor(resized.transpose(2, 0, 1).copy())
    (found,) = ExportedDetector(file)([{"image": pixels, "height": 120, "width": 150}])
    check(found["instances"])
