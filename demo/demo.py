#!/usr/bin/env python
"""Detect objects in images, videos or a webcam's, and draw them, as ``tood predict`` does::

    python demo/demo.py --config-file configs/tood_R50_FPN_1x.yaml --input photos/ '*.jpg' a.mp4 \\
        --output found --json found.json MODEL.WEIGHTS tood_R50_FPN_1x.pth
    python demo/demo.py MODEL.WEIGHTS output/demo/model_final.pth

Without --config-file, it is the config.yaml beside the checkpoint; without --input, the first
images of its validation data; without --output, a folder "detections" beside the checkpoint.
"""

import argparse

from tood.utils.arguments import parse_arguments, split_overrides
from tood.utils.errors import UserError, run_main


def parse_args(argv=None):
    from tood.inference.thresholds import parse_threshold

    parser = argparse.ArgumentParser(
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE")
    parser.add_argument(
        "--input", nargs="+", default=[], metavar="PATH", help="files, folders, patterns"
    )
    parser.add_argument("--output", default="", metavar="PATH", help="a folder, or one file")
    parser.add_argument("--score-threshold", "--score-thresh", type=parse_threshold)
    parser.add_argument("--json", default="", metavar="FILE", help="detections in COCO's format")
    help = "write all that the model finds to that file"
    parser.add_argument("--all", dest="all_detections", action="store_true", help=help)
    parser.add_argument("--sheet", default="", metavar="PNG", help="all images in one grid")
    parser.add_argument("--columns", type=int, default=4, help="columns of the sheet")
    parser.add_argument("--overwrite", action="store_true", help="files that already exist")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE options of the config")
    args = vars(parse_arguments(parser, argv))
    images, first = split_overrides(args.pop("input"))
    args["images"] = images or None
    args["config"], args["options"] = args.pop("config_file"), [*first, *args.pop("opts")]
    return args


def main(argv=None):
    from tood.app.predict import predict

    args = parse_args(argv)
    model = dict(zip(args["options"][::2], args["options"][1::2])).get("MODEL.WEIGHTS", "")
    if not model:
        raise UserError("No checkpoint given: name its file with MODEL.WEIGHTS FILE.")
    print(predict(model, **args))


if __name__ == "__main__":
    run_main(main)
