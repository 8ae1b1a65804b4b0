"""Draw predictions beside ground truth, for some images of a data set, into one drawing::

    python tools/draw_predictions.py --config-file configs/tood_R18_GN_small_data.yaml \\
        --val-data val.json:images --output predictions.png \\
        MODEL.WEIGHTS output/small_data/model_final.pth
"""

import argparse

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from tqdm import tqdm

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.config.read import load_config, run_options
from tood.data.datasets import prepare_datasets
from tood.data.images import IMAGE_ERRORS, read_image
from tood.inference.predictor import Predictor
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, run_main
from tood.utils.files import check_image_output, write_image
from tood.visualization.draw import SCORE_THRESHOLD, add_heading, draw_boxes, image_grid


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--val-data", action="append", metavar="DATA", help="as in train_net.py")
    parser.add_argument("--output", default="predictions.png", metavar="PNG")
    parser.add_argument("--num-images", type=positive, default=6, help="the first of the data set")
    parser.add_argument("--columns", type=positive, default=2, help="pairs in a row")
    parser.add_argument(
        "--score-thresh", type=float, default=SCORE_THRESHOLD, help="of what is drawn"
    )
    parser.add_argument("--overwrite", action="store_true", help="a file that already exists")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the drawn images")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="options of the config")
    return parse_arguments(parser, argv)


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def main(args):
    options = run_options(load_config(args.config_file, args.opts, val_data=args.val_data))
    check_image_output(args.output, args.overwrite)
    prepare_datasets(options.data, training=False)
    if not options.weights:
        raise UserError("No checkpoint given: name one with MODEL.WEIGHTS.")
    name = options.data.test[0]
    records = DatasetCatalog.get(name)[: args.num_images]
    class_names = MetadataCatalog.get(name).thing_classes
    # It sees what evaluation sees: tiles, or augmented views.
    predictor = Predictor(args.config_file, opts=args.opts)
    pairs = [
        draw_pair(record, predictor, class_names, args.score_thresh, args.scale)
        for record in tqdm(records, desc="drawing")
    ]
    columns = args.columns
    rows = [sum(pairs[i : i + columns], []) for i in range(0, len(pairs), columns)]
    headings = ("predictions", "ground truth")
    rows[0] = [add_heading(drawing, headings[i % 2]) for i, drawing in enumerate(rows[0])]
    write_image(image_grid(rows), args.output)
    print(f"Predictions (left) and ground truth (right): {args.output}")


def draw_pair(record, predictor, class_names, score_thresh, scale):
    """Two drawings of an image: what the detector says, and what the annotations say."""
    try:
        image = read_image(record["file_name"])
    except IMAGE_ERRORS as error:
        raise UserError(f"The image {record['file_name']} cannot be read ({error}).") from error
    instances = predictor(record["file_name"])
    instances = instances[instances.scores >= score_thresh]
    predicted = draw_boxes(
        image,
        instances.pred_boxes.tensor.numpy(),
        instances.pred_classes.tolist(),
        class_names,
        instances.scores.tolist(),
        scale=scale,
    )
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]
    ]
    classes = [a["category_id"] for a in record["annotations"]]
    return [predicted, draw_boxes(image, boxes, classes, class_names, scale=scale)]


def cli(argv=None):
    run_main(lambda: main(parse_args(argv)))
