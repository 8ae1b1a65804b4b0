"""LabelMe: a JSON file per image."""

import json
import os
import re
from typing import Dict, List, Sequence, Tuple

from tood.data.formats.folder import Folder, Lists, Part, check_lonely, part_of, stated_classes
from tood.data.formats.labels import (
    Read,
    add_unlabelled,
    converted,
    objects_of,
    start_of,
    supervision_formats,
    text_of,
)
from tood.utils.errors import UserError, reason_of

KEY = re.compile(rb'"(shapes|imagePath)"\s*:')  # of LabelMe's files


def find_labelme(folder: Folder) -> List[Part]:
    """Return a part for each of the parts whose folders hold LabelMe's JSON files."""
    by_part: Dict[str, List[str]] = {}
    for file in folder.with_suffix(".json"):
        # The image itself may stand between the shapes and the rest.
        ends = start_of(folder.path(file)) + _end(folder.path(file))
        if KEY.search(ends):
            by_part.setdefault(part_of(file), []).append(file)
    return [
        Part(part, os.path.dirname(files[0]) or ".", _labelme_reader(folder, files))
        for part, files in by_part.items()
    ]


def _labelme_reader(folder: Folder, files: Sequence[str]) -> Read:
    def read() -> Tuple[Dict, List[str]]:
        library = supervision_formats("LabelMe")
        lists, lonely, skipped, used = Lists(stated=stated_classes(folder)), [], 0, set()
        for file in files:
            content = _labelme_json(folder.path(file))
            name, where = str(content.get("imagePath", "")), os.path.dirname(file)
            image = folder.find_image(name, [where])
            stem = os.path.splitext(os.path.basename(file))[0]
            image = image or folder.find_image(stem, [where])
            if image is None:
                lonely.append(file)
                continue
            used.add(image)
            shapes = [s for s in content["shapes"] if isinstance(s, dict)]
            boxes = [s for s in shapes if s.get("shape_type") in library.SUPPORTED_SHAPE_TYPES]
            skipped += len(content["shapes"]) - len(boxes)
            labels = sorted({str(s.get("label")) for s in boxes})
            size = folder.size_of(image)
            found = converted(
                folder.path(file),
                lambda boxes=boxes, labels=labels, size=size: library.labelme_shapes_to_detections(
                    boxes, {label: i for i, label in enumerate(labels)}, size, with_masks=False
                ),
            )
            lists.add(image, size, objects_of(found, labels, file))
        source = os.path.dirname(files[0]) or "."
        remarks = check_lonely(source, "files of labels have no image", lonely, len(files))
        if skipped:
            remarks.append(f"left out {skipped} shapes that are neither rectangles nor polygons")
        return lists.content(), remarks + add_unlabelled(folder, source, lists, used)

    return read


def _labelme_json(path: str) -> Dict:
    try:
        content = json.loads(text_of(path))
        if isinstance(content.get("shapes"), list):
            return content
        reason = "it has no list of shapes"
    except (ValueError, AttributeError, RecursionError) as error:
        reason = reason_of(error)
    raise UserError(f"{path} is not a LabelMe file ({reason}); save it again.")


def _end(path: str) -> bytes:
    with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - 4096))
        return f.read()
