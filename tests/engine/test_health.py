"""Trainings that learn nothing say so and end; how every training closes; checkpoints kept."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import get_error
from detectron2.utils.events import EventStorage

import train_net
from tood.config.check import known_keys
from tood.engine import health
from tood.engine.closing import closing_lines, make_report_hint
from tood.engine.health import LearningCheck, diagnose
from tood.engine.watch import median_box
from tood.utils.errors import UserError

SOUND = {
    "objects_without_positive": 0.1,
    "mean_iou": 0.2,
    "median_box": 0.3,
    "loss_box_reg": 1.5,
}


@pytest.mark.parametrize(
    "change, warmup, name, says",
    [
        ({}, True, None, ""),
        ({"median_box": 3.4e7}, True, "huge boxes", "3.4e+07 times as long as the image"),
        ({"median_box": 11.0}, False, "huge boxes", "lower the learning rate"),
        ({"median_box": 9.0}, False, None, ""),
        ({"objects_without_positive": 0.96}, False, "no positives", "raise MODEL.TOOD.ATSS_ITERS"),
        ({"objects_without_positive": 1.0}, True, "no positives", "larger images"),
        ({"objects_without_positive": 0.95}, False, None, ""),
        ({"mean_iou": 0.04}, True, "no overlap", "mean IoU of 0.04"),
        ({"mean_iou": 0.06}, True, None, ""),
        ({"loss_box_reg": 2.0}, True, "ceiling", "loss_box_reg is 2.000"),
        ({"loss_box_reg": 1.97}, True, None, ""),
        ({"loss_box_reg": 2.5}, True, None, ""),  # boxes apart have a gradient
    ],
)
def test_symptoms(change, warmup, name, says):
    symptom = diagnose({**SOUND, **change}, box_reg_ceiling=2.0, warmup=warmup)
    assert (symptom and symptom.name) == name
    if name:
        assert says in str(symptom) and "\n" not in str(symptom)


@pytest.mark.parametrize("ceiling, found", [(2.0, True), (0.7, False), (None, False), (0.0, False)])
def test_the_loss_states_its_ceiling(ceiling, found):
    symptom = diagnose({**SOUND, "loss_box_reg": 2.0}, box_reg_ceiling=ceiling)
    assert bool(symptom) == found
    assert diagnose({**SOUND, "loss_box_reg": 0.0}, box_reg_ceiling=ceiling) is None


def test_missing_measurements_are_not_symptoms():
    assert diagnose({}) is None
    assert diagnose({"objects_without_positive": 0.2}) is None  # no positives, no IoU


def test_the_keys_of_all_remedies_are_those_of_the_config(tiny_cfg):
    run = Run()
    with pytest.raises(UserError) as error:
        run.check._stop(40, health.Symptom("", "", ""))
    text = f"{health.TOO_FAST} {health.TOO_SMALL} {health.TOO_EARLY} {error.value}"
    keys = set(re.findall(r"\b[A-Z]+(?:\.[A-Z_]+)+", text))
    assert keys == {
        *("SOLVER.BASE_LR", "SOLVER.CLIP_GRADIENTS.ENABLED", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"),
        *("INPUT.TILES.SIZE", "MODEL.TOOD.ATSS_ITERS", "MODEL.TOOD.MAX_DEAD_ITERS"),
    }
    assert keys <= set(known_keys(tiny_cfg))
    # Nor others, as those of Detectron2's configs in Python.
    assert not re.search(r"\b[a-z]+\.[a-z_]+(?<!\.pth)\b", text.replace("model_0000040.pth", ""))


def test_median_box():
    boxes = torch.tensor([[[0.0, 0, 10, 4], [0, 0, 5, 30]], [[0, 0, 50, 4], [-9, 0, 1, 2]]])
    assert median_box(boxes, (40, 20)) == pytest.approx(10 / 40)  # of 10, 10, 30, 50


class Run:
    """Steps of a training with given metrics, 20 iterations apart."""

    def __init__(self, max_dead_iters=60, max_iter=1000):
        self.saved = []
        self.check = LearningCheck(
            self.saved.append,
            max_dead_iters=max_dead_iters,
            max_iter=max_iter,
            box_reg_ceiling=2.0,
            is_warmup=lambda iteration: iteration < 100,
        )
        self.check.trainer = SimpleNamespace(iter=-1)

    def look(self, **metrics):
        self.check.trainer.iter += 20
        with EventStorage(self.check.trainer.iter) as storage:
            for name, value in metrics.items():
                prefix = "" if name.startswith("loss") else "assignment/"
                storage.put_scalar(prefix + name, value)
            self.check.after_step()


def test_a_dead_training_is_warned_of_and_ended(caplog):
    run = Run()
    run.look(**SOUND)
    run.look(**{**SOUND, "mean_iou": 0.01})
    assert not caplog.records
    run.look(**{**SOUND, "mean_iou": 0.01})
    assert "Nothing is learned at iteration 59: the boxes of the positives" in caplog.text
    run.look()  # a batch without objects says nothing
    with pytest.raises(UserError, match="stopped at iteration 99, .* last 60 iterations") as error:
        run.look(**{**SOUND, "median_box": 1e9})
    assert run.saved == ["model_0000099"] and "MAX_DEAD_ITERS 0" in str(error.value)


def test_a_training_that_recovers_goes_on(caplog):
    caplog.set_level(logging.INFO, "tood")
    run = Run()
    for _ in range(3):
        for _ in range(2):
            run.look(**{**SOUND, "mean_iou": 0.01})
        run.look(**SOUND)
    assert caplog.text.count("Nothing is learned") == 3 and caplog.text.count("learns again") == 3
    assert run.saved == []


@pytest.mark.parametrize("limit, max_iter, looks", [(0, 1000, 30), (200, 1000, 10), (200, 400, 5)])
def test_how_long_a_dead_training_goes_on(limit, max_iter, looks):
    run = Run(limit, max_iter)
    for _ in range(looks - 1):
        run.look(**{**SOUND, "median_box": 1e9})
    if limit:
        with pytest.raises(UserError):
            run.look(**{**SOUND, "median_box": 1e9})


def test_the_command_ends_a_dead_training(command, tmp_path, monkeypatch):
    monkeypatch.setattr(health, "SMALLEST_IOU", 1.0)
    for module in ("health", "watch"):
        monkeypatch.setattr(f"tood.engine.{module}.STATISTICS_PERIOD", 2)
    opts = ["MODEL.TOOD.MAX_DEAD_ITERS", "4", "SOLVER.MAX_ITER", "40", "SOLVER.STEPS", "(9,)"]
    message = get_error(command(opts=opts))
    assert "stopped at iteration 3, because nothing was learned in the last 4 iterations" in message
    out = tmp_path / "out"
    assert torch.load(out / "model_0000003.pth", weights_only=False)["iteration"] == 3
    assert not (out / "model_final.pth").exists()
    assert "Traceback" not in (out / "log.txt").read_text()


@pytest.mark.slow
def test_checkpoints_that_are_kept(command, tmp_path):
    opts = ["SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINT_KEEP", "2"]

    def kept():
        return sorted(path.name for path in (tmp_path / "out").glob("*.pth"))

    train_net.cli(command(opts=[*opts, "TEST.EVAL_PERIOD", "2"]))
    assert kept() == ["model_0000002.pth", "model_0000003.pth", "model_best.pth", "model_final.pth"]
    longer = ["SOLVER.MAX_ITER", "6", "MODEL.TOOD.ATSS_ITERS", "2"]
    train_net.cli(command("--resume", opts=[*opts, *longer]))
    assert kept() == ["model_0000004.pth", "model_0000005.pth", "model_best.pth", "model_final.pth"]


def best_weights(AP, iteration=7):
    return SimpleNamespace(path="my runs/model_best.pth", AP=AP, iteration=iteration)


def test_closing_lines():
    result, look, following = closing_lines("my runs", best_weights(48.234), 1)
    assert result == "Best weights: my runs/model_best.pth, AP 48.23 after iteration 7."
    assert "tensorboard --logdir 'my runs'" in look
    assert make_report_hint("my runs").endswith("tood report 'my runs'")
    assert following.endswith("tood predict 'my runs/model_best.pth' IMAGES")


@pytest.mark.parametrize(
    "AP, num_test_sets, says",
    [
        (None, 0, "nothing was evaluated, because there are no validation data (--val-data)."),
        (None, 1, "Final weights: my runs/model_final.pth; nothing was evaluated."),
        (3.0, 2, "Of 2 data sets, the first counts."),
        (0.0, 1, "the model finds nothing yet"),
    ],
)
def test_results_that_need_a_word(AP, num_test_sets, says):
    assert says in closing_lines("my runs", best_weights(AP), num_test_sets)[0]


def test_a_training_without_validation_data_says_so(command, tmp_path):
    argv = command()
    at = argv.index("--val-data")
    train_net.cli([*argv[:at], *argv[at + 2 :]])
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("No validation data (--val-data): nothing will be evaluated.") == 1
    assert "because there are no validation data" in log and "model_final.pth" in log
    assert "tood report" not in log
