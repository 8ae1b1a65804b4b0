"""Arguments of the typed functions are checked by their annotations."""

import inspect
import os
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from conftest import SMALL, complaint

import tood
from tood.utils.arguments import PARSED

NAN = float("nan")
# Wrong values for each kind of annotation.
WRONG = {str: (5, b"x", "a\0b"), bool: (1, "no", None), int: (2.5, "2", True, NAN)}
WRONG[float] = ("x", NAN, float("inf"), False)
FUNCTIONS = [getattr(tood, name) for name in tood._APP if name != "UserError"]


@pytest.mark.parametrize("function", [*FUNCTIONS, tood.Predictor], ids=lambda x: x.__name__)
def test_each_parameter_is_checked(function, tmp_path, monkeypatch):
    """One sentence names it, before anything is done."""
    monkeypatch.chdir(tmp_path)
    parameters = inspect.signature(function).parameters
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    empty = inspect.Parameter.empty
    required = {k: "x" for k, x in parameters.items() if x.default is empty}
    required = {k: 0.5 if hints[k] is float else x for k, x in required.items()}
    tried = 0
    for name in parameters.keys() - {*PARSED}:
        wrong = WRONG.get(hints[name], ({"a": object()}, [None], 2 + 1j))
        if name in ("options", "opts"):
            wrong = (["KEY"], "KEY value", 5, [1, 2])
        for value in wrong:
            message = complaint(function, **{**required, name: value})
            assert message.startswith(f"{name} is ") and "; it must be " in message
            tried += 1
    assert tried >= len(parameters) - 2 and not os.listdir()


@pytest.mark.parametrize(
    "options, says",
    [
        ({"val_share": "x"}, "val_share is 'x'; it must be a finite number or None."),
        ({"images_per_step": 2.5}, "images_per_step is 2.5; it must be a whole number or None."),
        ({"epochs": NAN}, "epochs is nan; it must be a finite number or None."),
        ({"epochs": 0}, "--epochs is 0; it must be more than 0 and a number."),
        ({"epochs": -1}, "--epochs is -1; it must be more than 0 and a number."),
        ({"val_share": 2}, "The share of the validation part is 2; it must be between 0 and 1."),
        ({"val_data": [None]}, "val_data is [None]; it must be None or a path or a list, each a"),
        ({"options": {"SOLVER.MAX_ITER": 0.5}}, "SOLVER.MAX_ITER"),
        ({"data": []}, "data is []; it must be a path."),
        ({"data": ""}, "data is ''; name a path."),
    ],
)
def test_values_of_a_training(photo_folder, options, says):
    assert says in complaint(tood.train, **{"data": "photos", "dry_run": True, **options})


def test_values_that_are_accepted(photo_folder, tmp_path, monkeypatch):
    """Numbers of NumPy, a dict of options, paths below the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    typed = dict(zip(SMALL[::2], SMALL[1::2]))
    monkeypatch.setattr("tood.app.plan.memory.time_step", lambda *_: 0.5)  # it varies
    plans = {
        tood.train(
            Path("photos"), dry_run=True, images_per_step=2, epochs=epochs, options=options
        ).plan
        for epochs, options in ((2, SMALL), (np.float32(2), typed), (np.int64(2), tuple(SMALL)))
    }
    assert len(plans) == 1
    assert complaint(tood.check, []) == "data is []; name a path."
    message = complaint(tood.Predictor, "~/none.yaml", "~/none.pth")
    assert f"{tmp_path}/none.yaml does not exist" in message
