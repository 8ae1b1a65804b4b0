"""Boxes in CSV files: a row for each, as ``filename,xmin,ymin,xmax,ymax,label`` with or without
such a first row, in any order with one; and as Open Images writes them, relative and with other
files for the names of classes.
"""

import collections
import csv
import os
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from tood.data.formats.folder import Folder, Lists, Part, check_lonely, part_of, stated_classes
from tood.utils.errors import UserError

# Names of a column, in small letters without "_" and " ".
COLUMNS = {
    "image": ("filename", "imageid", "image", "imagepath", "imagename", "path", "file"),
    "label": ("label", "class", "labelname", "classname", "category", "name"),
    "x1": ("xmin", "x1", "left"),
    "y1": ("ymin", "y1", "top"),
    "x2": ("xmax", "x2", "right"),
    "y2": ("ymax", "y2", "bottom"),
}
GROUP = "isgroupof"  # of Open Images: a box around many objects, COCO's crowd
BOX = ("x1", "y1", "x2", "y2")


class Layout(NamedTuple):
    """Meanings of the columns."""

    columns: Dict[str, int]
    has_header: bool
    group: Optional[int] = None


def find_tables(folder: Folder) -> List[Part]:
    """Return a part for each CSV file of boxes."""
    parts = []
    for file in folder.with_suffix(".csv"):
        with open(folder.path(file), encoding="utf-8-sig", errors="replace", newline="") as f:
            first = next(csv.reader(f), [])
        layout = layout_of(first)
        if layout is not None:
            read = _reader(folder, file, layout)
            parts.append(Part(part_of(file), file, read))
    return parts


def layout_of(first: Sequence[str]) -> Optional[Layout]:
    """Return which column is what by the first row of a file, or None for other files."""
    names = [name.strip().lower().replace("_", "").replace(" ", "") for name in first]
    columns = {}
    for key, known in COLUMNS.items():
        found = next((name for name in known if name in names), None)
        if found is not None:
            columns[key] = names.index(found)
    if len(columns) == len(COLUMNS):
        return Layout(columns, True, names.index(GROUP) if GROUP in names else None)
    # Without a header: path, x1, y1, x2, y2, class.
    if len(first) == 6 and all(_is_number(x) or not x.strip() for x in first[1:5]):
        return Layout(dict(zip(("image", *BOX, "label"), range(6))), False)
    return None


def _reader(folder: Folder, file: str, layout: Layout):
    def read() -> Tuple[Dict, List[str]]:
        rows = _rows_of(folder, file, layout)
        names = _class_descriptions(folder)
        relative = _are_relative(rows)
        lists, lonely = Lists(stated=stated_classes(folder)), []
        for name, boxes in rows.items():
            image = folder.find_image(name, [os.path.dirname(file)])
            if image is None:
                lonely.append(name)
                continue
            size = folder.size_of(image)
            width, height = size if relative else (1, 1)
            objects = [
                (names.get(label, label), (x1 * width, y1 * height, x2 * width, y2 * height), group)
                for label, (x1, y1, x2, y2), group in boxes
            ]
            lists.add(image, size, objects)
        remarks = check_lonely(file, "images that it names are not there", lonely, len(rows))
        if relative:
            remarks.append("its boxes are relative to the images' sizes, as Open Images has them")
        return lists.content(), remarks

    return read


def _rows_of(folder: Folder, file: str, layout: Layout) -> Dict[str, List[Tuple]]:
    """Return the boxes of each image: (label, (x1, y1, x2, y2), is a group)."""
    path, found = folder.path(file), collections.defaultdict(list)
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            for number, row in enumerate(csv.reader(f), 1):
                if not row or (number == 1 and layout.has_header):
                    continue
                image, box = _row(row, layout, f"{path}, line {number}")
                found[image] += [box] if box else []
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8; save it as UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as CSV ({error}); export it again.") from error
    return found


def _row(row: Sequence[str], layout: Layout, where: str) -> Tuple[str, Optional[Tuple]]:
    columns = layout.columns
    if len(row) <= max(columns.values()):
        raise UserError(f"{where} has {len(row)} columns, fewer than others of its file; fix it.")
    texts, image = [row[columns[key]].strip() for key in BOX], row[columns["image"]].strip()
    if not any(texts):  # an image without objects
        return image, None
    if not all(_is_number(x) for x in texts) or not row[columns["label"]].strip():
        raise UserError(
            f"{where} must have four numbers and a label: {','.join(row)[:80]}; fix it."
        )
    group = layout.group is not None and row[layout.group].strip() == "1"
    return image, (row[columns["label"]].strip(), tuple(float(x) for x in texts), group)


def _are_relative(rows: Dict[str, List[Tuple]]) -> bool:
    values = [x for boxes in rows.values() for _, box, _ in boxes for x in box]
    return bool(values) and max(values) <= 1 and min(values) >= 0


def _class_descriptions(folder: Folder) -> Dict[str, str]:
    """Return Open Images' names of classes, by their codes."""
    names = {}
    for file in folder.with_suffix(".csv"):
        if "class-descriptions" in file or "class_descriptions" in file:
            with open(folder.path(file), encoding="utf-8-sig", newline="") as f:
                names.update(row[:2] for row in csv.reader(f) if len(row) >= 2)
    return names


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < 1e9
    except ValueError:
        return False
