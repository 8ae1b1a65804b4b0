"""What Detectron2's ``DefaultTrainer`` leaves to a project."""

import logging
import os
import uuid
import weakref
from collections import OrderedDict
from typing import Optional

from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm

from tood.checkpoint.checkpointer import Checkpointer
from tood.data.loader import TrainingLoader, build_training_loader
from tood.data.mapper import CheckedMapper
from tood.engine.hooks import (
    AverageWeights,
    BestWeights,
    EarlyStop,
    StopEarly,
    StopOnSignal,
    WeightAverage,
)
from tood.engine.optimizer import clip_full_model
from tood.engine.step import TrainingStep
from tood.engine.watch import StatusPrinter, TrainingWatcher
from tood.evaluation.alignment_evaluator import AlignmentEvaluator
from tood.evaluation.coco import SizedCOCOEvaluator, first_AP, validation_loss
from tood.modeling.tta import TOODWithTTA
from tood.utils.errors import UserError

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
            create_ddp_model(model, device_ids=None, **self.ddp_options(cfg)),
            self.build_train_loader(cfg),
            optimizer,
            scale_gradients=cfg.MODEL.TOOD.PRECISION_TRAIN == "float16",
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        parts = {"trainer": weakref.proxy(self)}
        self.averaged = None
        if cfg.MODEL.TOOD.EMA_DECAY:
            parts["ema"] = self.averaged = WeightAverage(model, cfg.MODEL.TOOD.EMA_DECAY)
        names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
        names = list(names or [str(i) for i in range(model.num_classes)])
        self.constants = {"class_names": names}
        if comm.is_main_process():
            model.watcher = TrainingWatcher(cfg.VIS_PERIOD, names, cfg.INPUT.FORMAT)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, **parts)
        self.checkpointer.constants = self.constants
        self.best = BestWeights(cfg.OUTPUT_DIR, self.constants)
        self.stopped_early = False
        self.run_id = uuid.uuid4().hex  # a resumed training keeps that of its start
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())
        warmup = cfg.MODEL.TOOD.ATSS_ITERS
        if cfg.MODEL.TOOD.ASSIGNER == "tal" and warmup >= cfg.SOLVER.MAX_ITER:
            logger.warning(
                f"MODEL.TOOD.ATSS_ITERS ({warmup}) is not less than SOLVER.MAX_ITER "
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
            scaled.MODEL.TOOD.ATSS_ITERS = round(factor * cfg.MODEL.TOOD.ATSS_ITERS)
            scaled.freeze()
        return scaled

    @classmethod
    def ddp_options(cls, cfg):
        """Of Detectron2's ``create_ddp_model``, for a training of several processes."""
        return {"broadcast_buffers": False}

    def build_hooks(self):
        built = super().build_hooks()
        # Behind what changes the state of the training, before what takes time.
        i = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        evaluation = [
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate),
            StopEarly(self.cfg.TEST.EVAL_PERIOD, self.cfg.MODEL.TOOD.EARLY_STOP_PATIENCE),
        ]
        built = [*built[:i], StopOnSignal(self.checkpointer), *evaluation, *built[i + 1 :]]
        if self.averaged is not None:  # before what saves or evaluates it
            average = AverageWeights(
                self._model, self.averaged, self.cfg.OUTPUT_DIR, self.constants
            )
            built.insert(0, average)
        return built

    def build_writers(self):
        # In this order: the losses first in the log, but its figures also in the other writers.
        printer, *others = super().build_writers()
        return [printer, StatusPrinter(self.cfg.SOLVER.IMS_PER_BATCH), *others]

    def train(self):
        # Detectron2 logs a traceback of whatever ends training.
        with _without_tracebacks_of_user_errors("detectron2.engine.train_loop"):
            try:
                return super().train()
            except EarlyStop:
                return getattr(self, "_last_eval_results", None)

    def resume_or_load(self, resume=True):
        super().resume_or_load(resume)
        if self.start_iter > 0:
            self.best.resume(self.run_id)

    def evaluate(self):
        """
        Evaluate the model, its average and the validation losses, and keep the best weights.

        Returns:
            Detectron2's results, with "ema" and "val_loss" beside them, in the main process.
        """
        self._last_eval_results = self.test(self.cfg, self._model)
        results = dict(self._last_eval_results)
        evaluated = {"the weights": (self._model, self._last_eval_results)}
        if self.averaged is not None:
            results["ema"] = self.test(_in_folder(self.cfg, "ema"), self.averaged.model)
            evaluated["the averaged weights"] = (self.averaged.model, results["ema"])
        if self.cfg.MODEL.TOOD.VAL_LOSS:
            results["val_loss"] = self._validation_losses()
        if comm.is_main_process():
            iteration = min(self.iter, self.max_iter - 1)  # behind the last, it is counted on
            for name, (model, found) in evaluated.items():
                self.best.offer(model, first_AP(found), iteration, run_id=self.run_id, name=name)
        return results

    def _validation_losses(self):
        assigner = self._model.assigner_at(self.iter)
        losses = {
            name: validation_loss(
                self._model, self.build_validation_loader(self.cfg, name), assigner=assigner
            )
            for name in self.cfg.DATASETS.TEST
        }
        return next(iter(losses.values())) if len(losses) == 1 else losses

    @property
    def _model(self):
        """Not wrapped for several processes."""
        return getattr(self._trainer.model, "module", self._trainer.model)

    def state_dict(self):
        state = super().state_dict()
        # Optimizer and gradient scaler, where Detectron2's main branch has them.
        state["_trainer"] = self._trainer.state_dict()
        # Detectron2 v0.6 leaves it out beside PyTorch 2.
        state["scheduler"] = self.scheduler.state_dict()
        state["run_id"] = self.run_id
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
        self.run_id = state_dict.get("run_id", self.run_id)
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
        if seed is None and cfg.SEED >= 0:
            seed = cfg.SEED
        return build_training_loader(
            dataset=records,
            mapper=mapper,
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            seed=seed,
            skip=skip,
        )

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        mapper = CheckedMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_validation_loader(cls, cfg, dataset_name):
        """As the test loader, but with the objects."""
        mapper = CheckedMapper(
            is_train=True,
            augmentations=build_augmentation(cfg, is_train=False),
            image_format=cfg.INPUT.FORMAT,
        )
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference")
        return SizedCOCOEvaluator(dataset_name, output_dir=output_dir)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Detectron2's, with the alignment beside COCO's figures (``EVAL_ALIGNMENT``)."""
        if evaluators is None and cfg.MODEL.TOOD.EVAL_ALIGNMENT:
            folder = os.path.join(cfg.OUTPUT_DIR, "inference")
            evaluators = [
                DatasetEvaluators(
                    [cls.build_evaluator(cfg, name), AlignmentEvaluator(name, model, folder)]
                )
                for name in cfg.DATASETS.TEST
            ]
        return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(cls, cfg, model):
        """The results of test-time augmentation (``TEST.AUG``), as "bbox_TTA" and so on."""
        cfg = _in_folder(cfg, "TTA")
        # It resizes the pictures itself, from their own size, and has no dense output of its own.
        cfg.INPUT.MIN_SIZE_TEST = 0
        cfg.MODEL.TOOD.EVAL_ALIGNMENT = False
        results = cls.test(cfg, TOODWithTTA(cfg, model))
        return OrderedDict((f"{name}_TTA", figures) for name, figures in results.items())

    @classmethod
    def build_optimizer(cls, cfg, model):
        clip = cfg.SOLVER.CLIP_GRADIENTS
        if not clip.ENABLED or clip.CLIP_TYPE != "full_model":
            return super().build_optimizer(cfg, model)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        optimizer = super().build_optimizer(cfg, model)
        clip_full_model(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
        return optimizer


def _in_folder(cfg, name: str):
    """A config with an output folder of its own inside of the other's."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, name)
    return cfg


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
