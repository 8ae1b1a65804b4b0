"""Other fields of an annotation file than its boxes change no metric: pycocotools, by hand on the
same detections and the same boxes, is right.
"""

import contextlib
import copy
import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import train_net
from tood.data.check import InputSize
from tood.data.datasets import DataOptions, prepare_datasets
from tood.evaluation.coco import CleanCOCOEvaluator, first_AP, results_folder

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CLASSES = ["ring", "bar"]
counter = itertools.count()


def data_options(train=(), test=(), num_classes=2):
    size = InputSize(64, 128)
    return DataOptions(train, test, num_classes, True, size, size, finest_stride=8)


def objects(rng, num_images=3, per_image=4, size=128):
    """Boxes of two classes, and what a detector could make of them: moved, doubled, made up."""
    annotations, detections = [], []
    for i in range(num_images):
        for _ in range(per_image):
            x, y = rng.uniform(0, size / 2, 2)
            w, h = rng.uniform(5, size / 2 - 1, 2)
            label = int(rng.integers(2))
            annotations.append((i, label, [x, y, w, h]))
            for _ in range(rng.integers(3)):
                moved = np.array([x, y, w, h]) + rng.normal(0, 2, 4)
                detections.append((i, label, moved.clip(0, size - 1).tolist(), rng.uniform()))
        detections.append((i, int(rng.integers(2)), [1, 1, 20, 20], rng.uniform()))
    return annotations, detections


def make_coco(annotations, num_images=3, size=128):
    """Return the plainest file with some boxes."""
    images = [
        {"id": i + 1, "file_name": f"{i}.png", "width": size, "height": size}
        for i in range(num_images)
    ]
    records = [
        dict(id=n, image_id=i + 1, category_id=k + 1, bbox=b, area=b[2] * b[3], iscrowd=0)
        for n, (i, k, b) in enumerate(annotations, 1)
    ]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    return {"images": images, "annotations": records, "categories": categories}


def by_hand(content, detections, limit=100):
    """Metrics of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(content)
        gt.createIndex()
        found = [
            dict(image_id=i + 1, category_id=k + 1, bbox=b, score=s) for i, k, b, s in detections
        ]
        evaluation = COCOeval(gt, gt.loadRes(found), "bbox")
        evaluation.params.maxDets = [1, 10, limit]
        evaluation.evaluate()
        evaluation.accumulate()
        if limit != 100:
            precision = evaluation.eval["precision"][:, :, :, 0, -1]
            return 100 * precision[precision > -1].mean()
        evaluation.summarize()
    return [100 * x if x >= 0 else math.nan for x in evaluation.stats[:6]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    for i in range(3):
        Image.new("RGB", (128, 128)).save(folder / f"{i}.png")
    return folder


def write(folder, content):
    path = folder / f"{next(counter)}.json"
    path.write_text(json.dumps(content))
    return f"{path}:{folder}"


def evaluate(entry, detections, **options):
    evaluator = CleanCOCOEvaluator(entry, distributed=False, **options)
    evaluator.reset()
    for n, record in enumerate(DatasetCatalog.get(entry)):
        mine = [(k, b, s) for i, k, b, s in detections if i == n]
        boxes = torch.tensor([b for _, b, _ in mine], dtype=torch.float64).reshape(-1, 4)
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.zeros(len(mine), 4))
        instances.pred_boxes.tensor = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        instances.scores = torch.tensor([s for *_, s in mine], dtype=torch.float64)
        instances.pred_classes = torch.tensor([k for k, *_ in mine], dtype=torch.int64)
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()


odd_segmentations = st.sampled_from(
    [None, [], [[]], [1, 2, 3, 4], [[1, 2, 30, 40]], [[0, 0, 5, 0, 5, 5]], "mask", 7, {"size": []}]
)
annotation_ids = st.sampled_from(
    [
        lambda n: n - 1,
        lambda n: -n,
        lambda n: n * 10**6,
        lambda n: 2**53 - n,
        lambda n: f"a{n}",
        lambda n: float(n - 1),
        lambda n: None,
        lambda n: n if n % 2 else f"{n}",
    ]
)
image_ids = st.sampled_from([lambda n: n - 1, lambda n: n * 7, lambda n: f"img {n}"])


@st.composite
def disguises(draw):
    """The same boxes in another file: a function that changes the plain one."""
    new_id, new_image_id, new_class_id = draw(annotation_ids), draw(image_ids), draw(image_ids)
    area, crowd = draw(st.sampled_from(["as it is", "none", 0, None])), draw(st.integers(0, 4))
    extra = {"segmentation": draw(odd_segmentations), "keypoints": draw(odd_segmentations)}
    extra = {k: v for k, v in extra.items() if v is not None}

    def disguise(content):
        for image in content["images"]:
            image["id"] = new_image_id(image["id"])
        for category in content["categories"]:
            category["id"] = new_class_id(category["id"])
        for a in content["annotations"]:
            a["image_id"], a["category_id"] = (
                new_image_id(a["image_id"]),
                new_class_id(a["category_id"]),
            )
            a["id"] = new_id(a["id"])
            if a["id"] is None:
                del a["id"]
            if area == "none":
                del a["area"]
            elif area != "as it is":
                a["area"] = area
            a["iscrowd"] = [0, False, 0.0, None, "0"][crowd]
            if crowd == 3:
                del a["iscrowd"]
            a.update(extra)

    return disguise


@pytest.mark.parametrize("mark", ["ignore", "iscrowd"])
def test_marked_objects_are_neither_to_find_nor_trained_on(folder, mark):
    annotations, detections = objects(np.random.default_rng(0))
    content = make_coco(annotations)
    hidden = content["annotations"][::3]
    for a in hidden:
        a["iscrowd"] = 1
    expected = by_hand(content, detections)
    for a in hidden:
        a.update({"iscrowd": 0, mark: 1})
    entry = write(folder, content)
    (report,) = prepare_datasets(data_options((entry,), (entry,)), training=True)
    assert report.num_objects == len(annotations) - len(hidden)
    marks = [a["iscrowd"] for r in DatasetCatalog.get(entry) for a in r["annotations"]]
    assert sum(marks) == len(hidden) > 0
    results = evaluate(entry, detections)["bbox"]
    assert [results[k] for k in METRICS] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_boxes_alone_decide(folder):
    @settings(max_examples=60, derandomize=True, database=None)
    @given(disguises(), st.integers(0, 3))
    def check(disguise, seed):
        annotations, detections = objects(np.random.default_rng(seed))
        content = make_coco(annotations)
        expected = by_hand(content, detections)
        disguise(content)
        entry = write(folder, content)
        (report,) = prepare_datasets(data_options((entry,), (entry,)), training=True)
        loaded = sum(len(r["annotations"]) for r in DatasetCatalog.get(entry))
        assert report.num_objects == loaded == len(annotations)
        results = evaluate(entry, detections)["bbox"]
        assert [results[k] for k in METRICS] == pytest.approx(expected, abs=1e-9, nan_ok=True)

    check()


def test_the_first_object_may_have_the_id_0(folder):
    annotations, detections = [(0, 0, [10, 10, 20, 20])], [(0, 0, [10, 10, 20, 20], 0.9)]
    content = make_coco(annotations, num_images=1)
    content["annotations"][0]["id"] = 0
    entry = write(folder, content)
    prepare_datasets(data_options(test=(entry,)), training=False)
    assert evaluate(entry, detections)["bbox"]["AP"] == pytest.approx(100)


def test_registered_sets_are_read_in_the_same_way(folder):
    annotations, _ = objects(np.random.default_rng(0))
    content = make_coco(annotations)
    for a in content["annotations"][::2]:
        a["segmentation"] = [[1, 2, 30, 40]]  # Detectron2's own loader leaves these objects out
    path = write(folder, content).split(":")[0]
    name = f"registered_{next(counter)}"
    register_coco_instances(name, {}, path, str(folder))
    (report,) = prepare_datasets(data_options((name,)), training=True)
    loaded = sum(len(r["annotations"]) for r in DatasetCatalog.get(name))
    assert report.num_objects == loaded == len(annotations)
    assert MetadataCatalog.get(name).thing_classes == CLASSES


def test_nothing_found_is_0(folder):
    annotations = [(0, 0, [10, 10, 20, 20]), (1, 1, [5, 5, 100, 100])]
    entry = write(folder, make_coco(annotations))
    prepare_datasets(data_options(test=(entry,)), training=False)
    results = evaluate(entry, [])["bbox"]
    # One detection of nothing leaves pycocotools' metrics as if there was none.
    nothing = [(2, 0, [1, 1, 2, 2], 0.1)]
    expected = by_hand(make_coco(annotations), nothing)
    assert [results[k] for k in METRICS] == pytest.approx(expected, nan_ok=True)
    assert expected[:4] == [0, 0, 0, 0] and math.isnan(expected[4])
    assert results["AP-ring"] == results["AP-bar"] == 0
    assert first_AP({"bbox": results}) == 0


def test_more_than_100_detections(folder, caplog):
    boxes = [(0, 0, [4.0 * (i % 30), 6.0 * (i // 30), 3, 5]) for i in range(150)]
    detections = [(0, 0, b, 1 - i / 200) for i, (_, _, b) in enumerate(boxes)]
    content = make_coco(boxes, num_images=1)
    entry = write(folder, content)
    prepare_datasets(data_options(test=(entry,)), training=False)
    with caplog.at_level("INFO"):
        results = evaluate(entry, detections, max_dets_per_image=2000)["bbox"]
    assert results["AP"] == pytest.approx(by_hand(content, detections)[0])
    assert results["AP@2000"] == pytest.approx(by_hand(content, detections, limit=2000))
    assert 60 < results["AP"] < 70 and results["AP@2000"] == pytest.approx(100)
    assert first_AP({"bbox": results}) == first_AP({"a": {"bbox": results}}) == results["AP@2000"]
    assert np.isnan(first_AP({})) and np.isnan(first_AP({"bbox": {}}))
    assert "counts at most 100 detections of a class" in caplog.text and "AP@2000" in caplog.text
    assert evaluate(entry, detections)["bbox"]["AP@150"] == pytest.approx(
        100
    )  # the most that there are
    assert "AP@100" not in evaluate(entry, detections, max_dets_per_image=100)["bbox"]


def test_a_set_without_annotations(folder, tmp_path, caplog):
    content = make_coco([(0, 0, [10, 10, 20, 20])])
    del content["annotations"]
    entry = write(folder, content)
    (report,) = prepare_datasets(data_options(test=(entry,)), training=False)
    assert report.num_objects == 0
    detections = [(0, 1, [10, 10, 20, 20], 0.9)]
    with caplog.at_level("INFO"):
        results = evaluate(entry, detections, output_dir=str(tmp_path))
    assert results == {} and "Annotations are not available" in caplog.text
    (found,) = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert found == {"image_id": 1, "category_id": 2, "bbox": [10, 10, 20, 20], "score": 0.9}


def test_a_set_registered_in_python_is_not_remembered(folder, tmp_path):
    """Detectron2 would continue with the file that it wrote for the first evaluation."""
    name, record = f"in_python_{next(counter)}", {"image_id": 1, "height": 128, "width": 128}
    record["file_name"] = str(folder / "0.png")
    box = {"bbox": [10, 10, 20, 20], "bbox_mode": 1, "category_id": 0}
    DatasetCatalog.register(name, lambda: [{**record, "annotations": [dict(box)]}])
    MetadataCatalog.get(name).set(thing_classes=CLASSES)
    detections = [(0, 0, [10, 10, 20, 20], 0.9)]
    options = {"output_dir": str(tmp_path)}
    assert evaluate(name, detections, **options)["bbox"]["AP"] == pytest.approx(100)
    box["bbox"] = [60, 60, 20, 20]
    assert evaluate(name, detections, **options)["bbox"]["AP"] == 0


@pytest.mark.slow
def test_each_of_several_sets_has_a_folder(command, shapes, tmp_path):
    images = shapes / "images"
    (tmp_path / "other.json").write_text((shapes / "annotations.json").read_text())
    other = f"{tmp_path}/other.json:{images}"
    argv = command("--val-data", other, opts=["TEST.EVAL_PERIOD", "0"])
    train_net.cli(argv)
    found = sorted((tmp_path / "out" / "inference").rglob("coco_instances_results.json"))
    assert len(found) == 2 and len({path.parent for path in found}) == 2


def test_names_of_folders():
    assert results_folder("o", "a", ["a"]) == "o/inference"
    names = ["x/v.json:i", "x_v.json:i", "coco_2017_val"]
    assert results_folder("o", names[2], names) == "o/inference/coco_2017_val"
    assert results_folder("o", names[0], names) == "o/inference/1_x_v.json_i"
    assert results_folder("o", names[1], names) == "o/inference/2_x_v.json_i"
