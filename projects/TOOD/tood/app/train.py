"""From a folder of photographs with boxes to a detector::

    tood train photos/
    tood train photos/ --dry-run
    tood train train.json:images --val-data val.json:images --output output/mine --epochs 30
    tood train photos/ --group '^(video\\d+)_' SOLVER.BASE_LR 0.005

Settings that are not given are chosen from the data: a validation set, the size of the images, the
length of the training, the images per step. They are printed as a table, and written to the output
folder as a config that train_net.py accepts as well. Flags are those of train_net.py; a config that
is named with --config-file is used unchanged.
"""

import argparse
import contextlib
import os
import shlex
from typing import Iterator, List, Sequence

from tood.app import draw
from tood.app.plan.data import read_data, write_data
from tood.app.plan.plan import (
    PLAN,
    choose_config,
    make_plan,
    plan_text,
    table,
    tiles_of,
)
from tood.config.lazy.read import is_lazy
from tood.config.zoo import get_config_file
from tood.data.formats import split_entry
from tood.engine import train as train_net
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, run_main
from tood.utils.files import check_folder, write_whole
from tood.utils.tiles import WHOLE

WRITTEN = (PLAN, "data/train.json", "data/val.json")  # before a training begins
NUM_DRAWN = 8
# Names of files and folders that say nothing about what is in them.
WITHOUT_MEANING = (
    "annotations",
    "_annotations.coco",
    "result",
    "images",
    "data",
    "train",
    "labels",
)


def parse_args(argv):
    parser = train_net.make_parser(__doc__)
    parser.prog = "tood train DATA"
    own = parser.add_argument_group("of tood train")
    own.add_argument("--output", metavar="FOLDER", help="default: output/ and the name of DATA")
    own.add_argument("--dry-run", action="store_true", help="stop after the table")
    own.add_argument(
        "--val-share", type=float, default=0.2, help="of the images, where none are to validate on"
    )
    own.add_argument(
        "--group", default="", metavar="REGEX", help="images whose names share it stay together"
    )
    data, rest = argv[:1], argv[1:]
    if data and data[0].startswith("-"):
        data, rest = [], argv
    args = train_net.finished(parse_arguments(parser, rest))
    if not data:
        raise UserError("Name the data first: tood train DATA [FLAGS] [KEY VALUE ...].")
    if args.eval_only:
        raise UserError("tood train trains; for --eval-only there is tood eval MODEL.")
    if args.config_file and is_lazy(args.config_file):
        raise UserError(
            f"{args.config_file} is a config in Python, which tood train does not take; use "
            f"train_net.py --config-file {args.config_file} --train-data {data[0]}."
        )
    args.data = data[0]
    return args


def main(args):
    output = output_of(args)
    plan_file = os.path.join(output, PLAN)
    if args.resume and not args.dry_run and os.path.isfile(plan_file):
        train(args, plan_file, output)
        return
    refuse_used(output)
    if not args.dry_run:
        check_folder(output, "--output")
    data = read_data(args)
    tiles = WHOLE if args.config_file else tiles_of(args, data.train)
    name = args.config_file or choose_config(data.train, tiles)
    config_file = args.config_file or get_config_file(name)
    plan = None if args.config_file else make_plan(args, data, config_file, tiles)
    print(table(name, data, plan, output))
    if args.dry_run:
        print("Nothing was written (--dry-run).")
        return
    with nothing_left_of_a_failure(output):
        entries = write_data(data, output)
        write_whole(plan_file, plan_text(config_file, data, plan, entries, output).encode())
        train(args, plan_file, output)


@contextlib.contextmanager
def nothing_left_of_a_failure(output: str) -> Iterator[None]:
    """Remove what was written for a training that was refused before it began."""
    try:
        yield
    except UserError:
        if not _is_in(output, "config.yaml"):  # which a training writes first
            for name in WRITTEN:
                with contextlib.suppress(OSError):
                    os.remove(os.path.join(output, name))
            for folder in (os.path.join(output, "data"), output):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        raise


def output_of(args) -> str:
    """Return the output folder: the flag's, the option's, or one named after the data."""
    options = dict(zip(args.opts[::2], args.opts[1::2]))
    if args.output or "OUTPUT_DIR" in options:
        return os.path.expanduser(args.output or options["OUTPUT_DIR"])
    path, _ = split_entry(args.data.split(".json:")[0])
    steps = [os.path.splitext(step)[0] for step in os.path.abspath(path).split(os.sep)]
    telling = [x for x in steps if x and x not in WITHOUT_MEANING and x[:10] != "instances_"]
    return os.path.join("output", telling[-1] if telling else "mine")


def refuse_used(output: str) -> None:
    """
    Raises:
        UserError: where a training has written before.
    """
    used = [name for name in (*WRITTEN, "last_checkpoint", "config.yaml") if _is_in(output, name)]
    if used:
        raise UserError(
            f"{output} has been used already (it holds {used[0]}); go on with its training by "
            "--resume, or name another folder with --output."
        )


def _is_in(folder, name):
    return os.path.exists(os.path.join(folder, name))


def train(args, plan_file: str, output: str) -> None:
    """Train by the plan with the program that trains, then draw."""
    flags = vars(args)
    own = dict(config_file=plan_file, train_data=None, val_data=None, opts=options_of(args, output))
    if not args.config_file:
        own.update(epochs=None, images_per_step=None)  # they are in the plan
    train_net.launched_with(argparse.Namespace(**{**flags, **own}))
    picture = os.path.join(output, "predictions.png")
    draw_predictions(plan_file, output, picture)
    print(f"Export it: tood export {shlex.quote(output)} --format onnx --output FILE.onnx")


def options_of(args, output: str) -> List[str]:
    """Return the KEY VALUE options, with the output folder."""
    pairs = zip(args.opts[::2], args.opts[1::2])
    return [x for pair in pairs if pair[0] != "OUTPUT_DIR" for x in pair] + ["OUTPUT_DIR", output]


def draw_predictions(plan_file: str, output: str, picture: str) -> None:
    print(draw.draw(output, output=picture, num_images=NUM_DRAWN, overwrite=True))


def run(_, argv: Sequence[str]) -> None:
    run_main(
        lambda: main(parse_args(list(argv))),
        stopped="stopped; the same command with --resume continues.",
    )
