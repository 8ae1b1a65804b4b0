"""A validation part that is split off, and what the data ask of a training."""

import collections
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tood.app.plan.rules import (
    DataStatistics,
    choose_epochs,
    choose_input,
    choose_max_detections,
    choose_size,
    choose_tiles,
    num_samples,
    statistics_of,
)
from tood.app.plan.split import split_data
from tood.data.copies import copies_of, trained_on
from tood.utils.errors import UserError
from tood.utils.tiles import WHOLE, TileOptions


def content_of(classes_by_name):
    """COCO's lists of images without files, by the classes of their objects."""
    images = [{"id": i, "file_name": name} for i, name in enumerate(classes_by_name)]
    annotations = [
        {"image_id": image["id"], "category_id": c}
        for image in images
        for c in classes_by_name[image["file_name"]]
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}


def names(part):
    return {image["file_name"] for image in part["images"]}


def test_copies_never_stand_on_both_sides(tmp_path):
    rng = random.Random(3)
    originals = {}
    for i in range(40):  # of one size, and each with a copy or two
        data = rng.randbytes(1000)
        for copy in range(rng.choice((1, 2, 3))):
            (tmp_path / f"{copy}_{i}.jpg").write_bytes(data)
            originals[f"{copy}_{i}.jpg"] = i
    order = sorted(originals, key=lambda name: rng.random())
    content = content_of({name: [rng.randrange(3)] for name in order})
    split = split_data(content, str(tmp_path))
    train, val = ({originals[n] for n in names(part)} for part in (split.train, split.val))
    assert train and val and not train & val
    assert names(split.train) | names(split.val) == set(order)
    assert split.num_copies == len(order) - 40
    assert 0.1 < len(split.val["images"]) / len(order) < 0.3
    ids = {image["id"] for image in split.val["images"]}
    assert split.val["annotations"] == [a for a in content["annotations"] if a["image_id"] in ids]


def test_the_same_seed_is_the_same_split():
    content = content_of({f"{i}.jpg": [i % 3] for i in range(100)})
    first = names(split_data(content, "nowhere", seed=1).val)
    assert first == names(split_data(content, "nowhere", seed=1).val)
    assert first != names(split_data(content, "nowhere", seed=2).val)


def test_rare_classes_are_on_both_sides():
    """Where they are in five images; one that is in a single image is learned."""
    classes = {f"{i}.jpg": [1] for i in range(100)}
    classes.update({f"rare{i}.jpg": [1, 2] for i in range(5)}, single=[1, 3], **{"empty": []})
    split = split_data(content_of(classes), "nowhere")
    count = collections.Counter(a["category_id"] for a in split.val["annotations"])
    assert count[2] == 1 and count[3] == 0
    assert 20 <= count[1] <= 23


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=2, max_size=60),
    st.floats(0.05, 0.5),
    st.integers(0, 5),
)
def test_a_split_keeps_its_promises(classes, share, seed):
    """Against the images counted by hand: all are there once, and each class has its share of
    them, as far as images come as wholes.
    """
    content = content_of({f"{i}.jpg": c for i, c in enumerate(classes)})
    split = split_data(content, "nowhere", share=share, seed=seed)
    assert len(split.train["images"]) + len(split.val["images"]) == len(classes)
    assert split.train["images"] and split.val["images"]
    assert not names(split.train) & names(split.val)
    for c in range(5):
        number = sum(c in found for found in classes)
        in_val = len({a["image_id"] for a in split.val["annotations"] if a["category_id"] == c})
        # Images with several classes cannot do right by each of them.
        assert in_val <= number * share + 1 + sum(len(set(f)) > 1 and c in f for f in classes)


def test_groups_on_demand():
    content = content_of({f"video{i // 10}_{i:03d}.jpg": [1] for i in range(100)})
    for group in (r"^(video\d+)_", r"^video\d+"):
        split = split_data(content, "nowhere", group=group)
        train, val = ({n.split("_")[0] for n in names(p)} for p in (split.train, split.val))
        assert len(val) == 2 and len(train) == 8
    with pytest.raises(UserError, match=r"--group \( is not a regular expression"):
        split_data(content, "nowhere", group="(")
    with pytest.raises(UserError, match="contains 1 kind of images, too few to split"):
        split_data(content, "nowhere", group="video")


def test_augmented_copies_stay_together():
    content = content_of({f"p{i // 3}_jpg.rf.{i:032x}.jpg": [1] for i in range(60)})
    split = split_data(content, "nowhere")
    train, val = ({n.split(".rf.")[0] for n in names(p)} for p in (split.train, split.val))
    assert len(train) == 16 and len(val) == 4


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_that_are_none(share):
    with pytest.raises(UserError, match="must be between 0 and 1"):
        split_data(content_of({"a": [1], "b": [1]}), "nowhere", share=share)


def test_files_that_differ_at_their_end_are_no_copies(tmp_path):
    for name, data in (("a", b"x" * 2**21), ("b", b"x" * 2**21), ("c", b"x" * (2**21 - 1) + b"y")):
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in ("a", "b", "c", "gone", "also gone")]
    assert copies_of(paths) == [0, 0, 2, 3, 4]


def test_images_on_both_sides(tmp_path):
    files = {
        "train/a.jpg": b"one",
        "train/b.jpg": b"two",
        "train/cat_jpg.rf.0a1b.jpg": b"three",
        "val/c.jpg": b"one",  # as train/a.jpg
        "val/d.jpg": b"new",
        "val/cat_jpg.rf.2c3d.jpg": b"turned",
        "val/dog_jpg.rf.4e5f.jpg": b"five",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    train, val = ([str(tmp_path / n) for n in files if n.startswith(x)] for x in ("train", "val"))
    assert trained_on(train, val) == [str(tmp_path / "val" / "c.jpg"), val[2]]
    assert trained_on(train, train) == train
    assert trained_on(train[:2], [str(tmp_path / "val" / ".." / "train" / "b.jpg"), *val[1:]]) == [
        str(tmp_path / "val" / ".." / "train" / "b.jpg")
    ]
    assert trained_on([], val) == [] == trained_on(train, [])


# The plan


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


def test_statistics():
    content = content_of({"a": [0] * 10, "b": [0]})
    for i, image in enumerate(content["images"]):
        image.update(width=200, height=(100, 400)[i])
    for i, annotation in enumerate(content["annotations"]):
        annotation.update(bbox=[0, 0, 4 * i + 4, i + 1], iscrowd=0)
    content["annotations"][-1]["iscrowd"] = 1
    found = statistics_of(content)
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
    assert choose_tiles(statistics_of(content)) == expected
    seen = choose_input(content)
    assert seen.tiles == expected
    if expected.size:
        scale = seen.shorter / expected.size
        assert seen.shorter == seen.longer
        assert object_size * scale >= 16 or seen.shorter == 800


def test_large_objects_are_whole_in_a_tile():
    boxes = [[10 * i, 0, 8, 8] for i in range(90)] + [[0, 500, 300, 200]] * 10
    tiles = choose_tiles(statistics_of(content_with(4000, boxes)))
    assert tiles == TileOptions(608, 304)
    # Tiles would be nearly as large as the image.
    assert (
        choose_tiles(statistics_of(content_with(1000, boxes[:80] + [[0, 0, 600, 600]] * 20)))
        == WHOLE
    )


def test_statistics_of_tiles():
    content = content_with(1000, [[10, 10, 20, 20], [700, 700, 20, 20], [730, 730, 20, 20]])
    tiles = TileOptions(200, 0, 0.5, 0.0)
    assert num_samples(content, tiles) == 2 and num_samples(content, WHOLE) == 1
    found = statistics_of(content, tiles)
    assert found.num_images == 1 and found.num_objects == 3 and found.most_objects == 3
    assert found.small_object == pytest.approx(0.1) and found.aspect == 1


@pytest.mark.parametrize("most, expected", [(0, 100), (50, 100), (51, 200), (279, 600)])
def test_detections_of_an_image(most, expected):
    assert choose_max_detections(statistics(0.2)._replace(most_objects=most)) == expected
