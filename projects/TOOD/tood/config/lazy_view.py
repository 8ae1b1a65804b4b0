"""
A config in Python, Detectron2's LazyConfig, as a yacs config.

A lazy config says what to call with which arguments. All of this project but what it builds from
these calls reads a yacs config; :class:`LazyView` is the yacs config that says the same, so that
checks, trainer and tools are the same for both. ``LAZY_KEYS`` is the dictionary between the two.
"""

import copy
from typing import Any, Callable, Dict, Optional

from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf

from tood.config.defaults import add_tood_config
from tood.modeling.backbone.fpn import make_tood_fpn
from tood.modeling.head import TOODHead
from tood.modeling.parallel_head import ParallelHead
from tood.utils.errors import UserError, first_line

__all__ = ["LAZY_ARCHITECTURE", "LAZY_KEYS", "VALUES", "LazyView", "build_part", "target_of"]

# Keys of a yacs config, and where a lazy one has the same values.
VALUES = {
    "MODEL.DEVICE": "train.device",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "OUTPUT_DIR": "train.output_dir",
    "SEED": "train.seed",
    "CUDNN_BENCHMARK": "train.cudnn_benchmark",
    "VIS_PERIOD": "train.vis_period",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "TEST.EVAL_PERIOD": "train.eval_period",
    "MODEL.TOOD.VAL_LOSS": "train.val_loss",
    "MODEL.TOOD.EMA_DECAY": "train.ema_decay",
    "MODEL.TOOD.EARLY_STOP_PATIENCE": "train.early_stop_patience",
    "MODEL.TOOD.EVAL_ALIGNMENT": "train.eval_alignment",
    "TEST.AUG.ENABLED": "train.test_aug.enabled",
    "TEST.AUG.MIN_SIZES": "train.test_aug.min_sizes",
    "TEST.AUG.MAX_SIZE": "train.test_aug.max_size",
    "TEST.AUG.FLIP": "train.test_aug.flip",
    #
    "MODEL.TOOD.NUM_CLASSES": "model.num_classes",
    "MODEL.TOOD.IN_FEATURES": "model.head_in_features",
    "MODEL.PIXEL_MEAN": "model.pixel_mean",
    "MODEL.PIXEL_STD": "model.pixel_std",
    "INPUT.FORMAT": "model.input_format",
    "MODEL.TOOD.ASSIGNER": "model.assigner",
    "MODEL.TOOD.ATSS_ITERS": "model.atss_iters",
    "MODEL.TOOD.ATSS_TOPK": "model.atss_topk",
    "MODEL.TOOD.TAL_TOPK": "model.tal_topk",
    "MODEL.TOOD.TAL_ALPHA": "model.tal_alpha",
    "MODEL.TOOD.TAL_BETA": "model.tal_beta",
    "MODEL.TOOD.FOCAL_LOSS_GAMMA": "model.focal_loss_gamma",
    "MODEL.TOOD.FOCAL_LOSS_ALPHA": "model.focal_loss_alpha",
    "MODEL.TOOD.CLS_LOSS_WEIGHT": "model.cls_loss_weight",
    "MODEL.TOOD.BOX_REG_LOSS_WEIGHT": "model.box_reg_loss_weight",
    "MODEL.TOOD.FREEZE_BN_STATS": "model.freeze_bn_stats",
    "MODEL.TOOD.SCORE_THRESH_TEST": "model.score_thresh_test",
    "MODEL.TOOD.TOPK_CANDIDATES_TEST": "model.topk_candidates_test",
    "MODEL.TOOD.NMS_THRESH_TEST": "model.nms_thresh_test",
    "TEST.DETECTIONS_PER_IMAGE": "model.max_detections_per_image",
    "MODEL.TOOD.PRECISION_TRAIN": "model.precision_train",
    "MODEL.TOOD.PRECISION_TEST": "model.precision_test",
    #
    "MODEL.TOOD.ANCHOR_TYPE": "model.head.anchor_type",
    "MODEL.TOOD.BBOX_REG_WEIGHTS": "model.head.box2box_transform.weights",
    "MODEL.ANCHOR_GENERATOR.SIZES": "model.head.anchor_generator.sizes",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "model.head.anchor_generator.aspect_ratios",
    "MODEL.ANCHOR_GENERATOR.OFFSET": "model.head.anchor_generator.offset",
    "MODEL.TOOD.ALIGN_CLS": "model.head.align_cls",
    "MODEL.TOOD.ALIGN_BOX": "model.head.align_box",
    "MODEL.TOOD.CENTERNESS": "model.head.centerness",
    "MODEL.TOOD.NUM_CONVS": "model.head.num_convs",
    "MODEL.TOOD.CONV_DIM": "model.head.conv_dim",
    "MODEL.TOOD.NORM": "model.head.norm",
    "MODEL.TOOD.PRIOR_PROB": "model.head.prior_prob",
    "MODEL.TOOD.NUM_DCN_CONVS": "model.head.num_dcn_convs",
    "MODEL.TOOD.DCN_NUM_GROUPS": "model.head.dcn_num_groups",
    #
    "MODEL.FPN.IN_FEATURES": "model.backbone.in_features",
    "MODEL.FPN.OUT_CHANNELS": "model.backbone.out_channels",
    "MODEL.FPN.NORM": "model.backbone.norm",
    "MODEL.FPN.FUSE_TYPE": "model.backbone.fuse_type",
    "MODEL.BACKBONE.FREEZE_AT": "model.backbone.bottom_up.freeze_at",
    "MODEL.RESNETS.OUT_FEATURES": "model.backbone.bottom_up.out_features",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "model.backbone.bottom_up.stem.out_channels",
    "MODEL.RESNETS.DEPTH": "model.backbone.bottom_up.stages.depth",
    "MODEL.RESNETS.NORM": "model.backbone.bottom_up.stages.norm",
    "MODEL.RESNETS.STRIDE_IN_1X1": "model.backbone.bottom_up.stages.stride_in_1x1",
    "MODEL.RESNETS.NUM_GROUPS": "model.backbone.bottom_up.stages.num_groups",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "model.backbone.bottom_up.stages.width_per_group",
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": "model.backbone.bottom_up.stages.deform_on_per_stage",
    "MODEL.RESNETS.DEFORM_MODULATED": "model.backbone.bottom_up.stages.deform_modulated",
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": "model.backbone.bottom_up.stages.deform_num_groups",
    #
    "DATASETS.TRAIN": "dataloader.train.dataset.names",
    "DATASETS.TEST": "dataloader.test.dataset.names",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": "dataloader.train.dataset.filter_empty",
    "DATALOADER.NUM_WORKERS": "dataloader.train.num_workers",
    "DATALOADER.ASPECT_RATIO_GROUPING": "dataloader.train.aspect_ratio_grouping",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.total_batch_size",
    "INPUT.MIN_SIZE_TRAIN": "dataloader.train.mapper.augmentations.0.short_edge_length",
    "INPUT.MAX_SIZE_TRAIN": "dataloader.train.mapper.augmentations.0.max_size",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "dataloader.train.mapper.augmentations.0.sample_style",
    "INPUT.MIN_SIZE_TEST": "dataloader.test.mapper.augmentations.0.short_edge_length",
    "INPUT.MAX_SIZE_TEST": "dataloader.test.mapper.augmentations.0.max_size",
    #
    "SOLVER.BASE_LR": "optimizer.lr",
    "SOLVER.MOMENTUM": "optimizer.momentum",
    "SOLVER.NESTEROV": "optimizer.nesterov",
    "SOLVER.WEIGHT_DECAY": "optimizer.weight_decay",
    "SOLVER.WEIGHT_DECAY_NORM": "optimizer.params.weight_decay_norm",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": "optimizer.max_norm",
    "SOLVER.WARMUP_FACTOR": "lr_multiplier.warmup_factor",
    "SOLVER.WARMUP_METHOD": "lr_multiplier.warmup_method",
}
# Of these, a lazy config says the same in another way.
LAZY_KEYS = {
    **VALUES,
    "MODEL.TOOD.HEAD": "model.head._target_",
    "MODEL.BACKBONE.NAME": "model.backbone._target_",
    "MODEL.ANCHOR_GENERATOR": "model.head.anchor_generator",
    "SOLVER.STEPS": "lr_multiplier.scheduler.milestones",
    "SOLVER.WARMUP_ITERS": "lr_multiplier.warmup_length",
    "SOLVER.CLIP_GRADIENTS": "tood.engine.optimizer.clipped_sgd",
}
LAZY_ARCHITECTURE = "build_lazy_model"
_MISSING = object()


class LazyView(CfgNode):
    """
    What a lazy config says, as a yacs config. ``build_model`` and the like read it as any other;
    :meth:`to_lazy` is the way back, with what was changed in the view since.
    """

    def __init__(self, init_dict=None, key_list=None, new_allowed=False, *, lazy=None):
        super().__init__(init_dict, key_list, new_allowed)
        self.__dict__["lazy"] = lazy  # beside the keys, as yacs keeps its own

    @classmethod
    def of(cls, lazy: DictConfig) -> "LazyView":
        """
        Raises:
            UserError: for a value of another type than the yacs config's.
        """
        cfg = get_cfg()
        add_tood_config(cfg)
        cfg.MODEL.META_ARCHITECTURE = LAZY_ARCHITECTURE
        for key, path in _paths(lazy).items():
            value = OmegaConf.select(lazy, path, default=_MISSING)
            if value is not _MISSING:
                _put(cfg, key, _of_kind(_get(cfg, key), value, path))
        _describe_targets(cfg, lazy)
        _describe_schedule(cfg, lazy)
        return cls(cfg, lazy=lazy)

    def to_lazy(self) -> DictConfig:
        """A copy of the lazy config that says what this view says."""
        lazy = copy.deepcopy(self.lazy)
        before = LazyView.of(lazy)
        for key, path in _paths(lazy).items():
            value = _get(self, key)
            if value != _get(before, key):
                OmegaConf.update(lazy, path, _plain(key, value), merge=False)
        # Warm-up and steps of the learning rate are shares of the training, whatever its length.
        if self.SOLVER.WARMUP_ITERS != LazyView.of(lazy).SOLVER.WARMUP_ITERS:
            lazy.lr_multiplier.warmup_length = self.SOLVER.WARMUP_ITERS / self.SOLVER.MAX_ITER
        return lazy


@META_ARCH_REGISTRY.register()
def build_lazy_model(cfg: LazyView):
    """The ``model`` of a lazy config."""
    return build_part(cfg.to_lazy(), "model")


def build_part(lazy: DictConfig, path: str) -> Any:
    """
    Detectron2's ``instantiate`` of one node.

    Raises:
        UserError: where that fails.
    """
    try:
        return instantiate(OmegaConf.select(lazy, path))
    except UserError:
        raise
    except Exception as error:  # of whatever a config calls
        raise UserError(
            f"{path} of the config cannot be built: {first_line(error)}; look at its arguments."
        ) from error


def target_of(node) -> Optional[Callable]:
    """
    What a node calls, None for none.

    Raises:
        UserError: where that cannot be had.
    """
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target is None:
        return None
    try:
        found = locate(target) if isinstance(target, str) else target
    except Exception as error:  # of an import
        raise UserError(f"{target} (_target_) cannot be had: {first_line(error)}.") from error
    if not callable(found):
        raise UserError(f"{target} (_target_) cannot be called.")
    return found


def _paths(lazy: DictConfig) -> Dict[str, str]:
    """``VALUES``, where the resizing of the images is not the first of their augmentations."""
    paths = dict(VALUES)
    for use in ("train", "test"):
        before = f"dataloader.{use}.mapper.augmentations"
        index = next(
            (
                i
                for i, node in enumerate(OmegaConf.select(lazy, before) or ())
                if target_of(node) is ResizeShortestEdge
            ),
            None,
        )
        for key, path in VALUES.items():
            if path.startswith(f"{before}.0."):
                if index is None:
                    del paths[key]
                else:
                    paths[key] = path.replace(".0.", f".{index}.")
    return paths


def _describe_targets(cfg: CfgNode, lazy: DictConfig) -> None:
    """What a yacs config says by names."""
    heads = {TOODHead: "task_aligned", ParallelHead: "parallel"}
    cfg.MODEL.TOOD.HEAD = heads.get(target_of(lazy.model.get("head")), cfg.MODEL.TOOD.HEAD)
    if target_of(lazy.model.get("backbone")) is make_tood_fpn:
        cfg.MODEL.BACKBONE.NAME = "build_tood_resnet_fpn_backbone"
    if "max_norm" in lazy.optimizer:
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    for use in ("train", "test"):
        path = f"dataloader.{use}.mapper"
        image_format = OmegaConf.select(lazy, f"{path}.image_format", default=cfg.INPUT.FORMAT)
        if image_format != cfg.INPUT.FORMAT:
            raise UserError(
                f"{path}.image_format is {image_format!r}, but model.input_format is "
                f"{cfg.INPUT.FORMAT!r}; they must be the same."
            )
        sizes = ("MIN_SIZE_TRAIN", (0,)) if use == "train" else ("MIN_SIZE_TEST", 0)
        if f"INPUT.{sizes[0]}" not in _paths(lazy):  # as they are
            cfg.INPUT[sizes[0]] = sizes[1]


def _describe_schedule(cfg: CfgNode, lazy: DictConfig) -> None:
    """Where Detectron2's schedulers have shares of a training, yacs configs have iterations."""
    max_iter = cfg.SOLVER.MAX_ITER
    path = "lr_multiplier.warmup_length"
    share = _of_kind(0.0, OmegaConf.select(lazy, path, default=0.0), path)
    cfg.SOLVER.WARMUP_ITERS = round(share * max_iter)
    path = "lr_multiplier.scheduler.milestones"
    milestones = _of_kind((), OmegaConf.select(lazy, path, default=()), path)
    path = "lr_multiplier.scheduler.num_updates"
    length = OmegaConf.select(lazy, path)
    if length is None and milestones:
        *milestones, length = milestones
    cfg.SOLVER.STEPS = tuple(round(step / length * max_iter) for step in milestones)


def _of_kind(example: Any, value: Any, path: str) -> Any:
    """A value of a lazy config as yacs would have it, of the type of another one."""
    if isinstance(value, ListConfig):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(example, tuple) and isinstance(value, (int, str)):
        return (value,)
    if isinstance(example, (list, tuple)) and isinstance(value, (list, tuple)):
        return type(example)(value)
    if type(example) is float and type(value) is int:
        return float(value)
    if example is None or type(value) is type(example):
        return value
    if value is None and path.startswith("optimizer."):  # the same for all parameters
        return example
    expected = type(example).__name__
    raise UserError(f"{path} is {value!r}, of type {type(value).__name__}; it must be {expected}.")


def _plain(key: str, value: Any) -> Any:
    if key.startswith("DATASETS.") and len(value) == 1:
        return value[0]
    return list(value) if isinstance(value, tuple) else value


def _get(cfg: CfgNode, key: str) -> Any:
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _put(cfg: CfgNode, key: str, value: Any) -> None:
    *nodes, name = key.split(".")
    for node in nodes:
        cfg = cfg[node]
    cfg[name] = value
