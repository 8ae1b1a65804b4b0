"""Names of TOOD's parameters and buffers: those of the released checkpoints, and those here.

A released state dict has MMDetection's names; the authors' differ from them in a few modules.
"""

from typing import Dict, Iterator, Optional, Tuple

MAX_BLOCKS = 36  # in one stage: ResNet-152 has the most
MAX_CONVS = 16  # stacked in the head; the released models have 6
NUM_LEVELS = 5


def module_names() -> Iterator[Tuple[str, str]]:
    """Yield (name in MMDetection, name here) of every module with parameters or buffers."""
    resnet = "backbone.bottom_up"
    yield "backbone.conv1", f"{resnet}.stem.conv1"
    yield "backbone.bn1", f"{resnet}.stem.conv1.norm"
    for stage in range(1, 5):
        for block in range(MAX_BLOCKS):
            source, target = f"backbone.layer{stage}.{block}", f"{resnet}.res{stage + 1}.{block}"
            for i in (1, 2, 3):
                yield f"{source}.conv{i}", f"{target}.conv{i}"
                yield f"{source}.bn{i}", f"{target}.conv{i}.norm"
            yield f"{source}.conv2.conv_offset", f"{target}.conv2_offset"
            yield f"{source}.downsample.0", f"{target}.shortcut"
            yield f"{source}.downsample.1", f"{target}.shortcut.norm"
    for i in range(3):
        yield f"neck.lateral_convs.{i}.conv", f"backbone.fpn_lateral{i + 3}"
        yield f"neck.fpn_convs.{i}.conv", f"backbone.fpn_output{i + 3}"
    for i in (3, 4):
        yield f"neck.fpn_convs.{i}.conv", f"backbone.top_block.p{i + 3}"
    for i in range(MAX_CONVS):
        yield f"bbox_head.inter_convs.{i}.conv", f"head.inter_convs.{i}.0"
        yield f"bbox_head.inter_convs.{i}.conv.conv_offset", f"head.inter_convs.{i}.0.conv_offset"
        yield f"bbox_head.inter_convs.{i}.gn", f"head.inter_convs.{i}.1"
    for task in ("cls", "reg"):
        source, target = f"bbox_head.{task}_decomp", f"head.{task}_decomp"
        for i in (0, 2):
            yield f"{source}.layer_attention.{i}", f"{target}.attention.{i}"
        yield f"{source}.reduction_conv.conv", f"{target}.reduction"
        yield f"{source}.reduction_conv.gn", f"{target}.norm"
        yield f"bbox_head.tood_{task}", f"head.{task}_pred"
    for i in (0, 2):
        yield f"bbox_head.cls_prob_module.{i}", f"head.cls_align.{i}"
        yield f"bbox_head.reg_offset_module.{i}", f"head.reg_align.{i}"
    for i in range(NUM_LEVELS):  # parameters without a module here
        yield f"bbox_head.scales.{i}.scale", f"head.scales.{i}"


_TO_DETECTRON2 = dict(module_names())
_TO_MMDET = {target: source for source, target in _TO_DETECTRON2.items()}
assert len(_TO_MMDET) == len(_TO_DETECTRON2)

# The authors' names of a few modules, in MMDetection's terms.
_AUTHORS_NAMES = {
    "la_conv1": "layer_attention.0",
    "la_conv2": "layer_attention.2",
    "cls_prob_conv1": "cls_prob_module.0",
    "cls_prob_conv2": "cls_prob_module.2",
    "reg_offset_conv1": "reg_offset_module.0",
    "reg_offset_conv2": "reg_offset_module.2",
}


def detectron2_name(mmdet_name: str) -> Optional[str]:
    """Return the name here of an entry of a released state dict, MMDetection's or the authors';
    None for a name that no TOOD model has.
    """
    name = ".".join(_AUTHORS_NAMES.get(part, part) for part in mmdet_name.split("."))
    return _translate(name, _TO_DETECTRON2)


def mmdet_name(detectron2_name: str) -> Optional[str]:
    """Return MMDetection's name of an entry; None for a name that TOOD does not have here."""
    return _translate(detectron2_name, _TO_MMDET)


def _translate(name: str, table: Dict[str, str]) -> Optional[str]:
    if name in table:
        return table[name]
    module, _, leaf = name.rpartition(".")
    return f"{table[module]}.{leaf}" if module in table else None
