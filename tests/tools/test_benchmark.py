"""The benchmarks, on images so small that their times mean nothing."""

import json

import benchmark
import benchmark_gpu
import pytest
import torch
from conftest import CONFIG, TINY

from tood.utils.errors import UserError


def run(tmp_path, *flags):
    report = tmp_path / "b.json"
    small = ("--size", "64x96", "--batch", "1", "--objects", "3", "--rounds", "1")
    benchmark.main([*flags, "--config-file", CONFIG, *small, "--json", str(report), *TINY])
    return json.loads(report.read_text())


@pytest.mark.slow
def test_times(tmp_path, capsys):
    report = run(tmp_path, "--parts", "step", "inference", "head", "losses", "data")
    assert "1 images of 64 x 96, 3 objects each" in report["setting"]
    metrics = report["metrics"]
    assert set(metrics) == {"step", "inference", "head", "losses", "data"}
    for part in ("step", "inference", "head"):
        (tood,), (retinanet,) = metrics[part]["TOOD"], metrics[part]["RetinaNet"]
        assert metrics[part]["ratio"] == pytest.approx(tood / retinanet) and tood > 0
    assert len(metrics["losses"]) == 4 and all(x > 0 for (x,) in metrics["losses"].values())
    rows = {what: value for what, value, _ in report["rows"]}
    share = rows["inference, outside convolutions and matrix products, TOOD"]
    assert 0 < float(share.split()[0]) < 100
    printed = capsys.readouterr().out
    assert all(f"| {what} | {value} |" in printed for what, value in rows.items())


@pytest.mark.slow
def test_memory(tmp_path):
    metrics = run(tmp_path, "--parts", "memory", "--no-retinanet")["metrics"]
    assert set(metrics["memory"]) == {"TOOD"}
    assert metrics["memory"]["TOOD"][0] > 100  # MB; PyTorch alone takes more


def test_wrong_size_is_named(capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(["--size", "large"])
    assert "'large' is not HxW" in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_for_a_gpu_without_one(tmp_path, monkeypatch, capsys, warm_python):
    """All parts together take minutes: docs/results/performance.md."""
    fails = ["-c", "print(1); raise SystemExit('out of memory')"]
    list_commands = benchmark_gpu.list_commands

    def commands(*args):
        known = [x for x in list_commands(*args) if not x[1].startswith("float32")]
        return [*known, ("demo", "wrong", fails), ("demo", "fine", ["-c", ""])]

    monkeypatch.setattr("sys.executable", warm_python)
    monkeypatch.setattr(benchmark_gpu, "list_commands", commands)
    path = tmp_path / "gpu.md"
    flags = ["--device", "cpu", "--tiny", "--batch", "1", "--output", str(path)]
    monkeypatch.setattr(benchmark_gpu, "DEMO", "no_such.yaml")
    with pytest.raises(UserError, match="Some of it failed"):
        benchmark_gpu.main([*flags, "--parts", "photographs", "demo", "losses"])
    text = path.read_text()
    assert "| demo: AP, AP50, ... | failed | error: The config file no_such.yaml" in text
    assert "| wrong | failed | out of memory |" in text and "| fine | no output |" in text
    assert "| bfloat16, 1 images: losses and assignment, assignment, TAL |" in text
    assert text.strip() in capsys.readouterr().out


def test_the_time_is_limited(capsys):
    benchmark_gpu.main(["--device", "cpu", "--parts", "tests", "--minutes", "0"])
    assert "test_fake_cuda.py | skipped | 0 minutes have passed |" in capsys.readouterr().out


def test_rows_of_programs():
    lines = ["| what | measured | |", "|---|---|---|", "| step | 3 ms | 2 to 4 ms |"]
    (row,) = benchmark_gpu.run("a: ", ["-c", f"print(*{lines}, sep='\\n')"], 60)
    assert row == ("a: step", "3 ms", "2 to 4 ms")
    (row,) = benchmark_gpu.run("AP", ["-c", "print('copypaste: AP\\nx copypaste: 41.2,60')"], 60)
    assert row[:2] == ("AP", "41.2,60")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_sentence():
    with pytest.raises(UserError, match="no GPU .* --device cpu --tiny"):
        benchmark_gpu.parse_args([])
