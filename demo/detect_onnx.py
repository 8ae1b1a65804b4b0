#!/usr/bin/env python
"""Detect objects in images with an exported file. This program needs onnxruntime, numpy and Pillow,
and neither PyTorch nor Detectron2 nor this project: copy it to where the file is used::

    python detect_onnx.py mine.onnx --input photos/ a.jpg --output found --json found.json

The file is one of ``tood export --format onnx``. Its metadata contain the size that images are
resized to, the names of the classes, and so on; the detections are those of the exported model.
"""

import argparse
import hashlib
import json
import os
import pathlib
import sys
import time
import uuid

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError)
SEAL_BYTES = 76  # of the last entry of a file's metadata, a hash of what is before it
SEAM = 2  # pixels of the image; a box that comes so near to a seam may be cut by it


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
    parser.add_argument("--output", metavar="FOLDER", help="folder for the images with boxes")
    parser.add_argument("--json", metavar="FILE", help="detections in COCO's format, with scores")
    parser.add_argument("--all", action="store_true", help="write all detections to that file")
    parser.add_argument(
        "--score-thresh",
        type=parse_score,
        help="score of detections that are counted, drawn and written, from 0 to 1; default: that "
        "of each class in the file's metadata",
    )
    parser.add_argument("--overwrite", action="store_true", help="files that already exist")
    return parser.parse_args(argv)


def parse_score(text):
    """Return a number from 0 to 1; raise ValueError for any other text, as "nan"."""
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError(text)
    return number


def main(args):
    detector = Detector(args.model)
    if args.score_thresh is not None:
        detector.thresholds = np.full(len(detector.classes), args.score_thresh, np.float32)
        detector.guarantee = ""
    paths = find_images(args.input)
    if args.all and not args.json:
        raise Error("--all is about the file of --json; name it, or omit --all.")
    drawings = [os.path.join(args.output, name_drawing(p)) for p in paths if args.output]
    check_outputs([*drawings, *([args.json] if args.json else [])], [args.model, *paths], args)
    found, total, seconds = {}, 0, 0.0
    for i, path in enumerate(paths):
        try:
            image = read_image(path, detector.bit_depth)
        except IMAGE_ERRORS as error:
            print(f"warning: {path} cannot be read ({error}). It is skipped.", file=sys.stderr)
            continue
        start = time.perf_counter()
        boxes, scores, classes = detector(np.asarray(image))
        seconds += time.perf_counter() - start
        shown = scores >= detector.thresholds[classes]
        kept = slice(None) if args.all else shown
        found[path] = image.size, boxes[kept], scores[kept], classes[kept]
        total += shown.sum()
        print(f"{path}: {shown.sum()}")
        if drawings:
            names = [detector.classes[c] for c in classes[shown]]
            draw(image, boxes[shown], scores[shown], names)
            write(drawings[i], image.save)
    if not found:
        raise Error("None of the inputs could be read; see the warnings above.")
    if args.json:
        text = json.dumps(to_coco(found, detector.classes), indent=1)
        write(args.json, lambda part: pathlib.Path(part).write_text(text))
    print(
        f"{len(found)} images, {total} detections {detector.describe_thresholds()}, "
        f"{seconds / len(found):.3f} s each to detect"
    )


def to_coco(found, class_names):
    """Return COCO's instances format, with a score for each annotation; ids are counted from 1."""
    images, annotations = [], []
    for path, ((width, height), *detections) in found.items():
        images.append({"id": len(images) + 1, "file_name": path, "height": height, "width": width})
        for (x1, y1, x2, y2), score, label in zip(*(x.tolist() for x in detections)):
            area, box = (x2 - x1) * (y2 - y1), [x1, y1, x2 - x1, y2 - y1]
            entry = {"id": len(annotations) + 1, "image_id": len(images), "category_id": label + 1}
            annotations.append({**entry, "bbox": box, "area": area, "iscrowd": 0, "score": score})
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


class Detector:
    """Detects the objects of an image, whole or in tiles, with an exported file."""

    def __init__(self, path):
        if not os.path.isfile(path):
            raise Error(f"The file {path} does not exist.")
        self.path, available = path, onnxruntime.get_available_providers()
        # Others would compute in another precision.
        providers = [f"{x}ExecutionProvider" for x in ("CUDA", "CPU")]
        providers = [name for name in providers if name in available]
        try:
            # By its content, so that it cannot name other files beside it.
            content = pathlib.Path(path).read_bytes()
            self.session = onnxruntime.InferenceSession(content, providers=providers)
            (self.input_name,) = (x.name for x in self.session.get_inputs())
        except Exception as error:  # ONNX Runtime has many
            reason = " ".join(str(error).split())[:200]
            raise Error(f"{path} cannot be read by ONNX Runtime ({reason}).") from error
        about = self.session.get_modelmeta().custom_metadata_map
        if about.get("model") != "TOOD" or "num_detections" not in about.get("outputs", ""):
            raise Error(f"{path} makes no detections; write one with tood export, without --raw.")
        if about.get("guarantee") and not is_sealed(content):
            raise Error(
                f"{path} is not as tood export writes it: it was changed since, or is of an "
                "earlier version; the guarantee of its score threshold is of the file as it was; "
                "export it again."
            )
        try:
            self.read_metadata(about)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Error(
                f"{path} has metadata that cannot be read ({error!r}); export it again."
            ) from error

    def read_metadata(self, about):
        self.output_names = list(json.loads(about["outputs"]))
        self.classes = [str(name) for name in json.loads(about["classes"])]
        self.bgr = about["input_format"] != "RGB"
        self.min_size, self.max_size = (int(about[key]) for key in ("min_size", "max_size"))
        self.bit_depth = int(about.get("bit_depth", 16))
        self.tile_size, self.overlap = map(int, json.loads(about.get("tiles", "[0, 0]")))
        self.nms_threshold = parse_score(about["nms_threshold"])
        self.max_detections = int(about["max_detections"])
        self.class_agnostic = json.loads(about.get("class_agnostic_nms", "false"))
        # Files of older versions have none.
        scores = json.loads(about.get("score_thresholds", "null")) or [0.3] * len(self.classes)
        self.thresholds = np.array([parse_score(x) for x in scores], np.float32)
        if len(self.thresholds) != len(self.classes):
            raise ValueError("score_thresholds")
        self.guarantee = about.get("guarantee", "")
        self.mean, self.std = np.zeros(3, np.float32), np.ones(3, np.float32)
        if about["preprocessing"] == "outside":
            self.mean = np.array(json.loads(about["pixel_mean"]), np.float32).reshape(3)
            self.std = np.array(json.loads(about["pixel_std"]), np.float32).reshape(3)

    def describe_thresholds(self):
        if self.guarantee:
            return self.guarantee
        low, high = self.thresholds.min(), self.thresholds.max()
        if low == high:
            return f"of at least {low:g}"
        if len(self.classes) > 8:
            return f"at the thresholds of their classes ({low:.2f} to {high:.2f})"
        listed = [f"{x:.2f} {name}" for x, name in zip(self.thresholds, self.classes)]
        return f"at the thresholds of their classes ({', '.join(listed)})"

    def __call__(self, image):
        """
        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            boxes (D, 4), x1, y1, x2, y2 in pixels of the image; scores (D,) in descending order;
            classes (D,).
        """
        height, width = image.shape[:2]
        boxes, *rest = self.detect_in_tiles(image) if self.tile_size else self.detect(image)
        boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return (boxes[inside], *(x[inside] for x in rest))

    def detect_in_tiles(self, image):
        """Detect in each tile, ignore boxes that a neighbour sees whole, and apply NMS to all."""
        height, width = image.shape[:2]
        tiles = make_tiles(width, height, self.tile_size, self.overlap)
        parts = []
        for tile in tiles:
            x1, y1, x2, y2 = tile
            boxes, scores, classes = self.detect(image[y1:y2, x1:x2])
            boxes = boxes + np.array([x1, y1, x1, y1], np.float32)
            kept = ~seen_whole_elsewhere(boxes, tile, tiles, width, height)
            parts.append((boxes[kept], scores[kept], classes[kept]))
        boxes, scores, classes = (np.concatenate(x) for x in zip(*parts))
        groups = np.zeros_like(classes) if self.class_agnostic else classes
        kept = nms(boxes, scores, groups, self.nms_threshold)[: self.max_detections]
        return boxes[kept], scores[kept], classes[kept]

    def detect(self, image):
        """Return boxes, scores and classes of an image in one piece; boxes may reach out of it."""
        old = image.shape[:2]
        new = compute_size(*old, self.min_size, self.max_size)
        if new != old:  # as in training: by Pillow, antialiased
            image = np.asarray(Image.fromarray(image).resize(new[::-1], Image.BILINEAR))
        image = ((image[:, :, ::-1] if self.bgr else image) - self.mean) / self.std
        images = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
        boxes, scores, classes = self.run(images)
        return boxes * np.array([old[1] / new[1], old[0] / new[0]] * 2, np.float32), scores, classes

    def run(self, images):
        """Return boxes, scores and classes of a batch of one image."""
        try:
            outputs = dict(
                zip(self.output_names, self.session.run(None, {self.input_name: images}))
            )
            number = int(outputs["num_detections"][0])
            names = ("boxes", "scores", "classes")
            boxes, scores, classes = (outputs[name][0, :number] for name in names)
            if boxes.shape != (number, 4) or {scores.shape, classes.shape} != {(number,)}:
                raise ValueError(f"boxes have the shape {boxes.shape}")
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
                raise ValueError("boxes or scores contain NaN or infinity")
            if number and not 0 <= classes.min() <= classes.max() < len(self.classes):
                raise ValueError("there are other classes than it names")
            return boxes, scores, classes.astype(int)
        except Exception as error:  # ONNX Runtime has many
            reason = " ".join(str(error).split())[:200]
            raise Error(f"{self.path} makes no detections ({reason}); export it again.") from error


def compute_size(height, width, min_size, max_size):
    """Return height and width with a shorter side of ``min_size``, or a longer one of ``max_size``
    if that is smaller; 0: as they are.
    """
    if not min_size:
        return height, width
    scale = min_size / min(height, width)
    height, width = (min_size, scale * width) if height < width else (scale * height, min_size)
    if max(height, width) > max_size:
        scale = max_size / max(height, width)
        height, width = height * scale, width * scale
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


# --- tiles of large images -------------------------------------------------------------------


def make_tiles(width, height, size, overlap):
    """Return x1, y1, x2, y2 of tiles of one size that overlap by ``overlap`` pixels or more."""

    def starts(side):
        if side <= size:
            return [0]
        number = 1 - (size - side) // (size - overlap)
        return [(side - size) * i // (number - 1) for i in range(number)]

    columns, rows = starts(width), starts(height)
    return [(x, y, min(x + size, width), min(y + size, height)) for y in rows for x in columns]


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
    """Return the indices of the boxes that are kept, by descending score, each group apart."""
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


# --- files and images ----------------------------------------------------------------------


def is_sealed(content):
    """Return whether a file's content is still what ``tood export`` wrote."""
    return content.endswith(hashlib.sha256(content[:-SEAL_BYTES]).hexdigest().encode())


def find_images(inputs):
    """Return the paths of files, and of the images in folders, each once."""
    paths = []
    for path in inputs:
        if not os.path.exists(path):
            raise Error(f"There is no image at {path} (--input).")
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        names = [os.path.join(path, x) for x in names if x.lower().endswith(IMAGE_SUFFIXES)]
        paths += names if os.path.isdir(path) else [path]
    if not paths:
        raise Error(f"There are no images in {', '.join(inputs)} (--input).")
    return list(dict.fromkeys(paths))


def check_outputs(files, inputs, args):
    """Make the folders of files, and refuse to write over inputs or, unasked, over other files."""
    for path in files:
        if os.path.exists(path) and any(os.path.samefile(path, x) for x in inputs):
            raise Error(f"{path} is an input, and would be written over; name another --output.")
        if files.count(path) > 1:
            raise Error(f"{path} would be written twice; give one folder at a time.")
        if os.path.exists(path) and not args.overwrite:
            raise Error(f"{path} already exists; name another --output, or add --overwrite.")
    for path in files:
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        except OSError as error:
            raise Error(f"{path} cannot be written ({error.strerror}).") from error


def name_drawing(path):
    """Return the name of a drawing: that of the image, if its ending is that of an image."""
    name = os.path.basename(path)
    return name if name.lower().endswith(IMAGE_SUFFIXES) else f"{name}.png"


def read_image(path, bit_depth=16):
    """Return an RGB image, upright; of pixels with more bits, the upper eight."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers; save it with 8 or 16 bits")
    if image.mode[0] == "I":
        pixels = np.asarray(image)
        if pixels.max(initial=0) > 65535 or pixels.min(initial=0) < 0:
            raise ValueError("its pixels have more than 16 bits; save it with 8 or 16")
        image = Image.fromarray((pixels // 2 ** (bit_depth - 8)).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def draw(image, boxes, scores, names):
    """Draw boxes and labels onto an image, in one color per name."""
    canvas, width = ImageDraw.Draw(image), max(1, round(max(image.size) / 400))
    for box, score, name in zip(boxes.tolist(), scores, names):
        hue = sum((i + 1) * ord(letter) * 37 for i, letter in enumerate(name)) % 360
        color, text = f"hsl({hue}, 85%, 60%)", f"{name} {score:.0%}"
        canvas.rectangle(box, outline=color, width=width)
        place = box[0] + width, max(box[1] - 12, 0)
        canvas.text(place, text, fill=color, stroke_width=1, stroke_fill="black")


def write(path, save):
    """Write a whole file by ``save(name)``, or nothing."""
    stem, suffix = os.path.splitext(path)
    part = f"{stem}.{uuid.uuid4().hex[:8]}.part{suffix}"
    try:
        save(part)
        os.replace(part, path)
    except OSError as error:
        raise Error(f"{path} cannot be written ({error.strerror}).") from error
    finally:
        if os.path.exists(part):
            os.remove(part)


if __name__ == "__main__":
    try:
        main(parse_args())
    except Error as error:
        sys.exit(f"error: {error}")
