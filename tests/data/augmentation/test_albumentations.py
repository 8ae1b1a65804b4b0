"""The augmentation of docs/integrations.md, with the real package."""

import importlib.util
import re

import numpy as np
import pytest
from conftest import ROOT

from tood.data.augmentation import AUGMENTATION_REGISTRY, Sample

BOXES = np.array([[8.0, 8, 40, 48], [50, 20, 60, 30], [0, 0, 4, 4]])


@pytest.fixture(scope="module")
def recipe():
    if importlib.util.find_spec("albumentations") is None:  # its import asks the network
        pytest.skip("an extra")
    page = (ROOT / "docs" / "integrations.md").read_text()
    (code,) = (x for x in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Weather" in x)
    names = {}
    exec(code, names)
    yield names
    AUGMENTATION_REGISTRY._obj_map.pop("Weather")


@pytest.fixture
def sample():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return Sample(image, BOXES, np.array([2, 0, 1]), np.array([False, True, False]))


def augment(weather, sample, seed):
    np.random.seed(seed)
    return weather(sample, None)


def test_albumentations(recipe, sample):
    """The same seed gives the same image, and each box keeps its class."""
    weather = AUGMENTATION_REGISTRY.get("Weather")(None)
    results = [augment(weather, sample, seed) for seed in range(20)]
    assert any((x.image != sample.image).any() for x in results)
    for seed, found in enumerate(results):
        again = augment(weather, sample, seed)
        for a, b in zip(found, again):
            np.testing.assert_array_equal(a, b)
        assert found.image.shape == sample.image.shape and found.image.dtype == np.uint8
        assert len(found.gt_boxes) == len(found.gt_classes) == len(found.is_crowd)
        assert all(crowd == (k == 0) for k, crowd in zip(found.gt_classes, found.is_crowd))


def test_its_boxes(recipe, sample):
    """A flip of the package against plain numbers; without objects as well."""
    weather = AUGMENTATION_REGISTRY.get("Weather")(None)
    A = recipe["A"]
    parameters = A.BboxParams("pascal_voc", label_fields=["index"])
    weather.compose = A.Compose([A.HorizontalFlip(p=1)], bbox_params=parameters)
    found = augment(weather, sample, 0)
    flipped = np.stack([96 - BOXES[:, 2], BOXES[:, 1], 96 - BOXES[:, 0], BOXES[:, 3]], axis=1)
    np.testing.assert_allclose(found.gt_boxes, flipped, atol=1e-4)
    np.testing.assert_array_equal(found.image, sample.image[:, ::-1])
    none = Sample(sample.image, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
    assert augment(weather, none, 0).gt_boxes.shape == (0, 4)
