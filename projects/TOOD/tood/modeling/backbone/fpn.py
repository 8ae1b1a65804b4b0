"""ResNet + FPN of the released models, from Detectron2's parts."""

from typing import List, Sequence

import torch
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BottleneckBlock,
    CNNBlockBase,
    DeformBottleneckBlock,
)
from torch import Tensor, nn

from tood.modeling.backbone.deform_conv import make_deform_convs_portable
from tood.modeling.backbone.fixed_norm import use_fixed_norms
from tood.modeling.backbone.separable import (
    DepthwiseConv2d,
    SeparableConv2d,
    check_conv_type,
    make_conv,
)

NUM_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class LastLevelP6P7NoReLU(nn.Module):
    """P6 and P7 by two stride-2 convolutions on P5, without the ReLU between them that Detectron2's
    ``LastLevelP6P7`` has; or P6 alone.
    """

    in_feature = "p5"

    def __init__(self, channels: int, num_levels: int = 2, conv_type: str = "plain"):
        """
        Args:
            channels: number of channels of P5, P6 and P7.
            num_levels: 1 for P6 alone, or 2.
            conv_type: type of the convolutions, as in :func:`make_conv`.
        """
        super().__init__()
        self.num_levels = num_levels
        self.p6 = make_conv(conv_type, channels, channels, stride=2)
        if num_levels == 2:
            self.p7 = make_conv(conv_type, channels, channels, stride=2)

    def forward(self, p5: Tensor):
        # Not in half precision: on a map one location wide, the CPU's bfloat16 gradient of a kernel
        # with stride 2 contains uninitialized memory (seen with PyTorch 2.15). They cost nothing.
        with torch.autocast(p5.device.type, enabled=False):
            p6 = self.p6(p5.to(self.p6.weight.dtype))
            return [p6, self.p7(p6)] if self.num_levels == 2 else [p6]


@BACKBONE_REGISTRY.register()
def build_tood_resnet_fpn_backbone(cfg, input_shape):
    """Call :func:`make_tood_fpn` on the ResNet of a config."""
    return make_tood_fpn(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        num_top_levels=count_top_levels(cfg.MODEL.TOOD.IN_FEATURES),
        conv_type=cfg.MODEL.TOOD.CONV_TYPE,
    )


def count_top_levels(names: Sequence[str]) -> int:
    """Return how many levels above P5 are needed for the named ones: 0, 1 or 2."""
    return 2 if "p7" in names else int("p6" in names)


def make_tood_fpn(
    *,
    bottom_up: Backbone,
    in_features: Sequence[str],
    out_channels: int = 256,
    norm: str = "",
    fuse_type: str = "sum",
    num_top_levels: int = 2,
    conv_type: str = "plain",
) -> FPN:
    """Build P3 to P5 from C3 to C5 (with C2, P2 as well), then :class:`LastLevelP6P7NoReLU`; every
    FPN convolution starts from Xavier's uniform distribution.

    Args:
        bottom_up: a ResNet; its deformable convolutions and batch norms are replaced by this
            project's, with the same parameters.
        in_features: names of its feature maps, from fine to coarse.
        out_channels, norm, fuse_type: arguments of Detectron2's ``FPN``.
        num_top_levels: number of levels above P5: 0, 1 or 2. A level that no head reads would
            have parameters without a gradient, which training by several processes refuses.
        conv_type: type of the convolutions that are not 1x1: "plain" or "depthwise".
    """
    make_deform_convs_portable(bottom_up)
    use_fixed_norms(bottom_up)
    check_conv_type(conv_type)
    top_block = None
    if num_top_levels:
        top_block = LastLevelP6P7NoReLU(out_channels, num_top_levels, conv_type)
    backbone = FPN(
        bottom_up=bottom_up,
        in_features=list(in_features),
        out_channels=out_channels,
        norm=norm,
        top_block=top_block,
        fuse_type=fuse_type,
    )
    if conv_type == "depthwise":
        _separate_outputs(backbone)
    _init_fpn(backbone)
    return backbone


def make_resnet_stages(
    *,
    depth: int,
    norm: str = "BN",
    stride_in_1x1: bool = False,
    num_groups: int = 1,
    width_per_group: int = 64,
    deform_on_per_stage: Sequence[bool] = (False, False, False, False),
    deform_modulated: bool = True,
    deform_num_groups: int = 1,
) -> List[List[CNNBlockBase]]:
    """Build the ``stages`` of Detectron2's ``ResNet``, whose ``make_default_stages`` supports
    neither ResNeXt's widths nor deformable convolutions in some of the stages.

    Args:
        depth: 18, 34, 50, 101 or 152; the last five arguments are for those from 50 on.
        norm: a name that Detectron2's ``get_norm`` knows.
        stride_in_1x1: whether the first 1x1 convolution of a stage has its stride, or the 3x3.
        num_groups, width_per_group: number and width of the groups of the 3x3 convolutions in
            the first stage.
        deform_on_per_stage: which stages have deformable 3x3 convolutions, from C2 to C5.
        deform_modulated, deform_num_groups: whether these predict masks as well, and the number
            of their deformable groups.

    Raises:
        ValueError: for another depth, or deformable convolutions or groups that it does not
            support.
    """
    if depth not in NUM_BLOCKS:
        raise ValueError(f"depth is {depth}; it must be one of {', '.join(map(str, NUM_BLOCKS))}")
    if depth < 50 and (num_groups > 1 or any(deform_on_per_stage)):
        raise ValueError(f"a ResNet of depth {depth} has no groups and no deformable convolutions")
    bottleneck = dict(stride_in_1x1=stride_in_1x1, num_groups=num_groups)
    deformable = dict(deform_modulated=deform_modulated, deform_num_groups=deform_num_groups)
    stages, in_channels = [], 64
    for i, (num_blocks, deform) in enumerate(zip(NUM_BLOCKS[depth], deform_on_per_stage)):
        options = dict(block_class=BasicBlock)
        if depth >= 50:
            width = num_groups * width_per_group * 2**i
            options = dict(block_class=BottleneckBlock, bottleneck_channels=width, **bottleneck)
        if deform:
            options.update(block_class=DeformBottleneckBlock, **deformable)
        stage = ResNet.make_stage(
            num_blocks=num_blocks,
            stride_per_block=[1 if i == 0 else 2] + [1] * (num_blocks - 1),
            in_channels=in_channels,
            out_channels=(64 if depth < 50 else 256) * 2**i,
            norm=norm,
            **options,
        )
        stages.append(stage)
        in_channels = stage[-1].out_channels
    return stages


def _separate_outputs(backbone: FPN) -> None:
    """Replace the 3x3 convolutions after the sums, in place."""
    for name, conv in list(backbone.named_children()):
        if name.startswith("fpn_output"):
            options = dict(bias=conv.bias is not None, norm=conv.norm)
            separable = SeparableConv2d(conv.in_channels, conv.out_channels, **options)
            setattr(backbone, name, separable)
            backbone.output_convs[backbone.output_convs.index(conv)] = separable


@torch.no_grad()
def _init_fpn(backbone: FPN):
    for name, child in backbone.named_children():
        if name == "bottom_up":
            continue
        for layer in child.modules():
            if isinstance(layer, nn.Conv2d) and not isinstance(layer, DepthwiseConv2d):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
