"""Repeat what docs/guarantee_scores.md claims: coverage of intervals, false alarms, alarms.

Everything is drawn, with seeds; with detections of a model, audits are drawn again from its counts
on annotated images, and alarms are looked for in darker and blurred ones.

Examples::

    python dev/experiments/simulate_scores.py totals --repeats 10000
    python dev/experiments/simulate_scores.py watch --repeats 10000
    python dev/experiments/simulate_scores.py errors --repeats 500
    python dev/experiments/simulate_scores.py images --model output/mine --data data/val.json:data
    python dev/experiments/simulate_scores.py pixels --data data/val.json:data
"""

import argparse
from typing import Dict, Iterator, List, Sequence, Tuple

import cv2
import numpy as np
import torch
from detectron2.structures import Instances
from tabulate import tabulate

import tood
from tood.app.check import read_dataset
from tood.app.guarantee.scores import Detections, cross_fit, fit_classes, measure_errors
from tood.app.guarantee.totals import choose_sample, estimate_total
from tood.data.check import image_paths
from tood.data.images import read_bgr
from tood.inference.drift import ALARM, STATISTICS, Watch, measure, start_bets
from tood.inference.predictor import Predictor
from tood.utils.arguments import make_parser, parse_arguments

NUM_IMAGES = 500
CHANGES = {
    "unchanged": lambda x: x,
    "darker, 0.9": lambda x: (x * 0.9).astype(np.uint8),
    "darker, 0.7": lambda x: (x * 0.7).astype(np.uint8),
    "blurred, 3 pixels": lambda x: cv2.GaussianBlur(x, (0, 0), 3),
    "blurred, 8 pixels": lambda x: cv2.GaussianBlur(x, (0, 0), 8),
}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=("totals", "watch", "errors", "images", "pixels"))
    parser.add_argument("--repeats", type=int, default=1000, metavar="N")
    parser.add_argument("--model", metavar="MODEL", help="model for images")
    parser.add_argument("--data", metavar="DATA", help="annotated images, for images and pixels")
    return parse_arguments(parser)


def draw_counts() -> Iterator[Tuple[str, np.ndarray, np.ndarray]]:
    """Yield populations of NUM_IMAGES images: true counts, and a detector's."""
    rng = np.random.default_rng(1)
    true = rng.poisson(14, NUM_IMAGES)
    yield "cells, 14 an image", true, rng.binomial(true, 0.93) + rng.poisson(0.8, NUM_IMAGES)
    true = rng.poisson(rng.gamma(1.0, 20, NUM_IMAGES))
    yield "trees, 20 an image, uneven", true, rng.binomial(true, 0.8)
    true = rng.poisson(0.3, NUM_IMAGES)
    yield "rare, 0.3 an image", true, rng.binomial(true, 0.8) + rng.poisson(0.05, NUM_IMAGES)
    crowds = rng.binomial(1, 0.05, NUM_IMAGES) * rng.poisson(30, NUM_IMAGES)
    true = rng.poisson(2, NUM_IMAGES) + crowds
    yield "crowds in 5 % of images", true, np.minimum(true, 6)


def audit_again(true: np.ndarray, detected: np.ndarray, size: int, repeats: int) -> List:
    """Return the share of audits whose intervals contain the total, and their median widths."""
    ends, few = [], 0
    for seed in range(repeats):
        chosen = choose_sample(len(true), size, seed)
        total = estimate_total("", detected, chosen, true[chosen], seed=seed)
        ends.append((*total.bootstrap, *total.bernstein))
        few += total.num_differing < 10
    found = []
    for low, high in np.array(ends).reshape(repeats, 2, 2).transpose(1, 2, 0):
        low, high = low[~np.isnan(low)], high[~np.isnan(high)]
        covered = ((low <= true.sum()) & (true.sum() <= high)).mean() if len(low) else np.nan
        width = np.median(high - low) / true.sum() if len(low) else np.nan
        found.append((covered, width, 1 - len(low) / repeats))
    (covered, width, none), (bound_covered, bound_width, _) = found
    return [size, covered, width, none, few / repeats, bound_covered, bound_width]


HEADS = ("", "audited", "bootstrap-t covers", "width", "none", "few", "Bernstein covers", "width")


def repeat_totals(repeats: int) -> str:
    rows = [
        (name, *audit_again(true, detected, size, repeats))
        for name, true, detected in draw_counts()
        for size in (30, 60, 120)
    ]
    return tabulate(rows, HEADS, floatfmt=".3f")


def rank(values: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return the randomised ranks (N, S) of the n-th of values (N, n, S) among the earlier ones."""
    earlier, last = values[:, :n], values[:, n, None]
    larger, equal = (earlier > last).sum(axis=1), (earlier == last).sum(axis=1)
    return (larger + rng.random(larger.shape) * (equal + 1)) / (n + 1)


def watch_streams(streams: int, num_reference: int, length: int, shift: float, start: int) -> List:
    """Return the share of streams with an alarm, and the median number of images until it."""
    rng = np.random.default_rng(0)
    shape = (streams, num_reference + length)
    values = np.stack(
        [
            rng.poisson(3, shape),
            rng.gamma(3, 0.5, shape),
            rng.beta(5, 1, shape),
            rng.normal(size=shape),
            rng.normal(size=shape),
        ],
        axis=2,
    )
    values[:, num_reference + start :, 3] += shift
    bets, first = start_bets(streams), np.full(streams, -1)
    for i in range(length):
        bets = bets.update(rank(values, num_reference + i, rng))
        alarm = bets.weigh() >= ALARM
        first[alarm & (first < 0)] = i
    false, seen = (first >= 0) & (first < start), first >= start
    delay = np.median(first[seen] - start + 1) if seen.any() else np.nan
    return [num_reference, start, shift, false.mean(), seen.mean(), delay]


def repeat_watch(repeats: int) -> str:
    rows = [watch_streams(repeats, m, 300, 0.0, 300) for m in (20, 50, 200)]
    rows += [
        watch_streams(max(repeats // 10, 1), m, start + 200, shift, start)
        for m in (20, 50, 200)
        for start in (0, 200)
        for shift in (1.0, 2.0)
    ]
    heads = ("calibration images", "images before", "shift (SD)", "false alarms", "alarms", "after")
    return tabulate(rows, heads, floatfmt=".4f")


def draw_detections(rng: np.random.Generator, num_images: int, power: float) -> Detections:
    """Draw 20 detections an image, of which a share score**power is right; images differ."""
    number = 20 * num_images
    scores, images = rng.random(number), np.arange(number) % num_images
    right = rng.random(number) < np.clip(scores**power, 0, 1)
    ious = right * rng.uniform(0.5, 1, number)
    ones = np.ones(1, dtype=bool)
    nothing = np.zeros(number, dtype=np.int64)
    return Detections(scores, nothing, images, right, ious, num_images, 1, ones)


def repeat_errors(repeats: int) -> str:
    rng, power, rows = np.random.default_rng(0), 2.0, []
    test = draw_detections(rng, 50_000, power)
    truth = measure_value(test, test.scores)
    for num_images in (40, 160):
        found = []
        for seed in range(repeats):
            detections = draw_detections(rng, num_images, power)
            values = cross_fit(detections, seed)["precision"]
            error = measure_errors(detections, detections.scores, values, by_iou=False, seed=seed)
            fit = fit_classes(detections)[0].precision
            real = measure_value(test, fit.apply(test.scores)) if seed < 50 else np.nan
            own = measure_value(detections, fit.apply(detections.scores))
            covered = error.before.low <= truth <= error.before.high
            found.append((error.before.value, covered, error.after.value, own, real))
        rows.append((num_images, truth, *np.nanmean(found, axis=0)))
    heads = ("images", "true D-ECE", "measured", "covered")
    heads += ("calibrated, cross-fitted", "on the fitted images", "on 50,000 new images")
    return tabulate(rows, heads, floatfmt=".3f")


def measure_value(detections: Detections, values: np.ndarray) -> float:
    bins = np.clip(np.ceil(values * 25) - 1, 0, 24).astype(int)
    return float(np.abs(np.bincount(bins, values - detections.right)).sum() / len(values))


def repeat_images(model: str, data: str, repeats: int, sizes: Sequence[int] = (15, 30)) -> str:
    """Draw audits of some sizes, and streams, again from the images of a data set."""
    predictor: Predictor = tood.load(model).predictor()
    dataset = read_dataset(data)
    names = predictor.class_names
    ids = {x["id"]: names.index(x["name"]) for x in dataset.content["categories"]}
    index = {x["id"]: i for i, x in enumerate(dataset.content["images"])}
    true = np.zeros((len(index), len(names)), dtype=int)
    for a in dataset.content["annotations"]:
        true[index[a["image_id"]], ids[a["category_id"]]] += 1
    detected, statistics = np.zeros_like(true), {name: [] for name in CHANGES}
    for i, path in enumerate(image_paths(dataset.content["images"], dataset.image_root)):
        pixels = read_bgr(path)
        for name, change in CHANGES.items():
            image = change(pixels)
            (found,) = predictor.find_all([image])
            statistics[name].append(measure(found, image, predictor.thresholds.values))
            if name == "unchanged":
                kept = predictor.thresholds.select(found).pred_classes.numpy()
                detected[i] = np.bincount(kept, minlength=len(names))
    rows = [
        (name, *audit_again(true[:, k], detected[:, k], size, repeats))
        for k, name in enumerate(names)
        for size in sizes
    ]
    return f"{tabulate(rows, HEADS, floatfmt='.3f')}\n\n{split_again(statistics, repeats)}"


def repeat_pixels(data: str, repeats: int) -> str:
    """Draw streams again by the statistics without a detector: brightness and sharpness."""
    dataset, statistics = read_dataset(data), {name: [] for name in CHANGES}
    nothing = Instances((1, 1), scores=torch.zeros(0), pred_classes=torch.zeros(0, dtype=int))
    for path in image_paths(dataset.content["images"], dataset.image_root):
        pixels = read_bgr(path)
        for name, change in CHANGES.items():
            statistics[name].append(measure(nothing, change(pixels), [1.0]))
    return split_again(statistics, repeats)


def split_again(statistics: Dict[str, List], repeats: int) -> str:
    """Calibrate on one half of the images, and watch the other half, changed or not."""
    arrays, rows = {name: np.array(x) for name, x in statistics.items()}, []
    number = len(arrays["unchanged"])
    for name, values in arrays.items():
        when, causes = [], []
        for seed in range(repeats):
            order = np.random.default_rng(seed).permutation(number)
            watch = Watch(arrays["unchanged"][order[: number // 2]], [], seed)
            stream = values[order[number // 2 :]]
            first = next((i for i, x in enumerate(stream, 1) if watch.add(x)), None)
            if first:
                when.append(first)
                causes += [s for s in STATISTICS if s in watch.alarm]
        cause = max(set(causes), key=causes.count) if causes else ""
        rows.append((name, len(when) / repeats, np.median(when) if when else np.nan, cause))
    return tabulate(rows, ("images", "alarms", "after", "mostly by"), floatfmt=".3f")


def main() -> None:
    args = parse_args()
    if args.what == "images":
        print(repeat_images(args.model, args.data, args.repeats))
    elif args.what == "pixels":
        print(repeat_pixels(args.data, args.repeats))
    else:
        functions = {"totals": repeat_totals, "watch": repeat_watch, "errors": repeat_errors}
        print(functions[args.what](args.repeats))


if __name__ == "__main__":
    main()
