#!/usr/bin/env python
"""Detect objects in images with an exported file. This program needs onnxruntime, numpy, Pillow and
opencv, and neither PyTorch nor Detectron2 nor this project: copy it to where the file is used::

    python detect_onnx.py mine.onnx --input photos/ a.jpg --output found --json found.json

The files are those of ``tood export --format onnx``. Their metadata tell how images are
resized, the names of the classes, and so on; the detections are those of the exported model.
"""

import argparse
import collections
import json
import os
import sys
import time

import cv2
import numpy as np
import onnxruntime
from PIL import Image

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
KNOWN_BEGINNINGS = (b"\xff\xd8", b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"RIFF")


class Error(Exception):
    """A mistake that users can repair, in one sentence."""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="FILE.onnx")
    parser.add_argument("--input", nargs="+", required=True, help="files and folders")
    parser.add_argument("--output", metavar="FOLDER", help="for the images with boxes")
    parser.add_argument("--json", metavar="FILE", help="detections in COCO's format, with scores")
    parser.add_argument("--score-thresh", type=float, default=0.3, help="of what is drawn")
    parser.add_argument("--overwrite", action="store_true", help="files that already exist")
    return parser.parse_args(argv)


def main(args):
    detector = Detector(args.model)
    paths = images_of(args.input)
    targets = targets_of(paths, args)
    found, seconds = [], 0.0
    for path, target in zip(paths, targets):
        image = read_image(path)
        if image is None:
            print(f"warning: {path} cannot be read. It is skipped.", file=sys.stderr)
            continue
        start = time.perf_counter()
        boxes, scores, classes = detector(image)
        seconds += time.perf_counter() - start
        names = [detector.classes[c] for c in classes]
        found.append((path, image.shape[:2], boxes, scores, classes))
        shown = scores >= args.score_thresh
        print(f"{path}: {shown.sum()} of at least {args.score_thresh:g}")
        if target:
            draw(image, boxes[shown], scores[shown], [n for n, s in zip(names, shown) if s])
            write_image(target, image)
    if not found:
        raise Error("None of the inputs could be read; see the warnings above.")
    if args.json:
        write_whole(args.json, json.dumps(coco_of(found, detector.classes), indent=1).encode())
    print(f"{len(found)} images, {seconds / len(found):.3f} s each to detect")


def coco_of(found, class_names):
    """COCO's instances format, with a score for each annotation; ids are counted from 1."""
    images, annotations = [], []
    for path, (height, width), boxes, scores, classes in found:
        images.append({"id": len(images) + 1, "file_name": path, "height": height, "width": width})
        for (x1, y1, x2, y2), score, label in zip(*(x.tolist() for x in (boxes, scores, classes))):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


class Detector:
    """From an image to what is in it."""

    def __init__(self, path):
        if not os.path.isfile(path):
            raise Error(f"The file {path} does not exist.")
        try:
            self.session = onnxruntime.InferenceSession(path, providers=providers())
        except Exception as error:  # ONNX Runtime has many
            reason = " ".join(str(error).split())[:200]
            raise Error(f"{path} cannot be read by ONNX Runtime ({reason}).") from error
        about = self.session.get_modelmeta().custom_metadata_map
        if about.get("model") != "TOOD" or "num_detections" not in about.get("outputs", ""):
            raise Error(f"{path} makes no detections; write one with tood export, without --raw.")
        self.input_name = self.session.get_inputs()[0].name
        try:
            self.read_metadata(about)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Error(
                f"{path} has metadata that cannot be read ({error!r}); export it again."
            ) from error

    def read_metadata(self, about):
        self.output_names = list(json.loads(about["outputs"]))
        self.classes = [str(name) for name in json.loads(about["classes"])]
        self.rgb = about["input_format"] == "RGB"
        self.min_size, self.max_size = (int(about[key]) for key in ("min_size", "max_size"))
        self.tiles = [int(x) for x in json.loads(about.get("tiles", "[0, 0]"))]
        self.nms_threshold = float(about["nms_threshold"])
        self.max_detections = int(about["max_detections"])
        self.class_agnostic = json.loads(about.get("class_agnostic_nms", "false"))
        self.mean_and_std = None
        if about["preprocessing"] == "outside":
            self.mean_and_std = [
                np.array(json.loads(about[key]), np.float32).reshape(3)
                for key in ("pixel_mean", "pixel_std")
            ]

    def __call__(self, image):
        """
        Args:
            image: (H, W, 3) uint8, BGR.

        Returns:
            boxes (D, 4), x1, y1, x2, y2 in pixels of the image; scores (D,), falling; classes (D,).
        """
        height, width = image.shape[:2]
        find = self.find_in_tiles if self.tiles[0] else self.find
        boxes, scores, classes = find(image)
        boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return boxes[inside], scores[inside], classes[inside]

    def find_in_tiles(self, image):
        """Of each tile, but for boxes that a neighbour sees whole; then NMS of all of them."""
        height, width = image.shape[:2]
        size, overlap = self.tiles
        tiles = tiles_of(width, height, size, overlap)
        parts = []
        for tile in tiles:
            x1, y1, x2, y2 = tile
            boxes, scores, classes = self.find(np.ascontiguousarray(image[y1:y2, x1:x2]))
            boxes = boxes + np.array([x1, y1, x1, y1], np.float32)
            kept = ~seen_whole_elsewhere(boxes, tile, tiles, width, height)
            parts.append((boxes[kept], scores[kept], classes[kept]))
        boxes, scores, classes = (np.concatenate(x) for x in zip(*parts))
        groups = np.zeros_like(classes) if self.class_agnostic else classes
        kept = nms(boxes, scores, groups, self.nms_threshold)[: self.max_detections]
        return boxes[kept], scores[kept], classes[kept]

    def find(self, image):
        """As __call__, of an image that is seen in one piece; boxes may reach out of it."""
        height, width = image.shape[:2]
        resized = resize(image, *size_of_shorter_edge(height, width, self.min_size, self.max_size))
        outputs = self.session.run(None, {self.input_name: self.input_of(resized)})
        outputs = dict(zip(self.output_names, outputs))
        count = outputs["num_detections"][0]
        boxes, scores, classes = (outputs[key][0, :count] for key in ("boxes", "scores", "classes"))
        scale = np.array([width / resized.shape[1], height / resized.shape[0]] * 2, np.float32)
        return boxes * scale, scores, classes

    def input_of(self, image):
        image = (image[:, :, ::-1] if self.rgb else image).astype(np.float32)
        if self.mean_and_std:
            mean, std = self.mean_and_std
            image = (image - mean) / std
        return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


# --- tiles of large images -------------------------------------------------------------------

SEAM = 2  # a box that comes so near to a seam may be cut by it: pixels of the image


def tiles_of(width, height, size, overlap):
    """x1, y1, x2, y2 of tiles of one size, that overlap by so many pixels at least."""

    def starts(side):
        if side <= size:
            return [0]
        number = 1 - (size - side) // (size - overlap)
        return [(side - size) * i // (number - 1) for i in range(number)]

    return [
        (x, y, min(x + size, width), min(y + size, height))
        for y in starts(height)
        for x in starts(width)
    ]


def seen_whole_elsewhere(boxes, tile, tiles, width, height):
    """Return which boxes a tile may have cut that another one sees whole."""

    def clear(x1, y1, x2, y2):
        low = [-np.inf if v <= 0 else v + SEAM for v in (x1, y1)]
        high = [np.inf if v >= end else v - SEAM for v, end in ((x2, width), (y2, height))]
        return ((boxes[:, :2] >= low) & (boxes[:, 2:] <= high)).all(axis=1)

    whole = np.zeros(len(boxes), dtype=bool)
    for other in tiles:
        apart = (np.maximum(tile[:2], other[:2]) >= np.minimum(tile[2:], other[2:])).any()
        if other != tile and not apart:
            whole |= clear(*other)
    return ~clear(*tile) & whole


def nms(boxes, scores, groups, threshold):
    """Indices of the boxes that are kept, sorted by descending score; groups are kept apart."""
    order, kept = np.argsort(-scores, kind="stable"), []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[order, :2], boxes[best, :2])
        high = np.minimum(boxes[order, 2:], boxes[best, 2:])
        inter = (high - low).clip(min=0).prod(axis=1)
        ious = inter / (areas[order] + areas[best] - inter)
        order = order[(ious <= threshold) | (groups[order] != groups[best])]
    return np.array(kept, dtype=int)


def providers():
    """A GPU where there is one. Others than CUDA would compute in another precision."""
    there = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]


def size_of_shorter_edge(height, width, min_size, max_size):
    """Height and width with a shorter side of ``min_size``, or a longer one of ``max_size``."""
    if not min_size:
        return height, width
    scale = min_size / min(height, width)
    height, width = (min_size, scale * width) if height < width else (scale * height, min_size)
    if max(height, width) > max_size:
        scale = max_size / max(height, width)
        height, width = height * scale, width * scale
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def resize(image, height, width):
    """Resize (H, W, C) uint8 to (height, width, C) as in training: by Pillow, antialiased."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR))


# --- files and images ----------------------------------------------------------------------


def images_of(inputs):
    paths = []
    for path in inputs:
        if os.path.isdir(path):
            found = sorted(n for n in os.listdir(path) if n.lower().endswith(IMAGE_SUFFIXES))
            paths += [os.path.join(path, name) for name in found]
        elif os.path.isfile(path):
            paths.append(path)
        else:
            raise Error(f"There is no image at {path} (--input).")
    if not paths:
        raise Error(f"There are no images in {', '.join(inputs)} (--input).")
    return list(dict.fromkeys(paths))


def targets_of(paths, args):
    """The file that is written for each image, or None; nothing is written over unasked."""
    targets = [None] * len(paths)
    if args.output:
        targets = [os.path.join(args.output, os.path.basename(path)) for path in paths]
    files = [path for path in (*targets, args.json) if path]
    originals = {file_id(path) for path in (*paths, args.model) if os.path.exists(path)}
    times = collections.Counter(files)
    for path in filter(None, targets):
        if not cv2.haveImageWriter(path):
            raise Error(f"OpenCV cannot write images like {path}; convert it to .jpg or .png.")
    for path in files:
        if os.path.exists(path) and file_id(path) in originals:
            raise Error(f"{path} is an input, and would be written over; name another --output.")
        if times[path] > 1:
            raise Error(f"{path} would be written twice; give one folder at a time.")
        if os.path.exists(path) and not args.overwrite:
            raise Error(f"{path} already exists; name another --output, or add --overwrite.")
    for path in files:
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        except OSError as error:
            raise Error(f"{path} cannot be written ({error.strerror}).") from error
    return targets


def file_id(path):
    """The same for all names of a file, hard links included."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def draw(image, boxes, scores, names):
    """Boxes and labels, onto the image."""
    thickness = max(1, round(max(image.shape[:2]) / 400))
    for box, score, name in zip(boxes.round().astype(int).tolist(), scores, names):
        # A colour of its own for each name, the same in every image and every run.
        hue = sum((i + 1) * ord(letter) * 37 for i, letter in enumerate(name)) % 180
        color = cv2.cvtColor(np.uint8([[[hue, 200, 230]]]), cv2.COLOR_HSV2BGR)[0, 0].tolist()
        cv2.rectangle(image, box[:2], box[2:], color, thickness)
        place = (box[0] + thickness, max(box[1] - 2 * thickness, 10 * thickness))
        text = f"{name} {score:.0%}"
        font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.4 * thickness
        cv2.putText(image, text, place, font, size, (0, 0, 0), 2 * thickness + 1, cv2.LINE_AA)
        cv2.putText(image, text, place, font, size, color, thickness, cv2.LINE_AA)


def read_image(path):
    """(H, W, 3) uint8, BGR, upright; None for an unreadable or incomplete image."""
    with open(path, "rb") as f:
        content = f.read()
    if not content.startswith(KNOWN_BEGINNINGS):  # OpenCV crashes at some files of other formats
        return None
    # OpenCV would fill up what is missing. In front, there may be the end of a thumbnail.
    rest = content[min(2**16, len(content) // 2) :]
    for beginning, end in ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND")):
        if content.startswith(beginning) and end not in rest:
            return None
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # empty, or too large
        return None


def write_image(path, image):
    _, content = cv2.imencode(os.path.splitext(path)[1], image)
    write_whole(path, content.tobytes())


def write_whole(path, content):
    """The whole file, or nothing."""
    part = f"{path}.part"
    try:
        try:
            with open(part, "wb") as f:
                f.write(content)
            os.replace(part, path)
        finally:
            if os.path.exists(part):
                os.remove(part)
    except OSError as error:
        raise Error(f"{path} cannot be written ({error.strerror}).") from error


if __name__ == "__main__":
    try:
        main(parse_args())
    except Error as error:
        sys.exit(f"error: {error}")
