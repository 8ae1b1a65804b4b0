#!/usr/bin/env python
"""Time the reading and checking of a folder of many images and labels, in YOLO's format::

    python dev/experiments/time_conversion.py --images 10000

Prints seconds and the largest memory of the process; reading the heads of the images is a part.
"""

import argparse
import io
import os
import resource
import tempfile
import time

import numpy as np
from PIL import Image
from tabulate import tabulate

from tood.app.check import check_part
from tood.app.convert.door import read_data
from tood.data.images import probe_image


def write_folder(folder: str, num_images: int, num_objects: int = 10) -> None:
    """Write images of one content, and a file of labels for each."""
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    Image.new("RGB", (640, 480), (90, 120, 90)).save(buffer, "JPEG")
    for name in ("images", "labels"):
        os.makedirs(os.path.join(folder, name))
    with open(os.path.join(folder, "classes.txt"), "w") as f:
        f.write("bus\ncar\ntrain\n")
    for i in range(num_images):
        with open(os.path.join(folder, "images", f"{i:06d}.jpg"), "wb") as f:
            f.write(buffer.getvalue())
        boxes = rng.uniform(0.1, 0.4, (num_objects, 4)) + [0.2, 0.2, 0, 0]
        with open(os.path.join(folder, "labels", f"{i:06d}.txt"), "w") as f:
            f.writelines("{} {:.6f} {:.6f} {:.6f} {:.6f}\n".format(i % 3, *box) for box in boxes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("::")[0])
    parser.add_argument("--images", type=int, default=10000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, args.images)
        start = time.perf_counter()
        for name in os.listdir(os.path.join(folder, "images")):
            probe_image(os.path.join(folder, "images", name))
        heads = time.perf_counter()  # which are remembered
        (part,) = read_data(folder).parts.values()
        read = time.perf_counter()
        check_part(part)
        end = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = [("heads of the images", heads - start), ("reading", read - heads)]
    rows += [("checking", end - read)]
    print(tabulate([(name, f"{x:.1f} s") for name, x in rows] + [("memory", f"{memory:.0f} MB")]))


if __name__ == "__main__":
    main()
