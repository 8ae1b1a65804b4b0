#!/usr/bin/env python
"""Measure how many wrong labels a report finds: put faults into the annotations that a model is
trained on, train, and see where the report ranks them::

    python dev/experiments/measure_suspects.py --config-file configs/tood_lite0_N_small_data.yaml \\
        --train-data bccd/train.json:bccd/train --output output/suspects

Faults are drawn with a seed, each a share of the objects: boxes taken away, boxes put where nothing
is, classes changed. Faults that the data had before count as false alarms.
"""

import os
import subprocess
import sys

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import numpy as np
from pycocotools import mask as coco_mask
from tabulate import tabulate

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.app.report.matching import make_table, overlaps
from tood.app.report.subject import examine
from tood.app.report.suspects import (
    MISSING,
    NEAR_IOU,
    NOTHING_THERE,
    OTHER_CLASS,
    SAME_IOU,
    find_suspects,
)
from tood.data.annotations import read_annotations
from tood.data.datasets import prepare_datasets
from tood.data.entries import parse_own_data
from tood.inference.predictor import Predictor
from tood.utils.arguments import make_parser, parse_arguments, split_overrides
from tood.utils.errors import UserError, run_main
from tood.utils.files import check_folder, write_json

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FAULTY, KINDS = "faulty.json", (MISSING, NOTHING_THERE, OTHER_CLASS)
TOP = (10, 25)


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--train-data", required=True, metavar="JSON:FOLDER")
    parser.add_argument("--output", required=True, metavar="FOLDER")
    help = "share of the objects, for each kind"
    parser.add_argument("--share", type=float, default=0.05, help=help)
    parser.add_argument("--seed", type=int, default=0, help="random seed of the faults")
    argv, opts = split_overrides(argv)
    args = parse_arguments(parser, argv)
    args.opts = opts
    if not 0 < args.share < 0.3:
        raise UserError(f"--share is {args.share}; it must be between 0 and 0.3.")
    return args


def main(args):
    own_data = parse_own_data(args.train_data)
    if own_data is None:
        raise UserError(f"There is no data set {args.train_data} (--train-data).")
    check_folder(args.output, "--output")
    content = read_annotations(*own_data, to_train=True)
    faults = put_faults(content, args.share, np.random.default_rng(args.seed))
    path = os.path.join(args.output, FAULTY)
    write_json({x: content[x] for x in ("images", "categories", "annotations")}, path)
    entry = f"{path}:{own_data.image_root}"
    train(args, entry)
    opts = ["MODEL.WEIGHTS", os.path.join(args.output, "model_final.pth")]
    config = os.path.join(args.output, "config.yaml")
    predictor = Predictor(config, opts=[*opts, "DATASETS.TEST", (entry,)])
    data, classes = predictor.options.data, predictor.class_names
    prepare_datasets(data, training=False, known_classes=classes)
    subject = examine(predictor)
    table = make_table(subject.content, subject.detections)
    rows = rate(find_suspects(table, overlaps(table)), faults, table.image_ids)
    write_json(rows, os.path.join(args.output, "suspects.json"))
    print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".2f"))


def put_faults(content, share, rng):
    """Change annotations in place.

    Returns:
        for each kind: the boxes that were taken away, as (image id, box); the indices, in the
        changed list, of those that were put somewhere, and of those whose class was changed.
    """
    objects = content["annotations"]
    number = max(1, round(share * len(objects)))
    chosen = rng.permutation(len(objects))
    dropped, changed = set(chosen[:number].tolist()), chosen[number : 2 * number].tolist()
    ids = [x["id"] for x in content["categories"]]
    for i in changed if len(ids) > 1 else ():
        others = [x for x in ids if x != objects[i]["category_id"]]
        objects[i] = {**objects[i], "category_id": others[rng.integers(len(others))]}
    new = [draw_false_box(content, rng) for _ in range(number)]
    kept = [i for i in range(len(objects)) if i not in dropped]
    place = {i: j for j, i in enumerate(kept)}
    missing = [(objects[i]["image_id"], objects[i]["bbox"]) for i in sorted(dropped)]
    content["annotations"] = [
        {**a, "id": i} for i, a in enumerate([*(objects[i] for i in kept), *new], 1)
    ]
    return {
        MISSING: missing,
        NOTHING_THERE: list(range(len(kept), len(kept) + len(new))),
        OTHER_CLASS: [place[i] for i in changed] if len(ids) > 1 else [],
    }


def draw_false_box(content, rng):
    """Return an annotation of the size of another, that no object overlaps by 0.3."""
    objects, images = content["annotations"], {x["id"]: x for x in content["images"]}
    while True:
        like = objects[rng.integers(len(objects))]
        image = content["images"][rng.integers(len(images))]
        w, h = like["bbox"][2:]
        if w > image["width"] or h > image["height"]:
            continue
        x, y = rng.uniform(0, image["width"] - w), rng.uniform(0, image["height"] - h)
        box = [float(x), float(y), w, h]
        there = [a["bbox"] for a in objects if a["image_id"] == image["id"]]
        if not there or coco_mask.iou([box], there, [0] * len(there)).max() < NEAR_IOU:
            return {**like, "image_id": image["id"], "bbox": box}


def train(args, entry):
    command = [sys.executable, os.path.join(ROOT, "train_net.py")]
    flags = ["--config-file", args.config_file, "--train-data", entry]
    opts = ["OUTPUT_DIR", args.output, *args.opts]
    if subprocess.run([*command, *flags, *opts]).returncode:
        raise UserError(f"The training failed; its log is in {args.output}.")


def rate(suspects, faults, image_ids):
    """Precision among the first suspects of each kind, and the share of the faults among them."""
    rows = []
    for kind in KINDS:
        ranked, number = [x for x in suspects if x.kind == kind], len(faults[kind])
        hits = np.array(find_hits(ranked, faults, image_ids), dtype=bool)
        row = {"kind": kind, "faults": number, "suspects": len(ranked)}
        for k in TOP:
            row[f"precision at {k}"] = float(hits[:k].mean()) if len(hits) else float("nan")
        for name, k in (("as many as faults", number), ("twice as many", 2 * number)):
            row[f"recall, {name}"] = float(hits[:k].sum() / max(number, 1))
        rows.append(row)
    return rows


def find_hits(suspects, faults, image_ids):
    """Return whether each suspect is a fault; each fault counts once."""
    left = {kind: list(faults[kind]) for kind in KINDS}
    result = []
    for x in suspects:
        if x.kind == MISSING:
            there = (f for f in left[MISSING] if f[0] == image_ids[x.image] and is_there(x, f[1]))
            found = next(there, None)
        else:
            found = x.annotation if x.annotation in left[x.kind] else None
        result.append(found is not None)
        if found is not None:
            left[x.kind].remove(found)
    return result


def is_there(suspect, box):
    return coco_mask.iou([suspect.bbox], [box], [0])[0, 0] >= SAME_IOU


if __name__ == "__main__":
    run_main(lambda: main(parse_args()))
