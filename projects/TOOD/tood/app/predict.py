"""Detect objects in images, videos or a webcam's, and draw them or write them as a data set."""

import contextlib
import functools
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image
from tqdm import tqdm

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.app.convert.detections import check_dataset, to_coco, write_detections
from tood.app.convert.folder import is_inside
from tood.app.convert.formats.coco import DETECTIONS
from tood.app.trained import find_trained
from tood.config.options import RunOptions
from tood.data.datasets import list_images
from tood.data.images import IMAGE_SUFFIXES, read_bgr
from tood.data.inputs import VIDEOS, WEBCAM, find_files, is_video
from tood.inference.predictor import Predictor
from tood.inference.results import Result
from tood.inference.thresholds import parse_threshold
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError
from tood.utils.files import (
    check_folder,
    check_format,
    choose_output,
    refuse_folder,
    refuse_photograph,
    write_image,
)
from tood.utils.files import write_json as write_json_file
from tood.utils.reading import open_regular

try:
    import cv2

    from tood.data.videos import (
        is_video_file,
        read_frames,
        read_property,
        show_and_ask_to_stop,
        written_video,
    )
    from tood.visualization.draw import add_heading, image_grid
except ImportError as error:
    raise UserError(
        "OpenCV is missing, which reads videos and draws: pip install -e .[draw]"
    ) from error

DEFAULT_INPUTS = 12
THUMBNAIL = 320  # longer side in the sheet, pixels
COLUMNS = 4  # of a sheet
# Of files, not of folders.
OTHER_ENDINGS = {".csv", ".gif", ".heic", ".heif", ".html", ".json", ".pdf", ".svg", ".txt", ".xml"}


@dataclass(frozen=True)
class Predictions:
    """Detections in images; ``str(predictions)`` is their number and the path of the drawings."""

    output: str  # folder or file of the drawings, or folder of the data set
    results: List[Result] = field(repr=False)  # at least of the score threshold
    skipped: int  # inputs that could not be read
    summary: str = field(repr=False)

    @property
    def detections(self) -> Dict[str, Dict]:
        """Arrays of each image, as of ``Predictor.as_dicts``, by its path or "VIDEO#FRAME"."""
        return {result.path: result.as_dict() for result in self.results}

    @property
    def num_images(self) -> int:
        """Number of images and frames."""
        return len(self.results)

    @property
    def num_detections(self) -> int:
        """Number of detections in all images."""
        return sum(map(len, self.results))

    def __str__(self) -> str:
        return f"{self.summary}\nThey are in {self.output}"


@accept_paths("model", "images", "output", "json", "sheet", "config")
def predict(
    model: str,
    images: Union[None, str, Sequence[str]] = None,
    *,
    output: str = "",
    score_threshold: Union[None, float, str] = None,
    save_as: str = "",
    json: str = "",
    all_detections: bool = False,
    sheet: str = "",
    columns: int = COLUMNS,
    watch: bool = False,
    overwrite: bool = False,
    config: str = "",
    options: Sequence[str] = (),
) -> Predictions:
    """Detect objects in images and videos, and draw them::

        found = tood.predict("output/mine", "photos/", output="found")
        for result in found.results:
            print(result.path, result.labels, result.scores, result.boxes)
        tood.predict("output/mine", "photos/**", save_as="yolo", output="labelled")

    Args:
        model: an output folder, a checkpoint, or the name of a released model.
        images: files, folders, patterns, or "webcam"; "FOLDER/**" includes sub-folders. Default:
            the first 12 validation images, and a sheet of them.
        output: a folder, or a file if there is one input; default: "detections" beside the
            checkpoint, with a number if it exists ("detections-2").
        score_threshold: threshold of the detections that are counted, drawn, written and returned;
            "from-report": for each class that of the best F1, from the report beside the
            checkpoint; "guaranteed": that of ``tood.guarantee``; "from-config": all that the
            model finds. Default: those of the report, if it is on these weights, or 0.3.
        save_as: "coco", "yolo", "voc" or "labelme": write a data set of this format to the output
            folder, as ``tood.convert`` does, instead of drawings.
        json: file for the detections in COCO's format, with scores.
        all_detections: write all that the model finds to this file, for COCO's metrics.
        sheet: file for a grid of all images.
        columns: images in a row of the sheet.
        watch: warn if images are not like those of the calibration any more; it needs
            ``tood.calibrate``.
        overwrite: replace files that already exist.
        config: file of the model's config; default: config.yaml beside the checkpoint.
        options: overrides of the config, keys and values in turn.

    Raises:
        UserError: for a file or a value that cannot be used, files that already exist, and inputs
            of which none can be read. Single inputs that cannot be read are skipped, with a
            warning on stderr.
    """
    _check_flags(images, columns, sheet, json, all_detections)
    trained, threshold = find_trained(model, config), parse_threshold(score_threshold)
    opts = trained.options(options, writes=False)
    predictor = Predictor(trained.config_file, opts=opts, score_threshold=threshold, watch=watch)
    inputs, note = find_inputs(images, predictor.options)
    output = choose_output(output, os.path.join(trained.folder, "detections"), overwrite)
    if not (images or sheet or save_as):
        sheet = os.path.join(output, "sheet.png")
    targets = dict.fromkeys(inputs, "") if save_as else choose_targets(inputs, output)
    check_outputs(inputs, list(targets.values()), sheet, json, overwrite)
    if save_as:
        _refuse_inner((json, sheet), output)
        check_dataset(save_as, inputs, output, overwrite)
    run = Run(predictor, with_sheet=bool(sheet), keep_all=all_detections)
    run.detect(targets)
    if save_as:
        write_detections(run.results, save_as, output, predictor, overwrite)
    if json:
        run.write_json(json)
    if run.thumbnails:
        run.write_sheet(sheet, columns)
    text = predictor.thresholds.add_note(run.summarize(json) + note)
    text += f"\n{predictor.watch}" if predictor.watch else ""
    return Predictions(output, run.results, run.skipped, text)


def _check_flags(images: object, columns: int, sheet: str, json: str, all_detections: bool) -> None:
    if images is not None and not images:
        raise UserError("The list of images is empty; name images, folders or patterns.")
    if columns < 1:
        raise UserError(f"--columns is {columns}; it must be above 0.")
    if columns != COLUMNS and images and not sheet:
        raise UserError("--columns is about --sheet; name it, or omit --columns.")
    if all_detections and not json:
        raise UserError("--all is about the file of --json; name it, or omit --all.")


def check_outputs(
    inputs: List[str], drawings: List[str], sheet: str, json: str, overwrite: bool
) -> None:
    """
    Raises:
        UserError: before any work, for files that could not or must not be written.
    """
    if sheet and all(map(is_video, inputs)):
        raise UserError("--sheet is of images, and all inputs are videos; omit it.")
    files = [path for path in (*drawings, json, sheet) if path]
    originals = {_identify(path) for path in inputs if os.path.exists(path)}
    real = [os.path.join(os.path.realpath(os.path.dirname(x)), os.path.basename(x)) for x in files]
    numbers = Counter(real)
    for path, place in zip(files, real):
        refuse_folder(path)
        if os.path.exists(path) and _identify(path) in originals:
            raise UserError(
                f"{path} is an input, and would be written over; name another --output."
            )
        if numbers[place] > 1:
            raise UserError(f"{path} would be written twice; name another file.")
    existing = [path for path in files if os.path.exists(path)]
    if existing and not overwrite:
        more = f", and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UserError(
            f"{existing[0]} already exists{more}; name other files, or add --overwrite."
        )
    for path in existing:
        refuse_photograph(path, VIDEOS)
        if path == json and not _is_ours(path):
            raise UserError(
                f"{path} was not written by tood predict, and is not written over; name another "
                "--json."
            )
    images = [x for x in drawings if os.path.splitext(x)[1].lower() not in VIDEOS]
    for path in filter(None, (*images, sheet)):
        check_format(path)
    for path in files:
        check_folder(os.path.dirname(path) or ".", "--output, --json or --sheet")


def _refuse_inner(files: Sequence[str], output: str) -> None:
    """Raise UserError for files in a data set, one of which they could replace."""
    for path in filter(None, files):
        if is_inside(os.path.dirname(path) or ".", output):
            raise UserError(f"{path} lies in the data set {output}; name another place for it.")


def _is_ours(path: str) -> bool:
    with open_regular(path) as f:
        return DETECTIONS["contributor"].encode() in f.read(512)  # begins with it


def _identify(path: str) -> Tuple[int, int]:
    """Return the same for all names of a file, hard links included."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def find_inputs(
    patterns: Union[None, str, Sequence[str]], options: RunOptions
) -> Tuple[List[str], str]:
    """Return the files of paths, folders and patterns, as :func:`tood.data.inputs.find_files` does;
    without a pattern, the first validation images, and a sentence that says so.

    Raises:
        UserError: for a pattern without a file.
    """
    return find_files(patterns) if patterns else _list_validation_images(options)


def _list_validation_images(options: RunOptions) -> Tuple[List[str], str]:
    paths = [path for entry in options.data.test for path in list_images(entry)]
    if not paths:
        where = ", ".join(options.data.test)
        raise UserError(
            "No image is given, and the model's validation images are not on this machine "
            f"(DATASETS.TEST is {where or 'empty'}); name images, folders or patterns."
        )
    paths = list(dict.fromkeys(paths))
    kept = paths[:DEFAULT_INPUTS]
    return kept, f" They are the first {len(kept)} of {len(paths)} validation images."


def choose_targets(inputs: List[str], output: str) -> Dict[str, str]:
    """Return {input: the file to write}; two inputs of one name get different ones.

    Raises:
        UserError: for the name of a file of another kind.
    """
    if len(inputs) == 1 and not os.path.isdir(output):
        suffix = os.path.splitext(output)[1].lower()
        if suffix in (VIDEOS if is_video(inputs[0]) else IMAGE_SUFFIXES):
            return {inputs[0]: output}
        if suffix in VIDEOS | IMAGE_SUFFIXES | OTHER_ENDINGS:
            kind = "a video" if is_video(inputs[0]) else "an image"
            raise UserError(f"{output} is not the name of {kind}, as {inputs[0]} is (--output).")
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


class Run:
    """Goes through images and frames, and collects the results."""

    def __init__(self, predictor: Predictor, *, with_sheet: bool, keep_all: bool):
        self.predictor, self.with_sheet, self.keep_all = predictor, with_sheet, keep_all
        self.thumbnails: List[np.ndarray] = []
        self.results: List[Result] = []  # of at least the thresholds
        self.unfiltered: List[Result] = []  # for --all
        self.skipped = 0
        self.seconds, self.start = 0.0, time.perf_counter()

    def detect(self, targets: Dict[str, str]) -> None:
        """Go through all inputs.

        Raises:
            UserError: if none of them can be read.
        """
        for path, target in tqdm(targets.items(), desc="detecting"):
            self.detect_video(path, target) if is_video(path) else self.detect_image(path, target)
        if not self.results:
            raise UserError("None of the inputs could be read; see the warnings above.")

    def detect_image(self, path: str, target: str) -> None:
        try:
            read = functools.partial(read_bgr, path, self.predictor.options.bit_depth)
            image = read()
            result = self._detect(image, path, read)
        except UserError as error:
            self._warn(f"{error.sentence()} It is skipped.")
            return
        if not target and not self.with_sheet:
            return
        drawn = result.draw(image)
        if target:
            write_image(drawn, target)
        if self.with_sheet:
            scale = THUMBNAIL / max(drawn.shape[:2])
            size = [max(1, round(x * scale)) for x in drawn.shape[1::-1]]
            small = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
            self.thumbnails.append(add_heading(small, os.path.basename(path)))

    def detect_video(self, path: str, target: str) -> None:
        """Detect in each frame, and write a video of the same rate and size; of a webcam, until q
        or Ctrl-C.
        """
        if path != WEBCAM and not is_video_file(path):
            self._warn(f"{path} is not a video in a regular file. It is skipped.")
            return
        reader = cv2.VideoCapture(0 if path == WEBCAM else path)
        total = int(read_property(reader, cv2.CAP_PROP_FRAME_COUNT, 1e9)) or None
        frames = read_frames(reader)
        first = next(frames, None)
        if first is None:
            self._warn(f"The video {path} cannot be read. It is skipped.")
            return
        progress = tqdm(total=total, desc=os.path.basename(path), leave=False)
        frame: Optional[np.ndarray] = first
        number = 0
        with contextlib.closing(progress), written_video(reader, first, target) as writer:
            try:
                while frame is not None:
                    name = f"{path}#{number}"
                    drawn = self._detect(frame, name).draw(frame)[:, :, ::-1]
                    writer.write(drawn.copy())
                    if path == WEBCAM and show_and_ask_to_stop(drawn):
                        break
                    progress.update()
                    number, frame = number + 1, next(frames, None)
            except KeyboardInterrupt:
                if path != WEBCAM:  # which ends by it
                    raise
        if path != WEBCAM and total and number < total:
            self._warn(
                f"The video {path} ends after {number} of {total} frames; the rest cannot be read."
            )

    def _detect(
        self, image: np.ndarray, name: str, read: Optional[Callable[[], np.ndarray]] = None
    ) -> Result:
        """Collect the detections in an image (H, W, 3), BGR."""
        start = time.perf_counter()
        (instances,) = self.predictor.find_all([image])
        self.seconds += time.perf_counter() - start
        class_names = self.predictor.class_names
        shown = self.predictor.finish(instances, image, name)
        if self.keep_all:
            self.unfiltered.append(Result(instances, class_names, name, read))
        self.results.append(Result(shown, class_names, name, read))
        return self.results[-1]

    def write_json(self, path: str) -> None:
        """Write the detections, marked as such, with their thresholds."""
        info: Dict[str, Any] = {**DETECTIONS, **self.predictor.identity}
        if not self.keep_all:
            limits = zip(self.predictor.class_names, self.predictor.thresholds.values)
            info["score_thresholds"] = dict(limits)
        content = to_coco(self.unfiltered if self.keep_all else self.results)
        write_json_file({"info": info, **content}, path)

    def write_sheet(self, path: str, columns: int) -> None:
        small = self.thumbnails
        rows = [small[i : i + columns] for i in range(0, len(small), columns)]
        write_image(image_grid(rows), path)

    def _warn(self, sentence: str) -> None:
        self.skipped += 1
        tqdm.write(f"warning: {sentence}", file=sys.stderr)

    def summarize(self, json: str) -> str:
        """Return a sentence on all images, and one on the file of all detections."""
        number, words = len(self.results), self.predictor.thresholds.text
        text = (
            f"{number} images, {sum(map(len, self.results))} detections {words}, "
            f"{self.seconds / number:.3f} s each to detect, "
            f"{time.perf_counter() - self.start:.1f} s in all"
        )
        text += f"; {self.skipped} inputs skipped." if self.skipped else "."
        limit = self.predictor.model.max_detections_per_image
        full = sum(len(x) >= limit for x in self.results)
        if full:
            kept = f"{limit} detections, the most that are kept (TEST.DETECTIONS_PER_IMAGE)"
            text += f" {full} of the images have {kept}."
        if self.keep_all:
            text += f" {json} has all {sum(map(len, self.unfiltered))} detections (--all)."
        return text
