"""
Checkpoints of other projects as Detectron2's, and back: MMDetection's and the authors' TOOD
models, and ImageNet backbones from torchvision or open-mmlab.

In the order of use: a file is read (:func:`read_checkpoint`), its model is found
(:func:`identify`), and its entries are renamed (:func:`to_detectron2`, and :func:`to_mmdet` for the
way back; :func:`convert_backbone` for ImageNet weights). No entry is dropped without a reason.
"""

import os
import pickle
import re
import tempfile
from collections import OrderedDict
from typing import Dict, NamedTuple, Optional, Tuple

import torch
from detectron2.modeling import build_model
from torch import Tensor

from .errors import UserError
from .identify import ModelDescription, identify
from .names import detectron2_name, is_detectron2_name, is_mmdet_name, mmdet_name

__all__ = [
    "SourceCheckpoint",
    "convert_backbone",
    "convert_checkpoint",
    "convert_to_mmdet",
    "read_checkpoint",
    "read_tensors",
    "to_detectron2",
    "to_mmdet",
    "write_atomically",
]


class SourceCheckpoint(NamedTuple):
    """What a file holds, in the names of its project."""

    state_dict: Dict[str, Tensor]
    meta: Dict


def read_tensors(path: str) -> Dict:
    """
    Read a file of tensors and plain values without running anything that is in it.

    Raises:
        UserError: for a file that is not there, is damaged, or holds more than that.
    """
    if not os.path.isfile(path):
        raise UserError(f"The checkpoint {path} does not exist.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever their bytes lead to
        refused = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise UserError(
                f"The checkpoint {path} is refused: reading it would run code, for it needs "
                f"{refused.group(1)}; save its state_dict alone, with the program that wrote it."
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"The checkpoint {path} is damaged, or is no checkpoint ({reason})."
        ) from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"The checkpoint {path} holds no state dict.")
    return content


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
    for name, value in entries.items() if isinstance(entries, dict) else [(path, None)]:
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"The checkpoint {path} has an entry {name!r} that is no tensor.")
        if not name.startswith("ema_"):
            state_dict[re.sub(r"^module\.", "", name)] = value
    return SourceCheckpoint(state_dict, meta if isinstance(meta, dict) else {})


def to_detectron2(
    state_dict: Dict[str, Tensor], expected: Dict[str, Tensor]
) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
    """
    Args:
        state_dict: in MMDetection's or the authors' names.
        expected: state dict of the model that is going to load it, for names and shapes.

    Returns:
        the entries in the names of this project, and those without a place here: how many
        batches a frozen norm has seen, which nothing reads.

    Raises:
        UserError: that lists what is unknown, missing, or of another shape.
    """
    converted, left_over, problems = OrderedDict(), OrderedDict(), []
    for name, value in state_dict.items():
        target = detectron2_name(name) if is_mmdet_name(name) else None
        if target is None:
            problems.append(f"unknown {name}")
        elif target in expected and expected[target].shape == value.shape:
            converted[target] = value
        elif target in expected:
            problems.append(f"{name} is {_shape(value)} instead of {_shape(expected[target])}")
        elif name.endswith(".num_batches_tracked"):
            left_over[name] = value
        else:
            problems.append(f"unexpected {name}")
    problems += [f"missing {mmdet_name(name)}" for name in expected if name not in converted]
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
    if unknown:
        raise UserError(
            f"{len(unknown)} entries are not of a TOOD model with the backbone "
            f"build_tood_resnet_fpn_backbone, for example {unknown[0]}; nothing was written."
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
        UserError: that lists what is unknown.
    """
    converted, unknown = OrderedDict(), []
    for name, value in state_dict.items():
        if re.match(r"(head\.)?fc\.", name):
            continue
        full = name if name.startswith("backbone.") else f"backbone.{name}"
        if is_mmdet_name(full):
            converted[detectron2_name(full)] = value
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{len(unknown)} entries are not of a ResNet backbone, for example {unknown[0]}; "
            "nothing was written."
        )
    return converted


def write_atomically(content: Dict, path: str) -> None:
    """
    ``torch.save`` that leaves the whole file or nothing.

    Raises:
        UserError: where it cannot be written.
    """
    folder = os.path.dirname(os.path.abspath(path))  # on the same disk, to be moved at once
    try:
        handle, part = tempfile.mkstemp(suffix=".part", dir=folder)
        os.close(handle)
        try:
            torch.save(content, part)
            os.chmod(part, 0o644)
            os.replace(part, path)
        except BaseException:
            os.remove(part)
            raise
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written ({error}).") from error


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
    expected = build_model(cfg).state_dict()
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
    state_dict = to_mmdet(content.get("model", content), content.get("left_over"))
    class_names = content.get("class_names")
    meta = {"CLASSES": tuple(class_names)} if class_names else {}
    write_atomically({"state_dict": state_dict, "meta": meta}, target_path)


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "a number"
