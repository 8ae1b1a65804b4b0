"""Write a trained detector to a file that runs without this project; docs/deploy.md explains it."""

import contextlib
import os
import tempfile
import time
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, NamedTuple, Sequence, Union

import numpy as np
import torch

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.app.trained import find_trained
from tood.checkpoint.identity import hash_weights
from tood.data.datasets import list_images
from tood.data.images import IMAGE_ERRORS, images_in, probe_image
from tood.deploy.module import (
    DETECTIONS,
    SMALLEST_SIDE_OF_PROGRAM,
    ExportableTOOD,
    describe,
    save_program,
    save_torchscript,
)
from tood.deploy.onnx import exportable_to_onnx, save_onnx
from tood.deploy.precision import to_float16, to_int8
from tood.inference.exported import ExportedFile, compare_detections
from tood.inference.predictor import Predictor
from tood.inference.thresholds import GUARANTEED, Thresholds, parse_threshold
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError, format_reason
from tood.utils.files import check_folder, refuse_existing

ENDINGS = {"onnx": ".onnx", "torchscript": ".ts", "exported": ".pt2"}
PREPROCESSING, PRECISIONS = ("inside", "outside"), ("float32", "float16", "int8")
CHECKED_IMAGES = 3
# Durations for a small model on two idle CPU cores.
DURATIONS = {
    "onnx": "about half a minute",
    "torchscript": "a few seconds",
    "exported": "about 15 seconds",
}
CALIBRATION_IMAGES = 100


@dataclass(frozen=True)
class Exported:
    """A file that was written and compared with the model; ``str(exported)`` says both."""

    path: str
    format: str
    num_bytes: int
    num_images: int  # that it was compared on
    comparison: str  # a sentence
    thresholds: Thresholds = field(repr=False)  # in its metadata

    def __str__(self) -> str:
        return self.thresholds.add_note(
            f"{self.path}: {self.num_bytes / 1e6:.1f} MB\n{self.comparison}\n"
            f"Its metadata say to use detections {self.thresholds.text}."
        )


# Options of all exported files.
FIXED = {
    "TEST.AUG.ENABLED": "False",
    "MODEL.TOOD.PRECISION_TEST": "float32",
    "MODEL.DEVICE": "cpu",
}


class _Options(NamedTuple):
    output: str
    format: str
    raw: bool
    preprocessing: str
    precision: str
    calibrate: str
    calibration_images: int
    score_threshold: Union[None, float, str] = None


@accept_paths("model", "output", "calibrate", "config")
def export(
    model: str,
    *,
    output: str,
    format: str = "onnx",
    raw: bool = False,
    preprocessing: str = "inside",
    precision: str = "float32",
    calibrate: str = "",
    calibration_images: int = CALIBRATION_IMAGES,
    score_threshold: Union[None, float, str] = None,
    overwrite: bool = False,
    config: str = "",
    options: Sequence[str] = (),
) -> Exported:
    """Export a trained model, read the file again, and compare it with the model in PyTorch::

        tood.export("output/mine", output="mine.onnx", precision="int8", calibrate="photos/")

    The file takes any number of images of any size, and finds objects in them: normalization,
    padding and NMS are inside, unless ``preprocessing`` or ``raw`` say otherwise.

    Args:
        model: an output folder, a checkpoint, or the name of a released model.
        output: path of the file; it ends in .onnx, .ts or .pt2, by the format.
        format: "onnx", "torchscript" or "exported" (a program of ``torch.export``).
        raw: return scores and boxes of every location, without NMS.
        preprocessing: "inside": the file normalizes pixel values; "outside": it takes normalized
            ones.
        precision: "float32", "float16" or "int8", of ONNX.
        calibrate: folder of images to find the ranges of int8 with; without, they are found for
            each image.
        calibration_images: number of these images, at most.
        score_threshold: threshold in the metadata of the file, as in ``tood.predict``.
        overwrite: replace a file that already exists.
        config: file of the model's config; default: config.yaml beside the checkpoint.
        options: overrides of the config, keys and values in turn.

    Raises:
        UserError: for a file or a value that cannot be used, a missing package, and a file of
            float32 that does not find what the model finds.
    """
    chosen = _Options(
        *(output, format, raw, preprocessing, precision, calibrate, calibration_images),
        parse_threshold(score_threshold),
    )
    check_options(chosen, overwrite)
    print(
        f"Exporting {model} to {output}: {DURATIONS[format]} on a CPU for a small model", flush=True
    )
    trained = find_trained(model, config)
    _refuse_fixed(options)
    predictor = Predictor(
        trained.config_file,
        device="cpu",
        precision="float32",
        augment=False,
        score_threshold=chosen.score_threshold,
        opts=trained.options(options, writes=False),
    )
    parts = dict(preprocess=preprocessing == "inside", nms=not raw)
    if format == "onnx":
        _export_onnx(chosen, predictor, parts)
    else:
        _export_pytorch(chosen, predictor, parts)
    return compare(chosen, predictor)


def _refuse_fixed(options: Sequence[str]) -> None:
    """Raise UserError for an option that no exported file can have."""
    for key, value in zip(options[::2], options[1::2]):
        if FIXED.get(key, value).lower() != value.lower():
            raise UserError(f"{key} {value} has no effect on an exported file; omit it.")


def check_options(options: _Options, overwrite: bool) -> None:
    """
    Raises:
        UserError: for problems that show before the model is built.
    """
    output, format, precision = options.output, options.format, options.precision
    for name, value, choices in (
        ("format", format, ENDINGS),
        ("preprocessing", options.preprocessing, PREPROCESSING),
        ("precision", precision, PRECISIONS),
    ):
        if value not in choices:
            raise UserError(f"--{name} is {value!r}; it must be one of {', '.join(choices)}.")
    if os.path.splitext(output)[1] != ENDINGS[format]:
        raise UserError(
            f"{output} (--output) must end in {ENDINGS[format]}, for --format {format}."
        )
    refuse_existing("", [output], overwrite)
    if precision != "float32" and format != "onnx":
        raise UserError(f"--precision {precision} is for --format onnx only.")
    if precision != "float32" and options.score_threshold == GUARANTEED:
        raise UserError(
            f"The guarantee is of the model in float32, not in {precision}; use a file in float32, "
            "or another --score-threshold."
        )
    if options.calibrate and precision != "int8":
        raise UserError("--calibrate is for --precision int8 only.")
    if options.calibrate and not images_in(options.calibrate):
        raise UserError(f"There are no images in {options.calibrate} (--calibrate).")
    if options.calibration_images < 1:
        number = options.calibration_images
        raise UserError(f"--calibration-images is {number}; it must be above 0.")
    if options.calibration_images != CALIBRATION_IMAGES and precision != "int8":
        raise UserError("--calibration-images is for --precision int8 only.")
    check_folder(os.path.dirname(output) or ".", "--output")


def _export_onnx(options: _Options, predictor: Predictor, parts: Dict) -> None:
    calibration = read_calibration(predictor, options) if options.calibrate else None
    module = exportable_to_onnx(predictor.model, **parts).eval()
    metadata = describe_file(module, predictor, **_describe_guarantee(options, predictor))
    if options.precision == "float32":
        save_onnx(module, options.output, metadata, stage=print_stage)
        return
    with tempfile.TemporaryDirectory() as folder:
        part = os.path.join(folder, "float32.onnx")
        save_onnx(module, part, metadata, stage=print_stage)
        with print_stage(f"Converting to {options.precision}"):
            if options.precision == "float16":
                to_float16(part, options.output)
            else:
                to_int8(part, options.output, calibration)


@contextlib.contextmanager
def print_stage(title: str) -> Iterator[None]:
    """Print what is done, and the seconds that it took."""
    start = time.monotonic()
    print(title, end=" ... ", flush=True)
    try:
        yield
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.monotonic() - start:.0f} s", flush=True)


def _describe_guarantee(options: _Options, predictor: Predictor) -> Dict[str, str]:
    """Return the entry of the metadata on a guarantee, if its threshold is used."""
    is_used = options.score_threshold == GUARANTEED
    return {"guarantee": predictor.thresholds.text} if is_used else {}


def describe_file(module: ExportableTOOD, predictor: Predictor, **more: str) -> Dict:
    """Return the metadata of an exported file, with more entries."""
    options = predictor.options
    return describe(
        module,
        predictor.class_names,
        min_size=options.min_size_test,
        max_size=options.max_size_test,
        precision="float32",
        tiles=list(options.tiles[:2]),
        bit_depth=options.bit_depth,
        weights=hash_weights(predictor.model.state_dict()),
        score_thresholds=predictor.thresholds.values,
        **more,
    )


def _export_pytorch(options: _Options, predictor: Predictor, parts: Dict) -> None:
    min_size = predictor.options.min_size_test
    if options.format == "exported" and 0 < min_size < SMALLEST_SIDE_OF_PROGRAM:
        raise UserError(
            f"Images are resized to {min_size} pixels (INPUT.MIN_SIZE_TEST), but PyTorch exports "
            f"programs for sides of {SMALLEST_SIDE_OF_PROGRAM} pixels and more; use --format "
            "torchscript."
        )
    save = save_program if options.format == "exported" else save_torchscript
    module = ExportableTOOD(predictor.model, channels_last=True, **parts).eval()
    metadata = describe_file(module, predictor, **_describe_guarantee(options, predictor))
    with print_stage("Tracing and writing the network"):
        save(module, options.output, metadata)


def read_calibration(predictor: Predictor, options: _Options) -> Iterator[np.ndarray]:
    """Return the input of the file, (1, 3, H, W), for images from all over the folder, whose order
    may mean something.

    Raises:
        UserError: for an image that cannot be read.
    """
    paths = images_in(options.calibrate)
    number = min(len(paths), options.calibration_images)
    paths = [paths[i * len(paths) // number] for i in range(number)]
    for path in paths:
        try:
            probe_image(path)
        except IMAGE_ERRORS as error:
            raise UserError(
                f"The image {path} (--calibrate) cannot be read ({format_reason(error)}); take it "
                "out of its folder."
            ) from error
    model = predictor.model

    def read(path: str) -> np.ndarray:
        images = predictor.make_input(path)["image"][None].float()
        if options.preprocessing == "outside":
            images = (images - model.pixel_mean.cpu()) / model.pixel_std.cpu()
        return images.numpy()

    return map(read, paths)


def compare(options: _Options, predictor: Predictor) -> Exported:
    """Compare the file with PyTorch on images of several sizes."""
    file = ExportedFile(options.output)
    module = ExportableTOOD(predictor.model).eval()
    images, rows = read_check_images(options, predictor), []
    with print_stage(f"Comparing {len(images)} images"):
        for pixels in images:
            with torch.no_grad():
                outputs = dict(zip(DETECTIONS, module(pixels[None].float())))
            number = int(outputs.pop("num_detections"))
            expected = {name: x[0, :number].numpy() for name, x in outputs.items()}
            rows.append(compare_detections(expected, file.detect(pixels.numpy())))
    size = os.path.getsize(options.output)
    sentence, thresholds = _judge(options, rows), predictor.thresholds
    return Exported(options.output, options.format, size, len(rows), sentence, thresholds)


def _judge(options: _Options, rows: List) -> str:
    matched, unmatched, scores, boxes = zip(*rows) if rows else [[0]] * 4
    if not sum(matched) + sum(unmatched):
        return "Neither the file nor PyTorch found anything in the images it was checked with."
    found = (
        f"{sum(matched)} detections in both, {sum(unmatched)} in one only; scores differ by at "
        f"most {max(scores):.1e}, boxes by {max(boxes):.1e} pixels"
    )
    # Rounding may swap a detection or two at a threshold.
    wrong = max(scores) > 1e-3 or sum(unmatched) > 2 + 0.01 * sum(matched)
    if wrong and options.precision == "float32":
        raise UserError(f"{options.output} does not find what the model finds: {found}.")
    return f"Checked against PyTorch on {len(rows)} images: {found}."


def read_check_images(options: _Options, predictor: Predictor) -> List[torch.Tensor]:
    """Return images of the calibration or the data sets, or noise; whole, and a part of another
    size.
    """
    paths = images_in(options.calibrate) if options.calibrate else []
    data = predictor.options.data
    for entry in (*data.test, *data.train):
        paths += list_images(entry) if len(paths) < CHECKED_IMAGES else []
    paths = paths[:CHECKED_IMAGES]
    noise = np.random.default_rng(0).integers(256, size=(1, 480, 640, 3), dtype=np.uint8)
    images = [predictor.make_input(image)["image"] for image in paths or noise]
    images += [x[:, : -(-x.shape[1] * 3 // 4), x.shape[2] // 9 :] for x in images]
    smallest = SMALLEST_SIDE_OF_PROGRAM if options.format == "exported" else 1
    return [x for x in images if min(x.shape[1:]) >= smallest]
