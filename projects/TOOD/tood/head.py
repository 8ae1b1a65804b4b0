"""
The task-aligned head (T-head, Section 3.1): from features to aligned scores and boxes.

Shapes: N images, K classes, C channels, L stacked convolutions; a level has H x W locations
with one anchor each, and R locations are those of all levels, from fine to coarse, row by row.
Boxes are XYXY pixels of the network's input; stride units stay inside ``decode_distances``.
"""

import math
from typing import List, NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat, get_norm
from detectron2.modeling import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes
from torch import Tensor, nn

from .deform_conv import DeformConvPack
from .layers import TaskDecomposition, log_geometric_mean_of_sigmoids, sample_each_side

__all__ = ["ANCHOR_TYPES", "DensePredictions", "TOODHead", "decode_deltas", "decode_distances"]

ANCHOR_TYPES = ("anchor_free", "anchor_based")


class DensePredictions(NamedTuple):
    """What the head says of every location, level by level, before any threshold."""

    pred_log_scores: List[Tensor]  # (N, H*W, K) each, logarithms of the aligned probabilities
    pred_boxes: List[Tensor]  # (N, H*W, 4) each, aligned boxes
    anchors: List[Boxes]  # H*W boxes each
    grid_sizes: List[torch.Size]  # (H, W) each

    @property
    def pred_scores(self) -> List[Tensor]:
        """The aligned probabilities, (N, H*W, K) each."""
        return [x.exp() for x in self.pred_log_scores]


class TOODHead(nn.Module):
    """
    Stacked interactive convolutions that both tasks share, a :class:`TaskDecomposition` for each
    task, a predictor for each task, and the alignment of both predictions (Eq. 1 to 8). The
    weights are shared by all levels, except for one scale of the box regression a level.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        strides: List[int],
        num_classes: int,
        anchor_generator: nn.Module,
        anchor_type: str = "anchor_free",
        box2box_transform: Box2BoxTransform,
        conv_dim: int = 256,
        num_convs: int = 6,
        norm: str = "GN",
        num_dcn_convs: int = 0,
        dcn_num_groups: int = 4,
        prior_prob: float = 0.01,
    ):
        """
        Args:
            in_channels: channels of every feature map.
            strides: stride of every feature map, in pixels.
            num_classes: number of classes K.
            anchor_generator: creates one square anchor a location from a list of feature maps.
            anchor_type: one of ``ANCHOR_TYPES``.
            box2box_transform: decodes the deltas of "anchor_based".
            conv_dim: channels C of the interactive convolutions.
            num_convs: number of interactive convolutions L.
            norm: norm of the convolutions, a name that Detectron2's ``get_norm`` knows.
            num_dcn_convs: how many of the first interactive convolutions are deformable.
            dcn_num_groups: deformable groups of these.
            prior_prob: score that each class starts with.

        Raises:
            ValueError: for an unknown anchor type, or more than one anchor a location.
        """
        super().__init__()
        if anchor_type not in ANCHOR_TYPES:
            raise ValueError(
                f"MODEL.TOOD.ANCHOR_TYPE is {anchor_type!r}; it must be one of {ANCHOR_TYPES}."
            )
        if set(anchor_generator.num_anchors) != {1}:
            raise ValueError(
                "TOOD has one anchor a location, but MODEL.ANCHOR_GENERATOR makes "
                f"{list(anchor_generator.num_anchors)} on its levels; "
                "give one size a level and the single aspect ratio 1.0."
            )
        self.strides = strides
        self.anchor_generator = anchor_generator
        self.anchor_type = anchor_type
        self.box2box_transform = box2box_transform

        self.inter_convs = nn.ModuleList(
            _conv_norm_relu(
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
        self.cls_align = _align_branch(conv_dim * num_convs, conv_dim // 4, out_channels=1)
        self.reg_align = _align_branch(conv_dim * num_convs, conv_dim // 4, out_channels=8)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in strides)

        self._init_weights(prior_prob)

    @classmethod
    def from_config(cls, cfg, input_shape: List[ShapeSpec]):
        in_channels = {s.channels for s in input_shape}
        assert len(in_channels) == 1, f"every level needs the same channels, got {in_channels}"
        return {
            "in_channels": in_channels.pop(),
            "strides": [s.stride for s in input_shape],
            "num_classes": cfg.MODEL.TOOD.NUM_CLASSES,
            "anchor_generator": build_anchor_generator(cfg, input_shape),
            "anchor_type": cfg.MODEL.TOOD.ANCHOR_TYPE,
            "box2box_transform": Box2BoxTransform(weights=cfg.MODEL.TOOD.BBOX_REG_WEIGHTS),
            "conv_dim": cfg.MODEL.TOOD.CONV_DIM,
            "num_convs": cfg.MODEL.TOOD.NUM_CONVS,
            "norm": cfg.MODEL.TOOD.NORM,
            "num_dcn_convs": cfg.MODEL.TOOD.NUM_DCN_CONVS,
            "dcn_num_groups": cfg.MODEL.TOOD.DCN_NUM_GROUPS,
            "prior_prob": cfg.MODEL.TOOD.PRIOR_PROB,
        }

    def forward(self, features: List[Tensor]) -> DensePredictions:
        """
        Args:
            features: one (N, C, H, W) a level, from fine to coarse.
        """
        anchors = self.anchor_generator(features)
        pred_log_scores, pred_boxes = [], []
        for level, x in enumerate(features):
            log_scores, boxes = self._forward_level(x, anchors[level].tensor, level)
            pred_log_scores.append(log_scores)
            pred_boxes.append(boxes)
        grid_sizes = [x.shape[-2:] for x in features]
        return DensePredictions(pred_log_scores, pred_boxes, anchors, grid_sizes)

    def _forward_level(self, x: Tensor, anchors: Tensor, level: int):
        """
        Args:
            x: (N, C, H, W).
            anchors: (H*W, 4).

        Returns:
            log-scores (N, H*W, K) and boxes (N, H*W, 4), both float32.
        """
        inter_features = []
        for conv in self.inter_convs:
            x = conv(x)
            inter_features.append(x)
        inter_features = cat(inter_features, dim=1)
        pooled = inter_features.mean(dim=(2, 3), keepdim=True)

        cls_logits = self.cls_pred(self.cls_decomp(inter_features, pooled))
        box_regression = self.reg_pred(self.reg_decomp(inter_features, pooled))
        align_logits = self.cls_align(inter_features)
        offsets = self.reg_align(inter_features)

        # Half precision is too coarse for products of small probabilities and for pixels.
        with torch.autocast(x.device.type, enabled=False):
            log_scores = log_geometric_mean_of_sigmoids(cls_logits.float(), align_logits.float())
            boxes = self._decode(box_regression.float(), anchors, level)
            boxes = sample_each_side(boxes, offsets.float())
        K = log_scores.shape[1]
        return permute_to_N_HWA_K(log_scores, K), permute_to_N_HWA_K(boxes, 4)

    def _decode(self, box_regression: Tensor, anchors: Tensor, level: int) -> Tensor:
        scale = self.scales[level].float()
        if self.anchor_type == "anchor_free":
            # The scale is outside the exponential, as in the released models.
            return decode_distances(scale * box_regression.exp(), anchors, self.strides[level])
        return decode_deltas(scale * box_regression, anchors, self.box2box_transform)

    def _init_weights(self, prior_prob: float):
        plain = [*self.inter_convs, self.cls_pred, self.reg_pred, self.cls_align, self.reg_align]
        for layer in nn.ModuleList(plain).modules():
            if isinstance(layer, (nn.Conv2d, DeformConvPack)):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in self.inter_convs.modules():
            if isinstance(layer, DeformConvPack):
                nn.init.zeros_(layer.conv_offset.weight)
        # Offsets start near zero: boxes begin as what their own location says.
        for layer in self.reg_align:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.001)
        # Both factors of the score start at the prior, and so does their geometric mean.
        bias = -math.log((1 - prior_prob) / prior_prob)
        nn.init.constant_(self.cls_pred.bias, bias)
        nn.init.constant_(self.cls_align[-1].bias, bias)


def decode_distances(distances: Tensor, anchors: Tensor, stride: int) -> Tensor:
    """
    Args:
        distances: (N, 4, H, W), from the location to the left, top, right and bottom side, in
            units of the stride.
        anchors: (H*W, 4), whose centres are the locations.
        stride: pixels.

    Returns:
        (N, 4, H, W), XYXY pixels.
    """
    H, W = distances.shape[-2:]
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    points = centers.t().reshape(1, 2, H, W)
    distances = distances * stride
    return cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)


def decode_deltas(deltas: Tensor, anchors: Tensor, box2box_transform: Box2BoxTransform) -> Tensor:
    """
    Args:
        deltas: (N, 4, H, W), (dx, dy, dw, dh) times the weights of the transform.
        anchors: (H*W, 4).

    Returns:
        (N, 4, H, W), XYXY pixels.
    """
    N, _, H, W = deltas.shape
    deltas = permute_to_N_HWA_K(deltas, 4)
    # The released models bound how much a box shrinks as well as how much it grows; Detectron2
    # bounds growth only.
    _, _, ww, wh = box2box_transform.weights
    bound = box2box_transform.scale_clamp
    lowest = deltas.new_tensor([-math.inf, -math.inf, -bound * ww, -bound * wh])
    deltas = torch.maximum(deltas, lowest)
    boxes = box2box_transform.apply_deltas(deltas.reshape(N * H * W, 4), anchors.repeat(N, 1))
    return boxes.view(N, H, W, 4).permute(0, 3, 1, 2).contiguous()


def _conv_norm_relu(
    in_channels: int, out_channels: int, norm: str, dcn_num_groups: int
) -> nn.Sequential:
    """
    3x3 convolution, deformable if it has deformable groups, + norm + ReLU; the norm takes the
    place of the bias.
    """
    bias = norm == ""
    if dcn_num_groups > 0:
        layers = [DeformConvPack(in_channels, out_channels, num_groups=dcn_num_groups, bias=bias)]
    else:
        layers = [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)]
    if norm != "":
        layers.append(get_norm(norm, out_channels))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def _align_branch(in_channels: int, hidden_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden_channels, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden_channels, out_channels, 3, padding=1),
    )
