"""The demo: draw a data set of shapes, train a small detector on it from scratch, evaluate, draw,
report.
"""

import dataclasses
import itertools
import os
import shlex
import time

from tood.app.train import train
from tood.app.trained import Trained
from tood.data.shapes import write_shapes
from tood.utils.arguments import accept_paths

CONFIG, DEFAULT = "demo_shapes", "output/demo"
NUM_TRAIN, NUM_VAL = 500, 100


@dataclasses.dataclass(frozen=True)
class Demo:
    """The trained detector, and how long it took."""

    trained: Trained
    seconds: float

    def __str__(self) -> str:
        return f"""\
The demo took {self.seconds:.0f} s. AP {self.trained.metrics.get("AP", 0):.1f}; look at
  {self.trained.folder}/predictions.png
  {self.trained.report}
Next, your own photographs, in a folder with boxes in any format:
  tood check photos/                       what they contain, and what is wrong
  tood train photos/                       a detector of them, in output/photos
  tood predict output/photos new_photos/   find objects in others"""


def choose_folder(default: str = DEFAULT) -> str:
    """Return a folder that does not exist: the default, or the first of those with -2, -3 ..."""
    names = itertools.chain([default], (f"{default}-{i}" for i in itertools.count(2)))
    return next(x for x in names if not os.path.exists(x))


@accept_paths("output")
def demo(*, output: str = "") -> Demo:
    """Train a small detector on drawn shapes, in a few minutes on two CPU cores.

    Args:
        output: folder of the data set (in shapes/) and of the training; default: output/demo, or
            output/demo-2 and so on, if that exists.

    Raises:
        UserError: for a folder that cannot be used.

    Example::

        print(tood.demo(output="output/demo"))
    """
    start, output = time.time(), output or choose_folder()
    shapes = os.path.join(output, "shapes")
    print(f"Drawing {NUM_TRAIN} + {NUM_VAL} images of shapes in {shapes} ...", flush=True)
    write_shapes(shapes, NUM_TRAIN, NUM_VAL)
    words = ["tood", "train", shapes, "--config-file", CONFIG, "--output", output]
    print(f"$ {shlex.join(words)}")
    trained = train(shapes, config=CONFIG, output=output)
    return Demo(trained, time.time() - start)
