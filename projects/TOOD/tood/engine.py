"""What Detectron2's ``DefaultTrainer`` leaves to a project, and a config that has been checked."""

import logging
import os
import re
import weakref
from typing import Optional, Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .check_config import check_config, nearest_key
from .checkpoint import Checkpointer
from .config import add_tood_config
from .data import CheckedMapper, has_size
from .errors import UserError
from .stop_on_signal import StopOnSignal
from .training_data import AugmentedDataset, TrainingBatches, TrainingLoader
from .training_step import TrainingStep

__all__ = ["Trainer", "check_weights", "load_config"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """
    Detectron2's trainer with COCO evaluation, checked images, an exact ``--resume`` (optimizer,
    schedule and order of the images are in its checkpoints), a :class:`TrainingStep` that watches
    its numbers, a checkpoint when a signal stops it, and one more
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``: "full_model" bounds the norm of all gradients together by
    ``CLIP_VALUE``, where Detectron2's own "norm" bounds each parameter's.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        parts = self._trainer
        self._trainer = TrainingStep(
            parts.model,
            parts.data_loader,
            parts.optimizer,
            scale_gradients=cfg.MODEL.TOOD.PRECISION_TRAIN == "float16",
        )
        warmup = cfg.MODEL.TOOD.WARMUP_ITERS
        if warmup >= cfg.SOLVER.MAX_ITER:
            logger.warning(
                f"MODEL.TOOD.WARMUP_ITERS ({warmup}) is not less than SOLVER.MAX_ITER "
                f"({cfg.SOLVER.MAX_ITER}): all of this training assigns by ATSS, none by TAL."
            )

    def build_hooks(self):
        # Before the hooks, which hold on to it.
        self.checkpointer = Checkpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        built = super().build_hooks()
        # Behind what changes the state of the training, before what takes time.
        i = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        return [*built[:i], StopOnSignal(self.checkpointer), *built[i:]]

    def train(self):
        # Detectron2 logs a traceback of whatever ends training.
        with _without_tracebacks_of_user_errors("detectron2.engine.train_loop"):
            return super().train()

    def state_dict(self):
        state = super().state_dict()
        # Optimizer and gradient scaler, where Detectron2's main branch has them.
        state["_trainer"] = self._trainer.state_dict()
        # Detectron2 v0.6 leaves it out beside PyTorch 2.
        state["scheduler"] = self.scheduler.state_dict()
        if isinstance(self.data_loader, TrainingLoader):
            state["data_seed"] = self.data_loader.batches.seed
        return state

    def load_state_dict(self, state_dict):
        # Not DefaultTrainer's, which on the main branch insists on an optimizer.
        super(DefaultTrainer, self).load_state_dict(state_dict)
        if "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])
        else:
            logger.warning("The checkpoint has no optimizer: its momentum starts anew.")
        if "scheduler" in state_dict:
            self.scheduler.load_state_dict(state_dict["scheduler"])
        if isinstance(self.data_loader, TrainingLoader):
            self._trainer.set_data_loader(
                self.build_train_loader(
                    self.cfg,
                    seed=state_dict.get("data_seed"),
                    skip=state_dict["iteration"] + 1,
                )
            )

    @classmethod
    def build_train_loader(cls, cfg, *, seed: Optional[int] = None, skip: int = 0):
        """
        Args:
            seed: of order and augmentation, instead of ``cfg.SEED`` or one drawn at random.
            skip: batches that a training had before it was stopped.
        """
        mapper = CheckedMapper.from_config(cfg, is_train=True)
        if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
            return build_detection_train_loader(cfg, mapper=mapper)
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        if seed is None:
            seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        batch_size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())
        if rest or not batch_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; it must be a multiple of "
                f"the number of processes, {comm.get_world_size()}."
            )
        grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        batches = TrainingBatches(
            [int(grouped and r["width"] > r["height"]) for r in records],
            batch_size,
            seed=seed,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            skip=skip,
        )
        dataset = AugmentedDataset(records, mapper, seed)
        return TrainingLoader(dataset, batches, cfg.DATALOADER.NUM_WORKERS)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        mapper = CheckedMapper.from_config(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference")
        return SizedCOCOEvaluator(dataset_name, output_dir=output_dir)

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


class SizedCOCOEvaluator(COCOEvaluator):
    """
    COCO evaluation without the objects that have no width or no height. Training leaves them out
    as well, and no detection could ever match them.
    """

    def __init__(self, dataset_name, **kwargs):
        super().__init__(dataset_name, **kwargs)
        dataset = self._coco_api.dataset
        annotations = dataset.get("annotations", [])
        dataset["annotations"] = [a for a in annotations if has_size(a["bbox"])]
        if len(dataset["annotations"]) < len(annotations):
            self._coco_api.createIndex()


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
        config_file: path.
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
    except (
        *(AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError),
        yaml.YAMLError,
    ) as error:
        reason = " ".join(str(error).strip("'\"").split()) or type(error).__name__
        unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", reason)
        nearest = nearest_key(cfg, unknown[1]) if unknown else None
        raise UserError(
            f"The config file {config_file} or an option behind it is wrong: {reason}"
            + (f"; did you mean {nearest}?" if nearest else ".")
        ) from error
    if cfg.MODEL.META_ARCHITECTURE != "TOOD":
        raise UserError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, not TOOD; name one of the "
            "files in configs/ with --config-file."
        )
    if train_data:
        cfg.DATASETS.TRAIN = tuple(train_data)
    if val_data:
        cfg.DATASETS.TEST = tuple(val_data)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found: using the CPU (as MODEL.DEVICE cpu does).")
        cfg.MODEL.DEVICE = "cpu"
    check_config(cfg)
    _set_precision(cfg)
    return cfg


def _set_precision(cfg) -> None:
    """``SOLVER.AMP.ENABLED``, Detectron2's key, is the half precision of the device."""
    tood, on_cpu = cfg.MODEL.TOOD, cfg.MODEL.DEVICE == "cpu"
    if cfg.SOLVER.AMP.ENABLED and tood.PRECISION_TRAIN == "float32":
        tood.PRECISION_TRAIN = "bfloat16" if on_cpu else "float16"
    cfg.SOLVER.AMP.ENABLED = False  # or Detectron2 would make a step of its own
    for key in ("PRECISION_TRAIN", "PRECISION_TEST"):
        if on_cpu and tood[key] == "float16":
            raise UserError(f"MODEL.TOOD.{key} float16 needs a GPU; a CPU can do bfloat16.")


def check_weights(weights: str) -> None:
    """
    Args:
        weights: ``MODEL.WEIGHTS``; what it names is downloaded, if it has to be.

    Raises:
        UserError: where that cannot be had.
    """
    path = weights.split("?")[0]  # Detectron2 takes options behind a question mark
    if not path or os.path.isfile(path):
        return
    try:
        there = os.path.isfile(PathManager.get_local_path(path))
        reason = "there is no such file"
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        there, reason = False, " ".join(str(error).split())
    if not there:
        raise UserError(
            f"The weights {path} (MODEL.WEIGHTS) cannot be had: {reason}; name a file that is "
            "here, or '' to train from scratch."
        )


class _without_tracebacks_of_user_errors(logging.Filter):
    """Keep a logger, for a while, from printing the traceback of what the user will be told."""

    def __init__(self, logger_name: str):
        super().__init__()
        self.logger = logging.getLogger(logger_name)

    def __enter__(self):
        self.logger.addFilter(self)

    def __exit__(self, *_):
        self.logger.removeFilter(self)

    def filter(self, record) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], UserError))
