"""Images that a folder has twice, folders of several divisions, and files of several pages."""

import collections
import contextlib
import os
from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from tood.app.convert.build import Contents
from tood.app.convert.folder import Folder
from tood.app.convert.ledger import IGNORED, LABELS, Ledger
from tood.app.convert.names import get_suffix
from tood.data.check import MAX_IMAGES_LOOKED_AT, SHARED
from tood.data.copies import find_copies
from tood.data.images import IMAGE_ERRORS, PAGED_SUFFIXES, probe_pages
from tood.utils.errors import UserError

AGAIN = "an image that another folder has as well, with the same labels"


class _Image(NamedTuple):
    """An image of a split, and its objects as they can be compared."""

    split: str
    file: str
    objects: Tuple


def look_at_images(folder: Folder, ledger: Ledger, contents: Contents, *, omit: bool) -> None:
    """Account for images that are in files of several pages, or copies of others.

    Args:
        omit: take images out of the contents that lie in another folder once more, by the same
            name and with the same objects, as of a data set that was unpacked twice. If not, more
            images than ``tood check`` opens are not read.

    Raises:
        UserError: for folders of several divisions of the same images.
    """
    images = [x for split, content in contents.items() for x in _list_images(split, content)]
    if len(images) > MAX_IMAGES_LOOKED_AT and not omit:
        return
    for file in dict.fromkeys(image.file for image in images):
        if get_suffix(file) in PAGED_SUFFIXES:
            with contextlib.suppress(*IMAGE_ERRORS):
                if probe_pages(folder.path(file)) > 1:
                    ledger.note(
                        "images of several pages or frames, the first of which is used", file
                    )
    groups: Dict[int, List[_Image]] = collections.defaultdict(list)
    with contextlib.suppress(OSError):
        copies = find_copies([folder.path(image.file) for image in images])
        for image, first in zip(images, copies):
            groups[first].append(image)
    found = [group for group in groups.values() if len(group) > 1]
    _refuse_divisions(folder, images, found)
    again = set()
    for group in found:
        again.update(_note_copies(ledger, group, omit))
    _take_out(ledger, contents, again)


def _list_images(split: str, content: Dict) -> List[_Image]:
    """Return the images of COCO's lists, which may be broken."""
    objects = collections.defaultdict(list)
    names = {
        repr(c.get("id")): str(c.get("name")) for c in content["categories"] if isinstance(c, dict)
    }
    for a in (a for a in content["annotations"] if isinstance(a, dict)):
        label = names.get(repr(a.get("category_id")), "")
        marks = (a.get("iscrowd", 0), a.get("difficult", 0))
        objects[repr(a.get("image_id"))].append(repr((label, a.get("bbox"), marks)))
    return [
        _Image(split, str(x.get("file_name")), tuple(sorted(objects[repr(x.get("id"))])))
        for x in content["images"]
        if isinstance(x, dict)
    ]


def _refuse_divisions(
    folder: Folder, images: Sequence[_Image], found: Sequence[Sequence[_Image]]
) -> None:
    """Raise UserError if most images that are not trained on are in the training images of another
    folder by the same name, each of which has several splits, as folders of folds are.
    """
    parts = collections.defaultdict(set)  # folder -> splits of the images in it
    for image in images:
        steps = image.file.split("/")
        for i in range(1, len(steps)):
            parts["/".join(steps[:i])].add(image.split)
    homes: Dict[str, Tuple[str, str]] = {}
    for group in found:
        trained = {x.file for x in group if x.split == "train"}
        for image in (x for x in group if x.split != "train"):
            for other in trained:
                pair = _find_siblings(image.file, other)
                if pair and all({"train", image.split} <= parts[home] for home in pair):
                    homes.setdefault(image.file, pair)
    others = {image.file for image in images if image.split != "train"}
    if homes and len(homes) > len(others) / 2:
        a, b = sorted(next(iter(homes.values())))
        raise UserError(
            f"{folder.path(a)} and {folder.path(b)} are several divisions of the same images into "
            "splits; name one of them."
        )


def _find_siblings(file: str, other: str) -> Optional[Tuple[str, str]]:
    """Return the first different folders of two files of one name in the same folder."""
    a, b = file.split("/"), other.split("/")
    i = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), len(a))
    if a[-1] != b[-1] or i >= min(len(a), len(b)) - 1:
        return None
    return "/".join(a[: i + 1]), "/".join(b[: i + 1])


def _note_copies(ledger: Ledger, group: Sequence[_Image], omit: bool) -> List[Tuple[str, str]]:
    """Note images of the same bytes; return the (split, file) of those to take out."""
    again, kept = [], {}
    is_trained = any(image.split == "train" for image in group)
    for image in sorted(group, key=lambda x: (x.split, x.file.count("/"), x.file)):
        if image.split != "train" and is_trained:
            ledger.note(SHARED, image.file)
        other = kept.setdefault(image.split, image)
        if other.file == image.file:
            continue
        if other.objects != image.objects:
            ledger.note("images that are copies of others, with other labels", image.file)
        elif omit and os.path.basename(other.file) == os.path.basename(image.file):
            again.append((image.split, image.file))
        else:
            ledger.note("images that are copies of others by another name, all kept", image.file)
    return again


def _take_out(ledger: Ledger, contents: Contents, again: Set[Tuple[str, str]]) -> None:
    """Take images out of contents, with their objects, and out of the account."""
    if not again:
        return
    for split, content in contents.items():
        files = {file for home, file in again if home == split}
        ids = {x["id"]: x["file_name"] for x in content["images"] if x["file_name"] in files}
        dropped = [a for a in content["annotations"] if a["image_id"] in ids] if ids else []
        for annotation in dropped:
            ledger.objects_out -= 1
            ledger.drop(f"of {AGAIN}", ids[annotation["image_id"]])
        if ids:
            content["images"] = [x for x in content["images"] if x["id"] not in ids]
            kept = [a for a in content["annotations"] if a["image_id"] not in ids]
            content["annotations"] = kept
    used = {str(x["file_name"]) for content in contents.values() for x in content["images"]}
    gone = {file for _, file in again} - used
    for file, (role, detail) in ledger.files.items():
        if file in gone or (role == LABELS and detail in gone):
            ledger.files[file] = (IGNORED, AGAIN if file in gone else f"labels of {AGAIN}")
