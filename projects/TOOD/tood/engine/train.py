"""A whole run: read the config, check everything, train or evaluate; what ``train_net.py`` and
``tood train`` are doors to.
"""

import contextlib
import dataclasses
import logging
import os
import re
import sys
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.engine import default_setup
from detectron2.evaluation import verify_results
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import _cached_log_stream, setup_logger
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.checkpoint.checkpointer import Checkpointer
from tood.checkpoint.identity import IDENTITY, hash_data, hash_weights, make_identity
from tood.config.build import check_builds
from tood.config.files import ConfigFile, read_config_file
from tood.config.inferred import is_typed
from tood.config.options import RunOptions, read_training_options
from tood.config.read import (
    apply_schedule,
    check_training,
    check_weights,
    load_config,
    read_options,
    read_schedule,
    run_options,
)
from tood.config.schedule import refuse_other_schedule, scale_schedule
from tood.data.datasets import DataSet, prepare_datasets
from tood.data.tiles import tile_records
from tood.engine.closing import make_report_hint
from tood.engine.launch import launch, place_from_environment
from tood.engine.loop import check_validation_loss
from tood.engine.progress import printed_to_log
from tood.engine.trainer import Trainer, attach_teacher, check_precise_bn, get_class_names
from tood.evaluation.coco import load_content
from tood.inference.teacher import NOT_CHECKED, list_taught_images
from tood.utils.errors import UserError
from tood.utils.files import check_folder, write_json, write_whole
from tood.utils.folders import is_output
from tood.utils.lock import locked
from tood.utils.logs import keep_logs_to_files, keep_pages_to_files, restored
from tood.utils.reading import compose
from tood.utils.signals import SIGNALS, Stopped, mark_resumable
from tood.utils.tensors import read_tensors

logger = logging.getLogger("tood")
LOGGERS = ("detectron2", "fvcore", "tood")  # that write to the log of a run


@dataclasses.dataclass
class Run:
    """The flags of ``train_net.py``, and data that were read before."""

    config_file: str = ""
    # The same file, if it was read before.
    config: Optional[ConfigFile] = dataclasses.field(default=None, repr=False)
    opts: Sequence[str] = ()  # KEY VALUE ...
    train_data: Optional[Sequence[str]] = None  # instead of DATASETS.TRAIN
    val_data: Optional[Sequence[str]] = None
    epochs: Optional[float] = None
    images_per_step: Optional[int] = None  # of all processes
    resume: bool = False
    eval_only: bool = False
    num_gpus: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"
    # Not in the log, which is to stay readable.
    datasets: Sequence[DataSet] = dataclasses.field(default=(), repr=False)
    is_built: bool = False  # a model of this config was built before, to measure it
    is_locked: bool = False  # the caller has the lock of the output folder
    is_reported: bool = False  # the caller writes a report
    # The log is in log.txt alone; a training shows one live line in the terminal.
    shows_progress: bool = False


def start(run: Run):
    """Train or evaluate in as many processes as are asked for.

    Returns:
        of one process, a :class:`Trainer` that has trained, or the metrics of an evaluation; of
        several, None.

    Raises:
        UserError: for anything that a user can correct, in any of the processes.
    """
    if place_from_environment(os.environ) is None:  # or --num-gpus is not used
        check_num_gpus(run.num_gpus)
        check_machines(run)
    if not torch.cuda.is_available():
        run.num_gpus = 0
    if run.num_gpus * run.num_machines > 1:  # their checkpoints are not known here
        mark_resumable()
    try:
        return launch(main, run)
    except ProcessExitedException as error:  # of several processes
        if error.exit_code < 0:
            raise UserError(
                "A process of this training was killed, perhaps for lack of memory; continue from "
                "the last checkpoint with --resume."
            ) from error
        if error.exit_code - 128 in SIGNALS:
            raise Stopped(error.exit_code - 128) from error
        sys.exit(error.exit_code)
    except ProcessRaisedException as error:  # of one of several processes
        if f"\n{UserError.__module__}.{UserError.__name__}: " not in str(error):
            raise
        raise UserError(str(error)) from error


def check_num_gpus(num_gpus: int) -> None:
    """Raise UserError for more GPUs than this machine has. 1, the default, may be none: then the
    CPU is used.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus < 0:
        raise UserError(f"--num-gpus is {num_gpus}; it must be at least 0.")
    if num_gpus > max(available, 1):
        raise UserError(
            f"--num-gpus asks for {num_gpus} GPUs, but this machine has {available} that PyTorch "
            "can use; ask for these, or omit the flag."
        )


def check_machines(run: Run) -> None:
    """Raise UserError for flags of several machines or processes that would have no effect, or that
    contradict each other.
    """
    machines, rank, url = run.num_machines, run.machine_rank, run.dist_url
    if machines < 1:
        raise UserError(f"--num-machines is {machines}; it must be at least 1.")
    if not 0 <= rank < machines:
        raise UserError(
            f"--machine-rank is {rank}; it must be at least 0 and less than --num-machines, which "
            f"is {machines}."
        )
    on_gpus = torch.cuda.is_available() and run.num_gpus > 0
    if machines > 1 and not on_gpus:
        why = f"--num-gpus is {run.num_gpus}" if run.num_gpus < 1 else "PyTorch finds no GPU here"
        raise UserError(
            f"--num-machines is {machines}, but {why}; several machines need GPUs: omit the flag, "
            "or start processes on CPUs by torchrun."
        )
    if machines > 1 and url == "auto":
        raise UserError(
            f"--num-machines is {machines}; name an address of the first machine on all of them "
            "with --dist-url tcp://HOST:PORT."
        )
    if url != "auto" and not re.match(r"(tcp|file|env)://", url):
        raise UserError(f"--dist-url is {url!r}; it must be an address like tcp://HOST:PORT.")
    if url != "auto" and (not on_gpus or run.num_gpus * machines == 1):
        raise UserError(
            f"--dist-url is {url}, but this run has one process, which connects to none; omit the "
            "flag."
        )


def _check_device(device: str, num_gpus: int) -> None:
    """Raise UserError for a number of GPUs that contradicts the device of the config."""
    if (num_gpus == 0 and device.startswith("cuda")) or (num_gpus > 1 and device == "cpu"):
        raise UserError(
            f"--num-gpus is {num_gpus}, but MODEL.DEVICE is {device}; omit the flag, or change the "
            "option."
        )


def main(run: Run):
    """Do what :func:`start` describes, in one of its processes."""
    cfg, news = check(run)
    with _lock_output(cfg, run), restored(LOGGERS):
        setup_logger.cache_clear()  # it returns early for a folder that it knows
        _cached_log_stream.cache_clear()  # relative names are of the current folder
        begin(cfg, run, news)
        return evaluate(cfg, run) if run.eval_only else train(cfg, run)


def check(run: Run) -> Tuple[CfgNode, List[str]]:
    """Return the config, and what to log of the data and the schedule. Nothing is written yet."""
    run.config = run.config or read_config_file(run.config_file)
    cfg = load_config(
        run.config,
        run.opts,
        run.train_data,
        run.val_data,
        training=not run.eval_only,
        resume=run.resume,
    )
    options = run_options(cfg)
    _check_device(options.device, run.num_gpus)
    if not run.eval_only:
        check_training(cfg)
    model = check_builds(cfg, built=run.is_built and not cfg.TEST.PRECISE_BN.ENABLED)
    if not run.eval_only:
        _check_effects(cfg, model)
    teacher = "" if run.eval_only else read_training_options(cfg).active_teacher
    taught, unknown = list_taught_images(teacher)
    reports = prepare_datasets(
        options.data,
        training=not run.eval_only,
        known_classes=_read_class_names(options) if run.eval_only else (),
        datasets=run.datasets,
        taught=taught,
    )
    news = [str(report) for report in reports]
    if not run.eval_only:
        if unknown and options.data.test:
            news.append(f"{NOT_CHECKED.capitalize()} ({', '.join(unknown)} not found).")
        if not is_typed(run.config, run.opts):
            news.append(f"{cfg.MODEL.TOOD.NUM_CLASSES} classes, of the data.")
        if not options.data.test:
            news.append("No validation data (--val-data): nothing will be evaluated.")
        news += _set_schedule(cfg, run)
    _check_weights(options, run)
    if not (run.eval_only or run.is_built):
        attach_teacher(cfg, model, get_class_names(cfg))
    check_folder(options.output_dir)
    return cfg, news


def _check_effects(cfg: CfgNode, model: Optional[nn.Module]) -> None:
    """Raise UserError for options of a training without an effect on this model, if it was tried,
    or with less than they promise.
    """
    if read_training_options(cfg).val_loss:
        check_validation_loss(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE))
    if model is not None:
        check_precise_bn(cfg, model)


def _check_weights(options: RunOptions, run: Run) -> None:
    if run.resume and os.path.isfile(os.path.join(options.output_dir, "last_checkpoint")):
        return
    if run.eval_only and not options.weights:
        raise UserError(
            "--eval-only needs weights: name a checkpoint with MODEL.WEIGHTS after the flags, or "
            "add --resume for the last one of the output folder."
        )
    check_weights(options.weights)


def begin(cfg: CfgNode, run: Run, news: Sequence[str]) -> None:
    """Begin to write: the config and the log."""
    limit = keep_logs_to_files if run.shows_progress else keep_pages_to_files
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank())  # as default_setup does
    limit(["detectron2"])
    if run.eval_only:
        _set_up_evaluation(cfg, run)
    else:
        default_setup(cfg, run)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tood")
    limit(["fvcore", "tood"])
    for text in news:
        logger.info(text)


def _set_up_evaluation(cfg: CfgNode, run: Run) -> None:
    """Do what Detectron2's ``default_setup`` does, without touching the config of a training."""
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="fvcore")
    log = logging.getLogger("detectron2")
    log.info(f"Rank of current process: {comm.get_rank()}. World size: {comm.get_world_size()}")
    log.info(f"Environment info:\n{collect_env_info()}")
    log.info(f"Command line arguments: {run}")
    log.info(f"Running with full config:\n{cfg.dump()}")
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    # Of a training, or of another program; that of an earlier evaluation is replaced.
    kept = [os.path.join(cfg.OUTPUT_DIR, name) for name in ("last_checkpoint", "plan.yaml")]
    is_kept = any(map(os.path.exists, kept)) or not is_output(cfg.OUTPUT_DIR)
    if comm.is_main_process() and not (is_kept and os.path.exists(path)):
        write_whole(path, cfg.dump().encode())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())


def _read_class_names(options: RunOptions) -> Sequence[str]:
    """Return the names of the classes that a checkpoint was trained on, if it says so."""
    if not (options.weights.endswith(".pth") and os.path.isfile(options.weights)):
        return ()
    names = read_tensors(options.weights).get("class_names") or ()
    return [*map(compose, names)] if len(names) == options.data.num_classes else ()


@contextlib.contextmanager
def _lock_output(cfg: CfgNode, run: Run) -> Iterator[None]:
    """Make sure that one training at a time writes to a folder; the main process has its lock,
    unless its caller has it.
    """
    error = None
    with contextlib.ExitStack() as stack:
        if comm.is_main_process() and not (run.eval_only or run.is_locked):
            try:
                stack.enter_context(locked(cfg.OUTPUT_DIR))
            except UserError as refused:
                error = refused
        error = comm.all_gather(error)[0]  # all processes end together
        if error is not None:
            raise error
        yield


def _set_schedule(cfg: CfgNode, run: Run) -> List[str]:
    """Apply the flags to a config, except for the keys that overrides set.

    Returns:
        lines for the log; none without a flag.
    """
    if run.epochs is None and run.images_per_step is None:
        return []
    num_images = None
    if run.epochs is not None:
        options = run_options(cfg)
        records = get_detection_dataset_dicts(options.data.train, options.data.filter_empty)
        tiles = options.tiles
        num_images = len(tile_records(records, tiles) if tiles.size else records)
    typed = cfg.SOLVER.IMS_PER_BATCH
    schedule = scale_schedule(
        read_schedule(run.config),
        images_per_step=typed if run.images_per_step is None else run.images_per_step,
        epochs=run.epochs,
        num_images=num_images,
    )
    refuse_other_schedule(
        schedule,
        read_options(run.config, run.opts),
        epochs=run.epochs,
        images_per_step=run.images_per_step,
    )
    scaled = apply_schedule(cfg, schedule, run.opts)
    texts = [f"{key} {value}" for key, value in scaled.items()]
    return [f"Scaled by --epochs and --images-per-step: {', '.join(texts)}"] if scaled else []


def evaluate(cfg: CfgNode, run: Run) -> Dict:
    """Evaluate the weights of a config; write the metrics, and return them."""
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR, complete=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=run.resume)
    with printed_to_log() if run.shows_progress else contextlib.nullcontext():
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        contents = (load_content(x, MetadataCatalog.get(x)) for x in cfg.DATASETS.TEST)
        weights, data = hash_weights(model.state_dict()), hash_data(*contents)
        content = {**results, IDENTITY: make_identity(weights=weights, data=data)}
        write_json(content, os.path.join(cfg.OUTPUT_DIR, "inference", "results.json"))
        try:
            verify_results(cfg, results)
        except SystemExit:
            raise UserError(
                f"The results in {cfg.OUTPUT_DIR} are not those of TEST.EXPECTED_RESULTS "
                f"({cfg.TEST.EXPECTED_RESULTS}); the log has the differences."
            ) from None
    return results


def train(cfg: CfgNode, run: Run) -> Trainer:
    """Train by a config; return the trainer, with the model, its best weights and the metrics."""
    trainer = Trainer(cfg)
    if run.resume and not trainer.checkpointer.has_checkpoint():
        logger.warning(f"--resume: no checkpoint in {cfg.OUTPUT_DIR} yet, training from the start.")
    trainer.resume_or_load(resume=run.resume)
    is_shown = run.shows_progress and comm.is_main_process()
    with trainer.progress.shown() if is_shown else contextlib.nullcontext():
        trainer.results = trainer.train()
    if cfg.DATASETS.TEST and not run.is_reported and comm.is_main_process():
        logger.info(make_report_hint(cfg.OUTPUT_DIR))
    return trainer
