"""COCO's lists of each split, made from the objects of images that a format reads."""

import collections
import os
import re
from typing import Any, Callable, Collection, Dict, List, NamedTuple, Optional, Sequence, Set

from tood.app.convert.folder import Folder
from tood.app.convert.ledger import IMAGE, LABELS, NO_IMAGE, NO_LABELS, Ledger
from tood.app.convert.matching import agree, match_files
from tood.app.convert.names import folder_splits, get_stem
from tood.app.convert.objects import Labels, Object, Record, check_outside, name_classes
from tood.app.convert.splits import LISTED, choose_steps, split_by_image
from tood.data.images import HEIF, IMAGE_SUFFIXES
from tood.utils.errors import UserError
from tood.utils.reading import compose

Contents = Dict[str, Dict]  # split -> COCO's lists
DUPLICATE = "the same class and box twice"
# Folders that are called after images without objects
_NEGATIVES = re.compile(r"background|negative|empty|no_?object|(^|[\W_])(neg|bg)([\W_]|$)", re.I)
NAMESAKE = "not labelled, with the name of a labelled image: perhaps masks or copies"
_DERIVED = re.compile(r"(.+)[-_. ](masks?|seg|depth|thumb|thumbnail|preview)", re.IGNORECASE)


class Format(NamedTuple):
    """A format of data sets. ``find`` recognizes it: it returns what ``read`` needs, usually the
    files that state boxes, and nothing for other folders. ``read`` returns the content of each
    split, mostly by :func:`build_contents`.
    """

    name: str
    find: Callable[[Folder], Any]
    read: Callable[[Folder, Any, Ledger], Contents]


def match_labels(
    folder: Folder, ledger: Ledger, labels: Dict[str, Labels], wanted: Collection[str] = ()
) -> List[Record]:
    """Find the images of files of labels, as :func:`match_files` does.

    Args:
        labels: file -> its objects.
        wanted: images that a configuration names, if one does.

    Raises:
        UserError: if more than half have no image, or one could belong to several.
    """
    stated = {file: found.stated for file, found in labels.items()}
    matched = match_files(folder, ledger, list(labels), stated, wanted)
    orphans = [file for file in labels if file not in matched]
    _refuse_heic(folder, orphans)
    remedy = "put images and labels of the same names together"
    ledger.check_share("files of labels have no image", orphans, len(labels), remedy)
    ledger.ignore(orphans, NO_IMAGE)
    for file, found in labels.items():
        ledger.objects_in += len(found.objects)
        ledger.drop(NO_IMAGE, file, 0 if file in matched else len(found.objects))
    return [
        Record(file, matched[file], found.objects, found.size, found.relative)
        for file, found in labels.items()
        if file in matched
    ]


def _refuse_heic(folder: Folder, orphans: Sequence[str]) -> None:
    """Raise UserError if images of labels are there, but cannot be read."""
    lost = {get_stem(file) for file in orphans} if HEIF[0] not in IMAGE_SUFFIXES else set()
    example = next((f for f in folder.with_suffix(*HEIF) if get_stem(f) in lost), None)
    if example is not None:
        raise UserError(
            f"The image {folder.path(example)} is in HEIC, which needs another package: pip "
            "install pillow-heif, or save such images as JPEG."
        )


def build_contents(
    folder: Folder,
    ledger: Ledger,
    records: Sequence[Record],
    *,
    splits: Optional[Dict[str, List[str]]] = None,
    classes: Optional[Sequence[str]] = None,
) -> Contents:
    """Divide images into splits, and return their objects in COCO's form.

    Args:
        records: records, at most one file per image.
        splits: images of each split; by default as the records say, or the names of the images'
            folders. Images without a record are negatives, and a test of them alone is ignored.
        classes: names in their order; by default of a ``classes.txt`` or alphabetical.

    Raises:
        UserError: for images that belong to two files, other sizes than stated, splits of which
            most images have no labels, and objects most of which lie outside of their image.
    """
    by_image: Dict[str, List[Record]] = collections.defaultdict(list)
    for record in records:
        other = by_image[record.image]
        if other and other[0].file != record.file:
            raise UserError(
                f"{folder.path(record.image)} is labelled by {folder.path(other[0].file)} and by "
                f"{folder.path(record.file)}; remove it from one of them."
            )
        other.append(record)
    if splits is None:
        splits = divide_images(folder, ledger, {i: r[0] for i, r in by_image.items()})
    else:
        splits = _omit_test(ledger, splits, set(by_image))
    splits = {k: _unlinked(folder, ledger, v, by_image) for k, v in splits.items()}
    used = {image for images in splits.values() for image in images}
    sizes = {image: folder.probe_size(image) for image in used}
    _check_records([r for r in records if r.image in used], sizes, folder, ledger)
    objects = {i: _read_objects(i, found, sizes, ledger) for i, found in by_image.items()}
    check_outside([(i, objects.get(i, ()), sizes[i]) for i in sorted(used)], ledger)
    if classes is None:
        found = {o.label for image, some in objects.items() if image in used for o in some}
        classes = name_classes(folder, ledger, found)
    names = list(dict.fromkeys(map(compose, classes)))
    for split, images in splits.items():
        lonely = [i for i in images if i not in by_image]
        remedy = "put images and labels of the same names together, or add empty labels"
        ledger.check_share("images have no labels", lonely, len(images), remedy)
        for image in images:
            enter_image(ledger, image, split)
    _enter_labels(ledger, by_image, used)
    ledger.objects_out += sum(len(objects.get(i, ())) for i in used)
    return {k: _content(v, objects, sizes, names) for k, v in splits.items() if v}


def _omit_test(
    ledger: Ledger, splits: Dict[str, List[str]], labelled: Set[str]
) -> Dict[str, List[str]]:
    """Return the splits without a test none of whose images has labels, as those of contests."""
    others = {name: images for name, images in splits.items() if name != "test"}
    if not others or not labelled.isdisjoint(splits.get("test", ())):
        return splits
    kept = {image for images in others.values() for image in images}
    test = [image for image in splits.get("test", ()) if image not in kept]
    ledger.ignore(test, NO_LABELS)
    return others


def divide_images(
    folder: Folder, ledger: Ledger, labelled: Dict[str, Record]
) -> Dict[str, List[str]]:
    """Divide all images into splits, by their records, folders, names, or the records' folders.

    Args:
        labelled: image -> its record.

    Returns:
        the images of "train", "val" and "test", or of "all", without perhaps masks and copies.

    Raises:
        UserError: if some labelled images lie in folders of splits and some do not.
    """
    words, left = split_by_image(folder), _find_namesakes(folder, labelled)
    ledger.ignore(left, NAMESAKE)
    homes = choose_steps({r.file: folder_splits(r.file) for r in labelled.values()})
    for image, record in labelled.items():
        note_other_split(record.split, image, ledger)
        words[image] = record.split or words[image] or homes[record.file]
    named = {words[i] for i in labelled} - {""}
    outside = [i for i in labelled if not words[i]]
    if named - {"train"} and outside:
        inside = next(i for i in labelled if words[i])
        raise UserError(
            f"{folder.path(outside[0])} has labels but is in no split, while "
            f"{folder.path(inside)} is in {words[inside]}; move it into the folder of a split."
        )
    if not named or outside:  # a lone "train" may be a class
        return {"all": [image for image in folder.images if image not in left]}
    by_split = collections.defaultdict(list)
    for image in (image for image in folder.images if image not in left):
        by_split[words[image] if words[image] in named else ""].append(image)
    ledger.ignore(by_split.pop("", ()), "in no split that has labels")
    return {split: by_split[split] for split in (*LISTED, "all") if split in named}


def _find_namesakes(folder: Folder, labelled: Collection[str]) -> Dict[str, None]:
    """Return the images without labels that are named like one with labels: those in the same
    folder, and those in another one, not of another split, none of whose images has labels, unless
    it is called after negatives.
    """
    homes, found = {os.path.dirname(image) for image in folder.images}, {}
    named = {home for home in homes if _NEGATIVES.search(home)}
    named |= {os.path.dirname(image) for image in labelled}
    known: Dict[str, List[str]] = collections.defaultdict(list)
    for image in labelled:
        known[get_stem(image)].append(image)
    for image in (image for image in folder.images if image not in labelled):
        home, derived = os.path.dirname(image), _DERIVED.fullmatch(get_stem(image))
        stems = [get_stem(image), *(derived.groups()[:1] if derived else ())]
        if home.endswith("_json"):  # labelme_json_to_dataset writes NAME_json/img.png, label.png
            stems.append(os.path.basename(home)[: -len("_json")])
        for other in (other for stem in stems for other in known.get(stem, ())):
            is_apart = home not in named and agree(folder_splits(image), other)
            if is_apart or os.path.dirname(other) == home:
                found[image] = None
                break
    return found


def note_other_split(split: str, path: str, ledger: Ledger) -> None:
    """Note an image in a folder of another split than the stated one."""
    folders = folder_splits(path)
    if split and folders and split not in folders:
        ledger.note("images in a folder of another split than they state, which applies", path)


def _unlinked(folder: Folder, ledger: Ledger, images: Sequence[str], by_image: Dict) -> List[str]:
    """Return the images of a split, each real file once."""
    counts = collections.Counter(images)
    for image, count in counts.items():
        if count > 1:
            ledger.note("images that are listed more than once in a split", image)
    if not folder.links:
        return list(counts)
    groups = collections.defaultdict(list)
    for image in counts:
        groups[folder.links.get(image) or os.path.realpath(folder.path(image))].append(image)
    kept = []
    for group in groups.values():
        labelled = [i for i in group if i in by_image]
        if len({str([r.objects for r in by_image[i]]) for i in labelled}) > 1:
            raise UserError(
                f"{folder.path(labelled[0])} and {folder.path(labelled[1])} are one file with "
                "different labels; remove one of them."
            )
        kept.append((labelled or group)[0])
        others = [i for i in group if i != kept[-1]]
        for other in others:
            for record in by_image.pop(other, ()):
                ledger.drop("of another link to the same image", other, len(record.objects))
                if not any(r.file == record.file for found in by_image.values() for r in found):
                    ledger.ignore([record.file], "labels of another link to the same image")
        ledger.ignore(others, f"the same file as {kept[-1]}")
    return kept


def _check_records(records: Sequence[Record], sizes: Dict, folder: Folder, ledger: Ledger) -> None:
    """Note files with difficult objects; raise UserError for images of other sizes than stated."""
    for file in dict.fromkeys(r.file for r in records if any(o.difficult for o in r.objects)):
        ledger.note("files with difficult objects, which are marked iscrowd unless kept", file)
    wrong = [r for r in records if r.size not in (None, sizes[r.image])]
    if wrong:
        first = wrong[0]
        raise UserError(
            f"{folder.path(first.file)}: {len({r.image for r in wrong})} of "
            f"{len({r.image for r in records})} images have another size than stated, for example "
            f"{first.image}, stated {first.size}, is {sizes[first.image]}; use the images that "
            "were annotated."
        )


def _read_objects(
    image: str, records: Sequence[Record], sizes: Dict, ledger: Ledger
) -> List[Object]:
    """Return the objects of an image in pixels, each once."""
    objects = [o for record in records for o in record.objects]
    if image not in sizes:
        ledger.drop("in an image of no split", image, len(objects))
        return []
    width, height = sizes[image]
    if records[0].relative:
        scale = (width, height, width, height)
        objects = [o._replace(box=tuple(x * s for x, s in zip(o.box, scale))) for o in objects]
    objects = [o._replace(label=compose(o.label)) for o in objects]
    kept = list({o._replace(difficult=False): o for o in reversed(objects)}.values())[::-1]
    ledger.drop(DUPLICATE, records[0].file, len(objects) - len(kept))
    return kept


def enter_image(ledger: Ledger, image: str, split: str) -> None:
    """Give an image its role; it may be in several splits."""
    role, known = ledger.files.get(image, ("", ""))
    ledger.files[image] = (IMAGE, f"{known}, {split}" if role == IMAGE else split)


def _enter_labels(ledger: Ledger, by_image: Dict[str, List[Record]], used: Set[str]) -> None:
    images = collections.defaultdict(list)
    for image, records in by_image.items():
        images[records[0].file].append(image)
    for file, labelled in images.items():
        kept = [i for i in labelled if i in used]
        if kept:
            ledger.enter(file, LABELS, kept[0] if len(labelled) == 1 else f"{len(kept)} images")
        else:
            ledger.ignore([file], "labels of an image in no split")


def _content(images: Sequence[str], objects: Dict, sizes: Dict, names: Sequence[str]) -> Dict:
    """Return COCO's lists."""
    ids = {name: i for i, name in enumerate(names)}
    content: Dict[str, List] = {
        "images": [],
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
        "annotations": [],
    }
    for image_id, image in enumerate(images, 1):
        width, height = sizes[image]
        content["images"].append(
            {"id": image_id, "file_name": image, "width": width, "height": height}
        )
        for label, (x1, y1, x2, y2), crowd, difficult in objects.get(image, ()):
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": ids[label],
                "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                "area": float(x2 - x1) * float(y2 - y1),
                "iscrowd": int(crowd or difficult),
                **({"difficult": 1} if difficult and not crowd else {}),
            }
            content["annotations"].append(annotation)
    return content
