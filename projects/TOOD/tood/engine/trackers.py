"""Metrics of a training in MLflow or Weights & Biases: Detectron2 ``EventWriter``s by the key
``MODEL.TOOD.TRACKER``. TensorBoard's files are always written.
"""

import importlib
import logging
import os
from pathlib import Path
from typing import Callable, Dict, Optional

from detectron2.utils.events import EventWriter, get_event_storage

from tood.utils.errors import UserError, format_reason

logger = logging.getLogger(__name__)

WINDOW = 20  # iterations whose median is written of a loss, as in Detectron2's writers


class Tracker(EventWriter):
    """Writes each new scalar to a run of an experiment tracker, which begins with the first one. A
    resumed training continues the run. An error of the tracker ends the run with a warning, not the
    training.
    """

    package: str  # to install

    def __init__(self, folder: str, get_run_id: Callable[[], str]):
        """
        Args:
            folder: output folder of the training.
            get_run_id: returns the identifier of the training, once it is known.
        """
        self.folder, self.get_run_id = os.path.abspath(folder), get_run_id
        self._last, self._is_begun, self._has_failed = -1, False, False

    def write(self) -> None:
        if not self._has_failed:
            self._guard(self._write_new)

    def close(self) -> None:
        if self._is_begun and not self._has_failed:
            self._guard(self.end)

    def _guard(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:  # raised by a server, a network, a full disk
            self._has_failed = True
            logger.warning(
                f"Nothing more is written to the tracker (MODEL.TOOD.TRACKER): "
                f"{format_reason(error)}. The training goes on; metrics.json has all metrics."
            )

    def _write_new(self) -> None:
        scalars: Dict[int, Dict[str, float]] = {}
        latest = get_event_storage().latest_with_smoothing_hint(WINDOW)
        for name, (value, iteration) in latest.items():
            if iteration > self._last:
                scalars.setdefault(iteration, {})[name] = float(value)
        if scalars and not self._is_begun:
            self.begin()
            self._is_begun = True
        for iteration in sorted(scalars):
            self.log(scalars[iteration], iteration)
            self._last = iteration

    def begin(self) -> None:
        """Begin or continue the run."""
        raise NotImplementedError

    def log(self, scalars: Dict[str, float], iteration: int) -> None:
        """Write the scalars of an iteration."""
        raise NotImplementedError

    def end(self) -> None:
        """End the run."""
        raise NotImplementedError


class MLflowTracker(Tracker):
    """Writes to the server or store of ``MLFLOW_TRACKING_URI``; by default, to ``mlruns`` of the
    output folder.
    """

    package = "mlflow-skinny"

    def begin(self) -> None:
        import mlflow

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # MLflow has asked for this since it prefers databases to files.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = Path(self.folder, "mlruns").as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tood")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        run_id = self.get_run_id()
        runs = self._client.search_runs([experiment], f"tags.tood_run = '{run_id}'")
        if not runs:
            name, tags = os.path.basename(self.folder), {"tood_run": run_id}
            runs = [self._client.create_run(experiment, run_name=name, tags=tags)]
        self._run = runs[0].info.run_id
        self._client.update_run(self._run, status="RUNNING")

    def log(self, scalars: Dict[str, float], iteration: int) -> None:
        for name, value in scalars.items():
            self._client.log_metric(self._run, name, value, step=iteration)

    def end(self) -> None:
        self._client.set_terminated(self._run)


class WandbTracker(Tracker):
    """Writes files to ``wandb`` of the output folder, which ``wandb sync`` uploads; with
    ``WANDB_MODE=online``, to the server at once.
    """

    package = "wandb"

    def begin(self) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        # Its reports about itself go by the settings of the process: they would use the network.
        wandb.setup(wandb.Settings(mode=mode))
        self._run = wandb.init(
            id=self.get_run_id(),
            resume="allow",
            name=os.path.basename(self.folder),
            project=os.environ.get("WANDB_PROJECT", "tood"),
            dir=self.folder,
            mode=mode,
        )

    def log(self, scalars: Dict[str, float], iteration: int) -> None:
        self._run.log(scalars, step=iteration)

    def end(self) -> None:
        self._run.finish()


TRACKERS = {"mlflow": MLflowTracker, "wandb": WandbTracker}


def build_tracker(name: str, folder: str, get_run_id: Callable[[], str]) -> Optional[Tracker]:
    """Return the writer of ``MODEL.TOOD.TRACKER``; None for "".

    Raises:
        UserError: if its package is not installed.
    """
    if not name:
        return None
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"MODEL.TOOD.TRACKER {name} needs a package: pip install {TRACKERS[name].package}."
        ) from error
    return TRACKERS[name](folder, get_run_id)
