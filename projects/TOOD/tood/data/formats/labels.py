"""Parts shared by YOLO, Pascal VOC and LabelMe: a file of labels per image, read by supervision."""

import os
from typing import Any, Callable, Dict, List, Sequence, Tuple

from tood.data.formats.folder import Folder, Lists, check_lonely
from tood.utils.errors import UserError, reason_of

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


def add_unlabelled(folder: Folder, source: str, lists: Lists, used) -> List[str]:
    """Add the images beside the labelled ones that have no file of labels, as negatives."""
    folders = {os.path.dirname(image) for image in used}
    lonely = [i for i in folder.images if os.path.dirname(i) in folders and i not in used]
    total = len(used) + len(lonely)
    remarks = check_lonely(source, "images have no file of labels", lonely, total)
    for image in lonely:
        lists.add(image, folder.size_of(image), ())
    return remarks


def objects_of(
    found, names: Sequence, file: str, shown: Sequence = ()
) -> List[Tuple[Any, Sequence]]:
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


def converted(path: str, convert: Callable):
    """Call ``convert``, and name the file in the error where supervision fails."""
    try:
        return convert()
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); fix it.") from error


def start_of(path: str) -> bytes:
    """Return the first 4096 bytes of a file."""
    with open(path, "rb") as f:
        return f.read(4096)


def text_of(path: str) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            return f.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8; save it as UTF-8.") from error
