"""Annotation files in COCO's instances format: read, or refused with what is wrong in them."""

import json
from typing import Dict

from tood.utils.errors import UserError

_INTEGER, _TEXT, _NUMBER = (int,), (str,), (int, float)
# What the records must hold, for Detectron2 and for pycocotools.
_KEYS = {
    "images": {"id": _INTEGER, "file_name": _TEXT, "width": _NUMBER, "height": _NUMBER},
    "categories": {"id": _INTEGER, "name": _TEXT},
    "annotations": {"id": _INTEGER, "image_id": _INTEGER, "category_id": _INTEGER, "bbox": (list,)},
}
_KEYS_TO_EVALUATE = {"area": _NUMBER, "iscrowd": _INTEGER}


class _Missing:
    def __repr__(self):
        return "missing"


_MISSING = _Missing()


def read_annotations(json_file: str, *, to_test: bool) -> Dict:
    """
    Args:
        json_file: path.
        to_test: whether it is going to be evaluated on, which asks for more than training does.

    Returns:
        its content, with "images", "categories" and "annotations" whose records have all they
        need. Whether their values fit together is for :mod:`tood.data.check` to say.

    Raises:
        UserError: for a file that cannot be read, or is not in this format.
    """
    content = _read_json(json_file)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in _KEYS):
        raise UserError(
            f"{json_file} is not in COCO's instances format: it must hold the lists images, "
            "annotations, categories."
        )
    for records, keys in _KEYS.items():
        if records == "annotations" and to_test:
            keys = {**keys, **_KEYS_TO_EVALUATE}
        _check_records(content[records], records, keys, json_file)
    return content


def has_size(bbox) -> bool:
    """Return whether a COCO box [x, y, width, height] has a width and a height."""
    return bbox[2] > 0 and bbox[3] > 0


def _read_json(json_file: str):
    try:
        with open(json_file, encoding="utf-8") as f:
            return json.load(f)
    except OSError as error:
        raise UserError(
            f"The annotation file {json_file} cannot be read ({error.strerror})."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"The annotation file {json_file} is not JSON ({error}).") from error


def _check_records(content, records: str, keys: Dict, json_file: str) -> None:
    """Raise UserError for a record that lacks something or repeats an id."""
    if not content and records != "annotations":
        raise UserError(f"{json_file} lists no {records}; the data set is empty.")
    seen = set()
    for i, record in enumerate(content):
        for key, types in keys.items():
            value = record.get(key, _MISSING) if isinstance(record, dict) else record
            # JSON's true is a number in Python, and none here.
            if not isinstance(record, dict) or type(value) not in types:
                raise UserError(
                    f"{json_file}: entry {i} of its {records} needs a {key!r} of type "
                    f"{types[-1].__name__}; it is {value!r:.80}."
                )
        if record["id"] in seen:
            raise UserError(f"{json_file} has two {records} with the id {record['id']}.")
        seen.add(record["id"])
