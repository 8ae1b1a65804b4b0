"""Data sets that are named by their files, in ``DATASETS`` and on command lines.

An entry is ``ANNOTATIONS.json`` or ``ANNOTATIONS.json:IMAGES``, a file in COCO's format and the
folder of its images; default: the folder of the file.
"""

import os
import re
from typing import NamedTuple, Optional


class OwnData(NamedTuple):
    """A COCO-format data set that is named by its files."""

    json_file: str
    image_root: str


def parse_own_data(entry: str) -> Optional[OwnData]:
    """
    Args:
        entry: an entry of ``DATASETS.TRAIN`` or ``DATASETS.TEST``.

    Returns:
        its files, or None for a registered name.
    """
    match = re.fullmatch(r"(.+\.json)(?::(.+))?", entry)
    if match is None:
        return None
    json_file, image_root = (x and os.path.expanduser(x) for x in match.groups())
    return OwnData(json_file, image_root or os.path.dirname(json_file) or ".")
