"""Checks of a data set before a training: findings from its annotations and from its images' files,
in one list. Some are errors, to be corrected first; the others are good to know.
"""

import math
import os
import textwrap
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from tood.data.annotations import has_size, is_box
from tood.data.copies import trained_on
from tood.data.images import (
    IMAGE_ERRORS,
    PIXELS_REMEDY,
    TooManyPixels,
    probe_depth,
    probe_image,
    read_image,
)
from tood.data.tiles import largest_shares
from tood.utils.errors import WIDTH, format_reason, shorten
from tood.utils.tiles import WHOLE, TileOptions

# Reading the head of a file is waiting, mostly.
_READERS = 16
# The images of a larger data set are not opened before a training; on a network's disk that could
# take an hour.
MAX_IMAGES_LOOKED_AT = 50_000
SHARED = "images that are also trained on, or copies of such images"


class InputSize(NamedTuple):
    """Detectron2's resizing of images: the shorter side, and a limit of the longer one, pixels."""

    shorter: int  # 0: images are not resized
    longer: int
    tiles: TileOptions = WHOLE  # resized instead of the images

    def scale(self, width: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Return the scale by which images of these sizes are resized."""
        if self.shorter <= 0:
            return np.ones(np.shape(width))
        if self.tiles.size:
            width, height = (np.minimum(side, self.tiles.size) for side in (width, height))
        return np.minimum(
            self.shorter / np.minimum(width, height), self.longer / np.maximum(width, height)
        )


class Finding(NamedTuple):
    """A property that several images, objects or classes of a data set have in common."""

    what: str
    number: int
    example: str
    consequence: str
    is_error: bool = False

    def __str__(self):
        text = "error: " if self.is_error else ""
        text += f"{self.what}: {self.number}"
        text += f", for example {self.example}" if self.example else ""
        return textwrap.fill(
            f"{text}; {self.consequence}",
            WIDTH,
            initial_indent="- ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )


class _Objects(NamedTuple):
    """Annotations other than crowds, and their arrays in pixels."""

    annotations: List[Dict]
    boxes: np.ndarray  # (M, 4), x, y, width and height
    image_sizes: np.ndarray  # (M, 2), width and height of the image of each

    def names(self, mask: np.ndarray) -> List[str]:
        chosen = [self.annotations[i] for i in np.flatnonzero(mask)]
        return [f"annotation {a['id']}: {a['bbox']}" for a in chosen]


class DataReport(NamedTuple):
    """A data set and what was found in it."""

    json_file: str
    num_images: int
    num_objects: int
    num_classes: int
    findings: List[Finding]

    @property
    def errors(self) -> List[Finding]:
        """Findings that must be repaired before training."""
        return [finding for finding in self.findings if finding.is_error]

    def error_sentence(self) -> str:
        """Return what the first of the errors is and what to do; the list has all."""
        first = self.errors[0]
        more = sum(finding.number for finding in self.errors) - 1
        return (
            f"{self.json_file} has {first.number} {first.what}, for example {first.example}; "
            f"{first.consequence}" + (f" (the list above has {more} more)." if more else ".")
        )

    def __str__(self):
        head = (
            f"{self.json_file}: {self.num_images} images, {self.num_objects} objects, "
            f"{self.num_classes} classes"
        )
        if not self.findings:
            return f"{head}; no problems found."
        return "\n".join([head, *map(str, sorted(self.findings, key=lambda f: not f.is_error))])


def check_data(
    json_file: str,
    content: Dict,
    input_size: InputSize,
    stride: int,
    *,
    to_train: bool = True,
    filter_empty: bool = True,
    max_detections: int = 0,
) -> DataReport:
    """Look through annotations, without their images.

    Args:
        json_file: file of the annotations, for the report.
        content: as :func:`tood.data.annotations.read_annotations` returns it.
        input_size: input size of the network.
        stride: stride of the finest feature map, in pixels of the network's input.
        to_train: report what the findings mean for training, or else for evaluation.
        filter_empty: whether training ignores images without objects.
        max_detections: maximum number of detections per image; 0 if it is not known.
    """
    images = content["images"]
    annotations, broken = split_broken(content)
    objects = [a for a in annotations if not a["iscrowd"]]
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    arrays = _Objects(
        objects,
        np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4),
        np.array([sizes[a["image_id"]] for a in objects], dtype=np.float64).reshape(-1, 2),
    )
    marked: Dict[str, List[str]] = {"iscrowd": [], "ignore": []}  # ignore is a kind of crowd
    for a in annotations:
        if a["iscrowd"]:
            marked["ignore" if a.get("ignore") else "iscrowd"].append(f"annotation {a['id']}")
    findings = [
        *broken,
        *_shared_faults(arrays, marked, to_train),
        *(
            _finding(what, "used in this way", examples)
            for what, examples in content.get("repairs", {}).items()
        ),
        _extreme_images(images, input_size),
        *_box_findings(arrays, input_size, stride, to_train),
        *_count_findings(content, objects, marked, to_train, filter_empty),
        _overfull_images(images, objects, max_detections),
    ]
    findings = [finding for finding in findings if finding.number]
    return DataReport(json_file, len(images), len(objects), len(content["categories"]), findings)


def check_images(images: Sequence[Dict], image_root: str) -> List[Finding]:
    """Open every image of a data set, without decoding it if it seems to be whole.

    Args:
        images: COCO's records of the images.
        image_root: their folder.
    """
    paths = image_paths(images, image_root)
    with ThreadPoolExecutor(_READERS) as pool:
        faults = tqdm(
            pool.map(_fault, images, paths),
            total=len(paths),
            desc="checking the images",
            disable=len(paths) < 5_000,
        )
        faults = [
            (kind, f"{path} ({why})" if why else path) for path, (kind, why) in zip(paths, faults)
        ]
    remedy = "repair them, or take them out of the annotation file"
    elsewhere = "name their folder: FILE.json:FOLDER"
    if any(image["file_name"].startswith("../") for image in images):  # of tood train or convert
        elsewhere = "move them back to where the file names them, or convert the data again"
    kinds = {
        "missing": ("images that are not there", elsewhere),
        "large": ("images with too many pixels", PIXELS_REMEDY),
        "unreadable": ("images that cannot be read", remedy),
        "size": ("images of another size than the file says", remedy),
    }
    findings = [
        _finding(*texts, [example for k, example in faults if k == kind], is_error=True)
        for kind, texts in kinds.items()
    ]
    depths = [] if any(kind for kind, _ in faults) else list(map(probe_depth, paths))
    if depths and min(depths) > 8 and max(depths) < 16:
        what = f"images of 16 bits, which use no more than {max(depths)}"
        dark = f"dark or black as they are read; set INPUT.BIT_DEPTH {max(depths)}"
        findings.append(_finding(what, dark, paths))
    return [finding for finding in findings if finding.number]


def image_paths(images: Sequence[Dict], image_root: str) -> List[str]:
    """Return the paths of the images of COCO's records."""
    return [os.path.join(image_root, image["file_name"]) for image in images]


def check_overlap(train: Sequence[str], val: Sequence[str]) -> List[Finding]:
    """Look for images that are trained on and evaluated on.

    Args:
        train, val: paths of the images.
    """
    consequence = "they say nothing about new images; take them out of one of the sets"
    return _list_shared(SHARED, f"AP is too high: {consequence}", train, val)


def check_taught(taught: Sequence[str], val: Sequence[str]) -> List[Finding]:
    """Look for images that a teacher was trained on, and its student is evaluated on.

    Args:
        taught, val: paths of the images.
    """
    what = "images that the teacher (MODEL.TOOD.TEACHER) was trained on, or copies of such images"
    consequence = "the teacher passes on what it knows of them; train it without them"
    return _list_shared(what, f"AP may be too high: {consequence}", taught, val)


def _list_shared(
    what: str, consequence: str, train: Sequence[str], val: Sequence[str]
) -> List[Finding]:
    finding = _finding(what, consequence, trained_on(train, val))
    return [finding] if finding.number else []


def _fault(image: Dict, path: str):
    """Return the kind of a fault, "" for none, and its details."""
    if not os.path.isfile(path):
        return "missing", ""
    listed = (image["width"], image["height"])
    try:
        size = probe_image(path)
        if size != listed:
            height, width, _ = read_image(path).shape
            size = (width, height)
    except TooManyPixels as error:
        return "large", str(error).partition(";")[0]
    except IMAGE_ERRORS as error:
        return "unreadable", format_reason(error)
    if size != listed:
        return "size", f"upright it has {size[0]} x {size[1]}, not {listed[0]} x {listed[1]}"
    return "", ""


def split_broken(content: Dict) -> Tuple[List[Dict], List[Finding]]:
    """Return the annotations that make sense, and what is wrong with the others."""
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    remedy = "correct them, or take them out"
    kinds = {
        "category_id": ("annotations of a category_id that is not among the categories", remedy),
        "image_id": ("annotations of an image_id that is not among the images", remedy),
        "bbox": ("annotations whose bbox is not four numbers, [x, y, width, height]", remedy),
    }
    found, valid = defaultdict(list), []
    for a in content.get("annotations", ()):
        if a["category_id"] not in categories:
            kind = "category_id"
        elif a["image_id"] not in images:
            kind = "image_id"
        elif not is_box(a["bbox"]):
            kind = "bbox"
        else:
            valid.append(a)
            continue
        found[kind].append(f"annotation {a['id']} has {kind} {a[kind]!r}")
    return valid, [_finding(*kinds[k], found[k], is_error=True) for k in kinds if k in found]


def _shared_faults(
    objects: _Objects, marked: Dict[str, List[str]], to_train: bool
) -> List[Finding]:
    """Return what all, or most, records have in common, because of their exporter."""
    (x, y, w, h), (width, height) = objects.boxes.T, objects.image_sizes.T
    sized = (w > 0) & (h > 0)
    low, high = np.minimum(x, y), np.maximum(x + w, y + h)
    relative = sized & (low >= -0.01) & (high <= 1.01) & (np.minimum(width, height) > 2)
    beyond = (x + w > width + 1) | (y + h > height + 1)
    corners = sized & beyond & (w > x) & (h > y) & (w <= width + 1) & (h <= height + 1)
    marks = " or ".join(sorted(mark for mark, names in marked.items() if names))
    return [
        _finding(
            f"annotations, all of which are marked {marks}",
            f"set {marks} to 0 if they are objects",
            () if objects.annotations else [x for names in marked.values() for x in names],
            is_error=to_train,
        ),
        _finding(
            "boxes, all of which are relative (0 to 1)",
            "pixels are needed: multiply them by width and height of the image",
            objects.names(relative & relative[sized].all()),
            is_error=True,
        ),
        _finding(
            "boxes that make sense only as corners, [x1, y1, x2, y2]",
            "they are read as [x, y, width, height]; convert all boxes of the file",
            objects.names(corners & (2 * corners.sum() > sized.sum())),
        ),
    ]


def _extreme_images(images: List[Dict], input_size: InputSize) -> Finding:
    sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        shorter = sizes.min(axis=1) * input_size.scale(*sizes.T)
    names = [images[i]["file_name"] for i in np.flatnonzero(shorter < 0.5)]
    consequence = "nothing is left of them at the network's size; cut them into pieces"
    return _finding("images of extreme aspect ratio", consequence, names, is_error=True)


def _box_findings(
    objects: _Objects, input_size: InputSize, stride: int, to_train: bool
) -> List[Finding]:
    (x, y, w, h), (width, height) = objects.boxes.T, objects.image_sizes.T
    sized = (w > 0) & (h > 0)
    # Annotation tools round to the next pixel.
    beyond = np.maximum.reduce([-x, -y, x + w - width, y + h - height])
    outside = sized & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0))
    seen = sized & ~outside
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = input_size.scale(width, height)
    small = seen & (np.minimum(w, h) * scale < stride)
    shares = np.ones(len(sized))
    shares[seen] = largest_shares(objects.boxes[seen], objects.image_sizes[seen], input_size.tiles)
    use = 0 if to_train else 1
    outside_is = ("not trained on", "always missed")[use]
    partly_is = ("trained on what is inside", "found with a lower IoU")[use]
    small_is = ("may get no positive", "hard to find")[use]
    key = ("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST")[use]
    shrunk = (scale[small] < 1).any() and not input_size.tiles.size
    tiles = " or tiles (INPUT.TILES.SIZE)" if shrunk else ""
    narrow = f"narrower or lower than {stride} px, the finest stride, at the network's size"
    rows = [
        ("without width or height", "ignored", ~sized),
        ("wholly outside of their image", outside_is, outside),
        ("partly outside of their image", partly_is, seen & (beyond > 1)),
        (narrow, f"{small_is}; larger images ({key}){tiles} help", small),
        *_tile_rows(shares, input_size.tiles.min_visible, to_train),
    ]
    return [_finding(f"boxes {which}", meaning, objects.names(x)) for which, meaning, x in rows]


def _tile_rows(
    shares: np.ndarray, min_visible: float, to_train: bool
) -> List[Tuple[str, str, np.ndarray]]:
    in_parts = shares < 1 - 1e-6
    lost = in_parts & (shares < min_visible) & to_train
    lost_are = "not trained on, but background in the tiles that show them; raise INPUT.TILES.SIZE"
    parts_are = "trained on in parts" if to_train else "found in parts, or missed"
    return [
        (f"of which no tile shows {min_visible:.0%}", lost_are, lost),
        ("that no tile shows whole", f"{parts_are}; raise INPUT.TILES.OVERLAP", in_parts & ~lost),
    ]


def _count_findings(
    content: Dict,
    objects: List[Dict],
    marked: Dict[str, List[str]],
    to_train: bool,
    filter_empty: bool,
) -> List[Finding]:
    with_objects = {a["image_id"] for a in objects if has_size(a["bbox"])}
    used = {a["category_id"] for a in objects}
    empty = "trained on as background"
    if not to_train:
        empty = "every detection in them is wrong"
    elif filter_empty:
        empty = "not trained on; DATALOADER.FILTER_EMPTY_ANNOTATIONS False: as background"
    ignored = "background in training" if to_train else "detections in them do not count"
    return [
        _finding(
            "images without objects",
            empty,
            [image["file_name"] for image in content["images"] if image["id"] not in with_objects],
        ),
        _finding(
            "classes without objects",
            "never learned" if to_train else "not in the metrics",
            [c["name"] for c in content["categories"] if c["id"] not in used],
        ),
        _finding("boxes of crowds (iscrowd)", ignored, marked["iscrowd"]),
        _finding(
            "objects marked ignore (VOC's difficult)",
            f"{ignored}; tood convert --keep-difficult keeps VOC's",
            marked["ignore"],
        ),
    ]


def _overfull_images(images: List[Dict], objects: List[Dict], max_detections: int) -> Finding:
    counts = Counter(a["image_id"] for a in objects)
    limit = max_detections or math.inf
    return _finding(
        f"images with more than {max_detections} objects",
        f"no more than {max_detections} are found; raise TEST.DETECTIONS_PER_IMAGE",
        [x["file_name"] for x in images if counts[x["id"]] > limit],
    )


def _finding(
    what: str, consequence: str, examples: Sequence[str], *, is_error: bool = False
) -> Finding:
    example = shorten(examples[0]) if examples else ""
    return Finding(what, len(examples), example, consequence, is_error)
