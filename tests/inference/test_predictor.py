"""The predictor: the results of an evaluation, for files and arrays."""

import functools
import json
import threading

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_backbone
from opens import OPENS

from tood import add_tood_config
from tood.data.shapes import SHAPES
from tood.inference.predictor import Predictor
from tood.utils.errors import UserError
from tood.utils.tensors import read_tensors


@pytest.fixture
def files(trained):
    """Config and weights of a training."""
    return str(trained / "config.yaml"), str(trained / "model_final.pth")


@pytest.fixture
def cfg(files):
    """The config as Detectron2 reads it."""
    cfg = get_cfg()
    add_tood_config(cfg)
    cfg.merge_from_file(files[0])
    return cfg


def test_predictor_says_what_evaluation_does(files, trained, shapes):
    predictor = Predictor(*files, score_threshold="from-config")
    assert predictor.class_names == list(SHAPES)
    results = json.loads((trained / "inference" / "coco_instances_results.json").read_text())
    paths = sorted((shapes / "images").iterdir())
    # One at a time, as the evaluation; a batch may swap detections whose scores are all but equal.
    for image_id, path in enumerate(paths, 1):
        instances = predictor(path)
        expected = [r for r in results if r["image_id"] == image_id]
        assert instances.scores.tolist() == [r["score"] for r in expected]
        x1, y1, x2, y2 = instances.pred_boxes.tensor.unbind(dim=1)
        boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1)
        torch.testing.assert_close(boxes, torch.tensor([r["bbox"] for r in expected]))


def test_a_checkpoint_is_read_once(files, monkeypatch):
    """And the model is built once."""
    calls = []
    for module in ("inference.predictor", "checkpoint.checkpointer"):
        count = functools.partial(call_and_note, calls, read_tensors)
        monkeypatch.setattr(f"tood.{module}.read_tensors", count)
    for module in ("config.build", "modeling.detector"):
        count = functools.partial(call_and_note, calls, build_backbone)
        monkeypatch.setattr(f"tood.{module}.build_backbone", count)
    Predictor(*files)
    assert calls == ["read_tensors", "build_backbone"]


def call_and_note(calls, function, *args):
    calls.append(function.__name__)
    return function(*args)


def test_predictor_takes_lists_paths_and_arrays(files, photos):
    predictor = Predictor(*files)
    paths = sorted(photos.iterdir())
    arrays = [cv2.imread(str(path)) for path in paths]
    one_by_one = [predictor(str(path)) for path in paths]
    together = predictor(paths)
    found = [None] * len(paths)
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, predictor(paths[i])))
        for i in range(len(paths))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for alone, other, threaded in zip(one_by_one, together, found):
        torch.testing.assert_close(alone.scores, other.scores, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(alone.pred_boxes.tensor, threaded.pred_boxes.tensor)
    plain = predictor.as_dicts(arrays[1:2])[0]
    assert plain["boxes"].shape == (len(plain["scores"]), 4)
    assert plain["names"][0] == SHAPES[plain["classes"][0]]
    assert predictor.as_dicts(arrays[1])["scores"] == pytest.approx(plain["scores"])


def test_predictor_equals_default_predictor(cfg, files, photos):
    cfg.MODEL.WEIGHTS = files[1]
    image = cv2.imread(str(photos / "00000.jpg"))
    expected = DefaultPredictor(cfg)(image)["instances"]
    actual = Predictor(cfg, score_threshold="from-config")(image)
    torch.testing.assert_close(actual.scores, expected.scores)
    torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_predictor_options(files, photos):
    all_of_them = Predictor(*files, score_threshold=0.0)(photos / "00001.jpg")
    threshold = all_of_them.scores[10].item()
    few = Predictor(*files, score_threshold=threshold, device="cpu", precision="bfloat16")
    assert few.model.precision_test == "bfloat16"
    assert 0 < len(few(photos / "00001.jpg")) < len(all_of_them)


def test_thresholds_of_classes(files, photos):
    everything = Predictor(*files, score_threshold="from-config")(photos / "00001.jpg")
    thresholds = torch.full((4,), 1.0)
    thresholds[everything.pred_classes[0]] = everything.scores[2]
    found = Predictor(*files, score_threshold=thresholds.tolist())(photos / "00001.jpg")
    kept = everything.scores >= thresholds[everything.pred_classes]
    assert 0 < len(found) < len(everything)
    assert found.scores.tolist() == everything.scores[kept].tolist()
    with pytest.raises(UserError, match="must be a number, one for each of the 4 classes"):
        Predictor(*files, score_threshold=[0.5])
    for wrong in ("high", float("nan"), True, [0.5, 0.5, 0.5, float("inf")], [0.5, 0.5, 0.5, None]):
        with pytest.raises(UserError, match="must be a number from 0 to 1"):
            Predictor(*files, score_threshold=wrong)


@pytest.mark.parametrize(
    "image, says",
    [
        (np.zeros((4, 4), np.uint8), r"\(H, W, 3\) of uint8"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        ("no/such.jpg", r"no/such.jpg cannot be read"),
    ],
)
def test_predictor_refuses(files, image, says):
    predictor = Predictor(*files)
    with pytest.raises(UserError, match=says):
        predictor(image)


def test_predictor_checks_a_config_of_python(cfg, files, photos):
    cfg.MODEL.DEVICE = "cuda"
    assert len(Predictor(cfg, files[1], score_threshold=1)(photos / "00001.jpg")) == 0
    with pytest.raises(UserError, match="float16 needs a GPU"):
        Predictor(cfg, files[1], precision="float16", device="cpu")


def test_predictor_without_weights(files):
    with pytest.raises(UserError, match="No checkpoint given"):
        Predictor(files[0])
    with pytest.raises(UserError, match="There is no config named 'tood_R51'"):
        Predictor("tood_R51", "weights.pth")


def test_a_wrong_option_of_the_predictor(cfg, files):
    with pytest.raises(
        UserError, match=r"An option is wrong: .*NUM_CLASES; did you mean MODEL.TOOD"
    ):
        Predictor(cfg, files[1], opts=["MODEL.TOOD.NUM_CLASES", "3"])


def test_a_model_that_is_in_memory(files, photos):
    """After a training, the config may name other weights."""
    first = Predictor(*files, score_threshold="from-config")
    with OPENS as opened:
        second = Predictor.from_model(first.model.train(), first.cfg, SHAPES, "other.pth")
    assert not opened and second.options.weights == "other.pth" and not second.model.training
    found, other = first(photos / "00001.jpg"), second(photos / "00001.jpg")
    assert len(found) > 10 and torch.equal(found.scores, other.scores)
    assert first.options.weights.endswith("model_final.pth")


def test_no_annotations_are_read(cfg, files, trained):
    """A checkpoint names its classes."""
    cfg.MODEL.WEIGHTS = files[1]
    with OPENS as opened:
        assert Predictor(*files).class_names == list(SHAPES)
        DefaultPredictor(cfg)
    assert any("model_final.pth" in path for path in opened)
    read = {path.rpartition("/")[2] for path in opened if path.endswith(".json")}
    assert read == {"report.json"}  # for the score thresholds
    # One that does not.
    content = torch.load(files[1], weights_only=True)
    del content["class_names"]
    torch.save(content, trained / "nameless.pth")
    with OPENS as opened:
        nameless = Predictor(files[0], str(trained / "nameless.pth"))
    assert nameless.class_names == list(SHAPES)
