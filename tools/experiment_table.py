"""The table of tools/run_experiments.py: means over seeds, as Markdown and as a drawing."""

import statistics
from typing import Dict, List, NamedTuple, Sequence

from matplotlib.figure import Figure

# Keys of metrics, their headings and formats.
COLUMNS = (
    ("AP", "AP", "{:.1f}"),
    ("AP50", "AP50", "{:.1f}"),
    ("AP75", "AP75", "{:.1f}"),
    ("PCC", "PCC top-50", "{:.3f}"),
    ("IoU", "IoU top-10", "{:.3f}"),
    ("correct", "correct", "{:.0f}"),
    ("redundant", "redundant", "{:.0f}"),
    ("error", "error", "{:.0f}"),
    ("minutes", "minutes", "{:.1f}"),
)
PAPER = ("AP", "PCC", "IoU", "correct", "redundant", "error")


class Experiment(NamedTuple):
    """A variant of a config."""

    name: str
    options: Dict[str, object]  # keys and values that it changes
    paper: Dict[str, float]  # the paper's metrics, on COCO


def markdown_table(experiments: Sequence[Experiment], results: Dict[str, List[Dict]]) -> str:
    """Return mean and, for two seeds or more, standard deviation, and the paper's metrics.

    Args:
        experiments: the rows.
        results: metrics of the finished seeds, by the experiment's name.
    """
    headings, rows = _cells(experiments, results)
    lines = ["| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows)]
    note = (
        "Mean ± standard deviation over seeds. The last columns are the paper's, on COCO val2017."
    )
    return "\n".join([*lines, "", note]) + "\n"


def draw_table(
    experiments: Sequence[Experiment], results: Dict[str, List[Dict]], path: str
) -> None:
    """Draw the table: a panel for each of AP, PCC, IoU and errors, with every seed as a dot."""
    keys = [c for c in COLUMNS if c[0] in ("AP", "PCC", "IoU", "error")]
    names = [e.name for e in experiments]
    figure = Figure(figsize=(11, 1.2 + 0.33 * len(names)), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(keys), sharey=True)
    for axes, (key, heading, _) in zip(panels, keys):
        for row, experiment in enumerate(experiments):
            values = [r[key] for r in results[experiment.name] if r.get(key) is not None]
            if values:
                axes.plot(values, [row] * len(values), "o", color="C0", ms=5, alpha=0.6)
                axes.plot(statistics.mean(values), row, "|", color="C3", ms=16, mew=2)
        axes.set_title(heading)
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.savefig(path)


def _cells(experiments, results):
    headings = ["", "seeds", *(heading for _, heading, _ in COLUMNS)]
    cited = [c for c in COLUMNS if c[0] in PAPER]
    headings += [f"paper's {heading}" for _, heading, _ in cited]
    rows = []
    for experiment in experiments:
        found = results[experiment.name]
        row = [experiment.name, str(len(found))]
        row += [_mean_and_spread([r.get(key) for r in found], form) for key, _, form in COLUMNS]
        for key, _, form in cited:
            row.append(form.format(experiment.paper[key]) if key in experiment.paper else "")
        rows.append(row)
    return headings, rows


def _mean_and_spread(values, form: str) -> str:
    values = [v for v in values if v is not None]
    if not values:
        return ""
    text = form.format(statistics.mean(values))
    return text + (f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else "")
