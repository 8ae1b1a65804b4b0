"""Writes data sets: as COCO files, without copies of the images, or as folders of YOLO, Pascal VOC
or LabelMe, with copies of the images.
"""

import math
import os
import shutil
from collections import Counter, defaultdict
from typing import Callable, Dict, Iterable, List, NamedTuple, Sequence, Tuple, Union
from xml.sax.saxutils import escape

import yaml

from tood.app.convert.door import Converted, Part
from tood.app.convert.folder import relative_path
from tood.app.convert.ledger import LEDGER
from tood.app.convert.names import get_suffix
from tood.app.convert.objects import NOT_CLASSES
from tood.data.annotations import class_names, clean_annotations, has_size
from tood.data.images import IMAGE_SUFFIXES
from tood.utils.errors import UserError
from tood.utils.files import write_json, write_whole

CROWDS = "crowds and objects to ignore, which the format cannot mark"
OUTSIDE = "objects outside of their image"
EMPTY = "objects without width or height"
CUT = "boxes, cut at the edges of their image"
# Names of images that would be taken for lists of classes or of images.
_RESERVED = ("classes", "labels", "labelmap", "train", "val", "test", "trainval", "data", "ledger")

Sized = Tuple[str, Tuple[float, float, float, float], bool]  # class, x1 y1 x2 y2, difficult


class Written(NamedTuple):
    """Files of a written data set."""

    entries: Dict[str, str]  # split -> how to name it: "FILE.json:IMAGES" or "FOLDER:SPLIT"
    files: List[str]  # relative to the output folder
    omitted: Dict[str, int]  # reason -> number of objects
    changed: Dict[str, int] = {}  # what -> number of objects


class _Labelled(NamedTuple):
    """An image to write, with a name that is unique in the data set."""

    split: str
    path: str
    name: str
    size: Tuple[int, int]
    objects: List[Sized]

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]


def write_ledger(converted: Converted, written: Written, output: str) -> None:
    """Write the account of a data set, with the files that were written."""
    content = converted.ledger.as_dict()
    content.update(format=converted.format, written=written.files)
    content.update(omitted=written.omitted, changed=written.changed)
    write_json(content, os.path.join(output, LEDGER))


def write_dataset(parts: Union[Part, Iterable[Part]], to: str, output: str) -> Written:
    """Write splits in a format.

    Args:
        parts: as :func:`tood.app.convert.door.read_data` returns them; detections as annotations
            may have a "score", which COCO's format keeps.
        to: "coco", "yolo", "voc" or "labelme".
        output: folder.

    Raises:
        UserError: for another format, an image that is not there, classes that the format cannot
            tell apart, or a folder that cannot be written to.
    """
    parts = [parts] if isinstance(parts, Part) else list(parts)
    if to not in WRITERS:
        raise UserError(f"{to!r} is not a format to write; use one of {', '.join(WRITERS)}.")
    if to == "coco":
        entries = {part.name: _write_coco(part, output) for part in parts}
        return Written(entries, [f"{name}.json" for name in entries], {})
    omitted: Counter = Counter()
    changed: Counter = Counter()
    names: List[str] = []
    images: List[_Labelled] = []
    taken = set(_RESERVED)
    for part in parts:
        lists = {key: part.content[key] for key in ("images", "categories", "annotations")}
        content = clean_annotations(lists, part.source, part.image_root)
        names += [name for name in class_names(content) if name not in names]
        images += _labelled_images(part, content, to, taken, omitted, changed)
    _check_names(names, to)
    files = WRITERS[to](images, names, output)
    entries = {p.name: output if p.name == "all" else f"{output}:{p.name}" for p in parts}
    return Written(entries, files, dict(omitted), {k: n for k, n in changed.items() if n})


def _check_names(names: Sequence[str], to: str) -> None:
    """Raise UserError for classes that could not be read again."""
    for i, name in enumerate(names):
        is_none = to == "labelme" and name.strip() in NOT_CLASSES
        is_none |= to == "yolo" and name.startswith("# ")  # a comment in classes.txt
        if is_none or not name.strip() or not name.isprintable():
            raise UserError(f"A class is called {name!r}, which {to} cannot keep; rename it.")
        if name.strip() in [x.strip() for x in names[:i]]:
            raise UserError(
                f"Two classes are called {name.strip()!r} but for spaces, which {to} does not "
                "keep; rename one of them."
            )


def _write_coco(part: Part, output: str) -> str:
    # Real paths, because ".." after a link leads elsewhere.
    here, root = os.path.realpath(output), os.path.realpath(part.image_root)
    images = [
        {**i, "file_name": relative_path(os.path.join(root, i["file_name"]), here)}
        for i in part.content["images"]
    ]
    path = os.path.join(output, f"{part.name}.json")
    refuse_other(path)
    write_json({**part.content, "images": images}, path)
    return f"{path}:{output}"


def _labelled_images(
    part: Part, content: Dict, to: str, taken: set, omitted: Counter, changed: Counter
) -> List[_Labelled]:
    """Return the images of a split with the objects that a format can express."""
    names = {c["id"]: c["name"] for c in content["categories"]}
    objects = defaultdict(list)
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        difficult = bool(a["iscrowd"] or a.get("ignore"))
        if difficult and to != "voc":
            omitted[CROWDS] += 1
            continue
        if not has_size(a["bbox"]):  # nor would a training use it
            omitted[EMPTY] += 1
            continue
        box = (x, y, x + w, y + h)
        objects[a["image_id"]].append((names[a["category_id"]], box, difficult))
    images = []
    for image in content["images"]:
        size, kept = (image["width"], image["height"]), []
        for name, box, difficult in objects[image["id"]]:
            within = _within(box, size) if to != "labelme" else box
            if within is None:
                omitted[OUTSIDE] += 1
                continue
            changed[CUT] += within != box
            kept.append((name, within, difficult))
        path = os.path.join(part.image_root, image["file_name"])
        name = _free_name(image["file_name"], taken)
        if name.startswith(".") or not name.isprintable() or get_suffix(name) not in IMAGE_SUFFIXES:
            raise UserError(
                f"The image {path!r} would not be found again in a folder; rename it, with one of "
                f"the endings {', '.join(IMAGE_SUFFIXES)}."
            )
        images.append(_Labelled(part.name, path, name, size, kept))
    return images


def _within(box: Sequence[float], size: Tuple[int, int]):
    """Return the part of a box within its image, or None; programs refuse the rest."""
    (x1, y1, x2, y2), (width, height) = box, size
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return None
    return max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)


def _free_name(file: str, taken: set) -> str:
    """Return a name, without folders, whose stem no other image of the data set has."""
    folder, base = os.path.split(file.replace("\\", "/"))
    stem, suffix = os.path.splitext(base)
    stem = stem.strip()  # lists of names cannot end in spaces
    steps = [x for x in folder.split("/") if x not in ("", ".", "..")]
    candidates = [stem, "_".join([*steps, stem])]
    number = 2
    while candidates[0].casefold() in taken:
        candidates = candidates[1:] or [f"{stem}_{number}"]
        number += 1
    taken.add(candidates[0].casefold())
    return candidates[0] + suffix


def refuse_other(path: str) -> None:
    """Raise UserError for a file that is there, although the earlier data set is not."""
    if os.path.lexists(path):
        raise UserError(
            f"{path} already exists, and is not of the data set that is replaced; move it away, or "
            "name another --output."
        )


def _copy(image: _Labelled, output: str, place: str) -> str:
    """Copy an image to a folder of the output; return its path relative to the output."""
    file = f"{place}/{image.name}".lstrip("/")
    target = os.path.join(output, file)
    refuse_other(target)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(image.path, target)
    except OSError as error:
        raise UserError(
            f"The image {image.path} cannot be copied to {target} ({error.strerror}); check both."
        ) from error
    return file


def _write_text(output: str, file: str, text: str) -> str:
    path = os.path.join(output, file)
    refuse_other(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_whole(path, text.encode())
    return file


def _write_yolo(images: Sequence[_Labelled], names: Sequence[str], output: str) -> List[str]:
    """Write ``images``, ``labels``, and a ``data.yaml``, or ``classes.txt`` without splits."""
    files = []
    for image in images:
        place = "" if image.split == "all" else f"/{image.split}"
        files.append(_copy(image, output, f"images{place}"))
        w, h = image.size
        lines = [
            f"{names.index(name)} {(x1 + x2) / 2 / w:.8f} {(y1 + y2) / 2 / h:.8f} "
            f"{(x2 - x1) / w:.8f} {(y2 - y1) / h:.8f}\n"
            for name, (x1, y1, x2, y2), _ in image.objects
        ]
        files.append(_write_text(output, f"labels{place}/{image.stem}.txt", "".join(lines)))
    splits = dict.fromkeys(image.split for image in images)
    if "all" in splits:
        return [*files, _write_text(output, "classes.txt", "".join(f"{n}\n" for n in names))]
    content = {split: f"images/{split}" for split in splits}
    content.update(nc=len(names), names=dict(enumerate(names)))
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    return [*files, _write_text(output, "data.yaml", text)]


def _write_voc(images: Sequence[_Labelled], names: Sequence[str], output: str) -> List[str]:
    """Write ``JPEGImages``, ``Annotations`` and, with splits, ``ImageSets/Main``."""
    files, splits = [], defaultdict(list)
    for image in images:
        files.append(_copy(image, output, "JPEGImages"))
        splits[image.split].append(image.stem)
        files.append(_write_text(output, f"Annotations/{image.stem}.xml", _voc_text(image)))
    for split, stems in splits.items():
        if split != "all":
            text = "".join(f"{stem}\n" for stem in stems)
            files.append(_write_text(output, f"ImageSets/Main/{split}.txt", text))
    return [*files, _write_text(output, "classes.txt", "".join(f"{n}\n" for n in names))]


def _voc_text(image: _Labelled) -> str:
    width, height = image.size
    text = f"<filename>{escape(image.name)}</filename><size><width>{width}</width>"
    text += f"<height>{height}</height><depth>3</depth></size>"
    for name, (x1, y1, x2, y2), difficult in image.objects:
        # Whole pixels, counted from 1; the last is within the box.
        x1, y1 = (min(math.floor(x + 0.5), n - 1) + 1 for x, n in ((x1, width), (y1, height)))
        x2, y2 = max(math.floor(x2 + 0.5), x1), max(math.floor(y2 + 0.5), y1)
        text += f"<object><name>{escape(name)}</name><difficult>{int(difficult)}</difficult>"
        text += f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        text += "</bndbox></object>"
    return f"<annotation>{text}</annotation>"


def _write_labelme(images: Sequence[_Labelled], names: Sequence[str], output: str) -> List[str]:
    """Write a JSON file beside each image, in a folder for each split."""
    files, rectangle = [], {"group_id": None, "shape_type": "rectangle", "flags": {}}
    for image in images:
        place = "" if image.split == "all" else image.split
        files.append(_copy(image, output, place))
        shapes = [
            {"label": name, "points": [[x1, y1], [x2, y2]], **rectangle}
            for name, (x1, y1, x2, y2), _ in image.objects
        ]
        width, height = image.size
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image.name}
        content.update(imageData=None, imageHeight=height, imageWidth=width)
        files.append(f"{place}/{image.stem}.json".lstrip("/"))
        refuse_other(os.path.join(output, files[-1]))
        write_json(content, os.path.join(output, files[-1]))
    return [*files, _write_text(output, "labels.txt", "".join(f"{n}\n" for n in names))]


WRITERS: Dict[str, Callable] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "voc": _write_voc,
    "labelme": _write_labelme,
}
