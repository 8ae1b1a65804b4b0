"""Data sets that are named by their files, in ``DATASETS`` and on command lines.

An entry is ``ANNOTATIONS.json`` or ``ANNOTATIONS.json:IMAGES``, a file in COCO's format and the
folder of its images (the folder of the file if left out), or a folder in one of the forms of
:mod:`tood.data.formats`.
"""

import os
import re
import sys
from typing import NamedTuple, Optional

from tood.data.formats import is_entry, root_of


class OwnData(NamedTuple):
    """A COCO-format data set that is named by its files."""

    json_file: str
    image_root: str


def parse_own_data(entry: str) -> Optional[OwnData]:
    """
    Args:
        entry: of ``DATASETS.TRAIN`` or ``DATASETS.TEST``.

    Returns:
        its files, or None for a registered name. In other forms than COCO's, "json_file" is the
        entry itself (:mod:`tood.data.formats`).
    """
    match = re.fullmatch(r"(.+\.json)(?::(.+))?", entry)
    if match is None:
        if _is_registered(entry) or not is_entry(entry):
            return None
        return OwnData(os.path.expanduser(entry), root_of(entry))
    json_file, image_root = (x and os.path.expanduser(x) for x in match.groups())
    return OwnData(json_file, image_root or os.path.dirname(json_file) or ".")


def _is_registered(entry: str) -> bool:
    """Return whether a program has registered a data set by this name, as Detectron2 lets it."""
    data = sys.modules.get("detectron2.data")  # or it has not registered any
    if data is None or entry not in data.DatasetCatalog.list():
        return False
    return data.MetadataCatalog.get(entry).get("json_file") != os.path.expanduser(entry)
