"""Say why an object was found, or was not: one sentence and one drawing::

    tood explain output/mine photos/a.jpg 120,40,60,80
    python tools/explain.py --config-file output/mine/config.yaml --image a.jpg \\
        --box 120,40,60,80 --class RBC --output why.png MODEL.WEIGHTS output/mine/model_best.pth

The box is x, y, width and height in pixels of the image. Class and neighbours are those of the
annotations in DATASETS.TEST and DATASETS.TRAIN, where the image is in one of them.
"""

import argparse
import os
import sys
from typing import Dict, List, Optional

import torch

import tood.checkpoint.weights  # noqa: F401  (registers the names of weights)
from tood.app.report.reasons import Objects, draw, explain, nearest_object, objects_of
from tood.config.read import split_options
from tood.data.annotations import class_names as names_of
from tood.data.annotations import has_size, read_annotations
from tood.data.entries import parse_own_data
from tood.data.images import probe_image
from tood.inference.predictor import Predictor, View
from tood.inference.thresholds import FROM_REPORT, read_thresholds, threshold_of
from tood.modeling.box_ops import paired_iou
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, run_main
from tood.utils.files import check_image_output, write_image
from tood.visualization.draw import SCORE_THRESHOLD


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--image", required=True, metavar="FILE")
    parser.add_argument("--box", required=True, metavar="X,Y,WIDTH,HEIGHT")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="of the object")
    parser.add_argument(
        "--score-threshold",
        type=threshold_of,
        default=SCORE_THRESHOLD,
        help=f"from which on a detection is told; or {FROM_REPORT}",
    )
    parser.add_argument("--output", default="why.png", metavar="PNG")
    parser.add_argument("--overwrite", action="store_true", help="a file that already exists")
    argv, opts = split_options(sys.argv[1:] if argv is None else argv)
    args = parse_arguments(parser, argv)
    args.opts, args.box = opts, box_of(args.box)
    return args


def box_of(text: str) -> List[float]:
    try:
        box = [float(x) for x in text.replace(" ", ",").split(",") if x]
    except ValueError:
        box = []
    if len(box) != 4 or not min(box[2:]) > 0:
        raise UserError(
            f"The box is {text!r}; write x,y,width,height in pixels of the image, as 120,40,60,80."
        )
    return box


def main(args):
    check_image_output(args.output, args.overwrite)
    predictor = Predictor(args.config_file, opts=args.opts)
    view = predictor.view_of(args.image, args.box)
    check_box(args)
    objects = find_objects(predictor, view, args)
    names, threshold = predictor.class_names, args.score_threshold
    if threshold == FROM_REPORT:
        threshold = read_thresholds(predictor.options.weights, names)[objects.class_index]
    found = explain(predictor.model, view.image, objects, names, threshold)
    pixels = view.image.permute(1, 2, 0).numpy()
    pixels = pixels if predictor.options.input_format == "RGB" else pixels[:, :, ::-1]
    write_image(draw(found, pixels, objects, names), args.output)
    print(f"{names[objects.class_index]}: {found.sentence} {found.assignment}")
    print(f"Its locations: {args.output}")


def check_box(args):
    """
    Raises:
        UserError: for a box that lies outside of the image, which could be read.
    """
    width, height = probe_image(args.image)
    x, y, w, h = args.box
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise UserError(
            f"The box {args.box} lies outside of {args.image}, which is {width} x {height} pixels."
        )


def find_objects(predictor: Predictor, view: View, args) -> Objects:
    """The objects of the image, and the one that is asked about, which may be none of them."""
    boxes, classes = annotated(predictor, args.image)
    corner = (view.x, view.y)
    objects = objects_of(boxes, classes, 0, view.scale, corner)
    asked = objects_of([args.box], [0], 0, view.scale, corner).box
    index = nearest_object(objects.boxes, asked)
    k = class_of(args.class_name, predictor.class_names)
    if index is not None and k in (None, classes[index]):
        return objects._replace(index=index)
    k = likeliest(predictor.model, view, asked) if k is None else k
    classes = torch.cat([objects.classes, torch.tensor([k])])
    return Objects(torch.cat([objects.boxes, asked[None]]), classes, len(boxes))


def class_of(name: Optional[str], names: List[str]) -> Optional[int]:
    if name is None:
        return None
    if name not in names:
        raise UserError(f"The class {name!r} (--class) is none of {', '.join(names)}.")
    return names.index(name)


@torch.no_grad()
def likeliest(model, view: View, box: torch.Tensor) -> int:
    """The class of the highest score of a box that overlaps by half, or anywhere."""
    scores, boxes, _ = model.predict_dense([{"image": view.image}])
    ious = paired_iou(boxes[0], box.to(boxes[0]))
    near = ious >= min(0.5, float(ious.max()))
    return int(scores[0][near].amax(dim=0).argmax())


def annotated(predictor: Predictor, path: str):
    """Boxes and classes of an image in the data sets of the config; nothing, if it is in none."""
    data = predictor.options.data
    for entry in (*data.test, *data.train):
        own_data = parse_own_data(entry)
        if own_data is None:
            continue
        try:
            content = read_annotations(*own_data, to_train=False)
        except UserError:  # not needed
            continue
        image = next((x for x in content["images"] if is_it(x, own_data.image_root, path)), None)
        if image is None or not set(names_of(content)) <= set(predictor.class_names):
            continue
        names = {c["id"]: predictor.class_names.index(c["name"]) for c in content["categories"]}
        mine = [
            a
            for a in content.get("annotations", ())
            if a["image_id"] == image["id"] and has_size(a["bbox"]) and not a["iscrowd"]
        ]
        return [a["bbox"] for a in mine], [names[a["category_id"]] for a in mine]
    return [], []


def is_it(image: Dict, image_root: str, path: str) -> bool:
    other = os.path.join(image_root, image["file_name"])
    return os.path.exists(other) and os.path.samefile(other, path)


def cli(argv=None):
    run_main(lambda: main(parse_args(argv)))
