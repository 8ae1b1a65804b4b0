#!/usr/bin/env python
"""Measure everything of interest on a GPU in one table, in less than a quarter of an hour::

    python tools/benchmark_gpu.py --output gpu.md
    python tools/benchmark_gpu.py --data bccd/train.json:bccd/train bccd/val.json:bccd/val
    python tools/benchmark_gpu.py --device cpu --tiny

Tests, ``benchmark.py`` in several precisions, the demo, an exported file, and two processes if there
are two GPUs. A part that fails becomes a line of the table, the others still run, and the exit
status is 1. Please send the table in. The last command shows on any machine that everything runs,
with images so small that its times mean nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

from tood.utils import quiet  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from benchmark import table
from tqdm import tqdm

from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, first_line, run_main
from tood.utils.files import write_whole

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEMO, SMALL_DATA = "configs/demo_shapes.yaml", "configs/tood_lite0_N_P2_small_data.yaml"
# Keys that make a network tiny, and a training of a few steps.
TINY_MODEL = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
TINY_MODEL += ["MODEL.TOOD.CONV_DIM", "64", "MODEL.TOOD.NUM_CONVS", "2"]
TINY_TRAINING = ["SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(2,3)", "MODEL.TOOD.ATSS_ITERS", "2"]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cpu to try it without a GPU")
    parser.add_argument("--tiny", action="store_true", help="small images, models and trainings")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, default=8, help="images of a training step")
    parser.add_argument("--minutes", type=float, default=15, help="no part begins after them")
    parser.add_argument(
        "--data", nargs=2, metavar=("TRAIN", "VAL"), help="annotations:images of a short training"
    )
    parser.add_argument("--output", metavar="FILE", help="write the table there as well")
    args = parse_arguments(parser, sys.argv[1:] if argv is None else argv)
    args.cuda = args.device.startswith("cuda")
    if args.cuda and not torch.cuda.is_available():
        raise UserError(
            "This machine has no GPU that PyTorch can use; --device cpu --tiny tries the script."
        )
    args.half = "float16" if args.cuda else "bfloat16"  # float16 takes a CPU minutes
    args.deadline = time.time() + 60 * args.minutes
    if args.tiny:
        args.batch = min(args.batch, 2)
    return args


def run(command, args):
    """Run a program of the project until the time is over, and return its output.

    Raises:
        UserError: with its last line if it fails.
    """
    left = max(args.deadline + 60 - time.time(), 30)
    options = dict(cwd=ROOT, capture_output=True, text=True, timeout=left)
    try:
        result = subprocess.run([sys.executable, *command], **options)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} was not done after {left:.0f} s") from error
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["no output"]
        raise UserError(f"{' '.join(command[:3])}: {lines[-1]}")
    return result.stdout


def run_tests(args):
    """The tests that only a GPU can run, or without one the same on fake tensors."""
    name = "test_cuda.py" if args.cuda else "test_fake_cuda.py"
    output = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/modeling/{name}"], args)
    yield name, output.strip().splitlines()[-1].strip("= "), ""


def measure(title, batch, flags, args):
    """Return the rows of ``benchmark.py``, under a title."""
    size = "96x128" if args.tiny else "800x1333"
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        command = ["tools/benchmark.py", "--device", args.device, "--size", size, "--json", report]
        command += ["--batch", str(batch), "--rounds", "2" if args.tiny else "7", *flags]
        run([*command, *(TINY_MODEL if args.tiny else [])], args)
        with open(report) as f:
            rows = json.load(f)["rows"]
    return [(f"{title}, {batch} images: {what}", value, note) for what, value, note in rows]


def measure_training(args):
    """Steps of both detectors in several precisions."""
    half = ["--dtype", args.half, "--same-dtype"]
    bfloat16 = {"bfloat16": ["--dtype", "bfloat16", "--same-dtype"]} if args.cuda else {}
    channels_last = [*half, "--channels-last", "--no-retinanet"]
    settings = {"float32": [], "TF32": ["--tf32"], args.half: half, **bfloat16}
    for name, flags in {**settings, f"{args.half}, channels-last": channels_last}.items():
        parts = ["--parts", "step", *(["memory"] if name in ("float32", args.half) else [])]
        yield from measure(name, args.batch, [*parts, *flags], args)


def measure_inference(args):
    for batch in (1, 2 if args.tiny else 8):
        for dtype in ("float32", args.half):
            flags = ["--parts", "inference", "--dtype", dtype, "--same-dtype"]
            yield from measure(dtype, batch, flags, args)


def measure_losses(args):
    for dtype in ("float32", args.half):
        flags = ["--parts", "losses", "--dtype", dtype, "--no-retinanet"]
        yield from measure(dtype, args.batch, flags, args)


def measure_compiled(args):
    """A training step by torch.compile, which takes minutes."""
    flags = ["--parts", "step", "--dtype", args.half, "--compile", "--no-retinanet"]
    yield from measure(f"{args.half}, compiled", args.batch, flags, args)


def train(name, config, train_data, val_data, output, args):
    """Train by ``train_net.py``, and return the row of its AP."""
    flags = ["--config-file", config, "--train-data", train_data, "--val-data", val_data]
    options = ["OUTPUT_DIR", output, "MODEL.DEVICE", args.device, "MODEL.TOOD.REPORT", "False"]
    start = time.time()
    run(["train_net.py", *flags, *options, *(TINY_TRAINING if args.tiny else [])], args)
    with open(os.path.join(output, "metrics.json")) as f:
        aps = [x["bbox/AP"] for x in map(json.loads, f) if "bbox/AP" in x]
    return f"{name}: AP", f"{aps[-1]:.1f}", f"{time.time() - start:.0f} s in all"


def draw_shapes(folder, args):
    """Generate the demo's data, and return the entries of both parts."""
    images = ["--num-train", "8", "--num-val", "4"] if args.tiny else []
    run(["tools/make_shapes.py", folder, *images], args)
    return [f"{folder}/{x}/annotations.json:{folder}/{x}/images" for x in ("train", "val")]


def train_demo(args):
    """A training of the demo, and its exported file in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = draw_shapes(folder, args), os.path.join(folder, "out")
        yield train("demo", DEMO, *data, out, args)
        command = ["-m", "tood", "export", out, "--format", "onnx", "--output", f"{folder}/a.onnx"]
        output = run([*command, "MODEL.DEVICE", "cpu"], args)
        yield "exported file", output.strip().splitlines()[-1], ""


def train_own(args):
    """A training on a few hundred photographs."""
    if not args.data:
        yield "training on photographs", "skipped", "--data names none"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield train("photographs", SMALL_DATA, *args.data, folder, args)


def train_in_two_processes(args):
    """A few steps by two processes."""
    if args.cuda and torch.cuda.device_count() < 2:
        yield "two processes", "skipped", "one GPU"
        return
    with tempfile.TemporaryDirectory() as folder:
        train_data, val_data = draw_shapes(folder, args)
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["train_net.py", "--config-file", DEMO, "--train-data", train_data]
        options = ["MODEL.DEVICE", args.device, "OUTPUT_DIR", f"{folder}/out", *TINY_TRAINING]
        run([*command, "--val-data", val_data, *options], args)
        trained = os.path.isfile(f"{folder}/out/model_final.pth")
        yield "two processes", "trained" if trained else "failed", "nccl" if args.cuda else "gloo"


PARTS = {
    "tests": run_tests,
    "training": measure_training,
    "inference": measure_inference,
    "losses": measure_losses,
    "demo": train_demo,
    "photographs": train_own,
    "processes": train_in_two_processes,
    "compile": measure_compiled,
}


def describe(args):
    """Return the name of the card, and the versions of what computes on it."""
    card = platform.processor() or platform.machine()
    if args.cuda:
        memory = torch.cuda.get_device_properties(0).total_memory / 1024**3
        card = f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
    size = "96 x 128, a tiny model" if args.tiny else "800 x 1333, R-50-FPN"
    versions = f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    return f"{card}, {args.device}, {versions}; {size}, 20 objects per image, random weights"


def main(argv=None):
    args = parse_args(argv)
    rows, start = [], time.time()
    for name in tqdm(args.parts, desc="parts"):
        if time.time() > args.deadline:
            rows.append((name, "skipped", f"{args.minutes:g} minutes have passed"))
            continue
        try:
            rows.extend(PARTS[name](args))  # those before an error as well
        except Exception as error:  # the other parts are measured all the same
            rows.append((name, "failed", first_line(error)[:200]))
    rows.append(("all of this", f"{(time.time() - start) / 60:.1f} min", ""))
    text = f"{describe(args)}\n\n{table(rows)}\n"
    print(text)
    if args.output:
        write_whole(args.output, text.encode())
    if any("failed" in row[1:2] for row in rows):
        raise UserError("Some of it failed: see the table.")


if __name__ == "__main__":
    run_main(main)
