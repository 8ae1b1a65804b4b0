#!/usr/bin/env python
"""Convert a released TOOD checkpoint, MMDetection's or the authors', for this project::

    python tools/convert_checkpoint.py tood_r50_fpn_1x_coco_20211210.pth tood_R50_FPN_1x.pth

or the weights of an ImageNet ResNet or ResNeXt (torchvision's, open-mmlab's), to train from
without a network.
"""

import os
import shlex

from tood.checkpoint.convert import (
    convert_backbone,
    convert_checkpoint,
    is_backbone,
    read_checkpoint,
    write_converted,
)
from tood.modeling.dense_head import ANCHOR_TYPES
from tood.utils.arguments import make_parser, parse_arguments
from tood.utils.errors import UserError, run_main


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("source", help="checkpoint to read; it is not changed")
    parser.add_argument("target", help="file to write")
    parser.add_argument(
        "--anchor-type",
        choices=ANCHOR_TYPES,
        help="if neither the file nor its name contains it",
    )
    return parse_arguments(parser, argv)


def main(args):
    if os.path.realpath(args.source) == os.path.realpath(args.target):
        raise UserError(f"{args.target} is the source itself; name another file to write.")
    source = read_checkpoint(args.source)
    if is_backbone(source.state_dict):
        write_converted(convert_backbone(source.state_dict), args.target)
        print(f"{args.target}: an ImageNet backbone. To train from it: MODEL.WEIGHTS {args.target}")
        return
    description = convert_checkpoint(args.source, args.target, args.anchor_type)
    for note in description.notes:
        print(f"note: {note}")
    options = " ".join(shlex.quote(str(x)) for x in description.options)
    print(
        f"{args.target}: a model of configs/{description.config}.yaml. To evaluate it:\n"
        f"python train_net.py --config-file configs/{description.config}.yaml --eval-only "
        f"MODEL.WEIGHTS {shlex.quote(args.target)} {options}".rstrip()
    )


if __name__ == "__main__":
    run_main(lambda: main(parse_args()))
