"""Check data sets, and draw what the trainer gets to see of them: resized, augmented, with its
boxes::

    python tools/visualize_data.py --config-file configs/tood_R18_GN_small_data.yaml \\
        --train-data train.json:images --output data.png
"""

import argparse
import itertools
import os

from detectron2.data import MetadataCatalog
from tqdm import tqdm

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.config.read import load_config, run_options
from tood.data.datasets import prepare_datasets
from tood.engine.trainer import Trainer
from tood.utils.arguments import parse_arguments
from tood.utils.errors import run_main
from tood.utils.files import check_image_output, write_image
from tood.visualization.draw import add_heading, draw_boxes, image_grid


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--train-data", action="append", metavar="DATA", help="as in train_net.py")
    parser.add_argument("--output", default="data.png", metavar="PNG")
    parser.add_argument("--overwrite", action="store_true", help="a file that already exists")
    parser.add_argument("--num-images", type=int, default=12, help="the first of the training")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the drawn images")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE options of the config")
    args = parse_arguments(parser, argv)
    for flag in ("num_images", "columns", "scale"):
        if getattr(args, flag) <= 0:
            parser.error(f"--{flag.replace('_', '-')} must be more than 0")
    return args


def main(args):
    cfg = load_config(args.config_file, args.opts, args.train_data, training=True)
    check_image_output(args.output, args.overwrite)
    cfg.DATASETS.TEST = ()  # training data only
    for report in prepare_datasets(run_options(cfg).data, training=True):
        print(report)
    class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    images = itertools.chain.from_iterable(Trainer.build_train_loader(cfg))
    images = itertools.islice(images, args.num_images)
    drawings = [
        draw(image, cfg.INPUT.FORMAT, class_names, args.scale)
        for image in tqdm(images, total=args.num_images, desc="drawing")
    ]
    rows = [drawings[i : i + args.columns] for i in range(0, len(drawings), args.columns)]
    write_image(image_grid(rows), args.output)
    print(f"{len(drawings)} images, as a training may begin with them: {args.output}")


def draw(image, image_format, class_names, scale):
    """One image of a batch, below its file's name and its size at the network's input."""
    pixels = image["image"].permute(1, 2, 0).numpy()
    if image_format == "BGR":
        pixels = pixels[:, :, ::-1]
    gt = image["instances"]
    boxes, classes = gt.gt_boxes.tensor.numpy(), gt.gt_classes.tolist()
    drawing = draw_boxes(pixels, boxes, classes, class_names, scale=scale)
    height, width, _ = pixels.shape
    name = os.path.basename(image["file_name"])
    return add_heading(drawing, f"{width} x {height}  {name}")


def cli(argv=None):
    run_main(lambda: main(parse_args(argv)))
