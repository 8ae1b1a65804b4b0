"""The command: guarantee.json, its sentences and curve, from a model and from results."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import app_error, complaint
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from PIL import Image
from test_matching import load_content, make_detections

import tood
from tood.app import cli, export
from tood.app.guarantee.certify import Certificate, Promise, certify, describe, trace_curve
from tood.app.guarantee.misses import find_outcome
from tood.checkpoint.identity import hash_weights
from tood.data.annotations import read_annotations
from tood.data.entries import parse_own_data
from tood.data.shapes import write_shapes_dataset
from tood.deploy.module import ExportableTOOD
from tood.inference.predictor import Predictor

A, B = (0, 0, 20, 20), (50, 0, 20, 20)


def draw_set(num_images, seed=0, misses=0.0):
    """Images with one or two objects, which are found with different scores; and a false one in
    each. Of class 1 there is an object in each third image.
    """
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for i in range(num_images):
        for k, box in ((0, A), (1, B))[: 1 + (i % 3 == 0)]:
            objects.append((i, k, box, False, 400))
            if rng.random() >= misses:
                found.append((i, k, box, round(float(rng.uniform(0.2, 1)), 2)))
        found.append((i, 0, (200, 200, 20, 20), round(float(rng.uniform(0, 0.5)), 2)))
    return load_content(num_images, objects), make_detections(found)


@pytest.fixture(scope="module")
def new_entry(tmp_path_factory):
    """Twelve images that no training has seen."""
    folder = tmp_path_factory.mktemp("new")
    write_shapes_dataset(str(folder), num_images=12, seed=7, size=64)
    return f"{folder}/annotations.json:{folder}/images"


@pytest.fixture
def write(tmp_path):
    """Write annotations and results; return the arguments for them."""

    def write(content, detections):
        (tmp_path / "val.json").write_text(json.dumps(content))
        (tmp_path / "found.json").write_text(json.dumps(detections))
        data = f"{tmp_path}/val.json:{tmp_path}"
        output = str(tmp_path / "out")
        return dict(results=str(tmp_path / "found.json"), val_data=data, output=output)

    return write


def test_results_of_any_detector(write, tmp_path, capsys):
    content, detections = draw_set(60)
    flags = write(content, detections)
    argv = ["guarantee", "--miss-rate", "0.2", "--results", flags["results"]]
    assert cli.main([*argv, "--val-data", flags["val_data"], "--output", flags["output"]]) == 0
    summary = json.loads((tmp_path / "out" / "guarantee.json").read_text())
    t = summary["score_threshold"]
    # By hand: the largest score at which (sum of losses + 1) / 61 is at most 0.2.
    outcome = find_outcome(content, detections)
    totals = {x: outcome.sum_losses(x) for x in sorted({x["score"] for x in detections})}
    assert t == max(x for x, total in totals.items() if (total + 1) / 61 <= Fraction(1, 5))
    assert summary["certifiable"] and summary["images_needed"] is None
    assert summary["empirical_miss_rate"] == pytest.approx(float(totals[t] / 60))
    assert summary["bound"] == pytest.approx(float((totals[t] + 1) / 61))
    false = sum(x["score"] >= t and x["bbox"][0] == 200 for x in detections)
    kept = sum(x["score"] >= t for x in detections)
    assert summary["false_per_image"] == false / 60
    assert summary["precision"] == pytest.approx((kept - false) / kept)
    assert (summary["num_images"], summary["num_objects"], summary["num_units"]) == (60, 80, 60)
    assert "found.json are of these data, beyond the ids" in summary["notes"][-1]
    assert summary["settings"] is None and set(summary["identity"]) >= {"data"}
    printed = capsys.readouterr().out
    assert (
        f"If detections of at least {t:g} count, at most 20 % of the objects of an image" in printed
    )
    assert "over new images like these 60 and over the choice of these." in printed
    assert "not a promise for each single image" in printed
    assert np.asarray(Image.open(tmp_path / "out" / "guarantee.png")).std() > 5
    assert "already exists" in complaint(tood.guarantee, **flags, miss_rate=0.2)
    again = tood.guarantee(**flags, miss_rate=0.3, confidence=0.9, overwrite=True)
    assert again.certifiable and again.summary["confidence"] == 0.9
    assert "with a confidence of 90 %: of 10 % of such choices of 60 images" in str(again)


def test_too_few_images_are_a_result(write):
    content, detections = draw_set(8)
    found = tood.guarantee(**write(content, detections), miss_rate=0.1)
    assert not found.certifiable and found.score_threshold is None
    assert found.summary["images_needed"] == 9
    assert found.summary["sentences"] == [
        "Not certifiable with 8 images: even if all detections count, 0 % of the objects are "
        "missed here, and the bound on this is 11.1 %, above 10 %; about 9 images would do."
    ]
    one = tood.guarantee(**write(*draw_set(1)), miss_rate=0.1, overwrite=True)
    assert "Not certifiable with 1 image:" in str(one)
    one = tood.guarantee(**write(*draw_set(1)), miss_rate=0.5, overwrite=True)
    assert "over new images like this one and over the choice of this." in str(one)


def test_a_detector_that_misses_more_than_is_asked_for(write):
    found = tood.guarantee(**write(*draw_set(60, misses=0.3)), miss_rate=0.1, confidence=0.95)
    assert not found.certifiable and found.summary["images_needed"] is None
    assert "more images would not help, but a better detector would" in str(found)
    content, _ = draw_set(60)
    nothing = tood.guarantee(**write(content, []), miss_rate=0.5, overwrite=True)
    assert not nothing.certifiable and nothing.summary["empirical_miss_rate"] == 1


def test_objects_that_are_never_found(write):
    """A bound that is low, because most images have no objects, still has no threshold."""
    content, _ = draw_set(60)
    content["annotations"] = content["annotations"][:2]
    false = make_detections([(0, 0, (200, 200, 20, 20), 0.9)])
    for found in ([], false):
        result = tood.guarantee(**write(content, found), miss_rate=0.3, overwrite=True)
        assert not result.certifiable and result.summary["images_needed"] is None
        assert result.summary["bound"] < 0.3
        assert result.summary["sentences"] == [
            "Not certifiable with 60 images: no detection finds one of the 2 objects, so that "
            "there is no threshold to choose."
        ]


def test_a_detector_that_misses_nearly_what_is_promised(write):
    """Choices of images that certify nothing are part of the average, which is said."""
    flags = write(*draw_set(60, misses=0.1))
    near = tood.guarantee(**flags, miss_rate=0.12)
    assert near.certifiable and "other images like these might certify nothing" in str(near)
    far = tood.guarantee(**flags, miss_rate=0.3, overwrite=True)
    sure = tood.guarantee(**flags, miss_rate=0.12, confidence=0.5, overwrite=True)
    assert "might certify nothing" not in str(far) + str(sure)


def test_each_class_by_itself(write):
    content, detections = draw_set(90)
    content["categories"].append({"id": 9, "name": "rare"})
    found = tood.guarantee(**write(content, detections), miss_rate=0.1, per_class=True)
    rows = found.summary["classes"]
    assert [x["num_units"] for x in rows] == [90, 30, 0]  # those that have objects of it
    outcome = find_outcome(content, detections)
    for k in (0, 1):
        alone = certify(outcome.select_class(k), Promise(0.1))
        assert rows[k]["score_threshold"] == alone.score_threshold is not None
    assert found.score_thresholds == {x["name"]: x["score_threshold"] for x in rows}
    assert not found.certifiable and found.score_threshold is None
    text = str(found)
    assert "over new images with class 1 objects like these 30 and" in text
    assert "there are no rare objects in the calibration data" in text
    assert "Nothing is said of classes without objects in these images: rare." in text


def test_frames_of_a_video_are_one_unit(write):
    content, detections = draw_set(60)
    for i, x in enumerate(content["images"]):
        x["file_name"] = f"video{i // 6}_{i}.jpg"
    flags = write(content, detections)
    found = tood.guarantee(**flags, miss_rate=0.2, group=r"video\d+_")
    assert found.summary["num_units"] == 10 and found.summary["num_images"] == 60
    assert found.score_threshold is None or "over new groups like these 10" in str(found)
    alone = tood.guarantee(**flags, miss_rate=0.2, overwrite=True)
    assert alone.summary["num_units"] == 60
    assert found.summary["bound"] >= 1 / 11


def test_copies_are_one_unit(write, tmp_path):
    content, detections = draw_set(20)
    for i, x in enumerate(content["images"]):
        (tmp_path / x["file_name"]).write_bytes(bytes([max(i, 3)]) * 9)  # the first four
    found = tood.guarantee(**write(content, detections), miss_rate=0.2)
    assert found.summary["num_units"] == 17
    assert "3 copies of images count together with their originals." in str(found)


@pytest.mark.parametrize(
    "values, says",
    [
        (dict(miss_rate=0.0), "--miss-rate is 0; it must be between 0 and 1, as 0.1; no number of"),
        (dict(miss_rate=1.0), "--miss-rate is 1; it must be between 0 and 1, as 0.1."),
        (dict(miss_rate=0.1, confidence=95.0), "--confidence is 95; it must be between 0 and 1"),
        (dict(miss_rate=0.1, group="("), "--group ( is not a regular expression"),
        (dict(miss_rate=0.1, group="video"), "--group video matches the name of no image"),
    ],
)
def test_values_that_promise_nothing(values, says, write):
    assert says in complaint(tood.guarantee, **write(*draw_set(4)), **values)


def test_data_without_objects(write):
    content, detections = draw_set(4)
    crowds = [{**x, "iscrowd": 1} for x in content["annotations"]]
    for objects, says in (([], "have no objects, so that none can be"), (crowds, "iscrowd")):
        flags = write({**content, "annotations": objects}, detections)
        assert says in complaint(tood.guarantee, **flags, miss_rate=0.1)


def test_what_is_named_twice_or_not_at_all(write):
    assert "Name either a model, or a file" in app_error("guarantee", "--miss-rate", "0.1")
    flags = write(*draw_set(4))
    message = complaint(tood.guarantee, results=flags["results"], miss_rate=0.1)
    assert "--results needs --val-data" in message
    message = complaint(tood.guarantee, **flags, miss_rate=0.1, options=["SEED", "1"])
    assert "--results needs no config" in message
    message = complaint(tood.guarantee, "m", val_data=flags["val_data"], miss_rate=0.1)
    assert "use --calibration-data with a model" in message


def test_the_curve_is_certified_up_to_the_threshold():
    content, detections = draw_set(300)
    outcome, promise = find_outcome(content, detections), Promise(0.2, 0.9)
    curve = trace_curve(outcome, promise)
    certificate = certify(outcome, promise)
    t = np.array(curve["score_threshold"])
    assert len(t) > 50 and (np.diff(t) > 0).all() and (np.diff(curve["bound"]) >= 0).all()
    assert ((np.array(curve["bound"]) <= 0.2) == (t <= certificate.score_threshold)).all()


def test_a_printed_threshold_is_not_above_the_certified_one():
    found = Certificate(0.31239, True, 50, 80, 0.05, 0.09, 0.5, 0.8, None)
    assert describe(found, Promise(0.1)).startswith("If detections of at least 0.3123 count,")


@pytest.mark.slow
def test_a_trained_model(trained, new_entry, tmp_path):
    """Computed from all detections of the model, with the NMS of its config."""
    out = tmp_path / "out"
    found = tood.guarantee(trained, calibration_data=new_entry, miss_rate=0.9, output=str(out))
    summary = json.loads((out / "guarantee.json").read_text())
    predictor = Predictor(trained, score_threshold=0.001)
    says = f"--score-threshold guaranteed uses that in {trained}/guarantee, not this one."
    assert str(found).endswith(says)
    assert summary["settings"] == json.loads(json.dumps(predictor.settings))
    assert summary["settings"]["MODEL.TOOD.NMS_THRESH_TEST"] == 0.6
    assert summary["identity"]["weights"] == hash_weights(predictor.model.state_dict())
    assert (summary["num_images"], summary["num_objects"]) == (12, 26)
    # The same from its detections in a file.
    content = read_annotations(*parse_own_data(new_entry), to_train=True)
    names = [x["file_name"] for x in content["images"]]
    paths = [f"{new_entry.partition('.json:')[2]}/{name}" for name in names]
    collected = []
    for x, instances in zip(content["images"], predictor.find_all(paths)):
        collected += instances_to_coco_json(instances, x["id"])
    ids = sorted(x["id"] for x in content["categories"])
    collected = [{**x, "category_id": ids[x["category_id"]]} for x in collected]
    assert min(x["score"] for x in collected) < 0.05
    alone = certify(find_outcome(content, collected), Promise(0.9))
    # Scores of images in other batches are rounded differently.
    assert found.score_threshold == pytest.approx(alone.score_threshold, rel=1e-5)
    assert summary["empirical_miss_rate"] == alone.empirical_miss_rate
    assert "name annotated images that the model has not seen with --calibration-data" in complaint(
        tood.guarantee, trained, miss_rate=0.1
    )


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_the_guarantee_is_in_force(trained, new_entry, tmp_path, fresh_loggers):
    """Used in predictions, the predictor and exported files; not with another NMS or weights."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    found = tood.guarantee(run, calibration_data=new_entry, miss_rate=0.95)
    t = found.score_threshold
    assert found.certifiable and found.folder == str(run / "guarantee") and t < 0.05
    assert "not this one" not in str(found)
    image = f"{new_entry.partition('.json:')[2]}/00000.jpg"
    predictor = tood.Predictor(run, score_threshold="guaranteed")
    assert predictor.thresholds.values == [t] * 4
    # The NMS is the same from a lower limit on.
    expected = tood.Predictor(run, score_threshold=t)(image).scores.tolist()
    assert predictor(image).scores.tolist() == expected and min(expected) >= t
    text = str(tood.predict(run, image, score_threshold="guaranteed", output=run / "a.jpg"))
    words = f"detections of at least {t:g}, guaranteed to miss at most 95 % of the objects"
    assert words in text and "(on average; from 12 images, 20" in text
    report = tood.report(run, output=str(tmp_path / "report"))
    html = (tmp_path / "report" / "report.html").read_text()
    (sentence,) = report.summary["guarantee"]["sentences"]
    assert sentence == found.summary["sentences"][0] and sentence in html
    assert (tmp_path / "report" / "guarantee.png").is_file()
    options = export._Options("a.onnx", "onnx", False, "inside", "float32", "", 1, "guaranteed")
    more = export._describe_guarantee(options, predictor)
    metadata = export.describe_file(ExportableTOOD(predictor.model), predictor, **more)
    assert metadata["score_thresholds"] == [t] * 4 and metadata["score_threshold"] == 0.001
    assert metadata["guarantee"] == predictor.thresholds.text
    half = dict(output=str(run / "a.onnx"), precision="float16", score_threshold="guaranteed")
    assert "not in float16" in complaint(tood.export, run, **half)
    nms = ["MODEL.TOOD.NMS_THRESH_TEST", "0.5"]
    message = complaint(tood.predict, run, image, score_threshold="guaranteed", options=nms)
    assert "with MODEL.TOOD.NMS_THRESH_TEST 0.6, and it is 0.5 here" in message
    message = complaint(tood.Predictor, run, score_threshold="guaranteed", augment=True)
    assert "TEST.AUG" in message
    content = torch.load(run / "model_best.pth", weights_only=True)
    content["model"]["head.reg_pred.bias"] += 1e-3
    torch.save(content, run / "model_best.pth")
    message = complaint(tood.Predictor, run, score_threshold="guaranteed")
    assert "is the guarantee of other weights than" in message
    report = tood.report(run, output=str(tmp_path / "report"), overwrite=True)
    assert not report.summary["guarantee"]
