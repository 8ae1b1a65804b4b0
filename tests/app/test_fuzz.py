"""Any content of an annotation file or a config is accepted, or refused in one sentence. A few
thousand cases, the same in every run.
"""

import contextlib
import copy
import io
import json
import math

import pytest
import torch
import yaml
from conftest import CONFIG
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tood import add_tood_config
from tood.app.check import check
from tood.app.report import make as report
from tood.config.check import known_keys
from tood.config.read import load_config, run_options
from tood.data.datasets import prepare_datasets
from tood.evaluation.coco import CleanCOCOEvaluator
from tood.utils.errors import UserError

pytestmark = pytest.mark.slow
fuzzed = settings(max_examples=400, derandomize=True, database=None)

numbers = st.one_of(
    st.integers(-3, 70),
    st.integers(),
    st.floats(-100, 100),
    st.floats(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8))
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


GOOD = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 64, "height": 48},
        {"id": 2, "file_name": "b.png", "width": 64, "height": 48},
    ],
    "annotations": [
        {
            "id": i,
            "image_id": 1 + i // 3,
            "category_id": 1 + i % 2,
            "bbox": [i, 2, 30, 20 - i],
            "area": 30 * (20 - i),
            "iscrowd": 0,
        }
        for i in range(1, 6)
    ],
    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
}
DELETE = object()
lists = st.sampled_from(["images", "annotations", "annotations", "categories"])
boxes = st.lists(numbers, min_size=4, max_size=4)


def replace(content, records, index, key, value):
    """Put something else into a record, or in its place, or in the place of its list."""
    if key is None and index is None:
        content[records] = value
        return
    index = (index or 0) % len(content[records])
    if key is None:
        content[records][index] = value
    elif value is DELETE:
        content[records][index].pop(key, None)
    else:
        content[records][index][key] = value


@st.composite
def contents(draw):
    content = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(0, 3))):
        records = draw(lists)
        if not (isinstance(content[records], list) and content[records]):
            continue
        index = draw(st.integers(0, 4))
        if not isinstance(content[records][index % len(content[records])], dict):
            continue
        key = draw(st.sampled_from([*sorted(GOOD[records][0]), "ignore", None]))
        value = draw(st.one_of(anything, numbers, boxes, st.just(DELETE)))
        if value is DELETE and key is None:
            continue
        if draw(st.integers(0, 30)) == 0:
            key = index = None
            value = draw(anything)
        replace(content, records, index, key, value)
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(folder / name)
    return folder


def get_sentence(function, *args, **kwargs):
    """None if it went well, or the one sentence of a UserError."""
    try:
        function(*args, **kwargs)
    except UserError as error:
        sentence = error.sentence()
        assert "\n" not in sentence and sentence.endswith((".", "?")), sentence
        return sentence
    return None


def check_data(data):
    error = check(data).error
    if error:
        raise UserError(error)


def check_annotations(folder, text, num_classes=2):
    path = folder / "data.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    cfg = get_cfg()
    add_tood_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (f"{path}:{folder}",)
    cfg.MODEL.TOOD.NUM_CLASSES = num_classes
    sentence = get_sentence(prepare_datasets, run_options(cfg).data, training=True)
    # The functions that look at data before any config is there.
    checked = get_sentence(check_data, f"{path}:{folder}")
    get_sentence(report.read_data, f"{path}:{folder}")
    if sentence is None:
        assert checked is None
        records = DatasetCatalog.get(f"{path}:{folder}")
        assert all(math.isfinite(x) for r in records for a in r["annotations"] for x in a["bbox"])
        evaluate(f"{path}:{folder}", records)
    return sentence


def evaluate(name, records):
    """Evaluate accepted data, with one detection per object."""
    evaluator = CleanCOCOEvaluator(name, distributed=False)
    evaluator.reset()
    for record in records:
        count = len(record["annotations"])
        instances = Instances((48, 64), pred_boxes=Boxes(torch.ones(count, 4)))
        instances.scores = torch.full((count,), 0.5)
        classes = [a["category_id"] for a in record["annotations"]]
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
        evaluator.process([record], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        results = evaluator.evaluate()["bbox"]
    assert {"AP", "APs", "APm", "APl"} <= set(results)


def test_annotation_files(folder):
    taken = []

    @fuzzed
    @given(contents())
    def check(content):
        categories = content["categories"]
        num_classes = len(categories) if isinstance(categories, list) and categories else 2
        taken.append(check_annotations(folder, json.dumps(content), num_classes) is None)

    check()
    # Neither too wild nor too tame.
    assert len(taken) // 40 < sum(taken) < len(taken) * 39 // 40


@fuzzed
@given(anything)
def test_other_json(folder, content):
    assert check_annotations(folder, json.dumps(content)) is not None


@fuzzed
@given(st.integers(0, len(json.dumps(GOOD))), st.integers(0, 5), st.text(max_size=4))
def test_json_with_holes(folder, start, length, text):
    whole = json.dumps(GOOD)
    check_annotations(folder, whole[:start] + text + whole[start + length :])


def list_keys():
    cfg = get_cfg()
    add_tood_config(cfg)
    return known_keys(cfg)


KEYS = list_keys()
TOOD_KEYS = [
    key for key in KEYS if key.startswith(("MODEL.TOOD", "SOLVER", "INPUT", "MODEL.ANCHOR"))
]
keys = st.one_of(
    st.sampled_from(TOOD_KEYS), st.sampled_from(KEYS), st.text("MODEL.TOSV_", max_size=9)
)


def test_options():
    taken = []

    @fuzzed
    @given(
        keys, st.one_of(scalars, st.lists(scalars, max_size=3), st.text("[](){},'1a:", max_size=8))
    )
    def check(key, value):
        taken.append(get_sentence(load_config, CONFIG, [key, str(value)]) is None)

    check()
    assert len(taken) // 40 < sum(taken) < len(taken) * 39 // 40


@fuzzed
@given(key=keys, value=anything)
def test_config_files(folder, key, value):
    path = folder / "config.yaml"
    for name in reversed(key.split(".")):
        value = {name: value}
    assume(not (isinstance(value, dict) and "_BASE_" in value))
    path.write_text(yaml.safe_dump({"_BASE_": CONFIG, **value}), encoding="utf-8")
    get_sentence(load_config, str(path))


@fuzzed
@given(text=st.text(max_size=40))
def test_files_that_are_not_configs(folder, text):
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert get_sentence(load_config, str(path)) is not None
