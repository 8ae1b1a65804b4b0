#!/usr/bin/env python
"""Generate the data set of drawn shapes: a train and a val split in COCO format::

    python tools/make_shapes.py output/demo/shapes
    python tools/make_shapes.py output/crowd --crowded --size 1024 --num-train 8 --num-val 4

writes train/ and val/ to the folder, each with annotations.json and images/.
"""

from tood.data.shapes import write_shapes
from tood.utils.arguments import make_parser


def main():
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="where to write train/ and val/")
    parser.add_argument("--num-train", type=int, default=500, help="images to train on")
    parser.add_argument("--num-val", type=int, default=100, help="images to evaluate on")
    parser.add_argument("--size", type=int, default=128, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--crowded", action="store_true", help="many shapes of 8 to 28 pixels, for large images"
    )
    args = parser.parse_args()
    sizes = (args.num_train, args.num_val)
    for path in write_shapes(
        args.folder, *sizes, size=args.size, seed=args.seed, crowded=args.crowded
    ):
        print(path)


if __name__ == "__main__":
    main()
