"""
The task-aligned head (T-head, Section 3.1): from features to aligned scores and boxes.

Shapes: N images, K classes, C channels, L stacked convolutions, H x W locations of one level.
"""

from detectron2.config import configurable
from detectron2.layers import cat
from torch import Tensor, nn

from tood.modeling.dense_head import (
    HEAD_REGISTRY,
    DenseHead,
    LevelMaps,
    conv_norm_relu,
    init_convs,
    init_score,
)
from tood.modeling.layers import AlignmentBranch, TaskDecomposition, read_layers

__all__ = ["TOODHead"]


@HEAD_REGISTRY.register()
def task_aligned(cfg, input_shape) -> "TOODHead":
    """Build the head of ``MODEL.TOOD.HEAD`` "task_aligned"."""
    return TOODHead(cfg, input_shape)


class TOODHead(DenseHead):
    """
    Stacked interactive convolutions that both tasks share, a :class:`TaskDecomposition` for each
    task, a predictor for each task, and the alignment of both predictions (Eq. 1 to 8).
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        conv_dim: int = 256,
        num_convs: int = 6,
        norm: str = "GN",
        num_dcn_convs: int = 0,
        dcn_num_groups: int = 4,
        align_cls: bool = True,
        align_box: bool = True,
        prior_prob: float = 0.01,
        **kwargs,
    ):
        """
        Args:
            in_channels: channels of every feature map.
            num_classes: number of classes K.
            conv_dim: channels C of the interactive convolutions.
            num_convs: number of interactive convolutions L.
            norm: norm of the convolutions, a name that Detectron2's ``get_norm`` knows.
            num_dcn_convs: number of deformable convolutions, the first ones.
            dcn_num_groups: deformable groups of these.
            align_cls, align_box: whether the scores are corrected by the map M, and the sides of
                the boxes read at the offsets O.
            prior_prob: score that each class starts with.
            kwargs: of :class:`DenseHead`.
        """
        super().__init__(**kwargs)
        self.inter_convs = nn.ModuleList(
            conv_norm_relu(
                in_channels if i == 0 else conv_dim,
                conv_dim,
                norm,
                dcn_num_groups if i < num_dcn_convs else 0,
            )
            for i in range(num_convs)
        )
        decomposition = dict(conv_dim=conv_dim, num_convs=num_convs, norm=norm)
        self.cls_decomp = TaskDecomposition(**decomposition)
        self.reg_decomp = TaskDecomposition(**decomposition)
        self.cls_pred = nn.Conv2d(conv_dim, num_classes, 3, padding=1)
        self.reg_pred = nn.Conv2d(conv_dim, 4, 3, padding=1)
        # Eq. 7 and 8: the map M that corrects the scores, and the offsets O of the boxes' sides.
        widths = (conv_dim * num_convs, conv_dim // 4)
        self.cls_align = AlignmentBranch(*widths, out_channels=1) if align_cls else None
        self.reg_align = AlignmentBranch(*widths, out_channels=8) if align_box else None
        self._init_weights(prior_prob)

    def _forward_level(self, x: Tensor) -> LevelMaps:
        inter_features = []
        for conv in self.inter_convs:
            x = conv(x)
            inter_features.append(x)
        pooled = cat([x.mean(dim=(2, 3), keepdim=True) for x in inter_features], dim=1)
        branches = [branch for branch in (self.cls_align, self.reg_align) if branch is not None]
        readers = [self.cls_decomp, self.reg_decomp, *branches]
        for_cls, for_reg, *hidden = read_layers(
            inter_features, [r.kernels(pooled) for r in readers]
        )
        aligned = {branch: branch.from_hidden(x) for branch, x in zip(branches, hidden)}
        return LevelMaps(
            cls_logits=self.cls_pred(self.cls_decomp(for_cls)),
            box_regression=self.reg_pred(self.reg_decomp(for_reg)),
            align_logits=aligned.get(self.cls_align),
            offsets=aligned.get(self.reg_align),
        )

    def _init_weights(self, prior_prob: float):
        branches = [branch for branch in (self.cls_align, self.reg_align) if branch is not None]
        init_convs(nn.ModuleList([*self.inter_convs, self.cls_pred, self.reg_pred, *branches]))
        # Both factors of the score start at the prior, and so does their geometric mean.
        init_score(self.cls_pred, prior_prob)
        if self.cls_align is not None:
            init_score(self.cls_align[-1], prior_prob)
        # Offsets start near zero: boxes begin as their own location predicts them.
        if self.reg_align is not None:
            init_convs(self.reg_align, std=0.001)
