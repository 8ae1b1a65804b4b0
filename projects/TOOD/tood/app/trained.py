"""``tood eval``, ``report``, ``predict``, ``explain``, ``export``: doors to the programs of these
names, which know what a training has left::

    tood eval output/mine --val-data val.json:images
    tood report output/mine
    tood predict output/mine photos/ --output found
    tood explain output/mine image.jpg 120,40,60,80
    tood export output/mine --format onnx --output mine.onnx
    tood predict output/mine/model_0000399.pth image.jpg

MODEL is the output folder of a training, whose best weights are taken, or else its last; or a
checkpoint beside its config.yaml. What follows are the flags and KEY VALUE options of the program.
"""

import importlib
import os
import sys
from typing import List, NamedTuple, Sequence

from tood.config.lazy.read import is_lazy
from tood.config.read import split_options
from tood.config.zoo import RELEASED_MODELS, get_config_file
from tood.utils.errors import UserError, run_main
from tood.utils.files import last_checkpoint_in

# By falling preference.
WEIGHTS = ("model_best.pth", "model_final.pth")
PROGRAMS = {
    "eval": "tood.engine.train",
    "report": "tood.app.report.make",
    "predict": "tood.app.predict",
    "explain": "tood.app.explain",
    "export": "tood.app.export",
}


class Trained(NamedTuple):
    """The output of a training."""

    config_file: str
    weights: str

    @property
    def folder(self) -> str:
        """Its output folder."""
        return "." if "://" in self.weights else os.path.dirname(self.weights) or "."

    def options(self) -> List[str]:
        """Overrides of its config: these weights, and the folder where it is now."""
        keys = ["MODEL.WEIGHTS", self.weights, "OUTPUT_DIR", self.folder]
        if is_lazy(self.config_file):
            keys = [f"train.init_checkpoint={self.weights}", f"train.output_dir={self.folder}"]
        return keys


def find_trained(model: str, config: str = "") -> Trained:
    """
    Args:
        model: an output folder, a checkpoint, or the name of a released model.
        config: file of its config; default: config.yaml beside the checkpoint.

    Raises:
        UserError: if there is none, or no config beside it.
    """
    model = os.path.expanduser(model)
    weights = _weights_in(model) if os.path.isdir(model) else model
    if config:
        return Trained(os.path.expanduser(config), weights)
    if model in RELEASED_MODELS and not os.path.exists(model):
        return Trained(get_config_file(model), f"tood://{model}")
    if not os.path.isfile(weights):
        raise UserError(f"No checkpoint or output folder at {model}; name another one.")
    config_file = os.path.join(os.path.dirname(weights), "config.yaml")
    if not os.path.isfile(config_file):
        raise UserError(
            f"There is no config.yaml beside {weights}; name the file of its config with "
            "--config-file."
        )
    return Trained(config_file, weights)


def _weights_in(folder: str) -> str:
    for name in (*WEIGHTS, last_checkpoint_in(folder)):
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    raise UserError(f"{folder} holds no checkpoint; name the output folder of a training.")


def arguments_of(command: str, argv: Sequence[str]) -> List[str]:
    """Return the command line of the program behind a command.

    Raises:
        UserError: where no model is named first.
    """
    if command == "report" and argv and argv[0].startswith("-"):
        return list(argv)  # of --results
    if not argv or argv[0].startswith("-"):
        usage = {"predict": "IMAGES...", "explain": "IMAGE BOX"}.get(command, "[FLAGS]")
        raise UserError(f"Name the model first: tood {command} OUTPUT_FOLDER {usage}.")
    trained = find_trained(argv[0])
    rest, options = split_options(argv[1:])
    start = ["--config-file", trained.config_file]
    if command == "eval":
        start.append("--eval-only")
    if command == "predict" and rest and not rest[0].startswith("-"):
        start.append("--input")
    if command == "explain" and len(rest) > 1 and not rest[0].startswith("-"):
        rest = ["--image", rest[0], "--box", *rest[1:]]
    return [*start, *rest, *trained.options(), *options]


def run(command, argv):
    program = importlib.import_module(PROGRAMS[command])
    if {"-h", "--help"} & set(argv):
        print(f"tood {command} MODEL ...: MODEL is a training's output folder, or a checkpoint in")
        print("it; its config and weights are taken. What may follow:\n")
        sys.stdout.flush()
        program.parse_args(["--help"])
    run_main(lambda: program.cli(arguments_of(command, argv)))
