#!/usr/bin/env python
"""Train or evaluate TOOD, with the options of Detectron2's own ``train_net.py`` and some more::

    python train_net.py --config-file configs/tood_R50_FPN_1x.yaml --num-gpus 8
    python train_net.py --config-file configs/tood_R18_GN_small_data.yaml \\
        --train-data train.json:images --val-data val.json:images MODEL.TOOD.NUM_CLASSES 3
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc-per-node 8 train_net.py --config-file ...
"""

from tood.engine.train import Run, start  # first: it silences warnings of the libraries

from detectron2.engine import default_argument_parser  # isort: skip

from tood.utils.arguments import parse_arguments
from tood.utils.errors import run_main


def parse_args(argv=None) -> Run:
    parser = default_argument_parser(epilog=__doc__.split("::", 1)[1])
    for flag, key in (("--train-data", "DATASETS.TRAIN"), ("--val-data", "DATASETS.TEST")):
        parser.add_argument(
            flag,
            action="append",
            metavar="DATA",
            help=f"an annotation file in COCO's format and the folder of its images, "
            f"FILE.json:FOLDER, or a registered name, instead of {key}; may be repeated",
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
    return Run(**vars(parse_arguments(parser, argv)))


def cli(argv=None):
    """Users' mistakes end in one sentence and exit status 1."""
    run_main(
        lambda: start(parse_args(argv)),
        stopped="stopped; continue from the last checkpoint with --resume.",
    )


if __name__ == "__main__":
    cli()
