#!/usr/bin/env python
"""Check what guarantees promise, on drawn shapes: train a small detector, store its detections in
many new images, draw calibration sets from these again and again, and count what is missed in the
other images at the threshold that each set certifies::

    python dev/experiments/check_guarantees.py --output output/guarantees

Controls, in which a guarantee must fail, are counted in the same way: thresholds from training
images, images that are blurred or darker than those of the calibration, and frames of a video that
are taken for independent images.
"""

import os

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import cv2
import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from scipy.stats import binomtest
from tabulate import tabulate
from tqdm import tqdm

import tood
from tood.app.guarantee.certify import Promise, certify
from tood.app.guarantee.misses import Outcome, find_outcome
from tood.data.annotations import read_annotations
from tood.data.shapes import write_shapes_dataset
from tood.inference.predictor import Predictor, read_bgr
from tood.inference.thresholds import RAW_SCORE
from tood.utils.arguments import make_parser, parse_arguments
from tood.utils.files import write_json

SIZE, TRAINED_ON, FRAMES = 64, 60, 10
# A model small enough for a training of a minute.
SMALL = {
    **{"MODEL.FPN.OUT_CHANNELS": 32, "MODEL.TOOD.CONV_DIM": 64, "MODEL.TOOD.NUM_CONVS": 2},
    **dict.fromkeys(("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "INPUT.MAX_SIZE_TRAIN"), SIZE),
    "MODEL.DEVICE": "cpu",
}


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument("--model", metavar="FOLDER", help="of an earlier run, instead of training")
    parser.add_argument("--images", type=int, default=1200, help="to draw sets from")
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--set-size", type=int, default=100, help="images of a calibration set")
    parser.add_argument("--miss-rate", type=float, default=0.2)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--epochs", type=float, default=16)
    return parse_arguments(parser, argv)


def main(args):
    folders = {name: os.path.join(args.output, name) for name in ("train", "new")}
    write_shapes_dataset(folders["train"], num_images=TRAINED_ON, seed=0, size=SIZE)
    write_shapes_dataset(folders["new"], num_images=args.images, seed=1, size=SIZE)
    model = args.model or train(folders["train"], args)
    predictor = Predictor(model, score_threshold=RAW_SCORE)
    new = detect(predictor, folders["new"])
    few = args.images // 4
    blurred = detect(predictor, folders["new"], lambda x: cv2.GaussianBlur(x, (0, 0), 2), few)
    darker = detect(predictor, folders["new"], lambda x: (x * 0.35).astype(np.uint8), few)
    trained = os.path.join(os.path.dirname(predictor.options.weights), "data", "train.json")
    seen = detect(predictor, folders["train"], only=trained)
    expected, sure = Promise(args.miss_rate), Promise(args.miss_rate, args.confidence)
    rows = []
    for promise in (expected, sure):
        rng = np.random.default_rng(0)
        rows.append(count("as promised", draw_sets(rng, new, args), promise, args.sets))
        for name, other in (("control: blurred", blurred), ("control: darker", darker)):
            sets = ((chosen, other) for chosen, _ in draw_sets(rng, new, args))
            rows.append(count(name, sets, promise, args.sets))
        size = min(args.set_size, int(0.8 * seen.num_units))
        sets = ((select(seen, rng.permutation(seen.num_units)[:size]), new) for _ in range(10**9))
        rows.append(count("control: trained on", sets, promise, args.sets))
        frames = draw_frames(rng, new, args.set_size)
        rows.append(count("control: frames as images", frames, promise, args.sets))
    write_json(rows, os.path.join(args.output, "guarantees.json"))
    print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".3f"))


def train(data, args):
    output = os.path.join(args.output, "model")
    flags = dict(image_size=SIZE, model="R18", images_per_step=8, seed=1, report=False)
    tood.train(data, output=output, epochs=args.epochs, options=SMALL, **flags)
    return os.path.join(output, "model_final.pth")


def detect(predictor, folder, change=None, limit=None, only="") -> Outcome:
    """Return what the model finds in the images of a folder, or only those of another file, which
    may be changed before.
    """
    content = read_annotations(only or os.path.join(folder, "annotations.json"), to_train=True)
    content["images"] = content["images"][:limit]
    kept = {x["id"] for x in content["images"]}
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] in kept]
    ids = sorted(x["id"] for x in content["categories"])
    found = []
    for x in tqdm(content["images"], desc=os.path.basename(folder)):
        pixels = read_bgr(os.path.join(folder, "images", os.path.basename(x["file_name"])))
        (instances,) = predictor.find_all([change(pixels) if change else pixels])
        found += instances_to_coco_json(instances, x["id"])
    return find_outcome(content, [{**x, "category_id": ids[x["category_id"]]} for x in found])


def select(outcome, units, copies=1) -> Outcome:
    """Return the outcome of some units; each counts as several, if it has copies."""
    place = np.full(outcome.num_units, -1)
    place[units] = np.arange(len(units))
    mine = place[outcome.units] >= 0
    shift = np.repeat(np.arange(copies) * len(units), mine.sum())
    return outcome._replace(
        scores=np.tile(outcome.scores[mine], copies),
        classes=np.tile(outcome.classes[mine], copies),
        units=np.tile(place[outcome.units[mine]], copies) + shift,
        num_units=len(units) * copies,
    )


def draw_sets(rng, outcome, args):
    """Yield calibration sets, and the images that are not in them."""
    while True:
        order = rng.permutation(outcome.num_units)
        yield (
            select(outcome, order[: args.set_size]),
            select(outcome, order[args.set_size :]),
        )


def draw_frames(rng, outcome, size):
    """Yield sets of as many images, which show each of fewer scenes several times."""
    while True:
        order = rng.permutation(outcome.num_units)
        number = size // FRAMES
        yield select(outcome, order[:number], FRAMES), select(outcome, order[number:])


def count(name, sets, promise, number):
    """Return how often a promise is broken; sets that certify nothing promise nothing."""
    risks = []
    for _ in tqdm(range(number), desc=name):
        chosen, others = next(sets)
        threshold = certify(chosen, promise).score_threshold
        if threshold is not None:
            risks.append(float(others.sum_losses(threshold) / others.num_units))
    risks, limit = np.array(risks), promise.miss_rate
    above = int((risks > limit).sum())
    interval = binomtest(above, len(risks)).proportion_ci() if len(risks) else (np.nan, np.nan)
    return {
        "sets": name,
        "miss rate": limit,
        "confidence": promise.confidence or "-",
        "certified": f"{len(risks)} of {number}",
        "mean risk": risks.mean() if len(risks) else np.nan,
        "+-": 2 * risks.std() / max(len(risks), 1) ** 0.5 if len(risks) else np.nan,
        "share above": above / max(len(risks), 1),
        "its interval": f"{interval[0]:.3f} to {interval[1]:.3f}",
    }


if __name__ == "__main__":
    from tood.utils.errors import run_main

    run_main(lambda: main(parse_args()))
