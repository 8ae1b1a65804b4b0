#!/usr/bin/env python
"""
Train or evaluate TOOD, with the options of Detectron2's own ``train_net.py`` and some more::

    python train_net.py --config-file configs/tood_R50_FPN_1x.yaml --num-gpus 8
    python train_net.py --config-file configs/tood_R18_GN_small_data.yaml \\
        --train-data train.json:images --val-data val.json:images MODEL.TOOD.NUM_CLASSES 3
    python train_net.py --config-file configs/lazy/tood_R50_FPN_1x.py train.max_iter=1000
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc-per-node 8 train_net.py --config-file ...
"""

import logging
import os
import sys
import warnings

# From PyTorch about Detectron2; nothing that a user could act on.
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
warnings.filterwarnings("ignore", message="TypedStorage is deprecated")

import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from tood.checkpoint.checkpointer import Checkpointer
from tood.config.check import check_training
from tood.config.lazy import is_lazy, keys_as_in, lazy_names
from tood.config.lazy_view import LazyView
from tood.config.read import check_weights, load_config, read_schedule, typed_keys
from tood.config.schedule import scale_schedule
from tood.data.datasets import prepare_datasets
from tood.engine.launch import launch
from tood.engine.lazy_trainer import LazyTrainer
from tood.engine.trainer import Trainer
from tood.utils.errors import UserError
from tood.utils.files import check_folder, write_json

logger = logging.getLogger("tood")


def parse_args(argv=None):
    parser = default_argument_parser(epilog=__doc__.split("::", 1)[1])
    for flag, key in (("--train-data", "DATASETS.TRAIN"), ("--val-data", "DATASETS.TEST")):
        parser.add_argument(
            flag,
            action="append",
            metavar="JSON[:FOLDER]",
            help=f"data set in COCO format and the folder of its images, or a registered name, "
            f"in the place of {key}; may be repeated",
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
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        args.num_gpus = 0
    elif args.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus asks for {args.num_gpus} GPUs, but this machine has "
            f"{torch.cuda.device_count()}."
        )
    return args


def setup(args):
    """Nothing is written before the config, its weights and its annotations have been checked."""
    cfg = load_config(args.config_file, args.opts, args.train_data, args.val_data)
    if not args.eval_only:
        check_training(cfg)
    reports = prepare_datasets(cfg, training=not args.eval_only)
    scaled = set_schedule(cfg, args)
    if not (args.resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))):
        if args.eval_only and not cfg.MODEL.WEIGHTS:
            raise UserError(
                "--eval-only needs weights: name a checkpoint with MODEL.WEIGHTS FILE behind the "
                "other options, or add --resume for the last one in OUTPUT_DIR."
            )
        check_weights(cfg.MODEL.WEIGHTS)
    cfg.freeze()
    check_folder(cfg.OUTPUT_DIR)
    default_setup(cfg.to_lazy() if isinstance(cfg, LazyView) else cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tood")
    for report in reports:
        logger.info(str(report))
    if scaled:
        texts = (f"{key} {value}" for key, value in scaled.items())
        text = f"Scaled by --epochs and --images-per-step: {', '.join(texts)}"
        logger.info(lazy_names(text) if is_lazy(args.config_file) else text)
    return cfg


def set_schedule(cfg, args):
    """
    Change a config to what the flags ask for, save for the keys that were typed: what was changed,
    or None without a flag.
    """
    if args.eval_only or (args.epochs is None and args.images_per_step is None):
        return None
    as_typed = typed_keys(args.config_file, args.opts)
    num_images = None
    if args.epochs is not None:
        filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        num_images = len(get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty))
    schedule = scale_schedule(
        read_schedule(args.config_file),
        images_per_step=cfg.SOLVER.IMS_PER_BATCH
        if args.images_per_step is None
        else args.images_per_step,
        epochs=args.epochs,
        num_images=num_images,
    )
    typed = cfg.SOLVER.IMS_PER_BATCH
    if "SOLVER.IMS_PER_BATCH" in as_typed and typed != schedule.ims_per_batch:
        raise UserError(
            f"--images-per-step is {schedule.ims_per_batch}, but SOLVER.IMS_PER_BATCH {typed} is "
            "typed as well; leave out one of them."
        )
    options = {key: value for key, value in schedule.options().items() if key not in as_typed}
    for key, value in options.items():
        cfg.merge_from_list([key, value])
    return options


def main(args):
    with keys_as_in(args.config_file):
        cfg = setup(args)
        trainer_type = LazyTrainer if isinstance(cfg, LazyView) else Trainer
        run = evaluate if args.eval_only else train
        return run(cfg, args, trainer_type)


def evaluate(cfg, args, trainer_type):
    model = trainer_type.build_model(cfg)
    checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR, complete=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = trainer_type.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(trainer_type.test_with_TTA(cfg, model))
    if comm.is_main_process():
        write_json(results, os.path.join(cfg.OUTPUT_DIR, "inference", "results.json"))
        verify_results(cfg, results)
    return results


def train(cfg, args, trainer_type):
    trainer = trainer_type(cfg)
    if args.resume and not trainer.checkpointer.has_checkpoint():
        logger.warning(f"--resume: no checkpoint in {cfg.OUTPUT_DIR} yet, training from the start.")
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def cli(argv=None):
    """Users' mistakes end in one sentence and exit status 1."""
    try:
        args = parse_args(argv)
        launch(main, args)
    except UserError as error:
        sys.exit(f"error: {error.sentence()}")
    except ProcessExitedException as error:  # of several processes, stopped by a signal
        sys.exit(error.exit_code)
    except ProcessRaisedException as error:  # of one of several processes
        error = UserError(str(error))
        if error.sentence() == str(error).strip():
            raise
        sys.exit(f"error: {error.sentence()}")


if __name__ == "__main__":
    cli()
