"""Suggestions for misspelt words: "; did you mean X?"."""

import difflib
import os
from typing import Iterable

MAX_NAMES = 5000  # names of a folder that are compared


def suggest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean X?" with the most similar known word, or "" without a similar one."""
    names = {x.lower(): x for x in known}
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=cutoff)
    return f"; did you mean {names[close[0]]}?" if close else ""


def _rate(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def suggest_path(path: str) -> str:
    """Return "; did you mean X?" with the existing path that is most similar to one that does not
    exist, or "". Each step that does not exist is replaced by the most similar name in its folder.
    """
    if os.path.lexists(path):
        return ""
    found = os.path.abspath(os.sep) if os.path.isabs(path) else ""
    for step in os.path.normpath(path).split(os.sep):
        if not step or os.path.exists(os.path.join(found, step)):
            found = os.path.join(found, step)
            continue
        try:
            names = os.listdir(found or ".")[:MAX_NAMES]
        except OSError:
            return ""
        names.sort(key=lambda name: _rate(step, name))  # the most similar one of each stem
        stems = {os.path.splitext(name)[0]: name for name in names}  # ".json" alone is not similar
        close = difflib.get_close_matches(os.path.splitext(step)[0], stems, n=1)
        if not close:
            return ""
        found = os.path.join(found, stems[close[0]])
    return f"; did you mean {found}?"
