"""
The task-aligned head (T-head, Section 3.1): from features to aligned scores and boxes.

Shapes: N images, K classes, C channels, L stacked convolutions; a level has H x W locations
with one anchor each, and R locations are those of all levels, from fine to coarse, row by row.
Boxes are XYXY pixels of the network's input; stride units stay inside ``TOODHead._decode``.
"""

import math
from typing import List, NamedTuple, Sequence, Tuple

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

__all__ = [
    "ANCHOR_TYPES",
    "DensePredictions",
    "TOODHead",
    "decode_deltas",
    "decode_distances",
    "make_anchors",
]

ANCHOR_TYPES = ("anchor_free", "anchor_based")


class DensePredictions(NamedTuple):
    """What the head says of every location of all levels, before any threshold."""

    pred_log_scores: Tensor  # (N, R, K), logarithms of the aligned probabilities
    pred_boxes: Tensor  # (N, R, 4), aligned boxes
    anchors: Boxes  # R boxes, whose centres are the locations
    grid_sizes: List[torch.Size]  # (H, W) of each level

    @property
    def pred_scores(self) -> Tensor:
        """The aligned probabilities, (N, R, K)."""
        return self.pred_log_scores.exp()

    @property
    def level_sizes(self) -> List[int]:
        """The locations of each level; their sum is R."""
        return [H * W for H, W in self.grid_sizes]


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
        grid_sizes = [x.shape[-2:] for x in features]
        anchors = Boxes(make_anchors(self.anchor_generator, grid_sizes))
        levels = [self._forward_level(x) for x in features]
        # Half precision is too coarse for products of small probabilities and for pixels.
        with torch.autocast(features[0].device.type, enabled=False):
            cls_logits, align_logits, box_regression, offsets = zip(*levels)
            pred_log_scores = log_geometric_mean_of_sigmoids(
                _flatten_levels(cls_logits), _flatten_levels(align_logits)
            )
            boxes = self._decode(_flatten_levels(box_regression), anchors.tensor, grid_sizes)
            pred_boxes = _sample_levels(boxes, offsets, grid_sizes)
        return DensePredictions(pred_log_scores, pred_boxes, anchors, grid_sizes)

    def _forward_level(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """
        Args:
            x: (N, C, H, W).

        Returns:
            what becomes P, M, B and O: maps (N, K, H, W), (N, 1, H, W), (N, 4, H, W) and
            (N, 8, H, W).
        """
        inter_features = []
        for conv in self.inter_convs:
            x = conv(x)
            inter_features.append(x)
        for_cls, for_reg, for_cls_align, for_reg_align = self._reduce(inter_features)
        _, relu, cls_align = self.cls_align
        _, relu, reg_align = self.reg_align
        return (
            self.cls_pred(self.cls_decomp(for_cls)),
            cls_align(relu(for_cls_align)),
            self.reg_pred(self.reg_decomp(for_reg)),
            reg_align(relu(for_reg_align)),
        )

    def _reduce(self, inter_features: List[Tensor]) -> Tuple[Tensor, ...]:
        """
        The four 1x1 convolutions that read the interactive features of all layers, as one matrix
        product a layer: the L maps (N, C, H, W) are never copied into one.

        Returns:
            the inputs of the norms in both decompositions, (N, C, H, W), and of the ReLUs in both
            alignment branches, (N, C / 4, H, W).
        """
        N, C, H, W = inter_features[0].shape
        pooled = cat([x.mean(dim=(2, 3), keepdim=True) for x in inter_features], dim=1)
        aligns = (self.cls_align[0], self.reg_align[0])
        kernels = [self.cls_decomp.kernels(pooled), self.reg_decomp.kernels(pooled)]
        kernels += [conv.weight.flatten(1).expand(N, -1, -1) for conv in aligns]
        widths = [k.shape[1] for k in kernels]
        # Locations x channels, in and out: without a copy where the memory is channels-last.
        layers = [x.flatten(2).transpose(1, 2) for x in inter_features]
        kernels = cat(kernels, dim=1).transpose(1, 2).split(C, dim=1)
        x = torch.bmm(layers[0], kernels[0])
        for layer, kernel in zip(layers[1:], kernels[1:]):
            x += torch.bmm(layer, kernel)
        x = x.transpose(1, 2).unflatten(2, (H, W))
        cls, reg, *hidden = x.split(widths, dim=1)
        biases = [conv.bias.to(x.dtype).view(1, -1, 1, 1) for conv in aligns]
        return cls, reg, *(h + bias for h, bias in zip(hidden, biases))

    def _decode(
        self, box_regression: Tensor, anchors: Tensor, grid_sizes: List[torch.Size]
    ) -> Tensor:
        """(N, R, 4) as predicted to (N, R, 4) boxes."""
        anchor_free = self.anchor_type == "anchor_free"
        units = self.strides if anchor_free else [1] * len(self.strides)
        scales = [
            (scale.float() * unit).expand(H * W)
            for scale, unit, (H, W) in zip(self.scales, units, grid_sizes)
        ]
        scales = cat(scales).unsqueeze(1)
        if anchor_free:
            # The scale is outside the exponential, as in the released models.
            return decode_distances(scales * box_regression.exp(), anchors)
        return decode_deltas(scales * box_regression, anchors, self.box2box_transform)

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


def make_anchors(generator: nn.Module, grid_sizes: Sequence[Tuple[int, int]]) -> Tensor:
    """
    The anchors of Detectron2's ``DefaultAnchorGenerator`` with one anchor a location, made where
    they are needed: Detectron2's main branch makes them on the CPU, and a GPU waits for the copy.

    Args:
        grid_sizes: (H, W) of each level.

    Returns:
        (R, 4), XYXY pixels.
    """
    levels = []
    for (H, W), stride, cell_anchor in zip(grid_sizes, generator.strides, generator.cell_anchors):
        x, y = (
            (torch.arange(size, dtype=torch.float32, device=cell_anchor.device) + generator.offset)
            * stride
            for size in (W, H)
        )
        x, y = x.expand(H, W), y.unsqueeze(1).expand(H, W)
        centers = torch.stack([x, y, x, y], dim=2).view(H * W, 4)
        levels.append(centers + cell_anchor)
    return cat(levels)


def decode_distances(distances: Tensor, anchors: Tensor) -> Tensor:
    """
    Args:
        distances: (N, R, 4), pixels from the location to the left, top, right and bottom side.
        anchors: (R, 4), whose centres are the locations.

    Returns:
        (N, R, 4), XYXY pixels.
    """
    points = (anchors[:, :2] + anchors[:, 2:]) / 2
    return cat([points - distances[..., :2], points + distances[..., 2:]], dim=2)


def decode_deltas(deltas: Tensor, anchors: Tensor, box2box_transform: Box2BoxTransform) -> Tensor:
    """
    Args:
        deltas: (N, R, 4), (dx, dy, dw, dh) times the weights of the transform.
        anchors: (R, 4).

    Returns:
        (N, R, 4), XYXY pixels.
    """
    N, R, _ = deltas.shape
    # The released models bound how much a box shrinks as well as how much it grows; Detectron2
    # bounds growth only.
    dx, dy, dw, dh = deltas.unbind(dim=2)
    _, _, ww, wh = box2box_transform.weights
    bound = box2box_transform.scale_clamp
    deltas = torch.stack([dx, dy, dw.clamp(min=-bound * ww), dh.clamp(min=-bound * wh)], dim=2)
    boxes = box2box_transform.apply_deltas(deltas.reshape(N * R, 4), anchors.repeat(N, 1))
    return boxes.view(N, R, 4)


def _flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """One (N, X, H, W) a level to (N, R, X), in float32."""
    return cat([permute_to_N_HWA_K(x, x.shape[1]) for x in maps], dim=1).float()


def _sample_levels(boxes: Tensor, offsets: Sequence[Tensor], grid_sizes: List[torch.Size]):
    """:func:`sample_each_side` of (N, R, 4), with one (N, 8, H, W) a level."""
    levels = boxes.split([H * W for H, W in grid_sizes], dim=1)
    sampled = [
        sample_each_side(x.transpose(1, 2).unflatten(2, tuple(size)), o.float())
        for x, o, size in zip(levels, offsets, grid_sizes)
    ]
    return _flatten_levels(sampled)


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
