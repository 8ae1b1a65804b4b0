"""Numbers whose meaning is not stated: YOLO's columns, and rows of tables that name no object."""

import pytest
from layouts import found_in, make_boxes, notes, ordered, put, put_csv, put_image, refused


def put_lines(root, lines):
    """Write a data set of YOLO, lines of one image after another."""
    put(root, "classes.txt", "disc")
    for i, some in enumerate(lines):
        put_image(root, f"images/{i}.png")
        put(root, f"labels/{i}.txt", "".join(f"0 {line}\n" for line in some))


def test_corners_of_objects_near_the_middle(tmp_path):
    put_lines(tmp_path, [[f"0.42 0.41 0.5{i} 0.55", "0.45 0.46 0.52 0.53"] for i in range(8)])
    assert "seems to contain corners, as all 16 lines" in refused(tmp_path)


def test_corners_on_both_sides_of_the_middle(tmp_path):
    lines = ["0.45 0.45 0.50 0.50", "0.53 0.53 0.60 0.60", "0.48 0.38 0.56 0.43"]
    put_lines(tmp_path, [[line.replace("0.5", f"0.5{i}") for line in lines] for i in range(4)])
    assert "seems to contain corners, as all 12 lines" in refused(tmp_path)


def test_boxes_that_could_be_corners_are_named(tmp_path):
    put_lines(tmp_path, [[f"0.5{i} 0.52 0.7{i} 0.64"] for i in range(8)])
    assert found_in(tmp_path)["all"]["images/0.png"] == [["disc", 9.6, 9.6, 54.4, 40.32]]
    assert "boxes are read as centre and size, but could be corners" in notes(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "0.5 0.5 1 1",  # the whole image
        "0.4{i} 0.5 0.8{i}2 1",  # up to its edges
        "0.3{i} 0.2{i} 0.1 0.1",
    ],
)
def test_boxes_that_are_not_corners(tmp_path, line):
    put_lines(tmp_path, [[line.format(i=i)] for i in range(8)])
    assert len(found_in(tmp_path)["all"]) == 8
    assert "corners" not in notes(tmp_path)


def test_few_large_objects_are_not_corners(tmp_path):
    put_lines(tmp_path, [[f"0.42 0.41 0.5{i} 0.55"] for i in range(7)])
    assert "corners" not in notes(tmp_path)


@pytest.mark.parametrize("more", ["0.91 1", "0 {i}", "1 7"])
def test_two_columns_behind_boxes(tmp_path, more):
    lines = [f"0.5 0.5 0.2 0.3{i} {more.format(i=i % 2)}" for i in range(6)]
    put_lines(tmp_path, [[line] for line in lines])
    assert "a box and two columns more in each line" in refused(tmp_path)


@pytest.mark.parametrize("last", ["0.9", "1", "0.{i}"])
def test_triangles(tmp_path, last):
    """Also those that all end at the edge of their image."""
    lines = [f"0.5 0.1 0.75 0.{i}5 0.75 {last.format(i=i)}" for i in range(6)]
    put_lines(tmp_path, [[line] for line in lines])
    assert [b[0][1] for b in found_in(tmp_path)["all"].values()] == [32] * 6


@pytest.mark.parametrize(
    "cells",
    [
        [0, 0, 0, 0, "background"],
        [-1, -1, -1, -1, "none"],
        [0, 0, 1, 1, "No finding"],
        [0, 0, 0, 0, ""],
        ["0.0", "0.0", "1.0", "1.0", "no_object"],
    ],
)
@pytest.mark.parametrize("header", ["", "filename,xmin,ymin,xmax,ymax,label"])
def test_rows_of_no_object(tmp_path, cells, header):
    boxes = make_boxes(0)
    for i in range(2):
        put_image(tmp_path, f"{i}.png")
    rows = [["0.png", *b[1:], b[0]] for b in boxes]
    put_csv(tmp_path, "a.csv", [*rows, ["1.png", *cells]], header=header)
    assert found_in(tmp_path) == ordered({"all": {"0.png": boxes, "1.png": []}})
    assert "rows of no object, by their class and their box, e.g. a.csv: 1.png" in notes(tmp_path)


@pytest.mark.parametrize("cells", [[0, 0, 0, 0, "disc"], [1, 2, 30, 40, "none"]])
def test_rows_of_objects(tmp_path, cells):
    """Without an area, or of a class that is called like none."""
    put_image(tmp_path, "0.png")
    put_csv(tmp_path, "a.csv", [["0.png", *cells], ["0.png", 1, 2, 9, 9, "star"]])
    assert [cells[4], *cells[:4]] in found_in(tmp_path)["all"]["0.png"]
    assert "rows of no object" not in notes(tmp_path)


def test_a_table_that_lacks_columns_is_named(tmp_path):
    put_image(tmp_path, "0.png")
    put_csv(tmp_path, "boxes.csv", [["0.png", 1, 2, 9, 9, "disc"]], "image,x,y,width,height,label")
    text = "boxes.csv has no column xmin, ymin, xmax, ymax, but image, x, y, width, height, label."
    assert refused(tmp_path).endswith(text)


@pytest.mark.parametrize("content", [{"frames": []}, [1], {"annotations": []}])
def test_a_json_file_of_another_form_is_named(tmp_path, content):
    put_image(tmp_path, "0.png")
    put(tmp_path, "boxes.json", content)
    assert "boxes.json has no images and annotations, as COCO's" in refused(tmp_path)
