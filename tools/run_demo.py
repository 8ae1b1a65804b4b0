#!/usr/bin/env python
"""Run the demo: draw a data set of shapes, train a small TOOD, evaluate, and draw predictions.

Each step is a command that you can run on its own, and is printed before it runs.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIG = "configs/demo_shapes.yaml"
OUTPUT = "output/demo"


def main():
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip()).parse_args()
    start = time.time()
    # Waiting threads sleep: on a busy machine with few cores, spinning makes steps much slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    steps = [
        ["tools/make_shapes.py", f"{OUTPUT}/shapes"],
        ["train_net.py", "--config-file", CONFIG],
        [
            *("-m", "tood", "draw", f"{OUTPUT}/model_final.pth", "--config-file", CONFIG),
            *("--output", f"{OUTPUT}/predictions.png", "--overwrite"),
            *("--num-images", "8", "--score-threshold", "0.4", "--scale", "2"),
        ],
        ["-m", "tood", "report", OUTPUT, "--overwrite"],
    ]
    for step in steps:
        print("$ python " + " ".join(shlex.quote(word) for word in step), flush=True)
        status = subprocess.call([sys.executable, *step], cwd=ROOT)
        if status != 0:
            return status
    print(f"The demo took {time.time() - start:.0f} s.")
    print(f"Predictions beside ground truth: {OUTPUT}/predictions.png")
    print(f"What is good and bad about it:   {OUTPUT}/report/report.html")
    print(f"Losses and AP over time:         tensorboard --logdir {OUTPUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
