"""What Detectron2's ``DefaultTrainer`` leaves to a project, and a config that has been checked."""

import logging
import os
from typing import Optional, Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.file_io import PathManager

from .config import add_tood_config
from .data import CheckedMapper
from .errors import UserError

__all__ = ["Trainer", "check_weights", "load_config"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """
    Detectron2's trainer with COCO evaluation, checked images, and one more
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``: "full_model" bounds the norm of all gradients together by
    ``CLIP_VALUE``, where Detectron2's own "norm" bounds each parameter's.
    """

    @classmethod
    def build_train_loader(cls, cfg):
        mapper = CheckedMapper.from_config(cfg, is_train=True)
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        mapper = CheckedMapper.from_config(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))

    @classmethod
    def build_optimizer(cls, cfg, model):
        clip = cfg.SOLVER.CLIP_GRADIENTS
        if not clip.ENABLED or clip.CLIP_TYPE != "full_model":
            return super().build_optimizer(cfg, model)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        optimizer = super().build_optimizer(cfg, model)
        parameters = [p for p in model.parameters() if p.requires_grad]

        # In the optimizer's step, where a gradient scaler has undone its scaling already.
        def clip_gradients(*_):
            torch.nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

        optimizer.register_step_pre_hook(clip_gradients)
        return optimizer


def load_config(
    config_file: str,
    opts: Sequence[str] = (),
    train_data: Optional[Sequence[str]] = None,
    val_data: Optional[Sequence[str]] = None,
) -> CfgNode:
    """
    The config of a command: defaults, file, KEY VALUE options, data sets, in this order. On a
    machine without a GPU its device is the CPU.

    Args:
        config_file: path, or "" for the defaults.
        opts: keys and values in turn.
        train_data, val_data: take the place of ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    Raises:
        UserError: for a file or an option that cannot be used.
    """
    cfg = get_cfg()
    add_tood_config(cfg)
    if config_file and not os.path.isfile(config_file):
        raise UserError(f"The config file {config_file} does not exist.")
    try:
        if config_file:
            cfg.merge_from_file(config_file)
        cfg.merge_from_list(list(opts))
    except (KeyError, ValueError, AssertionError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise UserError(
            f"The config file {config_file} or an option behind it is wrong: {reason}."
        ) from error
    if train_data:
        cfg.DATASETS.TRAIN = tuple(train_data)
    if val_data:
        cfg.DATASETS.TEST = tuple(val_data)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found: using the CPU (as MODEL.DEVICE cpu does).")
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def check_weights(cfg, *, eval_only: bool, resume: bool) -> None:
    """
    Raises:
        UserError: for an evaluation without weights, or a file of weights that is not there.
    """
    weights = cfg.MODEL.WEIGHTS
    if resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return
    if eval_only and not weights:
        raise UserError(
            "--eval-only needs weights: name a checkpoint with MODEL.WEIGHTS FILE behind the "
            "other options, or add --resume for the last one in OUTPUT_DIR."
        )
    if weights and not os.path.isfile(weights):
        try:
            PathManager.get_local_path(weights)  # downloads what "detectron2://" names
        except (OSError, ValueError) as error:
            raise UserError(
                f"The weights {weights} (MODEL.WEIGHTS) cannot be had ({error}); name a file "
                "that is here, or nothing to train from scratch."
            ) from error
        if "://" not in weights:
            raise UserError(f"The weights {weights} (MODEL.WEIGHTS) are not there.")
