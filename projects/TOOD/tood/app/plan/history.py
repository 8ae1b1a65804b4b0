"""Facts about a training for advice, from its output folder."""

import contextlib
import json
import os
import re
from typing import Dict, Optional, Sequence

from tood.app.plan.advice import History, list_aps
from tood.app.plan.rules import compute_statistics, num_samples
from tood.app.plan.state import LEDGER, list_words, read_begun
from tood.app.trained import name_output
from tood.data.annotations import count_objects, read_annotations
from tood.data.check import split_broken
from tood.data.entries import parse_own_data
from tood.inference.predictor import Predictor
from tood.utils.errors import UserError
from tood.utils.files import count_up
from tood.utils.reading import MAX_TEXT, read_regular


def read_history(predictor: Predictor, records: Sequence[Dict]) -> History:
    """Return the history of a trained model. It lacks the data if they are registered by name,
    several sets, or no longer there.

    Args:
        records: lines of metrics.json in its folder.
    """
    cfg, options = predictor.cfg, predictor.options
    typed = read_begun(options.output_dir)
    history = History(
        list_words(typed) if typed else (),
        name_next(options.output_dir, typed.data) if typed else "",
        list_aps(records),
        # The last evaluation counts one more.
        min(max(x.get("iteration", 0) for x in records) + 1, cfg.SOLVER.MAX_ITER),
        cfg.SOLVER.IMS_PER_BATCH,
        options.min_size_test,
        options.tiles,
    )
    names = list(cfg.DATASETS.TRAIN)
    content = _read_content(names[0]) if len(names) == 1 else None
    if content is None:
        return history
    return history._replace(
        entry=names[0],
        num_images=num_samples(content, options.tiles),
        class_counts=count_objects(content),
        statistics=compute_statistics(content, options.tiles),
    )


def name_next(folder: str, data: str) -> str:
    """Return the folder of another training on the same data; "" if ``tood train`` names it."""
    default = os.path.abspath(name_output(data))
    base = re.sub(r"-[0-9]+$", "", folder.rstrip(os.sep))
    if os.path.abspath(base) == default or os.path.abspath(folder) == default:
        return ""
    return count_up(base, os.path.lexists)


def read_data_name(folder: str) -> str:
    """Return the data of ``tood train`` in an output folder, relative to the current one if they
    are in it; "" if they are not known.
    """
    with contextlib.suppress(UserError, ValueError, KeyError, TypeError):
        data = json.loads(read_regular(os.path.join(folder, LEDGER), MAX_TEXT))["data"]
        short = os.path.relpath(data)
        return data if short.startswith(os.pardir) else short
    return ""


def _read_content(entry: str) -> Optional[Dict]:
    files = parse_own_data(entry)
    with contextlib.suppress(UserError):
        content = read_annotations(*files, to_train=True) if files else None
        if content and content["images"]:
            return {**content, "annotations": split_broken(content)[0]}
    return None
