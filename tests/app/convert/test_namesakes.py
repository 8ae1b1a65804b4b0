"""Masks, drawings and copies that are named like the images they were made from."""

import pytest
from layouts import (
    NAMES,
    OF_ONE_IMAGE,
    found_in,
    make_boxes,
    notes,
    ordered,
    put,
    put_image,
    put_labels_of_one,
    put_set,
    refused,
    yolo,
)


@pytest.mark.parametrize("kind", OF_ONE_IMAGE)
def test_a_list_of_images_to_test_on_without_labels(tmp_path, kind):
    expected = {"train": {}, "val": {}}
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        boxes = expected[split][f"images/{name}.png"] = make_boxes(name)
        put_image(tmp_path, f"images/{name}.png")
        put_labels_of_one(tmp_path, kind, f"labels/{name}", f"{name}.png", boxes)
    for name in "xyz":
        put_image(tmp_path, f"images/{name}.png")
    for split, names in (("train", "ab"), ("val", "c"), ("test", "xyz")):
        put(tmp_path, f"ImageSets/Main/{split}.txt", "\n".join(names))
    assert found_in(tmp_path) == ordered(expected)
    assert "3: images to test on without labels, e.g. images/x.png" in notes(tmp_path)


# --- files of many images ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coco", "csv", "cvat"])
@pytest.mark.parametrize(
    "home, photographs, name",
    [
        ("annotations/", "images/{}.png", "{}.png"),
        ("", "images/{}.png", "{}.png"),
        ("train/annotations/", "train/images/{}.png", "{}.png"),
        ("masks/", "images/{}.jpg", "{}"),
        ("annotations/", "images/city/{}.png", "city/{}.png"),
    ],
)
def test_masks_beside_the_file_that_names_their_photographs(
    tmp_path, kind, home, photographs, name
):
    truth = {name.format(i): make_boxes(i) for i in range(3)}
    for i, mask in enumerate(truth):
        put_image(tmp_path, photographs.format(i))
        put_image(tmp_path, f"{home}{mask.replace('.png', '')}.png")
    put_set(tmp_path, kind, f"{home}instances", truth)
    masks = f"{home}{name.format(0).replace('.png', '')}.png"
    message = refused(tmp_path)
    assert f"could be {tmp_path}/" in message and "name the folder as well" in message
    assert f"{tmp_path}/{masks}" in message and f"{tmp_path}/{photographs.format(0)}" in message


@pytest.mark.parametrize("kind", ["coco", "csv", "cvat"])
def test_paths_that_say_which_images_are_meant(tmp_path, kind):
    truth = {f"../images/{i}.png": make_boxes(i) for i in range(3)}
    for i in range(3):
        put_image(tmp_path, f"images/{i}.png")
        put_image(tmp_path, f"annotations/{i}.png")
    put_set(tmp_path, kind, "annotations/instances", truth)
    found = found_in(tmp_path)["all"]
    assert {i: boxes for i, boxes in found.items() if boxes} == {
        name[3:]: sorted(boxes) for name, boxes in truth.items()
    }


@pytest.mark.parametrize("kind", ["csv", "cvat"])
def test_images_of_equal_names_in_other_places_are_others(tmp_path, kind):
    """A file beside its images is about these, if the others are elsewhere."""
    truth = {f"{i}.png": make_boxes(i) for i in range(3)}
    for name in truth:
        put_image(tmp_path, f"city_a/{name}")
    put_image(tmp_path, "city_b/0.png")
    put_set(tmp_path, kind, "city_a/boxes", truth)
    assert {f"city_a/{name}": sorted(boxes) for name, boxes in truth.items()}.items() <= (
        found_in(tmp_path)["all"].items()
    )


# --- labels of one image -----------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["labels", "train/labels", ""])
@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize("kind", OF_ONE_IMAGE)
def test_masks_beside_the_labels_of_their_photographs(tmp_path, kind, labels, masks):
    """The stated ending says which is meant; YOLO's labels state none."""
    home = "train/images" if "train" in labels else "images"
    truth = {f"{home}/{i}.jpg": make_boxes(i) for i in range(3)}
    for i, (image, boxes) in enumerate(truth.items()):
        put_image(tmp_path, image)
        put_labels_of_one(tmp_path, kind, f"{labels}/{i}".lstrip("/"), f"{i}.jpg", boxes)
    for i in range(masks):
        put_image(tmp_path, f"{labels}/{i}.png".lstrip("/"))
    if kind == "yolo":
        message = refused(tmp_path)
        assert f"could belong to {tmp_path}/" in message and f"{tmp_path}/{home}/0.jpg" in message
    else:
        (found,) = found_in(tmp_path).values()
        assert {i: boxes for i, boxes in found.items() if boxes} == ordered({"": truth})[""]


@pytest.mark.parametrize("kind", OF_ONE_IMAGE)
def test_masks_of_the_same_ending_beside_labels(tmp_path, kind):
    for i in range(3):
        put_image(tmp_path, f"images/{i}.png")
        put_image(tmp_path, f"labels/{i}.png")
        put_labels_of_one(tmp_path, kind, f"labels/{i}", f"{i}.png", make_boxes(i))
    first, second = (f"{tmp_path}/{home}/0.png" for home in ("images", "labels"))
    assert f"could belong to {first} or {second}; rename" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["voc", "labelme"])
def test_labels_that_state_the_path_of_their_image(tmp_path, kind):
    truth = {f"images/{i}.png": make_boxes(i) for i in range(3)}
    for i, (image, boxes) in enumerate(truth.items()):
        put_image(tmp_path, image)
        put_image(tmp_path, f"labels/{i}.png")
        put_labels_of_one(tmp_path, kind, f"labels/{i}", f"../{image}", boxes)
    (found,) = found_in(tmp_path).values()
    assert {i: boxes for i, boxes in found.items() if boxes} == ordered({"": truth})[""]


def test_a_configuration_names_the_photographs_and_not_masks_beside_labels(tmp_path):
    truth = {f"images/train/{i}.jpg": make_boxes(i) for i in range(3)}
    for i, (image, boxes) in enumerate(truth.items()):
        put_image(tmp_path, image)
        put_image(tmp_path, f"labels/train/{i}.png")
        put(tmp_path, f"labels/train/{i}.txt", yolo(boxes))
    put(tmp_path, "data.yaml", f"train: images/train\nnames: {NAMES}\n")
    assert found_in(tmp_path) == ordered({"train": truth})


@pytest.mark.parametrize("kind", OF_ONE_IMAGE)
def test_labels_beside_their_images_in_corresponding_folders(tmp_path, kind):
    truth = {f"{home}/1.png": make_boxes(home) for home in ("images", "data")}
    for image, boxes in truth.items():
        put_image(tmp_path, image)
        put_labels_of_one(tmp_path, kind, image[:-4], "1.png", boxes)
    assert found_in(tmp_path) == ordered({"all": truth})


# --- lists of images ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OF_ONE_IMAGE)
@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize("home, inner", [("annotations", "trimaps"), ("lists", "masks")])
def test_lists_above_masks_mean_the_images_with_labels(tmp_path, kind, masks, home, inner):
    truth = {"train": {}, "val": {}}
    for i, split in enumerate(("train", "train", "val")):
        boxes = truth[split][f"images/{i}.jpg"] = make_boxes(i)
        put_image(tmp_path, f"images/{i}.jpg")
        put_labels_of_one(tmp_path, kind, f"annotations/labels/{i}", f"{i}.jpg", boxes)
    for i in range(masks):
        put_image(tmp_path, f"{home}/{inner}/{i}.png")
    put_image(tmp_path, "images/3.jpg")  # to test on: without labels
    put_image(tmp_path, f"{home}/{inner}/3.png")
    for split, names in (("train", "0\n1"), ("val", "2"), ("test", "3")):
        put(tmp_path, f"{home}/{split}.txt", names)
    assert found_in(tmp_path) == ordered(truth)
    assert "1: images to test on without labels, e.g. images/3.jpg" in notes(tmp_path)


# --- images without labels ---------------------------------------------------------------------

COPIES = ["masks/{}.png", "images_resized/{}.jpg", "images/thumbs/{}.jpg", "images/{}.png"]
COPIES += ["images/{}_mask.png", "{}_json/label_viz.png"]


@pytest.mark.parametrize("kind", [*OF_ONE_IMAGE, "csv"])
@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_labelled_images_are_not_negatives(tmp_path, kind, copy):
    truth = {f"images/{i}.jpg": make_boxes(i) for i in range(4)}
    if kind == "yolo" and copy == "images/{}.png":
        return  # which of the two has the labels is not said
    if kind == "csv":
        put_set(tmp_path, kind, "boxes", {i[7:]: b for i, b in truth.items()})
    for i, (image, boxes) in enumerate(truth.items()):
        put_image(tmp_path, image)
        put_image(tmp_path, copy.format(i))
        if kind != "csv":
            put_labels_of_one(tmp_path, kind, f"labels/{i}", f"{i}.jpg", boxes)
    put_image(tmp_path, "images/empty.jpg")
    assert found_in(tmp_path) == ordered({"all": {**truth, "images/empty.jpg": []}})
    text = "4: not labelled, with the name of a labelled image: perhaps masks or copies"
    assert text in notes(tmp_path)


@pytest.mark.parametrize("kind", OF_ONE_IMAGE)
def test_images_of_equal_names_are_negatives_in_another_split_or_among_labelled_ones(
    tmp_path, kind
):
    truth = {"train/a/1.png": make_boxes(1), "train/b/2.png": make_boxes(2)}
    truth.update({"val/1.png": [], "val/3.png": make_boxes(3), "train/b/1.png": []})
    truth["train/background/2.png"] = []
    for image, boxes in truth.items():
        put_image(tmp_path, image)
        if boxes:
            put_labels_of_one(tmp_path, kind, image[:-4], image.rpartition("/")[2], boxes)
    expected = {s: {i: b for i, b in truth.items() if i.startswith(s)} for s in ("train", "val")}
    assert found_in(tmp_path) == ordered(expected)


def test_masks_of_pascal_voc_are_not_images(tmp_path):
    for i in range(3):
        put_image(tmp_path, f"JPEGImages/{i}.jpg")
        put_labels_of_one(tmp_path, "voc", f"Annotations/{i}", f"{i}.jpg", make_boxes(i))
    for i in range(5):
        put_image(tmp_path, f"SegmentationClass/{i}.png")
        put_image(tmp_path, f"SegmentationObject/{i}.png")
    expected = {f"JPEGImages/{i}.jpg": make_boxes(i) for i in range(3)}
    assert found_in(tmp_path) == ordered({"all": expected})
    assert "10: masks of Pascal VOC, not images" in notes(tmp_path)
