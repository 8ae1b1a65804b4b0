"""Boxes in CSV files, one per row: ``filename,xmin,ymin,xmax,ymax,label`` with or without such a
header, in any order with one; and Open Images' tables, relative and with a file of classes' names.
"""

import collections
import contextlib
import csv
import io
import os
import re
from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from tood.app.convert.build import Contents, Format, build_contents
from tood.app.convert.folder import Folder, decode
from tood.app.convert.ledger import CLASSES, IMAGE, NO_IMAGE, Ledger
from tood.app.convert.names import get_suffix, read_split
from tood.app.convert.objects import (
    LARGEST,
    NOT_CLASSES,
    WITHIN,
    Object,
    Record,
    note_scores,
    read_marks,
    read_size,
    sort_corners,
)
from tood.app.convert.splits import check_splits, find_split, match_in_splits, name_splits
from tood.data.images import IMAGE_SUFFIXES
from tood.utils.errors import UserError, shorten
from tood.utils.reading import guard_reading, parse_number

# Names of a column, in small letters without "_" and " ".
COLUMNS = {
    "image": ("filename", "imageid", "image", "imagepath", "imagename", "path", "file"),
    "label": ("label", "class", "labelname", "classname", "category", "name"),
    "x1": ("xmin", "x1", "left"),
    "y1": ("ymin", "y1", "top"),
    "x2": ("xmax", "x2", "right"),
    "y2": ("ymax", "y2", "bottom"),
}
OPTIONAL = {
    "width": ("width", "imagewidth", "imgwidth"),
    "height": ("height", "imageheight", "imgheight"),
    "split": ("split", "subset", "set", "usage", "partition"),
}
BOX = ("x1", "y1", "x2", "y2")
ENDINGS = (".csv", ".tsv")
HEADLESS = {"image": 0, "label": 5, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "headless": 0}
SIZES = {"width": 6, "height": 7}
NO_BOX = (
    "",
    "nan",
    "na",
    "n/a",
    "<na>",
    "null",
    "none",
)  # in small letters, as programs write empty cells

# Classes of rows that say of an image that it has no objects, in small letters without "_", "-" and
# " ", if their box is one of NO_OBJECT: VinBigData's is 0, 0, 1, 1.
NOTHING = {
    *NO_BOX,
    *(name.strip("_") for name in NOT_CLASSES),
    "nofinding",
    "nofindings",
    "noobject",
    "noobjects",
    "nothing",
    "empty",
    "negative",
    "normal",
}
NO_OBJECT = ((0, 0, 0, 0), (-1, -1, -1, -1), (0, 0, 1, 1))


class Table(NamedTuple):
    """A CSV file of boxes."""

    file: str
    rows: List[Tuple[int, List[str]]]  # (number of the line, cells)
    columns: Dict[str, int]  # key of COLUMNS or OPTIONAL -> number of the column
    has_decimal_commas: bool

    @property
    def width(self) -> int:
        """Number of columns of the first row."""
        return len(self.rows[0][1])

    @property
    def header(self) -> List[str]:
        """Names of the columns, if the first row names them."""
        return [] if "headless" in self.columns else self.rows[0][1]


def find_tables(folder: Folder) -> List[Tuple[str, Table]]:
    """Return the tables of boxes, with their files."""
    tables = [(file, _read_table(folder, file)) for file in folder.with_suffix(*ENDINGS)]
    return [(file, table) for file, table in tables if table is not None]


def read_tables(folder: Folder, found: Sequence[Tuple[str, Table]], ledger: Ledger) -> Contents:
    """Read the rows of all images; images that no table lists are negatives."""
    names, files = _class_descriptions(folder, ledger), {}
    if not all("split" in table.columns for _, table in found):
        files = find_split(folder, [file for file, _ in found])
    own = files.get(found[0][0], "all") if len(found) == 1 else "all"
    records = []
    for file, table in found:
        cells = (x for _, row in table.rows[1:] for x in zip(table.header, row))
        note_scores(cells, ledger, file)
        split = files.get(file, "all")
        if folder.only and not any("split" in table.columns for _, table in found):
            split = name_splits([file])[file]  # in whose folder its images may be
        records += _read_records(folder, table, ledger, names, "" if split == "all" else split)
    if len(found) == 1 and "split" not in found[0][1].columns:
        records = [record._replace(split="") for record in records]
    _omit_others(folder, {record.image for record in records})
    contents = build_contents(folder, ledger, records)
    if list(contents) == ["all"] and own != "all":  # a table alone is of the split in its name
        for image in contents["all"]["images"]:
            ledger.files[image["file_name"]] = (IMAGE, own)
        return {own: contents["all"]}
    return contents


CSV = Format("CSV", find_tables, read_tables)


def _read_table(folder: Folder, file: str) -> Optional[Table]:
    lines = decode(folder.head(file), folder.path(file), "replace").splitlines()[:2]
    first = [line.replace("\0", "") for line in _omit_separator(lines)[:1]]  # before Python 3.11
    for delimiter in ",;\t|":
        header = next(csv.reader(first, delimiter=delimiter, skipinitialspace=True), [])
        columns = _find_columns(header)
        if columns is not None:
            text = decode(folder.read(file), folder.path(file))
            rows = _read_rows(folder, file, text, delimiter)
            if columns.pop("corners", None) is not None:
                raise UserError(
                    f"{folder.path(file)} has columns of four corners, x1 to y4; write the upright "
                    "boxes, in the columns xmin, ymin, xmax, ymax."
                )
            if "headless" in columns:
                _check_headless(folder, file, rows)
            else:
                _omit_box_sizes(columns, rows[1:], delimiter != ",")
                columns["label"] = _find_label(folder, file, rows)
                columns["image"] = _find_image(folder, rows)
            return Table(file, rows, columns, delimiter != ",")
    return None


def explain_unread(folder: Folder) -> str:
    """Return which columns the first table lacks that seems to have some of them, or ""."""
    for file in folder.with_suffix(*ENDINGS):
        lines = decode(folder.head(file), folder.path(file), "replace").splitlines()[:2]
        first = [line.replace("\0", "") for line in _omit_separator(lines)[:1]]
        headers = [next(csv.reader(first, delimiter=x), []) for x in ",;\t|"]
        header = max(headers, key=len)
        names = _plain_names(header)
        lacking = [known[0] for known in COLUMNS.values() if names and not set(known) & set(names)]
        if len(header) > 1 and lacking:
            shown = ", ".join(header)
            return f"{file} has no column {', '.join(lacking)}, but {shorten(shown)}"
    return ""


def _list_rows_with_boxes(rows: Sequence[Tuple[int, List[str]]]) -> List[Tuple[int, List[str]]]:
    columns = [_find_cells(rows[:1], key)[0][0] for key in BOX]
    return [
        (n, row)
        for n, row in rows[1:]
        if len(row) > max(columns) and not _is_empty([row[c] for c in columns])
    ]


def _omit_box_sizes(
    columns: Dict[str, int], rows: Sequence[Tuple[int, List[str]]], has_decimal_commas: bool
) -> None:
    """Omit a width and a height that are those of the boxes, not of their images."""
    keys = ("x1", "y1", "x2", "y2", "width", "height")
    if not set(keys) <= set(columns):
        return
    last = max(columns.values())
    cells = [[row[columns[key]] for key in keys] for _, row in rows if len(row) > last]
    cells = [row for row in cells if not _is_empty(row[:4])]
    numbers = [[_number(x, has_decimal_commas) for x in row] for row in cells]
    values = [[x for x in row if x is not None] for row in numbers]
    if values and all(len(row) == 6 and _is_size(*row) for row in values):
        del columns["width"], columns["height"]


def _is_size(x1: float, y1: float, x2: float, y2: float, width: float, height: float) -> bool:
    """Return whether a width and a height are those of a box, perhaps with both of its ends."""
    return abs(x2 - x1 - width) <= 1 and abs(y2 - y1 - height) <= 1


def _find_label(folder: Folder, file: str, rows: Sequence[Tuple[int, List[str]]]) -> int:
    """Return the column of classes: of several that say the same, the first whose cells are not all
    numbers.

    Raises:
        UserError: for another column that divides the objects differently.
    """
    columns, cells = _find_cells([rows[0], *_list_rows_with_boxes(rows)], "label")
    known, same = folder.names, []
    for column, texts in zip(columns, cells):
        if column != columns[0] and any(x in known.stem or x in known.base for x in texts):
            continue  # names of images
        pairs = set(zip(cells[0], texts))
        if len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
            same.append((column, texts))
        elif len(set(texts)) > 1:
            first, other = (rows[0][1][c] for c in (columns[0], column))
            raise UserError(
                f"{folder.path(file)} has the columns {first} and {other}, which both could be the "
                "class and divide the objects differently; remove or rename one of them."
            )
    is_text = (any(x and _number(x, False) is None for x in texts) for _, texts in same)
    return next((c for (c, _), is_name in zip(same, is_text) if is_name), columns[0])


def _find_image(folder: Folder, rows: Sequence[Tuple[int, List[str]]]) -> int:
    """Return the column of images: of several, the first that names most of the folder's, rather
    with their endings.
    """
    columns, cells = _find_cells(rows, "image")
    known, counts = folder.names, []
    for texts in cells if len(cells) > 1 else ():
        bases = [text.replace("\\", "/").rpartition("/")[2] for text in texts]
        whole = sum(base in known.base for base in bases)
        counts.append((whole, sum(base in known.stem for base in bases)))
    return columns[counts.index(max(counts))] if counts else columns[0]


def _find_cells(rows: Sequence[Tuple[int, List[str]]], key: str) -> Tuple[List[int], List]:
    """Return the columns that a key of COLUMNS may mean, and the cells of each."""
    (_, header), *rest = rows
    names = _plain_names(header)
    columns = [names.index(name) for name in COLUMNS[key] if name in names]
    return columns, [[row[c] if len(row) > c else "" for _, row in rest] for c in columns]


def _check_headless(folder: Folder, file: str, rows: Sequence[Tuple[int, List[str]]]) -> None:
    """Raise UserError for rows that seem to be in another order than path, x1, y1, x2, y2, class:
    with the number of the class before the box, or with a width and a height.
    """
    cells = [row[1:6] for _, row in rows if len(row) >= 6 and not _is_empty(row[1:5])]
    numbers = [[_number(x, True) for x in row] for row in cells]
    if all(None not in row for row in numbers):
        firsts, lasts = ({row[i] for row in numbers} for i in (0, 4))
        if len(firsts) < len(lasts) and all(x == int(x) for x in firsts if x is not None):
            raise UserError(
                f"{folder.path(file)} has a number in the last column of every row, and few "
                "numbers in the second, as if that were the class; add a header such as "
                "filename,label,xmin,ymin,xmax,ymax."
            )
    boxes = [row[:4] for row in numbers if None not in row[:4]]
    swapped = [x for x in boxes if x[0] > x[2] or x[1] > x[3]]  # type: ignore[operator]
    if len(swapped) > len(boxes) / 10:
        raise UserError(
            f"{folder.path(file)} has {len(swapped)} of {len(boxes)} boxes whose second corner is "
            "not below and right of the first, as if they were x, y, width, height; write "
            "corners, or add a header."
        )


def _find_columns(first: Sequence[str]) -> Optional[Dict[str, int]]:
    """Return the meaning of columns by the first row of a file, or None for other files."""
    names, columns = _plain_names(first), {}
    for key, known in {**COLUMNS, **OPTIONAL}.items():
        name = next((name for name in known if name in names), None)
        if name is not None:
            columns[key] = names.index(name)
    if all(key in columns for key in COLUMNS):
        return {**columns, "corners": 0} if {"x3", "y3"} <= set(names) else columns
    # Without a header: path, x1, y1, x2, y2, class, and perhaps the image's width and height.
    is_row = all(_number(x, True) is not None or _is_empty([x.strip()]) for x in first[1:5])
    if len(first) == 6 and is_row:
        return dict(HEADLESS)
    is_row &= len(first) == 8 and get_suffix(first[0].strip()) in IMAGE_SUFFIXES
    return {**HEADLESS, **SIZES} if is_row and read_size(*first[6:]) else None


def _plain_names(header: Sequence[str]) -> List[str]:
    return [name.strip().lower().replace("_", "").replace(" ", "") for name in header]


def _read_rows(folder: Folder, file: str, text: str, delimiter: str) -> List[Tuple[int, List[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    with guard_reading(folder.path(file), "export it again as CSV"):
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    if not _omit_separator(text[:99].splitlines()[:1]):
        rows = rows[1:]
    return [(number, row) for number, row in rows if any(row)]


def _omit_separator(lines: List[str]) -> List[str]:
    """Return lines without a first one that states the delimiter, as Excel writes it."""
    is_stated = bool(lines) and re.fullmatch(r'"?sep=.?"?[,;\t|]*', lines[0].strip(), re.IGNORECASE)
    return lines[1:] if is_stated else lines


def _read_records(
    folder: Folder, table: Table, ledger: Ledger, names: Dict[str, str], split: str
) -> List[Record]:
    """Return the boxes of each image."""
    found: Dict[Tuple, List[Object]] = collections.defaultdict(list)
    rows = table.rows if "headless" in table.columns else table.rows[1:]
    for number, row in rows:
        image, size, named, objects = _read_row(folder, table, ledger, number, row, names)
        found[image, size, named or split] += objects
    if "split" in table.columns:
        column, path = table.columns["split"], folder.path(table.file)
        check_splits({row[column]: f"{path}, line {n}," for n, row in reversed(rows)}, ledger)
    boxes = [(image, o.box) for (image, *_), objects in found.items() for o in objects]
    small = [x for x in boxes if all(-WITHIN <= value <= 1 + WITHIN for value in x[1])]
    relative = bool(boxes) and len(small) == len(boxes)
    mixed = [image for image, box in small if any(value not in (0, 1) for value in box)]
    if mixed and not relative:
        raise UserError(
            f"{folder.path(table.file)} has {len(mixed)} of {len(boxes)} boxes in relative values, "
            f"for example of {mixed[0]}, and others in pixels; write all in pixels."
        )
    if relative:
        ledger.note("boxes are relative to the images' sizes", table.file)
    ledger.objects_in += len(boxes)
    home = table.file.rpartition("/")[0]
    near = [home, f"{home}/images".lstrip("/"), "", "images"]
    pairs = [(named, image) for image, _, named in found]
    images = match_in_splits(folder, ledger, pairs, near, table.file)
    records = []
    for (name, size, named), objects in found.items():
        if (named, name) not in images:
            ledger.drop(NO_IMAGE, name, len(objects))
            continue
        image = images[named, name]
        records.append(Record(table.file, image, objects, size, relative, named))
    return records


def _omit_others(folder: Folder, labelled: Set[str]) -> None:
    """Omit the images of other tables, if one is named by itself: they are not negatives of it."""
    others: Set[str] = set()
    known = folder.names
    for file in folder.files if folder.only else ():
        if file == folder.only or get_suffix(file) not in ENDINGS:
            continue
        with contextlib.suppress(UserError):  # it need not be one
            table = _read_table(folder, file)
            column = table.columns["image"] if table else 0
            for row in (row for _, row in table.rows if len(row) > column) if table else ():
                name = row[column].replace("\\", "/")
                base = os.path.basename(name)
                images = known.base.get(base) or known.stem.get(base, [])
                whole = [
                    i for i in images if f"/{i}".endswith((f"/{name}", f"/{name}{get_suffix(i)}"))
                ]
                others.update(whole or images)
    folder.omit(others - labelled, "labelled by another table than the named one")


def _read_row(folder: Folder, table: Table, ledger: Ledger, number: int, row, names: Dict):
    """Return the name of an image, its stated size or None, its split or "", and its objects: one,
    or none for a row without a box.
    """
    columns, where = table.columns, f"{folder.path(table.file)}, line {number}"
    if len(row) <= max(columns.values()):
        raise UserError(f"{where} has {len(row)} columns, fewer than others of its file; fix it.")
    if any(row[table.width :]):
        raise UserError(
            f"{where} has {len(row)} columns, more than the {table.width} of its first line; put "
            "names with commas into quotes."
        )
    image, texts = row[columns["image"]], [row[columns[key]] for key in BOX]
    size = read_size(*(row[columns[k]] if k in columns else None for k in ("width", "height")))
    split = read_split(row[columns["split"]]) if "split" in columns else ""
    if _is_empty(texts):
        return image, size, split, []
    box = tuple(_number(x, table.has_decimal_commas) for x in texts)
    label = row[columns["label"]]
    if box in NO_OBJECT and re.sub("[-_ ]", "", label.lower()) in NOTHING:
        ledger.note("rows of no object, by their class and their box", f"{table.file}: {image}")
        return image, size, split, []
    if None in box or not label or not image:
        raise UserError(
            f"{where} must have an image, four numbers and a label: {','.join(row)[:80]}; fix it."
        )
    marks = read_marks(zip(table.header, row), ledger, table.file)
    box = sort_corners(box, ledger, table.file)
    return image, size, split, [Object(names.get(label, label), box, **marks)]


def _class_descriptions(folder: Folder, ledger: Ledger) -> Dict[str, str]:
    """Return Open Images' names of classes, by their codes."""
    names = {}
    for file in folder.with_suffix(*ENDINGS):
        if "classdescriptions" in file.lower().replace("-", "").replace("_", ""):
            with guard_reading(folder.path(file), "export it again as CSV"):
                rows = list(csv.reader(folder.lines(file), skipinitialspace=True))
            names.update(row[:2] for row in rows if len(row) >= 2)
            ledger.enter(file, CLASSES)
    return names


def _is_empty(cells: Sequence[str]) -> bool:
    return all(cell.lower() in NO_BOX for cell in cells)


def _number(text: str, has_decimal_commas: bool) -> Optional[float]:
    try:
        return parse_number(
            text.replace(",", ".") if has_decimal_commas else text, -LARGEST, LARGEST
        )
    except ValueError:
        return None
