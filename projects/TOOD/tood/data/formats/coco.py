"""COCO's format as programs export it: of COCO itself, Roboflow, CVAT, Label Studio."""

import json
import os
import re
from typing import Dict, List, Optional, Tuple

from tood.data.formats.folder import Folder, Part, part_of

LISTS = ("images", "categories")
SHAPES = re.compile(rb'"shapes"\s*:')  # a LabelMe file


def find_coco(folder: Folder) -> List[Part]:
    """Return a part for each file in COCO's instances format."""
    parts = []
    for file in folder.with_suffix(".json"):
        content = _content_of(folder, file)
        if content is not None:
            parts.append(Part(part_of(file), file, _reader(folder, file, content)))
    return parts


def _content_of(folder: Folder, file: str) -> Optional[Dict]:
    path = folder.path(file)
    with open(path, "rb") as f:
        start = f.read(1 << 16)
    # Files of other kinds are not read to their ends: there may be one for each image.
    if SHAPES.search(start) or not start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{"):
        return None
    try:
        with open(path, encoding="utf-8-sig") as f:
            content = json.load(f)
    except (ValueError, RecursionError):
        return None
    return content if all(isinstance(content.get(name), list) for name in LISTS) else None


def _reader(folder: Folder, file: str, content: Dict):
    def read() -> Tuple[Dict, List[str]]:
        remarks = []
        lists = {
            name: content[name]
            for name in ("images", "categories", "annotations")
            if name in content
        }
        root = unused_root(lists)
        if root is not None:
            lists["categories"] = [c for c in lists["categories"] if c is not root]
            remarks.append(f"left out the class {root['name']!r}, which only groups the others")
        lists["images"], moved = _located(folder, file, lists["images"])
        if moved:
            remarks.append(
                f"found {len(moved)} images by their names alone, for example {moved[0]}"
            )
        return lists, remarks

    return read


def unused_root(lists: Dict) -> Optional[Dict]:
    """Return the category that Roboflow puts before the others: without objects, and the
    supercategory of all of them; or None.
    """
    categories = lists["categories"]
    if len(categories) < 2 or not all(isinstance(c, dict) for c in categories):
        return None
    used = {a.get("category_id") for a in lists.get("annotations", ()) if isinstance(a, dict)}
    for root in categories:
        others = [c for c in categories if c is not root]
        groups = {c.get("supercategory") for c in others}
        if root.get("id") not in used and groups == {root.get("name")} != {None}:
            return root
    return None


def _located(folder: Folder, file: str, images: List) -> Tuple[List, List[str]]:
    """Return the images with the names of files that are there, and the names that were found only
    by their last part; those that are not found stay, for the check of the data to tell.
    """
    where = os.path.dirname(file)
    part = part_of(file)
    near = [where, os.path.dirname(where)]
    near += [
        f"{base}{images}{part_name}"
        for base in ("", f"{where}/" if where else "")
        for images in ("images/", "")
        for part_name in _folders_of(folder, part)
    ]
    near = list(dict.fromkeys(near))
    located, moved = [], []
    for image in images:
        name = image.get("file_name") if isinstance(image, dict) else None
        found = folder.find_image(name, near) if isinstance(name, str) else None
        if found is None:
            located.append(image)
            continue
        if not any(os.path.normpath(os.path.join(n, name)) == found for n in (*near, "images")):
            moved.append(f"{name} -> {found}")
        located.append({**image, "file_name": found})
    return located, moved


def _folders_of(folder: Folder, part: str) -> List[str]:
    """Return the names of folders of images that may be those of a part."""
    names = {step for image in folder.images for step in image.split("/")[:-1]}
    return sorted(n for n in names if part_of(f"{n}/x") == part or n == "default")
