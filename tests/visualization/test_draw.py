"""Drawings of boxes, training images and alignment."""

import time

import numpy as np
import pytest
import torch
from conftest import CONFIG, SMALL
from detectron2.structures import Boxes, Instances
from matplotlib.font_manager import findfont, get_font
from PIL import Image

import tood
from tood.app.check import read_dataset
from tood.app.view import draw_training_images
from tood.evaluation.alignment_evaluator import DenseOutputs, ObjectMetrics
from tood.utils.errors import UserError
from tood.utils.files import write_image
from tood.visualization import draw
from tood.visualization.alignment import _paint, draw_histograms, draw_scatter, location_values
from tood.visualization.draw import (
    add_heading,
    class_colors,
    draw_boxes,
    draw_points,
    draw_training,
    image_grid,
)
from tood.visualization.labels import find_font, printable


def test_boxes_are_drawn_in_the_colour_of_their_class():
    image = np.full((60, 80, 3), 128, np.uint8)
    drawing = draw_boxes(image, [[20, 20, 60, 50]], [1], ["a", "b"], [0.9], scale=2.0)
    assert drawing.shape == (120, 160, 3) and drawing.dtype == np.uint8
    side = drawing[70:90, 36:45].reshape(-1, 3).astype(float)  # around x = 20, twice as large
    color = 255 * np.array(class_colors(2)[1])
    # Half-transparent: half way from the ground, which is 200 away, to the colour.
    assert np.abs(side - color).sum(axis=1).min() < 110
    assert np.abs(drawing[110:, :20].astype(int) - 128).max() <= 2  # nothing elsewhere


def test_nothing_to_draw():
    image = np.full((20, 30, 3), 128, np.uint8)
    assert np.abs(draw_boxes(image, [], [], ["a"], []).astype(int) - 128).max() <= 2


def test_heading():
    drawing = np.zeros((10, 60, 3), np.uint8)
    headed = add_heading(drawing, "text", height=20)
    assert headed.shape == (30, 60, 3)
    assert (headed[20:] == 0).all()
    assert headed[:20].min() < 50 and (headed[:20] == 255).mean() > 0.7  # black on white


def test_colors_differ():
    colors = np.array(class_colors(20))
    distances = np.abs(colors[:, None] - colors[None]).sum(-1) + np.eye(20)
    assert distances.min() > 0.05


def test_stacked_images():
    a, b = np.zeros((10, 20, 3), np.uint8), np.ones((5, 10, 3), np.uint8)
    sheet = image_grid([[a, b], [b]], gap=4)
    assert sheet.shape == (10 + 4 + 5, 20 + 4 + 10, 3)
    assert (sheet[:10, :20] == 0).all()
    assert (sheet[:5, 24:34] == 1).all()
    assert (sheet[14:, :10] == 1).all()
    assert (sheet[:10, 20:24] == 255).all()


def test_training_images(entry, tmp_path):
    dataset = read_dataset(entry)
    drawing = tmp_path / "new" / "data.png"
    options = [*SMALL, "INPUT.RANDOM_FLIP", "none", "INPUT.CROP.ENABLED", "False"]
    draw_training_images([dataset], str(drawing), config=CONFIG, options=options)
    # Three rows of four drawings of 64 x 64 below a heading.
    sheet = np.asarray(Image.open(drawing))
    assert sheet.shape[1::-1] == (4 * 64 + 3 * 4, 3 * (64 + 22) + 2 * 4)
    first, second = sheet[22:86, :64], sheet[22:86, 68:132]
    assert first.std() > 10 and second.std() > 10 and (first != second).any()
    for name, says in (("d.xyz", "end in .png or .jpg"), (f"{drawing}/d.png", "cannot be written")):
        with pytest.raises(UserError, match=says):
            draw_training_images([dataset], str(tmp_path / name), options=options)
    with pytest.raises(UserError, match="data.png already exists"):
        draw_training_images([dataset], str(drawing), options=options)


def test_grids_that_cannot_be(trained, tmp_path):
    with pytest.raises(UserError, match="--columns is 0"):
        tood.draw(str(trained), output=str(tmp_path / "b.png"), columns=0)


@pytest.mark.parametrize("box", [[150, 60, 198, 99], [0, 90, 30, 100], [0, 0, 30, 30]])
def test_labels_stay_inside(box):
    image = np.full((100, 200, 3), 200, np.uint8)
    drawn = draw_boxes(image, [box], [0], ["a very long name"], [0.93], scale=2.0)
    dark = (drawn.sum(axis=2) < 300).any(axis=0)
    assert 60 < dark.sum() and not dark[[0, -1]].any()  # some ground of a label, none at the border
    rows = (drawn.sum(axis=2) < 300).any(axis=1)
    assert 8 < rows.sum() and not rows[[0, -1]].any()


def test_labels_are_taken_as_they_are(recwarn):
    image = np.full((60, 200, 3), 200, np.uint8)
    names = ["$a_$", "$\\frac$", "a\x1b[31m\n", "圆盘" * 3, "\ud800"]
    for label in range(len(names)):
        drawn = draw_boxes(image, [[20, 20, 100, 50]], [label], names)
        assert (drawn != 200).any()
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    assert printable("a\x1b[31m\n") == r"a\x1b[31m\n" and printable("é圆 $") == "é圆 $"


def test_a_font_that_has_the_characters_is_found():
    assert find_font(frozenset("éa_$")) is None  # matplotlib's own
    name = find_font(frozenset("a\u20e4"))  # of a font that matplotlib brings along
    assert 0x20E4 in get_font(findfont(name)).get_charmap()


def test_characters_of_no_font_are_reported_once(caplog):
    image = np.full((60, 200, 3), 200, np.uint8)
    with caplog.at_level("WARNING"):
        for _ in range(3):
            draw_boxes(image, [[20, 20, 100, 50]], [0], ["\U000e0f00\U0001e1f0"])
    assert caplog.text.count("No installed font has all characters") <= 1


def test_a_drawing_of_many_pixels_is_bounded(monkeypatch, caplog):
    monkeypatch.setattr(draw, "MAX_PIXELS", 10_000)
    image = np.full((400, 600, 3), 200, np.uint8)
    with caplog.at_level("INFO"):
        drawn = draw_boxes(image, [[300, 200, 600, 400]], [0], ["a"])
    assert drawn.shape == (81, 122, 3) and "Drawn at 122 x 81" in caplog.text
    assert np.abs(drawn[41:, 62:].astype(int) - 200).max() > 20  # the box, at its place
    assert np.abs(drawn[:30, :50].astype(int) - 200).max() <= 2


def test_images_replace_links(tmp_path):
    original = tmp_path / "original.png"
    Image.new("RGB", (3, 3)).save(original)
    before = original.read_bytes()
    (tmp_path / "link.png").symlink_to(original)
    write_image(np.full((5, 5, 3), 7, np.uint8), str(tmp_path / "link.png"))
    assert original.read_bytes() == before and not (tmp_path / "link.png").is_symlink()
    assert Image.open(tmp_path / "link.png").size == (5, 5)


def make_dense(values, points, strides):
    count = len(points)
    scores = torch.tensor(values).reshape(1, count, 1)
    centers = torch.tensor(points)
    boxes = torch.cat([centers - 5, centers + 5], dim=1)[None]
    return DenseOutputs(scores, boxes, centers, torch.tensor(strides))


def test_a_location_counts_for_the_smallest_object():
    dense = make_dense([0.9, 0.4, 0.7], [[10.0, 10], [30.0, 10], [90.0, 90]], [8, 8, 8])
    gt_boxes = torch.tensor([[0.0, 0, 60, 40], [20.0, 0, 40, 20]])
    matched, scores, ious = location_values(dense, 0, gt_boxes, torch.zeros(2).long())
    assert matched.tolist() == [0, 1, -1]
    assert scores.tolist() == pytest.approx([0.9, 0.4, 0.0])
    assert ious.tolist() == pytest.approx([100 / 2400, 100 / 400, 0.0])


def test_maps_stay_in_their_objects():
    """A coarse location of the larger object does not paint the smaller one."""
    dense = make_dense([0.9, 0.4], [[12.0, 20], [30.0, 10]], [64, 8])
    gt_boxes = torch.tensor([[0.0, 0, 60, 40], [20.0, 0, 40, 20]])
    matched, scores, _ = location_values(dense, 0, gt_boxes, torch.zeros(2).long())
    heat = _paint(scores, matched, gt_boxes, dense, (50, 80))
    assert heat[30, 30] == heat[10, 10] == pytest.approx(0.9)
    assert heat[10, 30] == pytest.approx(0.4) and heat[2, 22] == 0
    assert (heat[40:] == 0).all() and (heat[:, 60:] == 0).all()


def test_drawings_of_nothing():
    nothing = ObjectMetrics.cat([])
    assert draw_scatter({"a": np.zeros((0, 2))}).ndim == 3
    assert draw_histograms({"a": nothing}).ndim == 3


def test_drawing_of_a_training_image():
    image = np.full((50, 100, 3), 90, dtype=np.uint8)
    gt = Instances((50, 100), gt_boxes=Boxes(torch.tensor([[10.0, 10, 40, 40]])))
    gt.gt_classes = torch.tensor([1])
    detections = Instances((50, 100), pred_boxes=Boxes(torch.tensor([[60.0, 5, 90, 45]])))
    detections.scores, detections.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    points = torch.tensor([[25.0, 25.0], [70.0, 25.0]])
    drawing = draw_training(
        image, gt, points, torch.tensor([True, False]), torch.ones(2), detections, ["a", "b"]
    )
    # Eight times as large, twice side by side under a heading.
    assert drawing.shape == (400 + 22, 2 * 800 + 4, 3)
    assert (drawing[22 + 200, 200] != 90).any()  # the dot
    assert (drawing[22 + 200, 560] == 90).all()  # no dot without a positive
    left, right = drawing[22:, :800], drawing[22:, 804:]
    assert (left[80:320, 78:84] != 90).any() and (right[80:320, 78:84] == 90).all()
    assert (right[60:340, 478:484] != 90).any() and (left[60:340, 478:484] == 90).all()


def test_larger_dots_for_larger_weights():
    black = np.zeros((40, 40, 3), dtype=np.uint8)
    areas = [
        (draw_points(black, torch.tensor([[20.0, 20.0]]), torch.tensor([w])) > 0).any(2).sum()
        for w in (0.0, 0.5, 1.0)
    ]
    assert 0 < areas[0] < areas[1] < areas[2]
    assert not draw_points(black, torch.zeros(0, 2), torch.zeros(0)).any()


@pytest.mark.parametrize("with_scores", [True, False])
def test_a_drawing_of_many_boxes_is_bounded(with_scores):
    """The best or the largest of 20,000 boxes are drawn, in seconds, and a line says so."""
    image, number = np.zeros((300, 400, 3), np.uint8), 20_000
    boxes = np.tile([[200.0, 200, 201, 201]], (number, 1))
    boxes[123] = [20, 30, 100, 120]
    scores = np.full(number, 0.1)
    scores[123] = 0.9
    start = time.perf_counter()
    scores = scores.tolist() if with_scores else None
    drawn = draw_boxes(image, boxes, [0] * number, ["x"], scores)
    assert time.perf_counter() - start < 30  # it took minutes
    assert drawn.shape == image.shape
    assert drawn[75, 18:23].max() > 100  # the left side of the box
    few = draw_boxes(image, boxes[120:130], [0] * 10, ["x"], scores and scores[120:130])
    assert drawn[-8:, :150].mean() > 100 > few[-8:, :150].mean()


def test_the_best_boxes_are_drawn(monkeypatch):
    lines, drawn = [], []
    monkeypatch.setattr(draw, "_write_line", lambda image, text: lines.append(text) or image)
    overlay = draw.Visualizer.overlay_instances

    def record(self, **values):
        drawn.append(values["labels"])
        return overlay(self, **values)

    monkeypatch.setattr(draw.Visualizer, "overlay_instances", record)
    boxes = [[i, i, i + 5 + i, i + 5] for i in range(6)]
    scores = [0.5, 0.1, float("nan"), 0.9, 0.2, 0.3]
    image, names = np.zeros((60, 60, 3), np.uint8), list("abcdef")
    draw_boxes(image, boxes, range(6), names, scores, max_boxes=3)
    draw_boxes(image, boxes, range(6), names, max_boxes=2)
    draw_boxes(image, boxes, range(6), names, max_boxes=6)
    assert drawn == [["a 0.50", "c", "d 0.90"], ["e", "f"], list("abcdef")]
    assert lines == ["3 of 6 boxes: the best", "2 of 6 boxes: the largest"]
