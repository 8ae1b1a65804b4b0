#!/usr/bin/env python
"""Draw the locations assigned to each object by ATSS and by task alignment learning (TAL), or by
your assigner, if MODEL.TOOD.ASSIGNER names one::

    python tools/visualize_assignment.py --config-file configs/demo_shapes.yaml \\
        --output assignment.png --num-images 3 --weights output/demo/model_final.pth

One row per image; with several checkpoints of a training after --weights, one row each of the
first image. Dots are larger and brighter the larger their weight in the box loss, the centerness in
ATSS and t_hat in TAL, and have outlines in the color of their object. A table lists, for each
object, positives, metric t, t_hat and IoU. KEY VALUE options of the config go last.
"""

import os

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tabulate import tabulate

from tood.checkpoint.checkpointer import Checkpointer
from tood.config.read import check_weights, load_config, run_options
from tood.data.datasets import prepare_datasets
from tood.engine.trainer import Trainer
from tood.modeling.assigners import ASSIGNER_REGISTRY, ATSS, TAL, alignment_metric
from tood.modeling.box_ops import paired_iou
from tood.utils.arguments import make_parser, parse_arguments, split_overrides
from tood.utils.errors import UserError, run_main
from tood.utils.files import check_image_output, write_image
from tood.visualization.draw import (
    add_heading,
    class_colors,
    draw_boxes,
    draw_points,
    image_grid,
)

SMALLEST = 360  # shorter side of a drawn image, pixels


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", nargs="+", required=True, metavar="FILE", help="checkpoints")
    parser.add_argument("--val-data", action="append", metavar="DATA", help="as in train_net.py")
    parser.add_argument(
        "--image", metavar="FILE_NAME", help="image of the data set, instead of the first"
    )
    parser.add_argument("--num-images", type=int, default=1)
    parser.add_argument("--output", default="assignment.png", metavar="PNG")
    parser.add_argument("--overwrite", action="store_true", help="a file that already exists")
    argv, opts = split_overrides(argv)
    args = parse_arguments(parser, argv)
    args.opts = opts
    if args.num_images < 1:
        parser.error("--num-images must be at least 1")
    return args


def main(args):
    check_image_output(args.output, args.overwrite)
    cfg = load_config(args.config_file, args.opts, val_data=args.val_data)
    prepare_datasets(run_options(cfg).data, training=False)
    dataset = cfg.DATASETS.TEST[0]
    class_names = MetadataCatalog.get(dataset).thing_classes
    images = read_images(Trainer.build_validation_loader(cfg, dataset), args)
    model = build_model(cfg).eval()
    if isinstance(model.assigner, ATSS):  # which is drawn on the left
        model.assigner = ASSIGNER_REGISTRY.get("tal")(cfg)
    rows = []
    for weights in args.weights:
        check_weights(weights)
        Checkpointer(model, complete=True).load(weights)
        for image in images:
            prefix = f"{os.path.basename(weights)}: " if len(args.weights) > 1 else ""
            title = prefix + os.path.basename(image["file_name"])
            rows.append(draw_row(model, image, class_names, cfg.INPUT.FORMAT, title))
    write_image(image_grid(rows), args.output)
    print(f"ATSS (left) and {get_name(model.assigner)} (right): {args.output}")


def get_name(assigner):
    return type(assigner).__name__


def read_images(loader, args):
    """Return the named image, or the first ones with objects."""
    wanted = 1 if args.image or len(args.weights) > 1 else args.num_images
    found = []
    for (image,) in loader:
        name = image["file_name"]
        named = args.image in (None, name, os.path.basename(name))
        if named and len(image["instances"]):
            found.append(image)
        if len(found) == wanted:
            return found
    if not found:
        raise UserError(
            f"There is no image {args.image or 'with objects'} in the data; --image takes the name "
            "of a file in it."
        )
    return found


def draw_row(model, image, class_names, image_format, title):
    """Draw an image under both assignments, and print their table."""
    gt = image["instances"]
    assigned = assign(model, image)
    print(f"\n{title}\n{make_table(assigned, gt, class_names)}")
    pixels = image["image"].permute(1, 2, 0).numpy()
    pixels = pixels if image_format == "RGB" else pixels[:, :, ::-1]
    scale = max(1.0, SMALLEST / min(pixels.shape[:2]))
    # Each object has a color and a number, and its dots have outlines of its color.
    labels = [f"{i} {class_names[c]}" for i, c in enumerate(gt.gt_classes.tolist())]
    colors = class_colors(len(gt))
    row = []
    for phase, found in assigned.items():
        drawing = draw_boxes(pixels, gt.gt_boxes.tensor, range(len(gt)), labels, scale=scale)
        mine = found["gt_index"] >= 0
        owners = found["gt_index"][mine]
        drawing = draw_points(
            drawing,
            found["points"][mine] * scale,
            found["weights"][mine],
            outlines=[colors[i] for i in owners.tolist()],
        )
        without = sorted(set(range(len(gt))) - set(owners.tolist()))
        heading = f"{phase}: {len(owners)} positives, none for {without or 'no object'}   {title}"
        row.append(add_heading(drawing, heading))
    return row


@torch.no_grad()
def assign(model, image):
    """Return objects, weights, targets, IoUs and metric t of all locations, of each phase."""
    images, predictions = model.predict_with_images([image])
    tal = model.assigner if isinstance(model.assigner, TAL) else TAL()  # for the metric
    gt = image["instances"].to(model.device)
    assigned = {}
    for phase, assigner in (
        ("ATSS", model.warmup_assigner),
        (get_name(model.assigner), model.assigner),
    ):
        targets = model.label_batch(images, predictions, [gt], assigner)
        gt_index = targets.gt_index[0]
        scores = predictions.pred_scores[0].gather(1, targets.gt_classes[0][:, None]).squeeze(1)
        ious = paired_iou(predictions.pred_boxes[0], targets.gt_boxes[0])
        found = {
            "gt_index": gt_index,
            "points": predictions.anchors.get_centers(),
            "weights": targets.box_weights[0],
            "targets": targets.cls_targets[0],
            "ious": ious,
            "t": alignment_metric(scores, ious, tal.alpha, tal.beta),
        }
        assigned[phase] = {name: x.cpu() for name, x in found.items()}
    return assigned


def make_table(assigned, gt, class_names):
    """Return a row for each object, as Markdown."""
    columns = ("positives", "largest t", "largest target", "mean IoU")
    headers = ["object", "class", *(f"{phase}: {x}" for phase in assigned for x in columns)]
    rows = []
    for i, c in enumerate(gt.gt_classes.tolist()):
        row = [i, class_names[c]]
        for found in assigned.values():
            mine = found["gt_index"] == i
            if not mine.any():
                row += ["none", "", "", ""]
                continue
            largest = (found[key][mine].max().item() for key in ("t", "targets"))
            row += [int(mine.sum()), *largest, found["ious"][mine].mean().item()]
        rows.append(row)
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".3f")


if __name__ == "__main__":
    run_main(lambda: main(parse_args()))
