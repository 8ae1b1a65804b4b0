"""Objects of images as files state them: boxes, names, marks, scores and sizes; and lists of
classes.
"""

import functools
import os
import re
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

from tood.app.convert.folder import Folder
from tood.app.convert.ledger import CLASSES, Ledger
from tood.utils.errors import UserError
from tood.utils.reading import compose, parse_number

LARGEST = 1e9  # number
WITHIN = 0.01  # of the image's size: tolerance of relative values, which programs round
PERCENT, MANY = 100, 10  # boxes, of which more than chance ends within so many pixels
# In small letters.
YES = ("1", "1.0", "true", "yes", "t", "y")
NO = ("", "0", "0.0", "false", "no", "f", "n", "none", "null", "nan")
# Names of marks of objects in small letters, without "_", "-" and " ": a box around many objects,
# COCO's crowd and Open Images' group; and objects that are hard to see, as Pascal VOC says.
CROWD, DIFFICULT = ("iscrowd", "isgroupof"), ("difficult", "isdifficult", "ignore")
SCORES = ("score", "confidence", "conf", "confidencescore", "probability")
CLASS_FILES = ("classes.txt", "labels.txt", "labelmap.txt")
NOT_CLASSES = ("__ignore__", "_background_", "background")
NUMBERS = "numbers before the names of classes, which are not part of them"
# The number of a class before its name.
_NUMBERED = re.compile(r"(\d{1,4})(?:\s*[:.,)=-]\s*|\s+)([^\W\d].*)")


class Object(NamedTuple):
    """An object of an image."""

    label: str
    box: Tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels from 0, or relative
    crowd: bool = False  # ignored in evaluation
    difficult: bool = False  # ignored as well, unless they are kept


class Record(NamedTuple):
    """The objects that a file states for an image."""

    file: str
    image: str
    objects: List[Object]
    size: Optional[Tuple[int, int]] = None  # (width, height), if the file states it
    relative: bool = False  # boxes are in units of the image's size
    split: str = ""


class Labels(NamedTuple):
    """The objects that a file of one image states."""

    objects: List[Object]
    size: Optional[Tuple[int, int]] = None
    stated: str = ""  # the image's name
    relative: bool = False


def read_label(label: Any, where: str) -> str:
    """Return the name of a class, or raise UserError for none."""
    try:
        text = "" if label is None else str(label).strip()
    except ValueError:  # a number of more digits than Python writes
        text = ""
    if not text:
        raise UserError(f"{where} has an object without a class; name its class.")
    return text


def read_marks(stated: Iterable[Tuple[Any, Any]], ledger: Ledger, file: str) -> Dict[str, bool]:
    """Return which of an object's marks are set, as arguments of :class:`Object`.

    Args:
        stated: names and values of attributes, flags or columns.
    """
    marks = set()
    for name, value in stated:
        if not is_mark(name):
            continue
        text = "" if value is None else str(value).strip().lower()
        if text in YES:
            marks.add(_plain(name))
        elif text not in NO:
            ledger.note(f"marks {name} that say neither yes nor no, and are not used", file)
    return {
        "crowd": not marks.isdisjoint(CROWD),
        "difficult": not marks.isdisjoint(DIFFICULT),
    }


def is_mark(name: Any) -> bool:
    """Return whether an attribute marks objects as crowds or as difficult."""
    return _plain(name) in (*CROWD, *DIFFICULT)


def note_scores(stated: Iterable[Tuple[Any, Any]], ledger: Ledger, file: str) -> None:
    """Note a file of objects that have scores other than 0 and 1, as those of a model.

    Args:
        stated: names and values of attributes or columns of all objects.
    """
    scores = {str(value) for name, value in stated if _plain(name) in SCORES}
    for text in scores:
        try:
            is_score = parse_number(text.replace(",", ".").rstrip(" %"), 0, LARGEST) not in (0, 1)
        except ValueError:
            continue
        if is_score:
            ledger.note("boxes have scores, as those that a model found", file)
            return


@functools.lru_cache(maxsize=4096)
def _plain(name: Any) -> str:
    return re.sub(r"[_\W]", "", str(name).lower())


def read_size(width: Any, height: Any) -> Optional[Tuple[int, int]]:
    """Return a size that a file states, or None if it states none."""
    try:
        return int(parse_number(width, 1, LARGEST)), int(parse_number(height, 1, LARGEST))
    except ValueError:
        return None


def read_numbers(texts: Sequence[str], where: str) -> List[float]:
    """Return finite numbers, or raise UserError."""
    try:
        return [parse_number(text, -LARGEST, LARGEST) for text in texts]
    except ValueError:
        shown = " ".join(str(text)[:60] for text in texts)[:60]
        raise UserError(
            f"{where} cannot be read, because {shown!r} are not numbers; fix it."
        ) from None


def sort_corners(corners: Sequence[float], ledger: Ledger, file: str) -> Tuple:
    """Return x1, y1, x2, y2 of a box of which any two opposite corners are stated."""
    a, b, c, d = corners
    if a > c or b > d:
        ledger.note("boxes whose corners were swapped", file)
    return min(a, c), min(b, d), max(a, c), max(b, d)


def check_outside(found: Sequence[Tuple[str, Sequence[Object], Tuple]], ledger: Ledger) -> None:
    """Note objects outside of their image; raise UserError if they are most of all.

    Args:
        found: images, their objects in pixels, and their sizes.
    """
    outside, total, far = [], 0, 0.0
    for image, objects, (width, height) in found:
        total += len(objects)
        far = max([far, *(max(o.box[2:]) for o in objects)])
        for o in objects:
            x1, y1, x2, y2 = o.box
            if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
                outside.append(f"{[round(x, 1) for x in o.box]} in {image}, {width} x {height}")
    if len(outside) > total / 2:
        raise UserError(
            f"{len(outside)} of {total} objects lie outside of their images, for example "
            f"{outside[0]}; use the images and the units (relative or pixels) of the labels."
        )
    for example in outside:
        ledger.note("objects lie outside of their images", example)
    smallest = min((min(size) for _, objects, size in found if objects), default=0)
    if PERCENT / 2 < far <= PERCENT and total >= MANY and smallest >= 2 * PERCENT:
        text = "boxes all end before pixel 100, as if they were percent of the images; write pixels"
        ledger.note(text, f"{total} objects in images of at least {smallest} pixels")


def hashable(value: Any) -> Any:
    """Return a value by which equal ids are found: 1 is 1.0, and "1" is neither."""
    return value if isinstance(value, (int, float, str, type(None))) else repr(value)


# --- classes ------------------------------------------------------------------------------------


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
