"""The demo: draw a data set of shapes, train a small detector on it from scratch, evaluate, draw,
report.
"""

import dataclasses
import os
import shlex
import time

from tood.app.plan.state import read_begun, refuse_used
from tood.app.train import train
from tood.app.trained import Trained
from tood.data.shapes import write_shapes
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError
from tood.utils.files import count_up

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


@accept_paths("output")
def demo(*, output: str = "") -> Demo:
    """Train a small detector on drawn shapes, in a few minutes on two CPU cores.

    Args:
        output: folder of the data set (in shapes/) and of the training; default: "output/demo",
            with a number if it has been used.

    Raises:
        UserError: for a folder that cannot be used.

    Example::

        print(tood.demo())
    """
    start, output = time.time(), output or count_up(DEFAULT)
    shapes = os.path.join(output, "shapes")
    refuse_used(output, read_begun(output), resume=False)
    if os.path.isdir(shapes) and os.listdir(shapes):
        raise UserError(f"{shapes} already contains files; name another --output.")
    print(f"Drawing {NUM_TRAIN} + {NUM_VAL} images of shapes in {shapes} ...", flush=True)
    write_shapes(shapes, NUM_TRAIN, NUM_VAL)
    words = ["tood", "train", shapes, "--config-file", CONFIG, "--output", output]
    print(f"$ {shlex.join(words)}")
    trained = train(shapes, config=CONFIG, output=output)
    return Demo(trained, time.time() - start)
