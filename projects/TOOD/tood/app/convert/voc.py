"""Pascal VOC: an XML file per image."""

import os
import re
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from tood.app.convert.build import (
    Contents,
    Format,
    Labels,
    Object,
    build_contents,
    match_labels,
    read_numbers,
    text_of_label,
)
from tood.app.convert.folder import SPLITS, Folder, match_names, stem_of
from tood.app.convert.ledger import LIST, Ledger
from tood.utils.errors import UserError, reason_of

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OFFICIAL = re.compile(r"VOC\s?20\d\d")  # Pascal's own database, which has some fractions
_FLAGGED = re.compile(r"(.*\S)\s+-?[01]")  # a line of a list with a flag


class Label(NamedTuple):
    """Content of a file, pixels as they are written."""

    stated: str  # name of the image
    size: Optional[Tuple[int, int]]
    objects: List[Object]
    num_without_box: int
    is_official: bool


def find_voc(folder: Folder) -> List[str]:
    """Return the XML files of annotations."""
    pattern = re.compile(rb"<annotation[\s>]")
    return [f for f in folder.with_suffix(".xml") if pattern.search(folder.bytes(f)[:4096])]


def read_voc(folder: Folder, files: Sequence[str], ledger: Ledger) -> Contents:
    """Read the files of all images, in splits by ``ImageSets/Main`` or by folders."""
    labels = {file: _parse(folder, file) for file in files}
    first = _first_pixel(labels, ledger)
    found = {}
    for file, label in labels.items():
        ledger.skip("without an upright box", file, label.num_without_box)
        if any(o.difficult for o in label.objects):
            ledger.note("files with difficult objects, which are ignored", file)
        objects = [
            o._replace(box=(o.box[0] - first, o.box[1] - first, *o.box[2:])) for o in label.objects
        ]
        found[file] = Labels(objects, label.size, label.stated)
    records = match_labels(folder, ledger, found)
    return build_contents(folder, ledger, records, splits=_image_sets(folder, ledger))


VOC = Format("Pascal VOC", find_voc, read_voc)


def parse_xml(folder: Folder, file: str) -> Element:
    """Return the root of an XML file, without following entities."""
    try:
        return fromstring(folder.bytes(file))
    except (ParseError, ValueError, DefusedXmlException) as error:
        raise UserError(
            f"{folder.path(file)} is not XML ({reason_of(error)}); export it again."
        ) from error


def _parse(folder: Folder, file: str) -> Label:
    root = parse_xml(folder, file)
    objects, without = [], 0
    for element in root.findall("object"):
        box = element.find("bndbox")
        where = f"{folder.path(file)}:"
        if box is None:
            without += 1
            continue
        corners = read_numbers([box.findtext(key) for key in CORNERS], where)
        label = text_of_label(element.findtext("name"), where)
        difficult = (element.findtext("difficult") or "0").strip() in ("1", "true")
        objects.append(Object(label, tuple(corners), difficult=difficult))
    database = root.findtext("source/database") or ""
    name = (root.findtext("filename") or "").strip()
    return Label(name, _size_of(root), objects, without, bool(_OFFICIAL.search(database)))


def _size_of(root: Element) -> Optional[Tuple[int, int]]:
    try:
        size = int(float(root.findtext("size/width"))), int(float(root.findtext("size/height")))
    except (TypeError, ValueError):
        return None
    return size if all(size) else None


def _first_pixel(labels: Dict[str, Label], ledger: Ledger) -> int:
    """Return the number of the first pixel: 1 in Pascal's format, but 0 from programs that write
    a 0 or fractions.
    """
    for file, label in labels.items():
        for _, box, *_ in label.objects:
            is_fraction = any(x != int(x) for x in box) and not label.is_official
            if min(box[:2]) < 1 or is_fraction:
                ledger.note("boxes count pixels from 0, as a 0 or a fraction shows", file)
                return 0
    return 1


def _image_sets(folder: Folder, ledger: Ledger) -> Optional[Dict[str, List[str]]]:
    """Return the images of the splits that lists name, or None without lists."""
    roots: Dict[str, Dict[str, str]] = {}
    for file in folder.with_suffix(".txt"):
        match = re.fullmatch(r"(?:(.+)/)?ImageSets(/Main)?/([^/]+)\.txt", file, re.IGNORECASE)
        if match:
            ledger.enter(file, LIST)
            if match.group(3).lower() in SPLITS:
                roots.setdefault(match.group(1) or "", {})[match.group(3).lower()] = file
    splits: Dict[str, List[str]] = {}
    for root, files in roots.items():
        lists = {name: _listed(folder, ledger, root, file) for name, file in files.items()}
        both = lists.pop("trainval", None)
        if both is not None and ("train" not in lists or "val" not in lists):
            rest = set(lists.get("train", ())) | set(lists.get("val", ()))
            missing = "val" if "train" in lists else "train"
            lists[missing] = [image for image in both if image not in rest]
        for name, images in lists.items():
            splits.setdefault(SPLITS[name], []).extend(images)
    if not splits:
        return None
    used = {image for images in splits.values() for image in images}
    ledger.ignore([i for i in folder.images if i not in used], "in no list of images")
    return {split: list(dict.fromkeys(images)) for split, images in splits.items() if images}


def _listed(folder: Folder, ledger: Ledger, root: str, file: str) -> List[str]:
    names, known = [], folder.names
    for line in folder.lines(file):
        flagged = _FLAGGED.fullmatch(line)
        is_name = os.path.basename(line) in known.stem or stem_of(line) in known.stem
        names.append(flagged.group(1) if flagged and not is_name else line)
    names = list(dict.fromkeys(names))
    near = [os.path.join(root, place) for place in ("JPEGImages", "images", "")]
    found = match_names(folder, ledger, names, [n.rstrip("/") for n in near], file)
    return list(dict.fromkeys(found[name] for name in names if name in found))
