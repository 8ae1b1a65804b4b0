"""TOOD, the detector: backbone, task-aligned head, assignment, losses and inference.

Shapes: N images, R locations of all levels, K classes. Boxes are XYXY pixels of the network's
input. Start reading at :meth:`TOOD.forward_training` and :meth:`TOOD.forward_inference`; how
they are called is in Detectron2's ``DenseDetector.forward``.
"""

import contextlib
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from tood.modeling.assigners import ASSIGNER_REGISTRY, ATSS, Assigner
from tood.modeling.backbone import fpn, timm_fpn  # noqa: F401  (registers backbones)
from tood.modeling.backbone.levels import get_size_divisibility, get_strides, pad_to_multiple
from tood.modeling.backbone.recompute import recompute_blocks
from tood.modeling.dense_head import HEAD_REGISTRY, DensePredictions
from tood.modeling.head import TOODHead  # noqa: F401  (registers "task_aligned")
from tood.modeling.losses import (
    BOX_REG_LOSS_REGISTRY,
    BoxRegLoss,
    GIoULoss,
    compute_loss_sums,
    mean_over_processes,
)
from tood.modeling.parallel_head import ParallelHead  # noqa: F401  (registers "parallel")
from tood.modeling.postprocess import Candidates, select_candidates, suppress_non_maxima
from tood.modeling.targets import Targets, label_batch
from tood.modeling.teacher import Teacher

Batch = List[Dict[str, Tensor]]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@META_ARCH_REGISTRY.register()
class TOOD(DenseDetector):
    """Task-aligned One-stage Object Detection (arXiv 2108.07755)."""

    # Called in each training step with the batch's predictions and targets: TrainingWatcher.
    watcher: Optional[Callable] = None
    teacher: Optional[Teacher] = None  # its predictions are learned as well
    size_divisibility = property(lambda self: get_size_divisibility(self.backbone))  # pixels

    @configurable
    def __init__(
        self,
        *,
        backbone,
        head: nn.Module,
        head_in_features: List[str],
        num_classes: int,
        assigner: Assigner,
        warmup_assigner: Optional[Assigner] = None,
        atss_iters: int = 0,
        box_reg_loss: Optional[BoxRegLoss] = None,
        focal_loss_gamma: float = 2.0,
        cls_loss_weight: float = 1.0,
        box_reg_loss_weight: float = 2.0,
        freeze_bn_stats: bool = True,
        checkpoint_backbone: bool = False,
        score_thresh_test: float = 0.05,
        topk_candidates_test: int = 1000,
        nms_thresh_test: float = 0.6,
        class_agnostic_nms: bool = False,
        max_detections_per_image: int = 100,
        precision_train: str = "float32",
        precision_test: str = "float32",
        input_format: str = "RGB",
        **pixels,
    ):
        """
        Args:
            backbone: a Detectron2 backbone.
            head: maps features to :class:`DensePredictions`.
            head_in_features: names of the feature maps, from fine to coarse.
            num_classes: number of classes K.
            assigner: assigns from iteration ``atss_iters`` on.
            warmup_assigner: assigns in earlier iterations; default: ATSS.
            atss_iters: number of iterations that use ``warmup_assigner``.
            box_reg_loss: loss of predicted boxes; default: GIoU.
            focal_loss_gamma: exponent of the classification loss; its alpha is the assigner's.
            cls_loss_weight, box_reg_loss_weight: weights of the two losses.
            freeze_bn_stats: keep the backbone's batch norm statistics while training.
            checkpoint_backbone: apply :func:`recompute_blocks`: less memory, a longer step.
            score_thresh_test, topk_candidates_test, nms_thresh_test, max_detections_per_image:
                thresholds and limits of inference; candidates are counted per level.
            class_agnostic_nms: whether boxes of one class suppress those of others.
            precision_train, precision_test: compute dtype in training and at inference, one of
                ``PRECISIONS``.
            input_format: channel order of the images, "RGB" or "BGR".
            pixels: "pixel_mean" and "pixel_std" of each channel, in this order.

        Raises:
            ValueError: for an unknown precision, and for a head that does not fit the backbone.
        """
        super().__init__(backbone, head, list(head_in_features), **pixels)
        self.strides = get_strides(backbone, head_in_features, head)
        if checkpoint_backbone:
            recompute_blocks(backbone, freeze_bn_stats=freeze_bn_stats)
        self.assigner, self.box_reg_loss = assigner, box_reg_loss or GIoULoss()
        self.warmup_assigner, self.atss_iters = warmup_assigner or ATSS(), atss_iters
        weights = dict(cls_weight=cls_loss_weight, box_reg_weight=box_reg_loss_weight)
        self.loss_options = dict(gamma=focal_loss_gamma, **weights)
        self.nms_thresh_test, self.class_agnostic_nms = nms_thresh_test, class_agnostic_nms
        self.score_thresh_test, self.topk_candidates_test = score_thresh_test, topk_candidates_test
        self.num_classes, self.max_detections_per_image = num_classes, max_detections_per_image
        self.input_format, self.freeze_bn_stats = input_format, freeze_bn_stats
        self.precision_train, self.precision_test = _known(precision_train, precision_test)

    @classmethod
    def from_config(cls, cfg, backbone=None):
        tood = cfg.MODEL.TOOD
        backbone = backbone or build_backbone(cfg)
        feature_shapes = [backbone.output_shape()[f] for f in tood.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": HEAD_REGISTRY.get(tood.HEAD)(cfg, feature_shapes),
            "head_in_features": tood.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "num_classes": tood.NUM_CLASSES,
            "assigner": ASSIGNER_REGISTRY.get(tood.ASSIGNER)(cfg),
            "warmup_assigner": ASSIGNER_REGISTRY.get("atss")(cfg),
            "atss_iters": tood.ATSS_ITERS,
            "box_reg_loss": BOX_REG_LOSS_REGISTRY.get(tood.BOX_REG_LOSS)(cfg),
            "focal_loss_gamma": tood.FOCAL_LOSS_GAMMA,
            "cls_loss_weight": tood.CLS_LOSS_WEIGHT,
            "box_reg_loss_weight": tood.BOX_REG_LOSS_WEIGHT,
            "freeze_bn_stats": tood.FREEZE_BN_STATS,
            "checkpoint_backbone": tood.CHECKPOINT_BACKBONE,
            "score_thresh_test": tood.SCORE_THRESH_TEST,
            "topk_candidates_test": tood.TOPK_CANDIDATES_TEST,
            "nms_thresh_test": tood.NMS_THRESH_TEST,
            "class_agnostic_nms": tood.CLASS_AGNOSTIC_NMS,
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

    def forward(self, batched_inputs: Batch):
        """Run Detectron2's ``DenseDetector`` in the precision of training or of inference."""
        with self._autocast(self.precision_train if self.training else self.precision_test):
            return super().forward(batched_inputs)

    def _autocast(self, precision: str):
        if precision == "float32":  # or a caller's autocast
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[precision])

    def preprocess_image(self, batched_inputs: Batch) -> ImageList:
        """Return Detectron2's normalized, padded batch: at inference on a CPU in channels-last
        memory, as all maps are then, which takes less time; training has smaller rounding errors
        in the plain order.
        """
        images = super().preprocess_image(batched_inputs)
        images.tensor = pad_to_multiple(images.tensor, self.size_divisibility)
        if not self.training and self.device.type == "cpu":
            images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        return images

    def predict_dense(self, batched_inputs: Batch) -> Tuple[Tensor, Tensor, Boxes]:
        """Return the dense predictions before thresholding and NMS. Gradients flow unless the
        caller turns them off, and the precision is the caller's, not ``precision_test``.

        Args:
            batched_inputs: as for the model itself; only "image" is read.

        Returns:
            - aligned scores (N, R, K), probabilities
            - aligned boxes (N, R, 4), not clipped, pixels of the network's input: the resized,
              padded image, not the image in the file
            - anchors, R boxes, whose centres are the locations
        """
        _, predictions = self.predict_with_images(batched_inputs)
        return predictions.pred_scores, predictions.pred_boxes, predictions.anchors

    def predict_with_images(self, batched_inputs: Batch) -> Tuple[ImageList, DensePredictions]:
        """Return the normalized batch, and its dense predictions: for :meth:`label_batch`."""
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
        """Return "loss_cls", "loss_box_reg", and "loss_centerness" if the head predicts it."""
        assigner = self.assigner_at(get_event_storage().iter)
        # Assignment and loss stay in float32: t is a sixth power, and BCE takes a logarithm.
        with torch.autocast(self.device.type, enabled=False):
            targets = self.label_batch(images, predictions, gt_instances, assigner)
            if self.watcher is not None:
                self.watcher(self, images, features, predictions, targets, gt_instances)
            losses = self.losses(predictions, targets, assigner)
        if self.teacher is not None:
            losses.update(self.teacher(self, images, predictions, targets.valid))
        return losses

    def assigner_at(self, iteration: int) -> Assigner:
        """Return the assigner of an iteration."""
        return self.warmup_assigner if iteration < self.atss_iters else self.assigner

    def label_batch(
        self,
        images: ImageList,
        predictions: DensePredictions,
        gt_instances: List[Instances],
        assigner: Assigner,
    ) -> Targets:
        """Return the targets of :func:`~tood.modeling.targets.label_batch`."""
        levels = dict(strides=self.strides, size_divisibility=self.size_divisibility)
        return label_batch(predictions, images.image_sizes, gt_instances, assigner, **levels)

    def losses(
        self, predictions: DensePredictions, targets: Targets, assigner: Assigner
    ) -> Dict[str, Tensor]:
        """Divide sums over the batch by the mean of their targets' weights over all processes."""
        sums, weights = self.sum_losses(predictions, targets, assigner)
        losses = torch.stack(list(sums.values())) / mean_over_processes(weights).clamp(min=1)
        return dict(zip(sums, losses))

    def compute_loss_sums(
        self, batched_inputs: Batch, assigner: Assigner
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        """Return :func:`~tood.modeling.losses.compute_loss_sums` of images that the model is not
        trained on: call it in evaluation mode. It communicates with no other process.
        """
        with self._autocast(self.precision_test):
            images, predictions = self.predict_with_images(batched_inputs)
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        with torch.autocast(self.device.type, enabled=False):
            targets = self.label_batch(images, predictions, gt_instances, assigner)
            return self.sum_losses(predictions, targets, assigner)

    def sum_losses(self, predictions: DensePredictions, targets: Targets, assigner: Assigner):
        """Return :func:`~tood.modeling.losses.compute_loss_sums`. Extend it to train more."""
        options: Dict[str, Any] = dict(alpha=assigner.focal_loss_alpha, **self.loss_options)
        return compute_loss_sums(predictions, targets, box_reg_loss=self.box_reg_loss, **options)

    @property
    def box_reg_ceiling(self) -> Optional[float]:
        """The weighted :attr:`BoxRegLoss.ceiling`, None if there is none."""
        ceiling = self.box_reg_loss.ceiling
        return None if ceiling is None else ceiling * self.loss_options["box_reg_weight"]

    def forward_inference(
        self, images: ImageList, features: List[Tensor], predictions: DensePredictions
    ) -> List[Instances]:
        """Return for each image ``pred_boxes`` in pixels of the network's input, ``scores`` and
        ``pred_classes``, sorted by descending score, and a field for each extra of the head.
        """
        candidates = self.select(predictions).to_instances(images.image_sizes)
        return [self.suppress(x) for x in candidates]

    def suppress(self, candidates: Instances) -> Instances:
        """Return the detections of an image: its best candidates without overlap."""
        limit, agnostic = self.max_detections_per_image, self.class_agnostic_nms
        return suppress_non_maxima(candidates, self.nms_thresh_test, limit, agnostic)

    def find_candidates(self, batched_inputs: Batch) -> List[Instances]:
        """Return the candidates for NMS, as test-time augmentation collects them from its views."""
        with self._autocast(self.precision_test):
            images, predictions = self.predict_with_images(batched_inputs)
        return self.select(predictions).to_instances(images.image_sizes)

    def select(self, predictions: DensePredictions) -> Candidates:
        """Return the candidates for NMS of the whole batch, as tensors."""
        scores, threshold = predictions.apply_threshold(self.score_thresh_test)
        boxes, sizes, extras = predictions.pred_boxes, predictions.level_sizes, predictions.extras
        most = self.topk_candidates_test
        return select_candidates(scores, boxes, sizes, threshold, most, extras)


def _known(precision_train: str, precision_test: str) -> Tuple[str, str]:
    for key, value in (("TRAIN", precision_train), ("TEST", precision_test)):
        if value not in PRECISIONS:
            raise ValueError(
                f"MODEL.TOOD.PRECISION_{key} is {value!r}; it must be one of {[*PRECISIONS]}."
            )
    return precision_train, precision_test
