"""The values of a config that programs need besides its parts, whichever kind of config it is."""

import re
from typing import NamedTuple, Sequence

from tood.data.datasets import DataOptions
from tood.utils.tiles import TileOptions


class TTAOptions(NamedTuple):
    """``TEST.AUG``, or ``train.test_aug`` of a config in Python."""

    enabled: bool
    min_sizes: Sequence[int]  # shorter sides of the augmented views, pixels
    max_size: int  # upper bound of their longer side
    flip: bool  # each view as well


class RunOptions(NamedTuple):
    """The values of a config that data checks, programs and tools need."""

    data: DataOptions
    weights: str
    weights_key: str  # in messages
    output_dir: str
    device: str
    input_format: str  # "RGB" or "BGR"
    min_size_test: int  # 0: images stay as they are
    max_size_test: int
    tta: TTAOptions
    eval_period: int
    early_stop_patience: int
    report: bool  # to write when training ends
    tiles: TileOptions


def finest_stride_of(in_features: Sequence[str]) -> int:
    """Return a stride in pixels: feature maps are named after its logarithm, as p3 or res4."""
    level = re.search(r"\d+$", in_features[0])
    return 2 ** int(level[0]) if level else 8
