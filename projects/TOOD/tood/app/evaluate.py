"""Evaluate a trained detector by COCO's metrics."""

import dataclasses
import json
import math
import os
from typing import Dict, Sequence, Union

from tood.app.check import read_validation_data
from tood.app.trained import find_trained
from tood.engine.train import Run, start
from tood.utils.arguments import accept_paths

RESULTS = os.path.join("inference", "results.json")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Metrics of a detector."""

    # By task ("bbox", and "bbox_TTA" with test-time augmentation), in percent; for several data
    # sets, by their names first.
    results: Dict[str, Dict]
    folder: str  # of the log, and of inference/results.json

    def __str__(self) -> str:
        AP = f"AP {self.metrics['AP']:.2f}: " if self.metrics else ""
        return f"{AP}{os.path.join(self.folder, RESULTS)}"

    @property
    def metrics(self) -> Dict[str, float]:
        """COCO's metrics of boxes on the first data set, in percent."""
        first = self.results if "bbox" in self.results else next(iter(self.results.values()), {})
        return first.get("bbox", {})


@accept_paths("model", "val_data", "config")
def evaluate(
    model: str,
    *,
    val_data: Union[None, str, Sequence[str]] = None,
    config: str = "",
    num_gpus: int = 1,
    options: Sequence[str] = (),
) -> Evaluated:
    """Evaluate a detector on its validation data, or on other data with the same classes.

    Args:
        model: output folder of a training, a checkpoint in it, or the name of a released model.
        val_data: data in any format that ``tood.convert`` reads; default: the config's.
        config: a config file; default: the one beside the checkpoint.
        num_gpus: on this machine; 0 on a machine without any.
        options: KEY, VALUE, ... of the config.

    Returns:
        COCO's metrics in percent; the output folder has them in inference/results.json.

    Raises:
        UserError: for a model or data that cannot be used.

    Example::

        tood.evaluate("output/mine", val_data="new_photos/").metrics["AP"]
    """
    trained = find_trained(model, config)
    datasets, names = read_validation_data(val_data)
    typed = dict(zip(options[::2], options[1::2]))
    folder = os.path.expanduser(str(typed.get("OUTPUT_DIR", trained.folder)))
    results = start(
        Run(
            trained.config_file,
            opts=[*trained.options(), *map(str, options)],
            val_data=[*(dataset.entry for dataset in datasets), *names] or None,
            eval_only=True,
            num_gpus=num_gpus,
            datasets=datasets,
        )
    )
    return Evaluated(_read_results(folder) if results is None else results, folder)


def _read_results(folder: str) -> Dict[str, Dict]:
    """Return the metrics that one of several processes has written, with NaN for JSON's null."""
    with open(os.path.join(folder, RESULTS), encoding="utf-8") as f:
        return json.load(
            f, object_hook=lambda x: {k: math.nan if v is None else v for k, v in x.items()}
        )
