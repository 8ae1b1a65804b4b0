#!/usr/bin/env python
"""Measure everything of interest on a GPU in one table, in less than a quarter of an hour::

    python tools/benchmark_gpu.py --output gpu.md
    python tools/benchmark_gpu.py --data bccd/train.json:bccd/train bccd/val.json:bccd/val
    python tools/benchmark_gpu.py --device cpu --tiny

Tests, ``benchmark.py`` in several precisions, the demo, an exported file, and two processes. A part
that fails becomes a line of the table, the others still run, and the exit status is 1. Please send
the table in. The last command shows on any machine that everything runs, with images so small that
its times mean nothing.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from benchmark import table
from tqdm import tqdm

from tood.utils.arguments import make_parser, parse_arguments
from tood.utils.errors import UserError, run_main
from tood.utils.files import write_whole

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEMO, SMALL_DATA = "configs/demo_shapes.yaml", "configs/tood_lite0_N_P2_small_data.yaml"
PARTS = ("tests", "training", "inference", "losses", "demo", "photographs", "processes", "compile")
# Keys that make a network tiny, and a training of a few steps.
TINY_MODEL = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
TINY_MODEL += ["MODEL.TOOD.CONV_DIM", "64", "MODEL.TOOD.NUM_CONVS", "2"]
TINY_TRAINING = ["SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(2,3)", "MODEL.TOOD.ATSS_ITERS", "2"]


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cpu to try it without a GPU")
    parser.add_argument("--tiny", action="store_true", help="small images, models and trainings")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, default=8, help="images of a training step")
    parser.add_argument("--minutes", type=float, default=15, help="no command begins after them")
    parser.add_argument(
        "--data", nargs=2, metavar=("TRAIN", "VAL"), help="annotations:images of a short training"
    )
    parser.add_argument("--output", metavar="FILE", help="write the table there as well")
    args = parse_arguments(parser, argv)
    args.cuda = args.device.startswith("cuda")
    if args.cuda and not torch.cuda.is_available():
        raise UserError(
            "This machine has no GPU that PyTorch can use; --device cpu --tiny tries the script."
        )
    args.batch = min(args.batch, 2) if args.tiny else args.batch
    return args


def list_commands(args, folder):
    """Return (part, title, command) of everything, in the order in which it runs."""

    def measure(part, title, *flags, batch=args.batch):
        size, rounds = ("96x128", "2") if args.tiny else ("800x1333", "7")
        command = ["tools/benchmark.py", *flags, "--device", args.device, "--size", size]
        command += ["--rounds", rounds, "--batch", str(batch)]
        return part, f"{title}, {batch} images: ", command + TINY_MODEL * args.tiny

    def train(part, title, config, data, *launcher, few_steps=args.tiny):
        out = os.path.join(folder, part)
        command = [*launcher, "train_net.py", "--config-file", config]
        command += ["--train-data", data[0], "--val-data", data[1], "OUTPUT_DIR", out]
        command += ["MODEL.DEVICE", args.device]
        return part, title, command + TINY_TRAINING * few_steps

    half = "float16" if args.cuda else "bfloat16"  # float16 takes a CPU minutes
    shapes = [f"{folder}/{x}/annotations.json:{folder}/{x}/images" for x in ("train", "val")]
    tests = f"tests/modeling/test_{'' if args.cuda else 'fake_'}cuda.py"
    step, memory = ["--parts", "step"], ["--parts", "step", "memory"]
    in_half = ["--dtype", half, "--same-dtype"]
    yield "tests", tests, ["-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    yield measure("training", "float32", *memory)
    yield measure("training", "TF32", *step, "--tf32")
    yield measure("training", half, *memory, *in_half)
    if args.cuda:
        yield measure("training", "bfloat16", *step, "--dtype", "bfloat16", "--same-dtype")
    yield measure("training", f"{half}, channels-last", *step, *in_half, "--channels-last")
    for batch in (1, 2 if args.tiny else 8):
        yield measure("inference", "float32", "--parts", "inference", batch=batch)
        yield measure("inference", half, "--parts", "inference", *in_half, batch=batch)
    for dtype in ("float32", half):
        yield measure("losses", dtype, "--parts", "losses", "--no-retinanet", "--dtype", dtype)
    images = ["--num-train", "8", "--num-val", "4"] if args.tiny else []
    yield "demo", "demo: data", ["tools/make_shapes.py", folder, *images]
    yield train("demo", "demo: AP, AP50, ...", DEMO, shapes)
    export = ["-m", "tood", "export", f"{folder}/demo", "--format", "onnx", "MODEL.DEVICE", "cpu"]
    yield "demo", "demo: exported file", [*export[:6], "--output", f"{folder}/a.onnx", *export[6:]]
    if args.data:
        yield train("photographs", "photographs: AP, AP50, ...", SMALL_DATA, args.data)
    if not args.cuda or torch.cuda.device_count() > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        title = "two processes: AP, AP50, ..."
        yield "processes", "data", ["tools/make_shapes.py", folder, "--num-train", "8"]
        yield train("processes", title, DEMO, shapes, *launcher, few_steps=True)
    yield measure("compile", f"{half}, compiled", *step, "--dtype", half, "--compile")


def run(title, command, seconds):
    """Run a program of the project, and return its rows: those of a table that it prints, its AP,
    or its last line.
    """
    start = time.time()
    options = dict(cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    try:
        done = subprocess.run([sys.executable, *command], **options)
    except subprocess.TimeoutExpired:
        return [(title, "failed", f"not done after {seconds:.0f} s")]
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).splitlines()
    last = next((x for x in reversed(lines) if x.strip()), "no output").strip("= ")
    if done.returncode != 0:
        return [(title, "failed", last[:200])]
    if "| what | measured |" in done.stdout:
        rows = [[cell.strip() for cell in x.split("|")] for x in lines if x.startswith("|")]
        return [(title + what, value, note) for _, what, value, note, _ in rows[2:]]
    metrics = [x.split("copypaste: ")[1] for x in lines if "copypaste: " in x]
    return [(title, metrics[-1] if metrics else last, f"{time.time() - start:.0f} s")]


def describe(args):
    """Return the name of the card, and the versions of driver and libraries."""
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
    with tempfile.TemporaryDirectory() as folder:
        commands = [x for x in list_commands(args, folder) if x[0] in args.parts]
        for _, title, command in tqdm(commands, desc="commands"):
            left = start + 60 * args.minutes - time.time()
            skipped = [(title, "skipped", f"{args.minutes:g} minutes have passed")]
            rows += run(title, command, left + 60) if left > 0 else skipped
    rows.append(("all of this", f"{(time.time() - start) / 60:.1f} min", ""))
    text = f"{describe(args)}\n\n{table(rows)}\n"
    print(text)
    if args.output:
        write_whole(args.output, text.encode())
    if any(row[1] == "failed" for row in rows):
        raise UserError("Some of it failed: see the table.")


if __name__ == "__main__":
    run_main(main)
