"""ResNet + FPN as the released models have it, from Detectron2's parts."""

import torch
from detectron2.layers import Conv2d
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN
from torch import Tensor, nn

from .deform_conv import make_deform_convs_portable
from .fixed_norm import use_fixed_norms

__all__ = ["LastLevelP6P7NoReLU", "build_tood_resnet_fpn_backbone"]


class LastLevelP6P7NoReLU(nn.Module):
    """
    P6 and P7 by two stride-2 convolutions on P5, without the ReLU between them that Detectron2's
    ``LastLevelP6P7`` has.
    """

    num_levels = 2
    in_feature = "p5"

    def __init__(self, channels: int):
        super().__init__()
        self.p6 = Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, p5: Tensor):
        # Not in half precision: on a map one location wide, the CPU's bfloat16 gradient of a kernel
        # with stride 2 holds memory that nobody wrote (seen with PyTorch 2.15). They cost nothing.
        with torch.autocast(p5.device.type, enabled=False):
            p6 = self.p6(p5.to(self.p6.weight.dtype))
            return [p6, self.p7(p6)]


@BACKBONE_REGISTRY.register()
def build_tood_resnet_fpn_backbone(cfg, input_shape):
    """
    P3 to P5 from C3 to C5, then :class:`LastLevelP6P7NoReLU`; every FPN convolution starts from
    Xavier's uniform distribution.

    Returns:
        FPN
    """
    resnet = build_resnet_backbone(cfg, input_shape)
    make_deform_convs_portable(resnet)
    use_fixed_norms(resnet)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    backbone = FPN(
        bottom_up=resnet,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7NoReLU(channels),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    _init_fpn(backbone)
    return backbone


@torch.no_grad()
def _init_fpn(backbone: FPN):
    for name, child in backbone.named_children():
        if name == "bottom_up":
            continue
        for layer in child.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
