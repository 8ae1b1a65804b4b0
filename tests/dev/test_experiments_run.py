"""The finished experiments: each runs, on data and models that take no time."""

import json
import shutil

import check_guarantees
import count_deaths
import draw_curves
import estimate_memory
import measure_suspects
import numpy as np
import pytest
import simulate_scores
import time_conversion
import torch
from conftest import CONFIG, TINY
from detectron2.utils.env import TORCH_VERSION
from estimate_memory import LiveMemory

SIZES = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"]


@pytest.mark.slow
def test_count_deaths(entry, fresh_loggers):
    steps = count_deaths.train(CONFIG, entry, [*TINY, *SIZES], seed=1, iterations=4)
    assert len(steps) == 4 and not count_deaths.is_dead(steps)
    (*_, row) = count_deaths.markdown_table({"a.json": [count_deaths.summary(steps)]}).splitlines()
    assert row.startswith("| a.json | 0 of 1 |")


def test_draw_curves(tmp_path, capsys):
    (tmp_path / "a_1").mkdir()
    rows = [json.dumps({"iteration": i, "bbox/AP": x}) for i, x in ((199, 10.0), (400, 30.0))]
    (tmp_path / "a_1" / "metrics.json").write_text("\n".join(rows))
    out = tmp_path / "curves.png"
    draw_curves.main([f"a={tmp_path}/a_*", "--output", str(out), "--seconds", "1.5"])
    assert capsys.readouterr().out.splitlines()[-1] == "| a | 10.0 | 30.0 |"
    assert out.stat().st_size > 1000


@pytest.mark.slow
def test_measure_suspects(entry, tmp_path, monkeypatch, capsys, warm_python):
    monkeypatch.setattr("sys.executable", warm_python)
    small = ["SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()", "MODEL.TOOD.NUM_CLASSES", "4"]
    argv = ["--config-file", CONFIG, "--train-data", entry, "--output", str(tmp_path)]
    args = measure_suspects.parse_args([*argv, *TINY, *SIZES, *small])
    measure_suspects.main(args)
    rows = json.loads((tmp_path / "suspects.json").read_text())
    assert [row["faults"] for row in rows] == [1, 1, 1]  # 5 % of 21 objects, of each kind
    assert "precision at 10" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(TORCH_VERSION < (2, 1), reason="storages have one object each since 2.1")
def test_estimate_memory(tmp_path, monkeypatch, capsys):
    config = tmp_path / "tiny.yaml"
    levels = "IN_FEATURES: [p4, p5]}, ANCHOR_GENERATOR: {SIZES: [[128], [256]]}"
    tiny = f"MODEL: {{FPN: {{OUT_CHANNELS: 32}}, TOOD: {{CONV_DIM: 64, NUM_CONVS: 1, {levels}}}"
    config.write_text(f"_BASE_: {CONFIG}\n{tiny}\n")
    size = ["--height", "512", "--width", "640", "--batch", "2"]
    monkeypatch.setattr("sys.argv", ["estimate_memory.py", str(config), *size])
    estimate_memory.main()
    *_, row = capsys.readouterr().out.splitlines()
    plain, recomputed, half, half_recomputed = map(float, row.split("|")[3:7])
    assert 0 < recomputed < plain and 0 < half_recomputed < half


@pytest.mark.skipif(TORCH_VERSION < (2, 1), reason="each view has a separate storage object")
def test_memory_in_use_is_counted_once():
    with LiveMemory() as memory:
        x = torch.zeros(1000)  # 4,000 bytes
        y = x.view(10, 100)
        assert memory.now == 4000
        z = x + 1
        assert memory.now == memory.peak == 8000
        del x, z
        assert (memory.now, memory.peak) == (4000, 8000)  # y is x
        del y
        assert memory.now == 0


def test_time_conversion(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["time_conversion.py", "--images", "6"])
    time_conversion.main()
    out = capsys.readouterr().out
    assert all(name in out for name in ("heads of the images", "reading", "checking", "MB"))


def test_simulate_scores(trained, entry, monkeypatch):
    """Ranks of equal values are spread; each simulation prints a row of each case."""
    rng = np.random.default_rng(0)
    ranks = simulate_scores.rank(np.zeros((2000, 5, 4)), 4, rng)
    assert 0 < ranks.min() < 0.01 and 0.99 < ranks.max() < 1 and abs(ranks.mean() - 0.5) < 0.02
    rows = simulate_scores.repeat_errors(2).splitlines()
    assert [float(x.split()[0]) for x in rows[2:]] == [40, 160]
    monkeypatch.setattr("tood.inference.drift.MIN_REFERENCE", 1)
    *_, row = simulate_scores.repeat_images(str(trained), entry, 2, (4,)).splitlines()
    assert row.startswith("blurred, 8 pixels")


@pytest.mark.slow
def test_check_guarantees(trained, shapes, tmp_path, capsys):
    """Run with an existing model: each row is counted."""
    model = shutil.copytree(trained, tmp_path / "model")
    (model / "data").mkdir()
    content = json.loads((shapes / "annotations.json").read_text())
    for x in content["images"]:
        x["file_name"] = str(shapes / "images" / x["file_name"])
    (model / "data" / "train.json").write_text(json.dumps(content))
    flags = ["--model", str(model), "--images", "16", "--sets", "5", "--set-size", "10"]
    flags += ["--miss-rate", "0.9", "--confidence", "0.5", "--output", str(tmp_path / "out")]
    check_guarantees.main(check_guarantees.parse_args(flags))
    rows = json.loads((tmp_path / "out" / "guarantees.json").read_text())
    assert [x["certified"] for x in rows[::5]] == ["5 of 5"] * 2 and len(rows) == 10
    assert all(0 < x["mean risk"] <= 1 for x in rows[::5])
    assert "control: frames as images" in capsys.readouterr().out
    flags += ["--data", f"{shapes}/annotations.json:{shapes}/images", "--set-size", "4"]
    check_guarantees.main(check_guarantees.parse_args(flags))
    assert len(json.loads((tmp_path / "out" / "guarantees.json").read_text())) == 4
