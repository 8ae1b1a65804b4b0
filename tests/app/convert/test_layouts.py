"""Layouts of folders, drawn at random: what is read is what was written, and nothing is lost."""

import os
import shutil
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from layouts import (
    NAMES,
    coco,
    found_in,
    labelme,
    make_boxes,
    ordered,
    put,
    put_csv,
    put_image,
    refused,
    voc,
    yolo,
)

from tood.app.convert.door import read_data
from tood.utils.errors import UserError

SUFFIXES = {"yolo": "txt", "voc": "xml", "labelme": "json"}
STEMS = ["0001", "IMG 2", "Küche", "bus_3", "train_4", "a.b", "x-5", "[6]", "100%", "_7"]
FOLDERS = {
    "beside": ("{split}{sub}", "{split}{sub}"),
    "areas first": ("images/{split}{sub}", "labels/{split}{sub}"),
    "areas last": ("{split}{sub}images/", "{split}{sub}labels/"),
    "VOC": ("JPEGImages/{split}{sub}", "Annotations/{split}{sub}"),
    "letters": ("Images/{split}{sub}", "labels/{split}{sub}"),
}


@st.composite
def layouts(draw):
    """Return a dict: images with their labels, and what is odd about the folder."""
    kind = draw(st.sampled_from([*SUFFIXES, "csv", "coco"]))
    splits = draw(st.sampled_from([("",), ("",), ("train/", "val/"), ("train2017/", "test2017/")]))
    subs = draw(st.lists(st.sampled_from(["", "a/", "b/c/"]), min_size=1, max_size=2, unique=True))
    places = FOLDERS[draw(st.sampled_from(sorted(FOLDERS)))]
    images = []
    for split in splits:
        for sub in subs:
            chosen = draw(st.lists(st.sampled_from(STEMS), min_size=3, max_size=5, unique=True))
            for stem in chosen:
                image, label = (p.format(split=split, sub=sub) + stem for p in places)
                state = draw(st.sampled_from(["both"] * 6 + ["no labels", "no image", "empty"]))
                images.append((split.strip("/2017"), f"{image}.jpg", label, state))
    return {
        "kind": kind,
        "images": images,
        "has_splits": len(splits) > 1,
        "is_double": draw(st.booleans()),
        "odd": draw(st.sets(st.sampled_from(["hidden", "loop", "other", "upper"]))),
    }


def write(root, layout):
    """Write a layout; return the truth."""
    kind, truth, rows = layout["kind"], {}, {}
    for split, image, label, state in layout["images"]:
        boxes = [] if state == "empty" else make_boxes(image)
        twice = boxes * (2 if layout["is_double"] else 1)
        if state != "no image":
            put_image(root, image)
            truth.setdefault(split or "all", {})[image] = [] if state == "no labels" else boxes
        if state == "no labels":
            continue
        label = label.swapcase() if "upper" in layout["odd"] and kind == "yolo" else label
        if kind == "yolo":
            put(root, f"{label}.txt", yolo(twice))
        elif kind in SUFFIXES:
            name = os.path.basename(image)
            text = voc(name, twice) if kind == "voc" else labelme(name, twice, imageData=None)
            put(root, f"{label}.{SUFFIXES[kind]}", text)
        else:
            rows.setdefault(split, {})[image] = twice
    for split, found in rows.items():
        if kind == "coco":
            put(root, f"{split or 'labels'}.json", coco(found))
        else:
            cells = [[i, *b, n] for i, boxes in found.items() for n, *b in boxes]
            cells += [[i, "", "", "", "", ""] for i, boxes in found.items() if not boxes]
            put_csv(root, f"{split or 'labels'}.csv", cells)
    if kind == "yolo":
        put(root, "classes.txt", "\n".join(NAMES))
    if "hidden" in layout["odd"]:
        put(root, ".cache/thumb.jpg", "x")
        put(root, ".DS_Store", "x")
    if "loop" in layout["odd"]:
        (root / "loop").symlink_to(".")
    if "other" in layout["odd"]:
        put(root, "README.md", "About these images.")
        put(root, "info.json", {"year": 2024})
    return truth


def expected_refusal(layout):
    """Return words of the sentence if a layout must be refused, or None."""
    states = {}
    for split, image, _, state in layout["images"]:
        states.setdefault(split, []).append((image, state))
    is_per_file = layout["kind"] in SUFFIXES
    all_states = [state for found in states.values() for _, state in found]
    labelled = [s for s in all_states if s != "no labels"]
    for found in states.values():
        kinds = Counter(state for _, state in found)
        named = len(found) - kinds["no labels"]
        if not is_per_file and kinds["no image"] * 2 > named:
            return "are not there"
    if is_per_file and all_states.count("no image") * 2 > len(labelled):
        return "have no image"
    return None


def is_plain(layout):
    """Return whether no rule about shares and equal names can apply, so that all must be read."""
    free = {os.path.basename(i) for _, i, _, s in layout["images"] if s == "no labels"}
    orphans = {os.path.basename(i) for _, i, _, s in layout["images"] if s == "no image"}
    per_split = {}
    for split, _, _, state in layout["images"]:
        per_split.setdefault(split, Counter())[state] += 1
    return not free & orphans and all(
        max(c["no labels"], c["no image"]) * 3 <= sum(c.values()) and c["both"] > 0
        for c in per_split.values()
    )


# Two lists, and the images of one: those of the other, of equal names, are not taken for them.
ONE_SPLIT = {
    "kind": "csv",
    "images": [
        (split, f"images/{split}/{stem}.jpg", "", state)
        for split, state in (("train", "both"), ("val", "no image"))
        for stem in STEMS[:3]
    ],
    "has_splits": True,
    "is_double": False,
    "odd": set(),
}


@pytest.mark.parametrize("kind", ["csv", "coco"])
def test_images_of_another_split_are_not_taken(kind, tmp_path):
    write(tmp_path, {**ONE_SPLIT, "kind": kind})
    assert "are not there" in refused(tmp_path)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(layout=layouts())
@example(layout=ONE_SPLIT)
def test_reading_is_what_was_drawn(layout, tmp_path_factory):
    root = tmp_path_factory.mktemp("layout")
    truth = write(root, layout)
    if expected_refusal(layout):
        message = refused(root)
        equal_names = ("has no image in its place", "like others of its list")
        assert any(words in message for words in (expected_refusal(layout), *equal_names))
    elif is_plain(layout) and layout["kind"] != "coco":
        assert found_in(root) == ordered(truth)
        check_ledger(root, layout, truth)
    elif layout["kind"] == "coco" and all(
        any(s == split and state == "both" for s, _, _, state in layout["images"])
        for split, *_ in layout["images"]
    ):
        unlisted = {i for _, i, _, state in layout["images"] if state == "no labels"}
        found = found_in(root)
        there = {s: {i: b for i, b in x.items() if (root / i).exists()} for s, x in found.items()}
        kept = {s: {i: b for i, b in x.items() if i not in unlisted} for s, x in truth.items()}
        assert there == ordered(kept)
    shutil.rmtree(root)


def check_ledger(root, layout, truth):
    """Each file has one role, each image one file of labels, and no object is lost."""
    ledger = read_data(str(root)).ledger
    files = [os.path.join(p, name) for p, _, names in os.walk(root) for name in names]
    files = {os.path.relpath(file, root) for file in files}
    assert {f for f in ledger.files if not f.endswith("/")} == files
    assert ledger.files.get("loop/", ("ignored",))[0] == "ignored"
    images = {i: s for s, found in truth.items() for i in found}
    assert {f: d for f, (role, d) in ledger.files.items() if role == "image"} == images
    states = Counter(state for *_, state in layout["images"])
    if layout["kind"] in SUFFIXES:
        labels = [d for role, d in ledger.files.values() if role == "labels"]
        assert len(labels) == len(set(labels)) == states["both"] + states["empty"]
        assert len(ledger.orphans()) == states["no image"]
    objects = 3 * (states["both"] + states["no image"]) * (2 if layout["is_double"] else 1)
    assert ledger.objects_in == objects
    assert ledger.objects_out == 3 * states["both"]
    assert ledger.objects_in == ledger.objects_out + sum(ledger.ignored_objects.values())
    assert all(isinstance(text, str) for row in ledger.rows() for text in row)


def test_a_violated_law_is_an_error(tmp_path):
    put_image(tmp_path, "0.jpg")
    put(tmp_path, "0.txt", yolo(make_boxes(0)))
    put(tmp_path, "classes.txt", "\n".join(NAMES))
    ledger = read_data(str(tmp_path)).ledger
    files = ["0.jpg", "0.txt", "classes.txt"]
    ledger.close(files, {"all": {"0.jpg"}})
    for changed in (
        lambda: ledger.close([*files, "1.jpg"], {"all": {"0.jpg"}}),
        lambda: ledger.close(files, {"all": {"0.jpg", "2.jpg"}}),
        lambda: ledger.close(files, {"all": set()}),
        lambda: ledger.enter("0.txt", "labels", "3.jpg"),
    ):
        with pytest.raises(UserError):
            changed()
    ledger.objects_in += 1
    with pytest.raises(UserError, match="for example 1 objects"):
        ledger.close(files, {"all": {"0.jpg"}})
