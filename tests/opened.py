"""Counts the files that are opened, by an audit hook: whoever opens them, by whatever function."""

import contextlib
import os
import sys
from collections import Counter


class Opens:
    """How often each file was opened, by its real path."""

    def __init__(self):
        self.counts = Counter()
        self._real = {}

    def add(self, path):
        if path not in self._real:
            self._real[path] = os.path.realpath(path)
        self.counts[self._real[path]] += 1

    def count_of(self, path):
        return self.counts[os.path.realpath(path)]

    def ending(self, suffix):
        return {path: n for path, n in self.counts.items() if path.endswith(suffix)}

    def count_ending(self, suffix):
        return sum(self.ending(suffix).values())


_counting = []


def _hook(event, args):
    if event == "open" and _counting and isinstance(args[0], (str, os.PathLike)):
        paths, _counting[:] = list(_counting), []  # resolving a path must not count itself
        for opens in paths:
            opens.add(os.path.abspath(os.fspath(args[0])))
        _counting.extend(paths)


@contextlib.contextmanager
def count_opens():
    """Count in this process; a hook cannot be removed, so it is added once."""
    if not getattr(sys, "_tood_counts_opens", False):
        sys.addaudithook(_hook)
        sys._tood_counts_opens = True
    opens = Opens()
    _counting.append(opens)
    try:
        yield opens
    finally:
        _counting.remove(opens)
