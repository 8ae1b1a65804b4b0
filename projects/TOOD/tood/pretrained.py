"""
ImageNet backbones by the names that the released configs give them: ``torchvision://resnet101``
and ``open-mmlab://resnext101_64x4d``, fetched once, converted, and kept beside the download.
Importing this module teaches them to Detectron2's ``PathManager``, and so to ``MODEL.WEIGHTS``.
"""

import os

import torchvision
from detectron2.utils.file_io import PathHandler, PathManager

from .convert import convert_backbone, read_checkpoint
from .errors import UserError
from .files import write_atomically

__all__ = ["BackboneHandler"]

OPEN_MMLAB = {
    "resnext101_64x4d": (
        "https://download.openmmlab.com/pretrain/third_party/resnext101_64x4d-ee2c6f71.pth"
    ),
}


def _torchvision_url(name: str) -> str:
    # The weights that MMDetection means by this name: the first ones torchvision had.
    return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url


def _open_mmlab_url(name: str) -> str:
    return OPEN_MMLAB[name]


class BackboneHandler(PathHandler):
    """Paths of one origin of ImageNet backbones."""

    def __init__(self, prefix: str, find_url):
        self.prefix = prefix
        self.find_url = find_url

    def _get_supported_prefixes(self):
        return [self.prefix]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name = path[len(self.prefix) :]
        try:
            url = self.find_url(name)
        except (KeyError, ValueError) as error:
            raise UserError(f"There are no weights {path} (MODEL.WEIGHTS).") from error
        download = PathManager.get_local_path(url, force=force, **kwargs)
        converted = os.path.splitext(download)[0] + ".detectron2.pth"
        if force or not os.path.isfile(converted):
            state_dict = convert_backbone(read_checkpoint(download).state_dict)
            write_atomically({"model": state_dict}, converted)
        return converted

    def _open(self, path: str, mode: str = "r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


PathManager.register_handler(BackboneHandler("torchvision://", _torchvision_url))
PathManager.register_handler(BackboneHandler("open-mmlab://", _open_mmlab_url))
