"""Trained models by a folder, a file or a name."""

import os
from typing import NamedTuple

from tood.utils.errors import UserError
from tood.utils.files import last_checkpoint_in
from tood.utils.suggest import suggest, suggest_path

# In order of preference.
WEIGHTS = ("model_best.pth", "model_final.pth")
RELEASED = "tood://"
EXPORTED = (".onnx", ".ts", ".pt2")


class Files(NamedTuple):
    """The files of a trained model."""

    config_file: str
    weights: str
    folder: str  # for output


def find_model(model: str, config: str = "") -> Files:
    """
    Args:
        model: an output folder, a checkpoint, or the name of a released model.
        config: a config file, or a name of the project's; default: the config.yaml beside the
            checkpoint.

    Raises:
        UserError: if there is no checkpoint, or no config beside it.
    """
    model = os.path.expanduser(model)
    if os.path.isfile(model) and model.lower().endswith(EXPORTED):
        raise UserError(
            f"{model} is an exported file, not a checkpoint; name the output folder of its "
            "training (demo/detect_onnx.py detects with ONNX files)."
        )
    if config:
        from tood.config.zoo import find_config_file  # needs PyTorch

        config = find_config_file(os.path.expanduser(config))
    if os.path.isdir(model):
        weights = _find_weights(model)
    elif os.path.isfile(model):
        weights = model
    else:
        return _find_released(model, config)
    folder = os.path.dirname(weights) or "."
    config_file = config or os.path.join(folder, "config.yaml")
    if not config and not os.path.exists(config_file):
        if os.path.exists(f"{config_file}.pkl"):  # by Detectron2's LazyConfig.save
            from tood.config.files import make_lazy_error  # needs PyTorch

            raise make_lazy_error(f"{config_file}.pkl")
        raise UserError(
            f"There is no config.yaml beside {weights}; name its config with --config-file."
        )
    return Files(config_file, weights, folder)


def find_moved(name: str, folder: str) -> str:
    """Return the path of a data set that ``tood train`` has written to an output folder, where that
    is now; other names as they are.
    """
    here = os.path.join(os.path.abspath(folder), "data", os.path.basename(name))
    is_own = os.path.basename(os.path.dirname(name)) == "data"
    return here if is_own and os.path.isfile(here) else name


def _find_weights(folder: str) -> str:
    for name in (*WEIGHTS, last_checkpoint_in(folder)):
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    raise UserError(f"{folder} contains no checkpoint; name the output folder of a training.")


def _find_released(model: str, config: str) -> Files:
    """Return a released model by its name; its weights are fetched when they are used."""
    if model and os.sep not in model and not model.endswith(".pth"):
        from tood.config.zoo import RELEASED_MODELS, get_config_file  # needs PyTorch

        if model in RELEASED_MODELS:
            folder = os.path.join("output", model)
            return Files(config or get_config_file(model), f"{RELEASED}{model}", folder)
    hint = suggest_path(model) or _suggest_released(model) or "; name another one."
    raise UserError(f"No checkpoint or output folder at {model}{hint}")


def _suggest_released(model: str) -> str:
    from tood.config.zoo import RELEASED_MODELS  # needs PyTorch

    return suggest(model, RELEASED_MODELS)
