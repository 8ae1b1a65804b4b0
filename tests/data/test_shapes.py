import json
from pathlib import Path

import numpy as np
from PIL import Image

from tood.data.shapes import SHAPES, draw_scene, write_shapes_dataset


def test_scene_is_reproducible_and_its_boxes_hold_the_shapes():
    image, objects = draw_scene(np.random.default_rng(3), size=96)
    again, objects_again = draw_scene(np.random.default_rng(3), size=96)
    assert objects == objects_again
    assert np.array_equal(np.asarray(image), np.asarray(again))
    assert objects
    for o in objects:
        x1, y1, x2, y2 = o["box"]
        assert 0 <= x1 < x2 <= 96 and 0 <= y1 < y2 <= 96
        assert 0 <= o["class"] < len(SHAPES)
        # Shapes are brighter than the ground.
        inside = np.asarray(image)[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1]
        assert inside.max() > 140


def test_written_data_set(tmp_path):
    path = write_shapes_dataset(str(tmp_path), num_images=3, seed=1, size=64)
    coco = json.loads(Path(path).read_text())
    assert [c["name"] for c in coco["categories"]] == list(SHAPES)
    assert [i["file_name"] for i in coco["images"]] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert {a["image_id"] for a in coco["annotations"]} <= {1, 2, 3}
    for a in coco["annotations"]:
        assert a["area"] > 0 and a["iscrowd"] == 0
    assert Image.open(tmp_path / "images" / "00002.jpg").size == (64, 64)
    assert not list(tmp_path.glob("*.part"))


def test_a_crowd():
    image, objects = draw_scene(np.random.default_rng(0), size=512, crowded=True)
    assert 32 <= len(objects) <= 96 and image.size == (512, 512)
    sides = [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in (o["box"] for o in objects)]
    assert 5 < min(sides) and max(sides) <= 28
    assert {o["class"] for o in objects} == set(range(len(SHAPES)))
