"""Models of the project by name, with their weights."""

from typing import Optional

import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from tood.checkpoint.checkpointer import Checkpointer
from tood.config.read import get_config
from tood.config.zoo import RELEASED_MODELS, ReleasedModel, get_config_file
from tood.utils.errors import UserError
from tood.utils.tensors import read_tensors

__all__ = ["RELEASED_MODELS", "ReleasedModel", "get_config", "get_config_file", "get_model"]


def get_model(
    name: str,
    checkpoint: Optional[str] = None,
    device: Optional[str] = None,
    *,
    pretrained: bool = False,
):
    """A model by its name, in evaluation mode.

    Args:
        name: see :func:`get_config_file`; of a yacs config.
        checkpoint: file in this project's names. One of ``tools/convert_checkpoint.py`` says
            itself where its model differs from the config, for example in its classes. Without
            one, the weights are random.
        device: default: "cuda", or "cpu" without a GPU.
        pretrained: use the released weights, fetched if necessary.

    Raises:
        UserError: for an unknown name, a checkpoint that is not of this model, and released
            weights that are not available.
    """
    if pretrained:
        checkpoint = PathManager.get_local_path(f"tood://{name}")
    options = [] if checkpoint is None else read_tensors(checkpoint).get("options", [])
    if not isinstance(options, list) or not all(isinstance(key, str) for key in options[::2]):
        raise UserError(f"The options in {checkpoint} are not keys and values; convert it again.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(get_config(name, [*options, "MODEL.DEVICE", device]))
    if checkpoint is not None:
        Checkpointer(model, complete=True).load(checkpoint)
    return model.eval()
