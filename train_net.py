#!/usr/bin/env python
"""Train or evaluate TOOD, with the options of Detectron2's own ``train_net.py`` and some more::

    python train_net.py --config-file configs/tood_R50_FPN_1x.yaml --num-gpus 8
    python train_net.py --config-file configs/tood_R18_GN_small_data.yaml \\
        --train-data train.json:images --val-data val.json:images MODEL.TOOD.NUM_CLASSES 3
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc-per-node 8 train_net.py --config-file ...
"""

import sys

import tood
from tood.utils.arguments import make_continue_command, parse_arguments
from tood.utils.errors import run_main


def parse_args(argv=None):
    """Return the :class:`~tood.engine.train.Run` that is typed."""
    # Here, because importing takes seconds, in which a signal may come; the first silences warnings
    # of the libraries.
    with tood.importing():
        from tood.engine.train import Run

        from detectron2.engine import default_argument_parser  # isort: skip

    parser = default_argument_parser(epilog=__doc__.split("::", 1)[1])
    parser.set_defaults(dist_url="auto")  # a free port, or refused for several machines
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


def main(argv):
    from tood.engine.train import start

    start(parse_args(argv))


def cli(argv=None):
    """Users' mistakes end in one sentence and exit status 1."""
    argv = [str(x) for x in (sys.argv[1:] if argv is None else argv)]
    continue_by = None if "--eval-only" in argv else lambda: make_continue_command(argv)
    run_main(lambda: main(argv), continue_by=continue_by)


if __name__ == "__main__":
    cli()
