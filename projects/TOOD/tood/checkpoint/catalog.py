"""Weights by name, fetched once into Detectron2's cache, converted, and kept beside the download:
``tood://tood_R50_FPN_1x`` for the released models, ``torchvision://resnet101`` and
``open-mmlab://resnext101_64x4d`` for ImageNet backbones. Importing this module registers these
prefixes with Detectron2's ``PathManager``, and so with ``MODEL.WEIGHTS``.
"""

import logging
import os
import re
from typing import Callable
from urllib.parse import urlparse

import torchvision
from detectron2.utils.file_io import PathHandler, PathManager
from iopath.common.file_io import get_cache_dir

from tood.checkpoint.convert import convert_backbone, convert_checkpoint, read_checkpoint
from tood.config.zoo import RELEASED_MODELS
from tood.utils.errors import UserError, reason_of
from tood.utils.files import compute_sha256, write_atomically

logger = logging.getLogger(__name__)

# MMDetection publishes them here, in a folder named like the file without its date.
BASE_URL = "https://download.openmmlab.com/mmdetection/v2.0/tood"
# Config -> date and hash of the file. The seventh model is only on a drive of its authors.
FILES = {
    "tood_R50_FPN_1x": "20211210_103425-20e20746",
    "tood_R50_FPN_anchor_based_1x": "20211214_100105-b776c134",
    "tood_R50_FPN_mstrain_2x": "20211210_144231-3b23174c",
    "tood_R101_FPN_mstrain_2x": "20211210_144232-a18f53c8",
    "tood_X101_64x4d_FPN_mstrain_2x": "20211211_003519-a4f36113",
    "tood_R101_DCN_FPN_mstrain_2x": "20211210_213728-4a824142",
}
OPEN_MMLAB = {
    "resnext101_64x4d": (
        "https://download.openmmlab.com/pretrain/third_party/resnext101_64x4d-ee2c6f71.pth"
    ),
}


class ConvertedHandler(PathHandler):
    """Paths PREFIX + NAME, whose local file is converted and kept beside the download."""

    def __init__(
        self, prefix: str, url_of: Callable[[str], str], convert: Callable[[str, str], object]
    ):
        """
        Args:
            url_of: returns the address of a name; raises KeyError or ValueError for an unknown one.
            convert: converts the file at the first path, the download, to the second path.
        """
        self.prefix, self.url_of, self.convert = prefix, url_of, convert

    def _get_supported_prefixes(self):
        return [self.prefix]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        try:
            url = self.url_of(path[len(self.prefix) :])
        except (KeyError, ValueError) as error:
            raise UserError(f"There are no weights {path} (MODEL.WEIGHTS).") from error
        # Where Detectron2's PathManager keeps a download.
        place = os.path.join(get_cache_dir(), urlparse(url).path.lstrip("/"))
        kept = os.path.splitext(place)[0] + ".detectron2.pth"
        if os.path.isfile(kept) and not force:
            return kept
        try:
            download = PathManager.get_local_path(url, force=force, **kwargs)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"The weights {path} cannot be fetched ({reason_of(error)}); get {url} on a "
                f"machine with a network, and put it at {place}."
            ) from error
        _check_hash(download)
        kept = os.path.splitext(download)[0] + ".detectron2.pth"
        self.convert(download, kept)
        logger.info(f"{path}: fetched from {url} and converted to {kept}")
        return kept

    def _open(self, path: str, mode: str = "r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


def released_url(config: str) -> str:
    """Return the address of the released checkpoint of a config.

    Raises:
        UserError: if there is none.
    """
    if config not in RELEASED_MODELS:
        raise UserError(
            f"There are no released weights tood://{config}; there are {', '.join(FILES)}."
        )
    stem = RELEASED_MODELS[config].checkpoint
    if config not in FILES:
        raise UserError(
            f"The weights tood://{config} are published on a drive that programs cannot read; get "
            f"{stem}_*.pth from the authors' repository (fcjian/TOOD), convert it with "
            "tools/convert_checkpoint.py, and name the file."
        )
    return f"{BASE_URL}/{stem}/{stem}_{FILES[config]}.pth"


def _torchvision_url(name: str) -> str:
    # The weights that MMDetection means by this name: the first ones torchvision had.
    return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url


def _convert_backbone(source: str, target: str) -> None:
    write_atomically({"model": convert_backbone(read_checkpoint(source).state_dict)}, target)


def _check_hash(path: str) -> None:
    """Raise UserError and remove a file unless its SHA-256 begins as its name ends."""
    named = re.search(r"-([0-9a-f]{8})\.pth$", path)
    if named is None:
        return
    digest = compute_sha256(path)
    if not digest.startswith(named[1]):
        os.remove(path)
        raise UserError(
            f"The download {path} is damaged: its SHA-256 begins with {digest[:8]}, not "
            f"{named[1]}; it was removed, and the next call fetches it again."
        )


for handler in (
    ConvertedHandler("tood://", released_url, convert_checkpoint),
    ConvertedHandler("torchvision://", _torchvision_url, _convert_backbone),
    ConvertedHandler("open-mmlab://", OPEN_MMLAB.__getitem__, _convert_backbone),
):
    PathManager.register_handler(handler)
