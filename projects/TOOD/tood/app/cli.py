"""The command ``tood``: one door to training, evaluation, prediction, export and checks.

The commands import what they need: ``tood --help`` does not need PyTorch.
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
    "check": "tood.app.check",
    "train": "tood.app.train",
    "eval": "tood.app.trained",
    "report": "tood.app.trained",
    "predict": "tood.app.trained",
    "explain": "tood.app.trained",
    "export": "tood.app.trained",
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
