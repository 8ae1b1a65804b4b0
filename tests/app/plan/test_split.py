"""A validation part that is split off."""

import collections
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tood.app.plan.split import draw_part, split_data
from tood.utils.errors import UserError


def load_content(classes_by_name):
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
    content = load_content({name: [rng.randrange(3)] for name in order})
    split = split_data(content, str(tmp_path))
    train, val = ({originals[n] for n in names(part)} for part in (split.train, split.val))
    assert train and val and not train & val
    assert names(split.train) | names(split.val) == set(order)
    assert split.num_copies == len(order) - 40
    assert 0.1 < len(split.val["images"]) / len(order) < 0.3
    ids = {image["id"] for image in split.val["images"]}
    assert split.val["annotations"] == [a for a in content["annotations"] if a["image_id"] in ids]


def test_the_same_seed_is_the_same_split():
    content = load_content({f"{i}.jpg": [i % 3] for i in range(100)})
    first = names(split_data(content, "nowhere", seed=1).val)
    assert first == names(split_data(content, "nowhere", seed=1).val)
    assert first != names(split_data(content, "nowhere", seed=2).val)


def test_rare_classes_are_on_both_sides():
    """Classes in five images are in both parts; one that is in a single image is learned."""
    classes = {f"{i}.jpg": [1] for i in range(100)}
    classes.update({f"rare{i}.jpg": [1, 2] for i in range(5)}, single=[1, 3], **{"empty": []})
    split = split_data(load_content(classes), "nowhere")
    count = collections.Counter(a["category_id"] for a in split.val["annotations"])
    assert count[2] == 1 and count[3] == 0
    assert 20 <= count[1] <= 23


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=2, max_size=60),
    st.floats(0.05, 0.5),
    st.integers(0, 5),
)
def test_a_split_keeps_its_promises(classes, share, seed):
    """Against the images counted by hand: all are there once, and each class has its share of
    them, as far as images come as wholes.
    """
    content = load_content({f"{i}.jpg": c for i, c in enumerate(classes)})
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
    content = load_content({f"video{i // 10}_{i:03d}.jpg": [1] for i in range(100)})
    for group in (r"^(video\d+)_", r"^video\d+"):
        split = split_data(content, "nowhere", group=group)
        train, val = ({n.split("_")[0] for n in names(p)} for p in (split.train, split.val))
        assert len(val) == 2 and len(train) == 8
    with pytest.raises(UserError, match=r"--group \( is not a regular expression"):
        split_data(content, "nowhere", group="(")
    with pytest.raises(UserError, match="contains 1 kind of images, too few to split"):
        split_data(content, "nowhere", group="video")


def test_augmented_copies_stay_together():
    content = load_content({f"p{i // 3}_jpg.rf.{i:032x}.jpg": [1] for i in range(60)})
    split = split_data(content, "nowhere")
    train, val = ({n.split(".rf.")[0] for n in names(p)} for p in (split.train, split.val))
    assert len(train) == 16 and len(val) == 4


def test_a_part_to_calibrate_on_is_drawn_at_random():
    """Each image as often as any other, also the only one of its class; groups as wholes."""
    content = load_content({f"v{i // 2}_{i}.jpg": [1 if i else 2] for i in range(20)})
    counts = collections.Counter()
    for seed in range(400):
        part = draw_part(content, "nowhere", share=0.25, seed=seed)
        assert len(part.val["images"]) == 5 and len(part.train["images"]) == 15
        assert not names(part.val) & names(part.train)
        counts.update(names(part.val))
    # 400 draws of 1/4: 100, standard deviation 8.7.
    assert len(counts) == 20 and all(65 < x < 135 for x in counts.values())
    assert draw_part(content, "nowhere", share=0.25) == draw_part(content, "nowhere", share=0.25)
    part = draw_part(content, "nowhere", share=0.3, group=r"^v\d+_")
    videos = [{x.split("_")[0] for x in names(y)} for y in (part.train, part.val)]
    assert [len(x) for x in videos] == [7, 3] and not videos[0] & videos[1]
    with pytest.raises(UserError, match="--calibration-share is 1.5; it must be between 0 and 1"):
        draw_part(content, "nowhere", share=1.5)
    with pytest.raises(UserError, match="contains 1 kind of images, too few for a --calibration"):
        draw_part(content, "nowhere", share=0.5, group="v")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_that_are_none(share):
    with pytest.raises(UserError, match="must be between 0 and 1"):
        split_data(load_content({"a": [1], "b": [1]}), "nowhere", share=share)
