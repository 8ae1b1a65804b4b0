"""Annotation files in COCO's instances format, read into a clean form: all that a detector of boxes
needs, and nothing else. Training, checks and evaluation all see this form, and so the same objects.

What is optional is filled in (areas, crowds, sizes of images), what is of no use for boxes
(segmentations, keypoints) is left out however it looks, and what cannot be told is refused.
"""

import itertools
import json
import math
import os
from collections import Counter, defaultdict
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

from tood.data.images import IMAGE_ERRORS, probe_image
from tood.utils.errors import UserError, reason_of

LISTS = ("images", "categories", "annotations")
# Larger ones are not told apart where pycocotools turns them into floating point numbers.
LARGEST_ID = 2**53
NEW_ID = "\uffff"  # begins the ids, in texts, of added categories, which are the last ones


class DataSet(NamedTuple):
    """A data set in memory, read once by whoever names it in ``DATASETS``."""

    entry: str  # its name there
    content: Dict  # as read_annotations returns it
    image_root: str
    images_checked: bool = False  # its files were opened and compared with the others' before


class _Missing:
    def __repr__(self):
        return "missing"


_MISSING = _Missing()


def read_annotations(json_file: str, image_root: str = "", *, to_train: bool) -> Dict:
    """
    Args:
        json_file: path.
        image_root: folder of the images, for sizes that the file lacks and for names with
            backslashes.
        to_train: whether it must hold annotations. Test sets of a benchmark have none.

    Returns:
        "images", "categories" and, unless the file has none, "annotations": lists of records that
        have all they need, annotations "id" (any), "image_id", "category_id", "bbox", "area",
        "iscrowd" (0 or 1) and, if an object is marked so, "ignore": 1; then "iscrowd" is 1, too,
        because such objects are treated like crowds. "repairs": for each thing that was filled in,
        an example for each record. Whether values fit together is for :mod:`tood.data.check` to
        say.

    Raises:
        UserError: for a file that cannot be read, or is not in this format.
    """
    return clean_content(_read_json(json_file), json_file, image_root, to_train=to_train)


def clean_content(content, json_file: str, image_root: str = "", *, to_train: bool) -> Dict:
    """Return the clean form of the content of a file; as in :func:`read_annotations`."""
    content = content if isinstance(content, dict) else {}
    names = LISTS if to_train or "annotations" in content else LISTS[:2]
    if not all(isinstance(content.get(name), list) for name in names):
        raise UserError(
            f"{json_file} is not in COCO's instances format: it must hold the lists images, "
            "annotations, categories."
        )
    return clean_annotations({name: content[name] for name in names}, json_file, image_root)


def clean_annotations(content: Dict, json_file: str, image_root: str = "") -> Dict:
    """Return the clean form of lists of records; as in :func:`read_annotations`."""
    for name in LISTS[:2]:
        if not content[name]:
            raise UserError(f"{json_file} lists no {name}; the data set is empty.")
    repairs = defaultdict(list)
    cleaners: Dict[str, Callable] = {
        "images": lambda record, get: _clean_image(record, get, image_root, repairs),
        "categories": lambda record, get: {"name": get("name", str)},
        "annotations": lambda record, get: _clean_annotation(record, get, repairs),
    }
    clean = {}
    for name, records in content.items():
        seen, clean[name] = set(), []
        for i, record in enumerate(records):
            get = _Getter(record, f"{json_file}: entry {i} of its {name}")
            own = {"id": get.id("id", default=None if name == "annotations" else _MISSING)}
            own.update(cleaners[name](record, get))
            if own["id"] in seen and own["id"] is not None:
                raise UserError(f"{json_file} has two {name} with the id {own['id']}.")
            seen.add(own["id"])
            clean[name].append(own)
        _refuse_mixed_ids(seen, name, json_file)
    return {**clean, "repairs": dict(repairs)}


def to_records(content: Dict, image_root: str, classes: Dict) -> List[Dict]:
    """
    Convert a checked data set to Detectron2's format, in the order of the images' ids; boxes
    without width or height are left out.

    Args:
        content: as :func:`read_annotations` returns it.
        classes: category id -> class, as :func:`contiguous_ids` returns them.
    """
    # Here, for reading annotations needs no PyTorch, which takes seconds to import.
    from detectron2.structures import BoxMode

    objects = defaultdict(list)
    for a in content.get("annotations", ()):
        if has_size(a["bbox"]):
            objects[a["image_id"]].append(
                {
                    "iscrowd": a["iscrowd"],
                    "bbox": a["bbox"],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": classes[a["category_id"]],
                }
            )
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": objects[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


def class_names(content: Dict) -> List[str]:
    """Return the names of the classes in the order of their ids."""
    return [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]


def count_objects(content: Dict) -> Dict[str, int]:
    """Return the number of annotations of each class, by its name, in the order of the ids."""
    counts = Counter(a["category_id"] for a in content.get("annotations", ()))
    categories = sorted(content["categories"], key=lambda c: c["id"])
    return {c["name"]: counts[c["id"]] for c in categories}


def contiguous_ids(content: Dict, names: Optional[Sequence[str]] = None) -> Dict:
    """Map the ids of the categories to classes 0, 1, ...: in their order, or by their names.

    Args:
        names: of the classes. Those that no category has get ids of their own.
    """
    ids = [c["id"] for c in sorted(content["categories"], key=lambda c: c["id"])]
    own = class_names(content)
    if names is None or list(names) == own:
        return {id: i for i, id in enumerate(ids)}
    mapping = {id: names.index(name) for id, name in zip(ids, own)}
    free = (
        (f"{NEW_ID}{i}" for i in itertools.count())
        if isinstance(ids[0], str)
        else itertools.count(max(ids) + 1)
    )
    return {**mapping, **{next(free): i for i, name in enumerate(names) if name not in own}}


def has_size(bbox) -> bool:
    """Return whether a COCO box [x, y, width, height] has a width and a height."""
    return bbox[2] > 0 and bbox[3] > 0


def is_box(bbox) -> bool:
    """Return whether something is a COCO box: four numbers, finite and not absurdly large."""
    return (
        isinstance(bbox, list)
        and len(bbox) == 4
        and all(type(x) in (int, float) and abs(x) < 1e9 for x in bbox)
    )


def _read_json(json_file: str):
    try:
        with open(json_file, "rb") as f:
            data = f.read()
        if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data[:8]:
            raise UserError(f"The annotation file {json_file} is in UTF-16; save it as UTF-8.")
        return json.loads(data.decode("utf-8-sig"))  # with or without a byte order mark
    except OSError as error:
        raise UserError(
            f"The annotation file {json_file} cannot be read ({error.strerror}); check its name."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"The annotation file {json_file} is not in UTF-8 (byte {error.start} is "
            f"0x{error.object[error.start]:02x}); save it as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"The annotation file {json_file} is not JSON ({error}); export it again."
        ) from error


class _Getter:
    """Values of a record, or a UserError that names it."""

    def __init__(self, record, name: str):
        self.record, self.name = record, name

    def __call__(self, key: str, kind: type):
        value = self.raw(key)
        if type(value) is not kind:
            self.refuse(key, kind.__name__, value)
        return value

    def raw(self, key: str):
        return self.record.get(key, _MISSING) if isinstance(self.record, dict) else self.record

    def id(self, key: str, default=_MISSING):
        """Return an integer or a text; JSON's true is neither."""
        value = self.raw(key)
        if isinstance(self.record, dict) and value in (_MISSING, None) and default is None:
            return None
        if type(value) is float and value.is_integer():
            value = int(value)
        if not isinstance(self.record, dict) or type(value) not in (int, str):
            self.refuse(key, "int", value)
        if type(value) is int and abs(value) > LARGEST_ID:
            self.refuse(key, f"int up to {LARGEST_ID}", value)
        return value

    def refuse(self, key: str, kind: str, value):
        raise UserError(f"{self.name} needs a {key!r} of type {kind}; it is {value!r:.80}.")


def _clean_image(record, get: _Getter, image_root: str, repairs: Dict) -> Dict:
    name = get("file_name", str)
    path, slashed = os.path.join(image_root, name), name.replace("\\", "/")
    if slashed != name and not os.path.isfile(path):
        slashed_path = os.path.join(image_root, slashed)
        if os.path.isfile(slashed_path):
            repairs["file names whose backslashes are read as /"].append(name)
            name, path = slashed, slashed_path
    width, height = record.get("width"), record.get("height")
    if not (_is_size(width) and _is_size(height)):
        width, height = _size_of(path, get)
        repairs["images whose size was taken from their file"].append(name)
    return {"file_name": name, "width": int(width), "height": int(height)}


def _is_size(x) -> bool:
    return type(x) in (int, float) and 0 < x < 1e9 and x == int(x)


def _size_of(path: str, get: _Getter):
    try:
        return probe_image(path)
    except IMAGE_ERRORS as error:
        raise UserError(
            f"{get.name} has no width and height in pixels, and {path} cannot be read "
            f"({reason_of(error)}); name the folder of the images: FILE.json:FOLDER."
        ) from error


def _clean_annotation(record, get: _Getter, repairs: Dict) -> Dict:
    bbox, ids = get("bbox", list), {key: get.id(key) for key in ("image_id", "category_id")}
    example = f"annotation {record.get('id', '')}".strip()
    area = record.get("area")
    if type(area) not in (int, float) or not 0 < area < math.inf:
        area = float(bbox[2] * bbox[3]) if is_box(bbox) else 0.0
        repairs["areas that are missing or 0: width times height"].append(example)
    iscrowd, ignore = _read_mark(get, "iscrowd"), _read_mark(get, "ignore")
    clean = {**ids, "bbox": bbox, "area": area, "iscrowd": int(iscrowd or ignore)}
    return {**clean, "ignore": 1} if ignore else clean


def _read_mark(get: _Getter, key: str) -> bool:
    value = get.record.get(key) or 0
    if value in ("0", "1"):
        value = int(value)
    if type(value) not in (int, bool, float):
        get.refuse(key, "int", value)
    return bool(value)


def _refuse_mixed_ids(ids, records: str, json_file: str) -> None:
    kinds = {type(id) for id in ids if id is not None}
    if len(kinds) > 1 and records != "annotations":
        raise UserError(
            f"{json_file}: some ids of its {records} are numbers and some are texts; write all of "
            "them in one way."
        )
