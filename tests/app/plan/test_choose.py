"""Choices of ``tood train``: config, images of a step, image size."""

import math

import pytest
from conftest import CONFIG, SMALL, TINY
from detectron2.modeling import build_model

from tood.app import cli
from tood.app.plan import choose, memory, rules
from tood.app.plan.choose import (
    LARGE_IMAGES,
    SCRATCH,
    SMALL_IMAGES,
    choose_config,
    fit_step,
)
from tood.app.plan.data import read_training_data
from tood.app.plan.duration import estimate_duration
from tood.app.plan.memory import MiB, StepMemory, measure_step, time_precisions
from tood.app.plan.rules import LARGEST_SMALL, DataStatistics
from tood.app.plan.state import Wishes
from tood.app.plan.table import make_table
from tood.config.files import read_config_file
from tood.config.read import get_config
from tood.utils.errors import UserError
from tood.utils.tiles import WHOLE


@pytest.mark.slow
def test_the_model_depends_on_installed_packages(photo_folder, monkeypatch, capsys, without_steps):
    pytest.importorskip("timm", reason="an extra")
    cli.main(["train", "photos", "--dry-run", *TINY[-2:]])
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
    monkeypatch.setattr(memory, "time_step", lambda model, number, *_: number / 10)
    monkeypatch.setattr(choose, "compute_statistics", lambda *_: DataStatistics(8, 20, 0.03, 1.0))
    content, wishes = read_training_data(Wishes("photos")).train.content, Wishes(options=TINY)
    for megabytes, expected in ((20000, (544, 4)), (6000, (544, 2)), (2000, (400, 1))):
        free = megabytes * MiB
        step = fit_step(wishes, content, read_config_file(CONFIG))
        assert (step.size.shorter, step.num_images) == expected and step.memory.free == free
        assert step.seconds == {"float32": step.num_images / 10}
    assert asked == [544, 544, 544, 400]
    free = 200 * MiB
    with pytest.raises(UserError, match="does not suffice for a step with one image"):
        fit_step(wishes, content, read_config_file(CONFIG))
    # The user's number is taken, unless even the least that steps were seen to take is too much.
    free = 4000 * MiB
    step = fit_step(wishes._replace(images_per_step=3), content, read_config_file(CONFIG))
    assert (step.num_images, step.memory, step.seconds) == (3, None, {"float32": 0.3})
    with pytest.raises(UserError, match="4 images of 544 x 736 .* 6.21 GiB, and 3.91 GiB.*: 3 is"):
        fit_step(wishes._replace(images_per_step=4), content, read_config_file(CONFIG))


@pytest.mark.parametrize(
    "seconds, chosen, row",
    [
        ((1.0, 0.5), "bfloat16", "bfloat16: 0.5 s a step, 1 s in float32"),
        ((1.0, 0.8), "bfloat16", "bfloat16: 0.8 s a step, 1 s in float32"),
        ((1.0, 0.81), "float32", "float32: 1 s a step, 0.81 s in bfloat16"),
        ((1.0, 3.0), "float32", "float32: 1 s a step, 3 s in bfloat16"),
    ],
)
def test_the_quicker_precision_is_chosen_and_said(
    photo_folder, monkeypatch, capsys, seconds, chosen, row
):
    timed = dict(zip(("float32", "bfloat16"), seconds))
    monkeypatch.setattr(memory, "time_step", lambda model, *_: timed[model.precision_train])
    monkeypatch.setattr(choose, "list_precisions", lambda: tuple(timed))
    free = SMALL[: SMALL.index(choose.PRECISION)] + SMALL[SMALL.index(choose.PRECISION) + 2 :]
    wishes = Wishes("photos", options=free)
    found = read_training_data(wishes)
    plan = choose.make_plan(wishes, found.train.content)
    assert plan.options[choose.PRECISION] == plan.cfg.MODEL.TOOD.PRECISION_TRAIN == chosen
    val = [{"images": [{"width": 320, "height": 240}] * 10}]
    duration = estimate_duration(plan, val)
    assert duration.step_seconds == timed[chosen]
    # Evaluations are in float32.
    assert duration.evaluation_seconds == pytest.approx(10 * 0.35 * timed["float32"] / 4)
    assert f"precision        {row}\n" in make_table(found, plan, duration, "output")
    # Two evaluations of many images, four of few.
    half, quarter = (math.ceil(plan.cfg.SOLVER.MAX_ITER / n) for n in (2, 4))
    many = [{"images": val[0]["images"] * 10**5}]
    patient = wishes._replace(options=[*free, "MODEL.TOOD.EARLY_STOP_PATIENCE", "2"])
    for wanted, data, period in (
        (wishes, many, half),
        (wishes, val, quarter),
        (patient, many, quarter),
    ):
        cfg = choose.make_plan(wanted, found.train.content, data).cfg
        assert (cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD) == (period, quarter)
    # A typed one is neither compared nor overridden; a config of the user's is taken as it is.
    typed = choose.make_plan(wishes._replace(options=SMALL), found.train.content)
    assert typed.options[choose.PRECISION] == "float32" and len(typed.seconds) == 1
    amp = [*free, "SOLVER.AMP.ENABLED", "False"]  # Detectron2's key
    off = choose.make_plan(wishes._replace(options=amp), found.train.content)
    assert off.cfg.MODEL.TOOD.PRECISION_TRAIN == "float32" and len(off.seconds) == 1
    named = choose.make_plan(wishes._replace(config=CONFIG), found.train.content)
    assert choose.PRECISION not in named.options and not named.seconds


def test_precisions_are_timed_in_the_model(tiny_cfg, monkeypatch):
    model, used = build_model(tiny_cfg), []
    steps = iter((3.0, 1.0, 2.0, 5.0, 4.0, 6.0, 2.5))
    clock = [0.0]

    def take_step(model, *_):
        used.append(model.precision_train)
        clock[0] += next(steps)

    monkeypatch.setattr(memory, "_take_step", take_step)
    monkeypatch.setattr(memory.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(memory, "TIMED_SECONDS", 10.0)
    seconds = time_precisions(model, ("float32", "bfloat16"), 4, 64, 64)
    # The quickest of three; or of as many as the time allows.
    assert seconds == {"float32": 1.0, "bfloat16": 4.0}
    assert used == 3 * ["float32"] + 3 * ["bfloat16"] and model.precision_train == "float32"
    monkeypatch.setattr(memory, "TIMED_SECONDS", 2.0)
    assert memory.time_step(model, 800, 640, 640) == 2000.0  # one image is timed


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
