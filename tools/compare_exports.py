#!/usr/bin/env python
"""Exported files beside the model they are of: AP, time and size, as Markdown::

    python tools/compare_exports.py --config-file output/mine/config.yaml \\
        mine.onnx mine_int8.onnx mine.onnx@openvino mine.ts \\
        MODEL.WEIGHTS output/mine/model_best.pth

AP is COCO's on the first of DATASETS.TEST, of the very pixels that ``train_net.py --eval-only``
gives to the model. Times are of one image, from pixels to detections, all in turn: medians.
``--sides 320 640`` takes them of the same images made squares of these sides.
"""

import argparse
import contextlib
import io
import itertools
import os
import statistics
import sys
import time

from tood.utils import quiet  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from detectron2.evaluation import inference_on_dataset
from torch.nn.functional import interpolate as resize
from tqdm import tqdm

from tood.config.read import split_options
from tood.data.datasets import prepare_datasets
from tood.evaluation.coco import CleanCOCOEvaluator
from tood.inference.exported import RUNTIMES, ExportedDetector, ExportedFile
from tood.inference.predictor import Predictor
from tood.modeling.detector import PRECISIONS
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, run_main

WARMUP_ROUNDS = 2


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="or a model's name")
    parser.add_argument(
        "--precision",
        action="append",
        choices=PRECISIONS,
        help="of a row of PyTorch; may be repeated",
    )
    parser.add_argument("--rounds", type=int, default=15, help="of timing")
    parser.add_argument(
        "--sides", type=int, nargs="+", metavar="PIXELS", help="of square images to time"
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE[@RUNTIME]", help=f"runtimes are {', '.join(RUNTIMES)}"
    )
    argv, opts = split_options(sys.argv[1:] if argv is None else argv)
    args = parse_arguments(parser, argv)
    args.opts, args.precisions = opts, args.precision or ["float32"]
    if args.rounds < 1:
        raise UserError(f"--rounds is {args.rounds}; it must be above 0.")
    if args.sides and min(args.sides) < 1:
        raise UserError(f"--sides has {min(args.sides)}; sides are 1 pixel or more.")
    for values in (args.files, args.precisions):
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{value} is named twice; name it once.")
    return args


def main(args):
    detectors = {}
    for precision in args.precisions:
        predictor = Predictor(
            args.config_file, device="cpu", precision=precision, augment=False, opts=args.opts
        )
        detectors[f"PyTorch {torch.__version__.split('+')[0]}, {precision}"] = predictor.model
    sizes = dict.fromkeys(detectors, weights_size(predictor.model))
    for entry in args.files:
        path, runtime = split_runtime(entry)
        file = ExportedFile(path, runtime)
        check_same_model(file, predictor)
        name = f"{file.runtime}, {path}"
        detectors[name] = ExportedDetector(file)
        sizes[name] = os.path.getsize(path)
    if not predictor.options.data.test:
        raise UserError("DATASETS.TEST is empty; name the data to evaluate on.")
    prepare_datasets(predictor.options.data, training=False)
    results = {}
    for name, detector in tqdm(detectors.items(), desc="evaluating"):
        results[name] = evaluate(predictor, detector)
    times = {
        column: measure(detectors, batches)
        for column, batches in batches_to_time(predictor, args.rounds, args.sides).items()
    }
    print(f"| | AP | AP50 | AP75 | {' | '.join(times)} | MB |\n{'|---' * (5 + len(times))}|")
    for name, metrics in results.items():
        aps = [f"{metrics[key]:.3f}" for key in ("AP", "AP50", "AP75")]
        medians = [f"{1e3 * statistics.median(x[name]):.1f}" for x in times.values()]
        print(f"| {' | '.join((name, *aps, *medians, f'{sizes[name] / 1e6:.1f}'))} |")


def split_runtime(entry):
    """A path may have an @ as well."""
    path, _, runtime = entry.rpartition("@")
    return (path, runtime) if path and runtime in RUNTIMES else (entry, "")


def check_same_model(file, predictor):
    about = {"classes": predictor.class_names, "input_format": predictor.options.input_format}
    for key, value in about.items():
        if file.metadata[key] != value:
            raise UserError(
                f"{file.path} is of another model than MODEL.WEIGHTS: its {key} is "
                f"{file.metadata[key]}, not {value}."
            )


def evaluate(predictor, detector):
    """COCO's metrics, of boxes."""
    evaluator = CleanCOCOEvaluator(predictor.options.data.test[0])
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        return inference_on_dataset(
            detector, predictor.build_test_loader(predictor.options.data.test[0]), evaluator
        )["bbox"]


def batches_to_time(predictor, rounds, sides):
    """{title: batches of one image}: as they are evaluated, or squares of the given sides."""
    batches = list(
        itertools.islice(predictor.build_test_loader(predictor.options.data.test[0]), rounds)
    )
    if not sides:
        return {"ms an image": batches}
    return {
        f"ms at {side} x {side}": [
            [{"image": resize(batch[0]["image"][None].float(), [side, side])[0]}]
            for batch in batches
        ]
        for side in sides
    }


def measure(detectors, batches):
    """{name: seconds for an image, one a round}."""
    seconds = {name: [] for name in detectors}
    batches = [batches[0]] * WARMUP_ROUNDS + batches
    for i, batch in enumerate(tqdm(batches, desc="timing")):
        for name, detector in detectors.items():
            start = time.perf_counter()
            with torch.no_grad():
                detector(batch)
            if i >= WARMUP_ROUNDS:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def weights_size(model):
    return sum(x.numel() * x.element_size() for x in model.state_dict().values())


if __name__ == "__main__":
    run_main(lambda: main(parse_args()))
