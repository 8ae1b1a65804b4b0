"""Choices by the data: size of images, length of the training, tiles."""

import pytest
from test_split import load_content

from tood.app.plan.rules import (
    DataStatistics,
    choose_epochs,
    choose_input,
    choose_max_detections,
    choose_period,
    choose_size,
    choose_tiles,
    compute_statistics,
    num_samples,
    num_views,
)
from tood.engine.progress import count_evaluations
from tood.utils.tiles import WHOLE, TileOptions, make_tiles


def statistics(small_object, aspect=1.0):
    return DataStatistics(100, 1000, small_object, aspect)


@pytest.mark.parametrize(
    "small_object, aspect, largest, expected",
    [
        (0.2, 1.0, 800, (240, 320)),  # 48 pixels: the smallest size
        (0.05, 1.0, 800, (320, 432)),
        (0.04, 16 / 9, 800, (400, 720)),
        (0.001, 1.0, 800, (800, 1072)),  # out of reach
        (0.001, 1.0, 600, (600, 800)),
        (0.2, 5.0, 800, (240, 480)),
    ],
)
def test_the_size_of_the_images(small_object, aspect, largest, expected):
    size = choose_size(statistics(small_object, aspect), largest)
    assert (size.shorter, size.longer) == expected
    assert size.small_object == pytest.approx(small_object * size.shorter)
    assert size.small_object >= 16 or size.shorter == largest


@pytest.mark.parametrize(
    "num_images, expected", [(8, 100), (50, 64), (200, 16), (1000, 12), (100_000, 12)]
)
def test_the_length_of_the_training(num_images, expected):
    assert choose_epochs(num_images) == expected


@pytest.mark.parametrize(
    "steps, step_seconds, evaluation_seconds, expected",
    [
        (800, 0.4, 4.0, 200),  # 16 of 320 seconds: a twentieth
        (800, 0.4, 4.1, 267),  # three of them
        (800, 0.4, 60.0, 400),  # two at least
        (803, None, 0.0, 201),  # four, and none more at the end
        (803, 0.4, 0.0, 201),  # without validation data
        (1, 0.4, 4.0, 1),
    ],
)
def test_evaluations_take_a_twentieth_of_the_steps(
    steps, step_seconds, evaluation_seconds, expected
):
    period = choose_period(steps, step_seconds, evaluation_seconds)
    assert period == expected
    assert count_evaluations(steps, period) <= 4


def test_what_an_evaluation_looks_at():
    contents = [{"images": [{"width": w, "height": h}]} for w, h in ((1000, 700), (512, 10))]
    assert num_views(contents, WHOLE) == 2
    # Of 512 pixels every 448: three in a row, of which two suffice for 700; and one.
    tiles = TileOptions(512, 64)
    assert (
        num_views(contents, tiles)
        == 3 * 2 + 1
        == sum(
            len(make_tiles(x["width"], x["height"], 512, 64)) for c in contents for x in c["images"]
        )
    )


def test_statistics():
    content = load_content({"a": [0] * 10, "b": [0]})
    for i, image in enumerate(content["images"]):
        image.update(width=200, height=(100, 400)[i])
    for i, annotation in enumerate(content["annotations"]):
        annotation.update(bbox=[0, 0, 4 * i + 4, i + 1], iscrowd=0)
    content["annotations"][-1]["iscrowd"] = 1
    found = compute_statistics(content)
    assert found.num_images == 2 and found.num_objects == 10
    # Sizes 2, 4, ..., 20 of 100 pixels.
    assert found.small_object == pytest.approx(0.038)
    assert found.aspect == 2
    assert found.most_objects == max(
        sum(a["image_id"] == i["id"] and not a["iscrowd"] for a in content["annotations"])
        for i in content["images"]
    )


def content_with(side, boxes):
    image = {"id": 1, "file_name": "a", "width": side, "height": side}
    annotations = [
        {"id": i, "image_id": 1, "category_id": 0, "bbox": box, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    return {"images": [image], "annotations": annotations, "categories": [{"id": 0, "name": "a"}]}


@pytest.mark.parametrize(
    "side, object_size, expected",
    [
        (800, 5, WHOLE),  # not shrunk
        (1600, 17, WHOLE),  # 8.5 pixels at 800
        (1600, 15, TileOptions(480, 16)),  # 512 * 15 / 16
        (4000, 30, TileOptions(512, 32)),
        (4000, 4, TileOptions(256, 16)),  # magnified twice
    ],
)
def test_tiles_follow_from_the_objects(side, object_size, expected):
    content = content_with(side, [[0, 0, object_size, object_size]] * 20)
    assert choose_tiles(compute_statistics(content)) == expected
    seen = choose_input(content)
    assert seen.tiles == expected
    if expected.size:
        scale = seen.shorter / expected.size
        assert seen.shorter == seen.longer
        assert object_size * scale >= 16 or seen.shorter == 800


def test_large_objects_are_whole_in_a_tile():
    boxes = [[10 * i, 0, 8, 8] for i in range(90)] + [[0, 500, 300, 200]] * 10
    tiles = choose_tiles(compute_statistics(content_with(4000, boxes)))
    assert tiles == TileOptions(608, 304)
    # Tiles would be nearly as large as the image.
    assert (
        choose_tiles(compute_statistics(content_with(1000, boxes[:80] + [[0, 0, 600, 600]] * 20)))
        == WHOLE
    )


def test_statistics_of_tiles():
    content = content_with(1000, [[10, 10, 20, 20], [700, 700, 20, 20], [730, 730, 20, 20]])
    tiles = TileOptions(200, 0, 0.5, 0.0)
    assert num_samples(content, tiles) == 2 and num_samples(content, WHOLE) == 1
    found = compute_statistics(content, tiles)
    assert found.num_images == 1 and found.num_objects == 3 and found.most_objects == 3
    assert found.small_object == pytest.approx(0.1) and found.aspect == 1


@pytest.mark.parametrize("most, expected", [(0, 100), (50, 100), (51, 200), (279, 600)])
def test_detections_of_an_image(most, expected):
    assert choose_max_detections(statistics(0.2)._replace(most_objects=most)) == expected
