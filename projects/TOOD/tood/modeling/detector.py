"""
TOOD, the detector: backbone, task-aligned head, assignment, losses and inference.

Shapes: N images, R locations of all levels, K classes. Boxes are XYXY pixels of the network's
input. Start reading at :meth:`TOOD.forward_training` and :meth:`TOOD.forward_inference`; how
they are called is in Detectron2's ``DenseDetector.forward``.
"""

from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from tood.modeling.assign import Assignment, assign_atss, assign_tal, locations_of_image
from tood.modeling.dense_head import DensePredictions
from tood.modeling.head import TOODHead
from tood.modeling.losses import aligned_focal_loss, giou_loss
from tood.modeling.parallel_head import ParallelHead
from tood.modeling.postprocess import Candidates, select_candidates

__all__ = ["TOOD"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADS = {"task_aligned": TOODHead, "parallel": ParallelHead}
ASSIGNERS = ("tal", "atss")
# The logarithm of a score that is as good as 0.
LOG_ZERO = -100.0


class Targets(NamedTuple):
    """What a batch has to learn, in one shape for both phases."""

    gt_index: Tensor  # (N, R) int64, the object that a location answers for, -1 for background
    gt_classes: Tensor  # (N, R) int64, the class of this object, anything for background
    gt_boxes: Tensor  # (N, R, 4) the box of this object, anything for background
    cls_targets: Tensor  # (N, R) the score to reach for this class, 0 for background
    box_weights: Tensor  # (N, R) weight in the box loss, 0 for background
    valid: Tensor  # (N, R) bool, whether the location takes part in the loss

    @property
    def positive(self) -> Tensor:
        """(N, R) bool, whether a location answers for an object."""
        return self.gt_index >= 0


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
        atss_iters: int,
        assigner: str = "tal",
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
        precision_train: str = "float32",
        precision_test: str = "float32",
        input_format: str = "RGB",
    ):
        """
        Args:
            backbone: a Detectron2 backbone.
            head: from features to :class:`DensePredictions`.
            head_in_features: names of the feature maps, from fine to coarse.
            pixel_mean, pixel_std: of each channel, in the order of ``input_format``.
            num_classes: number of classes K.
            atss_iters: iterations of ATSS before TAL.
            assigner: "tal", or "atss" throughout.
            atss_topk: candidates of an object on each level in ATSS.
            tal_topk, tal_alpha, tal_beta: candidates of an object in TAL, and the exponents of
                score and IoU in its metric.
            focal_loss_gamma, focal_loss_alpha: of the classification loss; alpha in the warm-up.
            cls_loss_weight, box_reg_loss_weight: weights of the two losses.
            freeze_bn_stats: keep the backbone's batch norm statistics while training.
            score_thresh_test, topk_candidates_test, nms_thresh_test, max_detections_per_image:
                of inference; candidates are counted per level.
            precision_train, precision_test: of ``PRECISIONS``, what the network computes in while
                training and at inference.
            input_format: "RGB" or "BGR", what the images are.

        Raises:
            ValueError: for an unknown precision or assigner.
        """
        for key, value, choices in (
            ("PRECISION_TRAIN", precision_train, PRECISIONS),
            ("PRECISION_TEST", precision_test, PRECISIONS),
            ("ASSIGNER", assigner, ASSIGNERS),
        ):
            if value not in choices:
                raise ValueError(
                    f"MODEL.TOOD.{key} is {value!r}; it must be one of {', '.join(choices)}."
                )
        super().__init__(
            backbone, head, list(head_in_features), pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.strides = [backbone.output_shape()[f].stride for f in head_in_features]
        self.num_classes = num_classes
        self.atss_iters = atss_iters
        self.assigner = assigner
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
        self.precision_train = precision_train
        self.precision_test = precision_test
        self.input_format = input_format
        # Called in each training step with what was made of the batch: see TrainingWatcher.
        self.watcher: Optional[Callable] = None

    @classmethod
    def from_config(cls, cfg):
        tood = cfg.MODEL.TOOD
        backbone = build_backbone(cfg)
        feature_shapes = [backbone.output_shape()[f] for f in tood.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": HEADS[tood.HEAD](cfg, feature_shapes),
            "head_in_features": tood.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "num_classes": tood.NUM_CLASSES,
            "assigner": tood.ASSIGNER,
            "atss_iters": tood.ATSS_ITERS,
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
            "precision_train": tood.PRECISION_TRAIN,
            "precision_test": tood.PRECISION_TEST,
            "input_format": cfg.INPUT.FORMAT,
        }

    def train(self, mode: bool = True):
        super().train(mode)
        if self.freeze_bn_stats:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, batched_inputs: List[Dict[str, Tensor]]):
        """As Detectron2's ``DenseDetector``, in the precision of training or of inference."""
        precision = self.precision_train if self.training else self.precision_test
        if precision == "float32":  # or whatever a caller's autocast says
            return super().forward(batched_inputs)
        with torch.autocast(self.device.type, PRECISIONS[precision]):
            return super().forward(batched_inputs)

    def preprocess_image(self, batched_inputs: List[Dict[str, Tensor]]) -> ImageList:
        """
        Detectron2's normalized, padded batch. At inference on a CPU it is in channels-last memory,
        and so are then all maps of the network, which takes less time. Training stays with the
        plain order, whose rounding errors are half as large.
        """
        images = super().preprocess_image(batched_inputs)
        if not self.training and self.device.type == "cpu":
            images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        return images

    def predict_dense(
        self, batched_inputs: List[Dict[str, Tensor]]
    ) -> Tuple[Tensor, Tensor, Boxes]:
        """
        What the network says of every location, before any threshold or NMS: the base of
        analysis, export and checks. Gradients flow unless the caller turns them off, and the
        precision is the caller's, not ``precision_test``.

        Args:
            batched_inputs: as for the model itself; only "image" is read.

        Returns:
            - aligned scores (N, R, K), probabilities
            - aligned boxes (N, R, 4), not clipped, pixels of the network's input: the resized,
              padded image, not the picture in the file
            - anchors, R boxes, whose centres are the locations
        """
        _, predictions = self.predict_with_images(batched_inputs)
        return predictions.pred_scores, predictions.pred_boxes, predictions.anchors

    def predict_with_images(
        self, batched_inputs: List[Dict[str, Tensor]]
    ) -> Tuple[ImageList, DensePredictions]:
        """The normalized batch, and what the head says of it: for :meth:`label_batch`."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        return images, self.head([features[f] for f in self.head_in_features])

    def forward_training(
        self,
        images: ImageList,
        features: List[Tensor],
        predictions: DensePredictions,
        gt_instances: List[Instances],
    ) -> Dict[str, Tensor]:
        """
        Returns:
            the weighted "loss_cls" and "loss_box_reg", and "loss_centerness" where the head
            predicts it.
        """
        warmup = self.assigns_by_atss(get_event_storage().iter)
        # Assignment and loss stay in float32: t is a sixth power, and BCE takes a logarithm.
        with torch.autocast(self.device.type, enabled=False):
            targets = self.label_batch(images, predictions, gt_instances, warmup)
            if self.watcher is not None:
                self.watcher(self, images, features, predictions, targets, gt_instances)
            return self.losses(predictions, targets, warmup)

    def assigns_by_atss(self, iteration: int) -> bool:
        """Whether an iteration is one of the warm-up, or of a training that never leaves it."""
        return self.assigner == "atss" or iteration < self.atss_iters

    def loss_sums_of(
        self, batched_inputs: List[Dict[str, Tensor]], warmup: bool
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        """
        What :meth:`loss_sums` says of images that the model is not trained on: call it in
        evaluation mode. It talks to no other process.
        """
        precision = PRECISIONS[self.precision_test]
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            images, predictions = self.predict_with_images(batched_inputs)
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        with torch.autocast(self.device.type, enabled=False):
            targets = self.label_batch(images, predictions, gt_instances, warmup)
            return self.loss_sums(predictions, targets, warmup)

    @torch.no_grad()
    def label_batch(
        self,
        images: ImageList,
        predictions: DensePredictions,
        gt_instances: List[Instances],
        warmup: bool,
    ) -> Targets:
        """
        Assign every image on its own.

        Args:
            warmup: whether ATSS assigns, or TAL.
        """
        pred_boxes, anchors = predictions.pred_boxes, predictions.anchors.tensor
        pred_scores = None if warmup else predictions.pred_scores  # ATSS does without
        N, R, _ = pred_boxes.shape
        indices = torch.zeros(N, R, dtype=torch.int64, device=pred_boxes.device)
        targets = Targets(
            gt_index=indices - 1,
            gt_classes=indices,
            gt_boxes=torch.zeros_like(pred_boxes),
            cls_targets=pred_boxes.new_zeros(N, R),
            box_weights=pred_boxes.new_zeros(N, R),
            valid=torch.zeros_like(indices, dtype=torch.bool),
        )
        for i, (gt, image_size) in enumerate(zip(gt_instances, images.image_sizes)):
            locations, level_sizes = locations_of_image(
                image_size,
                predictions.grid_sizes,
                self.strides,
                self.backbone.size_divisibility,
                pred_boxes.device,
            )
            # Not True: PyTorch would copy it to a GPU, and wait.
            targets.valid[i, locations] = indices.new_ones(sum(level_sizes), dtype=torch.bool)
            if len(gt) == 0:
                continue
            assignment = self._assign(
                None if warmup else pred_scores[i, locations],
                pred_boxes[i, locations],
                anchors[locations],
                level_sizes,
                gt,
                warmup,
            )
            matched = assignment.gt_index.clamp(min=0)
            targets.gt_index[i, locations] = assignment.gt_index
            targets.gt_classes[i, locations] = gt.gt_classes[matched]
            targets.gt_boxes[i, locations] = gt.gt_boxes.tensor.float()[matched]
            targets.cls_targets[i, locations] = assignment.cls_target
            targets.box_weights[i, locations] = assignment.box_weight
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
        self, predictions: DensePredictions, targets: Targets, warmup: bool
    ) -> Dict[str, Tensor]:
        """
        The losses are sums over the batch, divided by the sum of their targets' weights over
        the batches of all processes.
        """
        sums, weights = self.loss_sums(predictions, targets, warmup)
        losses = torch.stack(list(sums.values())) / _mean_over_processes(weights).clamp(min=1)
        return dict(zip(sums, losses))

    def loss_sums(
        self, predictions: DensePredictions, targets: Targets, warmup: bool
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        """
        Returns:
            the weighted sum of each loss over the batch, and of each the sum of its targets'
            weights, as one tensor.
        """
        loss_cls = self._loss_cls(predictions.pred_log_scores, targets, warmup)
        loss_box_reg = self._loss_box_reg(predictions.pred_boxes, targets)
        sums = {
            "loss_cls": self.cls_loss_weight * loss_cls,
            "loss_box_reg": self.box_reg_loss_weight * loss_box_reg,
        }
        weights = [targets.cls_targets.sum(), targets.box_weights.sum()]
        if predictions.centerness_logits is not None:
            sums["loss_centerness"] = _loss_centerness(predictions.centerness_logits, targets)
            weights.append(weights[0])  # of ATSS, the number of positives
        return sums, torch.stack(weights)

    def _loss_cls(self, pred_log_scores: Tensor, targets: Targets, warmup: bool) -> Tensor:
        """
        Nearly every number is background and needs half of the loss only; what positives say of
        the class of their object is cut out of it and has the whole loss.
        """
        options = dict(gamma=self.focal_loss_gamma, alpha=self.focal_loss_alpha if warmup else None)
        classes = targets.gt_classes.unsqueeze(2)
        of_objects = pred_log_scores.gather(2, classes)
        cut = torch.where(targets.positive.unsqueeze(2), LOG_ZERO, of_objects)
        background = aligned_focal_loss(pred_log_scores.scatter(2, classes, cut), **options)
        objects = aligned_focal_loss(of_objects.squeeze(2), targets.cls_targets, **options)
        # Not a product with a mask: infinity times zero is no number.
        background = torch.where(targets.valid, background.sum(dim=2), 0.0)
        return background.sum() + torch.where(targets.positive, objects, 0.0).sum()

    def _loss_box_reg(self, pred_boxes: Tensor, targets: Targets) -> Tensor:
        # Over all locations, for picking the positives would make a GPU wait for the CPU.
        pred_boxes = torch.where(targets.positive.unsqueeze(2), pred_boxes, targets.gt_boxes)
        return (giou_loss(pred_boxes, targets.gt_boxes) * targets.box_weights).sum()

    def forward_inference(
        self, images: ImageList, features: List[Tensor], predictions: DensePredictions
    ) -> List[Instances]:
        """
        Returns:
            for each image, ``pred_boxes`` in pixels of the network's input, ``scores`` and
            ``pred_classes``, by falling score.
        """
        return [self.suppress_non_maxima(x) for x in self._candidates(images, predictions)]

    def find_candidates(self, batched_inputs: List[Dict[str, Tensor]]) -> List[Instances]:
        """
        What :meth:`forward_inference` hands to NMS, for images as the model itself takes them: for
        test-time augmentation, which collects the candidates of several looks at an image first.
        """
        precision = PRECISIONS[self.precision_test]
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            images, predictions = self.predict_with_images(batched_inputs)
        return self._candidates(images, predictions)

    def _candidates(self, images: ImageList, predictions: DensePredictions) -> List[Instances]:
        candidates = self.select(predictions)
        counts = candidates.counts.tolist()  # the one moment when the CPU waits for a GPU
        return [
            Instances(
                image_size,
                pred_boxes=Boxes(candidates.boxes[i, :count]),
                scores=candidates.scores[i, :count],
                pred_classes=candidates.classes[i, :count],
            )
            for i, (count, image_size) in enumerate(zip(counts, images.image_sizes))
        ]

    def select(self, predictions: DensePredictions) -> Candidates:
        """What takes part in NMS, of the whole batch and in tensors alone."""
        scores, threshold = predictions.pred_scores, self.score_thresh_test
        if predictions.centerness_logits is not None:  # the threshold is for the class alone
            sure = predictions.pred_log_scores.exp() > threshold
            scores, threshold = torch.where(sure, scores, -1.0), 0.0
        return select_candidates(
            scores,
            predictions.pred_boxes,
            predictions.level_sizes,
            threshold,
            self.topk_candidates_test,
        )

    def suppress_non_maxima(self, candidates: Instances) -> Instances:
        """The best of the candidates of an image that do not overlap, by falling score."""
        keep = batched_nms(
            candidates.pred_boxes.tensor,
            candidates.scores,
            candidates.pred_classes,
            self.nms_thresh_test,
        )
        return candidates[keep[: self.max_detections_per_image]]


def _loss_centerness(centerness_logits: Tensor, targets: Targets) -> Tensor:
    """Binary cross-entropy of the positives, whose centerness is their box's weight in ATSS."""
    losses = F.binary_cross_entropy_with_logits(
        centerness_logits, targets.box_weights, reduction="none"
    )
    return torch.where(targets.positive, losses, 0.0).sum()


def _mean_over_processes(x: Tensor) -> Tensor:
    world_size = comm.get_world_size()
    if world_size == 1:
        return x
    x = x / world_size
    torch.distributed.all_reduce(x)
    return x
