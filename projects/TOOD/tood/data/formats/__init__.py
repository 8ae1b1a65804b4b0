"""Data sets in the forms that people have: recognized in a folder, and read into COCO's lists.

An entry is ``PATH`` or ``PATH:PART``: a folder, a CSV file or a YOLO ``data.yaml``, and which of
its parts ("train", "val", "test") where it has several.
"""

import os
from typing import Callable, Dict, List, Optional, Tuple

from tood.data.formats.coco import find_coco
from tood.data.formats.folder import PARTS, Folder, Part
from tood.data.formats.labelme import find_labelme
from tood.data.formats.tables import find_tables
from tood.data.formats.voc import find_voc
from tood.data.formats.yolo import find_yolo
from tood.utils.errors import UserError

__all__ = ["find_parts", "is_entry", "read_entry", "root_of", "split_entry"]

# Each returns the parts it finds in a folder, or none.
FORMATS: Dict[str, Callable[[Folder], List[Part]]] = {
    "COCO": find_coco,
    "YOLO": find_yolo,
    "Pascal VOC": find_voc,
    "LabelMe": find_labelme,
    "CSV": find_tables,
}
LOOKED_FOR = (
    "a COCO JSON file, a YOLO data.yaml or classes.txt, Pascal VOC or LabelMe files, or a CSV file "
    "with the columns filename, xmin, ymin, xmax, ymax, label"
)


def split_entry(entry: str) -> Tuple[str, str]:
    """Return the path and the part, "" for none, of an entry."""
    path, colon, part = entry.rpartition(":")
    if colon and part.lower() in PARTS and path:
        return os.path.expanduser(path), PARTS[part.lower()]
    return os.path.expanduser(entry), ""


def is_entry(entry: str) -> bool:
    """Return whether an entry names a folder, a table or a YOLO file that is there."""
    path, _ = split_entry(entry)
    return os.path.isdir(path) or (_is_single_file(path) and os.path.isfile(path))


def root_of(entry: str) -> str:
    """Return the folder that the file names of :func:`read_entry` are relative to."""
    path, _ = split_entry(entry)
    return path if os.path.isdir(path) else os.path.dirname(path) or "."


def find_parts(path: str) -> Tuple[str, Dict[str, Part]]:
    """Recognize the format of a data set.

    Args:
        path: a folder, or one of the files that say what is in theirs.

    Returns:
        the name of the format, and its parts by their names: "train", "val", "test", or "" where
        nothing divides it.

    Raises:
        UserError: for no format, two of them, or a path that is not there.
    """
    if not is_entry(path):
        raise UserError(f"There is no folder {path}; name the folder of a data set.")
    folder = Folder(root_of(path), only=path if _is_single_file(path) else None)
    found = {name: find(folder) for name, find in FORMATS.items()}
    found = {name: parts for name, parts in found.items() if parts}
    if not found:
        raise UserError(f"{path} holds {folder.summary()}; looked for were {LOOKED_FOR}.")
    if len(found) > 1:
        texts = [f"{name} ({parts[0].source})" for name, parts in found.items()]
        raise UserError(
            f"{path} holds data in {len(found)} formats, {' and '.join(texts)}; leave one of them "
            "in the folder."
        )
    ((name, parts),) = found.items()
    return name, _by_name(path, parts)


def read_entry(entry: str) -> Tuple[Dict, List[str]]:
    """Read a data set that has one part, or of which one is named.

    Returns:
        "images", "categories" and "annotations" as COCO has them, file names relative to
        :func:`root_of`; and remarks on what was not as usual.

    Raises:
        UserError: for what cannot be read.
    """
    path, part = split_entry(entry)
    _, parts = find_parts(path)
    if not part and len(parts) > 1:
        raise UserError(
            f"{path} has the parts {', '.join(parts)}; name one of them, as in {path}:"
            f"{next(iter(parts))}."
        )
    chosen: Optional[Part] = parts.get(part) if part else next(iter(parts.values()))
    if chosen is None:
        known = ", ".join(name or "one without a name" for name in parts)
        raise UserError(f"{path} has no part {part!r}, but {known}; name one of these.")
    return chosen.read()


def _is_single_file(path: str) -> bool:
    return path.lower().endswith((".csv", ".yaml", ".yml"))


def _by_name(path: str, parts: List[Part]) -> Dict[str, Part]:
    named: Dict[str, Part] = {}
    for part in parts:
        if part.name in named:
            what = f"two parts {part.name!r}" if part.name else "two sets that nothing tells apart"
            raise UserError(
                f"{path} has {what}, {named[part.name].source} and {part.source}; name one of "
                "them, or move the other away."
            )
        named[part.name] = part
    order = {name: i for i, name in enumerate(("train", "val", "test"))}
    return dict(sorted(named.items(), key=lambda item: order.get(item[0], -1)))
