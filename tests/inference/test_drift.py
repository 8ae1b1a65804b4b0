"""The watch over a stream of images: p-values, bets, and its alarm."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from conftest import complaint
from detectron2.structures import Instances
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

import tood
from tood.inference.drift import (
    ALARM,
    POWERS,
    STATISTICS,
    Bets,
    Watch,
    compute_factors,
    compute_p_value,
    measure,
    start_bets,
)
from tood.inference.predictor import Predictor

NUM = len(STATISTICS)


def test_p_values_are_randomised_ranks():
    earlier = [1.0, 2.0, 2.0, 5.0]
    assert compute_p_value(3, earlier, 0.5) == (1 + 0.5) / 5  # one is larger, one equal: itself
    assert compute_p_value(2, earlier, 0.5) == (1 + 0.5 * 3) / 5
    assert compute_p_value(9, earlier, 0.1) == pytest.approx(0.1 / 5)
    assert compute_p_value(0, earlier, 1.0) == 1
    assert compute_p_value(7, [], 0.25) == 0.25


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_p_values_of_exchangeable_values_are_uniform(values):
    """Over which value is the last one, and all random numbers: the mean of each power."""
    grid = (np.arange(1000) + 0.5) / 1000
    p = np.concatenate(
        [
            [compute_p_value(x, sorted(values[:i] + values[i + 1 :]), u) for u in grid]
            for i, x in enumerate(values)
        ]
    )
    assert np.allclose(np.sort(p), (np.arange(len(p)) + 0.5) / len(p), atol=1e-3)


def test_bets_are_fair():
    """The mean of each factor over a uniform p-value is 1; small ones are bet on first."""
    edges = np.linspace(0, 1, 200_001)
    factors = compute_factors((edges[1:] + edges[:-1]) / 2)
    assert factors.mean(axis=0) == pytest.approx(np.ones(2 * len(POWERS)), abs=0.03)
    assert compute_factors(np.array(0.5))[0] == pytest.approx(0.25 * 0.5**-0.75)
    low, high = compute_factors(np.array([0.01, 0.99]))
    assert (low[: len(POWERS)] > 1).all() and (low[len(POWERS) :] < 1).all()
    assert low == pytest.approx(np.roll(high, len(POWERS)))
    assert np.isfinite(compute_factors(np.array([0.0, 1.0]))).all()


def test_money_is_that_of_bets_from_each_image_on():
    """Sum over the time of the change k of w_k times the product of the factors since k."""
    p = np.random.default_rng(0).random((6, NUM))
    bets = start_bets()
    for n, row in enumerate(p, 1):
        bets = bets.update(row)
        expected = np.full(
            (NUM, 2 * len(POWERS)), 1 - sum(1 / (k * (k + 1)) for k in range(1, n + 1))
        )
        for k in range(1, n + 1):
            expected += 1 / (k * (k + 1)) * np.prod(compute_factors(p[k - 1 : n]), axis=0)
        assert bets.measure() == pytest.approx(expected.mean(axis=1))
    assert bets.num_images == 6
    assert start_bets(3).measure().tolist() == np.ones((3, NUM)).tolist()


def run_streams(streams, length, seed, shift=0.0, start=0):
    """Return whether each stream of uniform p-values raises the alarm, by vectorised bets. From
    ``start`` on, the p-values of the first statistic are raised to the power 1 + shift.
    """
    rng = np.random.default_rng(seed)
    bets, alarms = start_bets(streams), np.zeros(streams, dtype=bool)
    for n in range(length):
        p = rng.random((streams, NUM))
        if n >= start:
            p[:, 0] **= 1 + shift
        bets = bets.update(p)
        alarms |= bets.weigh() >= ALARM
    return alarms


def test_false_alarms_are_rare_and_changes_are_seen():
    """At most 1 % of 4,000 streams of 300 images may raise the alarm: 40, and 63 with a
    probability below 0.001. docs/guarantee_scores.md has more.
    """
    assert run_streams(4000, 300, seed=0).sum() < 63
    assert run_streams(500, 300, seed=1, shift=2).mean() > 0.95
    assert run_streams(500, 600, seed=1, shift=2, start=300).mean() > 0.95


def make_instances(scores, classes):
    instances = Instances((4, 4))
    instances.scores, instances.pred_classes = torch.tensor(scores), torch.tensor(classes)
    return instances


def test_statistics_have_literal_values():
    instances = make_instances([0.75, 0.5, 0.25, 0.03125], [0, 1, 1, 0])
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[::4, ::4] = (10, 20, 30)
    assert measure(instances, pixels, [0.75, 0.5]) == [2, 1.5, 0.75, 20, 1]
    # 0.03125 is found only with a limit below it, as in a calibration.
    assert measure(instances, pixels, [0.0, 0.0])[:2] == [3, 1.5]
    nothing = make_instances([], np.zeros(0, int))
    pixels[:, 1] = 200  # beside (10, 20, 30), and beside 0 at the next two
    assert measure(nothing, pixels, [0.5]) == [0, 0, 0, 20, 5]
    assert measure(nothing, pixels[:, :1], [0.5]) == [0, 0, 0, 20, 0]


def test_each_statistic_has_its_own_account():
    """Ranks of other statistics may predict the next one, so that an average would not be fair."""
    wealth = np.zeros((NUM, 2 * len(POWERS)))
    wealth[2] = ALARM * NUM
    assert Bets(wealth, 10**9).weigh() == pytest.approx(ALARM)
    assert Bets(np.full_like(wealth, ALARM), 10**9).weigh() == pytest.approx(ALARM / NUM)


def test_an_alarm_is_raised_once_and_says_why():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(50, NUM))
    watch = Watch(reference, [0.3], seed=1)
    for row in rng.normal(size=(200, NUM)):
        assert watch.add(row) == ""
    assert str(watch).startswith("Watched 200 images: no alarm (evidence of a change ")
    said = [
        watch.add([*row[:3], row[3] - 3, row[4]], "a.jpg") for row in rng.normal(size=(40, NUM))
    ]
    (alarm,) = filter(None, said)
    assert alarm == watch.alarm == str(watch)
    assert (
        "(a.jpg): the brightness is lower. The probability of a false alarm is at most 1%" in alarm
    )
    again = Watch(reference, [0.3], seed=1)
    higher = [again.add([row[0] + 9, *row[1:]]) for row in rng.normal(size=(40, NUM))]
    assert "the number of detections is higher" in next(filter(None, higher))
    assert "has 9 images; a watch needs at least 10" in complaint(Watch, reference[:9], [0.3])


def test_threads_share_a_watch():
    watch = Watch(np.zeros((10, NUM)), [0.3])
    threads = [
        threading.Thread(target=lambda: [watch.add([0.0] * NUM) for _ in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watch.num_images == 400 and watch.alarm == ""


@pytest.fixture
def watched(trained, shapes, tmp_path):
    """A model with a calibration whose reference are the shapes, forty times each."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.yaml", "model_final.pth", "last_checkpoint"):
        shutil.copy(trained / name, folder)
    predictor = Predictor(str(folder))
    facts, curve = predictor.describe(), {"scores": [0, 1], "values": [0, 1]}
    rows = []
    for path in sorted((shapes / "images").iterdir()):
        pixels = np.asarray(Image.open(path))[:, :, ::-1]
        (found,) = predictor.find_all([np.ascontiguousarray(pixels)])
        rows.append(measure(found, pixels, [0.3] * 4))
    classes = [
        {"name": x, "score_threshold": 0.3, "precision": curve, "iou": curve}
        for x in facts.class_names
    ]
    content = {
        "identity": {"weights": facts.compute_hash()},
        "settings": predictor.settings,
        "classes": classes,
        "reference": {"values": rows * 40, "seed": 0},
    }
    (folder / "calibration.json").write_text(json.dumps(content))
    return folder


def darken(shapes, folder):
    folder.mkdir()
    for path in sorted((shapes / "images").iterdir()):
        with Image.open(path) as image:
            image.point(lambda x: x // 4).save(folder / path.name)
    return folder


def test_predict_watches(watched, shapes, tmp_path, capsys):
    found = tood.predict(watched, shapes / "images", output=tmp_path / "a", watch=True)
    assert "Watched 8 images: no alarm (evidence of a change" in str(found)
    assert "warning" not in capsys.readouterr().err
    dark = darken(shapes, tmp_path / "dark")
    found = tood.predict(watched, dark, output=tmp_path / "b", watch=True)
    warnings = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: ")]
    assert len(warnings) == 1 and "the brightness is lower" in warnings[0]
    assert "Images are not like those of the calibration any more" in str(found)
    assert "Images are not" not in str(tood.predict(watched, dark, output=tmp_path / "c"))


def test_blurred_images_raise_the_alarm(watched, shapes, tmp_path):
    folder = tmp_path / "blurred"
    folder.mkdir()
    for path in sorted((shapes / "images").iterdir()):
        with Image.open(path) as image:
            image.filter(ImageFilter.GaussianBlur(3)).save(folder / path.name)
    found = tood.predict(watched, folder, output=tmp_path / "a", watch=True)
    assert "the sharpness is lower" in str(found)


def test_a_predictor_watches(watched, shapes, tmp_path, trained, capsys):
    detect = Predictor(str(watched), watch=True)
    paths = sorted(darken(shapes, tmp_path / "dark").iterdir())
    detect(paths[0])
    assert detect.watch.num_images == 1 and detect.watch.alarm == ""
    detect([str(x) for x in paths[1:4]])
    detect.predict(np.asarray(Image.open(paths[4])))
    for path in paths[5:]:
        detect(path)
    assert "the brightness is lower" in detect.watch.alarm
    assert capsys.readouterr().err == f"warning: {detect.watch.alarm}\n"
    assert "There is no " in complaint(Predictor, str(trained), watch=True)
    says = complaint(
        Predictor, str(watched), watch=True, opts=["MODEL.TOOD.SCORE_THRESH_TEST", "0.2"]
    )
    assert "A watch needs all detections of at least 0.05; set MODEL.TOOD.SCORE_THRESH" in says
