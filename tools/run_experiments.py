#!/usr/bin/env python
"""
Train variants of a config with several seeds, and put what comes out into one table::

    python tools/run_experiments.py --config-file configs/small_experiment.yaml \\
        --train-data train.json:images --val-data val.json:images --groups table6 table3 \\
        --seeds 1 2 --output output/experiments MODEL.TOOD.NUM_CLASSES 3

The variants are those of the paper's tables (tools/paper_experiments.yaml), or of a file like it.
Each run trains, evaluates and measures the alignment in a folder of its own. The same command goes
on where it was stopped, and renews the table after every run.
"""

import argparse
import glob
import itertools
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import yaml
from experiment_table import Experiment, draw_table, markdown_table
from tqdm import tqdm

from tood.read_config import split_options

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXPERIMENTS = os.path.join(ROOT, "tools", "paper_experiments.yaml")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="what is varied")
    for flag in ("--train-data", "--val-data"):
        parser.add_argument(flag, action="append", metavar="JSON[:FOLDER]", help="as train_net.py")
    parser.add_argument("--experiments", default=EXPERIMENTS, metavar="YAML", help="the variants")
    parser.add_argument("--groups", nargs="+", metavar="NAME", help="of the file; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE options of all runs")
    args = parser.parse_args(argv)
    if args.groups:
        args.groups, opts = split_options(args.groups)
        args.opts = [*opts, *args.opts]
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    return args


def load_experiments(path, groups=None):
    """
    Args:
        path: a YAML file like tools/paper_experiments.yaml.
        groups: names, or None for all.
    """
    try:
        with open(path, encoding="utf-8") as f:
            known = yaml.safe_load(f)["groups"]
        chosen = [known[group] for group in groups or known]
        return [Experiment(**entry) for entry in itertools.chain.from_iterable(chosen)]
    except OSError as error:
        sys.exit(f"error: The file {path} cannot be read ({error.strerror}).")
    except (yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        sys.exit(
            f"error: {path} needs 'groups', each a list of entries with name, options and paper, "
            f"and among them those named with --groups ({reason})."
        )


def folder_of(experiment, seed, output):
    name = re.sub(r"[^\w.]+", "_", experiment.name).strip("_")
    return os.path.join(output, name, f"seed{seed}")


def run(experiment, seed, args):
    """Train and measure one variant with one seed, if that has not been done; its figures."""
    folder = folder_of(experiment, seed, args.output)
    result_file = os.path.join(folder, "result.json")
    if not os.path.isfile(result_file):
        train(experiment, seed, args, folder)
        measure(experiment, seed, args, folder)
        write_json(collect(folder), result_file)
    return read_json(result_file)


def train(experiment, seed, args, folder):
    """Until there is a final checkpoint; how long that took is kept beside it."""
    if os.path.isfile(os.path.join(folder, "model_final.pth")):
        return
    seconds = call(command_of(experiment, seed, args, folder, "--resume"), folder, args.jobs)
    write_json({"seconds": seconds}, os.path.join(folder, "training.json"))


def measure(experiment, seed, args, folder):
    """Evaluate the final checkpoint, alignment included."""
    command = command_of(experiment, seed, args, folder, "--eval-only")
    command += ["MODEL.WEIGHTS", os.path.join(folder, "model_final.pth")]
    call([*command, "MODEL.TOOD.EVAL_ALIGNMENT", "True"], folder, args.jobs)


def command_of(experiment, seed, args, folder, flag):
    command = [sys.executable, os.path.join(ROOT, "train_net.py"), flag]
    command += ["--config-file", args.config_file]
    for name, entries in (("--train-data", args.train_data), ("--val-data", args.val_data)):
        command += [word for entry in entries or () for word in (name, entry)]
    options = {**experiment.options, "SEED": seed, "OUTPUT_DIR": folder}
    return [*command, *args.opts, *(str(word) for item in options.items() for word in item)]


def call(command, folder, jobs):
    """Run a command with its share of the cores; the seconds it took."""
    os.makedirs(folder, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    log_file = os.path.join(folder, "commands.txt")
    start = time.time()
    with open(log_file, "a") as log:
        status = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, env=environ)
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}; see {log_file}.")
    return time.time() - start


def collect(folder):
    """The figures of a finished run: AP at the end of its training, alignment, minutes."""
    with open(os.path.join(folder, "metrics.json")) as f:
        metrics = [json.loads(line) for line in f]
    final = next(line for line in reversed(metrics) if "bbox/AP" in line)
    (alignment,) = glob.glob(os.path.join(folder, "inference", "alignment_*.json"))
    figures = {key: final[f"bbox/{key}"] for key in ("AP", "AP50", "AP75")}
    figures.update(read_json(alignment)["all"])
    figures["minutes"] = read_json(os.path.join(folder, "training.json"))["seconds"] / 60
    return {key: None if value != value else value for key, value in figures.items()}  # NaN


def read_json(path):
    with open(path) as f:
        return json.load(f)


def write_json(content, path):
    with open(path + ".part", "w") as f:
        json.dump(content, f)
    os.replace(path + ".part", path)


def main(args):
    experiments = load_experiments(args.experiments, args.groups)
    os.makedirs(args.output, exist_ok=True)
    # Seeds outermost: every variant has a figure early on.
    tasks = list(itertools.product(args.seeds, experiments))
    results = {experiment.name: [] for experiment in experiments}
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = pool.map(lambda task: run(task[1], task[0], args), tasks)
        for (_, experiment), result in zip(tasks, tqdm(runs, total=len(tasks), desc="runs")):
            results[experiment.name].append(result)
            table = markdown_table(experiments, results)
            with open(os.path.join(args.output, "table.md"), "w", encoding="utf-8") as f:
                f.write(table)
            draw_table(experiments, results, os.path.join(args.output, "table.png"))
    print(table)
    print(f"The table, and as a picture: {args.output}/table.md, table.png")


if __name__ == "__main__":
    try:
        main(parse_args())
    except RuntimeError as error:
        sys.exit(f"error: {error}")
