#!/usr/bin/env python
"""Build the pages of the Python interface from its docstrings::

    pip install -e .[docs]
    python dev/build_api.py output/api

writes ``index.html`` and a page for each module whose classes users meet.
"""

import argparse
import importlib
from pathlib import Path

import pdoc

import tood

# Results and parts that functions of ``tood`` return or take, and what docs/extending.md derives.
MODULES = (
    *("tood.inference.results", "tood.inference.predictor", "tood.inference.thresholds"),
    *("tood.modeling.detector", "tood.modeling.dense_head", "tood.modeling.head"),
    *("tood.modeling.assigners", "tood.modeling.losses", "tood.modeling.targets"),
)


def build(output: Path) -> None:
    """Write the pages.

    Args:
        output: a folder, created if it does not exist.
    """
    # Names are loaded when they are first used; pdoc reads the module's dictionary.
    for name in tood.__all__:
        if name != "model_zoo":
            setattr(tood, name, getattr(tood, name))
    for name in MODULES:
        importlib.import_module(name)
    pdoc.render.configure(docformat="google", show_source=False, search=False)
    pdoc.pdoc("tood", *MODULES, output_directory=output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, metavar="FOLDER")
    build(parser.parse_args().output)


if __name__ == "__main__":
    main()
