"""The table of the findings in a data set."""

import json

import numpy as np
import pytest
from PIL import Image

from tood.data.check import InputSize, check_data, check_images
from tood.utils.tiles import TileOptions

AS_IT_IS = InputSize(0, 0)
IMAGES = [
    {"id": 1, "file_name": "a.png", "width": 100, "height": 50},
    {"id": 2, "file_name": "b.png", "width": 100, "height": 50},
]
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]


def annotation(bbox, id=1, category_id=1, image_id=1, **kwargs):
    options = {"iscrowd": 0, **kwargs}
    return dict(id=id, image_id=image_id, category_id=category_id, bbox=bbox, **options)


def report(*annotations, input_size=AS_IT_IS, **kwargs):
    content = {"images": IMAGES, "categories": CATEGORIES, "annotations": list(annotations)}
    return check_data("x.json", content, input_size, 8, **kwargs)


def found(*annotations, **kwargs):
    return {f.what: (f.number, f.example) for f in report(*annotations, **kwargs).findings}


GOOD = [annotation([10, 10, 20, 20]), annotation([5, 5, 9, 9], id=2, category_id=7, image_id=2)]


def test_nothing_to_complain_of():
    assert str(report(*GOOD)) == "x.json: 2 images, 2 objects, 2 classes; no problems found."


@pytest.mark.parametrize(
    "bbox, what",
    [
        ([10, 10, 0, 5], "boxes without width or height"),
        ([10, 10, 5, -5], "boxes without width or height"),
        ([100, 10, 20, 20], "boxes wholly outside of their image"),
        ([10, -30, 20, 20], "boxes wholly outside of their image"),
        ([90, 10, 20, 20], "boxes partly outside of their image"),
        ([-3, 10, 20, 20], "boxes partly outside of their image"),
        (
            [10, 10, 7.9, 20],
            "boxes narrower or lower than 8 px, the finest stride, at the network's",
        ),
    ],
)
def test_boxes(bbox, what):
    boxes = {k: v for k, v in found(*GOOD, annotation(bbox, id=3)).items() if k.startswith("boxes")}
    ((name, (count, example)),) = boxes.items()
    assert name.startswith(what)
    assert count == 1 and example == f"annotation 3: {bbox}"


@pytest.mark.parametrize("bbox", [[0, 0, 100, 50], [-0.6, 0, 20, 20], [80.5, 20, 20, 30.9]])
def test_boxes_at_the_border(bbox):
    assert not found(*GOOD, annotation(bbox, id=3))


def test_small_boxes_are_measured_at_the_networks_size():
    # 100 x 50 at a shorter side of 100, but a longer one of 160 at most: 1.6 times as large.
    small = "boxes narrower or lower than 8 px, the finest stride, at the network's size"
    boxes = [annotation([10, 10, width, 20], id=i) for i, width in enumerate((4.9, 5.1), 10)]
    assert found(*GOOD, *boxes)[small][0] == 2
    larger = found(*GOOD, *boxes, input_size=InputSize(100, 160))
    assert larger[small] == (1, "annotation 10: [10, 10, 4.9, 20]")


@pytest.mark.parametrize(
    "input_size, expected",
    [
        (InputSize(50, 100), ""),  # as they are
        (InputSize(40, 80), " or tiles (INPUT.TILES.SIZE)"),
        (InputSize(25, 25, TileOptions(50, 20)), ""),
    ],
)
def test_what_helps_small_boxes(input_size, expected):
    findings = report(*GOOD, annotation([5, 5, 6, 6], id=3), input_size=input_size).findings
    (found,) = [f for f in findings if "narrower" in f.what]
    remedy = f"larger images (INPUT.MIN_SIZE_TRAIN){expected} help"
    assert found.consequence == f"may get no positive; {remedy}"


def test_empty_images_unused_classes_and_crowds():
    crowd = annotation([1, 1, 30, 30], id=4, category_id=7, image_id=2, iscrowd=1)
    assert found(GOOD[0], crowd) == {
        "images without objects": (1, "b.png"),
        "classes without objects": (1, "dog"),
        "boxes of crowds (iscrowd)": (1, "annotation 4"),
    }
    negatives = report(GOOD[0], filter_empty=False).findings[0]
    assert negatives.consequence.startswith("trained on as background")


def test_objects_to_ignore_are_reported_beside_crowds():
    crowd = annotation([1, 1, 30, 30], id=4, iscrowd=1)
    difficult = annotation([1, 1, 30, 30], id=5, iscrowd=1, ignore=1)
    assert found(*GOOD, crowd, difficult) == {
        "boxes of crowds (iscrowd)": (1, "annotation 4"),
        "objects marked ignore (VOC's difficult)": (1, "annotation 5"),
    }


def test_errors_come_first_and_are_counted():
    broken = [annotation([1, 2, 3], id=i) for i in (5, 6)] + [annotation([1, 1, 2, 2], image_id=9)]
    bad = report(annotation([0, 0, 0, 0]), *broken)
    assert [(f.number, f.example) for f in bad.errors] == [
        (1, "annotation 1 has image_id 9"),
        (2, "annotation 5 has bbox [1, 2, 3]"),
    ]
    rows = str(bad).splitlines()
    assert rows[0] == "x.json: 2 images, 1 objects, 2 classes"
    assert max(map(len, rows)) <= 80  # of a terminal
    items = [row for row in rows if row.startswith("- ")]
    assert [row.startswith("- error: ") for row in items] == [True, True, False, False, False]


def test_more_objects_than_are_found():
    full = [annotation([1, 1, 20, 20], id=i) for i in range(1, 5)]
    (found,) = [
        x for x in report(*full, max_detections=3).findings if "more than 3 objects" in x.what
    ]
    assert found.number == 1 and "raise TEST.DETECTIONS_PER_IMAGE" in found.consequence
    assert not found.is_error
    for limit in (0, 4):
        assert not any("more than" in x.what for x in report(*full, max_detections=limit).findings)


def test_slender_images():
    bad = report(*GOOD, input_size=InputSize(100, 100))
    assert not bad.errors
    images = [dict(IMAGES[0], width=20000, height=1), IMAGES[1]]
    content = {"images": images, "categories": CATEGORIES, "annotations": GOOD}
    (error,) = check_data("x.json", content, InputSize(240, 320), 8).errors
    assert error.what == "images of extreme aspect ratio" and error.example == "a.png"


def test_images(tmp_path):
    image = Image.fromarray(np.zeros((50, 100, 3), dtype=np.uint8))
    for name in ("a.png", "b.png"):
        image.save(tmp_path / name)
    assert check_images(IMAGES, str(tmp_path)) == []
    image.rotate(90, expand=True).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    images = [*IMAGES, dict(IMAGES[0], file_name="c.png")]
    missing, unreadable, size = check_images(images, str(tmp_path))
    assert missing.example == str(tmp_path / "c.png")
    assert unreadable.example == f"{tmp_path / 'b.png'} (cannot identify image file)"
    assert size.example == f"{tmp_path / 'a.png'} (upright it has 50 x 100, not 100 x 50)"
    assert all(finding.is_error and finding.number == 1 for finding in (missing, unreadable, size))


def test_a_json_that_was_nested_without_end(tmp_path):
    from tood.data.annotations import read_annotations
    from tood.utils.errors import UserError

    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="deep.json cannot be read: it is nested too deeply"):
        read_annotations(str(path), to_train=True)
    path.write_text(
        json.dumps({"images": [True], "annotations": [], "categories": [{"id": 1, "name": "a"}]})
    )
    with pytest.raises(
        UserError, match="entry 0 of its images needs a 'id' of type int; it is True"
    ):
        read_annotations(str(path), to_train=True)
