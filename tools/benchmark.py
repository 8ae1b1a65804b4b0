#!/usr/bin/env python
"""Time and memory of TOOD beside those of Detectron2's RetinaNet, measured in turn in one run::

    python tools/benchmark.py
    python tools/benchmark.py --config-file configs/tood_R50_FPN_1x.yaml --size 800x1280 \\
        --batch 1 --objects 300 --parts losses --json losses.json
    python tools/benchmark.py --device cuda --dtype float16 --batch 16

Weights and images are random: both models then have the score threshold that leaves them
``--candidates`` detections an image before NMS. Each figure is the median of the counted rounds,
with the smallest and the largest; ratios are medians over the rounds.
"""

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

from tood.utils import quiet  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from benchmark_subjects import AFTER_WARMUP, make_retinanet, make_tood
from detectron2.data import build_detection_train_loader
from detectron2.data.datasets import load_coco_json
from detectron2.utils.events import EventStorage
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from tood.config.read import load_config
from tood.data.mapper import CheckedMapper
from tood.data.shapes import write_shapes_dataset
from tood.modeling.detector import PRECISIONS
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, run_main

PARTS = ("step", "inference", "head", "losses", "data", "memory")
# What counts as a convolution or a matrix product in the profiler's names.
PRODUCTS = ("conv", "mm", "linear")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0], epilog=__doc__.split("::", 1)[1]
    )
    parser.add_argument("--config-file", default="configs/tood_R50_FPN_1x.yaml")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--size", type=height_and_width, default=(480, 640), metavar="HxW")
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--objects", type=int, default=20, help="objects of an image")
    parser.add_argument("--candidates", type=int, default=500, help="of an image, before NMS")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", choices=PRECISIONS, default="float32", help="by autocast, of TOOD"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile TOOD's network")
    parser.add_argument("--rounds", type=int, default=7, help="counted, after two that are not")
    parser.add_argument("--no-retinanet", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write all metrics there as well")
    parser.add_argument("--memory-of", choices=("tood", "retinanet"), help=argparse.SUPPRESS)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE options")
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(parser, argv)
    args.argv = argv
    if args.compile and not hasattr(torch.nn.Module, "compile"):
        raise UserError(f"--compile needs a newer PyTorch than {torch.__version__}.")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no GPU that PyTorch can use.")
    return args


def height_and_width(text):
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW, as in 480x640")
    return int(height), int(width)


# --- timing ---------------------------------------------------------------------------------


def in_turn(functions, args, desc):
    """Seconds of each function in each counted round: {name: [...]}."""
    seconds = defaultdict(list)
    for i in tqdm(range(-2, args.rounds), desc=desc, leave=False):
        for name, function in functions.items():
            synchronize(args)
            start = time.perf_counter()
            function()
            synchronize(args)
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(args):
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def summary(seconds):
    """Median, smallest and largest of each name in milliseconds, and the ratio of the two."""
    result = {
        name: {
            "median_ms": 1e3 * statistics.median(values),
            "min_ms": 1e3 * min(values),
            "max_ms": 1e3 * max(values),
        }
        for name, values in seconds.items()
    }
    if "RetinaNet" in seconds:
        ratios = [a / b for a, b in zip(seconds["TOOD"], seconds["RetinaNet"])]
        result["ratio"] = statistics.median(ratios)
    return result


def share_outside_products(function, args):
    """The share of the operators' time that is not in convolutions and matrix products."""
    activities = [ProfilerActivity.CPU]
    cuda = args.device.startswith("cuda")
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        function()
        synchronize(args)
    total = products = 0.0
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel, whose time its operator has as well
        # PyTorch renamed the attribute on its way.
        names = ("self_device_time_total", "self_cuda_time_total") if cuda else ()
        spent = next((getattr(event, n) for n in names if hasattr(event, n)), None)
        spent = event.self_cpu_time_total if spent is None else spent
        total += spent
        if any(word in event.key for word in PRODUCTS):
            products += spent
    return 1 - products / total


def measure_head(subjects, args):
    functions = {}
    for subject in subjects:
        _, features = subject.features()

        @torch.no_grad()
        def head(subject=subject, features=features):
            with subject.autocast():
                subject.model.head(features)

        functions[subject.name] = head
    return in_turn(functions, args, "head")


def measure_losses(tood, args):
    """Assignment and losses of predictions that are there, without and with their gradients."""
    model = tood.model
    images, features = tood.features()
    with torch.no_grad(), tood.autocast():
        predictions = model.head(features)
    model.train()
    instances = [x["instances"] for x in tood.inputs]
    leaves = predictions._replace(
        pred_log_scores=predictions.pred_log_scores.requires_grad_(),
        pred_boxes=predictions.pred_boxes.requires_grad_(),
    )

    def losses():
        with EventStorage(AFTER_WARMUP):
            return sum(model.forward_training(images, features, leaves, instances).values())

    def assignment(assigner):
        model.label_batch(images, leaves, instances, assigner)

    functions = {
        "TOOD, forward": losses,
        "TOOD, forward and backward": lambda: losses().backward(),
        "assignment, TAL": lambda: assignment(model.assigner),
        "assignment, ATSS": lambda: assignment(model.warmup_assigner),
    }
    metrics = summary(in_turn(functions, args, "losses and assignment"))
    metrics["added_memory"] = {
        name: added_memory(function, args)
        for name, function in functions.items()
        if name.startswith("assignment")
    }
    return metrics


def measure_data(args):
    """A batch of drawn images through the training loader, in one process."""
    cfg = load_config(args.config_file, args.opts)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = args.batch
    with tempfile.TemporaryDirectory() as folder:
        write_shapes_dataset(folder, num_images=8, seed=0, size=max(args.size))
        images = os.path.join(folder, "images")
        dataset = load_coco_json(os.path.join(folder, "annotations.json"), images)
        loader = iter(
            build_detection_train_loader(
                dataset=dataset,
                mapper=CheckedMapper(cfg, is_train=True),
                total_batch_size=args.batch,
                num_workers=0,
            )
        )
        return in_turn({"a batch": lambda: next(loader)}, args, "data loading")


# --- memory ---------------------------------------------------------------------------------


def measure_memory(args):
    """Peak of three training steps, each model in a process of its own, in MB: of the whole process
    on a CPU, of what PyTorch allocated on a GPU.
    """
    names = ["tood"] if args.no_retinanet else ["tood", "retinanet"]
    peaks = {}
    for name in tqdm(names, desc="memory", leave=False):
        command = [sys.executable, os.path.abspath(__file__), *args.argv]
        # In front of the options, which take all that follows them.
        command[2:2] = ["--memory-of", name]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise UserError(f"The memory of {name} cannot be measured: {result.stderr[-300:]}")
        peaks[name] = json.loads(result.stdout.splitlines()[-1])
    return peaks


def peak_memory(subject, args):
    for _ in range(3):
        subject.step()
    if args.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    return of_process("VmHWM")


def of_process(key):
    """An entry of Linux's status of this process, in MB; elsewhere, the peak."""
    if os.path.exists("/proc/self/status"):  # what getrusage says begins with the parent's peak
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith(key)) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def added_memory(function, args):
    """MB above what there was before, at the peak; None where this cannot be told."""
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    # What was freed goes back to the system, and the peak starts anew.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    before = of_process("VmRSS")
    function()
    return of_process("VmHWM") - before


# --- the report -----------------------------------------------------------------------------


def measure(args):
    tood = make_tood(args)
    subjects = [tood] if args.no_retinanet else [tood, make_retinanet(args)]
    for subject in subjects:
        subject.set_threshold()
    metrics = {}
    for part in args.parts:
        if part in ("step", "inference"):
            functions = {s.name: getattr(s, part) for s in subjects}
            metrics[part] = summary(in_turn(functions, args, part))
            metrics[part]["outside_products"] = {
                name: share_outside_products(function, args) for name, function in functions.items()
            }
        elif part == "head":
            metrics[part] = summary(measure_head(subjects, args))
        elif part == "losses":
            metrics[part] = measure_losses(tood, args)
        elif part == "data":
            metrics[part] = summary(measure_data(args))
        elif part == "memory":
            metrics[part] = measure_memory(args)
    return metrics


def table(metrics):
    rows = ["| what | of | median | smallest to largest | ratio |", "|---|---|---|---|---|"]
    titles = {"step": "training step", "losses": "losses and assignment", "data": "data loading"}
    for part, entry in metrics.items():
        if part == "memory":
            ratio = f"{entry['tood'] / entry['retinanet']:.2f}" if len(entry) == 2 else ""
            names = {"tood": "TOOD", "retinanet": "RetinaNet"}
            for name, peak in entry.items():
                rows.append(
                    f"| peak memory, training | {names[name]} | {peak:.0f} MB | | {ratio} |"
                )
                ratio = ""
            continue
        ratio = f"{entry['ratio']:.2f}" if "ratio" in entry else ""
        for name, times in entry.items():
            if name in ("ratio", "outside_products", "added_memory"):
                continue
            spread = f"{times['min_ms']:.1f} to {times['max_ms']:.1f} ms"
            title = titles.get(part, part)
            rows.append(f"| {title} | {name} | {times['median_ms']:.1f} ms | {spread} | {ratio} |")
            ratio = ""
        for name, share in entry.get("outside_products", {}).items():
            title = f"{titles.get(part, part)}, outside convolutions and matrix products"
            rows.append(f"| {title} | {name} | {100 * share:.1f} % | | |")
        for name, megabytes in entry.get("added_memory", {}).items():
            if megabytes is not None:
                rows.append(f"| memory above the model's | {name} | {megabytes:.0f} MB | | |")
    return "\n".join(rows)


def cli(argv=None):
    args = parse_args(argv)
    args.num_classes = load_config(args.config_file, args.opts).MODEL.TOOD.NUM_CLASSES
    if args.memory_of:
        subject = make_tood(args) if args.memory_of == "tood" else make_retinanet(args)
        print(json.dumps(peak_memory(subject, args)))
        return
    metrics = measure(args)
    height, width = args.size
    setting = (
        f"{os.path.basename(args.config_file)}, {args.batch} images of {height} x {width}, "
        f"{args.objects} objects each, TOOD in {args.dtype}{' compiled' * args.compile}, "
        f"{args.device}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    print(f"{setting}\n\n{table(metrics)}")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"setting": setting, "metrics": metrics}, f, indent=1)


if __name__ == "__main__":
    run_main(cli)
