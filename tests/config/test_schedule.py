"""Scaling of schedules: literal values."""

import pytest
import torch
from conftest import get_error, setup_run
from detectron2.solver import build_lr_scheduler

import train_net
from tood.config.schedule import Schedule, scale_schedule
from tood.engine.train import check as check_run
from tood.utils.errors import UserError

RELEASED = Schedule(
    ims_per_batch=16,
    base_lr=0.01,
    max_iter=87960,
    steps=(58640, 80630),
    warmup_iters=500,
    atss_iters=29320,
    checkpoint_period=5000,
    eval_period=0,
)


def test_one_gpu_in_the_place_of_eight():
    assert scale_schedule(RELEASED, images_per_step=2) == Schedule(
        ims_per_batch=2,
        base_lr=0.00125,
        max_iter=703680,
        steps=(469120, 645040),
        warmup_iters=4000,
        atss_iters=234560,
        checkpoint_period=40000,
        eval_period=0,
    )


def test_epochs_of_a_small_data_set():
    # 60 epochs of 205 images, 4 a step: 3,075 iterations, of which an eighth is 384.
    scaled = scale_schedule(RELEASED, images_per_step=4, epochs=60, num_images=205)
    assert scaled == Schedule(
        ims_per_batch=4,
        base_lr=0.0025,
        max_iter=3075,
        steps=(2050, 2819),
        warmup_iters=384,
        atss_iters=1025,
        checkpoint_period=175,
        eval_period=0,
    )


def test_epochs_alone_keep_the_learning_rate():
    scaled = scale_schedule(RELEASED, epochs=24, num_images=117280)
    assert scaled.base_lr == 0.01 and scaled.warmup_iters == 500
    assert scaled.max_iter == 2 * 87960 and scaled.steps == (2 * 58640, 2 * 80630)


def test_nothing_to_scale():
    assert scale_schedule(RELEASED) == RELEASED


@pytest.mark.parametrize("max_iter", [*range(1, 12), 100])
def test_schedules_of_a_few_steps_can_be_built(tiny_cfg, max_iter):
    scaled = scale_schedule(RELEASED, epochs=max_iter, num_images=16)
    assert scaled.max_iter == max_iter
    tiny_cfg.merge_from_list([x for item in scaled.options().items() for x in item])
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=scaled.base_lr)
    scheduler = build_lr_scheduler(tiny_cfg, optimizer)
    for _ in range(max_iter):
        optimizer.step()
        scheduler.step()


def test_training_of_a_step_or_none_at_all():
    assert scale_schedule(RELEASED, epochs=0.001, num_images=3).max_iter == 1
    none = RELEASED._replace(max_iter=0, steps=(), atss_iters=0)
    assert scale_schedule(none, images_per_step=4, epochs=2, num_images=10).max_iter == 5


@pytest.mark.parametrize("flag", ["images_per_step", "epochs"])
@pytest.mark.parametrize("value", [0, -2, float("nan")])
def test_numbers_that_cannot_be(flag, value):
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} is {value}; it must be more"):
        scale_schedule(RELEASED, **{flag: value}, num_images=10)


def test_to_and_from_a_config(tiny_cfg):
    tiny_cfg.merge_from_list([x for item in RELEASED.options().items() for x in item])
    assert Schedule.from_config(tiny_cfg) == RELEASED


def test_flags_scale_the_file_and_leave_what_was_typed(command):
    typed = ["TEST.EVAL_PERIOD", "2", "SOLVER.STEPS", "(3,)"]
    argv = command("--epochs", "5", "--images-per-step", "2")
    start = argv.index("SOLVER.MAX_ITER")
    del argv[start : start + 6]  # MAX_ITER, STEPS, IMS_PER_BATCH
    cfg = setup_run(train_net.parse_args([*argv, *typed]))
    # 5 epochs of 8 images; the file has a learning rate of 0.01 for 4.
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (20, 2, 0.005)
    assert (cfg.TEST.EVAL_PERIOD, cfg.SOLVER.STEPS) == (2, (3,))
    assert cfg.MODEL.TOOD.ATSS_ITERS == 2  # typed by the fixture
    assert cfg.SOLVER.CHECKPOINT_PERIOD == 10  # 400 of 800


def test_typed_images_a_step_count_as_the_flag(command):
    cfg = setup_run(train_net.parse_args(command("--epochs", "1")))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (2, 0.005)
    assert cfg.SOLVER.MAX_ITER == 4  # typed, and one pass over eight images


def test_a_flag_and_an_option_that_differ(command, entry):
    """The error names both, and nothing is written."""
    for flags, says in (
        (["--images-per-step", "4"], "--images-per-step 4 sets SOLVER.IMS_PER_BATCH to 4, but SO"),
        (["--epochs", "2"], "--epochs 2 sets SOLVER.MAX_ITER to 8, but SOLVER.MAX_ITER 4 is typed"),
    ):
        assert says in get_error(command(*flags))
    for flag, key in (("--train-data", "DATASETS.TRAIN"), ("--val-data", "DATASETS.TEST")):
        message = get_error(command(opts=[key, "('other',)"]))
        assert f"{flag} {entry} sets {key} to ('{entry}',), but {key} ('other',) is" in message
        check_run(train_net.parse_args(command(opts=[key, f"('{entry}',)"])))
