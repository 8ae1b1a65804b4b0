"""What Detectron2's ``DefaultTrainer`` leaves to a project."""

import logging
import os
import weakref
from typing import Optional

import torch
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm

from .annotations import has_size
from .checkpoint import Checkpointer
from .errors import UserError
from .mapper import CheckedMapper
from .stop_on_signal import StopOnSignal
from .training_data import AugmentedDataset, TrainingBatches, TrainingLoader
from .training_step import TrainingStep

__all__ = ["Trainer"]

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
        # Not DefaultTrainer's, which makes a step of its own and puts the model of each process on
        # a GPU.
        super(DefaultTrainer, self).__init__()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = TrainingStep(
            create_ddp_model(model, broadcast_buffers=False, device_ids=None),
            self.build_train_loader(cfg),
            optimizer,
            scale_gradients=cfg.MODEL.TOOD.PRECISION_TRAIN == "float16",
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())
        warmup = cfg.MODEL.TOOD.WARMUP_ITERS
        if warmup >= cfg.SOLVER.MAX_ITER:
            logger.warning(
                f"MODEL.TOOD.WARMUP_ITERS ({warmup}) is not less than SOLVER.MAX_ITER "
                f"({cfg.SOLVER.MAX_ITER}): all of this training assigns by ATSS, none by TAL."
            )

    @staticmethod
    def auto_scale_workers(cfg, num_workers):
        """``SOLVER.REFERENCE_WORLD_SIZE`` scales the iterations before TAL as well."""
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        factor = cfg.SOLVER.IMS_PER_BATCH / scaled.SOLVER.IMS_PER_BATCH
        if factor != 1:
            scaled = scaled.clone()
            scaled.defrost()
            scaled.MODEL.TOOD.WARMUP_ITERS = round(factor * cfg.MODEL.TOOD.WARMUP_ITERS)
            scaled.freeze()
        return scaled

    def build_hooks(self):
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
        mapper = CheckedMapper(cfg, is_train=True)
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
        mapper = CheckedMapper(cfg, is_train=False)
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
