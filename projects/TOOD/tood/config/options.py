"""The keys of the training loop, declared once, and the values of a config that programs need."""

import dataclasses
import math
import re
from typing import Any, Dict, NamedTuple, Optional, Sequence

from detectron2.config import CfgNode

from tood.data.datasets import DataOptions
from tood.utils.errors import UserError
from tood.utils.tiles import TileOptions


class Range(NamedTuple):
    """The numbers that an option may be, both ends included."""

    low: float
    high: float = math.inf
    above_low: bool = False  # the lower end is not included

    def contains(self, value) -> bool:
        return (
            type(value) in (int, float)
            and self.low <= value <= self.high
            and math.isfinite(value)
            and not (self.above_low and value == self.low)
        )

    def check(self, key: str, value) -> None:
        """Raise UserError for a value that is not such a number."""
        if not self.contains(value):
            raise UserError(f"{key} is {value!r}; it must be {self}.")

    def __str__(self):
        text = f"more than {self.low}" if self.above_low else f"at least {self.low}"
        return text if self.high == math.inf else f"{text} and at most {self.high}"


def option(default, low: Optional[float] = None, high: float = math.inf) -> Any:
    """Return a field with a default and, for a number, the values that it may be."""
    allowed = {} if low is None else {"range": Range(low, high)}
    return dataclasses.field(default=default, metadata=allowed)


@dataclasses.dataclass
class TrainingOptions:
    """The keys of ``MODEL.TOOD`` that the training loop reads, in lower case. A new one is a field
    here and the place in :mod:`tood.engine` that uses it: the key, its check and its value in
    ``LoopOptions.training`` follow.
    """

    # At each evaluation of a training, every TEST.EVAL_PERIOD iterations: compute the losses on
    # DATASETS.TEST as well.
    val_loss: bool = option(False)
    # Decay of a moving average of the weights, which is evaluated beside them. 0: no average;
    # 0.999 is usual.
    ema_decay: float = option(0.0, 0, 0.999999)
    # Evaluate the moving average alone, if there is one: half of the time.
    eval_ema_alone: bool = option(False)
    # Evaluations in a row without a better AP that end a training; 0: never.
    early_stop_patience: int = option(0, 0)
    # Iterations in which nothing is learned (docs/training.md) that end a training, or a quarter
    # of a shorter one; 0: never.
    max_dead_iters: int = option(200, 0)
    # Measure the alignment of classification and localization in each evaluation as well.
    eval_alignment: bool = option(False)
    # Output folder of a training, or a checkpoint, whose predictions are learned as well, and the
    # weight of their losses; 0: none (docs/training.md).
    teacher: str = option("")
    teacher_weight: float = option(1.0, 0)
    # "mlflow" or "wandb": write metrics there as well (docs/integrations.md).
    tracker: str = option("")

    @property
    def active_teacher(self) -> str:
        """The teacher, "" if its losses have no weight."""
        return self.teacher if self.teacher_weight else ""


def add_training_keys(tood: CfgNode) -> None:
    """Add the keys of :class:`TrainingOptions`, with their defaults, to ``MODEL.TOOD``."""
    for field in dataclasses.fields(TrainingOptions):
        tood[field.name.upper()] = field.default


def get_training_ranges() -> Dict[str, Range]:
    """Return the range of each key of :class:`TrainingOptions` that is a number."""
    fields = dataclasses.fields(TrainingOptions)
    return {
        f"MODEL.TOOD.{x.name.upper()}": x.metadata["range"] for x in fields if "range" in x.metadata
    }


def read_training_options(cfg: CfgNode) -> TrainingOptions:
    """Return the values of the keys of :class:`TrainingOptions`."""
    fields = dataclasses.fields(TrainingOptions)
    return TrainingOptions(**{x.name: cfg.MODEL.TOOD[x.name.upper()] for x in fields})


class TTAOptions(NamedTuple):
    """``TEST.AUG``."""

    enabled: bool
    min_sizes: Sequence[int]  # shorter sides of the augmented views, pixels
    max_size: int  # upper bound of their longer side
    flip: bool  # each view as well


class RunOptions(NamedTuple):
    """The values of a config that data checks, programs and tools need."""

    data: DataOptions
    weights: str
    output_dir: str
    device: str
    input_format: str  # "RGB" or "BGR"
    bit_depth: int
    min_size_test: int  # 0: images stay as they are
    max_size_test: int
    tta: TTAOptions
    tiles: TileOptions


def get_finest_stride(in_features: Sequence[str]) -> int:
    """Return a stride in pixels: Detectron2's feature maps are named after its logarithm, as p3 or
    res4. Of other names it is not known, and 8.
    """
    level = re.fullmatch(r"(?:p|res)(\d)", in_features[0])
    return 2 ** int(level[1]) if level else 8
