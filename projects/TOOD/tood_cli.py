"""The command ``tood``: one door to training, evaluation, prediction, export and checks.

It stands outside of the package, which takes seconds to import: ``tood --help`` does not need it.
"""

import importlib
import sys

USAGE = """usage: tood COMMAND ...

From a folder of photographs to a detector:

  tood check DATA                    what the data hold, and what is wrong with them
  tood train DATA                    split, choose a schedule, train, evaluate, draw
  tood eval MODEL [--val-data DATA]  COCO's metrics
  tood report MODEL                  what is good and bad about it, on one page
  tood predict MODEL IMAGES...       find objects, and draw them
  tood explain MODEL IMAGE BOX       why an object was found, or was not
  tood export MODEL --output FILE    ONNX, TorchScript or an exported program

DATA is a folder or a file: COCO JSON (of Roboflow, CVAT, Label Studio as well), YOLO, Pascal VOC,
LabelMe or CSV; FOLDER:train names one of its parts. MODEL is a training's output folder, or a
checkpoint in it. Each command has --help.
"""
# Where they are in the package.
COMMANDS = {
    "check": "tood.commands.check",
    "train": "tood.commands.start.command",
    "eval": "tood.commands.trained",
    "report": "tood.commands.trained",
    "predict": "tood.commands.trained",
    "explain": "tood.commands.trained",
    "export": "tood.commands.trained",
}


def main(argv=None):
    """Run a command; return its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: {name} is no command; the commands are {known}.", file=sys.stderr)
        return 2
    importlib.import_module(COMMANDS[name]).run(name, rest)
    return 0
