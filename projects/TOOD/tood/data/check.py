"""Checks of a data set before a training: findings from its annotations and from its images' files,
in one table. Some are errors, to be corrected first; the others are good to know.
"""

import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from tood.data.annotations import has_size, is_box
from tood.data.copies import trained_on
from tood.data.images import IMAGE_ERRORS, PIXELS_REMEDY, TooManyPixels, probe_image, read_image
from tood.data.tiles import largest_shares
from tood.utils.errors import reason_of
from tood.utils.tiles import WHOLE, TileOptions

# Reading the head of a file is waiting, mostly.
_READERS = 16


class InputSize(NamedTuple):
    """Detectron2's resizing of images: the shorter side, and a limit of the longer one, pixels."""

    shorter: int  # 0: as they are
    longer: int
    tiles: TileOptions = WHOLE  # which are resized instead of the images

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
    """Something that several images, objects or classes of a data set have in common."""

    what: str
    count: int
    example: str
    consequence: str
    is_error: bool = False
    sentence: str = ""  # of the error, without its file; default: made of the other fields


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
        """Return what the first of the errors is and what to do; the table has all."""
        first = self.errors[0]
        if first.sentence:
            return f"{self.json_file}: {first.sentence}."
        more = sum(finding.count for finding in self.errors) - 1
        return (
            f"{self.json_file} has {first.count} {first.what}, for example {first.example}; "
            f"{first.consequence}" + (f" (the table above has {more} more)." if more else ".")
        )

    def __str__(self):
        head = (
            f"{self.json_file}: {self.num_images} images, {self.num_objects} objects, "
            f"{self.num_classes} classes"
        )
        if not self.findings:
            return f"{head}; no problems found."
        rows = [
            ("error" if f.is_error else "", f.count, f.what, f.example, f.consequence)
            for f in sorted(self.findings, key=lambda f: not f.is_error)
        ]
        headers = ["", "count", "what", "for example", "what it means"]
        return f"{head}\n" + tabulate(rows, headers=headers, tablefmt="pipe")


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
        json_file: where they are from.
        content: as :func:`tood.data.annotations.read_annotations` returns it.
        input_size: of the network.
        stride: of the finest feature map, in pixels of the network's input.
        to_train: tell what the findings mean for training, or else for evaluation.
        filter_empty: whether images without objects are left out of training.
        max_detections: the most that are found in an image; 0 where it is not known.
    """
    annotations, broken = split_broken(content)
    objects = [a for a in annotations if not a.get("iscrowd")]
    findings = [
        *broken,
        *_shared_faults(objects, annotations, content["images"], to_train),
        *(
            _finding(what, "used in this way", examples)
            for what, examples in content.get("repairs", {}).items()
        ),
        _extreme_images(content["images"], input_size),
        *_box_findings(objects, content["images"], input_size, stride, to_train),
        *_count_findings(content, annotations, objects, to_train, filter_empty),
        _overfull_images(content["images"], objects, max_detections),
    ]
    return DataReport(
        json_file,
        len(content["images"]),
        len(objects),
        len(content["categories"]),
        [finding for finding in findings if finding.count],
    )


def check_images(images: Sequence[Dict], image_root: str) -> List[Finding]:
    """Open every image of a data set, without decoding it if it seems to be whole.

    Args:
        images: COCO's records of them.
        image_root: their folder.
    """
    paths = image_paths(images, image_root)
    quick = len(paths) < 5_000
    with ThreadPoolExecutor(_READERS) as pool:
        faults = list(
            tqdm(
                pool.map(_fault, images, paths),
                total=len(paths),
                desc="checking the images",
                disable=quick,
            )
        )
    remedy = "repair them, or take them out of the annotation file"
    kinds = {
        "missing": ("images that are not there", "name their folder: FILE.json:FOLDER"),
        "large": ("images with too many pixels", PIXELS_REMEDY),
        "unreadable": ("images that cannot be read", remedy),
        "size": ("images of another size than the file says", remedy),
    }
    findings = []
    for kind, (what, consequence) in kinds.items():
        found = [(p, why) for p, (k, why) in zip(paths, faults) if k == kind]
        if found:
            path, why = found[0]
            example = f"{path} ({why})" if why else path
            findings.append(Finding(what, len(found), example, consequence, is_error=True))
    return findings


def image_paths(images: Sequence[Dict], image_root: str) -> List[str]:
    """Return the paths of the images of COCO's records."""
    return [os.path.join(image_root, image["file_name"]) for image in images]


def check_overlap(train: Sequence[str], val: Sequence[str]) -> List[Finding]:
    """Look for images that are trained on and evaluated on.

    Args:
        train, val: paths of the images.
    """
    finding = _finding(
        "images that are also trained on, or copies of such images",
        "AP is too high: they say nothing about new images; take them out of one of the sets",
        trained_on(train, val),
    )
    return [finding] if finding.count else []


def _fault(image: Dict, path: str):
    """The kind of a fault, "" for none, and its details."""
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
        return "unreadable", reason_of(error)
    if size != listed:
        return "size", f"upright it has {size[0]} x {size[1]}, not {listed[0]} x {listed[1]}"
    return "", ""


def split_broken(content: Dict) -> Tuple[List[Dict], List[Finding]]:
    """Return the annotations that make sense, and what is wrong with the others."""
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    remedy = "correct them, or take them out"
    kinds: Dict[str, Callable[[Dict], bool]] = {
        "category_id": lambda a: a["category_id"] not in categories,
        "image_id": lambda a: a["image_id"] not in images,
        "bbox": lambda a: not is_box(a["bbox"]),
    }
    texts = {
        "category_id": ("annotations of a category_id that is not among the categories", remedy),
        "image_id": ("annotations of an image_id that is not among the images", remedy),
        "bbox": ("annotations whose bbox is not four numbers, [x, y, width, height]", remedy),
    }
    found = {kind: [] for kind in kinds}
    valid = []
    for annotation in content.get("annotations", ()):
        kind = next((k for k, is_broken in kinds.items() if is_broken(annotation)), None)
        (valid if kind is None else found[kind]).append(annotation)
    findings = [
        _finding(*texts[kind], [f"annotation {a['id']} has {kind} {a[kind]}" for a in found[kind]])
        for kind in kinds
    ]
    return valid, [finding._replace(is_error=True) for finding in findings]


def _shared_faults(
    objects: List[Dict], annotations: List[Dict], images: List[Dict], to_train: bool
) -> List[Finding]:
    """Return what all, or most, records have in common, and their exporter did."""
    findings = []
    if annotations and not objects:
        marks = " or ".join(
            sorted({"ignore" if a.get("ignore") else "iscrowd" for a in annotations})
        )
        remedy = f"set {marks} to 0 if they are objects"
        what = f"annotations, all of which are marked {marks}"
        finding = Finding(what, len(annotations), _name(annotations[0]), remedy, is_error=to_train)
        sentence = f"all {len(annotations)} annotations are marked {marks}; {remedy}"
        findings.append(finding._replace(sentence=sentence))
    sized = [a for a in objects if has_size(a["bbox"])]
    if not sized:
        return findings
    x, y, w, h = np.array([a["bbox"] for a in sized], dtype=np.float64).T
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    width, height = np.array([sizes[a["image_id"]] for a in sized], dtype=np.float64).T
    low, high = np.minimum(x, y).min(), max((x + w).max(), (y + h).max())
    if low >= -0.01 and high <= 1.01 and min(width.min(), height.min()) > 2:
        remedy = "pixels are needed: multiply them by width and height of the image"
        what, example = "boxes, all of which are relative", _name(sized[0])
        finding = Finding(what, len(sized), example, remedy, is_error=True)
        sentence = f"all {len(sized)} boxes are relative (0 to 1), for example {example}; {remedy}"
        findings.append(finding._replace(sentence=sentence))
    beyond = (x + w > width + 1) | (y + h > height + 1)
    as_corners = (w > x) & (h > y) & (w <= width + 1) & (h <= height + 1)
    only_as_corners = [a for a, only in zip(sized, beyond & as_corners) if only]
    if 2 * len(only_as_corners) > len(sized):
        what = "boxes that make sense only as corners, [x1, y1, x2, y2]"
        remedy = "they are read as [x, y, width, height]; convert all boxes of the file"
        findings.append(Finding(what, len(only_as_corners), _name(only_as_corners[0]), remedy))
    return findings


def _name(annotation: Dict) -> str:
    return f"annotation {annotation['id']}: {annotation['bbox']}"


def _extreme_images(images: List[Dict], input_size: InputSize) -> Finding:
    sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        shorter = sizes.min(axis=1) * input_size.scale(*sizes.T)
    names = [images[i]["file_name"] for i in np.flatnonzero(shorter < 0.5)]
    consequence = "nothing is left of them at the network's size; cut them into pieces"
    return _finding("images of extreme aspect ratio", consequence, names)._replace(is_error=True)


def _box_findings(
    objects: List[Dict], images: List[Dict], input_size: InputSize, stride: int, to_train: bool
) -> List[Finding]:
    if not objects:
        return []
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    boxes = np.array([a["bbox"] for a in objects], dtype=np.float64)
    image_sizes = np.array([sizes[a["image_id"]] for a in objects], dtype=np.float64)
    (x, y, w, h), (width, height) = boxes.T, image_sizes.T
    sized = (w > 0) & (h > 0)
    # Annotation tools round to the next pixel.
    beyond = np.maximum.reduce([-x, -y, x + w - width, y + h - height])
    outside = sized & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0))
    partly = sized & ~outside & (beyond > 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = input_size.scale(width, height)
    small = sized & ~outside & (np.minimum(w, h) * scale < stride)
    use = 0 if to_train else 1
    narrow = f"narrower or lower than {stride} px, the finest stride, at the network's size"
    partly_is = ("trained on what is inside", "found with a lower IoU")
    seen = sized & ~outside
    shares = np.ones(len(objects))
    shares[seen] = largest_shares(boxes[seen], image_sizes[seen], input_size.tiles)
    shrunk = (scale[small] < 1).any() and not input_size.tiles.size
    rows = [
        ("without width or height", "left out", ~sized),
        ("wholly outside of their image", ("not trained on", "always missed")[use], outside),
        ("partly outside of their image", partly_is[use], partly),
        (narrow, _small_means(to_train, or_tiles=shrunk), small),
        *_tile_rows(shares, input_size.tiles.min_visible, to_train),
    ]
    return [
        _finding(
            f"boxes {which}",
            consequence,
            [f"annotation {objects[i]['id']}: {objects[i]['bbox']}" for i in np.flatnonzero(mask)],
        )
        for which, consequence, mask in rows
    ]


def _small_means(to_train: bool, *, or_tiles: bool) -> str:
    meaning = "may get no positive" if to_train else "hard to find"
    tiles = " or tiles (INPUT.TILES.SIZE)" if or_tiles else ""
    size_key = "INPUT.MIN_SIZE_TRAIN" if to_train else "INPUT.MIN_SIZE_TEST"
    return f"{meaning}; larger images ({size_key}){tiles} help"


def _tile_rows(
    shares: np.ndarray, min_visible: float, to_train: bool
) -> List[Tuple[str, str, np.ndarray]]:
    in_parts = shares < 1 - 1e-6
    lost = in_parts & (shares < min_visible)
    size_key, overlap_key = "INPUT.TILES.SIZE", "INPUT.TILES.OVERLAP"
    if not to_train:
        consequence = f"found in parts, or missed; raise {overlap_key}"
        return [("that no tile shows whole", consequence, in_parts)]
    consequence = f"not trained on, but background where they are seen; raise {size_key}"
    return [
        (f"of which no tile shows {min_visible:.0%}", consequence, lost),
        ("that no tile shows whole", f"trained on in parts; raise {overlap_key}", in_parts & ~lost),
    ]


def _count_findings(
    content: Dict,
    annotations: List[Dict],
    objects: List[Dict],
    to_train: bool,
    filter_empty: bool,
) -> List[Finding]:
    with_objects = {a["image_id"] for a in objects if has_size(a["bbox"])}
    used = {a["category_id"] for a in objects}
    key = "DATALOADER.FILTER_EMPTY_ANNOTATIONS"
    empty = "every detection in them is wrong"
    if to_train:
        empty = f"left out of training; as negatives with {key} False"
        if not filter_empty:
            empty = f"negatives ({key} is False)"
    names: Dict[str, List[str]] = {"ignore": [], "iscrowd": []}
    for a in annotations:
        if a.get("iscrowd"):
            names["ignore" if a.get("ignore") else "iscrowd"].append(f"annotation {a['id']}")
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
        _finding("boxes of crowds (iscrowd)", ignored, names["iscrowd"]),
        _finding(
            "objects marked ignore (VOC's difficult)",
            f"{ignored}; tood convert --keep-difficult keeps VOC's",
            names["ignore"],
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


def _finding(what: str, consequence: str, examples: Sequence[str]) -> Finding:
    return Finding(what, len(examples), examples[0] if examples else "", consequence)
