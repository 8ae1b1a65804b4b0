"""The one decision on score thresholds."""

import json
import re

import pytest
import torch
from detectron2.structures import Instances

from tood.inference.thresholds import Model, choose_thresholds, find_lowest
from tood.utils.errors import UserError

NAMES = ["WBC", "RBC"]


@pytest.fixture
def write_report(tmp_path):
    """Write the report of some weights; return the model of others."""

    def write(thresholds=(0.23, 0.41), weights="mine", names=NAMES):
        (tmp_path / "report").mkdir()
        classes = [{"name": name, "threshold": x} for name, x in zip(names, thresholds)]
        content = {"identity": {"weights": weights}, "classes": classes}
        (tmp_path / "report" / "report.json").write_text(json.dumps(content))
        return make_model(tmp_path, names)

    return write


def make_model(folder, names=NAMES, compute_hash=lambda: "mine"):
    return Model(f"{folder}/model_best.pth", str(folder), list(names), 0.05, compute_hash)


def test_thresholds_of_the_report_are_the_default(write_report, tmp_path):
    model = write_report()
    text = f"at the thresholds of {tmp_path}/report (0.23 WBC, 0.41 RBC)"
    assert choose_thresholds(None, model) == ([0.23, 0.41], text, "")
    assert choose_thresholds("from-report", model) == ([0.23, 0.41], text, "")


def test_what_is_typed_wins(write_report):
    model = write_report()
    assert choose_thresholds(0.5, model) == ([0.5, 0.5], "of at least 0.5", "")
    assert choose_thresholds([0.5, "0.25"], model)[:2] == (
        [0.5, 0.25],
        "at the thresholds (0.50 WBC, 0.25 RBC)",
    )
    text = "of at least 0.05, as configured"
    assert choose_thresholds("from-config", model) == ([0.0, 0.0], text, "")


def test_thresholds_below_the_models_own(write_report, tmp_path):
    """MODEL.TOOD.SCORE_THRESH_TEST 0.35 is typed: there are no detections below, and none is said
    to be.
    """
    model = write_report()._replace(score_threshold=0.35)
    text = f"at the thresholds of {tmp_path}/report (0.35 WBC, 0.41 RBC)"
    assert choose_thresholds(None, model) == ([0.35, 0.41], text, "")
    assert choose_thresholds([0.1, 0.5], model).values == [0.35, 0.5]
    assert choose_thresholds(0.3, model)[:2] == ([0.35, 0.35], "of at least 0.35")


def test_without_a_report_no_weights_are_hashed(tmp_path):
    model = make_model(tmp_path, compute_hash=lambda: pytest.fail("hashed"))
    assert choose_thresholds(None, model) == ([0.3, 0.3], "of at least 0.3", "")
    with pytest.raises(UserError, match="need the report .*, which does not exist"):
        choose_thresholds("from-report", model)


@pytest.mark.parametrize(
    "report, says",
    [
        (dict(weights="others"), "is the report on other weights than"),
        (dict(weights=None), "does not say which weights it is on"),
        (dict(thresholds=(0.2, 2)), "the threshold of 'RBC' is 2; it must be a number from 0 to 1"),
    ],
)
def test_a_report_that_cannot_be_used(write_report, report, says):
    model = write_report(**report)
    values, text, note = choose_thresholds(None, model)
    assert values == [0.3, 0.3] and text == "of at least 0.3"
    assert note.startswith("The thresholds of the report are not used: ") and says in note
    with pytest.raises(UserError, match=says):
        choose_thresholds("from-report", model)


def test_many_classes_are_not_listed(write_report, tmp_path):
    names = [f"class {i}" for i in range(9)]
    model = write_report([0.1 * (i + 1) for i in range(9)], names=names)
    text = f"at the thresholds of {tmp_path}/report (0.10 to 0.90)"
    assert choose_thresholds(None, model).text == text


def test_a_detection_at_the_threshold_of_its_class_counts(write_report):
    found = Instances((9, 9), scores=torch.tensor([0.41, 0.4, 0.23, 0.2]))
    found.pred_classes = torch.tensor([1, 1, 0, 0])
    kept = choose_thresholds(None, write_report()).select(found)
    assert kept.scores.tolist() == pytest.approx([0.41, 0.23])


SETTINGS = {"MODEL.TOOD.NMS_THRESH_TEST": 0.6, "INPUT.MIN_SIZE_TEST": 64}
WORDS = "guaranteed to miss at most 10 % of the objects of an image (on average; from 140 images, "
WORDS += "2026-11-29)"


LACKING = [
    {"name": "disc", "score_threshold": 0.3, "sentence": "If detections"},
    {"name": "star", "score_threshold": None, "sentence": "Not certifiable."},
]


@pytest.fixture
def write_guarantee(tmp_path):
    """Write a guarantee; return the model."""

    def write(lowest=0.05, **changes):
        content = {"identity": {"weights": "mine"}, "settings": SETTINGS, "certifiable": True}
        content.update(score_threshold=0.25, classes=[], sentences=["Not certifiable."])
        content.update(miss_rate=0.1, confidence=None, unit="image", num_images=140)
        content.update(date="2026-11-29", **changes)
        (tmp_path / "guarantee").mkdir(exist_ok=True)
        (tmp_path / "guarantee" / "guarantee.json").write_text(json.dumps(content))
        return make_model(tmp_path)._replace(settings=dict(SETTINGS), score_threshold=lowest)

    return write


def test_the_guaranteed_threshold_names_its_guarantee(write_guarantee):
    model = write_guarantee()
    text = f"of at least 0.25, {WORDS}"
    assert choose_thresholds("guaranteed", model) == ([0.25, 0.25], text, "")
    assert choose_thresholds(None, model).values == [0.3, 0.3]  # only if it is asked for
    text = choose_thresholds("guaranteed", write_guarantee(confidence=0.95, unit="group")).text
    assert "of the objects of a group (confidence 95 %; from 140 images" in text
    assert find_lowest("guaranteed") == 0.001 and find_lowest("from-report") == 1


def test_guaranteed_thresholds_of_classes_go_by_their_names(write_guarantee):
    rows = [{"name": name, "score_threshold": x} for name, x in (("RBC", 0.4), ("WBC", 0.2))]
    values, text, _ = choose_thresholds(
        "guaranteed", write_guarantee(classes=rows, score_threshold=None)
    )
    assert values == [0.2, 0.4]
    words = WORDS.replace("of an image", "of each class of an image")
    assert text == f"at the thresholds (0.20 WBC, 0.40 RBC), {words}"
    with pytest.raises(UserError, match="the threshold of 'WBC' is None; it must be a number"):
        choose_thresholds("guaranteed", write_guarantee(classes=rows[:1]))


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(identity={"weights": "others"}), "is the guarantee of other weights than"),
        (dict(identity={}), "is the guarantee of other weights than"),
        (dict(certifiable=False, score_threshold=None), "no threshold to use: Not certifiable."),
        (
            dict(
                certifiable=False, sentences=["If detections", "Not certifiable."], classes=LACKING
            ),
            "has no threshold to use: Not certifiable.",
        ),
        (dict(score_threshold=None), "the threshold is None; it must be a number from 0 to 1"),
        (dict(score_threshold=0.05), "is 0.05, but the model finds only detections above 0.05"),
        (dict(settings=None), "of which neither NMS nor sizes are known"),
        (
            dict(settings={**SETTINGS, "MODEL.TOOD.NMS_THRESH_TEST": 0.5}),
            "of the model with MODEL.TOOD.NMS_THRESH_TEST 0.5, and it is 0.6 here",
        ),
        (
            dict(settings={**SETTINGS, "NEW": 1}),
            "of the model with NEW 1, and it is the default here",
        ),
    ],
)
def test_a_guarantee_that_cannot_be_used(write_guarantee, changes, says):
    with pytest.raises(UserError, match=re.escape(says)):
        choose_thresholds("guaranteed", write_guarantee(**changes))


def test_without_a_guarantee_no_weights_are_hashed(tmp_path):
    model = make_model(tmp_path, compute_hash=lambda: pytest.fail("hashed"))
    with pytest.raises(UserError, match="which does not exist; tood guarantee .*model_best.pth --"):
        choose_thresholds("guaranteed", model)
