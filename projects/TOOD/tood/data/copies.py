"""Copies of images: files of the same bytes, and those that Roboflow made of one photograph."""

import collections
import hashlib
import os
import re
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from tood.utils.reading import open_at_once

# Roboflow's augmented copies of a photograph: NAME.rf.HASH.jpg.
AUGMENTED = re.compile(r"^(.+)\.rf\.[0-9a-zA-Z]+\.\w+$")

THUMBNAIL = 16  # pixels of a side
# Correlation of the thumbnails of two images that look the same. Those of JPEG files of quality 75
# and their originals have 0.99 or more, those of other images in three data sets at most 0.988.
ALIKE = 0.99
END = 1024  # bytes by which most files of one size differ
BLOCK = 4096  # images that are compared at once


def find_copies(paths: Sequence[str]) -> List[int]:
    """Return for each file the index of the first one with the same bytes."""
    sizes = [os.path.getsize(path) if os.path.isfile(path) else -1 for path in paths]
    # Only different files of one size and one end can be copies.
    ends = _key_shared(paths, [(size,) for size in sizes], _read_end)
    keys = _key_shared(paths, ends, _hash)
    first: Dict[Tuple, int] = {}
    return [first.setdefault(key, i) for i, key in enumerate(keys)]


def _key_shared(paths: Sequence[str], keys: Sequence[Tuple], read: Callable) -> List[Tuple]:
    """Return longer keys: of files that share theirs, with what is read from them, of others, with
    their paths. A key that begins with -1, or has a path, is of one path alone.
    """
    counts = collections.Counter(key for _, key in set(zip(paths, keys)))
    progress = tqdm(paths, desc="looking for copies", disable=len(paths) < 5_000)
    return [
        (*key, read(path) if key[0] >= 0 and counts[key] > 1 else path)
        for path, key in zip(progress, keys)
    ]


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


def find_alike(known: Sequence[str], paths: Sequence[str]) -> List[Tuple[str, str]]:
    """Return images that look like one of the known ones, with that: saved again, or scaled, or
    frames of a video. Images without any structure look like none.
    """
    found: Dict[str, str] = {}
    thumbnails = _make_thumbnails(paths)
    for start in range(0, len(known), BLOCK):
        block = known[start : start + BLOCK]
        alike = thumbnails @ _make_thumbnails(block).T >= ALIKE
        for i, j in zip(*np.nonzero(alike)):
            found.setdefault(paths[i], block[j])
    return list(found.items())


def _make_thumbnails(paths: Sequence[str]) -> np.ndarray:
    """Return the grey values of each image, (N, P), of mean 0 and norm 1; 0 for unreadable ones."""
    rows = np.zeros((len(paths), THUMBNAIL**2), dtype=np.float32)
    progress = tqdm(paths, desc="looking for similar images", disable=len(paths) < 1_000)
    for row, path in zip(rows, progress):
        try:
            with Image.open(path) as image:
                image.draft("L", (4 * THUMBNAIL, 4 * THUMBNAIL))  # JPEG files are read faster
                grey = ImageOps.exif_transpose(image).convert("L")
                small = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
                row[:] = np.asarray(small).ravel()
        except Exception:  # of Pillow's readers, each its own; training and inference report it
            continue
        row -= row.mean()
        norm = np.linalg.norm(row)
        row /= norm if norm >= THUMBNAIL else np.inf  # differences of a grey value: no structure
    return rows


def _photograph(path: str) -> Optional[str]:
    augmented = AUGMENTED.match(os.path.basename(path))
    return augmented and augmented[1]


def _read_end(path: str) -> bytes:
    with open_at_once(path) as f:
        f.seek(-min(f.seek(0, 2), END), 2)
        return f.read()


def _hash(path: str) -> bytes:
    digest = hashlib.sha256()
    with open_at_once(path) as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.digest()
