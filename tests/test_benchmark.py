"""The benchmark, on images so small that its times mean nothing."""

import json

import benchmark
import pytest
from conftest import CONFIG, TINY


def run(tmp_path, *flags):
    report = tmp_path / "b.json"
    small = ("--size", "64x96", "--batch", "1", "--objects", "3", "--rounds", "1")
    benchmark.cli([*flags, "--config-file", CONFIG, *small, "--json", str(report), *TINY])
    return json.loads(report.read_text())


def test_times(tmp_path, capsys):
    report = run(tmp_path, "--parts", "step", "inference", "head", "losses", "data")
    assert "1 images of 64 x 96, 3 objects each" in report["setting"]
    metrics = report["metrics"]
    assert set(metrics) == {"step", "inference", "head", "losses", "data"}
    for part in ("step", "inference", "head"):
        assert metrics[part]["ratio"] > 0
        for name in ("TOOD", "RetinaNet"):
            times = metrics[part][name]
            assert 0 < times["min_ms"] <= times["median_ms"] <= times["max_ms"]
    assert 0 < metrics["inference"]["outside_products"]["TOOD"] < 1
    assert capsys.readouterr().out.count("| training step |") == 2


def test_memory(tmp_path):
    """Each model in a process of its own."""
    metrics = run(tmp_path, "--parts", "memory", "--no-retinanet")["metrics"]
    assert set(metrics["memory"]) == {"tood"}
    assert metrics["memory"]["tood"] > 100  # MB; PyTorch alone takes more


def test_wrong_size_is_named(capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(["--size", "large"])
    assert "'large' is not HxW" in capsys.readouterr().err
