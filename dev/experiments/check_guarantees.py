#!/usr/bin/env python
"""Check what guarantees promise, on drawn shapes: train a small detector, store its detections in
many new images, draw calibration sets from these again and again, and count what is missed in the
other images at the threshold that each set certifies::

    python dev/experiments/check_guarantees.py --output output/guarantees

Controls, in which a guarantee must fail, are counted in the same way: thresholds from training
images, images that are blurred or darker than those of the calibration, and frames of a video that
are taken for independent images.
"""

import itertools
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
from tood.data.entries import parse_own_data
from tood.data.images import read_bgr
from tood.data.shapes import write_shapes_dataset
from tood.inference.predictor import Predictor
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
    help = "folder of an earlier run, instead of training"
    parser.add_argument("--model", metavar="FOLDER", help=help)
    parser.add_argument("--data", metavar="JSON:IMAGES", help="data of --model, instead of shapes")
    parser.add_argument("--images", type=int, default=1200, help="to draw sets from")
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--set-size", type=int, default=100, help="images of a calibration set")
    parser.add_argument("--miss-rate", type=float, default=0.3)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--epochs", type=float, default=16)
    return parse_arguments(parser, argv)


def main(args):
    outcomes, rows = read_outcomes(args), []
    for promise in (Promise(args.miss_rate), Promise(args.miss_rate, args.confidence)):
        rng = np.random.default_rng(0)
        for name, sets in list_sets(rng, args, *outcomes):
            rows.append(count(name, sets, promise, args.sets))
    write_json(rows, os.path.join(args.output, "guarantees.json"))
    print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".3f"))


def read_outcomes(args):
    """Return what a model finds in new images; and, of drawn ones, in changed and trained ones."""
    if args.data:
        return (detect(Predictor(args.model, score_threshold=RAW_SCORE), args.data),)
    folders = {name: os.path.join(args.output, name) for name in ("train", "new")}
    write_shapes_dataset(folders["train"], num_images=TRAINED_ON, seed=0, size=SIZE)
    write_shapes_dataset(folders["new"], num_images=args.images, seed=1, size=SIZE)
    model = args.model or train(folders["train"], args)
    predictor = Predictor(model, score_threshold=RAW_SCORE)
    new, few = f"{folders['new']}/annotations.json:{folders['new']}/images", args.images // 4
    folder = os.path.dirname(predictor.options.weights)
    return (
        detect(predictor, new),
        detect(predictor, new, lambda x: cv2.GaussianBlur(x, (0, 0), 4), few),
        detect(predictor, new, lambda x: (x * 0.15).astype(np.uint8), few),
        detect(predictor, os.path.join(folder, "data", "train.json")),
    )


def list_sets(rng, args, new, blurred=None, darker=None, seen=None):
    """Return the name of each row, and pairs of a calibration set and other images, without end."""
    rows = [("as promised", draw_sets(rng, new, args))]
    for name, other in (("control: blurred", blurred), ("control: darker", darker)):
        if other:
            sets = draw_sets(rng, new, args)
            rows.append((name, ((chosen, other) for chosen, _ in sets)))
    if seen:
        size, number = min(args.set_size, int(0.8 * seen.num_units)), seen.num_units
        sets = ((select(seen, rng.permutation(number)[:size]), new) for _ in itertools.count())
        rows.append(("control: trained on", sets))
    return [*rows, ("control: frames as images", draw_frames(rng, new, args.set_size))]


def train(data, args):
    output = os.path.join(args.output, "model")
    flags = dict(image_size=SIZE, model="R18", images_per_step=8, seed=1, report=False)
    tood.train(data, output=output, epochs=args.epochs, options=SMALL, **flags)
    return os.path.join(output, "model_final.pth")


def detect(predictor, entry, change=None, limit=None) -> Outcome:
    """Return what the model finds in the images of a data set, which may be changed before."""
    own_data = parse_own_data(entry)
    content = read_annotations(*own_data, to_train=True)
    content["images"] = content["images"][:limit]
    kept = {x["id"] for x in content["images"]}
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] in kept]
    ids = sorted(x["id"] for x in content["categories"])
    found = []
    for x in tqdm(content["images"], desc="detecting"):
        pixels = read_bgr(os.path.join(own_data.image_root, x["file_name"]))
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
    """Return how often a promise is broken; sets that certify nothing promise nothing, and count
    as without a miss.
    """
    risks, certified = np.zeros(number), 0
    for i in tqdm(range(number), desc=name):
        chosen, others = next(sets)
        threshold = certify(chosen, promise).score_threshold
        if threshold is not None:
            risks[i] = others.sum_losses(threshold) / others.num_units
            certified += 1
    limit = promise.miss_rate
    above = int((risks > limit).sum())
    interval = binomtest(above, number).proportion_ci()
    return {
        "sets": name,
        "miss rate": limit,
        "confidence": promise.confidence or "-",
        "certified": f"{certified} of {number}",
        "mean risk": float(risks.mean()),
        "+-": 2 * float(risks.std()) / number**0.5,
        "share above": above / number,
        "its interval": f"{interval[0]:.3f} to {interval[1]:.3f}",
    }


if __name__ == "__main__":
    from tood.utils.errors import run_main

    run_main(lambda: main(parse_args()))
