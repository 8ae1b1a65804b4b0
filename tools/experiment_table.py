"""The table of tools/run_experiments.py: means over seeds, as Markdown and as a picture."""

from typing import Dict, NamedTuple


class Experiment(NamedTuple):
    """A variant of a config."""

    name: str
    options: Dict[str, object]  # its changes
    paper: Dict[str, float]  # what the paper has for it, on COCO


def markdown_table(experiments, results):
    return ""


def draw_table(experiments, results, path):
    pass
