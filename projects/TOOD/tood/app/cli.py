"""The program ``tood``: one parser per command, and one call of the function of that name.

The functions are imported when they are called: ``tood --help`` needs no PyTorch.
"""

import argparse
import sys
from typing import Callable, Dict, NoReturn, Optional, Sequence

import tood
from tood.app.habits import Words, refuse_unknown
from tood.inference.thresholds import parse_threshold
from tood.utils.arguments import (
    expand_home,
    make_continue_command,
    protect_numbers,
    split_overrides,
)
from tood.utils.errors import UserError, run_main
from tood.utils.suggest import suggest

USAGE = """usage: tood COMMAND ...

From a folder of photographs to a detector:

  tood check DATA                    what the data contain, and what is wrong
  tood train DATA                    split, plan, train, evaluate, draw, report
  tood eval MODEL [--val-data DATA]  COCO's metrics
  tood report MODEL                  what is good and bad about it, on one page
  tood guarantee MODEL               a threshold that misses at most a share
  tood calibrate MODEL               what scores mean; a watch over new images
  tood count MODEL IMAGES            how many objects in all, give or take
  tood predict MODEL [IMAGES...]     find objects, and draw them
  tood draw MODEL                    predictions beside ground truth
  tood explain MODEL IMAGE BOX       why an object was found, or was not
  tood export MODEL --output FILE    ONNX, TorchScript or an exported program
  tood convert DATA --output FOLDER  any format to COCO's

  tood demo                          train on drawn shapes, a few minutes
  tood setup                         install PyTorch and Detectron2, if missing

DATA is a folder or a file: COCO JSON (of Roboflow, CVAT, Label Studio as well),
YOLO, Pascal VOC, LabelMe or CSV; FOLDER:train names one of its parts. MODEL is
a training's output folder, a checkpoint in it, or the name of a released model.
Each command has --help.
"""


NEEDED = ("torch", "torchvision", "detectron2", "cv2")  # by setup
OVERRIDES = "KEY VALUE options of the config may follow the flags."
FORMATS = ("coco", "yolo", "voc", "labelme")
EXAMPLES = {
    "check": "photos/",
    "train": "photos/",
    "eval": "output/photos",
    "report": "output/photos",
    "predict": "output/photos new_photos/",
    "draw": "output/photos",
    "explain": "output/photos photo.jpg 120,40,60,80",
    "export": "output/photos --output model.onnx",
    "convert": "photos/ --output converted/",
    "guarantee": "output/photos --calibration-data new_photos/ --miss-rate 0.1",
    "calibrate": "output/photos --calibration-data new_photos/",
    "count": "output/photos new_photos/ --audit 30 --output audit",
}


def add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", metavar="DATA", help="a folder, FOLDER:PART or a file")
    parser.add_argument("--output", metavar="IMAGE", help="draw the first images, augmented")
    _add_overwrite(parser)
    _add_config(parser, "config of the drawing")


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="a folder, FOLDER:PART or a file")
    parser.add_argument(
        "--image-size", type=int, metavar="S", help="shorter side for the network, pixels"
    )
    parser.add_argument(
        *("--batch", "--images-per-step"),
        dest="images_per_step",
        type=int,
        metavar="B",
        help="images in a step, of all processes together",
    )
    parser.add_argument("--epochs", type=float, metavar="E", help="passes over the images")
    parser.add_argument("--device", metavar="D", help="cpu or cuda")
    parser.add_argument("--lr", type=float, metavar="R", help="learning rate")
    parser.add_argument("--model", metavar="M", help="N, N_P2, Pico, S, R18 or R50")
    parser.add_argument(
        "--output", metavar="FOLDER", help="default: output/DATA, output/DATA-2, ..."
    )
    parser.add_argument("--seed", type=int, metavar="N", help="random seed")
    more = parser.add_argument_group("more")
    _add_val_data(more)
    more.add_argument(
        "--val-share",
        type=float,
        metavar="S",
        help="share of the images for validation, if there are no others",
    )
    more.add_argument(
        "--group", metavar="REGEX", help="images whose names share its match stay on one side"
    )
    help = "share of the images, drawn at random, to keep for tood guarantee"
    more.add_argument("--calibration-share", type=float, metavar="S", help=help)
    more.add_argument("--resume", action="store_true", help="continue in the output folder")
    more.add_argument("--dry-run", action="store_true", help="stop after the table")
    more.add_argument("--no-report", dest="report", action="store_false", help="write no report")
    _add_gpus(more)
    _add_config(more, "used unchanged, instead of values chosen from the data")
    parser.epilog = OVERRIDES


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_val_data(parser)
    parser.add_argument("--output", metavar="FOLDER", help="default: eval/NAME in the MODEL's one")
    _add_gpus(parser)
    _add_config(parser)


def add_report(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, nargs="?")
    parser.add_argument("--val-data", metavar="DATA", help="data to evaluate on")
    parser.add_argument("--results", metavar="JSON", help="detections in COCO's format, no MODEL")
    parser.add_argument("--compare", metavar="JSON", help="detections of another model")
    parser.add_argument("--output", metavar="FOLDER", help="default: report in the MODEL's folder")
    _add_overwrite(parser)
    _add_config(parser)


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_calibration_data(parser)
    help = "images whose names share its match are drawn together, as the frames of a video"
    parser.add_argument("--group", metavar="REGEX", help=help)
    _add_threshold(parser)
    help = "random seed of folds, bootstrap and watch"
    parser.add_argument("--seed", type=int, metavar="N", help=help)
    _add_overwrite(parser)
    _add_config(parser)


def add_count(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders or patterns")
    help = "draw N images at random, and write what is found in them, to be corrected"
    parser.add_argument("--audit", type=int, metavar="N", help=help)
    parser.add_argument("--output", metavar="FOLDER", help="folder for the drawn images")
    parser.add_argument("--save-as", choices=FORMATS, help="format of the drawn images")
    parser.add_argument("--seed", type=int, metavar="N", help="random seed of the drawing")
    help = "the folder of the drawn images, corrected: an interval for the total"
    parser.add_argument("--audited", metavar="FOLDER", help=help)
    help = "most objects of a class that an image may have; default: the most that were counted"
    parser.add_argument("--most", type=int, metavar="N", help=help)
    _add_threshold(parser)
    _add_overwrite(parser)
    _add_config(parser)


def add_guarantee(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, nargs="?")
    help = "maximum share of missed objects in an image, on average"
    parser.add_argument("--miss-rate", type=float, required=True, metavar="A", help=help)
    _add_calibration_data(parser)
    help = "probability that the threshold keeps the promise, e.g. 0.95; default: on average"
    parser.add_argument("--confidence", type=float, metavar="C", help=help)
    parser.add_argument("--per-class", action="store_true", help="a threshold for each class")
    help = "images whose names share its match are one unit, as the frames of a video"
    parser.add_argument("--group", metavar="REGEX", help=help)
    parser.add_argument("--results", metavar="JSON", help="detections in COCO's format, no MODEL")
    parser.add_argument("--val-data", metavar="DATA", help="data of the results")
    help = "default: guarantee in the MODEL's folder"
    parser.add_argument("--output", metavar="FOLDER", help=help)
    _add_overwrite(parser)
    _add_config(parser)


def add_predict(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    help = 'files, folders, patterns, videos or "webcam"; default: the first 12 validation images'
    parser.add_argument("images", nargs="*", metavar="IMAGES", help=f"{help}, and a sheet of them")
    parser.add_argument("--output", metavar="PATH", help="a folder, or a file for one input")
    _add_threshold(parser)
    parser.add_argument(
        "--save-as",
        choices=FORMATS,
        help="write a data set of this format to the output folder, instead of drawings",
    )
    parser.add_argument("--json", metavar="FILE", help="detections in COCO's format, with scores")
    help = "write all that the model finds to this file, for COCO's metrics"
    parser.add_argument("--all", dest="all_detections", action="store_true", help=help)
    parser.add_argument("--sheet", metavar="IMAGE", help="all images in one grid")
    parser.add_argument("--columns", type=int, metavar="N", help="columns of the sheet")
    help = "warn if images are not like those of tood calibrate any more"
    parser.add_argument("--watch", action="store_true", help=help)
    _add_overwrite(parser)
    _add_config(parser)


def add_draw(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--val-data", metavar="DATA", help="data to draw; default: the config's")
    parser.add_argument("--output", metavar="IMAGE")
    parser.add_argument("--num-images", type=int, metavar="N", help="first images of the data set")
    parser.add_argument("--columns", type=int, metavar="N", help="pairs in a row")
    _add_threshold(parser)
    parser.add_argument("--scale", type=float, metavar="S", help="scale of the drawn images")
    _add_overwrite(parser)
    _add_config(parser)


def add_explain(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("image", metavar="IMAGE", help="a photograph")
    parser.add_argument(
        "box", metavar="X,Y,WIDTH,HEIGHT", help="box of the object, in pixels: 120,40,60,80"
    )
    parser.add_argument(
        "--class", "--class-name", dest="class_name", metavar="NAME", help="class of the object"
    )
    _add_threshold(parser)
    parser.add_argument("--output", metavar="IMAGE")
    _add_overwrite(parser)
    _add_config(parser)


def add_export(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--format", choices=("onnx", "torchscript", "exported"))
    parser.add_argument(
        "--raw", action="store_true", help="scores and boxes of every location, without NMS"
    )
    parser.add_argument(
        "--preprocessing",
        choices=("inside", "outside"),
        help="whether the file normalizes pixel values, or takes normalized ones",
    )
    help = "precision of an ONNX file"
    parser.add_argument("--precision", choices=("float32", "float16", "int8"), help=help)
    parser.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="images to find the ranges of int8 with; default: they are found for each image",
    )
    parser.add_argument("--calibration-images", type=int, metavar="N", help="maximum number")
    _add_threshold(parser)
    _add_overwrite(parser)
    _add_config(parser)


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="a folder, FOLDER:PART or a file")
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument("--to", choices=FORMATS, help="format")
    help = "treat difficult objects, which Pascal VOC marks, like others"
    parser.add_argument("--keep-difficult", action="store_true", help=help)
    _add_overwrite(parser)


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="FOLDER", help="default: output/demo, or output/demo-2, ..."
    )


def add_setup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="list what would be installed")


# Each is the function of its name in the package.
COMMANDS: Dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "check": add_check,
    "train": add_train,
    "eval": add_evaluate,
    "report": add_report,
    "calibrate": add_calibrate,
    "count": add_count,
    "guarantee": add_guarantee,
    "predict": add_predict,
    "draw": add_draw,
    "explain": add_explain,
    "export": add_export,
    "convert": add_convert,
    "demo": add_demo,
    "setup": add_setup,
}


def _add_model(parser, nargs: Optional[str] = None) -> None:
    help = "output folder, checkpoint or the name of a released model"
    parser.add_argument("model", nargs=nargs, metavar="MODEL", help=help)


def _add_val_data(parser) -> None:
    help = "a folder, a file or a registered name; may be repeated"
    parser.add_argument("--val-data", action="append", metavar="DATA", help=help)


def _add_calibration_data(parser) -> None:
    help = "annotated images that the model has not seen; default: the part of --calibration-share"
    parser.add_argument("--calibration-data", metavar="DATA", help=help)


def _add_gpus(parser) -> None:
    parser.add_argument("--num-gpus", type=int, metavar="N", help="number of GPUs on this machine")


def _add_overwrite(parser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace files that already exist")


def _add_threshold(parser) -> None:
    parser.add_argument(
        *("--score-threshold", "--score-thresh"),
        type=parse_threshold,
        metavar="S",
        help='a number; "from-report": the threshold of the best F1 for each class; "guaranteed": '
        'that of tood guarantee; "from-config": all that the model finds; default: the report\'s, '
        "if it is on these weights, or 0.3",
    )


def _add_config(parser, help: str = "default: the one beside the checkpoint") -> None:
    parser.add_argument("--config-file", dest="config", metavar="FILE", help=f"config, {help}")
    parser.epilog = OVERRIDES


def get_function(name: str) -> Callable:
    """Return the function of a command."""
    return getattr(tood, "evaluate" if name == "eval" else name)


def make_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command. What is not typed is not in its result: the function has the
    defaults.
    """
    parser = _Parser(prog=f"tood {name}", argument_default=argparse.SUPPRESS, allow_abbrev=False)
    COMMANDS[name](parser)
    return parser


class _Parser(argparse.ArgumentParser):
    """Mistakes are one sentence, without the usage in front of it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register("action", None, _StoreOnce)

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            positional = self._get_positional_actions()
            required = [str(a.metavar) for a in positional if a.nargs not in ("*", "?")]
            required += [a.option_strings[0] for a in self._get_optional_actions() if a.required]
            message = f"{self.prog} needs {' and '.join(required)}"
        else:
            message = f"{self.prog}: {message}"
        example = EXAMPLES.get(self.prog.split()[-1], "")
        example = f"; for example: {self.prog} {example}" if example else ""
        self.exit(2, f"error: {message}{example}; {self.prog} --help lists what it takes.\n")


class _StoreOnce(argparse._StoreAction):
    """Refuses a flag that is typed twice, whose first value would have no effect."""

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string and hasattr(namespace, self.dest):
            parser.error(f"{option_string} is typed twice; omit one of both")
        super().__call__(parser, namespace, values, option_string)


def _list_words(parser: argparse.ArgumentParser) -> Words:
    flags = {flag: a.nargs != 0 for a in parser._actions for flag in a.option_strings}
    positional = {str(a.metavar) for a in parser._actions if not a.option_strings}
    return Words(parser.prog, flags, positional, takes_keys=bool(parser.epilog))


def _refuse_empty(parser: argparse.ArgumentParser, args: Dict) -> None:
    """Refuse "" as a value, as a variable of a shell that is not set: the default would be used."""
    for action in parser._actions:
        value = args.get(action.dest)
        if value == "" or (isinstance(value, list) and "" in value):
            name = next(iter(action.option_strings), action.metavar)
            parser.error(f"{name} is empty; type a value")


def _refuse_two_values(overrides: Sequence[str]) -> None:
    """Raise UserError for a key that is typed with two values, as for flags."""
    typed: Dict[str, str] = {}
    for key, value in zip(overrides[::2], overrides[1::2]):
        if typed.setdefault(key, value) != value:
            raise UserError(f"{key} is typed as {typed[key]} and as {value}; omit one of them.")


def run(name: str, argv: Sequence[str]) -> None:
    """Parse the command line of a command, call its function, and print what it returns.

    Raises:
        UserError: for a mistake on the command line, or of the function.
    """
    parser = make_parser(name)
    words = _list_words(parser)
    argv, overrides = split_overrides(
        argv, [x for x, has_value in words.flags.items() if has_value]
    )
    _refuse_two_values(overrides)
    argv = [protect_numbers(expand_home(x)) for x in argv]
    refuse_unknown(words, argv, overrides)
    # Flags may stand between the names of images.
    args = vars(parser.parse_intermixed_args(argv))
    _refuse_empty(parser, args)
    if overrides:
        if not parser.epilog:
            raise UserError(f"tood {name} takes no option {overrides[0]}; it reads no config.")
        args["options"] = overrides
    positional = [a.dest for a in parser._actions if not a.option_strings and a.dest in args]
    values = [args.pop(dest) for dest in positional if args[dest] != []]
    args = {name: value for name, value in args.items() if name not in positional}
    try:
        result = get_function(name)(*values, **args)
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        raise UserError(f"{error.name} is not installed; tood setup installs it.") from error
    print(result)
    if getattr(result, "error", ""):
        raise UserError(result.error)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; return its exit status."""
    argv = sys.argv[1:] if argv is None else [str(x) for x in argv]
    about = dict.fromkeys(("-h", "--help", "help"), USAGE.rstrip())
    about.update(dict.fromkeys(("-V", "--version"), f"tood {tood.__version__}"))
    if not argv or argv[0] in about:
        run_main(lambda: print(about[argv[0] if argv else "help"], flush=True))
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        hint = suggest(name, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}."
        print(f"error: {name} is not a command of tood{hint}", file=sys.stderr)
        return 2
    run_main(
        lambda: run(name, rest),
        continue_by=(lambda: make_continue_command(argv)) if name == "train" else None,
    )
    return 0
