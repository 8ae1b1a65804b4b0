#!/usr/bin/env python
"""All that is worth knowing of a GPU as one table, in less than a quarter of an hour::

    python tools/benchmark_gpu.py --output gpu.md
    python tools/benchmark_gpu.py --data bccd/train.json:bccd/train bccd/val.json:bccd/val
    python tools/benchmark_gpu.py --device cpu --tiny

Tests, training and inference beside Detectron2's RetinaNet and Faster R-CNN, the demo, an exported
file, and two processes if there are two GPUs. A part that fails becomes a line of the table, and
the others still run; the exit status is then 1. Please send the table in. The last command shows on
any machine that everything runs, with images so small that its times mean nothing.
"""

import argparse
import contextlib
import gc
import glob
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import NamedTuple

from tood.utils import quiet  # isort: skip  # noqa: F401  (first: libraries warn)

import numpy as np
import torch
from benchmark import measure_losses, share_outside_products, synchronize
from benchmark_subjects import make_faster_rcnn, make_retinanet, make_tood
from tqdm import tqdm

from tood.modeling.detector import PRECISIONS
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, first_line, run_main
from tood.utils.files import write_whole

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
R50, DEMO = "configs/tood_R50_FPN_1x.yaml", "configs/demo_shapes.yaml"
SMALL_DATA = "configs/tood_lite0_N_P2_small_data.yaml"
# Keys that make a network tiny, and a training of a few steps.
TINY_MODEL = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
TINY_MODEL += ["MODEL.TOOD.CONV_DIM", "64", "MODEL.TOOD.NUM_CONVS", "2"]
TINY_TRAINING = ["SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(2,3)", "MODEL.TOOD.ATSS_ITERS", "2"]
MAKERS = {"TOOD": make_tood, "RetinaNet": make_retinanet, "Faster R-CNN": make_faster_rcnn}


class Row(NamedTuple):
    """A line of the table."""

    what: str
    value: str
    note: str = ""  # an aim and whether it was met, or a reason


class Setting(NamedTuple):
    """Dtype and options of a detector's computation."""

    dtype: str = "float32"
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False

    def __str__(self):
        names = [self.dtype, *(["TF32"] if self.tf32 else [])]
        names += ["channels-last"] if self.channels_last else []
        return ", ".join([*names, *(["compiled"] if self.compile else [])])


PLAIN = Setting()


def half(args, **options):
    """A setting in half precision: float16, which takes a CPU minutes, only on a GPU."""
    return Setting("float16" if args.cuda else "bfloat16", **options)


def settings_of_training(args):
    """All settings that training is measured in, with the detectors of each."""
    of_all = [PLAIN, Setting(tf32=True), half(args), *([Setting("bfloat16")] if args.cuda else [])]
    cases = [(name, setting) for setting in of_all for name in MAKERS]
    return [*cases, ("TOOD", half(args, channels_last=True))]


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
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "This machine has no GPU that PyTorch can use; --device cpu --tiny tries the script."
        )
    args.cuda = args.device.startswith("cuda")
    args.deadline = time.time() + 60 * args.minutes
    if args.tiny:
        args.batch = min(args.batch, 2)
    return args


# --- detectors in this process --------------------------------------------------------------


def make(name, setting, args, batch):
    """A detector on the device, as it computes in a setting."""
    for switches in (torch.backends.cuda.matmul, torch.backends.cudnn):
        switches.allow_tf32 = setting.tf32
    options = SimpleNamespace(
        config_file=os.path.join(ROOT, R50),
        opts=TINY_MODEL if args.tiny else [],
        size=(96, 128) if args.tiny else (800, 1333),
        batch=batch,
        objects=20,
        candidates=500,
        num_classes=80,
        device=args.device,
        dtype=setting.dtype,
        compile=setting.compile,
        rounds=2 if args.tiny else 7,
    )
    if name == "TOOD":
        subject = make_tood(options)
    else:
        subject = MAKERS[name](options, PRECISIONS[setting.dtype])
    if setting.channels_last:
        subject.model.to(memory_format=torch.channels_last)
    return subject


def median_seconds(function, args):
    """The median over rounds, after two that are not counted."""
    seconds = []
    for i in range(-2, args.rounds):
        synchronize(args)
        start = time.perf_counter()
        function()
        synchronize(args)
        if i >= 0:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_training(args):
    """Images a second and peak memory of each detector in each setting, and their ratios."""
    rows, speed = [], {}
    for name, setting in tqdm(settings_of_training(args), desc="training steps", leave=False):
        rows += training_row(name, setting, args, speed)
    for setting in (PLAIN, half(args)):
        rows += ratio("training step", speed, ("RetinaNet", setting), ("TOOD", setting), 0.9)
    fast, slow = ("TOOD", half(args)), ("TOOD", PLAIN)
    return rows + ratio("images/s", speed, fast, slow, 1.8, at_least=True)


def measure_compiled(args):
    """The same of TOOD's backbone and head by torch.compile, which takes minutes."""
    return training_row("TOOD", half(args, compile=True), args, {})


def training_row(name, setting, args, speed):
    """The row of a detector, whose images a second are put into ``speed``."""
    rows, title = [], f"training, {name}, {setting}, {args.batch} images"
    with failing_as_a_row(rows, title), free_memory(args):
        subject = make(name, setting, args, args.batch)
        seconds = median_seconds(subject.step, subject.args)
        text = f"{args.batch / seconds:.1f} images/s"
        if args.cuda:  # nothing else is alive
            text += f", {torch.cuda.max_memory_allocated() / 1024**3:.1f} GiB"
        speed[name, setting] = args.batch / seconds
        rows.append(Row(title, text))
    return rows


def measure_inference(args):
    """Milliseconds of each detector at two sizes of batches."""
    rows, speed = [], {}
    batches = (1, 2) if args.tiny else (1, 8)
    cases = [(n, s, b) for b in batches for s in (PLAIN, half(args)) for n in MAKERS]
    for name, setting, batch in tqdm(cases, desc="inference", leave=False):
        title = f"inference, {name}, {setting}, {batch} images"
        with failing_as_a_row(rows, title), free_memory(args):
            subject = make(name, setting, args, batch)
            subject.set_threshold()
            seconds = median_seconds(subject.inference, subject.args)
            speed[name, setting, batch] = batch / seconds
            rows.append(Row(title, f"{1000 * seconds:.1f} ms"))
    for batch in batches:
        retinanet, tood = ((name, PLAIN, batch) for name in ("RetinaNet", "TOOD"))
        rows += ratio(f"inference, {batch} images", speed, retinanet, tood, 0.9)
    return rows


def ratio(what, speed, above, below, aim, at_least=False):
    """The row of a ratio of two speeds, where both were measured."""
    if above not in speed or below not in speed:
        return []
    value = speed[above] / speed[below]
    met = value >= aim if at_least else value <= aim
    names = [", ".join(map(str, key)) for key in (above, below)]
    names = names if at_least else names[::-1]  # of times, the other way round
    wish = f"aim: at {'least' if at_least else 'most'} {aim}, {'met' if met else 'missed'}"
    return [Row(f"{what}: {names[0]} by {names[1]}", f"{value:.2f}", wish)]


def measure_parts(args):
    """Measure the time of a step outside of convolutions, and that of assignment and losses."""
    rows = []
    for setting in (PLAIN, half(args)):
        with failing_as_a_row(rows, f"parts of a step, {setting}"), free_memory(args):
            subject = make("TOOD", setting, args, args.batch)
            subject.step()
            share = share_outside_products(subject.step, subject.args)
            title = f"training step, {setting}, outside convolutions and matrix products"
            met = "met" if share <= 0.1 else "missed"
            rows.append(Row(title, f"{100 * share:.1f} %", f"aim: at most 10 %, {met}"))
            metrics = measure_losses(subject, subject.args)
            metrics.pop("added_memory")
            for name, times in metrics.items():
                rows.append(Row(f"losses and assignment, {setting}, {name}", _ms(times)))
    return rows


def _ms(times):
    return f"{times['median_ms']:.1f} ms"


@contextlib.contextmanager
def free_memory(args):
    """Give back what a detector took, and start its peak anew."""
    gc.collect()
    if args.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield
    torch._dynamo.reset()


@contextlib.contextmanager
def failing_as_a_row(rows, title):
    try:
        yield
    except Exception as error:  # of any part of PyTorch: the others are measured all the same
        rows.append(Row(title, "failed", first_line(error)[:200]))


# --- programs -------------------------------------------------------------------------------


def run(command, args, **options):
    """Run a program of the project, and return its output; it ends with the time that is left.

    Raises:
        UserError: with its last line where it fails.
    """
    left = max(args.deadline + 60 - time.time(), 30)
    try:
        result = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=left,
            **options,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} was not done after {left:.0f} s") from error
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["no output"]
        raise UserError(f"{' '.join(command[:3])}: {lines[-1]}")
    return result.stdout


def run_tests(args):
    """The tests that only a GPU can run, or without one the same on fake tensors."""
    file = "tests/test_cuda.py" if args.cuda else "tests/test_fake_cuda.py"
    output = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", file], args)
    return [Row(file, output.strip().splitlines()[-1].strip("= "))]


def train_demo(args):
    """A training of the demo, and its file in ONNX Runtime."""
    images = ["--num-train", "8", "--num-val", "4"] if args.tiny else []
    with tempfile.TemporaryDirectory() as folder:
        run(["tools/make_shapes.py", folder, *images], args)
        train, val = (
            f"{folder}/{part}/annotations.json:{folder}/{part}/images" for part in ("train", "val")
        )
        out = os.path.join(folder, "out")
        rows = [train_on("demo", DEMO, train, val, out, args)]
        rows += export(os.path.join(out, "config.yaml"), os.path.join(out, "model_final.pth"), args)
    return rows


def train_own(args):
    """A training on a few hundred photographs."""
    if not args.data:
        return [Row("training on photographs", "skipped", "--data names none")]
    with tempfile.TemporaryDirectory() as folder:
        return [train_on("photographs", SMALL_DATA, *args.data, folder, args)]


def train_on(name, config, train, val, output, args):
    """Train by train_net.py, and return its row."""
    flags = ["--config-file", config, "--train-data", train, "--val-data", val]
    options = ["OUTPUT_DIR", output, "MODEL.DEVICE", args.device]
    start = time.time()
    run(["train_net.py", *flags, *options, *(TINY_TRAINING if args.tiny else [])], args)
    return Row(f"{name}: AP", f"{last_ap(output):.1f}", f"{time.time() - start:.0f} s in all")


def last_ap(folder):
    """The AP of the last evaluation of a training."""
    with open(os.path.join(folder, "metrics.json")) as f:
        lines = [json.loads(line) for line in f]
    return [x["bbox/AP"] for x in lines if "bbox/AP" in x][-1]


def export(config, weights, args):
    """A file for ONNX Runtime, where it is installed: its time, and how many detections."""
    try:
        import onnxruntime
    except ImportError:
        return [Row("exported file", "skipped", "onnxruntime is not installed")]
    wanted = "CUDAExecutionProvider" if args.cuda else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        return [Row("exported file", "skipped", "pip install onnxruntime-gpu to measure it")]
    path = os.path.join(os.path.dirname(weights), "model.onnx")
    export_command = ["-m", "tood", "export", weights, "--config-file", config, "--output", path]
    run([*export_command, "MODEL.DEVICE", "cpu"], args)
    image = np.random.default_rng(0).uniform(0, 255, (1, 3, 128, 128)).astype(np.float32)
    counts, times = [], []
    for provider in (wanted, "CPUExecutionProvider"):
        session = onnxruntime.InferenceSession(path, providers=[provider])
        inputs = {session.get_inputs()[0].name: image}
        for _ in range(10):
            start = time.perf_counter()
            (count,) = session.run(["num_detections"], inputs)
            times += [time.perf_counter() - start] if provider == wanted else []
        counts.append(int(count[0]))
    note = f"detections here and on the CPU: {counts[0]}, {counts[1]}"
    title = f"exported file, {wanted}, 128 x 128"
    return [Row(title, f"{1000 * statistics.median(times):.1f} ms", note)]


def train_in_two_processes(args):
    """A few steps by two processes."""
    if args.cuda and torch.cuda.device_count() < 2:
        return [Row("two processes", "skipped", "one GPU")]
    with tempfile.TemporaryDirectory() as folder:
        run(["tools/make_shapes.py", folder, "--num-train", "8", "--num-val", "4"], args)
        data = f"{folder}/train/annotations.json:{folder}/train/images"
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["train_net.py", "--config-file", DEMO, "--train-data", data]
        options = ["MODEL.DEVICE", args.device, "OUTPUT_DIR", os.path.join(folder, "out")]
        run([*command, "--val-data", data, *options, *TINY_TRAINING], args)
        weights = glob.glob(os.path.join(folder, "out", "model_final.pth"))
    return [Row("two processes, " + ("nccl" if args.cuda else "gloo"), f"{len(weights)} model")]


# --- the table ------------------------------------------------------------------------------

PARTS = {
    "tests": run_tests,
    "training": measure_training,
    "inference": measure_inference,
    "losses": measure_parts,
    "demo": train_demo,
    "photographs": train_own,
    "processes": train_in_two_processes,
    "compile": measure_compiled,
}


def header(args):
    """The card, and the versions of what computes on it."""
    card = platform.processor() or platform.machine()
    if args.cuda:
        memory = torch.cuda.get_device_properties(0).total_memory / 1024**3
        card = f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
    size = "96 x 128, a tiny model" if args.tiny else "800 x 1333, R-50-FPN"
    return (
        f"{card}, {args.device}, PyTorch {torch.__version__}, Python {platform.python_version()}; "
        f"{size}, 20 objects an image, 80 classes, random weights; medians"
    )


def table(rows):
    """The rows as Markdown."""
    lines = ["| what | measured | |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main(argv=None):
    args = parse_args(argv)
    rows, start = [], time.time()
    for name in tqdm(args.parts, desc="parts"):
        if time.time() > args.deadline:
            rows.append(Row(name, "skipped", f"{args.minutes:g} minutes have passed"))
            continue
        with failing_as_a_row(rows, name):
            rows += PARTS[name](args)
    rows.append(Row("all of this", f"{(time.time() - start) / 60:.1f} min"))
    if args.tiny:
        rows = [row._replace(note="") if row.note.startswith("aim") else row for row in rows]
    text = f"{header(args)}\n\n{table(rows)}\n"
    print(text)
    if args.output:
        write_whole(args.output, text.encode())
    if any(row.value == "failed" for row in rows):
        raise UserError("Some of it failed: see the table.")


if __name__ == "__main__":
    run_main(main)
