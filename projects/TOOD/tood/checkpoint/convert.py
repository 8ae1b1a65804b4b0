"""Checkpoints of other projects in Detectron2's names: MMDetection's and the authors' TOOD models,
and ImageNet backbones from torchvision or open-mmlab.

In the order of use: a file is read (:func:`read_checkpoint`), its model is found among the released
ones (:func:`identify`), and its entries are renamed (:func:`to_detectron2`, or
:func:`convert_backbone` for ImageNet weights). No entry is dropped without a reason.
"""

import contextlib
import functools
import logging
import os
import re
from collections import OrderedDict
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_resnet_backbone
from torch import Tensor

from tood.checkpoint.names import detectron2_name, mmdet_name
from tood.config.read import differing_options, get_config
from tood.config.zoo import RELEASED_MODELS
from tood.utils.errors import UserError
from tood.utils.files import write_atomically
from tood.utils.tensors import hash_tensors, read_tensors

logger = logging.getLogger(__name__)

Shapes = Dict[str, Tuple[int, ...]]

HASH = "sha256"  # of the tensors, in converted files
BLOCKS = {18: 8, 34: 16, 50: 16, 101: 33, 152: 50}  # of a ResNet, by its depth
# ImageNet backbones: depth, groups and width of each group.
BACKBONES = [(d, 1, 64) for d in BLOCKS]
BACKBONES += [(50, 32, 4), (101, 32, 4), (101, 32, 8), (101, 64, 4)]
# What a training config in a file may state, and the released models have.
STATED: Dict[str, object] = {
    **{"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
    **{"to_rgb": "true", "bgr_to_rgb": "true"},
    **{"octave_base_scale": [8.0], "target_stds": [0.1, 0.1, 0.2, 0.2]},
}
# How to recognize other checkpoints that people have at hand.
OTHER_MODELS = [
    (r"^bbox_head\.atss_cls\.", "ATSS"),
    (r"^bbox_head\.retina_cls\.", "RetinaNet"),
    (r"^bbox_head\.gfl_cls\.", "GFL"),
    (r"^bbox_head\.vfnet_cls\.", "VFNet"),
    (r"^bbox_head\.conv_cls\.", "FCOS"),
    (r"^roi_head\.mask_head\.", "Mask R-CNN"),
    (r"^roi_head\.", "a two-stage detector such as Faster R-CNN"),
    (r"^bbox_head\.(rtm|multi_level)", "YOLOX or RTMDet"),
    (r"^(transformer|query_embed|bbox_head\.transformer)", "a DETR"),
    (r"^backbone\.bottom_up\.", "a checkpoint in Detectron2's names already"),
    (r"^bbox_head\.", "another one-stage detector"),
]


class SourceCheckpoint(NamedTuple):
    """The content of a file, in the names of its project."""

    state_dict: Dict[str, Tensor]
    meta: Dict


class ModelDescription(NamedTuple):
    """The model that a state dict belongs to."""

    config: str  # name of a released config
    options: List  # KEY, VALUE, ... where the model differs from that config
    class_names: Optional[List[str]]
    notes: List[str]  # what the file does not contain, in sentences for the user

    def make_config(self) -> CfgNode:
        return get_config(self.config, self.options)


def read_checkpoint(path: str) -> SourceCheckpoint:
    """Read a checkpoint of another project: with or without ``state_dict`` or ``model`` around its
    entries, and ``module.`` before their names. Averaged copies (``ema_...``) are dropped.

    Raises:
        UserError: as :func:`read_tensors`, and for entries that are not tensors.
    """
    content = read_tensors(path)
    meta = content.get("meta")
    entries = next((content[k] for k in ("state_dict", "model") if k in content), content)
    state_dict = OrderedDict()
    for name, value in entries.items() if isinstance(entries, dict) else [(entries, None)]:
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"The checkpoint {path} has an entry {name!r} that is not a tensor.")
        name = re.sub(r"^module\.", "", name)
        if name in state_dict:
            raise UserError(f"The checkpoint {path} has {name} twice, with and without module.")
        if not name.startswith("ema_"):
            state_dict[name] = value
    if not state_dict:
        raise UserError(f"The checkpoint {path} contains no state dict.")
    return SourceCheckpoint(state_dict, meta if isinstance(meta, dict) else {})


def identify(
    state_dict: Dict[str, Tensor],
    meta: Optional[Dict] = None,
    file_name: str = "",
    anchor_type: Optional[str] = None,
) -> ModelDescription:
    """Find the released config whose names and shapes are nearest to those of a TOOD model. The
    number of classes and the depth of the backbone may differ from it. Anchor type and schedule
    leave no trace in the entries; they are read from the training config in ``meta`` and the name
    of the file.

    Args:
        state_dict: in MMDetection's or the authors' names.
        meta: what else the file contains: the training config, the names of the classes.
        file_name: name of the file in hints and messages.
        anchor_type: overrides that of the file.

    Raises:
        UserError: for a checkpoint of another model.
    """
    meta, notes = meta or {}, []
    if not any(re.match(r"bbox_head\.(tood_|cls_decomp\.|reg_decomp\.)", n) for n in state_dict):
        raise UserError(
            f"The checkpoint {file_name} is not TOOD's: it looks like {_guess_model(state_dict)}."
        )
    # MMDetection 2, its releases, MMDetection 3, and what people call their files.
    keys = ("config", "cfg", "exp_name", "experiment_name")
    hints = " ".join([*(str(meta.get(key, "")) for key in keys), os.path.basename(file_name)])
    if re.search(r"style\s*=\s*['\"]caffe", hints):
        raise UserError(
            f"The checkpoint {file_name} has a Caffe-style backbone (BGR, other strides), which no "
            "released TOOD has; it cannot be converted."
        )
    _refuse_other_values(hints, file_name)
    anchor_type = anchor_type or _anchor_type(hints, notes)
    epochs = re.search(r"max_epochs\s*=\s*(\d+)", hints)
    is_2x = int(epochs[1]) > 12 if epochs else re.search(r"(?<!\d)2x(?!\d)", hints) is not None
    shapes = _get_shapes(state_dict)
    options = {"MODEL.TOOD.NUM_CLASSES": _num_classes(shapes), **_depth_options(_depth(shapes))}
    config = _nearest_config(shapes, options, anchor_type, is_2x)
    options = differing_options(config, {**options, "MODEL.TOOD.ANCHOR_TYPE": anchor_type})
    return ModelDescription(config, options, _class_names(meta, _num_classes(shapes), notes), notes)


def _refuse_other_values(hints: str, file_name: str) -> None:
    """Hold what a training config states of pixels and anchors, which leaves no trace in the
    entries, to the released models.
    """
    value = r"(\[[^\]]*\]|\([^)]*\)|[\w.]+)"
    for name, known in STATED.items():
        for text in re.findall(rf"\b{name}['\"]?\s*[=:]\s*{value}", hints):
            numbers = [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?|-?\.\d+", text)]
            found = numbers if numbers else text.lower()
            if isinstance(known, list) and len(numbers) != len(known):
                continue  # as mean and std of an initialization
            if found != known:
                raise UserError(
                    f"The checkpoint {file_name} was trained with {name} {text}, and the released "
                    f"models have {known}; it cannot be converted."
                )


def is_backbone(state_dict: Dict[str, Tensor]) -> bool:
    """Return whether a state dict is an ImageNet ResNet, for :func:`convert_backbone`."""
    return not any(n.startswith(("bbox_head.", "neck.", "roi_head.")) for n in state_dict) and (
        "conv1.weight" in state_dict or "backbone.conv1.weight" in state_dict
    )


def to_detectron2(
    state_dict: Dict[str, Tensor], expected: Dict[str, Tensor], model: str = "the model"
) -> Dict[str, Tensor]:
    """Rename the entries of a state dict. Counters of the batches that frozen norms have seen may
    be missing on either side: nothing reads them.

    Args:
        state_dict: in MMDetection's or the authors' names.
        expected: state dict of the model that is going to load it, for names and shapes.
        model: its name, for messages.

    Raises:
        UserError: that lists what is unknown, missing, or of another shape.
    """
    converted, problems = OrderedDict(), []
    for name, value in state_dict.items():
        target = detectron2_name(name)
        if target is None:
            problems.append(f"unknown {name}")
        elif target in converted:
            problems.append(f"{name} twice, under two names")
        elif target in expected and expected[target].shape == value.shape:
            converted[target] = value
            if expected[target].is_floating_point() and not value.is_floating_point():
                problems.append(f"{name} is {value.dtype}, not of floating-point numbers")
        elif target in expected:
            problems.append(f"{name} is {_shape(value)} instead of {_shape(expected[target])}")
        elif not name.endswith(".num_batches_tracked"):
            problems.append(f"unexpected {name}")
    for name in expected:
        if name not in converted and name.endswith(".num_batches_tracked"):
            converted[name] = torch.zeros((), dtype=torch.int64)
        elif name not in converted:
            problems.append(f"missing {mmdet_name(name)}")
    if problems:
        raise UserError(
            f"{len(problems)} entries do not fit {model}, nothing was written: "
            f"{', '.join(problems[:20])}{', ...' if len(problems) > 20 else ''}."
        )
    return converted


def convert_backbone(state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Convert an ImageNet ResNet or ResNeXt of torchvision or open-mmlab, without its classifier.

    Raises:
        UserError: that lists the entries that are unknown, missing, or of another shape.
    """
    state_dict = {
        n if n.startswith("backbone.") else f"backbone.{n}": v
        for n, v in state_dict.items()
        if not re.match(r"(head\.)?fc\.", n)
    }
    nearest = min(
        map(_resnet, BACKBONES), key=lambda x: len(_differing(_get_shapes(state_dict), x))
    )
    return to_detectron2(state_dict, nearest)


def convert_checkpoint(
    source_path: str, target_path: str, anchor_type: Optional[str] = None
) -> ModelDescription:
    """Convert a released TOOD checkpoint, from file to file.

    The target contains ``model`` (the entries) and their hash, ``class_names``, ``config`` and
    ``options`` (of the model).

    Args:
        source_path, target_path: files; the target appears whole or not at all.
        anchor_type: "anchor_free" or "anchor_based", if the file does not contain it.

    Raises:
        UserError: for everything that cannot be converted.
    """
    source = read_checkpoint(source_path)
    description = identify(*source, file_name=source_path, anchor_type=anchor_type)
    expected = _model(description.config, tuple(description.options))
    name = f"{description.config}, the nearest of the released models"
    model = to_detectron2(source.state_dict, expected, name)
    write_converted(model, target_path, **description._asdict())
    return description


def write_converted(model: Dict[str, Tensor], path: str, **about) -> None:
    """Write a state dict, its hash and what else is known of it; raise UserError if that fails."""
    write_atomically({"model": model, **about, HASH: hash_tensors(model)}, path)


def is_as_converted(path: str) -> bool:
    """Return whether a file has the tensors that :func:`write_converted` has written to it. It is
    read once, unless it changes.
    """
    if not os.path.isfile(path):
        return False
    status = os.stat(path)
    return _has_its_hash(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache
def _has_its_hash(path: str, time: int, size: int) -> bool:
    with contextlib.suppress(UserError, LookupError, TypeError, AttributeError):
        content = read_tensors(path)
        if content[HASH] == hash_tensors(content["model"]):
            return True
    logger.warning(f"{path} is not as it was converted, and is converted again.")
    return False


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "a number"


@functools.lru_cache
def _model(config: str, options: Sequence) -> Dict[str, Tensor]:
    """Return the state dict of a known model, on the meta device: names and shapes alone."""
    with torch.device("meta"):
        return build_model(get_config(config, [*options, "MODEL.DEVICE", "meta"])).state_dict()


@functools.cache
def _resnet(backbone: Tuple[int, int, int]) -> Dict[str, Tensor]:
    depth, groups, width = backbone
    options = _flat(_depth_options(depth))
    options += ["MODEL.RESNETS.NUM_GROUPS", groups, "MODEL.RESNETS.WIDTH_PER_GROUP", width]
    with torch.device("meta"):
        resnet = build_resnet_backbone(get_config("tood_R50_FPN_1x", options), ShapeSpec(3))
    return {f"backbone.bottom_up.{n}": v for n, v in resnet.state_dict().items()}


def _depth_options(depth: int) -> Dict[str, int]:
    channels = 64 if depth < 50 else 256
    return {"MODEL.RESNETS.DEPTH": depth, "MODEL.RESNETS.RES2_OUT_CHANNELS": channels}


def _flat(options: Dict) -> List:
    return [x for item in options.items() for x in item]


def _depth(shapes: Shapes) -> int:
    """Return the depth of the ResNet whose number of blocks is nearest."""
    pattern = re.compile(r"backbone\.bottom_up\.(res\d\.\d+)\.conv(\d)\.weight")
    convs = [match.groups() for match in map(pattern.fullmatch, shapes) if match]
    has_bottlenecks = any(conv == "3" for _, conv in convs)
    depths = [depth for depth in BLOCKS if (depth >= 50) == has_bottlenecks]
    return min(depths, key=lambda depth: abs(BLOCKS[depth] - len({block for block, _ in convs})))


def _nearest_config(shapes: Shapes, options: Dict, anchor_type: str, is_2x: bool) -> str:
    """Return the released config whose model, with some options, differs least."""

    def misfit(name: str) -> Tuple[int, bool, bool]:  # which decides between equal models
        is_anchor_based = anchor_type == "anchor_based"
        num_options = len(differing_options(name, options))
        return num_options, ("anchor_based" in name) != is_anchor_based, ("2x" in name) != is_2x

    counts = {}
    for name in sorted(RELEASED_MODELS, key=misfit):
        # A small ResNet has no groups and no deformable convolutions, and a newer Detectron2 needs
        # its extension for the latter.
        with contextlib.suppress(AssertionError, ImportError):
            counts[name] = len(_differing(shapes, _model(name, tuple(_flat(options)))))
        if counts.get(name) == 0:
            break
    return min(counts, key=counts.get)


def _differing(shapes: Shapes, expected: Dict[str, Tensor]) -> Set[str]:
    """Return the names of the entries that differ; frozen norms may lack their counters."""
    expected_shapes = {n: tuple(v.shape) for n, v in expected.items()}
    differing = dict(shapes.items() ^ expected_shapes.items())
    return {n for n in differing if not n.endswith("num_batches_tracked")}


def _get_shapes(state_dict: Dict[str, Tensor]) -> Shapes:
    shapes = {detectron2_name(n): tuple(v.shape) for n, v in state_dict.items()}
    shapes.pop(None, None)
    return shapes


def _num_classes(shapes: Shapes) -> int:
    predictor = shapes.get("head.cls_pred.weight") or shapes.get("head.cls_pred.bias") or (80,)
    return max(1, predictor[0])


def _anchor_type(hints: str, notes: List[str]) -> str:
    match = re.search(r"anchor_type\s*=\s*['\"]anchor_(free|based)", hints)
    match = match or re.search(r"anchor[_-](free|based)", hints)
    if match is None:
        notes.append(
            "The file does not contain its anchor type; anchor_free is assumed, as in all "
            "released models but one. If that is wrong: --anchor-type anchor_based."
        )
    return f"anchor_{match[1]}" if match else "anchor_free"


def _guess_model(names: Iterable[str]) -> str:
    for pattern, model in OTHER_MODELS:
        if any(re.search(pattern, name) for name in names):
            return model
    return f"no detector at all (its first entry is {next(iter(names))})"


def _class_names(meta: Dict, num_classes: int, notes: List[str]) -> Optional[List[str]]:
    dataset_meta = meta.get("dataset_meta")
    dataset_meta = dataset_meta if isinstance(dataset_meta, dict) else {}
    names = meta.get("CLASSES") or dataset_meta.get("classes") or dataset_meta.get("CLASSES")
    if names is None:
        notes.append("The file does not name its classes.")
        return None
    names = [names] if isinstance(names, str) else names  # MMDetection's way to name a single one
    if not isinstance(names, (list, tuple)) or not all(isinstance(x, str) for x in names):
        notes.append("The names of the classes in the file are not a list of text; ignored.")
        return None
    if len(names) != num_classes:
        notes.append(
            f"The file names {len(names)} classes for a head of {num_classes}; they are ignored."
        )
        return None
    return list(names)
