"""Masks, drawings and copies that are named like the images they were made from."""

import pytest
from layouts import NAMES, found_in, labelme, make_boxes, notes, ordered, put, put_image, voc, yolo

SUFFIXES = {"yolo": "txt", "voc": "xml", "labelme": "json"}
ONE_IMAGE = list(SUFFIXES)


def put_labels(root, kind, file, image, boxes):
    """Write the labels of one image: ``file`` without its ending, ``image`` as they state it."""
    text = {"voc": voc, "labelme": labelme}[kind](image, boxes) if kind != "yolo" else yolo(boxes)
    put(root, f"{file}.{SUFFIXES[kind]}", text)
    if kind == "yolo":
        put(root, "classes.txt", "\n".join(NAMES))


@pytest.mark.parametrize("kind", ONE_IMAGE)
def test_a_list_of_images_to_test_on_without_labels(tmp_path, kind):
    expected = {"train": {}, "val": {}}
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        boxes = expected[split][f"images/{name}.png"] = make_boxes(name)
        put_image(tmp_path, f"images/{name}.png")
        put_labels(tmp_path, kind, f"labels/{name}", f"{name}.png", boxes)
    for name in "xyz":
        put_image(tmp_path, f"images/{name}.png")
    for split, names in (("train", "ab"), ("val", "c"), ("test", "xyz")):
        put(tmp_path, f"ImageSets/Main/{split}.txt", "\n".join(names))
    assert found_in(tmp_path) == ordered(expected)
    assert "3: images to test on without labels, e.g. images/x.png" in notes(tmp_path)
