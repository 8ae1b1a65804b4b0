#!/usr/bin/env python
"""
Detect objects in pictures, videos or a webcam's, and draw them::

    python demo/demo.py --config-file configs/tood_R50_FPN_1x.yaml --input photos/ '*.jpg' a.mp4 \\
        --output found --json found.json MODEL.WEIGHTS tood_R50_FPN_1x.pth
    python demo/demo.py MODEL.WEIGHTS output/demo/model_final.pth

Without --config-file, it is the config.yaml beside the checkpoint; without --input, the first
pictures of its validation data; without --output, a folder "detections" beside the checkpoint.
"""

import argparse
import glob
import logging
import os
import sys
import time

import cv2
from PIL import Image
from tqdm import tqdm

from tood.data import parse_own_data
from tood.draw import draw_boxes
from tood.errors import UserError
from tood.files import check_folder, write_json
from tood.predictor import Predictor, read_picture
from tood.read_config import split_options
from tood.sheets import add_heading, stack_pictures

logger = logging.getLogger("demo")

PICTURES = set(Image.registered_extensions())
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
DEFAULT_INPUTS = 12


def parse_args(argv=None):
    usage, _, note = __doc__.split("::", 1)[1].rpartition("Without --config-file")
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=f"{usage}Without --config-file{note}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", metavar="FILE")
    parser.add_argument(
        "--input", nargs="+", metavar="PATH", help='files, folders, patterns, or "webcam"'
    )
    parser.add_argument("--output", metavar="PATH", help="a folder, or a file for one input")
    parser.add_argument("--score-thresh", type=float, default=0.4, help="of what is drawn")
    parser.add_argument("--json", metavar="FILE", help="detections in COCO's format, with scores")
    parser.add_argument("--sheet", metavar="PNG", help="all pictures on one sheet")
    parser.add_argument("--columns", type=int, default=4, help="of the sheet")
    parser.add_argument("--overwrite", action="store_true", help="files that are there already")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE options of the config")
    args = parser.parse_args(argv)
    if args.input:
        args.input, opts = split_options(args.input)
        args.opts = [*opts, *args.opts]
    if args.columns < 1:
        parser.error("--columns must be at least 1")
    return args


def main(args):
    predictor = Predictor(config_of(args), opts=[*args.opts])
    inputs = inputs_of(args.input, predictor.cfg)
    output = args.output or os.path.join(folder_of_weights(predictor.cfg), "detections")
    if args.input is None and args.sheet is None:
        args.sheet = os.path.join(output, "sheet.png")
    targets = targets_of(inputs, output)
    refuse_to_overwrite([*targets.values(), args.json, args.sheet], args.overwrite)
    run = Run(predictor, args.score_thresh, keep_thumbnails=bool(args.sheet))
    for path, target in tqdm(targets.items(), desc="detecting"):
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        if path == "webcam" or is_video(path):
            run.video(path, target)
        else:
            run.picture(path, target)
    if args.json:
        check_folder(os.path.dirname(args.json) or ".", "--json")
        write_json(run.detections(), args.json)
    if args.sheet and run.thumbnails:
        check_folder(os.path.dirname(args.sheet) or ".", "--sheet")
        columns = args.columns
        rows = [run.thumbnails[i : i + columns] for i in range(0, len(run.thumbnails), columns)]
        Image.fromarray(stack_pictures(rows)).save(args.sheet)
    print(run.summary())
    print(f"Pictures: {output}" + (f", and on one sheet: {args.sheet}" if args.sheet else ""))
    if not run.images:
        raise UserError("None of the inputs could be read; see the warnings above.")


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


def folder_of_weights(cfg):
    return os.path.dirname(cfg.MODEL.WEIGHTS) or "."


def is_video(path):
    return os.path.splitext(path)[1].lower() in VIDEOS


def inputs_of(patterns, cfg):
    """The files that are meant, in order, each once."""
    if patterns is None:
        return validation_pictures(cfg)
    paths = []
    for pattern in patterns:
        found = [pattern]
        if os.path.isdir(pattern):
            known = PICTURES | VIDEOS
            names = sorted(os.listdir(pattern))
            found = [
                os.path.join(pattern, n) for n in names if os.path.splitext(n)[1].lower() in known
            ]
        elif pattern != "webcam" and not os.path.exists(pattern):
            found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise UserError(f"There is no picture or video at {pattern} (--input).")
        paths += found
    return list(dict.fromkeys(paths))


def validation_pictures(cfg):
    own_data = parse_own_data(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else None
    folder = own_data.image_root if own_data else ""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "*"))) if folder else []
    paths = [p for p in paths if os.path.splitext(p)[1].lower() in PICTURES][:DEFAULT_INPUTS]
    if not paths:
        raise UserError("There is nothing to look at: name pictures with --input.")
    return paths


def targets_of(inputs, output):
    """{input: the file that is written for it}; two inputs of one name get different ones."""
    if len(inputs) == 1 and os.path.splitext(output)[1]:
        return {inputs[0]: output}
    check_folder(output, "--output")
    targets, taken = {}, set()
    for path in inputs:
        stem, suffix = os.path.splitext(os.path.basename(path))
        if path == "webcam" or is_video(path):
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
            f"{there[0]} is there already, and {len(there) - 1} more; name another --output, or "
            "add --overwrite."
        )


class Run:
    """Goes through pictures and frames, and counts."""

    THUMBNAIL = 320  # longer side, pixels

    def __init__(self, predictor, score_thresh, keep_thumbnails):
        self.predictor, self.score_thresh = predictor, score_thresh
        self.keep_thumbnails, self.thumbnails = keep_thumbnails, []
        self.images, self.annotations = [], []
        self.skipped, self.seconds, self.start = 0, 0.0, time.perf_counter()

    def picture(self, path, target):
        try:
            image = read_picture(path)
        except UserError as error:
            self.skip(error.sentence())
            return
        drawn = self.detect(image, path)
        Image.fromarray(drawn).save(target)
        if self.keep_thumbnails:
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
        size = frame.shape[1::-1]
        writer = cv2.VideoWriter(target, cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
        if not writer.isOpened():
            raise UserError(f"The video {target} cannot be written; OpenCV lacks its format.")
        progress = tqdm(total=total, desc=os.path.basename(path), leave=False)
        try:
            number = 0
            while ok:
                drawn = self.detect(frame, f"{path}#{number}")[:, :, ::-1]
                writer.write(drawn.copy())
                if path == "webcam" and show_and_ask_to_stop(drawn):
                    break
                progress.update()
                number += 1
                ok, frame = reader.read()
        except KeyboardInterrupt:
            logger.warning(f"Stopped; {target} holds {number} frames.")
        finally:
            reader.release()
            writer.release()
            progress.close()

    def detect(self, image, name):
        """The picture (H, W, 3), RGB, with its detections; counted."""
        start = time.perf_counter()
        instances = self.predictor(image)
        self.seconds += time.perf_counter() - start
        self.note(instances, image.shape, name)
        shown = instances[instances.scores >= self.score_thresh]
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

    def detections(self):
        """COCO's instances format, with a score for each annotation."""
        names = enumerate(self.predictor.class_names, 1)
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": i, "name": name} for i, name in names],
        }

    def skip(self, sentence):
        self.skipped += 1
        tqdm.write(f"warning: {sentence} It is skipped.", file=sys.stderr)

    def summary(self):
        shown = sum(a["score"] >= self.score_thresh for a in self.annotations)
        text = f"{len(self.images)} pictures, {shown} detections of at least {self.score_thresh:g}"
        if self.images:
            text += f", {self.seconds / len(self.images):.3f} s each to detect"
        text += f", {time.perf_counter() - self.start:.1f} s in all"
        return text + (f"; {self.skipped} inputs skipped." if self.skipped else ".")


def show_and_ask_to_stop(frame):
    try:
        cv2.imshow("TOOD: q ends", frame)
        return cv2.waitKey(1) & 0xFF == ord("q")
    except cv2.error:  # no screen: the video is written all the same
        return False


if __name__ == "__main__":
    try:
        main(parse_args())
    except UserError as error:
        sys.exit(f"error: {error.sentence()}")
