"""Calibration of scores: curves, their errors, and ``tood calibrate``."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import complaint
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st

import tood
from tood.app.guarantee.calibrate import compare_errors
from tood.app.guarantee.scores import (
    ISOTONIC,
    PLATT,
    POOLED,
    Detections,
    cross_fit,
    find_ious,
    fit_classes,
    fit_isotonic,
    fit_platt,
    list_detections,
    measure_errors,
)
from tood.app.report.matching import make_table, overlaps
from tood.inference.calibration import Calibration, Curve, read_calibration
from tood.inference.predictor import Predictor


def make_detections(number, images=50, classes=1, seed=0, power=2.0):
    """Draw detections of which a share score**power is right."""
    rng = np.random.default_rng(seed)
    scores = rng.random(number)
    right = rng.random(number) < scores**power
    return Detections(
        scores,
        rng.integers(0, classes, number),
        rng.integers(0, images, number),
        right,
        right * rng.uniform(0.5, 1, number),
        images,
        classes,
        np.ones(classes, dtype=bool),
    )


def test_isotonic_regression_has_literal_values():
    curve = fit_isotonic(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([0.0, 1.0, 0.0, 0.0, 1.0]))
    assert curve.scores.tolist() == [0.1, 0.2, 0.4, 0.5]
    assert curve.values.tolist() == [0, 1 / 3, 1 / 3, 1]
    # Linear between 0.4 and 0.5, constant beyond the ends.
    assert curve.apply(np.array([0.0, 0.3, 0.45, 0.9])) == pytest.approx([0, 1 / 3, 2 / 3, 1])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=12))
def test_isotonic_regression_is_the_max_of_min_means(pairs):
    """Robertson, Wright and Dykstra 1988, theorem 1.4.4, by loops over all intervals."""
    scores, targets = (np.array(x, dtype=float) for x in zip(*pairs))
    curve = fit_isotonic(scores, targets)
    for score in scores:
        lows = [x for x in scores if x <= score]
        highs = [x for x in scores if x >= score]
        means = [
            min(targets[(scores >= low) & (scores <= high)].mean() for high in highs)
            for low in lows
        ]
        assert curve.apply(np.array([score]))[0] == pytest.approx(max(means))


def test_platts_curve_recovers_a_logistic_one():
    rng = np.random.default_rng(0)
    scores = rng.random(50_000)
    logits = 2 * np.log(scores / (1 - scores)) - 1
    targets = (rng.random(50_000) < 1 / (1 + np.exp(-logits))).astype(float)
    curve = fit_platt(scores, targets)
    x = np.array([0.2, 0.5, 0.8])
    expected = 1 / (1 + np.exp(-(2 * np.log(x / (1 - x)) - 1)))
    assert curve.apply(x) == pytest.approx(expected, abs=0.01)
    # Without right detections, Platt's target is 1 / (N + 2) for all.
    assert fit_platt(np.full(8, 0.5), np.zeros(8)).apply(x)[1] == pytest.approx(0.1, abs=1e-3)
    # A slope below 0 would change the order.
    falling = fit_platt(np.array([0.1] * 9 + [0.9] * 9), np.array([1.0] * 9 + [0.0] * 9))
    assert np.ptp(falling.apply(x)) == pytest.approx(0, abs=1e-6)


def test_few_detections_get_platts_curve_or_that_of_all_classes():
    detections = make_detections(2000, classes=3)
    kept = np.concatenate(  # the right ones
        [
            np.flatnonzero((detections.classes == k) & detections.right)[:number]
            for k, number in enumerate((100, 99, 9))
        ]
    )
    kept = np.r_[kept, np.flatnonzero(~detections.right)]
    fits = fit_classes(detections.select(kept))
    assert [x.method for x in fits] == [ISOTONIC, PLATT, POOLED]
    pooled = fit_isotonic(detections.scores[kept], detections.right[kept].astype(float))
    assert fits[2].precision.values.tolist() == pooled.values.tolist()


def test_classes_without_objects_say_nothing():
    """They may not have been annotated at all."""
    detections = make_detections(4000, classes=2)
    blind = detections.right & (detections.classes == 0)
    unknown = detections._replace(right=blind, has_objects=np.array([True, False]))
    own, pooled = fit_classes(unknown)
    assert pooled.method == POOLED and own.method == ISOTONIC
    assert pooled.precision.values.tolist() == own.precision.values.tolist()
    error = compare_errors(unknown, np.array([0.3, 0.3]), seed=0)["D-ECE"]
    alone = compare_errors(unknown, np.array([0.3, 2.0]), seed=0)["D-ECE"]
    assert error == alone and error.before.value > 0.1


def measure_slowly(scores, targets, classes):
    """Mean over classes of the binned error, by loops over right-closed bins."""
    errors = []
    for k in sorted(set(classes.tolist())):
        error, mine = 0.0, classes == k
        for i in range(25):
            low, high = i / 25, (i + 1) / 25
            inside = mine & ((scores > low) | ((i == 0) & (scores == 0))) & (scores <= high)
            if inside.any():
                gap = abs(scores[inside].mean() - targets[inside].mean())
                error += inside.sum() / mine.sum() * gap
        errors.append(error)
    return np.mean(errors)


def test_errors_have_literal_values_and_those_of_a_loop():
    detections = make_detections(300, images=12, classes=3, power=1.5)
    zeros = np.zeros(300)
    one = measure_errors(detections, detections.scores, zeros, by_iou=False)
    right = detections.right.astype(float)
    expected = measure_slowly(detections.scores, right, np.zeros(300, dtype=int))
    assert one.before.value == pytest.approx(expected)
    assert one.after.value == pytest.approx(right.mean())
    assert one.fall.value == pytest.approx(expected - right.mean())
    two = measure_errors(detections, detections.scores, zeros, by_iou=True)
    slow = measure_slowly(detections.scores, detections.ious, detections.classes)
    assert two.before.value == pytest.approx(slow)
    # Classes without objects have no LaECE_0.
    some = detections._replace(has_objects=np.array([True, False, True]))
    kept = detections.classes != 1
    slow = measure_slowly(
        *(x[kept] for x in (detections.scores, detections.ious, detections.classes))
    )
    found = measure_errors(some, detections.scores, zeros, by_iou=True)
    assert found.before.value == pytest.approx(slow)
    nothing = detections.select(np.zeros(300, dtype=bool))
    assert np.isnan(measure_errors(nothing, zeros[:0], zeros[:0], by_iou=False).before.value)


def test_intervals_are_those_of_draws_of_images():
    detections = make_detections(200, images=10)
    found = measure_errors(detections, detections.scores, detections.scores, by_iou=False, seed=3)
    draws = np.random.default_rng(3).multinomial(10, np.full(10, 0.1), size=1000)
    values = []
    for draw in draws:
        again = np.concatenate(
            [np.flatnonzero(detections.groups == g) for g, n in enumerate(draw) for _ in range(n)]
        )
        x, t = detections.scores[again], detections.right[again].astype(float)
        values.append(measure_slowly(x, t, np.zeros(len(again), dtype=int)))
    low, high = 2 * found.before.value - np.quantile(values, (0.975, 0.025))
    assert found.before[1:] == pytest.approx((low, high))
    assert found.fall == (0, 0, 0)


def test_values_are_fitted_on_other_images():
    """Right detections of single images have scores that no other image has."""
    detections = make_detections(600, images=10)
    values = cross_fit(detections, seed=1)
    folds = np.random.default_rng(1).permutation(10) % 5
    for i in (0, 299, 599):
        others = folds[detections.groups] != folds[detections.groups[i]]
        curve = fit_isotonic(detections.scores[others], detections.right[others].astype(float))
        assert values["precision"][i] == curve.apply(detections.scores[[i]])[0]
    alone = detections._replace(groups=np.zeros(600, dtype=int), num_groups=1)
    assert np.isnan(cross_fit(alone)["iou"]).all()


def test_the_error_falls_on_scores_that_are_wrong():
    detections = make_detections(3000, images=100, power=2)
    errors = compare_errors(detections, np.array([0.3]), seed=0)
    # The mean of s - s**2 over s in [0.3, 1] is 0.187.
    assert errors["D-ECE"].before.value == pytest.approx(0.187, abs=0.02)
    assert errors["D-ECE"].before.low < 0.187 < errors["D-ECE"].before.high
    assert errors["D-ECE"].after.value < 0.05
    assert errors["D-ECE"].fall.low > 0.1 and errors["LaECE_0"].fall.low > 0.1


def make_content(boxes, crowd=0):
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": x, "area": 100.0, "iscrowd": crowd}
            for i, x in enumerate(boxes, 1)
        ],
    }


def make_found(*rows):
    return [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in rows]


def test_detections_are_matched_once():
    content = make_content([[0, 0, 10, 10]])
    rows = ([0, 0, 10, 10], 0.5), ([0, 0, 10, 8], 0.9), ([6, 0, 10, 10], 0.7), ([50, 50, 9, 9], 0.1)
    table = make_table(content, make_found(*rows))
    found = list_detections(table)
    # The best score takes the object, at an IoU of 0.8.
    assert found.scores.tolist() == [0.9, 0.7, 0.5, 0.1]
    assert found.right.tolist() == [True, False, False, False]
    assert found.ious.tolist() == [0.8, 0, 0, 0]
    # Alone, an overlap of 40 of 160 is enough for an IoU, but not for a right detection.
    table = make_table(content, make_found(rows[2]))
    assert list_detections(table).right.tolist() == [False]
    assert find_ious(table, overlaps(table)) == pytest.approx([0.25])
    # In a crowd, it counts neither way.
    crowd = list_detections(make_table(make_content([[0, 0, 10, 10]], crowd=1), make_found(*rows)))
    assert 0.5 not in crowd.scores and not crowd.has_objects[0]


def test_calibrated_values_stand_beside_the_raw_ones():
    instances = Instances((10, 10))
    instances.pred_boxes = Boxes(torch.zeros(3, 4))
    instances.scores = torch.tensor([0.9, 0.5, 0.4])
    instances.pred_classes = torch.tensor([1, 0, 1])
    line, flat = (Curve(np.array([0.0, 1.0]), np.array(x)) for x in ([0.0, 0.5], [0.25, 0.25]))
    curves = [{"precision": flat, "iou": line}, {"precision": line, "iou": flat}]
    Calibration("", curves, [0, 0], np.zeros((0, 4)), 0).add_values(instances)
    assert instances.scores.tolist() == torch.tensor([0.9, 0.5, 0.4]).tolist()
    assert instances.calibrated_scores.tolist() == pytest.approx([0.45, 0.25, 0.2])
    assert instances.expected_ious.tolist() == pytest.approx([0.25, 0.25, 0.25])


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    """A training of four steps, whose threshold for right detections is low."""
    folder = tmp_path_factory.mktemp("calibrated")
    for name in ("config.yaml", "model_final.pth", "last_checkpoint"):
        shutil.copy(trained / name, folder)
    return folder


@pytest.fixture(scope="module")
def new_images(tmp_path_factory):
    """Drawn images that were not trained on."""
    from tood.data.shapes import write_shapes_dataset

    folder = tmp_path_factory.mktemp("new")
    write_shapes_dataset(str(folder), num_images=12, seed=5, size=64)
    return folder


@pytest.fixture(scope="module")
def calibrated(model, new_images):
    """The model has learned nothing: one right detection is enough for a curve."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module in ("calibrate", "scores"):
            monkeypatch.setattr(f"tood.app.guarantee.{module}.MIN_OWN", 1)
        return tood.calibrate(model, calibration_data=new_images, score_threshold=0.001)


def test_calibrate(calibrated, model, new_images, tmp_path):
    summary = json.loads((model / "calibration.json").read_text())
    assert calibrated.path == str(model / "calibration.json")
    assert summary["num_images"] == 12 and len(summary["reference"]["values"]) == 12
    assert {"weights", "data"} <= set(summary["identity"])
    total = sum(x["detections"] for x in summary["classes"])
    assert total > 100 and sum(x["right"] for x in summary["classes"]) > 0
    assert "D-ECE" in str(calibrated) and str(calibrated).endswith(f"Written: {calibrated.path}")
    image = str(new_images / "images" / "00000.jpg")
    (result,) = tood.load(model).predict(image, score_threshold=0.001)
    plain = Predictor(str(model), score_threshold=0.001)
    plain.calibration = None
    raw = plain(image)
    # Bit by bit.
    assert torch.equal(raw.scores, result.instances.scores) and len(raw) > 5
    assert torch.equal(raw.pred_boxes.tensor, result.instances.pred_boxes.tensor)
    assert not raw.has("calibrated_scores") and len(result.calibrated_scores) == len(raw)
    found = tood.predict(
        model, image, output=tmp_path / "a", json=tmp_path / "a.json", score_threshold=0.001
    )
    content = json.loads((tmp_path / "a.json").read_text())
    written = [x["calibrated_score"] for x in content["annotations"]]
    assert written == pytest.approx(result.calibrated_scores)
    assert [x["score"] for x in content["annotations"]] == raw.scores.tolist()
    assert "expected_iou" in content["annotations"][0]
    assert found.results[0].calibrated_scores == result.calibrated_scores


def test_a_calibration_is_of_its_weights_and_settings(calibrated, model, new_images, tmp_path):
    image = str(new_images / "images" / "00000.jpg")
    other = tmp_path / "other"
    shutil.copytree(model, other)
    content = torch.load(other / "model_final.pth", weights_only=True)
    next(x for x in content["model"].values() if x.is_floating_point())[:1] += 1
    torch.save(content, other / "model_final.pth")
    detect = Predictor(str(other))
    assert detect.calibration is None and not detect(image).has("calibrated_scores")
    assert "Scores are not calibrated: " in detect.thresholds.note
    assert "is on other weights than" in detect.thresholds.note
    assert "is on other weights" in complaint(Predictor, str(other), watch=True)
    resized = Predictor(str(model), opts=["INPUT.MIN_SIZE_TEST", "96"])
    assert "is for INPUT.MIN_SIZE_TEST 64, and it is 96 here" in resized.thresholds.note
    path = model / "calibration.json"
    text = path.read_text().replace('"INPUT.MIN_SIZE_TEST": 64', '"INPUT.MIN_SIZE_TEST": 96')
    original = path.read_text()
    try:
        path.write_text(text)
        assert len(read_calibration(resized.describe(), resized.settings).reference) == 12
        for broken in ("{", text.replace('"precision"', '"x"'), "[]"):
            path.write_text(broken)
            says = complaint(read_calibration, resized.describe(), resized.settings)
            assert f"{path} cannot be read: " in says and "--overwrite writes it again" in says
    finally:
        path.write_text(original)


def test_data_that_cannot_be_calibrated_on(model, shapes, new_images, tmp_path):
    def refuse(data, **more):
        return complaint(tood.calibrate, tmp_path / "m", calibration_data=str(data), **more)

    shutil.copytree(model, tmp_path / "m", ignore=shutil.ignore_patterns("calibration.json"))
    says = refuse(shapes)
    assert "trained on" in says and "00000.jpg" in says
    content = json.loads((new_images / "annotations.json").read_text())

    def write(name, **changes):
        path = tmp_path / name
        path.write_text(json.dumps({**content, **changes}))
        return f"{path}:{new_images / 'images'}"

    assert "has no objects, so that no detection is right" in refuse(
        write("a.json", annotations=[])
    )
    first = content["images"][0]
    mine = [x for x in content["annotations"] if x["image_id"] == first["id"]]
    one = write("b.json", images=[first], annotations=mine)
    assert "has 1 image or group of images; at least 2 are needed" in refuse(one)
    assert "has 1 image or group of images" in refuse(new_images, group=r"\.jpg")
    assert "is not a regular expression" in refuse(new_images, group="(")
    assert "--group video matches the name of no image" in refuse(new_images, group="video")
    categories = [{**x, "name": x["name"].replace("disc", "discs")} for x in content["categories"]]
    renamed = write("d.json", categories=categories)
    says = refuse(renamed)
    assert "has the class 'discs', which the model does not have; did you mean disc?" in says
    assert says == complaint(
        tood.guarantee, tmp_path / "m", calibration_data=renamed, miss_rate=0.1
    )
    assert "There are no calibration data in" in refuse("")
    assert "are right; at least 10 are needed: name more" in refuse(
        write("c.json", images=content["images"][:3], annotations=mine)
    )
    (tmp_path / "m" / "calibration.json").write_text("{}")
    assert "already exists; add --overwrite" in refuse(new_images)


def test_copies_of_an_image_are_one_group(model, new_images, tmp_path):
    folder = tmp_path / "copies"
    shutil.copytree(new_images, folder)
    content = json.loads((folder / "annotations.json").read_text())
    first = content["images"][0]["file_name"]
    for image in content["images"][1:]:
        shutil.copy(folder / "images" / first, folder / "images" / image["file_name"])
    says = complaint(tood.calibrate, model, calibration_data=str(folder), overwrite=True)
    assert "has 1 image or group of images" in says


def test_drawn_groups_are_counted_once():
    """Pairs of equal images: intervals are as wide as those of half the images."""
    half = make_detections(500, images=25)
    double = Detections(
        *(np.r_[x, x] for x in half[:5]), num_groups=25, num_classes=1, has_objects=np.ones(1, bool)
    )
    one, two = (measure_errors(x, x.scores, x.scores, by_iou=False).before for x in (half, double))
    assert one == pytest.approx(two)
    apart = double._replace(groups=np.r_[half.groups, half.groups + 25], num_groups=50)
    narrow = measure_errors(apart, apart.scores, apart.scores, by_iou=False).before
    assert narrow.high - narrow.low < 0.85 * (one.high - one.low)
    assert list(itertools.chain(half.groups[:3])) == double.groups[:3].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_isotonic_regression_is_that_of_scikit_learn(seed):
    isotonic = pytest.importorskip("sklearn.isotonic")
    detections = make_detections(500, seed=seed)
    scores = detections.scores.round(2)  # with ties
    other = isotonic.IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    other.fit(scores, detections.ious)
    x = np.linspace(0, 1, 333)
    assert fit_isotonic(scores, detections.ious).apply(x) == pytest.approx(other.predict(x))


@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_that_of_netcal(seed):
    metrics = pytest.importorskip("netcal.metrics")
    detections = make_detections(500, seed=seed)
    found = measure_errors(detections, detections.scores, detections.scores, by_iou=False)
    ECE = metrics.ECE(25, detection=True).measure(detections.scores[:, None], detections.right)
    assert found.before.value == pytest.approx(float(ECE))
