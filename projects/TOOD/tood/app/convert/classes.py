"""Names of classes, in lists of them and of objects."""

import os
import re
from typing import List, Sequence, Set

from tood.app.convert.folder import Folder
from tood.app.convert.ledger import CLASSES, Ledger
from tood.utils.errors import UserError
from tood.utils.reading import compose

CLASS_FILES = ("classes.txt", "labels.txt", "labelmap.txt")
NOT_CLASSES = ("__ignore__", "_background_", "background")
NUMBERS = "numbers before the names of classes, which are not part of them"
# The number of a class before its name.
_NUMBERED = re.compile(r"(\d{1,4})(?:\s*[:.,)=-]\s*|\s+)([^\W\d].*)")


def name_classes(folder: Folder, ledger: Ledger, found: Set[str]) -> List[str]:
    """Return the classes with the names that are found, in a stated order or sorted."""
    files = [f for f in folder.with_suffix(".txt") if os.path.basename(f).lower() in CLASS_FILES]
    stated = {f: read_classes(folder, f) for f in files}
    for file, lines in stated.items():
        if found <= {*omit_numbers(lines[1:])}:
            refuse_heading(folder, file, lines)
    for file in files:
        ledger.enter(file, CLASSES)
    if len({tuple(x) for x in stated.values()}) == 1:
        lines = next(iter(stated.values()))
        for some in (lines, omit_numbers(lines)):
            names = [name for name in some if name not in NOT_CLASSES]
            if found <= set(names):
                if some != lines:
                    ledger.note(NUMBERS, files[0])
                return names
        ledger.note("a list of classes lacks some, so classes are sorted by name", files[0])
    elif files:
        ledger.note("several lists of classes differ, so classes are sorted by name", files[0])
    return sorted(found)


def read_classes(folder: Folder, file: str) -> List[str]:
    """Return the lines of a text file of classes: a name in each, as LabelMe and CVAT write it."""
    lines = folder.lines(file)
    is_headed = bool(lines) and re.match(r"#\s*label\s*:", lines[0]) is not None
    if is_headed or (lines and all(line.count(":") >= 3 for line in lines)):  # CVAT's labelmap.txt
        lines = [line.split(":")[0].strip() for line in lines[is_headed:]]
    return [name for name in dict.fromkeys(map(compose, lines)) if name]


def refuse_heading(folder: Folder, file: str, lines: Sequence[str]) -> None:
    """Raise UserError for a comment, or a heading of a list of classes, in the place of a name: a
    line before numbered ones, or one that ends with a colon.
    """
    wrong = next((line for line in lines if line.startswith("# ")), "")
    first, rest = (lines[0], lines[1:]) if lines else ("", ())
    is_numbered = (len(rest) > 1 or "," in first) and omit_numbers(rest) != list(rest)
    is_alone = first.endswith(":") and not any(line.endswith(":") for line in rest)
    if is_numbered or (rest and is_alone):
        wrong = first
    if wrong:
        raise UserError(
            f"{folder.path(file)} has the line {wrong!r:.60}, which would be the name of a class; "
            "remove it."
        )


def omit_numbers(lines: Sequence[str]) -> List[str]:
    """Return the names of classes without their numbers, if all lines begin with them, from 0, and
    other names follow them.
    """
    pairs = [x.groups() for x in map(_NUMBERED.fullmatch, lines) if x]
    names = [name for _, name in pairs]
    is_numbered = [int(number) for number, _ in pairs] == list(range(len(lines)))
    return names if len(set(names)) == len(lines) and is_numbered else list(lines)
