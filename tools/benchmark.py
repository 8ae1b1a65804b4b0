#!/usr/bin/env python
"""Time and memory of TOOD and Detectron2's RetinaNet, measured in turn in one run::

    python tools/benchmark.py
    python tools/benchmark.py --config-file configs/tood_R50_FPN_1x.yaml --size 800x1280 \\
        --batch 1 --objects 300 --parts losses --json losses.json
    python tools/benchmark.py --device cuda --dtype float16 --batch 16

Weights and images are random: both models get the score threshold that leaves ``--candidates``
detections per image before NMS. Each time is the median of the counted rounds, with the smallest
and the largest; ratios are medians over the rounds.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from benchmark_subjects import Subject, make_loss_functions
from detectron2.data import build_detection_train_loader
from detectron2.data.datasets import load_coco_json
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from tood.config.read import load_config
from tood.data.mapper import CheckedMapper
from tood.data.shapes import write_shapes_dataset
from tood.modeling.detector import PRECISIONS
from tood.utils.arguments import make_parser, parse_arguments
from tood.utils.errors import UserError, run_main

TITLES = {
    "step": "training step",
    "inference": "inference",
    "head": "head",
    "losses": "losses and assignment",
    "data": "data loading",
    "memory": "peak memory of training",
}
PRODUCTS = ("conv", "mm", "linear")  # in the profiler's names of convolutions and products


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", default="configs/tood_R50_FPN_1x.yaml")
    parser.add_argument("--parts", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--size", type=height_and_width, default=(480, 640), metavar="HxW")
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--objects", type=int, default=20, help="per image")
    parser.add_argument("--candidates", type=int, default=500, help="per image, before NMS")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32", help="autocast of TOOD")
    help = "RetinaNet in this precision as well"
    parser.add_argument("--same-dtype", action="store_true", help=help)
    parser.add_argument("--tf32", action="store_true", help="float32 products in TF32")
    parser.add_argument("--channels-last", action="store_true", help="weights in this order")
    parser.add_argument("--compile", action="store_true", help="torch.compile TOOD's network")
    parser.add_argument("--rounds", type=int, default=7, help="counted, after two that are not")
    parser.add_argument("--no-retinanet", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write all metrics there as well")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE options")
    args = parse_arguments(parser, argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no GPU that PyTorch can use.")
    args.num_classes = load_config(args.config_file, args.opts).MODEL.TOOD.NUM_CLASSES
    return args


def height_and_width(text):
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, as in 480x640")
    return int(height), int(width)


def measure(args):
    """
    Returns:
        - rows of the table, (what, measured, note) each;
        - {part: {name: milliseconds of each round, or [megabytes]}}, with the "ratio" of both.
    """
    subjects = [Subject(name, args) for name in ("TOOD", "RetinaNet")[: 2 - args.no_retinanet]]
    for subject in subjects:
        subject.set_threshold()
    rows, metrics = [], {}
    for part in args.parts:
        what, unit = TITLES[part], "MB" if part == "memory" else "ms"
        if part == "memory":
            functions, values = {}, measure_memory([s.name for s in subjects], args)
        else:
            functions = make_functions(part, subjects, args)
            values = time_in_turn(functions, args, what)
        for name, x in values.items():
            spread = f"{min(x):.1f} to {max(x):.1f} {unit}" if len(x) > 1 else ""
            rows.append((f"{what}, {name}", f"{statistics.median(x):.1f} {unit}", spread))
        metrics[part] = dict(values)
        if "RetinaNet" in values:
            ratios = [a / b for a, b in zip(values["TOOD"], values["RetinaNet"])]
            metrics[part]["ratio"] = ratio = statistics.median(ratios)
            rows.append((f"{what}, TOOD divided by RetinaNet", f"{ratio:.2f}", ""))
        for name, function in functions.items():
            if part in ("step", "inference"):
                share = share_outside_products(function, args)
                text = f"{what}, outside convolutions and matrix products, {name}"
                rows.append((text, f"{100 * share:.1f} %", ""))
            elif name.startswith("assignment") and can_measure_memory(args):
                megabytes = added_memory(function, args)
                rows.append((f"additional memory, {name}", f"{megabytes:.0f} MB", ""))
    return rows, metrics


def make_functions(part, subjects, args):
    """Return what is timed in a part: {name: function}."""
    if part == "losses":
        return make_loss_functions(subjects[0])
    if part == "data":
        batches = iterate_batches(args)
        return {"a batch": lambda: next(batches)}
    if part == "head":
        return {s.name: partial(s.run_head, s.features()[1]) for s in subjects}
    return {s.name: getattr(s, part) for s in subjects}


def iterate_batches(args):
    """Yield batches of drawn images, loaded in this process."""
    mapper = CheckedMapper(load_config(args.config_file, args.opts), is_train=True)
    with tempfile.TemporaryDirectory() as folder:
        write_shapes_dataset(folder, num_images=8, seed=0, size=max(args.size))
        images = os.path.join(folder, "images")
        records = load_coco_json(os.path.join(folder, "annotations.json"), images)
        options = dict(total_batch_size=args.batch, num_workers=0)
        yield from build_detection_train_loader(dataset=records, mapper=mapper, **options)


def time_in_turn(functions, args, desc):
    """Return the milliseconds of each function in each counted round: {name: [...]}."""
    times = {name: [] for name in functions}
    for i in tqdm(range(-2, args.rounds), desc=desc, leave=False):
        for name, function in functions.items():
            synchronize(args)
            start = time.perf_counter()
            function()
            synchronize(args)
            if i >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def synchronize(args):
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def share_outside_products(function, args):
    """Return the share of the operators' time outside convolutions and matrix products."""
    cuda = args.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        function()
        synchronize(args)
    # PyTorch has renamed the second attribute to the first.
    names = ("self_device_time_total", "self_cuda_time_total") if cuda else ()
    total = products = 0.0
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel, whose time its operator has as well
        spent = next(
            getattr(event, n) for n in (*names, "self_cpu_time_total") if hasattr(event, n)
        )
        total += spent
        products += spent * any(word in event.key for word in PRODUCTS)
    return 1 - products / total


# --- memory ---------------------------------------------------------------------------------


def can_measure_memory(args):
    return args.device.startswith("cuda") or os.path.exists("/proc/self/clear_refs")


def measure_memory(names, args):
    """Return the peak memory of three training steps in MB, {name: [peak]}, each in a new process:
    that of the process on a CPU, that of PyTorch's allocations on a GPU.
    """
    if not can_measure_memory(args):
        raise UserError("--parts memory needs Linux or a GPU; name the other parts.")
    peaks = {}
    for name in tqdm(names, desc="memory", leave=False):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks[name] = [pool.submit(peak_memory, name, args).result()]
    return peaks


def peak_memory(name, args):
    subject = Subject(name, args)
    for _ in range(3):
        subject.step()
    cuda = args.device.startswith("cuda")
    return torch.cuda.max_memory_allocated() / 1e6 if cuda else process_memory("VmHWM")


def process_memory(key):
    """Return an entry of Linux's status of this process in MB."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key)) / 1e3


def added_memory(function, args):
    """Return the peak of a call in MB above what was used before it."""
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # Return freed memory to the system, and reset the peak.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    before = process_memory("VmRSS")
    function()
    return process_memory("VmHWM") - before


def table(rows):
    """Return rows of three cells as Markdown."""
    lines = [("what", "measured", ""), ("---", "---", "---"), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv=None):
    args = parse_args(argv)
    for switches in (torch.backends.cuda.matmul, torch.backends.cudnn):
        switches.allow_tf32 = args.tf32
    rows, metrics = measure(args)
    height, width = args.size
    setting = (
        f"{os.path.basename(args.config_file)}, {args.batch} images of {height} x {width}, "
        f"{args.objects} objects each, TOOD in {args.dtype}{' compiled' * args.compile}, "
        f"{args.device}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    print(f"{setting}\n\n{table(rows)}")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"setting": setting, "metrics": metrics, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    run_main(main)
