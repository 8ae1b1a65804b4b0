"""YOLO, Pascal VOC and LabelMe: a file of labels for each image, each read by ``supervision``."""

import json
import os
import re
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple
from xml.etree.ElementTree import Element, ParseError

import yaml

from tood.data.formats.folder import (
    PARTS,
    Folder,
    Lists,
    Part,
    check_lonely,
    part_of,
    stated_classes,
)
from tood.utils.errors import UserError, reason_of

SPLITS = ("train", "val", "valid", "test")  # keys of a data.yaml
# Of LabelMe's files.
LABELME_KEY = re.compile(rb'"(shapes|imagePath)"\s*:')
Read = Callable[[], Tuple[Dict, List[str]]]


def supervision_formats(kind: str):
    """Import the library's readers.

    Raises:
        UserError: where it is not installed.
    """
    try:
        from supervision.dataset.formats import labelme, pascal_voc, yolo
    except ImportError as error:
        raise UserError(
            f"Data in {kind} format need the package supervision (Python 3.10 or newer): pip "
            "install 'supervision>=0.31', or export the data as COCO JSON."
        ) from error
    return {"YOLO": yolo, "Pascal VOC": pascal_voc, "LabelMe": labelme}[kind]


# YOLO


def find_yolo(folder: Folder) -> List[Part]:
    """Return the parts that a ``data.yaml`` names, or the files beside a ``classes.txt``."""
    for file in folder.with_suffix(".yaml", ".yml"):
        content = _yolo_yaml(folder, file)
        if content is not None:
            return _parts_of_yaml(folder, file, content)
    labels = set(folder.with_suffix(".txt"))
    if not any(x in labels for image in folder.images for x in _label_files(image)):
        return []
    for file in sorted(labels):
        if os.path.basename(file) in ("classes.txt", "obj.names"):
            names = [line.strip() for line in _text(folder.path(file)).splitlines()]
            names = [name for name in names if name]
            by_part: Dict[str, List[str]] = {}
            for image in folder.images:
                by_part.setdefault(part_of(image), []).append(image)
            return [
                Part(name, file, _yolo_reader(folder, file, names, images))
                for name, images in by_part.items()
            ]
    return []


def _yolo_yaml(folder: Folder, file: str) -> Optional[Dict]:
    try:
        content = yaml.safe_load(_text(folder.path(file)))
    except yaml.YAMLError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("names"), (list, dict)):
        return None
    return content if any(content.get(key) for key in SPLITS) else None


def _parts_of_yaml(folder: Folder, file: str, content: Dict) -> List[Part]:
    names = _yolo_names(folder.path(file), content["names"])
    parts = []
    for key in SPLITS:
        if content.get(key):
            images = _yolo_images(folder, file, content, key)
            read = _yolo_reader(folder, file, names, images, _values_of_pose(content))
            parts.append(Part(PARTS[key], file, read))
    return parts


def _yolo_names(path: str, names) -> List[str]:
    if isinstance(names, dict):
        if not all(str(key).isdigit() for key in names):
            raise UserError(f"{path}: the keys of names must be numbers; count the classes from 0.")
        names = {int(key): name for key, name in names.items()}
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{path}: the keys of names must be 0 to {len(names) - 1}; count them.")
        names = [names[i] for i in range(len(names))]
    if not names:
        raise UserError(f"{path} names no classes; fill its names.")
    return [str(name) for name in names]


def _values_of_pose(content: Dict) -> int:
    shape = content.get("kpt_shape")
    return shape[0] * shape[1] if isinstance(shape, list) and len(shape) == 2 else 0


def _yolo_images(folder: Folder, file: str, content: Dict, key: str) -> List[str]:
    """Return the images of a part, relative to the folder's root."""
    bases = [os.path.dirname(file)]
    if isinstance(content.get("path"), str):
        bases.insert(0, os.path.join(bases[0], content["path"]))
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    images: List[str] = []
    for entry in entries:
        entry = str(entry).replace("\\", "/")
        # Roboflow's paths begin one folder too high.
        tried = [os.path.join(b, e) for b in bases for e in (entry, entry.lstrip("./"))]
        path = next((p for p in tried if os.path.exists(folder.path(p))), None)
        if path is None:
            raise UserError(
                f"{folder.path(file)}: its {key}, {entry}, is not there; correct the path, or "
                "leave the key out."
            )
        path = os.path.normpath(path).replace(os.sep, "/")
        if os.path.isdir(folder.path(path)):
            prefix = "" if path == "." else f"{path}/"
            images += [image for image in folder.images if image.startswith(prefix)]
        else:  # a list of images
            lines = [line.strip() for line in _text(folder.path(path)).splitlines()]
            found = [folder.find_image(line, [os.path.dirname(path)]) for line in lines if line]
            images += [image for image in found if image is not None]
    return images


def _yolo_reader(
    folder: Folder, file: str, names: List[str], images: List[str], values_of_pose: int = 0
) -> Read:
    def read() -> Tuple[Dict, List[str]]:
        library = supervision_formats("YOLO")
        labels = {f for f in folder.with_suffix(".txt") if os.path.basename(f) != "classes.txt"}
        lists, lonely, used = Lists(names), [], set()
        for image in images:
            size = folder.size_of(image)
            label_file = next((x for x in _label_files(image) if x in labels), None)
            lonely += [image] if label_file is None else []
            used.add(label_file)
            objects = []
            if label_file is not None:
                lines = _yolo_lines(folder.path(label_file), values_of_pose)
                found = _converted(
                    folder.path(label_file),
                    lambda lines=lines, size=size: library.yolo_annotations_to_detections(
                        lines, size, with_masks=False
                    ),
                )
                objects = _objects(found, list(range(len(names))), folder.path(label_file), names)
            lists.add(image, size, objects)
        if not images:
            raise UserError(f"{folder.path(file)} names no images; correct its paths.")
        remarks = check_lonely(file, "images have no file of labels", lonely, len(images))
        return lists.content(), remarks + _unused_labels(folder, file, images, labels - used)

    return read


def _label_files(image: str) -> List[str]:
    """Return where the labels of an image may be: beside it, or in "labels" for "images"."""
    stem = os.path.splitext(image)[0]
    steps = stem.split("/")
    paths = []
    for i in reversed(range(len(steps) - 1)):
        if steps[i].lower() in ("images", "jpegimages", "imgs"):
            paths.append("/".join([*steps[:i], "labels", *steps[i + 1 :]]))
    return [f"{path}.txt" for path in (*paths, stem, f"labels/{steps[-1]}")]


def _yolo_lines(path: str, values_of_pose: int) -> List[str]:
    lines = [line for line in _text(path).splitlines() if line.strip()]
    if values_of_pose:
        lines = [
            " ".join(line.split()[:5]) if len(line.split()) == 5 + values_of_pose else line
            for line in lines
        ]
    return lines


def _unused_labels(folder: Folder, file: str, images: List[str], labels) -> List[str]:
    """Remark on labels beside these images that belong to none of them."""
    folders = {os.path.dirname(x) for image in images for x in _label_files(image)[:1]}
    lonely = sorted(x for x in labels if os.path.dirname(x) in folders)
    total = len(images) + len(lonely)
    return check_lonely(file, "files of labels have no image", lonely, total)


# Pascal VOC


def find_voc(folder: Folder) -> List[Part]:
    """Return a part for each of ``ImageSets/Main``, or of the folders that hold XML files."""
    files = [f for f in folder.with_suffix(".xml") if b"<annotation" in _start(folder.path(f))]
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
            (part, f): [stems[s] for s in _text(folder.path(f)).split() if s in stems]
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
            found, names = _converted(
                folder.path(file),
                lambda root=root, size=size: library.detections_from_xml_obj(root, [], size),
            )
            lists.add(image, size, _objects(found, names, file))
        if wrong:
            raise UserError(
                f"{folder.path(source)}: {len(wrong)} of {len(files)} files state another size "
                f"than their image has, for example {wrong[0]}; use the images that were annotated."
            )
        remarks = check_lonely(source, "files of labels have no image", lonely, len(files))
        if whole:
            remarks += _add_unlabelled(folder, source, lists, used)
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


def _add_unlabelled(folder: Folder, source: str, lists: Lists, used) -> List[str]:
    """Add the images beside the labelled ones that have no file of labels, as negatives."""
    folders = {os.path.dirname(image) for image in used}
    lonely = [i for i in folder.images if os.path.dirname(i) in folders and i not in used]
    total = len(used) + len(lonely)
    remarks = check_lonely(source, "images have no file of labels", lonely, total)
    for image in lonely:
        lists.add(image, folder.size_of(image), ())
    return remarks


# LabelMe


def find_labelme(folder: Folder) -> List[Part]:
    """Return a part for each of the parts whose folders hold LabelMe's JSON files."""
    by_part: Dict[str, List[str]] = {}
    for file in folder.with_suffix(".json"):
        # The image itself may stand between the shapes and the rest.
        ends = _start(folder.path(file)) + _end(folder.path(file))
        if LABELME_KEY.search(ends):
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
            found = _converted(
                folder.path(file),
                lambda boxes=boxes, labels=labels, size=size: library.labelme_shapes_to_detections(
                    boxes, {label: i for i, label in enumerate(labels)}, size, with_masks=False
                ),
            )
            lists.add(image, size, _objects(found, labels, file))
        source = os.path.dirname(files[0]) or "."
        remarks = check_lonely(source, "files of labels have no image", lonely, len(files))
        if skipped:
            remarks.append(f"left out {skipped} shapes that are neither rectangles nor polygons")
        return lists.content(), remarks + _add_unlabelled(folder, source, lists, used)

    return read


def _labelme_json(path: str) -> Dict:
    try:
        content = json.loads(_text(path))
        if isinstance(content.get("shapes"), list):
            return content
        reason = "it has no list of shapes"
    except (ValueError, AttributeError, RecursionError) as error:
        reason = reason_of(error)
    raise UserError(f"{path} is not a LabelMe file ({reason}); save it again.")


# All of them


def _objects(found, names: Sequence, file: str, shown: Sequence = ()) -> List[Tuple[Any, Sequence]]:
    """Return (class, xyxy) of each of supervision's detections."""
    if not len(found):
        return []
    labels = found.class_id.tolist()
    beyond = [label for label in labels if not 0 <= label < len(names)]
    if beyond:
        raise UserError(
            f"{file} has the class {beyond[0]}, but there are {len(names)} classes, counted from 0 "
            f"({', '.join(map(str, shown or names))[:80]}); name all of them."
        )
    return [(names[label], box) for label, box in zip(labels, found.xyxy.tolist())]


def _converted(path: str, convert: Callable):
    try:
        return convert()
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); mend it.") from error


def _xml(path: str) -> Element:
    try:
        from defusedxml.ElementTree import parse  # as supervision does: no entities
    except ImportError:
        from xml.etree.ElementTree import parse
    try:
        return parse(path).getroot()
    except (ParseError, ValueError) as error:
        raise UserError(f"{path} is not XML ({reason_of(error)}); export it again.") from error


def _start(path: str) -> bytes:
    with open(path, "rb") as f:
        return f.read(4096)


def _end(path: str) -> bytes:
    with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - 4096))
        return f.read()


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as f:
            return f.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8; save it as UTF-8.") from error
