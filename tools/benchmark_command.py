#!/usr/bin/env python
"""Time of the commands that should answer at once, whole processes::

python tools/benchmark_command.py
python tools/benchmark_command.py --images 5000 --rounds 3
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from tood.data.shapes import write_shapes_dataset
from tood.utils.arguments import parse_arguments
from tood.utils.errors import run_main

# As the script that an installation makes.
SCRIPT = "import sys, tood_cli; sys.exit(cli.main(sys.argv[1:]))"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0], epilog=__doc__.split("::", 1)[1]
    )
    parser.add_argument("--images", type=int, default=1000, help="of the data that are checked")
    parser.add_argument("--size", type=int, default=256, help="of their sides, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    return parse_arguments(parser, argv)


def seconds_of(command):
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *command], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        write_shapes_dataset(folder, num_images=args.images, seed=0, size=args.size)
        data = f"{os.path.join(folder, 'annotations.json')}:{os.path.join(folder, 'images')}"
        commands = {
            "tood --help": ["--help"],
            f"tood check, {args.images} images": ["check", data],
            f"tood check, {args.images} images, as a folder": ["check", folder],
        }
        print("| command | median | range |\n|---|---|---|")
        for name, command in commands.items():
            times = [seconds_of(command) for _ in range(args.rounds)]
            spread = f"{min(times):.2f} to {max(times):.2f} s"
            print(f"| {name} | {statistics.median(times):.2f} s | {spread} |")


if __name__ == "__main__":
    run_main(lambda: main(parse_args()))
