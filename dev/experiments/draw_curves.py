#!/usr/bin/env python
"""AP over a training, of several trainings with several seeds each, as a drawing::

    python dev/experiments/draw_curves.py --output curves.png \\
        "from ImageNet=output/imagenet_*" "from scratch=output/scratch_*" \\
        --metric ema/bbox/AP --seconds 1.39 1.39

A line is the mean over the folders of a pattern, its band one standard deviation, a dot a seed.
What is drawn is printed as a table as well.
"""

import glob
import json
import os
import statistics
from typing import Dict, List, NamedTuple

from matplotlib.figure import Figure

from tood.utils.arguments import make_parser, parse_arguments
from tood.utils.errors import UserError, run_main


class Curve(NamedTuple):
    """Trainings that differ in their seeds alone."""

    name: str
    seeds: List[Dict[int, float]]  # of each, the metric after so many iterations

    def shared(self) -> List[int]:
        """The iterations after which all seeds were evaluated."""
        return sorted(set.intersection(*(set(seed) for seed in self.seeds)))

    def at(self, iteration: int) -> List[float]:
        return [seed[iteration] for seed in self.seeds]


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("curves", nargs="+", metavar="NAME=FOLDERS", help="a pattern of folders")
    parser.add_argument("--output", required=True, metavar="FILE", help="as .png or .svg")
    parser.add_argument(
        "--metric",
        nargs="+",
        default=["bbox/AP"],
        help="metric of metrics.json: one, or one for each",
    )
    parser.add_argument("--title", default="")
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="+",
        help="seconds of an iteration of each: minutes on the axis",
    )
    args = parse_arguments(parser, argv)
    if len(args.metric) == 1:
        args.metric *= len(args.curves)
    for flag, values in (("--seconds", args.seconds), ("--metric", args.metric)):
        if values and len(values) != len(args.curves):
            raise UserError(
                f"{flag} has {len(values)} values for {len(args.curves)} curves; name one for each."
            )
    return args


def read_curve(text: str, metric: str) -> Curve:
    """Read NAME=FOLDERS.

    Raises:
        UserError: for folders that are not there or have no such metric.
    """
    name, _, pattern = text.partition("=")
    folders = sorted(x for x in glob.glob(pattern) if os.path.isdir(x))
    if not folders:
        raise UserError(f"There is no folder {pattern!r}; write NAME=FOLDERS, as in a=output/a_*.")
    return Curve(name, [read_metric(folder, metric) for folder in folders])


def read_metric(folder: str, metric: str) -> Dict[int, float]:
    """Return the values of a training's metric by the number of iterations that were done."""
    path, values = os.path.join(folder, "metrics.json"), {}
    with open(path) as f:
        for line in f:
            row = json.loads(line)
            if metric in row:
                values[row["iteration"]] = row[metric]
    if not values:
        raise UserError(f"{path} has no {metric!r}; name another --metric, as bbox/AP.")
    # Detectron2 counts an evaluation at the end of a training from 1, those before it from 0.
    period = min(values) + 1
    between = {i for i in values if len(values) > 1 and (i + 1) % period == 0}
    return {i + (i in between): value for i, value in values.items()}


def draw(curves: List[Curve], args) -> Figure:
    """The drawing: iterations on the axis, or minutes where their seconds are known."""
    figure = Figure(figsize=(6.4, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for i, curve in enumerate(curves):
        factor = args.seconds[i] / 60 if args.seconds else 1
        steps = curve.shared()
        x = [factor * step for step in steps]
        means = [statistics.mean(curve.at(step)) for step in steps]
        spreads = [_spread(curve.at(step)) for step in steps]
        seeds = f"{len(curve.seeds)} seed{'s' * (len(curve.seeds) > 1)}"
        axes.plot(x, means, "-", color=f"C{i}", lw=2, label=f"{curve.name} ({seeds})")
        low, high = ([m + s * d for m, d in zip(means, spreads)] for s in (-1, 1))
        axes.fill_between(x, low, high, color=f"C{i}", alpha=0.15, lw=0)
        for seed in curve.seeds:
            axes.plot([factor * s for s in steps], [seed[s] for s in steps], ".", color=f"C{i}")
    axes.set_xlabel("minutes of training steps" if args.seconds else "iteration")
    axes.set_ylabel(args.metric[0].rpartition("/")[2])
    axes.set_title(args.title, fontsize=10)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def table(curves: List[Curve]) -> str:
    """The same as Markdown: mean and standard deviation after each evaluation."""
    steps = sorted(set().union(*(curve.shared() for curve in curves)))
    rows = [["after iteration", *map(str, steps)], ["---"] * (len(steps) + 1)]
    for curve in curves:
        shared = set(curve.shared())
        rows.append([curve.name, *(_cell(curve.at(s)) if s in shared else "" for s in steps)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(values: List[float]) -> str:
    spread = f" ± {_spread(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _spread(values: List[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main(argv=None):
    args = parse_args(argv)
    curves = [read_curve(text, metric) for text, metric in zip(args.curves, args.metric)]
    figure = draw(curves, args)
    try:
        figure.savefig(args.output)
    except ValueError as error:  # of the ending
        raise UserError(f"--output {args.output}: {error}.") from error
    print(table(curves))


if __name__ == "__main__":
    run_main(main)
