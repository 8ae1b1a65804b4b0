"""CVAT's ``annotations.xml`` 1.1, of images or of a video's frames."""

import bisect
import collections
import math
import os
import re
from typing import Dict, Iterable, List, Optional, Sequence, Tuple
from xml.etree.ElementTree import Element

from tood.app.convert.build import Contents, Format, build_contents, divide_images
from tood.app.convert.folder import Folder
from tood.app.convert.formats.voc import find_root, parse_xml
from tood.app.convert.ledger import NO_IMAGE, Ledger
from tood.app.convert.names import get_stem, read_split
from tood.app.convert.objects import Object, Record, read_label, read_marks, read_numbers, read_size
from tood.app.convert.splits import (
    check_splits,
    match_in_splits,
    name_splits,
    split_by_image,
)
from tood.utils.errors import UserError
from tood.utils.reading import MiB, compose

MAX_XML = 256 * MiB  # of all images or frames; in memory it is ten times as large
SHAPES = {  # with an area, beside polygons: attributes of their boxes
    "box": ("xtl", "ytl", "xbr", "ybr"),
    "ellipse": ("cx", "cy", "rx", "ry"),
    "mask": ("left", "top", "width", "height"),
}
Stated = Tuple[str, str, Optional[Tuple[int, int]], List[Object]]  # name, split, size, objects


def find_cvat(folder: Folder) -> List[str]:
    """Return CVAT's files."""
    return [f for f in folder.with_suffix(".xml") if find_root(folder, f) == "annotations"]


def read_cvat(folder: Folder, files: Sequence[str], ledger: Ledger) -> Contents:
    """Read the images of each file, or the frames that its tracks cover."""
    records, names = [], {}
    stated: Dict[str, str] = {}  # subset -> where
    empty: List[Record] = []  # frames without objects
    splits = name_splits(files)
    if not all(splits.values()):
        for file in filter(splits.get, files):
            ledger.note("files that speak of splits beside others, and divide nothing", file)
        splits = {}
    for file in files:
        root = parse_xml(folder, file, MAX_XML)
        labels = (compose(e.text or "") for e in root.iterfind("./meta//label/name"))
        names.update(dict.fromkeys(labels))
        found = [
            *_read_images(folder, file, root, ledger, stated),
            *_read_frames(folder, file, root, ledger, stated),
        ]
        matched = _match(folder, file, found, splits.get(file, ""), ledger)
        is_video = root.find("track") is not None
        records += [record for record in matched if record.objects or not is_video]
        empty += [record for record in matched if is_video and not record.objects]
    check_splits(stated, ledger)
    known = {record.image for record in records}  # in the tracks of another file
    records += {r.image: r for r in reversed(empty) if r.image not in known}.values()
    if not records:
        raise UserError(
            f"{folder.path(files[0])} names no image that is there, in its images or tracks; "
            "export it again as CVAT for images 1.1."
        )
    used = {compose(o.label) for record in records for o in record.objects}
    classes = [name for name in names if name] if used <= set(names) else None
    listed = {record.image for record in records}
    ledger.ignore([i for i in folder.images if i not in listed], "not named by CVAT's file")
    own = ""
    if len(files) == 1 and not any(map(read_split, stated)):
        # The name of a file alone says less than the folders of its images.
        records = [record._replace(split="") for record in records]
        own = "" if folder.only else splits.get(files[0], "")
    divided = _divide(folder, ledger, records, own)
    return build_contents(folder, ledger, records, splits=divided, classes=classes)


def _divide(
    folder: Folder, ledger: Ledger, records: Sequence[Record], split: str
) -> Dict[str, List[str]]:
    """Return the listed images of each split.

    Args:
        split: that of images which neither records nor folders divide, or "".
    """
    listed = list(dict.fromkeys(record.image for record in records))
    words = split_by_image(folder)
    is_divided = any(record.split for record in records) or all(words[i] for i in listed)
    if not is_divided:
        return {split or "all": listed}
    divided = divide_images(folder, ledger, {record.image: record for record in records})
    known = set(listed)
    return {k: [i for i in images if i in known] for k, images in divided.items()}


CVAT = Format("CVAT XML", find_cvat, read_cvat)


def _match(
    folder: Folder, file: str, found: Sequence[Stated], split: str, ledger: Ledger
) -> List[Record]:
    """Return the records of the images that are there.

    Args:
        split: that of the file, for images that state none.
    """
    ledger.objects_in += sum(len(objects) for *_, objects in found)
    home = os.path.dirname(file)
    near = [home, f"{home}/images".lstrip("/")]
    pairs = [(own or split, name) for name, own, _, _ in found]
    images = match_in_splits(folder, ledger, pairs, near, file)
    for pair, (name, _, _, objects) in zip(pairs, found):
        if pair not in images:
            ledger.drop(NO_IMAGE, name, len(objects))
    return [
        Record(file, images[pair], objects, size, split=pair[0])
        for pair, (_, _, size, objects) in zip(pairs, found)
        if pair in images
    ]


def _read_images(
    folder: Folder, file: str, root: Element, ledger: Ledger, stated: Dict[str, str]
) -> List[Stated]:
    found: List[Stated] = []
    for image in root.iterfind("image"):
        objects = [_read_object(folder, file, shape, None, ledger) for shape in image]
        subset, name = image.get("subset") or "", image.get("name") or ""
        stated.setdefault(subset, f"{folder.path(file)}: {name}")
        split = read_split(subset)
        size = read_size(image.get("width"), image.get("height"))
        found.append((name, split, size, [o for o in objects if o is not None]))
    return found


def _read_frames(
    folder: Folder, file: str, root: Element, ledger: Ledger, stated: Dict[str, str]
) -> List[Stated]:
    """Return the objects of a video's frames, by the names of the images that are there."""
    tracks = root.findall("track")
    if not tracks:
        return []
    split = _read_split(folder, file, tracks, stated)
    frames: Dict[int, List[Object]] = collections.defaultdict(list)
    first, gaps = math.inf, []
    for track in tracks:
        shown = []
        for shape in track:
            (frame,) = read_numbers([shape.get("frame")], f"{folder.path(file)}:")
            first, is_outside = min(first, frame), shape.get("outside") == "1"
            shown.append((int(frame), is_outside))
            if is_outside:
                ledger.skip("outside of the frame, as CVAT marks it", file)
                continue
            found = _read_object(folder, file, shape, track.get("label"), ledger)
            frames[int(frame)] += [found] if found is not None else []
        gaps += _list_gaps(shown)
    images = _number_images(folder, file, frames)
    _check_first(folder, file, images, first, root)
    numbers, lacking = sorted(images), set()
    for a, b in gaps:
        lacking.update(numbers[bisect.bisect_right(numbers, a) : bisect.bisect_left(numbers, b)])
    for n in sorted(lacking):
        text = "frames lack a track between two of its boxes; export all frames"
        ledger.note(text, images[n][0])
    _check_absent(folder, file, images, frames, ledger)
    sides = (root.findtext(f"./meta//original_size/{key}") for key in ("width", "height"))
    size = read_size(*sides)
    others = _find_others(images, frames, root)
    names = {**{n: some[0] for n, some in images.items()}, **others}
    near = os.path.dirname(file) or "."
    return [
        (os.path.relpath(names[n], near) if n in names else f"frame {n}", split, size, frames[n])
        for n in sorted({*frames, *others})
    ]


def _check_absent(
    folder: Folder, file: str, images: Dict[int, List[str]], frames: Dict, ledger: Ledger
) -> None:
    """Raise UserError if most frames with objects are not there."""
    absent = [f"frame {n}" for n in frames if n not in images]
    kind = f"frames with objects in {folder.path(file)} are not there"
    if len(absent) > len(frames) / 2:
        ledger.check_share(kind, absent, len(frames), "number the images as CVAT does")


def _read_split(
    folder: Folder, file: str, tracks: Sequence[Element], stated: Dict[str, str]
) -> str:
    """Return the split of the one video that all tracks are of, and enter it as it is stated."""
    videos = {(track.get("task_id") or "", track.get("subset") or "") for track in tracks}
    if len(videos) > 1:
        ids = ", ".join(sorted(f"task {task} {subset}".strip() for task, subset in videos))
        raise UserError(
            f"{folder.path(file)} has tracks of several videos ({ids}), which count frames from 0 "
            "each; export every task by itself, into a folder of its own."
        )
    ((_, subset),) = videos
    stated.setdefault(subset, folder.path(file))
    return read_split(subset)


def _find_others(images: Dict[int, List[str]], frames: Iterable[int], root: Element) -> Dict:
    """Return the image of each frame without objects: beside those with objects, or anywhere if the
    video's number of frames says that there is one; none beyond that number, if frames are counted
    from its start.
    """
    homes = {os.path.dirname(images[n][0]) for n in frames if n in images}
    beside = {
        n: [image for image in some if not homes or os.path.dirname(image) in homes]
        for n, some in images.items()
    }
    first = min((n for n, some in beside.items() if some), default=0)
    number = read_size(root.findtext("./meta//size"), 1)
    is_whole = number is not None and first == 0 and max(frames, default=0) < number[0]
    end = number[0] if number is not None and is_whole else math.inf
    found = {}
    for n in images.keys() - frames:
        chosen = beside[n] or images[n] * is_whole
        if len(chosen) == 1 and n < end:
            found[n] = chosen[0]
    return found


def _list_gaps(shown: Sequence[Tuple[int, bool]]) -> List[Tuple[int, int]]:
    """Return pairs of frames with boxes of a track, between which it has none: CVAT's own export
    interpolates them.

    Args:
        shown: frames of its boxes, and whether it leaves the image there.
    """
    known = sorted(shown)
    pairs = zip(known, known[1:])
    return [(a, b) for (a, is_outside), (b, _) in pairs if not is_outside and b > a + 1]


def _number_images(folder: Folder, file: str, frames: Iterable[int]) -> Dict[int, List[str]]:
    """Return the images of each number that ends a name; one for each of some frames."""
    home = f"{os.path.dirname(file)}/".lstrip("/")
    images = _list_numbers(image for image in folder.images if image.startswith(home))
    if images.keys().isdisjoint(frames):
        images = _list_numbers(folder.images)
    doubled = next((images[n] for n in frames if len(images.get(n, ())) > 1), None)
    if doubled:
        raise UserError(
            f"{folder.path(file)}: a frame could be {folder.path(doubled[0])} or "
            f"{folder.path(doubled[1])}; leave one image per frame in the folder."
        )
    return dict(images)


def _list_numbers(names: Iterable[str]) -> Dict[int, List[str]]:
    images: Dict[int, List[str]] = collections.defaultdict(list)
    for image in names:
        number = re.search(r"(\d+)$", get_stem(image))
        if number:
            images[int(number.group(1))].append(image)
    return images


def _check_first(
    folder: Folder, file: str, images: Dict[int, List[str]], first: float, root: Element
) -> None:
    """Raise UserError if images are not numbered as frames: none has the number 0, which is a
    frame, or one has as large a number as CVAT says that there are frames; or there are as many as
    frames, with other numbers.
    """
    number = read_size(root.findtext("./meta//size"), 1)
    begin = _find_number(root, "start_frame")
    is_beyond = number is not None and max(images, default=0) >= number[0]
    is_from_1 = 1 in images and (first == 0 or number is None or is_beyond)
    if 0 not in images and (is_from_1 or (begin == 0 and is_beyond)):
        raise UserError(
            f"{folder.path(file)} counts frames from 0, but the images begin with "
            f"{folder.path(images[min(images)][0])}; rename the images so that the first is 0."
        )
    end = _find_number(root, "stop_frame")
    if number is None or len(images) != number[0] or begin is None or end is None:
        return
    step = read_size(root.findtext("./meta//frame_filter", "").rpartition("=")[2], 1)
    ways = (range(number[0]), range(begin, end + 1, step[0] if step else 1))
    others = [sorted(images.keys() - set(way)) for way in ways]
    is_stray = begin == 0 and len(others[0]) == 1 and others[0][0] > number[0]
    if all(others) and not is_stray:
        other = folder.path(images[others[-1][0]][0])
        raise UserError(
            f"{folder.path(file)} has {number[0]} frames, and {other} is not numbered as one of "
            "them; export it as CVAT for images 1.1, which names the images."
        )


def _find_number(root: Element, key: str) -> Optional[int]:
    """Return a number of the file's head, or None."""
    text = root.findtext(f"./meta//{key}", "").strip()
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None


def _read_object(
    folder: Folder, file: str, shape: Element, label: Optional[str], ledger: Ledger
) -> Optional[Object]:
    """Return the object of a shape, or None for shapes without an area."""
    where = f"{folder.path(file)}:"
    if shape.tag != "polygon" and shape.tag not in SHAPES:
        ledger.skip(f"shapes of the type {shape.tag}", file)
        return None
    label = read_label(label or shape.get("label"), where)
    if shape.tag == "polygon":
        pairs = [x.split(",") for x in (shape.get("points") or "").split(";")]
        points = [read_numbers(pair, where) for pair in pairs]
    else:
        texts = [shape.get(key) for key in SHAPES[shape.tag]] + [shape.get("rotation") or 0]
        a, b, c, d, angle = read_numbers(texts, where)
        if shape.tag == "ellipse":  # centre and radii
            a, b, c, d = a - c, b - d, a + c, b + d
        elif shape.tag == "mask":  # corner, width and height
            c, d = a + c, b + d
        points = _rotate((a, b, c, d), angle, shape.tag == "ellipse")
    xs, ys = zip(*points)
    attributes = ((x.get("name"), x.text) for x in shape.iterfind("attribute"))
    marks = read_marks(attributes, ledger, file)
    return Object(label, (min(xs), min(ys), max(xs), max(ys)), **marks)


def _rotate(
    box: Sequence[float], degrees: float, is_ellipse: bool = False
) -> List[Tuple[float, float]]:
    """Return the corners of a box that is turned around its centre, or those of the box around the
    ellipse in it.
    """
    x1, y1, x2, y2 = box
    if not degrees:
        return [(x1, y1), (x2, y2)]
    x, y, turn = (x1 + x2) / 2, (y1 + y2) / 2, math.radians(degrees)
    cos, sin = math.cos(turn), math.sin(turn)
    if is_ellipse:
        rx, ry = x2 - x, y2 - y
        w, h = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
        return [(x - w, y - h), (x + w, y + h)]
    corners = [(a - x, b - y) for a in (x1, x2) for b in (y1, y2)]
    return [(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in corners]
