"""Evaluate a trained detector by COCO's metrics."""

import dataclasses
import glob
import itertools
import json
import logging
import math
import os
import re
import textwrap
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

from detectron2.data import MetadataCatalog

from tood.app.check import read_validation_data
from tood.app.trained import Trained, find_trained, list_data_options, name_data
from tood.checkpoint.identity import IDENTITY, hash_data
from tood.config.files import read_config_file
from tood.config.read import load_config, run_options
from tood.data.annotations import DataSet
from tood.data.datasets import read_entry
from tood.engine.train import Run, start
from tood.evaluation.coco import load_content
from tood.utils.arguments import accept_paths
from tood.utils.errors import WIDTH, UserError
from tood.utils.folders import is_output
from tood.utils.logs import at_level
from tood.utils.reading import MAX_TEXT, guard_reading, read_regular

# And what precedes their metrics.
TASKS = {"bbox": "", "bbox_TTA": "with test-time augmentation (TEST.AUG): "}
# Files of some evaluations, by the end of the names of their results.
OPTIONAL = {"_TTA": "TTA/inference/**/*.*", "alignment": "inference/**/alignment_*.json"}
RESULTS = os.path.join("inference", "results.json")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Metrics of a detector."""

    # By task ("bbox", and "bbox_TTA" with test-time augmentation), in percent; for several data
    # sets, by their names first.
    results: Dict[str, Dict]
    folder: str  # of the log, and of inference/results.json

    def __str__(self) -> str:
        by_set = {"": self.results} if "bbox" in self.results else self.results
        lines = []
        for name, results in by_set.items():
            for task, words in TASKS.items():
                text = describe_metrics(results.get(task, {}))
                lines += [f"{name}{': ' * bool(name)}{words}{text}"] * bool(text)
        return "\n".join([*lines, f"Metrics: {os.path.join(self.folder, RESULTS)}"])

    @property
    def metrics(self) -> Dict[str, float]:
        """COCO's metrics of boxes on the first data set, in percent."""
        first = self.results if "bbox" in self.results else next(iter(self.results.values()), {})
        return first.get("bbox", {})


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """Return COCO's AP, and below it that of each class, in lines for a terminal."""
    shown = [f"{name} {metrics[name]:.1f}" for name in ("AP", "AP50", "AP75") if name in metrics]
    classes = [f"{k[3:]} {x:.1f}" for k, x in metrics.items() if k.startswith("AP-") and x == x]
    text = textwrap.fill(f"AP of classes: {', '.join(classes)}", WIDTH, break_on_hyphens=False)
    return "\n".join([", ".join(shown), *([text] if classes else [])])


@accept_paths("model", "val_data", "output", "config")
def evaluate(
    model: str,
    *,
    val_data: Union[None, str, Sequence[str]] = None,
    output: str = "",
    config: str = "",
    num_gpus: int = 1,
    options: Sequence[str] = (),
) -> Evaluated:
    """Evaluate a detector on its validation data, or on other data with the same classes.

    Args:
        model: output folder of a training, a checkpoint in it, or the name of a released model.
        val_data: data in any format that ``tood.convert`` reads; default: the config's.
        output: folder for the metrics, the detections and the log; default: "eval/NAME" in the
            model's output folder, of which nothing else is changed. NAME is that of the data; an
            earlier evaluation on the same data is replaced, those on others are kept.
        config: a config file; default: the one beside the checkpoint.
        num_gpus: number of GPUs of this machine; 0 on a machine without any.
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
    folder, options = _take_output(output, options)
    run = Run(
        trained.config_file,
        config=read_config_file(trained.config_file),
        opts=trained.options([*list_data_options(names, options), *options]),
        eval_only=True,
        num_gpus=num_gpus,
        datasets=datasets,
        shows_progress=True,
    )
    folder = folder or _choose_folder(model, trained, run)
    if os.path.exists(os.path.join(folder, "last_checkpoint")):
        raise UserError(f"{folder} contains a training; name another folder with --output.")
    is_earlier = is_output(folder) or os.path.exists(os.path.join(folder, RESULTS))
    if os.path.isdir(folder) and os.listdir(folder) and not is_earlier:
        raise UserError(f"{folder} contains other files; name another folder with --output.")
    run.opts = [*run.opts, "OUTPUT_DIR", folder]
    print(f"Evaluating; the log is {os.path.join(folder, 'log.txt')} ...", flush=True)
    results = start(run)
    results = _read_results(folder) if results is None else results
    if results:  # as of the main process
        _remove_earlier(folder, results)
    return Evaluated(results, folder)


def _remove_earlier(folder: str, results: Dict[str, Dict]) -> None:
    """Remove what an earlier evaluation has written to the folder, and this one has not."""
    tasks = {*results, *(task for found in results.values() for task in found)}
    for end, pattern in OPTIONAL.items():
        if not any(task.endswith(end) for task in tasks):
            paths = glob.glob(os.path.join(glob.escape(folder), pattern), recursive=True)
            for path in filter(os.path.isfile, paths):
                os.remove(path)


def _take_output(output: str, options: Sequence[str]) -> Tuple[str, List[str]]:
    """Return the folder that is typed, "" if none is, and the other options."""
    others = dict(zip(options[::2], options[1::2]))
    typed = others.pop("OUTPUT_DIR", "")
    if output and typed:
        raise UserError(f"--output is {output}, and OUTPUT_DIR {typed}; omit one of them.")
    return os.path.expanduser(output or typed), [x for item in others.items() for x in item]


def _name(entry: str, folder: str) -> str:
    """Return a name of data: "val" if ``tood train`` has written them to its folder."""
    path = os.path.splitext(os.path.abspath(entry.split(".json:")[0]))[0]
    is_own = os.path.dirname(path) == os.path.join(os.path.abspath(folder), "data")
    return os.path.basename(path) if is_own else name_data(entry)


def _choose_folder(model: str, trained: Trained, run: Run) -> str:
    """Return the folder of an evaluation, and pass on the data that were read for it: named after
    the data, and after the checkpoint if one is named, with a number if other data have that name.
    """
    with at_level("tood", logging.ERROR):  # the evaluation says what there is to say of it
        options = run_options(load_config(run.config or run.config_file, run.opts))
    given = {dataset.entry: dataset for dataset in run.datasets}
    found = {entry: given.get(entry) or read_entry(entry) for entry in options.data.test}
    run.datasets = [dataset for dataset in found.values() if dataset is not None]
    hashed = hash_data(*(_get_content(entry, dataset) for entry, dataset in found.items()))
    name = "+".join(_name(entry, trained.folder) for entry in found)
    name = re.sub(r"[^\w.-]+", "_", name)[:80].strip("._") or "data"
    if os.path.isfile(model) or options.weights != trained.weights:
        name += f"_{os.path.splitext(os.path.basename(options.weights))[0]}"
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    folders = (os.path.join(trained.folder, "eval", x) for x in names)
    return next(x for x in folders if _read_data_hash(x) in ("", hashed))


def _get_content(entry: str, dataset: Optional[DataSet]) -> Dict:
    """Return the annotations of a data set; of one that is registered in Python, its records."""
    return dataset.content if dataset else load_content(entry, MetadataCatalog.get(entry))


def _read_data_hash(folder: str) -> str:
    """Return the hash of the data of an evaluation; "" if none has been finished in the folder."""
    if not os.path.exists(os.path.join(folder, RESULTS)):
        return ""
    found = _read(folder).get(IDENTITY)
    return str(found.get("data", "unknown")) if isinstance(found, dict) else "unknown"


def _read(folder: str) -> Dict:
    path = os.path.join(folder, RESULTS)
    with guard_reading(path, "remove it"):
        content = json.loads(read_regular(path, MAX_TEXT))
        if not isinstance(content, dict):
            raise ValueError("it contains no metrics")
    return content


def _read_results(folder: str) -> Dict[str, Dict]:
    """Return the metrics that one of several processes has written, with NaN for JSON's null."""
    results = _read(folder)
    results.pop(IDENTITY, None)

    def restore(x):
        if isinstance(x, dict):
            return {k: restore(v) for k, v in x.items()}
        return math.nan if x is None else x

    return restore(results)
