"""The configs of the project by name, and the table of released models.

The published AP is the authors' or MMDetection's, on COCO val2017.
"""

import os
from pathlib import Path
from typing import NamedTuple, Optional

from tood.utils.errors import UserError
from tood.utils.suggest import suggest, suggest_path


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


def _find_configs() -> Path:
    here = Path(__file__).resolve().parents[1]
    installed, checkout = here / "configs", here.parents[2] / "configs"
    return installed if installed.is_dir() else checkout


CONFIGS = _find_configs()  # the folder of this project's configs


def get_config_file(name: str) -> str:
    """Return the path of a config of this project.

    Args:
        name: without ".yaml", for example "tood_R50_FPN_1x"; "tood_R50_FPN_1x.py" is the same for
            Detectron2's ``LazyConfig``.

    Raises:
        UserError: for an unknown name; lists the known ones.
    """
    path = CONFIGS / "lazy" / name if name.endswith(".py") else CONFIGS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in CONFIGS.glob("*.yaml") if p.stem[:4] != "Base")
        hint = suggest_path(name) or suggest(name, known) or f"; there are {', '.join(known)}."
        raise UserError(f"There is no config named {name!r}{hint}")
    return str(path)


def find_config_file(config: str) -> str:
    """Return the path of a config that is named by its path, or by its name in this project."""
    return config if os.path.isfile(config) else get_config_file(config)
