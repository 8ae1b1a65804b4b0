#!/usr/bin/env python
"""
Train or evaluate TOOD, with the options of Detectron2's own ``train_net.py`` and two more::

    python train_net.py --config-file configs/tood_R50_FPN_1x.yaml --num-gpus 8
    python train_net.py --config-file configs/tood_R18_GN_small_data.yaml \\
        --train-data train.json:images --val-data val.json:images MODEL.TOOD.NUM_CLASSES 3
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import logging
import os
import sys
import warnings

# From PyTorch about Detectron2; nothing that a user could act on.
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")

import torch
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from tood.checkpoint import Checkpointer
from tood.data import prepare_datasets
from tood.engine import Trainer, check_weights, load_config
from tood.errors import UserError

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
    prepare_datasets(cfg, training=not args.eval_only)
    if not (args.resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))):
        if args.eval_only and not cfg.MODEL.WEIGHTS:
            raise UserError(
                "--eval-only needs weights: name a checkpoint with MODEL.WEIGHTS FILE behind the "
                "other options, or add --resume for the last one in OUTPUT_DIR."
            )
        check_weights(cfg.MODEL.WEIGHTS)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tood")
    return cfg


def main(args):
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR, complete=True)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = Trainer(cfg)
    if args.resume and not trainer.checkpointer.has_checkpoint():
        logger.warning(f"--resume: no checkpoint in {cfg.OUTPUT_DIR} yet, training from the start.")
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def cli(argv=None):
    """Users' mistakes end in one sentence and exit status 1."""
    try:
        args = parse_args(argv)
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
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
