"""The images and videos that paths, folders and patterns name."""

import glob
import os
import re
from typing import Dict, List, Sequence, Tuple, Union

from tood.data.images import HEIF, IMAGE_SUFFIXES
from tood.utils.errors import UserError
from tood.utils.folders import is_drawing, walk_folders
from tood.utils.suggest import suggest_path

VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
WEBCAM = "webcam"


def is_video(path: str) -> bool:
    """Return whether an input is a video, by its name, or a webcam."""
    return path == WEBCAM or os.path.splitext(path)[1].lower() in VIDEOS


def find_files(patterns: Union[str, Sequence[str]]) -> Tuple[List[str], str]:
    """Return the files of paths, folders and patterns, in order, each once.

    Returns:
        the files, and sentences on images in sub-folders and output of the program, which are not
        among them, or "".

    Raises:
        UserError: for a pattern without a file.
    """
    found: Dict[str, str] = {}
    below: Dict[str, Dict[str, str]] = {}
    skipped: List[str] = []
    for pattern in [patterns] if isinstance(patterns, (str, os.PathLike)) else patterns:
        pattern = os.path.expanduser(pattern)
        if os.path.isdir(pattern):
            paths = _glob(os.path.join(glob.escape(pattern), "*"), skipped)
            below[pattern] = _glob(os.path.join(glob.escape(pattern), "**"), [])
        else:
            is_path = pattern == WEBCAM or os.path.exists(pattern)
            paths = _glob(pattern, skipped) if not is_path else {resolve_folder(pattern): pattern}
        if not paths:
            note = _note(below, found, skipped)
            hint = suggest_path(pattern) if not note and not os.path.exists(pattern) else ""
            raise UserError(f"There is no image or video at {pattern}{hint or '.'}{note}")
        found.update({key: path for key, path in paths.items() if key not in found})
    return list(found.values()), _note(below, found, skipped)


def _glob(pattern: str, skipped: List[str]) -> Dict[str, str]:
    """Return {a name of the file: its path}; links to a folder do not repeat its files. What the
    program wrote is added to ``skipped``.
    """
    known = IMAGE_SUFFIXES | VIDEOS | set(HEIF)
    paths: Dict[str, str] = {}
    for path in sorted(_expand(pattern, skipped)):
        if os.path.splitext(path)[1].lower() in known and os.path.isfile(path):
            if is_drawing(path):
                skipped.append(path)
            else:
                paths.setdefault(resolve_folder(path), path)
    return paths


def _expand(pattern: str, skipped: List[str]) -> List[str]:
    """Return the paths of a pattern. Unlike ``glob``, "**" enters each real folder once."""
    slash = f"[/{re.escape(os.sep)}]"
    start, *rest = re.split(rf"(?:^|(?<={slash}))\*\*(?:{slash}|$)", pattern, maxsplit=1)
    if not rest:
        return glob.glob(pattern)
    roots = [x for x in glob.glob(start or ".") if os.path.isdir(x)]
    folders = [folder for root in roots for folder in walk_folders(root, skipped)]
    return [
        path
        for folder in folders
        for path in _expand(os.path.join(glob.escape(folder), rest[0] or "*"), skipped)
    ]


def resolve_folder(path: str) -> str:
    """Return a path whose folder is its real one: a link to a file remains another name."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def _note(below: Dict[str, Dict[str, str]], found: Dict[str, str], skipped: List[str]) -> str:
    """Return how to name the images below folders that were not found, and what was skipped."""
    counts = {folder: len(paths.keys() - found.keys()) for folder, paths in below.items()}
    notes = [
        f" {count} images in sub-folders of {folder} are not among them; name "
        f"'{os.path.join(folder, '**')}' for all."
        for folder, count in counts.items()
        if count
    ]
    if skipped:
        notes.append(
            f" {len(set(skipped))} drawings and output folders of tood are not among them, as "
            f"{skipped[0]}."
        )
    return "".join(notes)
