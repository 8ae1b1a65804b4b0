"""Annotation files in COCO's instances format, read into a clean form: all that a detector of boxes
needs, and nothing else. Training, checks and evaluation all see this form, and so the same objects.

Optional values are filled in (areas, crowds, sizes of images), what is of no use for boxes
(segmentations, keypoints) is ignored, and anything else that is missing is refused.
"""

import json
import os
from collections import Counter, defaultdict
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from tood.data.images import IMAGE_ERRORS, probe_image
from tood.utils.errors import UserError, format_reason
from tood.utils.reading import (
    MAX_TEXT,
    compose,
    guard_nesting,
    guard_reading,
    make_dict,
    read_regular,
)

LISTS = ("images", "categories", "annotations")
# pycocotools converts ids to floating point numbers, which cannot distinguish larger ones.
LARGEST_ID = 2**53
MOST_NAMES = 8  # in a sentence
NEW_ID = "\uffff"  # begins the ids, in texts, of added categories, which are the last ones


class DataSet(NamedTuple):
    """A data set in memory, read once, by the code that adds it to ``DATASETS``."""

    entry: str  # its name there
    content: Dict  # as read_annotations returns it
    image_root: str
    images_checked: bool = False  # its files were opened and compared with the others' before


def read_annotations(json_file: str, image_root: str = "", *, to_train: bool) -> Dict:
    """Read a file in COCO's format.

    Args:
        json_file: path.
        image_root: folder of the images, for sizes that the file lacks and for names with
            backslashes.
        to_train: whether it must contain annotations. Test sets of a benchmark have none.

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
    content = parse_json(read_regular(json_file, MAX_TEXT), json_file)
    with guard_nesting(json_file):
        return clean_content(content, json_file, image_root, to_train=to_train)


def clean_content(content, json_file: str, image_root: str = "", *, to_train: bool) -> Dict:
    """Return the clean form of the content of a file; as in :func:`read_annotations`."""
    content = content if isinstance(content, dict) else {}
    names = LISTS if to_train or "annotations" in content else LISTS[:2]
    if not all(isinstance(content.get(name), list) for name in names):
        raise UserError(
            f"{json_file} is not in COCO's instances format: it must contain the lists images, "
            "annotations, categories."
        )
    clean = clean_annotations({name: content[name] for name in names}, json_file, image_root)
    united, ids = unite_images(clean, image_root)
    if united:
        clean["repairs"]["images that are listed twice, united"] = united
        _drop_repeated(clean, ids)
    return clean


def unite_images(content: Dict, image_root: str) -> Tuple[List[str], Set]:
    """Give all objects of an image that several records name to the first of these records, because
    the objects of one would be background in the other.

    Args:
        content: lists of records, which may be of any type; "images" and "annotations" are
            replaced.
        image_root: folder of the images, in which names may be links.

    Returns:
        file names of the removed records, and ids of those that have their objects now.
    """
    first: Dict[str, Dict] = {}
    names, ids, kept, resolve = [], {}, [], _Resolver(image_root)
    for image in content["images"]:
        name = image.get("file_name") if isinstance(image, dict) else None
        known = first.setdefault(resolve(name), image) if isinstance(name, str) else image
        if known is image or known.get("id") == image.get("id"):  # one id is refused by others
            kept.append(image)
        else:
            names.append(image["file_name"])
            ids[repr(image.get("id"))] = known.get("id")
    content["images"] = kept
    if ids and "annotations" in content:
        content["annotations"] = [
            {**a, "image_id": ids[key]} if (key := _find_image_id(a)) in ids else a
            for a in content["annotations"]
        ]
    return names, {repr(id) for id in ids.values()}


def _find_image_id(annotation) -> str:
    """Return an id, of any type, in a form that can be looked up; "" for another record."""
    return repr(annotation.get("image_id")) if isinstance(annotation, dict) else ""


def _drop_repeated(clean: Dict, image_ids: Set) -> None:
    """Keep one of the objects of the same class and box that records of one image list."""
    seen, kept = set(), []
    for a in clean.get("annotations", ()):
        key = (a["image_id"], a["category_id"], repr(a["bbox"]))
        if repr(a["image_id"]) in image_ids and key in seen:
            what = "objects that such images list twice, kept once"
            clean["repairs"].setdefault(what, []).append(f"annotation {a['id']}")
            continue
        seen.add(key)
        kept.append(a)
    if "annotations" in clean:
        clean["annotations"] = kept


class _Resolver:
    """Finds the file that a name means, after links; each folder is resolved once."""

    def __init__(self, root: str):
        self.root = root
        self.real: Dict[str, str] = {}  # folder -> its real path

    def __call__(self, name: str) -> str:
        folder, base = os.path.split(os.path.join(self.root, name))
        try:
            if folder not in self.real:
                self.real[folder] = os.path.realpath(folder)
            path = os.path.normpath(os.path.join(self.real[folder], base))
            return os.path.realpath(path) if os.path.islink(path) else path
        except ValueError:  # a name with a null byte, which no file has
            return name


def clean_annotations(content: Dict, json_file: str, image_root: str = "") -> Dict:
    """Return the clean form of lists of records; as in :func:`read_annotations`."""
    for name in LISTS[:2]:
        if not content[name]:
            raise UserError(f"{json_file} lists no {name}; the data set is empty.")
    repairs: Dict[str, List[str]] = defaultdict(list)
    cleaners: Dict[str, Callable] = {
        "images": lambda record, get: _clean_image(record, get, image_root, repairs),
        "categories": lambda record, get: {"name": compose(get.text("name"))},
        "annotations": lambda record, get: _clean_annotation(record, get, repairs),
    }
    clean: Dict[str, List[Dict]] = {}
    for name, records in content.items():
        seen, clean[name] = set(), []
        for i, record in enumerate(records):
            get = _Getter(record, f"{json_file}: entry {i} of its {name}")
            own = {"id": get.id("id", optional=name == "annotations")}
            own.update(cleaners[name](record, get))
            if own["id"] in seen and own["id"] is not None:
                raise UserError(f"{json_file} has two {name} with the id {own['id']}.")
            seen.add(own["id"])
            clean[name].append(own)
        if name != "annotations" and len({type(id) for id in seen}) > 1:
            raise UserError(
                f"{json_file}: some ids of its {name} are numbers and some are texts; write all of "
                "them in one way."
            )
    return {**clean, "repairs": dict(repairs)}


def to_records(content: Dict, image_root: str, classes: Dict) -> List[Dict]:
    """
    Convert a checked data set to Detectron2's format, in the order of the images' ids; boxes
    without width or height are omitted.

    Args:
        content: as :func:`read_annotations` returns it.
        classes: category id -> class, as :func:`contiguous_ids` returns them.
    """
    # Here, because reading annotations needs no PyTorch, which takes seconds to import.
    from detectron2.structures import BoxMode

    objects = defaultdict(list)
    for a in content.get("annotations", ()):
        if has_size(a["bbox"]):
            objects[a["image_id"]].append(
                {
                    "iscrowd": a["iscrowd"],
                    # Detectron2 rounds integers down to pixels of the network.
                    "bbox": [float(x) for x in a["bbox"]],
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


def join_names(names: Sequence[str]) -> str:
    """Return names for a sentence, the first ones of many."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def count_objects(content: Dict) -> Dict[str, int]:
    """Return the number of annotations of each class, by its name, in the order of the ids."""
    counts = Counter(a["category_id"] for a in content.get("annotations", ()))
    categories = sorted(content["categories"], key=lambda c: c["id"])
    return {c["name"]: counts[c["id"]] for c in categories}


def contiguous_ids(content: Dict, names: Optional[Sequence[str]] = None) -> Dict:
    """Map the ids of the categories to classes 0, 1, ...: in their order, or by their names.

    Args:
        names: names of the classes. Those that no category has get new ids.
    """
    ids = sorted(c["id"] for c in content["categories"])
    own = class_names(content)
    if names is None or list(names) == own:
        return {id: i for i, id in enumerate(ids)}
    lacking = [name for name in names if name not in own]
    for i in range(len(lacking)):
        ids.append(f"{NEW_ID}{i}" if isinstance(ids[0], str) else ids[-1] + 1)
    return {id: names.index(name) for id, name in zip(ids, [*own, *lacking])}


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


def parse_json(data: bytes, path: str):
    """Return the content of a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: for everything else, and for an object that has the same key twice.
    """
    if is_wide(data):
        raise UserError(f"The annotation file {path} is in UTF-16; save it as UTF-8.")
    with guard_reading(f"The annotation file {path}", "export it again as JSON in UTF-8"):
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=make_dict)


def is_wide(data: bytes) -> bool:
    """Return whether a file seems to be a text in UTF-16."""
    return data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data[:8]


class _Getter:
    """Values of a record, or a UserError that names it."""

    def __init__(self, record, name: str):
        self.record, self.name = record, name
        self.values = record if isinstance(record, dict) else {}

    def __call__(self, key: str, kind: type):
        value = self.values.get(key)
        if type(value) is not kind:
            self.refuse(key, kind.__name__)
        return value

    def text(self, key: str) -> str:
        """Return a text that can be written to a file, or be the name of one."""
        value = self(key, str)
        if "\0" in value or value.encode(errors="ignore").decode() != value:
            raise UserError(f"{self.name} has the {key} {value!r:.80}, which is not Unicode text.")
        return value

    def id(self, key: str, optional: bool = False):
        """Return an integer or a text; JSON's true is neither."""
        value = self.values.get(key)
        if optional and value is None:
            return None
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) not in (int, str):
            self.refuse(key, "int")
        if type(value) is int and abs(value) > LARGEST_ID:
            self.refuse(key, f"int up to {LARGEST_ID}")
        return self.text(key) if type(value) is str else value

    def refuse(self, key: str, kind: str):
        found = "missing" if isinstance(self.record, dict) else f"{self.record!r:.80}"
        if key in self.values:
            found = f"{self.values[key]!r:.80}"
        raise UserError(f"{self.name} needs a {key!r} of type {kind}; it is {found}.")


def _clean_image(record, get: _Getter, image_root: str, repairs: Dict) -> Dict:
    name = get("file_name", str)
    if "\0" in name:
        get.refuse("file_name", "str without null bytes")
    path, slashed = os.path.join(image_root, name), name.replace("\\", "/")
    if slashed != name and not os.path.isfile(path):
        slashed_path = os.path.join(image_root, slashed)
        if os.path.isfile(slashed_path):
            repairs["file names whose backslashes are read as /"].append(name)
            name, path = slashed, slashed_path
    sizes = record.get("width"), record.get("height")
    if not all(is_size(x) for x in sizes):
        repairs["images whose size was taken from their file"].append(name)
        try:
            sizes = probe_image(path)
        except IMAGE_ERRORS as error:
            raise UserError(
                f"{get.name} has no width and height in pixels, and {path} cannot be read "
                f"({format_reason(error)}); name the folder of the images: FILE.json:FOLDER."
            ) from error
    return {"file_name": name, "width": int(sizes[0]), "height": int(sizes[1])}


def is_size(value) -> bool:
    """Return whether something is a number of pixels."""
    return type(value) in (int, float) and 0 < value < 1e9 and value == int(value)


def _clean_annotation(record, get: _Getter, repairs: Dict) -> Dict:
    bbox, ids = get("bbox", list), {key: get.id(key) for key in ("image_id", "category_id")}
    example = f"annotation {record.get('id', '')}".strip()
    area = record.get("area")
    if type(area) not in (int, float) or not 0 < area < 1e18:
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
        get.refuse(key, "int")
    return bool(value)
