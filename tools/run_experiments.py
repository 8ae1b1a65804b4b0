#!/usr/bin/env python
"""Train variants of a config with several seeds, and write their metrics to one table::

    python tools/run_experiments.py --config-file configs/small_experiment.yaml \\
        --train-data train.json:images --val-data val.json:images --groups table6 table3 \\
        --seeds 1 2 --output output/experiments MODEL.TOOD.NUM_CLASSES 3

The variants are those of the paper's tables (tools/paper_experiments.yaml), or of a file like it.
Each run trains, evaluates and measures the alignment in a separate folder. The same command
continues after a stop, and updates the table after every run. KEY VALUE options are for all runs.
"""

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

from tood.config.read import load_config
from tood.utils.arguments import make_parser, parse_arguments, split_overrides
from tood.utils.errors import UserError, run_main
from tood.utils.files import check_folder, write_json
from tood.utils.plain_yaml import load_yaml
from tood.utils.reading import MAX_CONFIG, read_regular

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXPERIMENTS = os.path.join(ROOT, "tools", "paper_experiments.yaml")


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="what is varied")
    for flag in ("--train-data", "--val-data"):
        parser.add_argument(flag, action="append", metavar="DATA", help="as train_net.py")
    parser.add_argument("--experiments", default=EXPERIMENTS, metavar="YAML", help="the variants")
    help = "groups of the file; default: all"
    parser.add_argument("--groups", nargs="+", metavar="NAME", help=help)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    argv, opts = split_overrides(argv)
    args = parse_arguments(parser, argv)
    args.opts = opts
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    if len(args.val_data or ()) > 1:
        parser.error("the table is of one --val-data")
    return args


def load_experiments(path, groups=None):
    """
    Args:
        path: a YAML file like tools/paper_experiments.yaml.
        groups: names, or None for all. An entry of several groups is one experiment.

    Raises:
        UserError: for a file of another form, and two experiments of one name.
    """
    try:
        known = load_yaml(read_regular(path, MAX_CONFIG).decode())["groups"]
        chosen = [known[group] for group in groups or known]
        found = [Experiment(**entry) for entry in itertools.chain.from_iterable(chosen)]
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} needs 'groups', each a list of entries with name, options and paper, "
            f"and among them those named with --groups ({reason})."
        ) from error
    experiments = {}
    for experiment in found:
        folder = folder_name(experiment)
        if experiments.setdefault(folder, experiment) != experiment:
            raise UserError(f"{path} has two experiments named {experiment.name!r}, or nearly so.")
    if not experiments:
        raise UserError(f"{path} has no experiments in the groups that were asked for.")
    return list(experiments.values())


def folder_name(experiment):
    return re.sub(r"[^\w.]+", "_", experiment.name).strip("_")


def run(experiment, seed, args):
    """Train and measure one variant with one seed, if that has not been done, and return its
    metrics.

    Raises:
        UserError: for a folder of another command, and for a command that failed.
    """
    folder = os.path.join(args.output, folder_name(experiment), f"seed{seed}")
    result_file = os.path.join(folder, "result.json")
    check_same_command(experiment, seed, args, folder)
    if not os.path.isfile(result_file):
        train(experiment, seed, args, folder)
        measure(experiment, seed, args, folder)
        write_json(collect(folder), result_file)
    return read_json(result_file)


def check_same_command(experiment, seed, args, folder):
    """Raise UserError for a folder with the metrics of another command."""
    command_file = os.path.join(folder, "command.json")
    command = make_command(experiment, seed, args, folder)[1:]
    if os.path.isfile(command_file) and read_json(command_file) != command:
        raise UserError(
            f"{folder} is of other options or data (see its command.json); name another --output."
        )
    write_json(command, command_file)


def train(experiment, seed, args, folder):
    """Train to the end, from the last checkpoint, and add up the seconds of all calls."""
    progress_file = os.path.join(folder, "training.json")
    done = os.path.isfile(progress_file)
    progress = read_json(progress_file) if done else {"seconds": 0.0, "finished": False}
    if progress["finished"]:
        return
    start = time.time()
    try:
        call(make_command(experiment, seed, args, folder, "--resume"), folder, args.jobs)
        progress["finished"] = True
    finally:
        progress["seconds"] += time.time() - start
        write_json(progress, progress_file)


def measure(experiment, seed, args, folder):
    """Evaluate the final checkpoint, alignment included."""
    command = make_command(experiment, seed, args, folder, "--eval-only")
    command += ["MODEL.WEIGHTS", os.path.join(folder, "model_final.pth")]
    call([*command, "MODEL.TOOD.EVAL_ALIGNMENT", "True"], folder, args.jobs)


def collect(folder):
    """The metrics of a finished run, of its evaluation and its training."""
    results = read_json(os.path.join(folder, "inference", "results.json"))
    metrics = {key: results["bbox"][key] for key in ("AP", "AP50", "AP75")}
    metrics.update(results["alignment"])
    metrics["minutes"] = read_json(os.path.join(folder, "training.json"))["seconds"] / 60
    return metrics


def make_command(experiment, seed, args, folder, *flags):
    command = [sys.executable, os.path.join(ROOT, "train_net.py"), *flags]
    command += ["--config-file", args.config_file]
    for name, entries in (("--train-data", args.train_data), ("--val-data", args.val_data)):
        command += [word for entry in entries or () for word in (name, entry)]
    options = {**experiment.options, "SEED": seed, "OUTPUT_DIR": folder}
    return [*command, *args.opts, *(str(word) for item in options.items() for word in item)]


def call(command, folder, jobs):
    """Run a command with its share of the cores; UserError if it fails."""
    os.makedirs(folder, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    log_file = os.path.join(folder, "commands.txt")
    with open(log_file, "a", encoding="utf-8") as log:
        status = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, env=environ)
    if status != 0:
        raise UserError(f"{' '.join(command)} ended with status {status}; see {log_file}.")


def read_json(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def main(args):
    experiments = load_experiments(args.experiments, args.groups)
    load_config(args.config_file, args.opts)
    check_folder(args.output, "--output")
    # Seeds outermost: every variant has a figure early on.
    tasks = list(itertools.product(args.seeds, experiments))
    results = {experiment.name: [] for experiment in experiments}
    failures = []
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(run, experiment, seed, args) for seed, experiment in tasks]
        for (_, experiment), future in zip(tasks, tqdm(runs, desc="runs")):
            try:
                results[experiment.name].append(future.result())
            except UserError as error:  # the others continue
                failures.append(error)
                tqdm.write(f"error: {error.sentence()}", file=sys.stderr)
            table = markdown_table(experiments, results)
            with open(os.path.join(args.output, "table.md"), "w", encoding="utf-8") as f:
                f.write(table)
            draw_table(experiments, results, os.path.join(args.output, "table.png"))
    print(table)
    print(f"The table, and as a drawing: {args.output}/table.md, table.png")
    if failures:
        raise UserError(f"{len(failures)} of {len(tasks)} runs failed; the first: {failures[0]}")


if __name__ == "__main__":
    run_main(lambda: main(parse_args()))
