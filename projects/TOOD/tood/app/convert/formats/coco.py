"""COCO's format as programs export it: of COCO itself, Roboflow, CVAT, Label Studio."""

import os
from typing import Dict, List, Optional, Sequence, Set, Tuple

from tood.app.convert.build import DUPLICATE, Contents, Format, enter_image, note_other_split
from tood.app.convert.folder import Folder
from tood.app.convert.ledger import LABELS, Ledger
from tood.app.convert.matching import check_beside, list_places, match_names
from tood.app.convert.names import find_area, folder_splits, get_stem, read_split
from tood.app.convert.objects import (
    YES,
    Object,
    check_outside,
    hashable,
    is_mark,
    note_scores,
)
from tood.app.convert.splits import check_splits, find_split
from tood.data.annotations import is_box, is_size, unite_images
from tood.utils.errors import UserError
from tood.utils.reading import compose

DETECTIONS = {"contributor": "tood predict"}  # in "info" of a file of detections
LISTS = ("images", "categories", "annotations")
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "jpegimages"}
# Beside instances_NAME.json, COCO has these files of the same images.
OTHER_TASKS = ("person_keypoints_", "captions_", "stuff_", "panoptic_", "image_info_")


def find_coco(folder: Folder) -> List[str]:
    """Return the files in COCO's instances format."""
    files = [f for f in folder.with_suffix(".json") if _is_coco(folder.json(f))]
    for file in files:
        if is_detections(folder.json(file)):
            folder.ignored[file] = "detections by tood predict, not data"
    files = [f for f in files if f not in folder.ignored]
    bases = {os.path.basename(f) for f in files}
    return [f for f in files if not any(_is_other_task(f, task, bases) for task in OTHER_TASKS)]


def _is_coco(content) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(x), list) for x in LISTS[:2])


def is_detections(content) -> bool:
    """Return whether ``tood predict --json`` wrote a file, which is read only if it is named."""
    info = content.get("info") if isinstance(content, dict) else None
    return isinstance(info, dict) and DETECTIONS.items() <= info.items()


def _is_other_task(file: str, task: str, bases) -> bool:
    base = os.path.basename(file)
    return base.startswith(task) and f"instances_{base[len(task) :]}" in bases


def read_coco(folder: Folder, files: Sequence[str], ledger: Ledger) -> Contents:
    """Read each file as a split, or the splits that its images state. Records are unchanged, except
    for the names of images and classes, and missing sizes;
    :func:`tood.data.annotations.clean_annotations` checks and repairs them.
    """
    labelled = [f for f in files if isinstance(folder.json(f).get("annotations"), list)]
    ledger.ignore(sorted(set(files) - set(labelled)), "it has no annotations")
    splits = find_split(folder, labelled or files[:1])  # in the order of the files
    contents: Contents = {}
    for file, split in splits.items():
        content = _read_file(folder, file, ledger, split)
        others = {*splits.values(), *contents} - {split}
        contents.update(_divide(content, folder.path(file), split, others, ledger))
    for split, content in contents.items():
        for image in _named(content):
            enter_image(ledger, image, split)
    ledger.ignore(folder.images, "not listed by a COCO file")
    return contents


COCO = Format("COCO", find_coco, read_coco)


def read_coco_file(folder: Folder, file: str, ledger: Ledger) -> Contents:
    """Read a file whose images are relative to the folder, which is searched only for images that
    are not at their places.
    """
    content = _read_file(folder, file, ledger, "all", root="")
    for image in _named(content):
        enter_image(ledger, image, "all")
    stated = [i.get("split") for i in content["images"] if isinstance(i, dict)]
    if len({read_split(text) for text in stated if isinstance(text, str)} - {""}) > 1:
        ledger.note("splits that images state divide nothing in a file that is named", file)
    return {"all": content}


def _named(content: Dict) -> List[str]:
    """Return the names of images."""
    images = [image for image in content["images"] if isinstance(image, dict)]
    return [str(image.get("file_name")) for image in images]  # others are refused by the check


def _divide(content: Dict, path: str, split: str, others: Set[str], ledger: Ledger) -> Contents:
    """Return the content of a file, divided if its images state their splits and all have separate
    ids; the check of the data refuses others.

    Args:
        others: the splits that other files contain.

    Raises:
        UserError: if some images state none, or one that another file contains.
    """
    images, objects = content["images"], content["annotations"]
    named = split if split != "all" else ""  # of images that state nothing
    if not any(isinstance(image, dict) and image.get("split") for image in images):
        return {split: content}
    if not all(isinstance(x, dict) for x in (*images, *objects)) or not _have_ids(images, objects):
        return {split: content}
    wheres = {str(i.get("split") or ""): f"{path}: {i.get('file_name')}" for i in images[::-1]}
    check_splits({text: where for text, where in wheres.items() if text or not named}, ledger)
    if not any(map(read_split, wheres)):
        return {split: content}
    owns = [read_split(str(image.get("split") or "")) or named for image in images]
    wrong = next((i for i, own in zip(images, owns) if own in others), None)
    if wrong is not None:
        raise UserError(
            f"{path}: {wrong.get('file_name')} has {wrong['split']!r} as its split, but its file "
            f"is that of {named!r}, and another one has such images; correct one of them, or leave "
            "one file in the folder."
        )
    if named and {*owns} != {named}:
        ledger.note("images in a file of another split than they state, which applies", path)
    parts: Contents = {own: {**content, "images": [], "annotations": []} for own in owns}
    homes = {}
    for image, own in zip(images, owns):
        parts[own]["images"].append(image)
        homes[hashable(image["id"])] = own
        note_other_split(own, str(image.get("file_name")), ledger)
    for annotation in objects:  # one of no image is refused with the others
        own = homes.get(hashable(annotation.get("image_id")), owns[0])
        parts[own]["annotations"].append(annotation)
    return parts


def _have_ids(images: List[Dict], objects: List[Dict]) -> bool:
    """Return whether each image has a separate id, all numbers or all texts, and each annotation
    that has one.
    """
    ids = [hashable(x.get("id")) for x in images]
    others = [hashable(x["id"]) for x in objects if x.get("id") is not None]
    is_one_kind = len({isinstance(x, str) for x in ids}) < 2
    return None not in ids and is_one_kind and all(len(set(x)) == len(x) for x in (ids, others))


def _compose_name(category):
    name = category.get("name") if isinstance(category, dict) else None
    return {**category, "name": compose(name)} if isinstance(name, str) else category


def _name_image(image):
    """Return an image with the name at the end of its address, if it has that alone, as LVIS's."""
    if not isinstance(image, dict) or "file_name" in image:
        return image
    address = image.get("coco_url")
    is_there = isinstance(address, str) and "/" in address
    return {**image, "file_name": "/".join(address.split("/")[-2:])} if is_there else image


def _check_stated(images: List, folder: Folder, path: str) -> List:
    """Return the images, those that a file lists twice with the split that one of them states.

    Raises:
        UserError: if they state two.
    """
    stated: Dict[str, str] = {}
    pairs = []
    for image in images if any(isinstance(i, dict) and i.get("split") for i in images) else ():
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            real, text = os.path.realpath(folder.path(image["file_name"])), image.get("split")
            own = read_split(str(text or ""))
            if own and stated.setdefault(real, own) != own:
                raise UserError(
                    f"{path} puts {image['file_name']} into {stated[real]} and into {own}; correct "
                    "one of them."
                )
            pairs.append((image, real))
    added = {
        id(i): {**i, "split": stated[x]} for i, x in pairs if x in stated if not i.get("split")
    }
    return [added.get(id(image), image) for image in images]


def _read_file(
    folder: Folder, file: str, ledger: Ledger, split: str, root: Optional[str] = None
) -> Dict:
    content = folder.json(file)
    if not _is_coco(content) or not isinstance(content.get("annotations"), list):
        raise UserError(
            f"{folder.path(file)} is not in COCO's instances format: it must contain the lists "
            "images, annotations, categories."
        )
    content = {key: content[key] for key in LISTS}
    content["images"] = list(map(_name_image, content["images"]))
    ledger.objects_in += len(content["annotations"])
    group = unused_root(content)
    if group is not None:
        content["categories"] = [c for c in content["categories"] if c is not group]
        ledger.note(f"ignored the class {group['name']!r}, which only groups the others", file)
    content["categories"] = list(map(_compose_name, content["categories"]))
    names = [c["name"] for c in content["categories"] if isinstance(c, dict) and c.get("name")]
    doubled = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if doubled is not None:
        raise UserError(f"{folder.path(file)} names the category {doubled!r} twice; rename one.")
    content["images"] = _locate(folder, file, ledger, content["images"], split, root)
    if root is None:
        content["images"] = _check_stated(content["images"], folder, folder.path(file))
    repeated, _ = unite_images(content, folder.root)
    for name in repeated:
        ledger.note("images that a COCO file lists twice", name)
    _merge_duplicates(content, file, ledger)
    objects = [a for a in content["annotations"] if isinstance(a, dict)]
    _note_marks(objects, ledger, file)
    keys = ("score", "confidence")
    note_scores(((key, a[key]) for a in objects for key in keys if key in a), ledger, file)
    ledger.ignore(repeated, "another name of a listed image")
    ledger.enter(file, LABELS, f"{len(_named(content))} images")
    ledger.objects_out += len(content["annotations"])
    _check_outside(content, ledger)
    return content


def _note_marks(objects: Sequence[Dict], ledger: Ledger, file: str) -> None:
    """Note marks of objects that other formats have, and COCO does not define."""
    # tood convert writes "difficult" beside "iscrowd".
    own = [a for a in objects if not a.get("iscrowd")]
    attributes = [a["attributes"] for a in objects if isinstance(a.get("attributes"), dict)]
    for some in (own, attributes):
        names = {key for x in some for key in x if is_mark(key)} - {"iscrowd", "ignore"}
        for name in sorted(names):
            if any(str(x.get(name)).lower() in YES for x in some):
                ledger.note(f"marks {name} are not used; COCO's are iscrowd and ignore", file)


def unused_root(content: Dict) -> Optional[Dict]:
    """Return the category that Roboflow puts before the others: without objects, and the
    supercategory of all of them; or None.
    """
    categories = content["categories"]
    if len(categories) < 2 or not all(isinstance(c, dict) for c in categories):
        return None
    used = {str(a.get("category_id")) for a in content["annotations"] if isinstance(a, dict)}
    for root in categories:
        groups = {str(c.get("supercategory")) for c in categories if c is not root}
        if str(root.get("id")) not in used and [*groups] == [root.get("name")]:
            return root
    return None


def _locate(folder: Folder, file, ledger: Ledger, images, split: str, root: Optional[str]) -> List:
    """Return the images with the names, relative to the folder, of files that are there, and with
    their sizes; images that are not found stay, and the check of the data reports them.
    """
    names = [i.get("file_name") for i in images if isinstance(i, dict)]
    names = list(dict.fromkeys(name for name in names if isinstance(name, str)))
    home = os.path.dirname(file) if root is None else root
    outside = {}
    for name in names:  # at the place that the file says, which may be outside of the folder
        path = os.path.normpath(os.path.join(home, name)).replace(os.sep, "/")
        if path not in folder.names.images and os.path.isfile(folder.path(path)):
            outside[name] = path
    left = [name for name in names if name not in outside]
    if left and root is not None and os.path.isdir(folder.root):
        folder.include(folder.root)
    near = _near(folder, file, home, split, left)
    found = match_names(folder, ledger, left, near)
    if root is None:
        check_beside(folder, file, found.items())
    found.update(outside)
    located, missing = [], []
    for image in images:
        name = image.get("file_name") if isinstance(image, dict) else None
        if isinstance(name, str) and name not in found:
            missing.append(name)
        if isinstance(name, str) and name in found:
            image = {**image, "file_name": found[name]}
            if not all(is_size(image.get(key)) for key in ("width", "height")):
                image["width"], image["height"] = folder.probe_size(found[name])
                ledger.note("images whose size was taken from their file", found[name])
        located.append(image)
    kind = f"images that {folder.path(file)} lists are not there"
    if root is None:
        ledger.check_share(kind, missing, len(images), "name their folder: FILE.json:FOLDER")
    for name in missing if root is not None else ():
        ledger.note(kind, name)
    return located


def _near(folder: Folder, file: str, home: str, split: str, names: Sequence[str]) -> List[str]:
    """Return the folders that the images of a file may be in, the most certain one first; raise
    UserError if two that are equally certain have an image of the same name.
    """
    areas = {find_area(f"{home}/x"), ("default",)}
    near = [
        f
        for f in dict.fromkeys(os.path.dirname(i) for i in folder.images)
        if find_area(f"{f}/x") in areas or folder_splits(f"{f}/x")[:1] == [split]
    ]
    ranks = {f: _rank(f, get_stem(file)) for f in [os.path.dirname(home), *near] if f != home}
    for name in names:
        places = list_places(folder, name)
        best = min((ranks[f] for f in places if f in ranks), default=None)
        equal = [f for f in places if ranks.get(f) == best and best is not None]
        if home not in places and len(equal) > 1:
            first, second = (folder.path(os.path.join(f, name)) for f in equal[:2])
            raise UserError(
                f"{folder.path(file)}: {name!r} could mean {first} or {second}; name the folder: "
                "FILE.json:FOLDER."
            )
    return [home, *sorted(ranks, key=ranks.__getitem__)]


def _rank(folder: str, stem: str) -> Tuple[bool, bool]:
    """Return how uncertain it is that a folder contains the images of a file."""
    is_named = bool(folder) and os.path.basename(folder) in stem  # instances_val2017, val2017
    return not is_named, IMAGE_FOLDERS.isdisjoint(folder.lower().split("/"))


def _merge_duplicates(content: Dict, file: str, ledger: Ledger) -> None:
    """Keep one of the annotations of the same image, class, box and marks, whatever else they say.
    Those of one id are kept, and refused by others.
    """
    seen: Dict[str, set] = {}
    kept = []
    for i, a in enumerate(content["annotations"]):
        if isinstance(a, dict) and is_box(a.get("bbox")):
            marks = [bool(a.get(key)) for key in ("iscrowd", "ignore")]
            box = [float(x) for x in a["bbox"]]
            ids = seen.setdefault(
                repr([a.get("image_id"), a.get("category_id"), box, marks]), set()
            )
            own, is_first = repr(a.get("id")), not ids
            if not is_first and (a.get("id") is None or own not in ids):
                ledger.drop(DUPLICATE, f"{file}, entry {i} of its annotations")
                continue
            ids.add(own)
        kept.append(a)
    content["annotations"] = kept


def _check_outside(content: Dict, ledger: Ledger) -> None:
    boxes: Dict = {}
    for a in content["annotations"]:
        if isinstance(a, dict) and is_box(a.get("bbox")) and a["bbox"][2] > 0 < a["bbox"][3]:
            x, y, w, h = a["bbox"]
            boxes.setdefault(str(a.get("image_id")), []).append(Object("", (x, y, x + w, y + h)))
    found = [
        (str(i.get("file_name")), boxes.get(str(i.get("id")), ()), (i["width"], i["height"]))
        for i in content["images"]
        if isinstance(i, dict) and is_size(i.get("width")) and is_size(i.get("height"))
    ]
    check_outside(found, ledger)
