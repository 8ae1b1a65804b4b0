"""The task-aligned head (T-head, Section 3.1): from features to aligned scores and boxes.

Shapes: N images, K classes, C channels, L stacked convolutions, H x W locations of one level.
"""

from typing import Dict, List, Optional, Union

from detectron2.config import configurable
from detectron2.layers import cat
from torch import Tensor, nn

from tood.modeling.dense_head import HEAD_REGISTRY, DenseHead, LevelMaps, stack_convs
from tood.modeling.layers import AlignmentBranch, TaskDecomposition, average_locations, read_layers


@HEAD_REGISTRY.register()
def task_aligned(cfg, input_shape) -> "TOODHead":
    """Build the head of ``MODEL.TOOD.HEAD`` "task_aligned"."""
    return TOODHead(cfg, input_shape)


class TOODHead(DenseHead):
    """Stacked interactive convolutions that both tasks share, a :class:`TaskDecomposition` for each
    task, a predictor for each task, and the alignment of both predictions (Eq. 1 to 8).
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        conv_dim: int = 256,
        num_convs: int = 6,
        norm: str = "GN",
        num_dcn_convs: int = 0,
        dcn_num_groups: int = 4,
        **kwargs,
    ):
        """
        Args:
            in_channels: channels of every feature map.
            conv_dim: channels C of the interactive convolutions.
            num_convs: number of interactive convolutions L.
            norm: norm of the convolutions, a name that Detectron2's ``get_norm`` knows.
            num_dcn_convs: number of deformable convolutions, the first ones.
            dcn_num_groups: deformable groups of these.
            kwargs: as in :class:`DenseHead`.
        """
        super().__init__(**kwargs)
        dcn_groups = [dcn_num_groups if i < num_dcn_convs else 0 for i in range(num_convs)]
        self.inter_convs = nn.ModuleList(
            stack_convs(in_channels, conv_dim, norm, dcn_groups, self.conv_type)
        )
        self.cls_decomp, self.reg_decomp = (
            TaskDecomposition(conv_dim=conv_dim, num_convs=num_convs, norm=norm) for _ in range(2)
        )
        self.add_predictors(self.inter_convs, conv_dim, align_channels=conv_dim * num_convs)

    def _forward_level(self, x: Tensor) -> LevelMaps:
        inter_features = []
        for conv in self.inter_convs:
            x = conv(x)
            inter_features.append(x)
        pooled = cat([average_locations(x) for x in inter_features], dim=1)[..., None, None]
        branches = [branch for branch in (self.cls_align, self.reg_align) if branch is not None]
        readers: List[Union[TaskDecomposition, AlignmentBranch]]
        readers = [self.cls_decomp, self.reg_decomp, *branches]
        for_cls, for_reg, *hidden = read_layers(
            inter_features, [r.kernels(pooled) for r in readers]
        )
        aligned: Dict[Optional[AlignmentBranch], Tensor]
        aligned = {branch: branch.from_hidden(x) for branch, x in zip(branches, hidden)}
        return LevelMaps(
            cls_logits=self.cls_pred(self.cls_decomp(for_cls)),
            box_regression=self.reg_pred(self.reg_decomp(for_reg)),
            align_logits=aligned.get(self.cls_align),
            offsets=aligned.get(self.reg_align),
        )
