"""LabelMe: a JSON file per image."""

import math
import os
from typing import Any, Dict, List, Sequence, Tuple

from tood.app.convert.build import Contents, Format, build_contents, match_labels
from tood.app.convert.folder import Folder
from tood.app.convert.ledger import Ledger
from tood.app.convert.names import get_stem
from tood.app.convert.objects import (
    Labels,
    Object,
    note_scores,
    read_label,
    read_marks,
    read_numbers,
    read_size,
)
from tood.app.convert.splits import read_split_lists
from tood.utils.errors import UserError

AREAS = (None, "", "polygon", "rectangle", "oriented_rectangle", "rotation", "mask", "circle")
NO_GROUP = (None, "", -1, "-1")


def find_labelme(folder: Folder) -> List[str]:
    """Return LabelMe's files."""
    return [f for f in folder.with_suffix(".json") if _is_labelme(folder.json(f))]


def _is_labelme(content: Any) -> bool:
    shapes = content.get("shapes") if isinstance(content, dict) else None
    return isinstance(shapes, list) or (isinstance(content, dict) and "imagePath" in content)


def read_labelme(folder: Folder, files: Sequence[str], ledger: Ledger) -> Contents:
    """Read the files of all images."""
    labels = {}
    for file in files:
        objects, content = _read_objects(folder, file, ledger), folder.json(file)
        note_scores((("score", shape.get("score")) for shape in content["shapes"]), ledger, file)
        flags = content.get("flags")
        if isinstance(flags, dict) and any(flags.values()):
            ledger.note("flags of whole images, which are not used", file)
        stated = str(content.get("imagePath") or "")
        size = read_size(content.get("imageWidth"), content.get("imageHeight"))
        labels[file] = Labels(objects, size, stated)
    inside = [f for f in files if folder.json(f).get("imageData") and not _is_there(folder, f)]
    if len(inside) > len(files) / 2:
        raise UserError(
            f"{len(inside)} of {len(files)} LabelMe files contain their image only inside "
            f"(imageData), for example {folder.path(inside[0])}; save the images as files beside "
            "them, as labelme_export_json does."
        )
    for file in inside:
        ledger.note("images that exist only inside of their LabelMe files (imageData)", file)
    records = match_labels(folder, ledger, labels)
    splits = read_split_lists(folder, ledger, {record.image for record in records})
    return build_contents(folder, ledger, records, splits=splits)


LABELME = Format("LabelMe", find_labelme, read_labelme)


def _is_there(folder: Folder, file: str) -> bool:
    stated = os.path.basename(str(folder.json(file).get("imagePath") or "").replace("\\", "/"))
    stems = folder.names.plain_stem
    return bool(stems.find(get_stem(file)) or stems.find(get_stem(stated)))


def _read_objects(folder: Folder, file: str, ledger: Ledger) -> List[Object]:
    """Return the objects of a file: one for each shape with an area, or for each group of them."""
    shapes = folder.json(file).get("shapes")
    path = folder.path(file)
    if not isinstance(shapes, list) or not all(isinstance(s, dict) for s in shapes):
        raise UserError(f"{path} is not a LabelMe file (it has no list of shapes); save it again.")
    groups: Dict[Any, List[Object]] = {}
    for i, shape in enumerate(shapes):
        kind = shape.get("shape_type")
        if kind not in AREAS:
            ledger.skip(f"shapes of the type {kind}", file)
            continue
        label = read_label(shape.get("label"), f"{path}:")
        if label in ("__ignore__", "_background_"):
            ledger.skip(f"shapes labelled {label}", file)
            continue
        group = shape.get("group_id")
        key = i if group in NO_GROUP else (label, str(group))
        groups.setdefault(key, []).append(
            Object(label, _read_box(shape, path), **_read_marks(shape, file, ledger))
        )
    joined = sum(len(group) - 1 for group in groups.values())
    ledger.skip("further shapes of a group, which is one object", file, joined)
    return [
        Object(
            group[0].label,
            _around([o.box for o in group]),
            any(o.crowd for o in group),
            any(o.difficult for o in group),
        )
        for group in groups.values()
    ]


def _read_marks(shape: Dict, file: str, ledger: Ledger) -> Dict[str, bool]:
    """Return the marks of a shape: X-AnyLabeling writes some beside LabelMe's flags."""
    stated: List[Tuple[Any, Any]] = [("difficult", shape.get("difficult"))]
    for key in ("flags", "attributes"):
        flags = shape.get(key)
        if isinstance(flags, list):
            flags = {str(name): True for name in flags}
        stated += flags.items() if isinstance(flags, dict) else ()
    return read_marks(stated, ledger, file)


def _read_box(shape: Dict, path: str) -> Tuple[float, float, float, float]:
    points, kind = shape.get("points"), shape.get("shape_type")
    if not isinstance(points, list) or len(points) < 2 or not all(_is_point(p) for p in points):
        raise UserError(
            f"{path} has a shape without points (x, y): {str(points)[:60]}; draw it again."
        )
    numbers = [read_numbers(point, path) for point in points]
    if kind == "circle":  # its centre, and a point on it
        (x, y), edge = numbers[:2]
        radius = math.dist((x, y), edge)
        return x - radius, y - radius, x + radius, y + radius
    box = _around([(x, y, x, y) for x, y in numbers])
    # The last row and column of a mask are within it.
    return (*box[:2], box[2] + 1, box[3] + 1) if kind == "mask" else box


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2


def _around(boxes: Sequence[Sequence[float]]) -> Tuple[float, float, float, float]:
    x1, y1, x2, y2 = zip(*boxes)
    return min(x1), min(y1), max(x2), max(y2)
