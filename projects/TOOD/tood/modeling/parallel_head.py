"""The parallel head, which the paper compares with: one tower of convolutions for each task, as in
ATSS (arXiv 1912.02424).

Shapes: N images, K classes, C channels, H x W locations of one level.
"""

from detectron2.config import configurable
from torch import Tensor, nn

from tood.modeling.backbone.separable import make_conv
from tood.modeling.dense_head import (
    HEAD_REGISTRY,
    DenseHead,
    LevelMaps,
    init_convs,
    stack_convs,
)


@HEAD_REGISTRY.register()
def parallel(cfg, input_shape) -> "ParallelHead":
    """Build the head of ``MODEL.TOOD.HEAD`` "parallel"."""
    return ParallelHead(cfg, input_shape)


class ParallelHead(DenseHead):
    """Two towers and a predictor after each. With its centerness, it is ATSS's head; with the
    alignment of both predictions from the last feature of each tower, it is that of "TAL + TAP" in
    Table 2, whose code was never released: M from the classification's, O from the boxes'.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        conv_dim: int = 256,
        num_convs: int = 4,
        norm: str = "GN",
        num_dcn_convs: int = 0,
        dcn_num_groups: int = 4,
        align_cls: bool = False,
        align_box: bool = False,
        centerness: bool = False,
        **kwargs,
    ):
        """
        Args:
            in_channels: channels of every feature map.
            conv_dim: channels C of the towers.
            num_convs: number of convolutions of each tower.
            norm: norm of the convolutions, a name that Detectron2's ``get_norm`` knows.
            num_dcn_convs: number of deformable convolutions of each tower, the first ones.
            dcn_num_groups: deformable groups of these.
            centerness: whether the centerness is predicted, and detections ranked by it, too.
            align_cls, align_box, kwargs: as in :class:`DenseHead`.
        """
        super().__init__(align_cls=align_cls, align_box=align_box, **kwargs)
        dcn_groups = [dcn_num_groups if i < num_dcn_convs else 0 for i in range(num_convs)]
        self.cls_tower, self.reg_tower = (
            nn.Sequential(*stack_convs(in_channels, conv_dim, norm, dcn_groups, self.conv_type))
            for _ in range(2)
        )
        towers = nn.ModuleList([self.cls_tower, self.reg_tower])
        self.add_predictors(towers, conv_dim, align_channels=conv_dim)
        self.centerness = make_conv(self.conv_type, conv_dim, 1) if centerness else None
        if self.centerness is not None:
            init_convs(self.centerness)

    @classmethod
    def from_config(cls, cfg, input_shape):
        options = super().from_config(cfg, input_shape)
        return {**options, "centerness": cfg.MODEL.TOOD.CENTERNESS}

    def _forward_level(self, x: Tensor) -> LevelMaps:
        for_cls, for_reg = self.cls_tower(x), self.reg_tower(x)
        return LevelMaps(
            cls_logits=self.cls_pred(for_cls),
            box_regression=self.reg_pred(for_reg),
            align_logits=None if self.cls_align is None else self.cls_align(for_cls),
            offsets=None if self.reg_align is None else self.reg_align(for_reg),
            centerness_logits=None if self.centerness is None else self.centerness(for_reg),
        )
