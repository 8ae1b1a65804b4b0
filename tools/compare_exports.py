#!/usr/bin/env python
"""Compare exported files with their model: AP, time and size, as Markdown::

    python tools/compare_exports.py --config-file output/mine/config.yaml \\
        mine.onnx mine_int8.onnx mine.onnx@openvino mine.ts \\
        MODEL.WEIGHTS output/mine/model_best.pth

AP is COCO's on the first of DATASETS.TEST, of the same pixels as in ``train_net.py --eval-only``.
Times are medians for one image, from pixels to detections. Each file has turns of several images,
after a rest: the threads of most runtimes go on spinning after a call, and would halve the speed of
another runtime if it was called next. With ``--sides 320 640`` the images are resized to squares
of these sides for it.
"""

import contextlib
import io
import itertools
import os
import statistics
import time

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from detectron2.evaluation import inference_on_dataset
from torch.nn.functional import interpolate as resize
from tqdm import tqdm

from tood.data.datasets import prepare_datasets
from tood.evaluation.coco import CleanCOCOEvaluator
from tood.inference.exported import FREQUENT, RUNTIMES, ExportedDetector, ExportedFile
from tood.inference.predictor import Predictor
from tood.modeling.detector import PRECISIONS
from tood.utils.arguments import make_parser, parse_arguments, split_overrides
from tood.utils.errors import UserError, run_main

TURNS = 3
WARMUP_CALLS = 2  # of each turn; FREQUENT in the first, until a runtime has compiled for the size
REST = 0.2  # seconds before each turn, until the threads of the last one sleep


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="or a model's name")
    parser.add_argument(
        "--precision",
        action="append",
        choices=PRECISIONS,
        help="precision of PyTorch; may be repeated",
    )
    parser.add_argument("--images", type=int, default=15, help="images to time")
    parser.add_argument(
        "--sides", type=int, nargs="+", metavar="PIXELS", help="sides of square images to time"
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE[@RUNTIME]", help=f"runtimes are {', '.join(RUNTIMES)}"
    )
    argv, opts = split_overrides(argv)
    args = parse_arguments(parser, argv)
    args.opts, args.precisions = opts, args.precision or ["float32"]
    if args.images < 1:
        raise UserError(f"--images is {args.images}; it must be above 0.")
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
    weights = predictor.model.state_dict().values()
    sizes = dict.fromkeys(detectors, sum(x.numel() * x.element_size() for x in weights))
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
    times = {
        column: measure(detectors, batches)
        for column, batches in batches_to_time(predictor, args.images, args.sides).items()
    }
    progress = tqdm(detectors.items(), desc="evaluating")
    results = {name: evaluate(predictor, detector) for name, detector in progress}
    print(f"| | AP | AP50 | AP75 | {' | '.join(times)} | MB |\n{'|---' * (5 + len(times))}|")
    for name, metrics in results.items():
        aps = [f"{metrics[key]:.3f}" for key in ("AP", "AP50", "AP75")]
        medians = [f"{1e3 * statistics.median(x[name]):.1f}" for x in times.values()]
        print(f"| {' | '.join((name, *aps, *medians, f'{sizes[name] / 1e6:.1f}'))} |")


def split_runtime(entry):
    """Split FILE[@RUNTIME]; a path may contain an @ as well."""
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
    """Return COCO's metrics of boxes."""
    dataset = predictor.options.data.test[0]
    loader, evaluator = predictor.build_test_loader(dataset), CleanCOCOEvaluator(dataset)
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        return inference_on_dataset(detector, loader, evaluator)["bbox"]


def batches_to_time(predictor, images, sides):
    """Return {title: batches of one image}, as they are evaluated, or resized to squares."""
    loader = predictor.build_test_loader(predictor.options.data.test[0])
    batches = list(itertools.islice(loader, images))
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
    """Return {name: seconds for each image, in each turn}."""
    seconds = {name: [] for name in detectors}
    for name in tqdm([*detectors] * TURNS, desc="timing"):
        time.sleep(REST)
        calls = WARMUP_CALLS if seconds[name] else FREQUENT
        for i, batch in enumerate([batches[0]] * calls + batches):
            start = time.perf_counter()
            with torch.no_grad():
                detectors[name](batch)
            if i >= calls:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    run_main(lambda: main(parse_args()))
