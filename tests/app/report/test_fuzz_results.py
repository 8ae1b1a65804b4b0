"""Files of results and reports, boxes and options of any content: each is taken, or refused in one
sentence that names the file or the value.
"""

import json
from unittest.mock import ANY

from conftest import CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st
from test_matching import load_content

from tood.app.explain import parse_box
from tood.app.report.analysis import analyze, summarize_analysis
from tood.app.report.subject import read_results
from tood.config.read import load_config
from tood.inference.thresholds import (
    Model,
    choose_thresholds,
    parse_threshold,
    read_thresholds,
)
from tood.utils.errors import UserError
from tood.utils.files import encode_json

fuzzed = settings(max_examples=150, derandomize=True, database=None)
HUGE = int("9" * 400)
numbers = st.one_of(
    st.integers(-3, 700),
    st.floats(-1, 2),
    st.floats(),
    st.sampled_from([HUGE, -HUGE, 1e308, float("nan"), True, 0.5, 1]),
)
scalars = st.one_of(st.none(), numbers, st.text(max_size=6))
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
OBJECTS = [(0, 0, (0, 0, 100, 100), False, 1e4), (0, 1, (200, 200, 50, 50), False, 2500)]
CONTENT = load_content(2, OBJECTS)
VALUES = {
    "image_id": st.one_of(st.sampled_from([x["id"] for x in CONTENT["images"]]), anything),
    "category_id": st.one_of(st.sampled_from([x["id"] for x in CONTENT["categories"]]), anything),
    "bbox": st.one_of(st.lists(st.floats(0, 100), min_size=4, max_size=4), anything),
    "score": st.one_of(st.floats(0, 1), numbers, anything),
}


def say(function, *args):
    """Return the sentence of a UserError, or None; anything else fails the test."""
    try:
        function(*args)
    except UserError as error:
        assert "\n" not in error.sentence() and len(error.sentence()) < 900
        return error.sentence()
    return None


def report_on(path):
    analysis = analyze(CONTENT, read_results(str(path)), str(path))
    summary = encode_json(summarize_analysis(analysis))
    json.loads(summary, parse_constant=lambda x: 1 / 0)


@st.composite
def results(draw):
    good = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 90, 90], "score": 0.5}
    good["image_id"] = CONTENT["images"][0]["id"]
    good["category_id"] = CONTENT["categories"][0]["id"]
    rows = draw(st.lists(st.dictionaries(st.sampled_from(list(VALUES)), st.none()), max_size=3))
    return [{**good, **{key: draw(VALUES[key]) for key in row}} for row in rows]


def test_results(tmp_path):
    path, taken = tmp_path / "results.json", []

    @fuzzed
    @given(st.one_of(results(), results(), anything, st.lists(anything, max_size=2)))
    def check(content):
        path.write_text(json.dumps(content))
        sentence = say(report_on, path)
        assert sentence is None or str(path) in sentence
        taken.append(sentence is None)

    check()
    # Neither too wild nor too tame.
    assert len(taken) // 20 < sum(taken) < len(taken) * 19 // 20


def test_results_by_hand(tmp_path):
    path = tmp_path / "results.json"
    good = {"image_id": CONTENT["images"][0]["id"], "bbox": [0, 0, 90, 90], "score": 0.5}
    good["category_id"] = CONTENT["categories"][0]["id"]
    for key, text in (
        ("image_id", "[1]"),
        ("image_id", '{"a": 1}'),
        ("image_id", "true"),
        ("image_id", "NaN"),
        ("category_id", "[]"),
        ("category_id", "null"),
        ("score", "1" + "0" * 400),
        ("score", "NaN"),
        ("score", "Infinity"),
        ("score", '"0.5"'),
        ("score", "true"),
        ("bbox", "[NaN, 0, 1, 1]"),
        ("bbox", f"[0, 0, 1{'0' * 400}, 1]"),
        ("bbox", "[0, 0, -1, 1]"),
        ("bbox", "7"),
    ):
        path.write_text(json.dumps([good, {**good, key: "HERE"}]).replace('"HERE"', text))
        sentence = say(report_on, path)
        assert sentence is not None and f"{path}: entry 1 " in sentence, (key, text)
    for text in ("[1" + "0" * 5000 + "]", "[" * 100_000, "", "\x00", '{"a": 1}'):
        path.write_text(text)
        assert str(path) in say(report_on, path)
    path.write_text(json.dumps([good]))
    assert say(report_on, path) is None


def test_reports(tmp_path):
    (tmp_path / "report").mkdir()
    path, taken = tmp_path / "report" / "report.json", []
    threshold = st.one_of(st.floats(0, 1), st.floats(0, 1), scalars)
    good = st.fixed_dictionaries({"name": st.just("a"), "threshold": threshold})
    rows = st.tuples(good, st.one_of(good, good, anything)).map(list)
    reports = st.fixed_dictionaries(
        {"identity": st.just({"weights": "w"}), "classes": st.one_of(rows, rows, anything)}
    )
    others = st.fixed_dictionaries({"identity": anything, "classes": rows})

    model = Model(f"{tmp_path}/w.pth", str(tmp_path), ["a"], 0.0, lambda: "w")

    @fuzzed
    @given(st.one_of(reports, reports, reports, others, anything))
    def check(content):
        path.write_text(json.dumps(content))
        read = []
        sentence = say(lambda: read.extend(read_thresholds(model)))
        assert sentence is None or str(path) in sentence
        assert all(0 <= x <= 1 for x in read)
        # By default, another one is used.
        assert choose_thresholds(None, model)[::2] == ((read, "") if read else ([0.3], ANY))
        taken.append(sentence is None)

    check()
    assert 0 < sum(taken) < len(taken)


texts = st.one_of(
    st.text("0123456789.,-+einfa _", max_size=16),
    st.lists(numbers.map(str), min_size=3, max_size=5).map(",".join),
)


@fuzzed
@given(st.one_of(texts, anything))
def test_boxes(box):
    sentence = say(parse_box, box)
    if sentence is None:
        read = parse_box(box)
        assert len(read) == 4 and all(abs(x) <= 1e9 for x in read) and min(read[2:]) > 0
    else:
        assert sentence.startswith("The box is ")


def test_boxes_by_hand():
    for wrong in ("nan,5,10,10", "5,inf,1,1", "1,1,0,5", "1,1,5,-2", "1,1,1", f"{HUGE},1,1,1", ""):
        assert "write x,y,width,height" in say(parse_box, wrong), wrong
    assert parse_box("-1,2.5,10,10") == parse_box(" -1 2.5 10 10") == [-1, 2.5, 10, 10]


@fuzzed
@given(st.one_of(texts, anything))
def test_thresholds(value):
    sentence = say(parse_threshold, value)
    is_default = value is None
    assert sentence is not None or is_default or 0 <= parse_threshold(value) <= 1


KEYS = ["SOLVER.MAX_ITER", "SEED", "MODEL.TOOD.SCORE_THRESH_TEST", "INPUT.MIN_SIZE_TRAIN"]
KEYS += ["TEST.DETECTIONS_PER_IMAGE", "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.PIXEL_MEAN"]
FORMS = ["{}", "-{}", "({},)", "[[{}]]"]


@settings(fuzzed, max_examples=40)
@given(
    st.sampled_from(KEYS), st.integers(18, 6000), st.sampled_from(["{}", "-{}", "({},)", "[[{}]]"])
)
def test_options_of_many_digits(key, digits, form):
    sentence = say(load_config, CONFIG, [key, form.format("9" * digits)])
    assert digits < 20 or sentence is not None


def test_options_in_hexadecimal():
    assert "2^63" in say(load_config, CONFIG, ["SOLVER.MAX_ITER", "0x" + "f" * 6000])
