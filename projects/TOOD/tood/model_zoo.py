"""
The released models by name: their configs, and models with their weights.

The published AP is the authors' or MMDetection's, on COCO val2017.
"""

from pathlib import Path
from typing import NamedTuple, Optional, Union

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig

from .checkpoint import Checkpointer
from .config import add_tood_config
from .errors import UserError
from .files import read_tensors

__all__ = ["RELEASED_MODELS", "ReleasedModel", "get_config", "get_config_file", "get_model"]


class ReleasedModel(NamedTuple):
    """A checkpoint that others have published."""

    checkpoint: str  # what its file is called, before the date
    ap_authors: Optional[float]
    ap_mmdet: Optional[float]


# Config -> released model.
RELEASED_MODELS = {
    "tood_R50_FPN_1x": ReleasedModel("tood_r50_fpn_1x_coco", 42.5, 42.4),
    "tood_R50_FPN_anchor_based_1x": ReleasedModel("tood_r50_fpn_anchor_based_1x_coco", 42.4, 42.4),
    "tood_R50_FPN_mstrain_2x": ReleasedModel("tood_r50_fpn_mstrain_2x_coco", None, 44.5),
    "tood_R101_FPN_mstrain_2x": ReleasedModel("tood_r101_fpn_mstrain_2x_coco", 46.2, 46.1),
    "tood_X101_64x4d_FPN_mstrain_2x": ReleasedModel(
        "tood_x101_64x4d_fpn_mstrain_2x_coco", 47.6, 47.6
    ),
    "tood_R101_DCN_FPN_mstrain_2x": ReleasedModel(
        "tood_r101_fpn_dconv_c3-c5_mstrain_2x_coco", 49.2, 49.3
    ),
    "tood_X101_64x4d_DCN_FPN_mstrain_2x": ReleasedModel(
        "tood_x101_64x4d_fpn_dconv_c4-c5_mstrain_2x_coco", 50.5, None
    ),
}


def get_config_file(name: str) -> str:
    """
    Path of a config of this project.

    Args:
        name: without ".yaml", for example "tood_R50_FPN_1x"; "tood_R50_FPN_1x.py" is the same in
            Python.

    Raises:
        UserError: for an unknown name; lists the known ones.
    """
    folder = _config_folder()
    path = folder / "lazy" / name if name.endswith(".py") else folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml") if p.stem[:4] != "Base")
        raise UserError(f"There is no config named {name!r}; there are {', '.join(known)}.")
    return str(path)


def get_config(name: str) -> Union[CfgNode, DictConfig]:
    """Config of a model by its name, see :func:`get_config_file`; of "NAME.py", a lazy one."""
    if name.endswith(".py"):
        return LazyConfig.load(get_config_file(name))
    cfg = get_cfg()
    add_tood_config(cfg)
    cfg.merge_from_file(get_config_file(name))
    return cfg


def get_model(
    name: str,
    checkpoint: Optional[str] = None,
    device: Optional[str] = None,
    *,
    pretrained: bool = False,
):
    """
    A model by its name, in evaluation mode.

    Args:
        name: see :func:`get_config_file`; of a yacs config.
        checkpoint: file in this project's names. One of ``tools/convert_checkpoint.py`` says
            itself where its model differs from the config, for example in its classes. Without
            one, the weights are drawn at random.
        device: default: "cuda", or "cpu" where there is no GPU.
        pretrained: with the released weights, which are fetched if they are not here.

    Raises:
        UserError: for an unknown name, a checkpoint that is not of this model, and released
            weights that cannot be had.
    """
    cfg = get_config(name)
    if pretrained:
        checkpoint = PathManager.get_local_path(f"tood://{name}")
    if checkpoint is not None:
        cfg.merge_from_list(read_tensors(checkpoint).get("options", []))
    cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(cfg)
    if checkpoint is not None:
        Checkpointer(model, complete=True).load(checkpoint)
    return model.eval()


def _config_folder() -> Path:
    here = Path(__file__).resolve().parent
    installed, checkout = here / "configs", here.parents[2] / "configs"
    return installed if installed.is_dir() else checkout
