"""Experiment trackers, with the real packages, without a network."""

import contextlib
import sys
import time

import pytest
from conftest import complaint

import train_net
from tood.engine.trackers import build_tracker

STEPS = ["SOLVER.MAX_ITER", "6", "TEST.EVAL_PERIOD", "3"]


@pytest.mark.slow
def test_mlflow(command, out, monkeypatch):
    """Losses and metrics in MLflow's files; a resumed training continues its run."""
    mlflow = pytest.importorskip("mlflow", reason="an extra")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    opts = ["MODEL.TOOD.TRACKER", "mlflow", *STEPS]
    train_net.cli(command(opts=opts))
    train_net.cli(command("--resume", opts=[*opts, "SOLVER.MAX_ITER", "9"]))
    client = mlflow.MlflowClient(tracking_uri=(out / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("tood")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "out" and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "total_loss")
    assert [x.step for x in history] == [5, 8] and all(x.value > 0 for x in history)
    steps = {x.step for x in client.get_metric_history(run.info.run_id, "bbox/AP")}
    assert steps == {2, 6, 9}  # at the end, it counts one more


@pytest.mark.slow
def test_wandb(command, out, monkeypatch):
    """A run in W&B's files, without an account."""
    pytest.importorskip("wandb", reason="an extra")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    train_net.cli(command(opts=["MODEL.TOOD.TRACKER", "wandb", *STEPS]))
    (run,) = (out / "wandb").glob("offline-run-*")
    (path,) = run.glob("*.wandb")
    for _ in range(300):  # W&B's own process writes it, perhaps a moment later
        content = path.read_bytes()
        if b"total_loss" in content and b"bbox/AP" in content:
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"{path} has {len(content)} bytes, without the metrics")
    with contextlib.suppress(ImportError):  # of newer versions
        from wandb.analytics.opentelemetry.opentelemetry_proxy import get_open_telemetry_proxy

        assert get_open_telemetry_proxy() is None  # it would report to a server as Python ends


@pytest.mark.slow
def test_a_tracker_that_fails_does_not_end_a_training(command, out, monkeypatch):
    pytest.importorskip("mlflow", reason="an extra")
    (out.parent / "file").touch()  # where its folder would be
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (out.parent / "file" / "runs").as_uri())
    train_net.cli(command(opts=["MODEL.TOOD.TRACKER", "mlflow", *STEPS]))
    log = (out / "log.txt").read_text()
    assert log.count("Nothing more is written to the tracker (MODEL.TOOD.TRACKER): ") == 1
    assert "Traceback" not in log and (out / "model_final.pth").is_file()
    assert "bbox/AP" in (out / "metrics.json").read_text()


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = complaint(build_tracker, "wandb", str(tmp_path), lambda: "a")
    assert message == "MODEL.TOOD.TRACKER wandb needs a package: pip install wandb."
    assert build_tracker("", str(tmp_path), lambda: "a") is None
