"""Pascal VOC: an XML file per image."""

import os
from typing import Dict, List, Optional, Sequence, Tuple
from xml.etree.ElementTree import Element, ParseError

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


def find_voc(folder: Folder) -> List[Part]:
    """Return a part for each of ``ImageSets/Main``, or of the folders that hold XML files."""
    files = [f for f in folder.with_suffix(".xml") if b"<annotation" in start_of(folder.path(f))]
    if not files:
        return []
    sets = {
        f: part_of(os.path.basename(f))
        for f in folder.with_suffix(".txt")
        if os.path.dirname(f).endswith("ImageSets/Main") and "_" not in os.path.basename(f)
    }
    sets = {f: part for f, part in sets.items() if part}
    if sets:
        stems = {os.path.splitext(os.path.basename(f))[0]: f for f in files}
        chosen = {
            (part, f): [stems[s] for s in text_of(folder.path(f)).split() if s in stems]
            for f, part in sets.items()
        }
    else:
        chosen = {}
        for file in files:
            part = part_of(file)
            chosen.setdefault((part, os.path.dirname(file) or "."), []).append(file)
        chosen = _joined(chosen)
    return [
        Part(part, source, _voc_reader(folder, source, xml_files, whole=not sets))
        for (part, source), xml_files in chosen.items()
    ]


def _joined(chosen: Dict[Tuple[str, str], List[str]]) -> Dict[Tuple[str, str], List[str]]:
    """Put the folders of one part together."""
    joined: Dict[str, Tuple[str, List[str]]] = {}
    for (part, source), files in chosen.items():
        first, known = joined.get(part, (source, []))
        joined[part] = (first, known + files)
    return {(part, source): files for part, (source, files) in joined.items()}


def _voc_reader(folder: Folder, source: str, files: Sequence[str], *, whole: bool) -> Read:
    def read() -> Tuple[Dict, List[str]]:
        library = supervision_formats("Pascal VOC")
        lists, lonely, wrong, used = Lists(stated=stated_classes(folder)), [], [], set()
        for file in files:
            root = _xml(folder.path(file))
            image = _image_of_xml(folder, file, root)
            if image is None:
                lonely.append(file)
                continue
            used.add(image)
            size = folder.size_of(image)
            stated = _voc_size(root)
            if stated not in (None, (0, 0), size):
                wrong.append(f"{file} says {stated}, {image} is {size}")
            found, names = converted(
                folder.path(file),
                lambda root=root, size=size: library.detections_from_xml_obj(root, [], size),
            )
            lists.add(image, size, objects_of(found, names, file))
        if wrong:
            raise UserError(
                f"{folder.path(source)}: {len(wrong)} of {len(files)} files state another size "
                f"than their image has, for example {wrong[0]}; use the images that were annotated."
            )
        remarks = check_lonely(source, "files of labels have no image", lonely, len(files))
        if whole:
            remarks += add_unlabelled(folder, source, lists, used)
        return lists.content(), remarks

    return read


def _image_of_xml(folder: Folder, file: str, root: Element) -> Optional[str]:
    stem = os.path.splitext(os.path.basename(file))[0]
    where = os.path.dirname(file)
    near = [where, *(f"{os.path.dirname(where)}/{x}".lstrip("/") for x in ("JPEGImages", "images"))]
    found = folder.find_image(stem, near)
    name = root.findtext("filename")
    return found if found is not None or not name else folder.find_image(name.strip(), near)


def _voc_size(root: Element) -> Optional[Tuple[int, int]]:
    try:
        return int(root.findtext("size/width")), int(root.findtext("size/height"))
    except (TypeError, ValueError):
        return None


def _xml(path: str) -> Element:
    try:
        from defusedxml.ElementTree import parse  # as supervision does: no entities
    except ImportError:
        from xml.etree.ElementTree import parse
    try:
        return parse(path).getroot()
    except (ParseError, ValueError) as error:
        raise UserError(f"{path} is not XML ({reason_of(error)}); export it again.") from error
