"""Hashes of weights and data: equal for what is equal, and different for anything else."""

import copy
import json

import pytest
import torch
from conftest import complaint
from torch import nn

from tood.checkpoint.identity import (
    check_same_data,
    hash_data,
    hash_weights,
    make_identity,
    write_identity,
)

CONTENT = {
    "images": [
        {"id": 1, "file_name": "x/a.jpg", "width": 64, "height": 48},
        {"id": 2, "file_name": "b.jpg", "width": 64, "height": 48},
    ],
    "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "star"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"image_id": 2, "category_id": 1, "bbox": [5, 2, 3, 4], "area": 12, "iscrowd": 0},
    ],
}


def test_weights_are_what_is_loaded():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = model.state_dict()
    hashed = hash_weights(state)
    assert len(hashed) == 64
    assert hash_weights(dict(reversed(state.items()))) == hashed
    # The number of batches is a counter; other precisions are converted when they are loaded.
    state["1.num_batches_tracked"] = torch.tensor(7)
    assert (
        hash_weights(state)
        == hash_weights(
            {k: x.double() for k, x in model.state_dict().items() if x.is_floating_point()}
        )
        == hashed
    )
    for name, x in model.state_dict().items():
        if x.is_floating_point():
            changed = {**state, name: x + 1e-6 * (x.abs() + 1)}
            assert hash_weights(changed) != hashed, name
            assert hash_weights({**state, name: x[None]}) != hashed, name
            assert hash_weights({k: v for k, v in state.items() if k != name}) != hashed, name
    assert hash_weights({**state, "2.scale": torch.tensor(1.0)}) != hashed


def change(path, value):
    content = copy.deepcopy(CONTENT)
    record = content
    for key in path[:-1]:
        record = record[key]
    record[path[-1]] = value
    return content


def test_data_are_what_is_evaluated():
    hashed = hash_data(CONTENT)
    same = [
        change(("images", 0, "file_name"), "elsewhere\\a.jpg"),
        change(("images",), CONTENT["images"][::-1]),
        change(("annotations",), CONTENT["annotations"][::-1]),
        change(("annotations", 0, "bbox"), [1.0, 2.0, 3.0, 4.0]),
        change(("annotations", 0, "id"), 12),
        change(("categories", 1, "name"), "no object has it"),
        {**CONTENT, "annotations": [*CONTENT["annotations"], {"bbox": [0, 0, 0, 5]}]},
    ]
    assert {hash_data(x) for x in same} == {hashed}
    others = [
        change(("images", 0, "file_name"), "c.jpg"),
        change(("images", 0, "width"), 65),
        change(("images", 0, "id"), 3),
        change(("images",), CONTENT["images"][:1]),
        change(("annotations", 0, "bbox"), [1, 2, 3, 4.5]),
        change(("annotations", 0, "area"), 11),
        change(("annotations", 0, "iscrowd"), 1),
        change(("annotations", 0, "category_id"), 2),
        change(("annotations",), CONTENT["annotations"][:1]),
        change(("categories", 0, "name"), "disk"),
    ]
    assert len({hashed, *map(hash_data, others)}) == 1 + len(others)
    assert hash_data(CONTENT, others[0]) != hash_data(others[0], CONTENT) != hashed


def test_detections_of_other_data_are_refused(tmp_path):
    results = str(tmp_path / "found.json")
    (note,) = check_same_data(results, CONTENT)
    assert note.startswith(f"Not checked: that the detections of {results} are of these data")
    write_identity(results, weights="w", data=hash_data(CONTENT))
    written = json.loads((tmp_path / "found.identity.json").read_text())
    assert written["weights"] == "w" and written == make_identity(**written)
    assert check_same_data(results, CONTENT) == []
    other = change(("annotations", 0, "iscrowd"), 1)
    assert "found.json contains detections of other data" in complaint(
        check_same_data, results, other
    )


@pytest.mark.parametrize("text", ["", "[1]", "null", '{"data": ', "\udcff"])
def test_a_damaged_identity_is_named(tmp_path, text):
    (tmp_path / "found.identity.json").write_bytes(text.encode(errors="surrogateescape"))
    sentence = complaint(check_same_data, str(tmp_path / "found.json"), CONTENT)
    assert "found.identity.json cannot be read: " in sentence and "remove it" in sentence
