"""Names of parameters: the released checkpoints' (MMDetection's) in this project."""

import re

__all__ = ["detectron2_name"]

# (pattern of an MMDetection name, its form here), tried in order; the first that fits is it.
_RULES = [
    (r"backbone\.conv1\.(.+)", r"backbone.bottom_up.stem.conv1.\1"),
    (r"backbone\.bn1\.(.+)", r"backbone.bottom_up.stem.conv1.norm.\1"),
    (r"backbone\.layer(\d)\.(\d+)\.conv(\d)\.(.+)", r"backbone.bottom_up.res{0}.\2.conv\3.\4"),
    (r"backbone\.layer(\d)\.(\d+)\.bn(\d)\.(.+)", r"backbone.bottom_up.res{0}.\2.conv\3.norm.\4"),
    (
        r"backbone\.layer(\d)\.(\d+)\.downsample\.0\.(.+)",
        r"backbone.bottom_up.res{0}.\2.shortcut.\3",
    ),
    (
        r"backbone\.layer(\d)\.(\d+)\.downsample\.1\.(.+)",
        r"backbone.bottom_up.res{0}.\2.shortcut.norm.\3",
    ),
    (r"neck\.lateral_convs\.([0-2])\.conv\.(.+)", r"backbone.fpn_lateral{0}.\2"),
    (r"neck\.fpn_convs\.([0-2])\.conv\.(.+)", r"backbone.fpn_output{0}.\2"),
    (r"neck\.fpn_convs\.([34])\.conv\.(.+)", r"backbone.top_block.p{0}.\2"),
    (r"bbox_head\.inter_convs\.(\d+)\.conv\.(.+)", r"head.inter_convs.\1.0.\2"),
    (r"bbox_head\.inter_convs\.(\d+)\.gn\.(.+)", r"head.inter_convs.\1.1.\2"),
    (
        r"bbox_head\.(cls|reg)_decomp\.layer_attention\.([02])\.(.+)",
        r"head.\1_decomp.attention.\2.\3",
    ),
    (r"bbox_head\.(cls|reg)_decomp\.reduction_conv\.conv\.(.+)", r"head.\1_decomp.reduction.\2"),
    (r"bbox_head\.(cls|reg)_decomp\.reduction_conv\.gn\.(.+)", r"head.\1_decomp.norm.\2"),
    (r"bbox_head\.tood_(cls|reg)\.(.+)", r"head.\1_pred.\2"),
    (r"bbox_head\.cls_prob_module\.([02])\.(.+)", r"head.cls_align.\1.\2"),
    (r"bbox_head\.reg_offset_module\.([02])\.(.+)", r"head.reg_align.\1.\2"),
    (r"bbox_head\.scales\.(\d+)\.scale", r"head.scales.\1"),
]
# What {0} is: the first number of the name, counted from somewhere else.
_OFFSETS = {"backbone.layer": 1, "neck.": 3}


def detectron2_name(mmdet_name: str) -> str:
    """
    Raises:
        KeyError: for a name that no TOOD checkpoint has.
    """
    for pattern, form in _RULES:
        match = re.fullmatch(pattern, mmdet_name)
        if match:
            name = match.expand(form)
            if "{0}" in form:
                offset = next(o for p, o in _OFFSETS.items() if mmdet_name.startswith(p))
                name = name.replace("{0}", str(int(match.group(1)) + offset))
            return name
    raise KeyError(mmdet_name)
