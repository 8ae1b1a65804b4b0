"""AP over several trainings."""

import json

import draw_curves
import numpy as np
import pytest
from PIL import Image

from tood.utils.errors import UserError


@pytest.fixture
def trainings(tmp_path):
    values = {"a_1": [10.0, 30.0, 50.0], "a_2": [14.0, 30.0, 48.0], "b_1": [5.0, 20.0]}
    for name, APs in values.items():
        folder = tmp_path / name
        folder.mkdir()
        # As Detectron2 writes them: the evaluation at the end counts from 1; b has not ended.
        iterations = [199, 399, 600][: len(APs)]
        rows = [{"iteration": i, "bbox/AP": x} for i, x in zip(iterations, APs)]
        lines = [json.dumps(row) for row in ({"iteration": 19, "total_loss": 1.0}, *rows)]
        (folder / "metrics.json").write_text("\n".join(lines))
    return tmp_path


def test_means_and_spreads(trainings, capsys):
    out = trainings / "curves.png"
    curves = [f"first={trainings}/a_*", f"second={trainings}/b_*"]
    draw_curves.main([*curves, "--output", str(out), "--seconds", "1.5", "3"])
    assert capsys.readouterr().out.splitlines() == [
        "| after iteration | 200 | 400 | 600 |",
        "| --- | --- | --- | --- |",
        "| first | 12.0 ± 2.8 | 30.0 ± 0.0 | 49.0 ± 1.4 |",
        "| second | 5.0 | 20.0 |  |",
    ]
    image = np.asarray(Image.open(out).convert("RGB")).astype(int)
    blue, orange = (
        (abs(image - c).sum(axis=2) < 30).sum() for c in ((31, 119, 180), (255, 127, 14))
    )
    assert blue > 500 and orange > 300


def test_minutes(trainings):
    argv = [f"a={trainings}/a_*", "--output", "x.png", "--seconds", "1.5"]
    args = draw_curves.parse_args(argv)
    curve = draw_curves.read_curve(args.curves[0], args.metric[0])
    (axes,) = draw_curves.draw([curve], args).axes
    assert axes.lines[0].get_xdata().tolist() == [5.0, 10.0, 15.0]
    assert axes.lines[0].get_ydata().tolist() == [12.0, 30.0, 49.0]


def test_a_metric_of_each(trainings, capsys):
    row = json.dumps({"iteration": 199, "ema/bbox/AP": 7.0})
    (trainings / "b_1" / "metrics.json").write_text(row)
    argv = [f"a={trainings}/a_*", f"b={trainings}/b_*", "--output", str(trainings / "c.png")]
    draw_curves.main([*argv, "--metric", "bbox/AP", "ema/bbox/AP"])
    assert "| b | 7.0 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, says",
    [
        (["c=nowhere_*"], "There is no folder 'nowhere_\\*'"),
        (["a={folder}/a_*", "--metric", "bbox/APs"], "metrics.json has no 'bbox/APs'"),
        (["a={folder}/a_*", "--seconds", "1", "2"], "--seconds has 2 values for 1 curves"),
        (["a={folder}/a_*", "--metric", "a", "b"], "--metric has 2 values for 1 curves"),
        (["a={folder}/a_*", "--output", "{folder}/curves.txt"], "--output .*curves.txt"),
    ],
)
def test_mistakes(trainings, flags, says):
    flags = [x.format(folder=trainings) for x in flags]
    if "--output" not in flags:
        flags += ["--output", str(trainings / "x.png")]
    with pytest.raises(UserError, match=says):
        draw_curves.main(flags)
    assert not (trainings / "x.png").exists()
