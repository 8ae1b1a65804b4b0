"""Write a trained detector to a file that runs without this project::

    python tools/export_model.py --format onnx --config-file output/mine/config.yaml \\
        --output mine.onnx MODEL.WEIGHTS output/mine/model_best.pth
    python tools/export_model.py --format onnx --precision int8 --calibrate photos/ ...
    python tools/export_model.py --format torchscript --output mine.ts ...
    python tools/export_model.py --format exported --output mine.pt2 ...

The file takes any number of images of any size, and finds objects in them: normalization, padding
and NMS are inside, unless --preprocessing outside or --raw say otherwise. What was written is read
again and compared with the model in PyTorch. docs/deploy.md explains how to use such files.
"""

import argparse
import os
import sys
import tempfile

import numpy as np
import torch
from tqdm import tqdm

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.config.read import split_options
from tood.data.entries import parse_own_data
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
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, first_line, run_main
from tood.utils.files import check_folder

ENDINGS = {"onnx": ".onnx", "torchscript": ".ts", "exported": ".pt2"}
CHECKED_IMAGES = 3


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="or a model's name")
    parser.add_argument("--format", choices=ENDINGS, default="onnx")
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument(
        "--raw", action="store_true", help="scores and boxes of every location, without NMS"
    )
    parser.add_argument(
        "--preprocessing",
        choices=("inside", "outside"),
        default="inside",
        help="whether the file normalizes pixel values, or takes normalized ones",
    )
    parser.add_argument(
        "--precision", choices=("float32", "float16", "int8"), default="float32", help="of ONNX"
    )
    parser.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="images to find the ranges of int8 with; without, they are found for each image",
    )
    parser.add_argument("--calibration-images", type=int, default=100, metavar="N", help="at most")
    parser.add_argument("--overwrite", action="store_true")
    argv, opts = split_options(sys.argv[1:] if argv is None else argv)
    args = parse_arguments(parser, argv)
    args.opts = opts
    check_args(args)
    return args


def check_args(args):
    """Raise UserError for problems that show before the model is built."""
    if os.path.splitext(args.output)[1] != ENDINGS[args.format]:
        raise UserError(
            f"{args.output} (--output) must end in {ENDINGS[args.format]}, for --format "
            f"{args.format}."
        )
    if os.path.exists(args.output) and not args.overwrite:
        raise UserError(f"{args.output} already exists; name another --output, or --overwrite.")
    if args.precision != "float32" and args.format != "onnx":
        raise UserError(f"--precision {args.precision} is for --format onnx only.")
    if args.calibrate and args.precision != "int8":
        raise UserError("--calibrate is for --precision int8 only.")
    if args.calibrate and not images_in(args.calibrate):
        raise UserError(f"There are no images in {args.calibrate} (--calibrate).")
    if args.calibration_images < 1:
        raise UserError(f"--calibration-images is {args.calibration_images}; it must be above 0.")
    check_folder(os.path.dirname(args.output) or ".", "--output")


def main(args):
    predictor = Predictor(
        args.config_file, device="cpu", precision="float32", augment=False, opts=args.opts
    )
    options = dict(preprocess=args.preprocessing == "inside", nms=not args.raw)
    calibration = None
    if args.calibrate:
        calibration = calibration_images(calibration_paths(args), predictor, args)
    if args.format == "onnx":
        export_onnx(args, predictor, options, calibration)
    else:
        export_pytorch(args, predictor, options)
    print(f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB")
    print(compare(args, predictor))


def export_onnx(args, predictor, options, calibration):
    module = exportable_to_onnx(predictor.model, **options).eval()
    metadata = metadata_of(module, predictor)
    if args.precision == "float32":
        save_onnx(module, args.output, metadata)
        return
    with tempfile.TemporaryDirectory() as folder:
        part = os.path.join(folder, "float32.onnx")
        save_onnx(module, part, metadata)
        if args.precision == "float16":
            to_float16(part, args.output)
        else:
            to_int8(part, args.output, calibration)


def metadata_of(module, predictor):
    options = predictor.options
    return describe(
        module,
        predictor.class_names,
        min_size=options.min_size_test,
        max_size=options.max_size_test,
        precision="float32",
        tiles=list(options.tiles[:2]),
    )


def export_pytorch(args, predictor, options):
    min_size = predictor.options.min_size_test
    if args.format == "exported" and 0 < min_size < SMALLEST_SIDE_OF_PROGRAM:
        raise UserError(
            f"Images are resized to {min_size} pixels (INPUT.MIN_SIZE_TEST), but PyTorch exports "
            f"programs for sides of {SMALLEST_SIDE_OF_PROGRAM} pixels and more; use --format "
            "torchscript."
        )
    save = save_program if args.format == "exported" else save_torchscript
    module = ExportableTOOD(predictor.model, channels_last=True, **options).eval()
    metadata = metadata_of(module, predictor)
    save(module, args.output, metadata)


def calibration_paths(args):
    """Paths from all over the folder, whose order may mean something; those that can be read."""
    paths = images_in(args.calibrate)
    number = min(len(paths), args.calibration_images)
    paths = [paths[i * len(paths) // number] for i in range(number)]
    for path in paths:
        try:
            probe_image(path)
        except IMAGE_ERRORS as error:
            raise UserError(
                f"The image {path} (--calibrate) cannot be read ({first_line(error)}); take it "
                "out of its folder."
            ) from error
    return paths


def calibration_images(paths, predictor, args):
    """Yield the inputs of the file, one image after the other."""
    for path in tqdm(paths, desc="calibrating"):
        yield given(predictor.input_of(path)["image"][None].float(), predictor.model, args)


def given(images, model, args):
    """Pixel values (N, 3, H, W) as the file wants them, an array."""
    if args.preprocessing == "outside":
        images = (images - model.pixel_mean.cpu()) / model.pixel_std.cpu()
    return images.numpy()


def compare(args, predictor):
    """Describe in one sentence how file and PyTorch differ on images of several sizes."""
    file = ExportedFile(args.output)
    module = ExportableTOOD(predictor.model).eval()
    rows = []
    for pixels in tqdm(check_images(args, predictor), desc="checking"):
        with torch.no_grad():
            outputs = dict(zip(DETECTIONS, module(pixels[None].float())))
        count = int(outputs.pop("num_detections"))
        expected = {name: x[0, :count].numpy() for name, x in outputs.items()}
        rows.append(compare_detections(expected, file.detect(pixels.numpy())))
    matched, unmatched, scores, boxes = zip(*rows) if rows else [[0]] * 4
    if not sum(matched) + sum(unmatched):
        return "Neither the file nor PyTorch found anything in the images it was checked with."
    found = (
        f"{sum(matched)} detections in both, {sum(unmatched)} in one only; scores differ by at "
        f"most {max(scores):.1e}, boxes by {max(boxes):.1e} pixels"
    )
    # Rounding may swap a detection or two at a threshold.
    wrong = max(scores) > 1e-3 or sum(unmatched) > 2 + 0.01 * sum(matched)
    if wrong and args.precision == "float32":
        raise UserError(f"{args.output} does not find what the model finds: {found}.")
    return f"Checked against PyTorch on {len(rows)} images: {found}."


def check_images(args, predictor):
    """Of the calibration or the data sets, or noise; whole, and a part of another size."""
    folders = [args.calibrate] if args.calibrate else []
    for entry in (*predictor.options.data.test, *predictor.options.data.train):
        own_data = parse_own_data(entry)
        folders += [own_data.image_root] if own_data else []
    paths = [path for folder in folders for path in images_in(folder)][:CHECKED_IMAGES]
    noise = np.random.default_rng(0).integers(256, size=(1, 480, 640, 3), dtype=np.uint8)
    images = [predictor.input_of(image)["image"] for image in paths or noise]
    images += [x[:, : -(-x.shape[1] * 3 // 4), x.shape[2] // 9 :] for x in images]
    smallest = SMALLEST_SIDE_OF_PROGRAM if args.format == "exported" else 1
    return [x for x in images if min(x.shape[1:]) >= smallest]


def cli(argv=None):
    run_main(lambda: main(parse_args(argv)))
