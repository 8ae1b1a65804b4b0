"""The keys of the training loop, each declared once."""

import dataclasses

import pytest
from conftest import CONFIG, TINY

from tood.config import options
from tood.config.read import load_config, run_options
from tood.data.datasets import prepare_datasets
from tood.engine.trainer import Trainer
from tood.utils.errors import UserError


@dataclasses.dataclass
class MoreOptions(options.TrainingOptions):
    """The loop's options and a new one, as a newcomer would declare it."""

    noise: float = options.option(0.5, 0, 1)


def test_a_new_key_is_one_field(monkeypatch, entry, tmp_path):
    monkeypatch.setattr(options, "TrainingOptions", MoreOptions)
    assert load_config(CONFIG).MODEL.TOOD.NOISE == 0.5
    for value in ("2", "-0.1"):
        with pytest.raises(UserError, match="NOISE is .*; it must be at least 0 and at most 1"):
            load_config(CONFIG, ["MODEL.TOOD.NOISE", value])
    opts = [*TINY, "MODEL.TOOD.NOISE", "0.25", "MODEL.TOOD.EMA_DECAY", "0.9"]
    cfg = load_config(CONFIG, [*opts, "OUTPUT_DIR", str(tmp_path)], [entry], training=True)
    prepare_datasets(run_options(cfg).data, training=True)
    trainer = Trainer(cfg)
    assert trainer.options.training == MoreOptions(ema_decay=0.9, noise=0.25)
    assert trainer.averaged.decay == 0.9


def test_a_key_that_nothing_declares_is_unknown():
    with pytest.raises(UserError, match="MODEL.TOOD.NOISE"):
        load_config(CONFIG, ["MODEL.TOOD.NOISE", "0.25"])


def test_defaults_and_ranges_are_those_of_the_fields():
    tood = load_config(CONFIG).MODEL.TOOD
    assert (tood.VAL_LOSS, tood.EVAL_ALIGNMENT, tood.EMA_DECAY) == (False, False, 0.0)
    assert (tood.EARLY_STOP_PATIENCE, tood.MAX_DEAD_ITERS) == (0, 200)
    assert options.get_training_ranges() == {
        "MODEL.TOOD.EMA_DECAY": options.Range(0, 0.999999),
        "MODEL.TOOD.EARLY_STOP_PATIENCE": options.Range(0),
        "MODEL.TOOD.MAX_DEAD_ITERS": options.Range(0),
        "MODEL.TOOD.TEACHER_WEIGHT": options.Range(0),
    }
