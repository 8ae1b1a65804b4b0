"""Pascal VOC: an XML file per image."""

import re
from typing import Dict, List, Sequence
from xml.etree.ElementTree import Element

from defusedxml.ElementTree import fromstring

from tood.app.convert.build import Contents, Format, build_contents, match_labels
from tood.app.convert.folder import Folder, decode
from tood.app.convert.ledger import Ledger
from tood.app.convert.objects import (
    Labels,
    Object,
    read_label,
    read_marks,
    read_numbers,
    read_size,
    sort_corners,
)
from tood.app.convert.splits import read_split_lists
from tood.data.annotations import is_wide
from tood.utils.errors import UserError
from tood.utils.reading import MAX_LABEL, guard_reading

BOXLESS = "without an upright box"
_COMMENT = re.compile(r"<!--.*?(-->|\Z)", re.DOTALL)
_ENCODING = re.compile(rb"""<\?xml[^>]*?encoding=["']((?:gb|big5|euc|shift|cp9)[\w-]*)["']""", re.I)
_ELEMENT = re.compile(r"<([A-Za-z_][^\s/>]*)")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Pascal's own files, which have some fractions although they count pixels from 1
_OFFICIAL = re.compile(rb"<database>[^<]*VOC\s?20\d\d")


def find_voc(folder: Folder) -> List[str]:
    """Return the XML files of annotations."""
    return [f for f in folder.with_suffix(".xml") if find_root(folder, f).lower() == "annotation"]


def read_voc(folder: Folder, files: Sequence[str], ledger: Ledger) -> Contents:
    """Read the files of all images, in splits by lists or by folders."""
    labels = {file: _parse(folder, file, ledger) for file in files}
    if ledger.examples.get(BOXLESS) and not any(label.objects for label in labels.values()):
        raise UserError(
            f"{folder.path(ledger.examples[BOXLESS])} has objects without a bndbox, as all other "
            "files: Pascal VOC's boxes are needed; export them again as boxes."
        )
    first = _first_pixel(folder, labels, ledger)
    for file, label in labels.items():
        objects = [
            o._replace(box=(o.box[0] - first, o.box[1] - first, *o.box[2:])) for o in label.objects
        ]
        labels[file] = label._replace(objects=objects)
    records = match_labels(folder, ledger, labels)
    splits = read_split_lists(folder, ledger, {record.image for record in records})
    return build_contents(folder, ledger, records, splits=splits)


VOC = Format("Pascal VOC", find_voc, read_voc)


def find_root(folder: Folder, file: str) -> str:
    """Return the name of the first element of an XML file, or ""."""
    for read in (folder.head, folder.read):
        text = decode(read(file), folder.path(file), "replace")
        found = _ELEMENT.search(_COMMENT.sub("", text))
        if found or "<!--" not in text:  # a comment may be longer than the head
            break
    return found.group(1) if found else ""


def parse_xml(folder: Folder, file: str, limit: int = MAX_LABEL) -> Element:
    """Return the root of an XML file, without following entities."""
    data = folder.bytes(file, limit)
    stated = _ENCODING.match(data)
    with guard_reading(folder.path(file), "export it again as XML in UTF-8, without entities"):
        if stated and not is_wide(data):  # Python's parser lacks those of several bytes
            return fromstring(data.decode(stated.group(1).decode()))
        return fromstring(data)


def _parse(folder: Folder, file: str, ledger: Ledger) -> Labels:
    """Return the content of a file, pixels as they are written."""
    root, objects, where = parse_xml(folder, file), [], f"{folder.path(file)}:"
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2].lower()  # without a name space
    for element in root.iter("object"):
        boxes = element.findall("bndbox")  # some programs write several
        if not boxes:
            ledger.skip(BOXLESS, file)
            continue
        label = read_label(element.findtext("name"), where)
        more = (  # as CVAT writes it
            (x.findtext("name"), x.findtext("value"))
            for x in element.iterfind("attributes/attribute")
        )
        marks = read_marks([*((x.tag, x.text) for x in element), *more], ledger, file)
        for box in boxes:
            corners = read_numbers([box.findtext(key) for key in CORNERS], where)
            objects.append(Object(label, sort_corners(corners, ledger, file), **marks))
    size = read_size(root.findtext("size/width"), root.findtext("size/height"))
    return Labels(objects, size, (root.findtext("filename") or "").strip())


def _first_pixel(folder: Folder, labels: Dict[str, Labels], ledger: Ledger) -> int:
    """Return the number of the first pixel: 1 in Pascal's format, but 0 from programs that write
    a 0 or fractions.
    """
    for file, label in labels.items():
        boxes = [o.box for o in label.objects]
        is_fraction = any(x != int(x) for box in boxes for x in box)
        if any(min(box[:2]) < 1 for box in boxes) or (
            is_fraction and not _OFFICIAL.search(folder.bytes(file))
        ):
            ledger.note("boxes count pixels from 0, as a 0 or a fraction shows", file)
            return 0
    return 1
