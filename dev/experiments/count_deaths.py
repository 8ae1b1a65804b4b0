#!/usr/bin/env python
"""Count the trainings from scratch that die: several seeds of each data set, a few dozen steps::

    python dev/experiments/count_deaths.py --config-file configs/tood_R18_GN_small_data.yaml \\
        --train-data coco128/instances_train2017.json:coco128/train2017 \\
        --train-data bccd/train.json:bccd/train --seeds 20 --iterations 96 --output output/deaths \\
        INPUT.MIN_SIZE_TRAIN "(128,)" INPUT.MAX_SIZE_TRAIN 192

The schedule of the config is compressed into the iterations. A training is dead if the boxes of
the positives have a mean IoU under 0.05 with their objects over the last eighth of it, or if there
are no positives, or if a loss is not finite.
"""

import argparse
import math
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage, get_event_storage
from tqdm import tqdm

from tood.config.read import apply_schedule, load_config, run_options
from tood.config.schedule import Schedule, scale_schedule
from tood.data.datasets import prepare_datasets
from tood.engine.step import Diverged, TrainingStep
from tood.engine.trainer import Trainer
from tood.engine.watch import assignment_statistics
from tood.utils.arguments import make_parser, parse_arguments
from tood.utils.errors import run_main
from tood.utils.files import check_folder, write_json

DEAD_IOU = 0.05


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--train-data", action="append", required=True, metavar="DATA")
    parser.add_argument("--seeds", type=int, default=20, help="trainings of each data set")
    parser.add_argument("--iterations", type=int, default=96, help="iterations of each training")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder for deaths.json")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE options of all runs")
    args = parse_arguments(parser, argv)
    if min(args.seeds, args.iterations, args.jobs) < 1:
        parser.error("--seeds, --iterations and --jobs must be at least 1")
    return args


class Recorder:
    """A watcher that keeps what each step has made of its batch."""

    def __init__(self):
        self.steps = []

    @torch.no_grad()
    def __call__(self, model, images, features, predictions, targets, gt_instances):
        found = assignment_statistics(
            predictions.pred_log_scores,
            predictions.pred_boxes,
            targets,
            [len(gt) for gt in gt_instances],
        )
        sides = predictions.pred_boxes[..., 2:] - predictions.pred_boxes[..., :2]
        found["largest_side"] = sides.abs().max().item()
        found["largest_score"] = predictions.pred_log_scores.max().exp().item()
        self.steps.append(found)


def train(config_file, data, opts, seed, iterations):
    """Train once; return what was seen of each iteration."""
    torch.set_num_threads(1)
    cfg = load_config(config_file, [*opts, "SEED", str(seed)], [data], [data], training=True)
    cfg.DATALOADER.NUM_WORKERS = 0
    prepare_datasets(run_options(cfg).data, training=True)
    records = DatasetCatalog.get(data)
    before = Schedule.from_config(cfg)
    epochs = iterations * before.ims_per_batch / len(records)
    schedule = scale_schedule(
        before, images_per_step=before.ims_per_batch, epochs=epochs, num_images=len(records)
    )
    apply_schedule(cfg, schedule, opts)
    torch.manual_seed(seed)
    model = Trainer.build_model(cfg)
    model.watcher = recorder = Recorder()
    optimizer = Trainer.build_optimizer(cfg, model)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    step = TrainingStep(model, Trainer.build_train_loader(cfg), optimizer)
    with EventStorage() as storage:
        for step.iter in range(cfg.SOLVER.MAX_ITER):
            storage.iter = step.iter
            try:
                step.run_step()
            except Diverged:
                recorder.steps.append({"not finite": True})
                break
            for name in ("loss_cls", "loss_box_reg", "grad_norm"):
                recorder.steps[-1][name] = get_event_storage().latest()[name][0]
            scheduler.step()
    return recorder.steps


def is_dead(steps):
    last = steps[-max(1, len(steps) // 8) :]
    if any("not finite" in step for step in steps):
        return True
    return statistics.mean(step.get("mean_iou", 0.0) for step in last) < DEAD_IOU


def summary(steps):
    """Return a training in a few numbers."""
    last = steps[-max(1, len(steps) // 8) :]
    return {
        "dead": is_dead(steps),
        "mean_iou": statistics.mean(s.get("mean_iou", 0.0) for s in last),
        "without_positive": statistics.mean(s.get("objects_without_positive", 1.0) for s in last),
        "largest_grad_norm": max(s.get("grad_norm", math.inf) for s in steps),
        "largest_side": max(s.get("largest_side", math.inf) for s in steps),
    }


def main(args):
    check_folder(args.output, "--output")
    tasks = [(data, seed) for data in args.train_data for seed in range(1, args.seeds + 1)]
    results = {data: [] for data in args.train_data}
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        runs = [
            pool.submit(train, args.config_file, data, args.opts, seed, args.iterations)
            for data, seed in tasks
        ]
        for (data, seed), run in zip(tasks, tqdm(runs, desc="trainings")):
            steps = run.result()
            results[data].append({"seed": seed, **summary(steps), "steps": steps})
            write_json(results, os.path.join(args.output, "deaths.json"))
    print(markdown_table(results))


def markdown_table(results):
    headings = ["data", "dead", "mean IoU", "objects without positive", "largest gradient norm"]
    rows = [headings, ["---"] * len(headings)]
    for data, runs in results.items():
        norms = [run["largest_grad_norm"] for run in runs]
        row = [data, f"{sum(run['dead'] for run in runs)} of {len(runs)}"]
        row.append(f"{statistics.mean(run['mean_iou'] for run in runs):.3f}")
        row.append(f"{statistics.mean(run['without_positive'] for run in runs):.0%}")
        rows.append([*row, f"{statistics.median(norms):.0f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    run_main(lambda: main(parse_args()))
