"""YOLO: a text file of labels per image, and a configuration (:mod:`.yolo_config`) or lists of
classes.
"""

import contextlib
import itertools
import os
import re
from typing import List, NamedTuple, Optional, Sequence, Set, Tuple

from tood.app.convert.build import Contents, Format, build_contents, match_labels
from tood.app.convert.folder import Folder, decode
from tood.app.convert.formats.yolo_config import (
    Config,
    find_config,
    list_images_by_split,
    read_names,
)
from tood.app.convert.ledger import CLASSES, CONFIGURATION, Ledger
from tood.app.convert.matching import agree
from tood.app.convert.names import find_area, folder_splits, get_stem
from tood.app.convert.objects import (
    NUMBERS,
    WITHIN,
    Labels,
    Object,
    omit_numbers,
    read_numbers,
    refuse_heading,
)
from tood.app.convert.splits import read_split_lists
from tood.utils.errors import UserError
from tood.utils.reading import compose

# The number of a class may be written as a fraction, or as NumPy does: 1.000e+00.
_LINE = re.compile(r"\s*\d+(\.0*|(\.\d*)?[eE][-+]?\d+)?([ \t]+[-+.\deE]+){4,}\s*$")
SEVERAL = 8  # different boxes, or pairs of them, that are more than chance
CLASS_ENDINGS = (".names", "_darknet.labels")  # of darknet, and of Roboflow for it


class Found(NamedTuple):
    """A data set in YOLO's format: its configuration, or its lists of classes."""

    config: Optional[Config]
    class_files: List[str]
    labels: List[str]


def find_yolo(folder: Folder) -> Optional[Found]:
    """Recognize a configuration, or a list of classes with labels.

    Raises:
        UserError: for two configurations, or one that contradicts itself.
    """
    texts = folder.with_suffix(".txt", ".names", ".labels")
    class_files = [f for f in texts if _is_class_file(folder, f)]
    config = find_config(folder, lambda: not class_files and bool(label_files(folder)))
    if config is None and not class_files:
        return None
    labels = label_files(folder)
    return Found(config, class_files, labels) if config or labels else None


def names_alone(found: Found) -> bool:
    """Return whether a configuration only names the classes."""
    return found.config is not None and not found.config.entries


def label_files(folder: Folder) -> List[str]:
    """Return the text files that are labels, or at the place of an image's labels."""
    texts = [f for f in folder.with_suffix(".txt") if not _is_class_file(folder, f)]
    starts = {f: decode(folder.head(f), f, "replace").split("\n") for f in texts}
    lines = {f: next(filter(str.strip, start), "") for f, start in starts.items()}
    if not any(_LINE.match(line) for line in lines.values()):
        return []
    names, homes = folder.names, {os.path.dirname(f) for f in texts if _LINE.match(lines[f])}
    places = {f: names.plain_area.find(get_stem(f), find_area(f)) for f in texts}
    owned = {image for images in places.values() for image in images}
    beside = {f for f, images in places.items() if images}
    for file in (f for f in texts if f not in beside and os.path.dirname(f) in homes):
        images = set(names.plain_stem.find(get_stem(file))) - owned
        if any(agree(folder_splits(file), image) for image in images):
            beside.add(file)
    # An empty file, too, says something; other texts among labels are a README, for example.
    empty = {f for f in texts if not lines[f] and "labels" in f.lower().split("/")[:-1]}
    return [f for f in texts if _LINE.match(lines[f]) or f in beside or f in empty]


def _refuse_other_lines(folder: Folder) -> None:
    """Raise UserError for texts at the place of labels, all of which have other lines."""
    find = folder.names.plain_area.find
    for file in folder.with_suffix(".txt"):
        lines = decode(folder.head(file), file, "replace").split("\n")
        line = next(filter(str.strip, lines), "").strip()
        if line and find(get_stem(file), find_area(file)) and not _is_class_file(folder, file):
            raise UserError(
                f"{folder.path(file)} begins with {line[:60]!r}, but YOLO's lines are a class's "
                "number, centre x, centre y, width, height, with points and spaces; correct it."
            )


def read_yolo(folder: Folder, found: Found, ledger: Ledger) -> Contents:
    """Read the labels of all images that a configuration names, or of all."""
    config = found.config
    if not found.labels:
        _refuse_other_lines(folder)
    if config is not None:
        ledger.enter(config.file, CONFIGURATION)
        for entry in config.absent:
            ledger.note("its test images are not there", entry)
        if config.names_file:
            ledger.enter(config.names_file, CLASSES)
            _note_numbers(folder, ledger, config.names_file, config.names)
        names = config.names
    else:
        names = list(dict.fromkeys(n for f in found.class_files for n in _names_in(folder, f)))
        _note_other_names(folder, ledger, names)
    splits, used = None, set()
    if config is not None and config.entries:
        splits = list_images_by_split(folder, ledger, config)
        used = {image for images in splits.values() for image in images}
    order = _class_order(folder, ledger, found)
    found_labels, lines = {}, []
    for file in found.labels:
        objects = _read_objects(folder, file, order(file), config, lines)
        found_labels[file] = Labels(objects, relative=True)
    _check_poses(folder, lines)
    for file in (file for file, values in lines if len(values) > 4):
        ledger.note("lines of polygons, whose boxes are kept", file)
    _check_units(folder, lines)
    _check_corners(folder, lines, ledger)
    records = match_labels(folder, ledger, found_labels, used)
    if config is None or splits is None:
        splits = read_split_lists(folder, ledger, {record.image for record in records})
    else:
        reason = f"not named by {config.file}"
        ledger.ignore([i for i in folder.images if i not in used], reason)
        ledger.ignore([r.file for r in records if r.image not in used], reason)
    return build_contents(folder, ledger, records, splits=splits, classes=names)


YOLO = Format("YOLO", find_yolo, read_yolo)


# --- classes -----------------------------------------------------------------------------------


def _is_class_file(folder: Folder, file: str) -> bool:
    if os.path.basename(file).lower() != "classes.txt":
        return file.lower().endswith(CLASS_ENDINGS)
    first = decode(folder.head(file), file, "replace").strip().split("\n")[0]
    return not (_LINE.match(first) and folder.names.plain_area.find("classes", find_area(file)))


def _names_in(folder: Folder, file: str) -> List[str]:
    if "" in (line.strip() for line in folder.text(file).rstrip().splitlines()):
        raise UserError(
            f"{folder.path(file)} has an empty line before a name, so that the numbers of the "
            "classes are not certain; remove it, or name the class."
        )
    names = folder.lines(file)
    refuse_heading(folder, file, names)
    return read_names(folder, file, omit_numbers(names), None)


def _note_other_names(folder: Folder, ledger: Ledger, names: Sequence[str]) -> None:
    """Note a configuration of classes alone that differs from their lists, which apply."""
    with contextlib.suppress(UserError):
        other = find_config(folder, lambda: True)
        if other is not None and other.names != list(names):
            text = (
                "a configuration without images names other classes than their list, which applies"
            )
            ledger.note(text, other.file)


def _note_numbers(folder: Folder, ledger: Ledger, file: str, names: Sequence[str]) -> None:
    lines = folder.lines(file)
    if names[0] != compose(lines[0]):
        ledger.note(NUMBERS, file)
    if len(lines) == 1 and "," in lines[0]:
        ledger.note("a list of classes has one line with commas, which is one class", file)


def _class_order(folder: Folder, ledger: Ledger, found: Found):
    """Return a function from a file of labels to the names of its classes: those of the
    configuration, or of the next list of classes in its folder or above.
    """
    config, stated = found.config, {}
    for file in found.class_files:
        ledger.enter(file, CLASSES)
        names = _names_in(folder, file)
        if config is None:
            _note_numbers(folder, ledger, file, names)
        _check_order(folder, stated.setdefault(os.path.dirname(file), (file, names)), (file, names))
        if config is not None:
            _check_order(folder, (file, names), (config.file, omit_numbers(config.names)))

    def order(file: str) -> List[str]:
        home = os.path.dirname(file)
        while home and home not in stated:
            home = os.path.dirname(home)
        if config is not None or home in stated:
            return config.names if config else stated[home][1]
        longest = max(stated.values(), key=lambda x: len(x[1]))
        for other in stated.values():
            _check_order(folder, longest, other, f", and neither is above {folder.path(file)}")
        return longest[1]

    return order


def _check_order(folder: Folder, a: Tuple, b: Tuple, why: str = "") -> None:
    """Raise UserError if two files with their names of classes contradict each other."""
    if any(x != y for x, y in zip(a[1], b[1])):
        raise UserError(
            f"{folder.path(a[0])} and {folder.path(b[0])} number the classes differently{why}; "
            "remove the wrong one, or put each beside its labels."
        )


# --- labels ------------------------------------------------------------------------------------


def _read_objects(
    folder: Folder, file: str, names: Sequence[str], config: Optional[Config], lines: List
) -> List[Object]:
    """Return the objects of a file, relative to its image's size; add its boxes to ``lines``."""
    objects, pose = [], config.num_pose_values if config else 0
    for i, line in enumerate(folder.text(file).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{folder.path(file)}, line {i},"
        number, *values = read_numbers(line.split(), where)
        if not 0 <= number < len(names) or number != int(number):
            raise UserError(
                f"{folder.path(file)} has the class {number:g}, but there are {len(names)} "
                f"classes, counted from 0 ({', '.join(names)[:80]}); name all of them."
            )
        if pose and len(values) not in (4, 4 + pose):
            raise UserError(
                f"{where} has {len(values)} numbers after the class, but kpt_shape says that there "
                f"are 4 or {4 + pose}; correct one of them."
            )
        if pose:
            values = values[:4]
        objects.append(Object(names[int(number)], _read_box(values, where)))
        lines.append((file, values))
    return objects


def _read_box(values: Sequence[float], where: str) -> Tuple[float, float, float, float]:
    if len(values) == 4:
        x, y, w, h = values
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if len(values) < 6 or len(values) % 2:
        raise UserError(
            f"{where} cannot be read: it has {len(values)} numbers after the class, but boxes have "
            "4 and polygons 6, 8, ...; export it again, or add kpt_shape if these are key points."
        )
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _check_poses(folder: Folder, lines: Sequence[Tuple[str, Sequence[float]]]) -> None:
    """Raise UserError if lines seem to be boxes and key points, not polygons: all have as many
    numbers, nearly all points after the first four numbers lie in the box that these are, and most
    of these sizes are no point among the others.
    """
    more = [(file, v) for file, v in lines if len(v) > 4]
    numbers = {len(v) for _, v in more}
    _refuse_more_columns(folder, lines)
    # Some triangles and turned boxes look like that as well.
    if len(more) < (10 if numbers & {6, 8} else 4) or len(numbers) > 1:
        return
    inside, apart = [], 0
    for _, (x, y, w, h, *rest) in more:
        step = 3 if len(rest) % 3 == 0 and set(rest[2::3]) <= {0, 1, 2} else 2
        points = [(a, b) for a, b in zip(rest[::step], rest[1::step]) if a > 0 < b]
        inside += [abs(a - x) <= w / 2 and abs(b - y) <= h / 2 for a, b in points]
        xs, ys = zip((x, y), *points)
        apart += not (min(xs) <= w <= max(xs) and min(ys) <= h <= max(ys))
        if rest[-2:] == [x, y]:  # a closed outline
            return
    if sum(inside) >= 0.9 * len(inside) and apart > len(more) / 2:
        raise UserError(
            f"{folder.path(more[0][0])} seems to contain a box and key points in each line; add "
            "kpt_shape to a data.yaml, for example kpt_shape: [5, 2]."
        )


def _refuse_more_columns(folder: Folder, lines: Sequence[Tuple[str, Sequence[float]]]) -> None:
    """Raise UserError if all lines seem to be a box and two columns more, not triangles: the last
    number is a whole one in each, and the first four are boxes within the image.
    """
    if len(lines) < SEVERAL / 2 or any(len(v) != 6 or v[5] != int(v[5]) for _, v in lines):
        return
    if all(_find_end(v) <= 1 + WITHIN for _, v in lines):
        raise UserError(
            f"{folder.path(lines[0][0])} seems to contain a box and two columns more in each line, "
            "as a score or a number of a track, not a triangle; remove these columns."
        )


def _check_units(folder: Folder, lines: Sequence[Tuple[str, Sequence[float]]]) -> None:
    """Raise UserError if most lines are in pixels, or are corners."""
    large = [file for file, values in lines if max(values) > 1.5 or min(values) < -0.5]
    boxes = [(file, v) for file, v in lines if len(v) == 4]
    beyond = [file for file, v in boxes if _find_end(v) > 1 + WITHIN]
    # Centres that are all below the widths and heights belong to objects as large as their image.
    is_corners = all(map(_may_be_corners, (v for _, v in boxes)))
    for wrong, kind, least in (
        (large, "pixels", len(lines) / 10),
        (beyond if is_corners else [], "corners", len(boxes) / 10),
    ):
        if len(wrong) > least:  # a few are mistakes of their objects, which are noted
            raise UserError(
                f"{folder.path(wrong[0])} seems to be in {kind}, as {len(wrong)} of {len(lines)} "
                "lines; YOLO's are relative to the image's size: class, centre x, centre y, width, "
                "height."
            )


def _find_end(values: Sequence[float]) -> float:
    """Return how far a box, centre and size, reaches to any side: beyond 1, out of the image."""
    x, y, w, h = values[:4]
    return max(x + w / 2, y + h / 2, w / 2 - x + 1, h / 2 - y + 1)


def _may_be_corners(values: Sequence[float]) -> bool:
    x, y, w, h = values
    return w >= x and h >= y


def _check_corners(
    folder: Folder, lines: Sequence[Tuple[str, Sequence[float]]], ledger: Ledger
) -> None:
    """Raise UserError if lines are corners of objects near the middle of their images, whose boxes
    would lie within them as centre and size, too; note them if they may be either.

    Boxes of which each third and fourth number is at least the first and the second begin within
    the first third of their extent, from the left and from the top. If they are large objects, they
    end as near to the right and the bottom, or touch the edges; if they are corners, most do not,
    and those of one image overlap, although what lies between the corners does not.
    """
    boxes = {(file, tuple(v)) for file, v in lines}
    different = {v for _, v in boxes}
    if len(different) < SEVERAL or not all(len(v) == 4 and _may_be_corners(v) for v in different):
        return
    if sum(map(_touches_edge, different)) > len(different) / 4:
        return
    mirrored = [(w >= 1 - x, h >= 1 - y) for x, y, w, h in different]
    is_middle = all(abs(x - 0.5) <= w / 2 and abs(y - 0.5) <= h / 2 for x, y, w, h in different)
    rare = len(different) / 5
    is_sure = is_middle and all(sum(some) <= rare for some in zip(*mirrored))
    if is_sure or _overlap_as_centres(boxes):
        raise UserError(
            f"{folder.path(lines[0][0])} seems to contain corners, as all {len(lines)} lines; "
            "YOLO's are relative to the image's size: class, centre x, centre y, width, height."
        )
    ledger.note("boxes are read as centre and size, but could be corners, too", lines[0][0])


def _touches_edge(values: Sequence[float]) -> bool:
    x, y, w, h = values
    return min(abs(end) for end in (x - w / 2, x + w / 2 - 1, y - h / 2, y + h / 2 - 1)) < 0.002


def _overlap_as_centres(boxes: Set[Tuple]) -> bool:
    """Return whether nearly all pairs of boxes in a file overlap as centre and size, and most do
    not as corners.

    Args:
        boxes: (file, numbers).
    """
    pairs = [
        (a, b)
        for _, some in itertools.groupby(sorted(boxes), lambda x: x[0])
        for (_, a), (_, b) in itertools.combinations(list(some)[:SEVERAL], 2)
    ]
    centres = sum(
        all(abs(a[i] - b[i]) < (a[i + 2] + b[i + 2]) / 2 for i in (0, 1)) for a, b in pairs
    )
    corners = sum(all(max(a[i], b[i]) < min(a[i + 2], b[i + 2]) for i in (0, 1)) for a, b in pairs)
    return len(pairs) >= SEVERAL and centres >= 0.9 * len(pairs) and corners < len(pairs) / 2
