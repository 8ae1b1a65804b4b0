"""The heads' common part: from the maps of each level to scores and boxes of every location.

Shapes: N images, K classes, C channels; a level has H x W locations with one anchor each, and R
locations are those of all levels, from fine to coarse, row by row. Boxes are XYXY pixels of the
network's input; stride units stay inside ``DenseHead._decode``.
"""

import math
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
import torchvision
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import build_anchor_generator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from tood.modeling.backbone.deform_conv import DeformConvPack
from tood.modeling.backbone.separable import (
    DepthwiseConv2d,
    SeparableConv2d,
    check_conv_type,
    make_conv,
)
from tood.modeling.cpu import make_norm
from tood.modeling.layers import (
    AlignmentBranch,
    average_log_sigmoids,
    sample_each_side,
)

ANCHOR_TYPES = ("anchor_free", "anchor_based")

HEAD_REGISTRY = Registry("TOOD_HEAD")
HEAD_REGISTRY.__doc__ = """
Heads, or functions that build one, called with the config and the shapes of the feature maps;
``MODEL.TOOD.HEAD`` names one of them.
"""


class DensePredictions(NamedTuple):
    """Dense predictions before thresholding and NMS."""

    pred_log_scores: Tensor  # (N, R, K), logarithms of the aligned probabilities
    pred_boxes: Tensor  # (N, R, 4), aligned boxes
    anchors: Boxes  # R boxes, whose centres are the locations
    grid_sizes: List[torch.Size]  # (H, W) of each level
    centerness_logits: Optional[Tensor] = None  # (N, R), if the head predicts it
    extras: Dict[str, Tensor] = {}  # (N, R, X) float32 each, if the head predicts more

    @property
    def pred_scores(self) -> Tensor:
        """Scores (N, R, K) that rank the detections: the aligned probabilities, or, if the head
        predicts it, their geometric means with the centerness, as ATSS's authors have it.
        """
        if self.centerness_logits is None:
            return self.pred_log_scores.exp()
        log_centerness = F.logsigmoid(self.centerness_logits).unsqueeze(2)
        return (0.5 * (self.pred_log_scores + log_centerness)).exp()

    def apply_threshold(self, threshold: float) -> Tuple[Tensor, float]:
        """Return ``pred_scores``, and the threshold of these. With centerness, that of the class
        alone is applied to them: other scores are -1.
        """
        if self.centerness_logits is None:
            return self.pred_scores, threshold
        confident = self.pred_log_scores.exp() > threshold
        return torch.where(confident, self.pred_scores, -1.0), 0.0

    @property
    def level_sizes(self) -> List[int]:
        """The locations of each level; their sum is R."""
        return [H * W for H, W in self.grid_sizes]


class LevelMaps(NamedTuple):
    """Outputs of a head's convolutions for one level."""

    cls_logits: Tensor  # (N, K, H, W), becomes P
    box_regression: Tensor  # (N, 4, H, W), becomes B
    align_logits: Optional[Tensor] = None  # (N, 1, H, W), becomes M, which corrects the scores
    offsets: Optional[Tensor] = None  # (N, 8, H, W), O, where each side of a box is read
    centerness_logits: Optional[Tensor] = None  # (N, 1, H, W)
    # (N, X, H, W) each: becomes a field of this name of the Instances, and an exported output.
    extras: Dict[str, Tensor] = {}


class DenseHead(nn.Module):
    """Scores and boxes from the :class:`LevelMaps` that a subclass makes of each level: aligned by
    Eq. 5 and 6 if there are maps for it. The weights are shared by all levels, except for one
    scale of the box regression per level.
    """

    # Samples the sides of the boxes. An export replaces it by one that its target knows.
    deform_conv2d = staticmethod(torchvision.ops.deform_conv2d)

    def __init__(
        self,
        *,
        num_classes: int,
        strides: List[int],
        anchor_generator: DefaultAnchorGenerator,
        anchor_type: str = "anchor_free",
        box2box_transform: Box2BoxTransform,
        align_cls: bool = True,
        align_box: bool = True,
        prior_prob: float = 0.01,
        conv_type: str = "plain",
    ):
        """
        Args:
            num_classes: number of classes K.
            strides: stride of every feature map, in pixels.
            anchor_generator: creates one square anchor per location from a list of feature maps.
            anchor_type: one of ``ANCHOR_TYPES``.
            box2box_transform: decodes the deltas of "anchor_based".
            align_cls, align_box: whether the scores are corrected by the map M, and the sides of
                the boxes read at the offsets O.
            prior_prob: score that each class starts with.
            conv_type: type of the stacked convolutions and the predictors, "plain" or "depthwise"
                (:func:`make_conv`). The alignment branches are narrow, and always "plain".

        Raises:
            ValueError: for an unknown type of anchors or convolutions, or more than one anchor per
                location.
        """
        super().__init__()
        if anchor_type not in ANCHOR_TYPES:
            raise ValueError(
                f"MODEL.TOOD.ANCHOR_TYPE is {anchor_type!r}; it must be one of {ANCHOR_TYPES}."
            )
        check_conv_type(conv_type)
        if set(anchor_generator.num_anchors) != {1}:
            raise ValueError(
                "TOOD has one anchor per location, but MODEL.ANCHOR_GENERATOR makes "
                f"{list(anchor_generator.num_anchors)} on its levels; "
                "give one size per level and the single aspect ratio 1.0."
            )
        self.num_classes, self.prior_prob = num_classes, prior_prob
        self.align_cls, self.align_box = align_cls, align_box
        self.conv_type = conv_type
        self.strides = list(strides)
        self.anchor_generator = anchor_generator
        self.anchor_type = anchor_type
        self.box2box_transform = box2box_transform
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in strides)

    @classmethod
    def from_config(cls, cfg, input_shape: List[ShapeSpec]) -> dict:
        """Return the arguments that both heads take from a config."""
        in_channels = {s.channels for s in input_shape}
        assert len(in_channels) == 1, f"every level needs the same channels, got {in_channels}"
        tood = cfg.MODEL.TOOD
        return {
            "in_channels": in_channels.pop(),
            "strides": [s.stride for s in input_shape],
            "num_classes": tood.NUM_CLASSES,
            "anchor_generator": build_anchor_generator(cfg, input_shape),
            "anchor_type": tood.ANCHOR_TYPE,
            "box2box_transform": Box2BoxTransform(weights=tood.BBOX_REG_WEIGHTS),
            "conv_dim": tood.CONV_DIM,
            "num_convs": tood.NUM_CONVS,
            "norm": tood.NORM,
            "num_dcn_convs": tood.NUM_DCN_CONVS,
            "dcn_num_groups": tood.DCN_NUM_GROUPS,
            "align_cls": tood.ALIGN_CLS,
            "align_box": tood.ALIGN_BOX,
            "prior_prob": tood.PRIOR_PROB,
            "conv_type": tood.CONV_TYPE,
        }

    def add_predictors(self, convs: nn.Module, conv_dim: int, align_channels: int) -> None:
        """Add ``cls_pred``, ``reg_pred``, ``cls_align`` and ``reg_align``, the latter two None if
        they are turned off, and draw the weights of all of them and of the layers before them.

        Args:
            convs: the layers before.
            conv_dim: input channels of the predictors.
            align_channels: input channels of the alignment branches.
        """
        self.cls_pred = make_conv(self.conv_type, conv_dim, self.num_classes)
        self.reg_pred = make_conv(self.conv_type, conv_dim, 4)
        # Eq. 7 and 8: the map M that corrects the scores, and the offsets O of the boxes' sides.
        widths = (align_channels, conv_dim // 4)
        self.cls_align = AlignmentBranch(*widths, out_channels=1) if self.align_cls else None
        self.reg_align = AlignmentBranch(*widths, out_channels=8) if self.align_box else None
        added = (self.cls_pred, self.reg_pred, self.cls_align, self.reg_align)
        init_convs(nn.ModuleList([convs, *(layer for layer in added if layer is not None)]))
        # Both factors of the score start at the prior, and so does their geometric mean.
        logit = -math.log((1 - self.prior_prob) / self.prior_prob)
        nn.init.constant_(self.cls_pred.get_parameter("bias"), logit)
        if self.cls_align is not None:
            nn.init.constant_(self.cls_align[-1].get_parameter("bias"), logit)
        # Offsets start near zero: boxes begin as their own location predicts them.
        if self.reg_align is not None:
            init_convs(self.reg_align, std=0.001)

    def forward(self, features: List[Tensor]) -> DensePredictions:
        """
        Args:
            features: one (N, C, H, W) per level, from fine to coarse.
        """
        grid_sizes = [x.shape[-2:] for x in features]
        anchors = Boxes(make_anchors(self.anchor_generator, grid_sizes))
        levels = zip(*(self._forward_level(x) for x in features))
        cls_logits, box_regression, align_logits, offsets, centerness, extra_maps = levels
        # Half precision is too coarse for products of small probabilities and for pixels.
        with torch.autocast(features[0].device.type, enabled=False):
            pred_log_scores = _flatten_levels(cls_logits)
            if align_logits[0] is None:
                pred_log_scores = F.logsigmoid(pred_log_scores)
            else:
                pred_log_scores = average_log_sigmoids(
                    pred_log_scores, _flatten_levels(align_logits)
                )
            pred_boxes = self._decode(_flatten_levels(box_regression), anchors.tensor, grid_sizes)
            if offsets[0] is not None:
                pred_boxes = self._sample(pred_boxes, offsets, grid_sizes)
            centerness_logits = None
            if centerness[0] is not None:
                centerness_logits = _flatten_levels(centerness).squeeze(2)
            extras = {
                name: _flatten_levels([maps[name] for maps in extra_maps]) for name in extra_maps[0]
            }
        return DensePredictions(
            pred_log_scores, pred_boxes, anchors, grid_sizes, centerness_logits, extras
        )

    def _forward_level(self, x: Tensor) -> LevelMaps:
        """Compute the maps of one level from its features (N, C, H, W)."""
        raise NotImplementedError

    def _decode(
        self, box_regression: Tensor, anchors: Tensor, grid_sizes: List[torch.Size]
    ) -> Tensor:
        """Decode (N, R, 4) as predicted to (N, R, 4) boxes."""
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

    def _sample(
        self, boxes: Tensor, offsets: Sequence[Tensor], grid_sizes: List[torch.Size]
    ) -> Tensor:
        """Apply :func:`sample_each_side` to (N, R, 4), with one (N, 8, H, W) per level."""
        levels = boxes.split([H * W for H, W in grid_sizes], dim=1)
        sampled = [
            sample_each_side(
                x.transpose(1, 2).unflatten(2, tuple(size)), o.float(), self.deform_conv2d
            )
            for x, o, size in zip(levels, offsets, grid_sizes)
        ]
        return _flatten_levels(sampled)


def make_anchors(generator: DefaultAnchorGenerator, grid_sizes: Sequence[torch.Size]) -> Tensor:
    """Return the anchors of Detectron2's ``DefaultAnchorGenerator``, one per location, made on the
    device: Detectron2's main branch makes them on the CPU, and a GPU waits for the copy.

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
    """Concatenate one (N, X, H, W) per level to (N, R, X), in float32."""
    return cat([permute_to_N_HWA_K(x, x.shape[1]) for x in maps], dim=1).float()


def stack_convs(
    in_channels: int,
    conv_dim: int,
    norm: str,
    dcn_groups: Sequence[int],
    conv_type: str = "plain",
) -> List[nn.Sequential]:
    """Return convolution + norm + ReLU for each of ``dcn_groups``; the norm replaces the bias.

    Args:
        dcn_groups: 0 for a convolution of :func:`make_conv`; groups of a deformable one.
        conv_type: type of those that are not deformable.

    Raises:
        ValueError: for deformable convolutions among "depthwise" ones.
    """
    if conv_type != "plain" and any(dcn_groups):
        raise ValueError(
            f"MODEL.TOOD.CONV_TYPE is {conv_type} with MODEL.TOOD.NUM_DCN_CONVS "
            f"{sum(map(bool, dcn_groups))}; deformable convolutions are for the type plain."
        )
    conv: nn.Module
    stack, bias = [], norm == ""
    for num_groups in dcn_groups:
        if num_groups > 0:
            conv = DeformConvPack(in_channels, conv_dim, num_groups=num_groups, bias=bias)
        else:
            conv = make_conv(conv_type, in_channels, conv_dim, bias=bias)
        layers = (conv, make_norm(norm, conv_dim), nn.ReLU(inplace=True))
        stack.append(nn.Sequential(*(layer for layer in layers if layer is not None)))
        in_channels = conv_dim
    return stack


def init_convs(module: nn.Module, std: float = 0.01) -> None:
    """Draw weights from a normal distribution; deformable convolutions begin as plain ones, and
    depthwise ones by :class:`DepthwiseConv2d`. The 1x1 convolution of a separable one has a ninth
    of a 3x3 kernel's inputs, and begins three times as large, so that its outputs are learned as
    soon (docs/results/small_data.md).
    """
    for layer in module.modules():
        if isinstance(layer, DepthwiseConv2d):
            layer.reset_parameters()
        elif isinstance(layer, (nn.Conv2d, DeformConvPack)):
            scale = 3 if isinstance(layer, SeparableConv2d) else 1
            nn.init.normal_(layer.weight, std=scale * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, DeformConvPack):
            nn.init.zeros_(layer.conv_offset.weight)
