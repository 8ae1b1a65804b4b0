"""Which model a released state dict belongs to, from the names and shapes of its entries."""

import os
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from detectron2.config import CfgNode
from torch import Tensor

from tood.checkpoint.names import MAX_CONVS, detectron2_name, is_mmdet_name, mmdet_name
from tood.config import zoo
from tood.utils.errors import UserError

__all__ = [
    "ModelDescription",
    "backbone_config",
    "identify",
    "is_backbone",
    "read_architecture",
]


class ModelDescription(NamedTuple):
    """Which model a state dict belongs to."""

    config: str  # name of the nearest config of the model zoo
    options: List  # KEY, VALUE, ... where the model differs from that config
    class_names: Optional[List[str]]
    notes: List[str]  # what the file does not tell, in sentences for the user

    def make_config(self) -> CfgNode:
        cfg = zoo.get_config(self.config)
        cfg.merge_from_list(self.options)
        return cfg


def identify(
    state_dict: Dict[str, Tensor],
    meta: Optional[Dict] = None,
    file_name: str = "",
    anchor_type: Optional[str] = None,
) -> ModelDescription:
    """
    Find the config of a TOOD model. Its architecture is in the names and shapes of its entries;
    anchor type and schedule leave no trace there, and are looked for in the training config in
    ``meta`` and in the file's name.

    Args:
        state_dict: in MMDetection's or the authors' names.
        meta: what else the file holds: the training config, the names of the classes.
        file_name: for hints and messages.
        anchor_type: what the user knows better.

    Raises:
        UserError: for a checkpoint of another model.
    """
    meta = meta or {}
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
    notes = []
    if anchor_type is None:
        match = re.search(r"anchor_type\s*=\s*['\"]anchor_(free|based)", hints)
        match = match or re.search(r"anchor[_-](free|based)", hints)
        if match is None:
            notes.append(
                "Nothing in the file tells its anchor type; anchor_free is taken, as in all "
                "released models but one. If that is wrong: --anchor-type anchor_based."
            )
        anchor_type = f"anchor_{match.group(1)}" if match else "anchor_free"

    architecture = dict(read_architecture(state_dict))
    architecture["MODEL.TOOD.ANCHOR_TYPE"] = anchor_type
    epochs = re.search(r"max_epochs\s*=\s*(\d+)", hints)
    if epochs is not None:
        long_schedule = int(epochs.group(1)) > 12
    else:
        long_schedule = re.search(r"(?<!\d)2x(?!\d)", hints) is not None
    config, options = _nearest_config(architecture, long_schedule)
    num_classes = architecture["MODEL.TOOD.NUM_CLASSES"]
    return ModelDescription(config, options, _class_names(meta, num_classes, notes), notes)


def read_architecture(state_dict: Dict[str, Tensor]) -> Iterator[Tuple[str, Any]]:
    """
    Config keys and their values, as far as the shapes of an MMDetection state dict tell.

    Raises:
        UserError: where the entries that tell most are missing, or tell of what is not supported.
    """
    shapes = _shapes(state_dict)
    for name in ("head.inter_convs.0.0.weight", "head.cls_pred.weight"):
        if len(shapes.get(name, ())) != 4:
            raise UserError(f"{mmdet_name(name)} is missing, or is no kernel of a convolution.")
    yield from _backbone_architecture(shapes)

    convs = [f"head.inter_convs.{i}.0" for i in range(MAX_CONVS)]
    convs = [conv for conv in convs if f"{conv}.weight" in shapes]
    groups = [_deform_groups(shapes, f"{conv}.conv_offset.weight") for conv in convs]
    yield "MODEL.FPN.OUT_CHANNELS", shapes["head.inter_convs.0.0.weight"][1]
    yield "MODEL.TOOD.CONV_DIM", shapes["head.inter_convs.0.0.weight"][0]
    yield "MODEL.TOOD.NUM_CONVS", len(convs)
    yield "MODEL.TOOD.NUM_DCN_CONVS", sum(g > 0 for g in groups)
    if groups[0] > 0:
        yield "MODEL.TOOD.DCN_NUM_GROUPS", groups[0]
    yield "MODEL.TOOD.NUM_CLASSES", shapes["head.cls_pred.weight"][0]


def backbone_config(state_dict: Dict[str, Tensor]) -> CfgNode:
    """Config of a ResNet, for ``build_resnet_backbone``, from the shapes of its entries."""
    cfg = zoo.get_config("tood_R50_FPN_1x")
    for key, value in _backbone_architecture(_shapes(state_dict)):
        cfg.merge_from_list([key, value])
    return cfg


def _backbone_architecture(shapes: Dict[str, Tuple]) -> Iterator[Tuple[str, Any]]:
    resnet = "backbone.bottom_up"
    blocks = tuple(
        len({n.split(".")[3] for n in shapes if n.startswith(f"{resnet}.res{stage}.")})
        for stage in (2, 3, 4, 5)
    )
    bottleneck = any(re.match(r"backbone\.bottom_up\.res\d\.\d+\.conv3\.", n) for n in shapes)
    depth = _DEPTHS.get((blocks, bottleneck))
    out = shapes.get(f"{resnet}.res2.0.conv{3 if bottleneck else 2}.weight", ())
    inner = shapes.get(f"{resnet}.res2.0.conv2.weight", ())
    if depth is None or len(out) != 4 or len(inner) != 4 or min(*out, *inner) == 0:
        raise UserError(
            f"The backbone is no whole ResNet: its stages have {', '.join(map(str, blocks))} blocks"
            f"{'' if len(out) == len(inner) == 4 else ', and layer1.0 lacks a convolution'}."
        )
    yield "MODEL.RESNETS.DEPTH", depth
    yield "MODEL.RESNETS.RES2_OUT_CHANNELS", out[0]
    yield "MODEL.RESNETS.NUM_GROUPS", inner[0] // inner[1]
    yield "MODEL.RESNETS.WIDTH_PER_GROUP", inner[1]
    groups = [_deform_groups(shapes, f"{resnet}.res{s}.0.conv2_offset.weight") for s in range(2, 6)]
    yield "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [g > 0 for g in groups]
    yield "MODEL.RESNETS.DEFORM_MODULATED", max(groups) > 0
    yield "MODEL.RESNETS.DEFORM_NUM_GROUPS", max(1, *groups)


def _shapes(state_dict: Dict[str, Tensor]) -> Dict[str, Tuple]:
    return {detectron2_name(n): tuple(v.shape) for n, v in state_dict.items() if is_mmdet_name(n)}


def _deform_groups(shapes: Dict[str, Tuple], offset_name: str) -> int:
    """Deformable groups of a convolution, 0 if it is a plain one."""
    if offset_name not in shapes:
        return 0
    channels = (*shapes[offset_name], 0)[0]
    if channels == 0 or channels % 27 != 0:
        raise UserError(
            f"{mmdet_name(offset_name)} has {channels} channels: deformable convolutions of "
            "version 2 (DCNv2) have 27 a group, and others are not supported."
        )
    return channels // 27


def is_backbone(state_dict: Dict[str, Tensor]) -> bool:
    """Whether a state dict is an ImageNet ResNet, to be read by :func:`convert_backbone`."""
    return not any(n.startswith(("bbox_head.", "neck.", "roi_head.")) for n in state_dict) and (
        "conv1.weight" in state_dict or "backbone.conv1.weight" in state_dict
    )


# (blocks of the four stages, bottlenecks or not) -> depth
_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}

# How to know other checkpoints that people have at hand.
_OTHER_MODELS = [
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


def _guess_model(state_dict: Dict[str, Tensor]) -> str:
    for pattern, model in _OTHER_MODELS:
        if any(re.search(pattern, name) for name in state_dict):
            return model
    return f"no detector at all (its first entry is {next(iter(state_dict))})"


def _nearest_config(architecture: Dict[str, Any], long_schedule: bool) -> Tuple[str, List]:
    """The config of the model zoo that agrees with most of the keys, and the other keys."""

    def differences(name):
        cfg = zoo.get_config(name)
        return {k: v for k, v in architecture.items() if _get(cfg, k) != v}

    names = list(zoo.RELEASED_MODELS)
    names.sort(key=lambda name: ("2x" in name) != long_schedule)
    config = min(names, key=lambda name: len(differences(name)))
    options = []
    for key, value in differences(config).items():
        options += [key, value]
    return config, options


def _class_names(meta: Dict, num_classes: int, notes: List[str]) -> Optional[List[str]]:
    dataset_meta = meta.get("dataset_meta")
    dataset_meta = dataset_meta if isinstance(dataset_meta, dict) else {}
    names = meta.get("CLASSES") or dataset_meta.get("classes") or dataset_meta.get("CLASSES")
    if names is None:
        notes.append("The file does not name its classes.")
        return None
    names = [names] if isinstance(names, str) else names  # MMDetection's way to name a single one
    if len(names) != num_classes:
        notes.append(f"The file names {len(names)} classes for a head of {num_classes}: left out.")
        return None
    return list(names)


def _get(cfg, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple) else cfg
