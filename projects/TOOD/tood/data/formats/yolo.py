"""YOLO: a text file of labels per image, and a ``data.yaml`` or ``classes.txt``."""

import os
from typing import Dict, List, Optional, Tuple

import yaml

from tood.data.formats.folder import PARTS, Folder, Lists, Part, check_lonely, part_of
from tood.data.formats.labels import Read, converted, objects_of, supervision_formats, text_of
from tood.utils.errors import UserError

SPLITS = ("train", "val", "valid", "test")  # keys of a data.yaml


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
            names = [line.strip() for line in text_of(folder.path(file)).splitlines()]
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
        content = yaml.safe_load(text_of(folder.path(file)))
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
            lines = [line.strip() for line in text_of(folder.path(path)).splitlines()]
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
                found = converted(
                    folder.path(label_file),
                    lambda lines=lines, size=size: library.yolo_annotations_to_detections(
                        lines, size, with_masks=False
                    ),
                )
                objects = objects_of(found, list(range(len(names))), folder.path(label_file), names)
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
    lines = [line for line in text_of(path).splitlines() if line.strip()]
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
