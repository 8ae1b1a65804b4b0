"""
Checkpoints of other projects as Detectron2's, and back: MMDetection's and the authors' TOOD
models, and ImageNet backbones from torchvision or open-mmlab.

In the order of use: a file is read (:func:`read_checkpoint`), its model is found
(:func:`identify`), and its entries are renamed (:func:`to_detectron2`, and :func:`to_mmdet` for the
way back; :func:`convert_backbone` for ImageNet weights). No entry is dropped without a reason.
"""

import re
from collections import OrderedDict
from typing import Dict, NamedTuple, Optional, Tuple

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_resnet_backbone
from torch import Tensor

from tood.checkpoint.identify import ModelDescription, backbone_config, identify
from tood.checkpoint.names import detectron2_name, is_detectron2_name, is_mmdet_name, mmdet_name
from tood.utils.errors import UserError
from tood.utils.files import read_tensors, write_atomically

__all__ = [
    "SourceCheckpoint",
    "convert_backbone",
    "convert_checkpoint",
    "convert_to_mmdet",
    "read_checkpoint",
    "to_detectron2",
    "to_mmdet",
]


class SourceCheckpoint(NamedTuple):
    """What a file holds, in the names of its project."""

    state_dict: Dict[str, Tensor]
    meta: Dict


def read_checkpoint(path: str) -> SourceCheckpoint:
    """
    Read a checkpoint of another project: with or without a ``state_dict`` or ``model`` around its
    entries and a ``module.`` before their names. The second copy of every entry that training with
    an exponential moving average leaves (``ema_...``) is dropped.

    Raises:
        UserError: as :func:`read_tensors`, and for entries that are no tensors.
    """
    content = read_tensors(path)
    meta = content.get("meta")
    entries = next((content[k] for k in ("state_dict", "model") if k in content), content)
    state_dict = OrderedDict()
    for name, value in check_entries(entries, path).items():
        name = re.sub(r"^module\.", "", name)
        if name in state_dict:
            raise UserError(f"The checkpoint {path} has {name} twice, with and without module.")
        if not name.startswith("ema_"):
            state_dict[name] = value
    if not state_dict:
        raise UserError(f"The checkpoint {path} holds no state dict.")
    return SourceCheckpoint(state_dict, meta if isinstance(meta, dict) else {})


def check_entries(entries, path: str) -> Dict[str, Tensor]:
    """Raise UserError unless something that was read maps names to tensors."""
    for name, value in entries.items() if isinstance(entries, dict) else [(entries, None)]:
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"The checkpoint {path} has an entry {name!r} that is no tensor.")
    return entries


def to_detectron2(
    state_dict: Dict[str, Tensor], expected: Dict[str, Tensor]
) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
    """
    Args:
        state_dict: in MMDetection's or the authors' names.
        expected: state dict of the model that is going to load it, for names and shapes.

    Returns:
        the entries in the names of this project, and those without a place here: how many
        batches a frozen norm has seen. Nothing reads these counters, and where a file lacks them
        they are 0.

    Raises:
        UserError: that lists what is unknown, missing, or of another shape.
    """
    converted, left_over, problems = OrderedDict(), OrderedDict(), []
    for name, value in state_dict.items():
        target = detectron2_name(name) if is_mmdet_name(name) else None
        if target is None:
            problems.append(f"unknown {name}")
        elif target in converted:
            problems.append(f"{name} twice, under two names")
        elif target in expected and expected[target].shape == value.shape:
            converted[target] = value
        elif target in expected:
            problems.append(f"{name} is {_shape(value)} instead of {_shape(expected[target])}")
        elif name.endswith(".num_batches_tracked"):
            left_over[name] = value
        else:
            problems.append(f"unexpected {name}")
    for name, value in expected.items():
        if name not in converted and name.endswith(".num_batches_tracked"):
            converted[name] = torch.zeros_like(value)  # which nothing reads
        elif name not in converted:
            problems.append(f"missing {mmdet_name(name)}")
    if problems:
        raise UserError(
            f"{len(problems)} entries do not fit the model, nothing was written: "
            f"{', '.join(problems[:20])}{', ...' if len(problems) > 20 else ''}."
        )
    return converted, left_over


def to_mmdet(
    state_dict: Dict[str, Tensor], left_over: Optional[Dict[str, Tensor]] = None
) -> Dict[str, Tensor]:
    """
    The way back: a state dict of this project in MMDetection's names.

    Args:
        left_over: as :func:`to_detectron2` returned it; a model that was trained here has none,
            and its frozen norms have seen 0 batches.

    Raises:
        UserError: that lists what is not TOOD's.
    """
    unknown = [n for n in state_dict if not is_detectron2_name(n)]
    # MMDetection has other names for norms without statistics, and none of its models has them.
    unknown += [
        n
        for n in state_dict
        if re.match(r"backbone\.bottom_up\..*norm\.weight$", n)
        and re.sub("weight$", "running_mean", n) not in state_dict
    ]
    if unknown:
        raise UserError(
            f"{len(unknown)} entries are not of a TOOD model with a ResNet and batch norm, for "
            f"example {unknown[0]}; nothing was written."
        )
    converted = OrderedDict((mmdet_name(n), v) for n, v in state_dict.items())
    for name in list(converted):
        counter = re.sub(r"running_mean$", "num_batches_tracked", name)
        if counter not in converted:
            converted[counter] = (left_over or {}).get(counter, torch.tensor(0))
    return converted


def convert_backbone(state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """
    An ImageNet ResNet or ResNeXt, of torchvision or open-mmlab, in the names of this project. Its
    classifier has no place in a detector and is dropped.

    Raises:
        UserError: that lists what is unknown, missing, or of another shape.
    """
    state_dict = {
        n if n.startswith("backbone.") else f"backbone.{n}": v
        for n, v in state_dict.items()
        if not re.match(r"(head\.)?fc\.", n)
    }
    cfg = backbone_config(state_dict)
    resnet = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    expected = {f"backbone.bottom_up.{n}": v for n, v in resnet.state_dict().items()}
    return to_detectron2(state_dict, expected)[0]


def convert_checkpoint(
    source_path: str, target_path: str, anchor_type: Optional[str] = None
) -> ModelDescription:
    """
    Convert a released TOOD checkpoint, from file to file.

    The target holds ``model`` (the entries), ``class_names``, ``config`` and ``options`` (what
    they belong to), and ``left_over`` (what only the way back needs).

    Args:
        source_path, target_path: files; the target appears whole or not at all.
        anchor_type: "anchor_free" or "anchor_based", where the file does not tell.

    Raises:
        UserError: for everything that cannot be converted.
    """
    source = read_checkpoint(source_path)
    description = identify(*source, file_name=source_path, anchor_type=anchor_type)
    cfg = description.make_config()
    cfg.MODEL.DEVICE = "cpu"
    try:
        expected = build_model(cfg).state_dict()
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"No model has the shapes in {source_path} ({error}).") from error
    model, left_over = to_detectron2(source.state_dict, expected)
    content = {"model": model, "left_over": left_over, **description._asdict()}
    write_atomically(content, target_path)
    return description


def convert_to_mmdet(source_path: str, target_path: str) -> None:
    """
    The way back: a checkpoint of this project, converted or trained, in MMDetection's names.

    Raises:
        UserError: for everything that cannot be converted.
    """
    content = read_tensors(source_path)
    entries = check_entries(content.get("model", content), source_path)
    state_dict = to_mmdet(entries, content.get("left_over"))
    class_names = content.get("class_names")
    meta = {"CLASSES": tuple(class_names)} if class_names else {}
    write_atomically({"state_dict": state_dict, "meta": meta}, target_path)


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "a number"
