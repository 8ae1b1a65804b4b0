#!/usr/bin/env python
"""Measure the alignment of classification and localization of one or more detectors, and draw it::

    python tools/analyze_alignment.py --val-data val.json:images --output output/alignment \\
        --model ATSS configs/paper/thead_ATSS_R50_FPN_1x.yaml atss/model_final.pth \\
        --model TOOD configs/tood_R50_FPN_1x.yaml tood/model_final.pth

writes a table (table.md, alignment.json), maps of score and IoU over some images (maps_*.png), and
scatter.png and histograms.png over all objects. Detectron2's RetinaNet can be one of the models.
docs/alignment.md defines the metrics.
"""

import argparse
import os

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.modeling import build_model
from tabulate import tabulate

from tood.checkpoint.checkpointer import Checkpointer
from tood.config.read import check_weights, load_config, run_options
from tood.data.datasets import prepare_datasets
from tood.engine.trainer import Trainer
from tood.evaluation.alignment_evaluator import (
    AlignmentEvaluator,
    DenseReader,
    compute_input_scale,
    format_table,
    summarize,
)
from tood.evaluation.coco import first_AP
from tood.utils.arguments import make_parser, parse_arguments
from tood.utils.errors import UserError, run_main
from tood.utils.files import check_folder, write_image, write_json
from tood.visualization.alignment import draw_histograms, draw_maps, draw_scatter
from tood.visualization.draw import image_grid

ARCHITECTURES = ("TOOD", "RetinaNet")


def parse_args(argv=None):
    parser = make_parser(__doc__)
    names = ("NAME", "CONFIG", "WEIGHTS")
    parser.add_argument(
        "--model", action="append", nargs=3, required=True, metavar=names, help="may be repeated"
    )
    parser.add_argument("--val-data", action="append", metavar="DATA", help="as in train_net.py")
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument("--num-images", type=int, default=4, help="to draw maps of")
    parser.add_argument("--overwrite", action="store_true", help="files that already exist")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE options of all configs")
    return parse_arguments(parser, argv)


def main(args):
    check_folder(args.output, "--output")
    names = [name for name, _, _ in args.model]
    if len(set(names)) < len(names):
        raise UserError(f"Two models have one name: {', '.join(names)} (--model).")
    table_file = os.path.join(args.output, "table.md")
    if os.path.exists(table_file) and not args.overwrite:
        raise UserError(f"{table_file} already exists; name another --output, or --overwrite.")
    configs = {name: read_model_config(file, w, args) for name, file, w in args.model}
    dataset = register_dataset(configs)
    measured, maps = {}, {}
    for name, _, weights in args.model:
        measured[name], maps[name] = measure(configs[name], dataset, weights, name, args.num_images)
    write_tables({name: rows for name, (rows, _) in measured.items()}, args.output)
    for i, drawings in enumerate(zip(*maps.values())):
        grid = image_grid([[drawing] for drawing in drawings])
        write_image(grid, os.path.join(args.output, f"maps_{i}.png"))
    evaluators = {name: alignment for name, (_, alignment) in measured.items()}
    pairs = {name: alignment.pairs for name, alignment in evaluators.items()}
    write_image(draw_scatter(pairs), os.path.join(args.output, "scatter.png"))
    metrics = {name: alignment.metrics for name, alignment in evaluators.items()}
    write_image(draw_histograms(metrics), os.path.join(args.output, "histograms.png"))
    print(f"Tables and drawings: {args.output}")


def register_dataset(configs):
    """Register the data set of all models, and return its name."""
    datasets = {tuple(cfg.DATASETS.TEST) for cfg in configs.values()}
    if len(datasets) > 1 or len(min(datasets)) > 1:
        raise UserError("The models have several data sets; name one with --val-data, once.")
    for cfg in configs.values():
        prepare_datasets(run_options(cfg).data, training=False)
    return min(datasets)[0]


def measure(cfg, dataset, weights, name, num_images):
    """Return a model's rows and evaluator, and maps of some images."""
    model = build_model(cfg)
    Checkpointer(model, complete=True).load(weights)
    alignment = AlignmentEvaluator(dataset, model)
    evaluators = DatasetEvaluators([Trainer.build_evaluator(cfg, dataset), alignment])
    loader = Trainer.build_test_loader(cfg, dataset)
    results = inference_on_dataset(model, loader, evaluators)
    rows = summarize(alignment.metrics, MetadataCatalog.get(dataset).thing_classes)
    rows["all"]["AP"] = first_AP(results)
    maps = draw_some_maps(model, cfg, loader, alignment, name, num_images)
    return (rows, alignment), maps


def read_model_config(config_file, weights, args):
    options = dict(val_data=args.val_data, architectures=ARCHITECTURES)
    cfg = load_config(config_file, args.opts, **options)
    if cfg.INPUT.TILES.SIZE:
        raise UserError(
            f"INPUT.TILES.SIZE is {cfg.INPUT.TILES.SIZE}, and alignment is not measured in tiles; "
            "set it to 0 to measure whole images."
        )
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        # The data are checked against it.
        cfg.MODEL.TOOD.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES
    check_weights(weights)
    cfg.OUTPUT_DIR = args.output
    return cfg


def draw_some_maps(model, cfg, loader, alignment, name, num_images):
    """Draw score and IoU over the first images with objects."""
    reader = DenseReader(model)
    model.eval()
    drawings = []
    with torch.no_grad():
        for inputs in loader:
            if len(drawings) >= num_images:
                break
            (record,) = inputs
            gt_boxes, gt_classes = (
                x.to(model.device) for x in alignment.objects[record["image_id"]]
            )
            if len(gt_boxes) == 0:
                continue
            model(inputs)
            image = record["image"].permute(1, 2, 0).numpy()
            image = image if cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
            boxes = gt_boxes * compute_input_scale(record).to(gt_boxes)
            title = f"{name}: {os.path.basename(record['file_name'])}"
            drawings.append(draw_maps(image, reader.latest, 0, boxes, gt_classes, title))
    reader.close()
    return drawings


def write_tables(rows, output):
    headers = ["", "AP", "PCC top-50", "IoU top-10", "correct", "redundant", "error"]
    keys = ("AP", "PCC", "IoU", "correct", "redundant", "error")
    body = [[name, *(found["all"][key] for key in keys)] for name, found in rows.items()]
    table = tabulate(body, headers=headers, tablefmt="pipe", floatfmt=("", ".1f", ".3f", ".3f"))
    slices = []
    for name, found in rows.items():
        found = {key: {k: v for k, v in row.items() if k != "AP"} for key, row in found.items()}
        slices.append(f"\n## {name}\n\n{format_table(found)}")
    with open(os.path.join(output, "table.md"), "w", encoding="utf-8") as f:
        f.write("\n".join([table, *slices]) + "\n")
    write_json(rows, os.path.join(output, "alignment.json"))
    print(table)


if __name__ == "__main__":
    run_main(lambda: main(parse_args()))
