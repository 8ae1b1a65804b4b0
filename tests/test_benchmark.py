import json
import subprocess
import sys

from conftest import ROOT, TINY


def run(*arguments):
    command = [sys.executable, "tools/benchmark.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_all_parts(tmp_path):
    result = run(
        *("--config-file", "configs/tood_R18_GN_small_data.yaml", "--size", "64x96"),
        *("--batch", "1", "--objects", "3", "--rounds", "2", "--json", str(tmp_path / "b.json")),
        *TINY,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads((tmp_path / "b.json").read_text())
    assert "1 images of 64 x 96, 3 objects each" in report["setting"]
    metrics = report["metrics"]
    assert set(metrics) == {"step", "inference", "head", "losses", "data", "memory"}
    for part in ("step", "inference", "head"):
        assert metrics[part]["ratio"] > 0
        for name in ("TOOD", "RetinaNet"):
            times = metrics[part][name]
            assert 0 < times["min_ms"] <= times["median_ms"] <= times["max_ms"]
    assert 0 < metrics["inference"]["outside_products"]["TOOD"] < 1
    assert metrics["memory"]["tood"] > 100  # MB; PyTorch alone takes more
    assert result.stdout.count("| training step |") == 2


def test_wrong_size_is_named():
    result = run("--size", "large")
    assert result.returncode != 0 and "'large' is no HxW" in result.stderr
