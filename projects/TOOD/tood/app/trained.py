"""Output folders of trainings: a config, weights, metrics, a report."""

import contextlib
import dataclasses
import functools
import json
import os
from typing import TYPE_CHECKING, Dict, Iterator, List, Sequence, Union

from tood.app.plan.state import find_path
from tood.checkpoint.locate import find_model, find_moved
from tood.inference.thresholds import FROM_CONFIG, find_weights_hash, read_summary
from tood.utils.arguments import accept_paths, read_options
from tood.utils.errors import UserError
from tood.utils.tensors import read_tensors

if TYPE_CHECKING:
    from tood.inference.results import Result

SUMMARY, PAGE = "report.json", "report.html"


@dataclasses.dataclass(frozen=True)
class Trained:
    """The output of a training: a config and weights, and what is known of them."""

    config_file: str
    weights: str  # "" before a training
    folder: str
    # COCO's metrics of the weights on the data to validate on, in percent; empty if not evaluated.
    metrics: Dict[str, float] = dataclasses.field(default_factory=dict)
    report: str = ""  # path of its page
    plan: str = dataclasses.field(default="", repr=False)  # what was chosen, as a table
    advice: str = dataclasses.field(default="", compare=False)  # what to do next, as text
    # The weights are a file that the user has named, not those of a folder.
    is_named: bool = dataclasses.field(default=False, repr=False, compare=False)

    def options(self, typed: Sequence[str] = (), *, writes: bool = True) -> List[str]:
        """Return overrides of its config: these weights, the current folder, and the data that
        ``tood train`` has written to it, if the config has their previous paths; then those that
        the user has typed.

        Args:
            writes: whether the command writes to ``OUTPUT_DIR``; if not, another one is refused.

        Raises:
            UserError: if the user has typed other weights than the checkpoint that is named, or
                options that change nothing.
        """
        if not writes:
            self._refuse_output(typed)
        if typed:
            from tood.config.read import refuse_training_options  # needs PyTorch

            refuse_training_options(self.config_file, [*map(str, typed)])
        other = str(dict(zip(typed[::2], typed[1::2])).get("MODEL.WEIGHTS", self.weights))
        if self.weights and not other:
            raise UserError("MODEL.WEIGHTS is empty; name a checkpoint, or omit it.")
        if self.is_named and os.path.realpath(other) != os.path.realpath(self.weights):
            raise UserError(f"{self.weights} and MODEL.WEIGHTS {other} are typed; omit one.")
        return [*self._list_options(), *typed]

    def _refuse_output(self, typed: Sequence[str]) -> None:
        """Raise UserError for another output folder; released weights have their report there."""
        output = str(dict(zip(typed[::2], typed[1::2])).get("OUTPUT_DIR", self.folder))
        is_elsewhere = os.path.realpath(output) != os.path.realpath(self.folder)
        if is_elsewhere and os.path.isfile(self.weights):
            raise UserError(
                f"OUTPUT_DIR {output} has no effect, because nothing is written there; omit it, or "
                "name the place of the result with --output."
            )

    def _list_options(self) -> List[str]:
        options = ["MODEL.WEIGHTS", self.weights, "OUTPUT_DIR", self.folder]
        data = os.path.join(os.path.abspath(self.folder), "data")
        if not (os.path.isfile(self.config_file) and os.path.isdir(data)):
            return options
        from tood.config.files import read_config_file  # needs PyTorch

        datasets = read_config_file(self.config_file).content.get("DATASETS", {})
        for part in ("TRAIN", "TEST"):
            names = list(datasets.get(part, ()))
            moved = [find_moved(name, self.folder) for name in names]
            if moved != names:
                options += [f"DATASETS.{part}", str(tuple(moved))]
        return options

    def predictor(self, **options):
        """Return a :class:`~tood.inference.predictor.Predictor` with these weights.

        Args:
            options: options of the predictor, e.g. ``score_threshold=0.4``.
        """
        from tood.inference.predictor import Predictor  # takes seconds to import

        opts = self.options(read_options("opts", options.pop("opts", ())))
        return Predictor(self.config_file, opts=opts, **options)

    def predict(self, images, **options) -> List["Result"]:
        """Return the detections of each image; nothing is printed or written::

            for result in tood.load("output/mine").predict("photos/"):
                print(result.path, result.labels, result.scores)

        Args:
            images: files, folders, patterns, as of ``tood.predict``, or arrays (H, W, 3) uint8 in
                BGR; one or a list. A list with arrays has neither folders nor patterns.
            options: options of the predictor, e.g. ``score_threshold=0.4``. It is kept for the
                next call with the same options.

        Raises:
            UserError: for images that do not exist or cannot be read, and videos.
        """
        from tood.data.images import find_path, list_given
        from tood.data.inputs import find_files, is_video

        key = repr(sorted(options.items()))
        if key not in self._predictors:
            self._predictors.clear()
            self._predictors[key] = self.predictor(**options)
        detect = self._predictors[key]
        given = list_given(images)
        if all(find_path(x) for x in given):
            given = find_files(given)[0] if given else []
            for path in filter(is_video, given):
                raise UserError(f"{path} is a video; use tood.predict, which writes videos.")
        return detect.predict(given)

    @functools.cached_property
    def _predictors(self) -> Dict:
        return {}

    def __str__(self) -> str:
        if not self.weights:
            return self.plan
        AP = f", AP {self.metrics['AP']:.2f}" if "AP" in self.metrics else ""
        report = f"; report: {self.report}" if self.report else ""
        text = f"Weights: {self.weights}{AP}{report}"
        return f"{text}\n{self.advice}" if self.advice else text


@accept_paths("folder")
def load(folder: str) -> Trained:
    """Return the result of a training, as ``tood.train`` returned it.

    Args:
        folder: its output folder, or a checkpoint in it.

    Raises:
        UserError: for a folder without a checkpoint, or without a config beside it.

    Example::

        model = tood.load("output/mine")
        print(model.metrics["AP"], model.predict("photos/"))
    """
    trained = find_trained(folder)
    if not os.path.isfile(trained.weights):  # released
        return trained
    from tood.checkpoint.identity import hash_weights  # needs PyTorch

    content = read_tensors(trained.weights)
    page = os.path.join(trained.folder, "report", PAGE)
    with contextlib.suppress(UserError, ValueError, KeyError, TypeError, AttributeError):
        summary = read_summary(os.path.join(trained.folder, "report", SUMMARY))
        is_mine = find_weights_hash(summary) == hash_weights(content["model"])
        if is_mine and os.path.isfile(page):
            values = {name: x["value"] for name, x in summary["metrics"].items()}
            metrics = {name: x for name, x in values.items() if x is not None}
            return dataclasses.replace(trained, metrics=metrics, report=page)
    return dataclasses.replace(trained, metrics=_read_metrics(trained.folder, content))


def _read_metrics(folder: str, checkpoint: Dict) -> Dict[str, float]:
    """Return the metrics of a checkpoint, in percent, from the log of its training; empty if it was
    not evaluated.
    """
    iteration, AP = checkpoint.get("iteration"), checkpoint.get("AP")
    found: Dict[str, float] = {}
    for record in read_records(folder):
        # The evaluation at the end of a training counts one more.
        if not isinstance(iteration, int) or record.get("iteration") not in (
            iteration,
            iteration + 1,
        ):
            continue
        for prefix in ("bbox/", "ema/bbox/"):
            metrics = {
                key[len(prefix) :]: x
                for key, x in record.items()
                if key.startswith(prefix) and "-" not in key and x is not None  # no class's
            }
            # The best weights contain their AP; other checkpoints are not of averaged weights.
            if AP in metrics.values() or (AP is None and metrics and prefix == "bbox/"):
                found = metrics
    return found


def read_records(folder: str) -> Iterator[Dict]:
    """Yield the lines of Detectron2's metrics.json in the output folder of a training, if it
    exists.
    """
    path = os.path.join(folder, "metrics.json")
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            with contextlib.suppress(ValueError):  # the last one of a training that was killed
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record


def find_trained(model: str, config: str = "") -> Trained:
    """Return a trained model; arguments and errors as of
    :func:`tood.checkpoint.locate.find_model`.
    """
    return Trained(*find_model(model, config), is_named=os.path.isfile(model))


def list_data_options(names: Sequence[str], options: Sequence[str]) -> List[str]:
    """Return the option by which some data sets, if any, are evaluated on.

    Raises:
        UserError: if the user has typed it as well.
    """
    if not names:
        return []
    if "DATASETS.TEST" in options[::2]:
        typed = ", ".join(names)
        raise UserError(f"--val-data is {typed}, and DATASETS.TEST is typed as well; omit one.")
    return ["DATASETS.TEST", str(tuple(names))]


# Names of files and folders that say nothing about what is in them.
WITHOUT_MEANING = (
    *("annotations", "_annotations.coco", "result", "images", "data", "train", "val", "labels"),
)


def name_data(data: str) -> str:
    """Return a name for the outputs of some data: that of the innermost folder or file that says
    what the data are; "" if none does.
    """
    steps = [os.path.splitext(x)[0] for x in os.path.abspath(find_path(data)).split(os.sep)]
    return next(
        (x for x in reversed(steps) if x and x not in WITHOUT_MEANING and x[:10] != "instances_"),
        "",
    )


def name_output(data: str) -> str:
    """Return the default output folder of a training on some data."""
    return os.path.join("output", name_data(data) or "mine")


def read_predictor(
    trained: Trained,
    val_data: str = "",
    options: Sequence[str] = (),
    score_threshold: Union[None, float, str] = FROM_CONFIG,
    *,
    writes: bool = True,
):
    """Return the predictor of a trained model, and the reports on its validation data, which are
    registered.

    Args:
        val_data: instead of the config's data: a folder, a file or a registered name.
        options: overrides of the config, keys and values in turn.
        score_threshold: threshold of the predictor.
        writes: as in :meth:`Trained.options`.

    Raises:
        UserError: for data, a config or a checkpoint that cannot be used.
    """
    from tood.app.check import read_validation_data
    from tood.data.datasets import prepare_datasets  # needs PyTorch
    from tood.inference.predictor import Predictor

    datasets, names = read_validation_data(val_data)
    opts = trained.options([*list_data_options(names, options), *options], writes=writes)
    predictor = Predictor(trained.config_file, opts=opts, score_threshold=score_threshold)
    reports = prepare_datasets(
        predictor.options.data,
        training=False,
        known_classes=predictor.class_names,
        datasets=datasets,
    )
    return predictor, reports
