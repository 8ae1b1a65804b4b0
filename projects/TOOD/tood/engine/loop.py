"""The training loop: it takes a model, an optimizer and loaders, and reads no config."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import uuid
import weakref
from typing import Callable, Dict, Iterable, List, Optional, Sequence

from detectron2.engine import HookBase, TrainerBase, create_ddp_model, default_writers, hooks
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import tood
from tood.checkpoint.checkpointer import Checkpointer
from tood.config.options import TrainingOptions
from tood.data.loader import TrainingLoader, WorkersEnded
from tood.engine.closing import closing_lines
from tood.engine.health import LearningCheck
from tood.engine.hooks import (
    AverageWeights,
    BestWeights,
    Checkpoints,
    EarlyStop,
    Evaluation,
    StopEarly,
    StopOnSignal,
    WeightAverage,
)
from tood.engine.launch import is_lost_peer
from tood.engine.optimizer import get_hyperparameters, set_hyperparameters
from tood.engine.progress import Progress
from tood.engine.step import Diverged, TrainingStep
from tood.engine.trackers import build_tracker
from tood.engine.watch import StatusPrinter, StrictLines, TrainingWatcher
from tood.evaluation.coco import first_AP, validation_loss
from tood.modeling.detector import TOOD
from tood.utils.errors import OutOfMemory, UserError, guard_memory, is_out_of_memory
from tood.utils.files import last_checkpoint_in, write_json
from tood.utils.logs import silenced

logger = logging.getLogger(__name__)

MEMORY_REMEDY = (
    "lower --images-per-step (SOLVER.IMS_PER_BATCH), INPUT.MIN_SIZE_TRAIN, INPUT.MAX_SIZE_TRAIN or "
    "DATALOADER.NUM_WORKERS, or set MODEL.TOOD.CHECKPOINT_BACKBONE True"
)


@dataclasses.dataclass
class LoopOptions:
    """Length, periods (in iterations, 0 for never) and extras of a training."""

    output_dir: str
    max_iter: int
    ims_per_batch: int  # of all processes
    class_names: Sequence[str]
    weights: str = ""  # to start from
    checkpoint_period: int = 5000
    max_to_keep: Optional[int] = None  # checkpoints
    eval_period: int = 0
    log_period: int = 20
    vis_period: int = 0
    num_test_sets: int = 1
    seed: Optional[int] = None  # that the user asked for
    # The keys of MODEL.TOOD that the loop reads.
    training: TrainingOptions = dataclasses.field(default_factory=TrainingOptions)


@dataclasses.dataclass
class Experiment:
    """Everything that a training needs, built."""

    model: nn.Module  # a TOOD, not wrapped
    optimizer: Optimizer
    scheduler: LRScheduler
    train_loader: Iterable
    evaluate: Callable[[nn.Module, str], Dict]  # (model, folder for files) -> Detectron2's results
    validation_loaders: Callable[[], Dict[str, Iterable]]  # data set -> loader with gt instances
    options: LoopOptions
    precise_bn: Optional[HookBase] = None


class TrainingLoop(TrainerBase):
    """Train an :class:`Experiment` with exact resume (optimizer, schedule and order of the images
    are in its checkpoints), best and averaged weights, early stop, and a checkpoint on a signal.
    """

    def __init__(self, experiment: Experiment):
        TrainerBase.__init__(self)
        model, options = experiment.model, experiment.options
        self.experiment, self.options = experiment, options
        _warn_if_warmup_alone(model, options.max_iter)
        if options.training.val_loss:
            check_validation_loss(type(model))
        self._trainer = TrainingStep(
            create_ddp_model(model, device_ids=None, broadcast_buffers=False),
            experiment.train_loader,
            experiment.optimizer,
            scale_gradients=model.precision_train == "float16",
        )
        self.scheduler = experiment.scheduler
        self._hyperparameters = get_hyperparameters(experiment.optimizer)
        class_names = list(options.class_names)
        self.checkpointer = Checkpointer(model, options.output_dir, trainer=weakref.proxy(self))
        self.checkpointer.extra_metadata = {
            "class_names": class_names,
            "tood_version": tood.__version__,
        }
        decay = options.training.ema_decay
        self.averaged = WeightAverage(model, decay) if decay else None
        if self.averaged:
            self.checkpointer.add_checkpointable("ema", self.averaged)
        self.best = BestWeights(options.output_dir, self.checkpointer.extra_metadata)
        if comm.is_main_process():
            model.watcher = TrainingWatcher(options.vis_period, class_names, model.input_format)
        self.progress = Progress()
        self.stopped_early = False
        self.run_id = uuid.uuid4().hex  # a resumed training keeps that of its start
        self.start_iter, self.max_iter = 0, options.max_iter
        self.evaluated = -1  # the last iteration after which an evaluation was finished
        self.best_results: Dict = {}  # of it, those of the weights or of their average
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> List[Optional[HookBase]]:
        """Return the hooks in the order in which they are called after each step."""
        options, is_main = self.options, comm.is_main_process()
        return [
            # Before the hooks that save or evaluate the average.
            AverageWeights() if self.averaged else None,
            hooks.IterationTimer(),
            hooks.LRScheduler(self._trainer.optimizer, self.scheduler),
            self.experiment.precise_bn,
            Checkpoints(
                self.checkpointer, options.checkpoint_period, max_to_keep=options.max_to_keep
            )
            if is_main
            else None,
            # After the hooks that change the state of the training, before those that take time.
            StopOnSignal(self.checkpointer),
            self._build_learning_check(),
            self.progress,
            Evaluation(options.eval_period, self.evaluate),
            StopEarly(options.eval_period, options.training.early_stop_patience),
            # After evaluation, whose metrics it writes.
            hooks.PeriodicWriter(self.build_writers(), options.log_period) if is_main else None,
        ]

    def _build_learning_check(self) -> LearningCheck:
        model = self.experiment.model
        return LearningCheck(
            lambda name: self.checkpointer.save(name, iteration=self.iter),
            max_dead_iters=self.options.training.max_dead_iters,
            max_iter=self.max_iter,
            box_reg_ceiling=model.box_reg_ceiling,
            is_warmup=lambda iteration: model.assigner_at(iteration) is model.warmup_assigner,
        )

    def build_writers(self):
        # In this order: the losses first in the log, but the metrics also in the other writers.
        printer, *others = default_writers(self.options.output_dir, self.max_iter)
        for writer in others:
            if isinstance(writer, JSONWriter):
                writer._file_handle = StrictLines(writer._file_handle)
        tracker = build_tracker(
            self.options.training.tracker, self.options.output_dir, lambda: self.run_id
        )
        trackers = [tracker] if tracker else []
        return [printer, StatusPrinter(self.options.ims_per_batch), *others, *trackers]

    def train(self) -> Optional[Dict]:
        """Train from ``start_iter`` to ``max_iter``; return the last results."""
        final = os.path.join(self.options.output_dir, "model_final.pth")
        if (
            self.start_iter == self.max_iter
            and comm.is_main_process()
            and not os.path.isfile(final)
        ):
            # The training was killed between its last checkpoint and its end.
            self.checkpointer.save("model_final", iteration=self.max_iter - 1)
        # Detectron2 logs a traceback of any exception that ends a training.
        quiet = silenced("detectron2.engine.train_loop", _is_reported_later)
        try:
            with quiet, contextlib.suppress(EarlyStop), guard_memory(MEMORY_REMEDY):
                TrainerBase.train(self, self.start_iter, self.max_iter)
        except Diverged as error:
            raise UserError(f"{error}; {self._advice_to_resume()}") from error
        except (WorkersEnded, OutOfMemory) as error:
            last = last_checkpoint_in(self.options.output_dir)
            advice = f"--resume continues from {last}." if last else "There is no checkpoint yet."
            raise UserError(
                f"Training stopped at iteration {self.iter}. {error.sentence()} {advice}"
            ) from error
        finally:
            self._trainer.close()
        if comm.is_main_process():
            for line in closing_lines(
                self.options.output_dir, self.best, self.options.num_test_sets
            ):
                logger.info(line)
        return getattr(self, "_last_eval_results", None)

    def run_step(self):
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint, or load ``options.weights``, as in Detectron2."""
        self.checkpointer.resume_or_load(self.options.weights, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            # A checkpoint stores the iteration that was finished.
            self.start_iter = self.iter + 1
            if self.start_iter > self.max_iter:
                raise UserError(
                    f"The last checkpoint of {self.options.output_dir} is of iteration {self.iter},"
                    f" but the training has {self.max_iter} iterations (SOLVER.MAX_ITER); raise "
                    "that, or omit --resume."
                )
            self.best.resume(self.run_id)
            self.evaluated = self._read_evaluated()

    def _advice_to_resume(self) -> str:
        """Make the newest checkpoint from which training got on the last one, and name it."""
        name = None
        if comm.is_main_process():
            # What was saved right before this iteration gave a loss that was not finite.
            name = self.checkpointer.tag_last_sound(before=self.iter - 1)
        name = comm.all_gather(name)[0]
        if name is None:
            return "no earlier checkpoint exists, so start without --resume."
        return f"--resume continues from {name}, whose weights and loss were finite."

    @property
    def _evaluated_file(self) -> str:
        return os.path.join(self.options.output_dir, "last_evaluation.json")

    def _read_evaluated(self) -> int:
        found = {}
        if comm.is_main_process():
            with contextlib.suppress(OSError, ValueError), open(self._evaluated_file) as f:
                found = json.load(f)
        found = comm.all_gather(found)[0]
        is_mine = isinstance(found, dict) and found.get("run_id") == self.run_id
        return found["iteration"] if is_mine else -1

    def evaluate(self) -> Dict:
        """Evaluate the model, its average and the validation losses, and keep the best weights.

        Returns:
            Detectron2's results, with "ema" and "val_loss" beside them, in the main process.
        """
        model, folder = self.experiment.model, self.options.output_dir
        results, evaluated = {}, []
        if self.averaged is None or not self.options.training.eval_ema_alone:
            results.update(self.experiment.evaluate(model, folder))
            evaluated.append(("the weights", model, dict(results)))
        if self.averaged is not None:
            averaged = self.averaged.model
            results["ema"] = self.experiment.evaluate(averaged, os.path.join(folder, "ema"))
            evaluated.append(("the averaged weights", averaged, results["ema"]))
        self._last_eval_results = evaluated[0][2]
        if self.options.training.val_loss:
            results["val_loss"] = self._validation_losses()
        iteration = self.evaluated = min(self.iter, self.max_iter - 1)  # at the end, it is max_iter
        if comm.is_main_process():
            for name, weights, found in evaluated:
                AP = first_AP(found)
                self.best.offer(weights, AP, iteration, run_id=self.run_id, name=name)
            self.best_results = max((x[2] for x in evaluated), key=_rank)
            write_json({"run_id": self.run_id, "iteration": iteration}, self._evaluated_file)
        return results

    def _validation_losses(self) -> Dict:
        model = self.experiment.model
        assigner = model.assigner_at(self.iter)
        losses = {
            name: validation_loss(model, loader, assigner=assigner)
            for name, loader in self.experiment.validation_loaders().items()
        }
        return next(iter(losses.values())) if len(losses) == 1 else losses

    def state_dict(self) -> Dict:
        state = TrainerBase.state_dict(self)
        # Optimizer and gradient scaler, where Detectron2's main branch has them.
        state["_trainer"] = self._trainer.state_dict()
        # Detectron2 v0.6 omits it with PyTorch 2.
        state["scheduler"] = self.scheduler.state_dict()
        state["run_id"] = self.run_id
        state["ims_per_batch"] = self.options.ims_per_batch
        if isinstance(self._trainer.data_loader, TrainingLoader):
            state["data_seed"] = self._trainer.data_loader.batches.seed
        return state

    def load_state_dict(self, state_dict: Dict) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        if "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])
        else:
            logger.warning("The checkpoint has no optimizer: its momentum starts from zero.")
        self.run_id = state_dict.get("run_id", self.run_id)
        if "scheduler" in state_dict:
            self.scheduler.load_state_dict(state_dict["scheduler"])
        changes = []
        if self.iter < self.max_iter:
            changes = set_hyperparameters(
                self._trainer.optimizer, self.scheduler, self._hyperparameters
            )
        saved, now = state_dict.get("ims_per_batch"), self.options.ims_per_batch
        if saved not in (None, now):
            changes.append(f"images per step {saved} -> {now}")
        if changes:
            logger.warning(f"Resumed with other values, from here on: {', '.join(changes)}.")
        loader = self._trainer.data_loader
        if isinstance(loader, TrainingLoader):
            seed = state_dict.get("data_seed", loader.batches.seed)
            if self.options.seed not in (None, seed):
                logger.warning(
                    f"The seed {self.options.seed} is not used: a resumed training keeps the order "
                    f"of its images, which is of seed {seed}."
                )
            self._trainer.set_data_loader(loader.restart(seed, skip=state_dict["iteration"] + 1))


def check_validation_loss(model_class: type) -> None:
    """Raise UserError for a TOOD whose losses in training and in validation would differ."""
    losses, compute_sums = (getattr(model_class, x, None) for x in ("losses", "compute_loss_sums"))
    if losses is not TOOD.losses and compute_sums is TOOD.compute_loss_sums:
        raise UserError(
            f"MODEL.TOOD.VAL_LOSS is True, but {model_class.__name__} changes losses, which are "
            "not sums over a data set; extend sum_losses in its place, override "
            "compute_loss_sums as well, or omit MODEL.TOOD.VAL_LOSS."
        )


def _warn_if_warmup_alone(model: nn.Module, max_iter: int) -> None:
    last, warmup = model.assigner_at(max_iter - 1), model.warmup_assigner
    if last is warmup and type(warmup) is not type(model.assigner):
        logger.warning(
            f"The {model.atss_iters} iterations of ATSS (MODEL.TOOD.ATSS_ITERS) are not less than "
            f"the {max_iter} of the training: all of it assigns by "
            f"{type(warmup).__name__}, none by {type(model.assigner).__name__}."
        )


def _rank(results: Dict) -> float:
    AP = first_AP(results)
    return -1.0 if math.isnan(AP) else AP


def _is_reported_later(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return isinstance(error, UserError) or is_lost_peer(error) or is_out_of_memory(error)
