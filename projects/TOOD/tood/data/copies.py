"""Copies of images: files of the same bytes, and those that Roboflow made of one photograph."""

import collections
import hashlib
import os
import re
from typing import Dict, List, Optional, Sequence, Tuple

from tqdm import tqdm

from tood.utils.reading import open_at_once

# Roboflow's augmented copies of a photograph: NAME.rf.HASH.jpg.
AUGMENTED = re.compile(r"^(.+)\.rf\.[0-9a-zA-Z]+\.\w+$")


def find_copies(paths: Sequence[str]) -> List[int]:
    """Return for each file the index of the first one with the same bytes."""
    sizes = [os.path.getsize(path) if os.path.isfile(path) else -1 for path in paths]
    # Only different files of one size can be copies.
    counts = collections.Counter(size for _, size in set(zip(paths, sizes)))
    progress = tqdm(paths, desc="looking for copies", disable=len(paths) < 5_000)
    first: Dict[Tuple, int] = {}
    found = []
    for i, (path, size) in enumerate(zip(progress, sizes)):
        key = (size, _hash(path)) if size >= 0 and counts[size] > 1 else (size, path)
        found.append(first.setdefault(key, i))
    return found


def trained_on(train: Sequence[str], val: Sequence[str]) -> List[str]:
    """Return the validation images that are trained on as well: files of the same bytes,
    and those that Roboflow made of the same photograph.

    Args:
        train, val: paths of the images.
    """
    copies = find_copies([*train, *val])
    photographs = {_photograph(path) for path in train} - {None}
    return [
        path
        for path, copy in zip(val, copies[len(train) :])
        if copy < len(train) or _photograph(path) in photographs
    ]


def _photograph(path: str) -> Optional[str]:
    augmented = AUGMENTED.match(os.path.basename(path))
    return augmented and augmented[1]


def _hash(path: str) -> bytes:
    digest = hashlib.sha256()
    with open_at_once(path) as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.digest()
