"""Other people's programs on what a training leaves; each where its package is installed."""

import os
import re

import numpy as np
import pytest
import torch
from conftest import CONFIG, ROOT, TINY
from detectron2.modeling import build_model
from PIL import Image

import tood
from tood.config.read import load_config
from tood.data.shapes import SHAPES


@pytest.fixture(scope="module", params=["RGB", "BGR"])
def left(request, entry, tmp_path_factory):
    """Config and checkpoint of a training, whose model takes images in an order."""
    folder = tmp_path_factory.mktemp("left")
    opts = ["INPUT.FORMAT", request.param, "MODEL.TOOD.NUM_CLASSES", "4"]
    opts += ["INPUT.MIN_SIZE_TEST", "64", "MODEL.TOOD.SCORE_THRESH_TEST", "0.0"]
    cfg = load_config(CONFIG, [*TINY, *opts], train_data=[entry], val_data=[entry])
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.head.cls_pred.weight, std=0.5)
    weights = {"model": model.state_dict(), "class_names": list(SHAPES)}
    torch.save(weights, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.mark.slow
def test_sahi(left, shapes):
    pytest.importorskip("sahi", reason="not installed")
    from sahi import AutoDetectionModel
    from sahi.predict import get_sliced_prediction

    # As in docs/tiles.md.
    model = AutoDetectionModel.from_pretrained(
        model_type="detectron2",
        config_path=str(left / "config.yaml"),
        model_path=str(left / "model_final.pth"),
        confidence_threshold=0.0,
        device="cpu",
    )
    if model.model.input_format == "RGB":
        model.model.input_format = "RGB, as SAHI gives it"

    path = sorted((shapes / "images").iterdir())[0]
    found = get_sliced_prediction(
        str(path),
        model,
        slice_height=64,
        slice_width=64,
        postprocess_type="NMS",
        postprocess_match_threshold=1.0,
        verbose=0,
    ).object_prediction_list
    expected = tood.Predictor(left, score_threshold=0.0)(path)
    assert {x.category.name for x in found} <= set(SHAPES) and len(found) > 20
    names = [SHAPES[c] for c in expected.pred_classes]
    theirs = {(x.category.name, round(x.score.value, 4)) for x in found}
    ours = {(name, round(s, 4)) for name, s in zip(names, expected.scores.tolist())}
    assert theirs <= ours  # SAHI's NMS removes more


def test_supervision(left, shapes):
    supervision = pytest.importorskip("supervision", reason="an extra")
    path = sorted((shapes / "images").iterdir())[0]
    (result,) = tood.Predictor(left, score_threshold=0.0).predict(path)
    instances, found = result.instances, result.to_supervision()
    assert len(found) > 20 and found.data["class_name"].tolist() == result.labels
    assert np.array_equal(found.xyxy, instances.pred_boxes.tensor.numpy())
    assert np.array_equal(found.confidence, instances.scores.numpy())
    assert np.array_equal(found.class_id, instances.pred_classes.numpy())
    drawn = supervision.BoxAnnotator().annotate(np.array(Image.open(path)), found[:5])
    assert drawn.shape[2] == 3


@pytest.mark.slow
def test_code_of_the_page_on_integrations(left, shapes, tmp_path, monkeypatch):
    """It tracks through a video, and reads a data set."""
    cv2 = pytest.importorskip("cv2")
    for name in ("supervision", "trackers"):
        pytest.importorskip(name, reason="an extra")
    monkeypatch.chdir(tmp_path)
    images = [cv2.imread(str(path)) for path in sorted((shapes / "images").iterdir())[:3]]
    video = cv2.VideoWriter("video.mp4", cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 64))
    for image in (*images, *images):
        video.write(image)
    video.release()
    os.symlink(shapes, "photos")
    text = (ROOT / "docs" / "integrations.md").read_text()
    tracking, reading, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(tracking.replace("output/photos", str(left)), names)
    tracked = cv2.VideoCapture("tracked.mp4")
    assert tracked.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert len(names["detections"].tracker_id) == len(names["detections"])
    exec(reading, names)
    assert len(names["data"]) == 8 and names["data"].classes == list(SHAPES)
