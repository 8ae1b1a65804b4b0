"""The benchmark, on images so small that its times mean nothing."""

import json

import benchmark
import benchmark_gpu
import pytest
import torch
from benchmark_gpu import PLAIN, Row, ratio
from conftest import CONFIG, TINY

from tood.utils.errors import UserError


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


def test_ratios_and_aims():
    speed = {("TOOD", PLAIN): 10.0, ("RetinaNet", PLAIN): 8.0}
    (row,) = ratio("training step", speed, ("RetinaNet", PLAIN), ("TOOD", PLAIN), 0.9)
    # TOOD's time is 0.8 of RetinaNet's.
    assert row == Row(
        "training step: TOOD, float32 by RetinaNet, float32", "0.80", "aim: at most 0.9, met"
    )
    (row,) = ratio("images/s", speed, *reversed(speed), 1.8, at_least=True)
    assert row.value == "0.80" and row.note == "aim: at least 1.8, missed"
    assert ratio("images/s", {}, *speed, 1.8) == []


def test_a_table_for_a_gpu_without_one(tmp_path, monkeypatch, capsys):
    """With the other parts, the whole of it takes minutes: docs/performance.md."""

    def fail(args):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setitem(benchmark_gpu.PARTS, "demo", fail)
    path = tmp_path / "gpu.md"
    flags = ["--device", "cpu", "--tiny", "--batch", "1", "--output", str(path)]
    with pytest.raises(UserError, match="Some of it failed"):
        benchmark_gpu.main([*flags, "--parts", "photographs", "demo", "losses"])
    text = path.read_text()
    assert "| training on photographs | skipped | --data names none |" in text
    assert "| demo | failed | out of memory |" in text
    assert "| losses and assignment, float32, assignment, TAL |" in text
    assert "outside convolutions and matrix products" in text
    assert text.strip() in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_sentence():
    with pytest.raises(UserError, match="no GPU .* --device cpu --tiny"):
        benchmark_gpu.parse_args([])
