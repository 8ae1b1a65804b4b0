"""Detect objects in images, videos or a webcam's, and draw them::

    python demo/demo.py --config-file configs/tood_R50_FPN_1x.yaml --input photos/ '*.jpg' a.mp4 \\
        --output found --json found.json MODEL.WEIGHTS tood_R50_FPN_1x.pth
    python demo/demo.py MODEL.WEIGHTS output/demo/model_final.pth

Without --config-file, it is the config.yaml beside the checkpoint; without --input, the first
images of its validation data; without --output, a folder "detections" beside the checkpoint.
"""

import argparse
import glob
import os
import sys
import time

from PIL import Image
from tqdm import tqdm

try:
    import cv2
except ImportError:
    sys.exit("error: OpenCV is missing, which reads videos and draws: pip install -e .[draw]")

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.config.read import split_options
from tood.data.entries import parse_own_data
from tood.data.images import HEIF, IMAGE_SUFFIXES, images_in
from tood.inference.predictor import Predictor, read_bgr
from tood.inference.thresholds import FROM_REPORT, threshold_of
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, run_main
from tood.utils.files import check_folder, check_image_output, write_image, write_json
from tood.visualization.draw import SCORE_THRESHOLD, add_heading, draw_boxes, image_grid

VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
DEFAULT_INPUTS = 12


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", metavar="FILE")
    parser.add_argument(
        "--input", nargs="+", metavar="PATH", help='files, folders, patterns, or "webcam"'
    )
    parser.add_argument("--output", metavar="PATH", help="a folder, or a file for one input")
    parser.add_argument(
        *("--score-threshold", "--score-thresh"),
        type=threshold_of,
        default=SCORE_THRESHOLD,
        help=f"of what is drawn, a number; or {FROM_REPORT}: of each class that of the best F1, in "
        "the report beside the checkpoint",
    )
    parser.add_argument("--json", metavar="FILE", help="detections in COCO's format, with scores")
    parser.add_argument("--sheet", metavar="PNG", help="all images in one grid")
    parser.add_argument("--columns", type=int, default=4, help="of the sheet")
    parser.add_argument("--overwrite", action="store_true", help="files that already exist")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="options of the config")
    args = parse_arguments(parser, argv)
    if args.input:
        args.input, opts = split_options(args.input)
        args.opts = [*opts, *args.opts]
    if args.columns < 1:
        parser.error("--columns must be at least 1")
    return args


def main(args):
    config_file = config_of(args)
    own = {"score_threshold": FROM_REPORT} if args.score_threshold == FROM_REPORT else {}
    detect(Predictor(config_file, opts=[*args.opts], **own), args)


def detect(predictor, args):
    inputs = inputs_of(args.input, predictor.options)
    output = args.output or os.path.join(folder_of_weights(predictor.options), "detections")
    if args.input is None and args.sheet is None:
        args.sheet = os.path.join(output, "sheet.png")
    targets = targets_of(inputs, output)
    check_outputs(inputs, targets, args)
    run = Run(predictor, args.score_threshold, args.json, args.sheet)
    for path, target in tqdm(targets.items(), desc="detecting"):
        if is_video(path):
            run.video(path, target)
        else:
            run.detect_image(path, target)
    run.write_json()
    run.write_sheet(args.columns)
    print(run.summary())
    if run.num_images:
        print(f"They are in {output}")
    else:
        raise UserError("None of the inputs could be read; see the warnings above.")


def check_outputs(inputs, targets, args):
    """Before any work: what could not be written, or must not be written over."""
    files = [*targets.values(), *(x for x in (args.json, args.sheet) if x)]
    originals = {file_id(path) for path in inputs if os.path.exists(path)}
    for path in files:
        if os.path.exists(path) and file_id(path) in originals:
            raise UserError(
                f"{path} is an input, and would be written over; name another --output."
            )
        if files.count(path) > 1:
            raise UserError(f"{path} would be written twice; name another file.")
    refuse_to_overwrite(files, args.overwrite)
    if args.sheet:
        check_image_output(args.sheet)
    for path in files:
        check_folder(os.path.dirname(path) or ".", "--output, --json or --sheet")


def file_id(path):
    """The same for all names of a file, hard links included."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def config_of(args):
    """Of the command line, or the one that a training left beside its checkpoint."""
    if args.config_file:
        return args.config_file
    options = dict(zip(args.opts[::2], args.opts[1::2]))
    weights = options.get("MODEL.WEIGHTS", "")
    beside = os.path.join(os.path.dirname(weights), "config.yaml")
    if not weights or not os.path.isfile(beside):
        raise UserError(
            "There is no config: name one with --config-file, or a checkpoint that a training left "
            "with MODEL.WEIGHTS FILE."
        )
    return beside


def folder_of_weights(options):
    return os.path.dirname(options.weights) or "."


def is_video(path):
    return path == "webcam" or os.path.splitext(path)[1].lower() in VIDEOS


def inputs_of(patterns, options):
    """The files that are meant, in order, each once."""
    if patterns is None:
        return validation_images(options)
    paths = []
    for pattern in patterns:
        found = [pattern]
        if os.path.isdir(pattern):
            known = IMAGE_SUFFIXES | VIDEOS | set(HEIF)
            names = sorted(os.listdir(pattern))
            found = [
                os.path.join(pattern, n) for n in names if os.path.splitext(n)[1].lower() in known
            ]
        elif pattern != "webcam" and not os.path.exists(pattern):
            found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise UserError(f"There is no image or video at {pattern} (--input).")
        paths += found
    return list(dict.fromkeys(paths))


def validation_images(options):
    own_data = parse_own_data(options.data.test[0]) if options.data.test else None
    paths = images_in(own_data.image_root)[:DEFAULT_INPUTS] if own_data else []
    if not paths:
        raise UserError("No input given: name images with --input.")
    return paths


def targets_of(inputs, output):
    """{input: the file that is written for it}; two inputs of one name get different ones."""
    if len(inputs) == 1 and not os.path.isdir(output):
        suffix = os.path.splitext(output)[1].lower()
        if suffix in (VIDEOS if is_video(inputs[0]) else IMAGE_SUFFIXES):
            return {inputs[0]: output}
        if suffix in VIDEOS | IMAGE_SUFFIXES:
            kind = "video" if is_video(inputs[0]) else "image"
            raise UserError(f"{output} is not the name of a {kind}, as {inputs[0]} is (--output).")
    targets, taken = {}, set()
    for path in inputs:
        stem, suffix = os.path.splitext(os.path.basename(path))
        if is_video(path):
            suffix = ".mp4"
        elif Image.registered_extensions().get(suffix.lower()) not in ("JPEG", "PNG"):
            suffix = ".png"
        name, number = stem + suffix, 2
        while name in taken:
            name, number = f"{stem}_{number}{suffix}", number + 1
        taken.add(name)
        targets[path] = os.path.join(output, name)
    return targets


def refuse_to_overwrite(paths, allowed):
    there = [path for path in paths if path and os.path.exists(path)]
    if there and not allowed:
        raise UserError(
            f"{there[0]} already exists, and {len(there) - 1} more; name another --output, or "
            "add --overwrite."
        )


class Run:
    """Goes through images and frames, and counts."""

    THUMBNAIL = 320  # longer side, pixels

    def __init__(self, predictor, score_thresh, json_file, sheet):
        # The predictor has applied those of the report.
        self.told = (
            "the report's thresholds" if score_thresh == FROM_REPORT else f"{score_thresh:g}"
        )
        self.score_thresh = 0.0 if score_thresh == FROM_REPORT else score_thresh
        self.predictor = predictor
        self.json_file, self.sheet = json_file, sheet
        self.images, self.annotations, self.thumbnails = [], [], []  # only what is asked for
        self.num_images = self.num_shown = self.skipped = 0
        self.seconds, self.start = 0.0, time.perf_counter()

    def detect_image(self, path, target):
        try:
            drawn = self.detect(read_bgr(path), path)
        except UserError as error:
            self.skip(error.sentence())
            return
        write_image(drawn, target)
        if self.sheet:
            scale = self.THUMBNAIL / max(drawn.shape[:2])
            size = [max(1, round(x * scale)) for x in drawn.shape[1::-1]]
            small = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
            self.thumbnails.append(add_heading(small, os.path.basename(path)))

    def video(self, path, target):
        """Frame by frame, to the same rate and size; a webcam until q or Ctrl-C."""
        reader = cv2.VideoCapture(0 if path == "webcam" else path)
        fps = reader.get(cv2.CAP_PROP_FPS) or 25.0
        total = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)) if path != "webcam" else None
        ok, frame = reader.read()
        if not ok:
            self.skip(f"The video {path} cannot be read.")
            return
        # Under another name until it is whole.
        part = "{}.part{}".format(*os.path.splitext(target))
        size = frame.shape[1::-1]
        writer = cv2.VideoWriter(part, cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
        if not writer.isOpened():
            raise UserError(f"The video {target} cannot be written; OpenCV lacks its format.")
        progress = tqdm(total=total, desc=os.path.basename(path), leave=False)
        number = 0
        try:
            while ok:
                drawn = self.detect(frame, f"{path}#{number}")[:, :, ::-1]
                writer.write(drawn.copy())
                if path == "webcam" and show_and_ask_to_stop(drawn):
                    break
                progress.update()
                number += 1
                ok, frame = reader.read()
        except KeyboardInterrupt:
            if path != "webcam":  # whose end this is
                raise
        finally:
            reader.release()
            writer.release()
            progress.close()
        os.replace(part, target)
        if total and number < total:
            self.skipped += 1
            tqdm.write(
                f"warning: The video {path} ends after {number} of {total} frames; what follows "
                "cannot be read.",
                file=sys.stderr,
            )

    def detect(self, image, name):
        """The image (H, W, 3), RGB, with its detections; counted."""
        start = time.perf_counter()
        instances = self.predictor(image)
        self.seconds += time.perf_counter() - start
        self.num_images += 1
        if self.json_file:
            self.note(instances, image.shape, name)
        shown = instances[instances.scores >= self.score_thresh]
        self.num_shown += len(shown)
        return draw_boxes(
            image[:, :, ::-1],
            shown.pred_boxes.tensor.numpy(),
            shown.pred_classes.tolist(),
            self.predictor.class_names,
            shown.scores.tolist(),
        )

    def note(self, instances, shape, name):
        image_id = len(self.images) + 1
        self.images.append(
            {"id": image_id, "file_name": name, "height": shape[0], "width": shape[1]}
        )
        rows = zip(
            instances.pred_boxes.tensor.tolist(),
            instances.pred_classes.tolist(),
            instances.scores.tolist(),
        )
        for (x1, y1, x2, y2), label, score in rows:
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": score,
                }
            )

    def write_json(self):
        """COCO's instances format, with a score for each annotation; ids are counted from 1."""
        if not self.json_file:
            return
        names = enumerate(self.predictor.class_names, 1)
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": i, "name": name} for i, name in names],
        }
        write_json(content, self.json_file)

    def write_sheet(self, columns):
        if not (self.sheet and self.thumbnails):
            return
        small = self.thumbnails
        rows = [small[i : i + columns] for i in range(0, len(small), columns)]
        write_image(image_grid(rows), self.sheet)

    def skip(self, sentence):
        self.skipped += 1
        tqdm.write(f"warning: {sentence} It is skipped.", file=sys.stderr)

    def summary(self):
        text = f"{self.num_images} images, {self.num_shown} detections of at least "
        text += self.told
        if self.num_images:
            text += f", {self.seconds / self.num_images:.3f} s each to detect"
        text += f", {time.perf_counter() - self.start:.1f} s in all"
        return text + (f"; {self.skipped} inputs skipped." if self.skipped else ".")


def show_and_ask_to_stop(frame):
    try:
        cv2.imshow("TOOD: q ends", frame)
        return cv2.waitKey(1) & 0xFF == ord("q")
    except cv2.error:  # no screen: the video is written all the same
        return False


def cli(argv=None):
    run_main(lambda: main(parse_args(argv)))
