"""Train or evaluate TOOD, with the options of Detectron2's own ``train_net.py`` and some more::

    python train_net.py --config-file configs/tood_R50_FPN_1x.yaml --num-gpus 8
    python train_net.py --config-file configs/tood_R18_GN_small_data.yaml \\
        --train-data train.json:images --val-data val.json:images MODEL.TOOD.NUM_CLASSES 3
    python train_net.py --config-file configs/lazy/tood_R50_FPN_1x.py train.max_iter=1000
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc-per-node 8 train_net.py --config-file ...
"""

import contextlib
import logging
import os
import sys

import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.checkpoint.checkpointer import Checkpointer
from tood.config.build import check_builds
from tood.config.inferred import is_typed
from tood.config.lazy.read import build_lazy_model
from tood.config.read import (
    apply_schedule,
    check_training,
    check_weights,
    load_config,
    read_schedule,
    run_options,
    schedule_of_file,
    sets_images_per_step,
)
from tood.config.schedule import scale_schedule
from tood.data.datasets import prepare_datasets
from tood.data.tiles import tile_records
from tood.engine.build_lazy import (
    build_lazy_experiment,
    evaluate_lazy,
    evaluate_lazy_with_TTA,
)
from tood.engine.launch import launch
from tood.engine.loop import TrainingLoop
from tood.engine.trainer import Trainer
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, run_main
from tood.utils.files import check_folder, read_tensors, write_json
from tood.utils.lock import locked
from tood.utils.logs import keep_pages_to_files

logger = logging.getLogger("tood")


def parse_args(argv=None):
    return finished(parse_arguments(make_parser(__doc__), argv))


def make_parser(doc):
    """The flags, and examples of a docstring below them."""
    parser = default_argument_parser(epilog=doc.split("::", 1)[1])
    for flag, key in (("--train-data", "DATASETS.TRAIN"), ("--val-data", "DATASETS.TEST")):
        parser.add_argument(
            flag,
            action="append",
            metavar="DATA",
            help=f"a folder, an annotation file and the folder of its images, FILE.json:FOLDER, or "
            f"a registered name, instead of {key}; may be repeated",
        )
    parser.add_argument(
        "--epochs",
        type=float,
        metavar="E",
        help="length of training; everything counted in iterations keeps its share of it",
    )
    parser.add_argument(
        "--images-per-step",
        type=int,
        metavar="B",
        help="of all processes together; learning rate and iterations of the config, which are "
        "for its SOLVER.IMS_PER_BATCH, are scaled to it",
    )
    return parser


def finished(args):
    """Fit the number of GPUs to the machine."""
    if not torch.cuda.is_available():
        args.num_gpus = 0
    elif args.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus asks for {args.num_gpus} GPUs, but this machine has "
            f"{torch.cuda.device_count()}."
        )
    return args


def checked(args):
    """Return the config, and what to tell of the data and the schedule. Nothing is written yet."""
    cfg = load_config(
        args.config_file,
        args.opts,
        args.train_data,
        args.val_data,
        training=not args.eval_only,
        resume=args.resume,
    )
    options = run_options(cfg)
    if not args.eval_only:
        check_training(cfg)
    if not isinstance(cfg, DictConfig):
        check_builds(cfg)
    known = classes_of_weights(options) if args.eval_only else ()
    reports = prepare_datasets(options.data, training=not args.eval_only, known_classes=known)
    news = [str(report) for report in reports]
    if not (args.eval_only or isinstance(cfg, DictConfig)) and not is_typed(
        args.config_file, args.opts
    ):
        news.append(f"{cfg.MODEL.TOOD.NUM_CLASSES} classes, of the data.")
    if not options.data.test and not args.eval_only:
        news.append("No validation data (--val-data): nothing will be evaluated.")
    scaled = set_schedule(cfg, args)
    if scaled:
        texts = (f"{key} {value}" for key, value in scaled.items())
        news.append(f"Scaled by --epochs and --images-per-step: {', '.join(texts)}")
    resumes = args.resume and os.path.isfile(os.path.join(options.output_dir, "last_checkpoint"))
    if not resumes:
        if args.eval_only and not options.weights:
            raise UserError(
                f"--eval-only needs weights: name a checkpoint with {options.weights_key} after "
                "the flags, or add --resume for the last one of the output folder."
            )
        check_weights(options.weights, options.weights_key)
    check_folder(options.output_dir)
    return cfg, news


def setup(args):
    """Check everything, and then begin to write: the config and the log."""
    cfg, news = checked(args)
    begin(cfg, args, news)
    return cfg


def begin(cfg, args, news):
    output_dir = run_options(cfg).output_dir
    setup_logger(output_dir, distributed_rank=comm.get_rank())  # as default_setup does
    keep_pages_to_files(["detectron2"])
    default_setup(cfg, args)
    setup_logger(output_dir, distributed_rank=comm.get_rank(), name="tood")
    keep_pages_to_files(["tood"])  # the model of a config in Python
    for text in news:
        logger.info(text)


def classes_of_weights(options):
    """Return the names of the classes that a checkpoint was trained on, if it says so."""
    if not (options.weights.endswith(".pth") and os.path.isfile(options.weights)):
        return ()
    names = read_tensors(options.weights).get("class_names") or ()
    return names if len(names) == options.data.num_classes else ()


@contextlib.contextmanager
def lock_of_training(cfg, args):
    """Let one training at a time write to a folder; the main process holds its lock."""
    error = None
    with contextlib.ExitStack() as stack:
        if comm.is_main_process() and not args.eval_only:
            try:
                stack.enter_context(locked(run_options(cfg).output_dir))
            except UserError as refused:
                error = refused
        error = comm.all_gather(error)[0]  # all processes end together
        if error is not None:
            raise error
        yield


def num_training_images(cfg) -> int:
    """Return the number of training images, or of the tiles they are cut into."""
    options = run_options(cfg)
    records = get_detection_dataset_dicts(options.data.train, options.data.filter_empty)
    return len(tile_records(records, options.tiles) if options.tiles.size else records)


def set_schedule(cfg, args):
    """Change a config to what the flags ask for, except for the keys that overrides set.

    Returns:
        the values that were changed, by key, or None without a flag.
    """
    if args.eval_only or (args.epochs is None and args.images_per_step is None):
        return None
    num_images = None if args.epochs is None else num_training_images(cfg)
    typed = read_schedule(cfg).ims_per_batch
    schedule = scale_schedule(
        schedule_of_file(args.config_file),
        images_per_step=typed if args.images_per_step is None else args.images_per_step,
        epochs=args.epochs,
        num_images=num_images,
    )
    if sets_images_per_step(args.config_file, args.opts) and typed != schedule.ims_per_batch:
        raise UserError(
            f"--images-per-step is {schedule.ims_per_batch}, but the overrides set {typed} images "
            "per step as well; leave out one of them."
        )
    return apply_schedule(cfg, schedule, args.opts)


def main(args):
    cfg, news = checked(args)
    with lock_of_training(cfg, args):
        begin(cfg, args, news)
        return evaluate(cfg, args) if args.eval_only else train(cfg, args)


def evaluate(cfg, args):
    options = run_options(cfg)
    is_lazy = isinstance(cfg, DictConfig)
    model = build_lazy_model(cfg) if is_lazy else Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, save_dir=options.output_dir, complete=True)
    checkpointer.resume_or_load(options.weights, resume=args.resume)
    test = evaluate_lazy if is_lazy else Trainer.test
    results = test(cfg, model)
    if options.tta.enabled:
        with_TTA = evaluate_lazy_with_TTA if is_lazy else Trainer.test_with_TTA
        results.update(with_TTA(cfg, model))
    if comm.is_main_process():
        write_json(results, os.path.join(options.output_dir, "inference", "results.json"))
        if not is_lazy:
            verify_results(cfg, results)
    return results


def train(cfg, args):
    is_lazy = isinstance(cfg, DictConfig)
    trainer = TrainingLoop(build_lazy_experiment(cfg)) if is_lazy else Trainer(cfg)
    if args.resume and not trainer.checkpointer.has_checkpoint():
        folder = trainer.options.output_dir
        logger.warning(f"--resume: no checkpoint in {folder} yet, training from the start.")
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if run_options(cfg).report:
        comm.synchronize()  # the main process has written the best weights
        write_report(run_options(cfg))
    return results


def write_report(options):
    """A page on the best weights, which all processes evaluate. What goes wrong with it loses
    nothing of the training.
    """
    from tood.app.report.make import report

    if not options.data.test:
        logger.info("No report without validation data (--val-data).")
        return
    try:
        written = report(options.output_dir, overwrite=True)
        if written is not None:
            print(written)
    except UserError as error:
        logger.warning(f"No report was written: {error.sentence()}")


def cli(argv=None):
    """Users' mistakes end in one sentence and exit status 1."""
    run_main(
        lambda: launched(argv), stopped="stopped; go on from the last checkpoint with --resume."
    )


def launched(argv):
    launched_with(parse_args(argv))


def launched_with(args):
    try:
        launch(main, args)
    except ProcessExitedException as error:  # of several processes, stopped by a signal
        sys.exit(error.exit_code)
    except ProcessRaisedException as error:  # of one of several processes
        told = UserError(str(error))
        if told.sentence() == str(error).strip():
            raise
        raise told from error
