"""Marks of written files and folders, so that they are not read as data, and walks of folders."""

import os
from typing import Dict, Iterator, List, Optional

from PIL import Image

from tood.utils.reading import open_at_once

MARK = ".tood-output"  # file in a folder
DRAWING = "Drawn by TOOD for Detectron2"  # tag of an image
# At the end of a video: in an MP4 file, a box of free space, which players skip.
VIDEO_MARK = (8 + len(DRAWING)).to_bytes(4, "big") + b"free" + DRAWING.encode()
DRAWN = ("JPEG", "PNG")  # formats of drawings, as Pillow calls them
_TEXT = (
    "This folder was written by tood, and is not read as part of the data of a folder above it.\n"
)
_SOFTWARE = 0x0131  # tag of Exif


def make_output(folder: str) -> None:
    """Make a folder, and mark it if it is new: photographs in a folder that exists remain data.

    Raises:
        OSError: if it cannot be made.
    """
    if os.path.isdir(folder):
        return
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, MARK), "w", encoding="utf-8") as f:
        f.write(_TEXT)


def remove_output(folder: str) -> None:
    """Remove a folder that contains nothing but its mark; raise OSError if it contains more."""
    if os.listdir(folder) == [MARK]:
        os.remove(os.path.join(folder, MARK))
    os.rmdir(folder)


def is_output(folder: str) -> bool:
    """Return whether the program made a folder for what it writes."""
    return os.path.isfile(os.path.join(folder, MARK))


def make_drawing_options(format: str) -> Dict:
    """Return Pillow's options of a drawing, which mark it as one if the format can."""
    if format not in DRAWN:
        return {}
    exif = Image.Exif()
    exif[_SOFTWARE] = DRAWING
    # Level 3 takes a third of the time of Pillow's 6, for a tenth more bytes.
    return {"exif": exif, **({"compress_level": 3} if format == "PNG" else {})}


def is_drawing(path: str) -> bool:
    """Return whether an image, or a video, is marked as a drawing."""
    try:
        with open_at_once(path) as f:
            if DRAWING.encode() in f.read(512):
                return True
            f.seek(-min(f.seek(0, os.SEEK_END), len(VIDEO_MARK)), os.SEEK_END)
            return f.read() == VIDEO_MARK
    except OSError:
        return False


def walk_folders(root: str, skipped: Optional[List[str]] = None) -> Iterator[str]:
    """Yield a folder and those below it, each real one once, regardless of links to it.

    Args:
        skipped: list to which the folders that the program wrote are added; these and hidden ones
            are not entered.
    """
    seen = set()
    for folder, names, _ in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or (folder != root and is_output(folder)):
            names.clear()
            if real not in seen and skipped is not None:
                skipped.append(folder)
            seen.add(real)
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield folder
