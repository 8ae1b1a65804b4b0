"""
TOOD, the detector: backbone, task-aligned head, assignment, losses and inference.

Shapes: N images, R locations of all levels, K classes. Boxes are XYXY pixels of the network's
input. Start reading at :meth:`TOOD.forward_training` and :meth:`TOOD.forward_inference`; how
they are called is in Detectron2's ``DenseDetector.forward``.
"""

from typing import Dict, List, NamedTuple, Tuple

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms, cat
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from .assign import Assignment, assign_atss, assign_tal, locations_of_image
from .head import DensePredictions, TOODHead
from .losses import aligned_focal_loss

__all__ = ["TOOD"]


class Targets(NamedTuple):
    """What a batch has to learn, in one shape for both phases."""

    cls_targets: Tensor  # (N, R, K) the score to reach
    gt_boxes: Tensor  # (N, R, 4) the box of each location's object, anything for background
    box_weights: Tensor  # (N, R) weight in the box loss, 0 for background
    positive: Tensor  # (N, R) bool, whether the location answers for an object
    valid: Tensor  # (N, R) bool, whether the location takes part in the loss


@META_ARCH_REGISTRY.register()
class TOOD(DenseDetector):
    """Task-aligned One-stage Object Detection (arXiv 2108.07755)."""

    @configurable
    def __init__(
        self,
        *,
        backbone,
        head: nn.Module,
        head_in_features: List[str],
        pixel_mean,
        pixel_std,
        num_classes: int,
        warmup_iters: int,
        atss_topk: int = 9,
        tal_topk: int = 13,
        tal_alpha: float = 1.0,
        tal_beta: float = 6.0,
        focal_loss_gamma: float = 2.0,
        focal_loss_alpha: float = 0.25,
        cls_loss_weight: float = 1.0,
        box_reg_loss_weight: float = 2.0,
        freeze_bn_stats: bool = True,
        score_thresh_test: float = 0.05,
        topk_candidates_test: int = 1000,
        nms_thresh_test: float = 0.6,
        max_detections_per_image: int = 100,
        input_format: str = "RGB",
    ):
        """
        Args:
            backbone: a Detectron2 backbone.
            head: from features to :class:`DensePredictions`.
            head_in_features: names of the feature maps, from fine to coarse.
            pixel_mean, pixel_std: of each channel, in the order of ``input_format``.
            num_classes: number of classes K.
            warmup_iters: iterations of ATSS before TAL.
            atss_topk: candidates of an object on each level in ATSS.
            tal_topk, tal_alpha, tal_beta: candidates of an object in TAL, and the exponents of
                score and IoU in its metric.
            focal_loss_gamma, focal_loss_alpha: of the classification loss; alpha in the warm-up.
            cls_loss_weight, box_reg_loss_weight: weights of the two losses.
            freeze_bn_stats: keep the backbone's batch norm statistics while training.
            score_thresh_test, topk_candidates_test, nms_thresh_test, max_detections_per_image:
                of inference; candidates are counted per level.
            input_format: "RGB" or "BGR", what the images are.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.strides = [backbone.output_shape()[f].stride for f in head_in_features]
        self.num_classes = num_classes
        self.warmup_iters = warmup_iters
        self.atss_topk = atss_topk
        self.tal_topk = tal_topk
        self.tal_alpha = tal_alpha
        self.tal_beta = tal_beta
        self.focal_loss_gamma = focal_loss_gamma
        self.focal_loss_alpha = focal_loss_alpha
        self.cls_loss_weight = cls_loss_weight
        self.box_reg_loss_weight = box_reg_loss_weight
        self.freeze_bn_stats = freeze_bn_stats
        self.score_thresh_test = score_thresh_test
        self.topk_candidates_test = topk_candidates_test
        self.nms_thresh_test = nms_thresh_test
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg):
        tood = cfg.MODEL.TOOD
        backbone = build_backbone(cfg)
        feature_shapes = [backbone.output_shape()[f] for f in tood.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": TOODHead(cfg, feature_shapes),
            "head_in_features": tood.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "num_classes": tood.NUM_CLASSES,
            "warmup_iters": tood.WARMUP_ITERS,
            "atss_topk": tood.ATSS_TOPK,
            "tal_topk": tood.TAL_TOPK,
            "tal_alpha": tood.TAL_ALPHA,
            "tal_beta": tood.TAL_BETA,
            "focal_loss_gamma": tood.FOCAL_LOSS_GAMMA,
            "focal_loss_alpha": tood.FOCAL_LOSS_ALPHA,
            "cls_loss_weight": tood.CLS_LOSS_WEIGHT,
            "box_reg_loss_weight": tood.BOX_REG_LOSS_WEIGHT,
            "freeze_bn_stats": tood.FREEZE_BN_STATS,
            "score_thresh_test": tood.SCORE_THRESH_TEST,
            "topk_candidates_test": tood.TOPK_CANDIDATES_TEST,
            "nms_thresh_test": tood.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "input_format": cfg.INPUT.FORMAT,
        }

    def train(self, mode: bool = True):
        super().train(mode)
        if self.freeze_bn_stats:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def predict_dense(
        self, batched_inputs: List[Dict[str, Tensor]]
    ) -> Tuple[Tensor, Tensor, Boxes]:
        """
        What the network says of every location, before any threshold or NMS: the base of
        analysis, export and checks. Gradients flow unless the caller turns them off.

        Args:
            batched_inputs: as for the model itself; only "image" is read.

        Returns:
            - aligned scores (N, R, K), probabilities
            - aligned boxes (N, R, 4), not clipped, pixels of the network's input: the resized,
              padded image, not the picture in the file
            - anchors, R boxes, whose centres are the locations
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        predictions = self.head([features[f] for f in self.head_in_features])
        return (
            cat(predictions.pred_scores, dim=1),
            cat(predictions.pred_boxes, dim=1),
            Boxes.cat(predictions.anchors),
        )

    def forward_training(
        self,
        images: ImageList,
        features: List[Tensor],
        predictions: DensePredictions,
        gt_instances: List[Instances],
    ) -> Dict[str, Tensor]:
        """
        Returns:
            the weighted "loss_cls" and "loss_box_reg".
        """
        warmup = get_event_storage().iter < self.warmup_iters
        # Assignment and loss stay in float32: t is a sixth power, and BCE takes a logarithm.
        with torch.autocast(self.device.type, enabled=False):
            pred_log_scores = cat(predictions.pred_log_scores, dim=1)
            pred_boxes = cat(predictions.pred_boxes, dim=1)
            targets = self.label_batch(
                images,
                predictions,
                pred_log_scores.detach().exp(),
                pred_boxes.detach(),
                gt_instances,
                warmup,
            )
            return self.losses(pred_log_scores, pred_boxes, targets, warmup)

    @torch.no_grad()
    def label_batch(
        self,
        images: ImageList,
        predictions: DensePredictions,
        pred_scores: Tensor,
        pred_boxes: Tensor,
        gt_instances: List[Instances],
        warmup: bool,
    ) -> Targets:
        """
        Assign every image on its own.

        Args:
            pred_scores, pred_boxes: (N, R, K) and (N, R, 4), the predictions of all levels.
            warmup: whether ATSS assigns, or TAL.
        """
        N, R, K = pred_scores.shape
        anchors = Boxes.cat(predictions.anchors).tensor
        targets = Targets(
            cls_targets=pred_scores.new_zeros(N, R, K),
            gt_boxes=pred_boxes.new_zeros(N, R, 4),
            box_weights=pred_boxes.new_zeros(N, R),
            positive=torch.zeros(N, R, dtype=torch.bool, device=self.device),
            valid=torch.zeros(N, R, dtype=torch.bool, device=self.device),
        )
        for i, (gt, image_size) in enumerate(zip(gt_instances, images.image_sizes)):
            locations, level_sizes = locations_of_image(
                image_size,
                predictions.grid_sizes,
                self.strides,
                self.backbone.size_divisibility,
                self.device,
            )
            targets.valid[i, locations] = True
            if len(gt) == 0:
                continue
            assignment = self._assign(
                pred_scores[i, locations],
                pred_boxes[i, locations],
                anchors[locations],
                level_sizes,
                gt,
                warmup,
            )
            matched = assignment.gt_index.clamp(min=0)
            targets.positive[i, locations] = assignment.gt_index >= 0
            targets.box_weights[i, locations] = assignment.box_weight
            targets.gt_boxes[i, locations] = gt.gt_boxes.tensor.float()[matched]
            # Background writes its 0 to the class of object 0, where 0 stands already.
            targets.cls_targets[i, locations, gt.gt_classes[matched]] = assignment.cls_target
        return targets

    def _assign(
        self, pred_scores, pred_boxes, anchors, level_sizes, gt: Instances, warmup: bool
    ) -> Assignment:
        gt_boxes = gt.gt_boxes.tensor.float()
        if warmup:
            return assign_atss(anchors, level_sizes, gt_boxes, topk=self.atss_topk)
        return assign_tal(
            pred_scores,
            pred_boxes,
            anchors,
            gt_boxes,
            gt.gt_classes,
            topk=self.tal_topk,
            alpha=self.tal_alpha,
            beta=self.tal_beta,
        )

    def losses(
        self, pred_log_scores: Tensor, pred_boxes: Tensor, targets: Targets, warmup: bool
    ) -> Dict[str, Tensor]:
        """
        Both losses are sums over the batch, divided by the sum of their targets' weights over
        the batches of all processes.

        Args:
            pred_log_scores, pred_boxes: (N, R, K) and (N, R, 4).
        """
        loss_cls = aligned_focal_loss(
            pred_log_scores,
            targets.cls_targets,
            gamma=self.focal_loss_gamma,
            alpha=self.focal_loss_alpha if warmup else None,
        )
        loss_cls = (loss_cls * targets.valid.unsqueeze(-1)).sum()

        # fvcore's giou_loss is the same, but stops at NaN with an assertion about crossed boxes.
        loss_box_reg = generalized_box_iou_loss(
            pred_boxes[targets.positive], targets.gt_boxes[targets.positive]
        )
        loss_box_reg = (loss_box_reg * targets.box_weights[targets.positive]).sum()

        weight_sums = torch.stack([targets.cls_targets.sum(), targets.box_weights.sum()])
        cls_normalizer, box_normalizer = _mean_over_processes(weight_sums).clamp(min=1)
        return {
            "loss_cls": self.cls_loss_weight * loss_cls / cls_normalizer,
            "loss_box_reg": self.box_reg_loss_weight * loss_box_reg / box_normalizer,
        }

    def forward_inference(
        self, images: ImageList, features: List[Tensor], predictions: DensePredictions
    ) -> List[Instances]:
        """
        Returns:
            for each image, ``pred_boxes`` in pixels of the network's input, ``scores`` and
            ``pred_classes``, by falling score.
        """
        pred_scores = predictions.pred_scores
        return [
            self._inference_single_image(
                [scores[i] for scores in pred_scores],
                [boxes[i] for boxes in predictions.pred_boxes],
                image_size,
            )
            for i, image_size in enumerate(images.image_sizes)
        ]

    def _inference_single_image(
        self, pred_scores: List[Tensor], pred_boxes: List[Tensor], image_size: Tuple[int, int]
    ) -> Instances:
        """
        Args:
            pred_scores, pred_boxes: (H*W, K) and (H*W, 4) of each level.
        """
        levels = [
            select_candidates(scores, self.score_thresh_test, self.topk_candidates_test)
            for scores in pred_scores
        ]
        scores = cat([level.scores for level in levels])
        classes = cat([level.classes for level in levels])
        boxes = cat([boxes[level.locations] for boxes, level in zip(pred_boxes, levels)])
        candidates = Instances(
            image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes
        )
        # Sampling far outside of the map leaves boxes without area; NMS would keep them all. One
        # box without end would stop it from removing any other.
        candidates = candidates[candidates.pred_boxes.nonempty() & boxes.isfinite().all(dim=1)]
        keep = batched_nms(
            candidates.pred_boxes.tensor,
            candidates.scores,
            candidates.pred_classes,
            self.nms_thresh_test,
        )
        return candidates[keep[: self.max_detections_per_image]]


class Candidates(NamedTuple):
    """(location, class) pairs of one level, by falling score; each (D,)."""

    scores: Tensor
    locations: Tensor
    classes: Tensor


def select_candidates(pred_scores: Tensor, score_thresh: float, topk: int) -> Candidates:
    """
    Args:
        pred_scores: (H*W, K). NaN is below every threshold.

    Returns:
        the best ``topk`` pairs above ``score_thresh``, or fewer.
    """
    above = pred_scores > score_thresh
    scores = pred_scores[above]
    pairs = above.nonzero()
    scores, best = scores.topk(min(topk, len(scores)))
    locations, classes = pairs[best].unbind(dim=1)
    return Candidates(scores, locations, classes)


def _mean_over_processes(x: Tensor) -> Tensor:
    world_size = comm.get_world_size()
    if world_size == 1:
        return x
    x = x / world_size
    torch.distributed.all_reduce(x)
    return x
