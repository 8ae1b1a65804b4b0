#!/usr/bin/env python
"""Parameters, multiply-adds and time of models, as Markdown::

    python tools/count_cost.py tood_R50_FPN_1x tood_R101_DCN_FPN_mstrain_2x
    python tools/count_cost.py configs/demo_shapes.yaml timm:convnext_tiny --time

A model is the name of a config, a config file, or timm:NAME, which is tood_R50_FPN_1x with another
backbone. Multiply-adds are those of convolutions and matrix products, which the paper calls FLOPs.
The time is that of an image through backbone and head, without NMS.
"""

import argparse
import math
import os
import statistics
import time
import warnings

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from tqdm import tqdm

from tood import model_zoo
from tood.config.read import load_config
from tood.utils.arguments import make_parser
from tood.utils.errors import run_main

COUNTED = ("conv", "bmm", "matmul", "einsum", "linear", "deform_conv2d")
TIMM = "timm:"
BASE = "tood_R50_FPN_1x"  # of timm's backbones
ROUNDS = 7


class Outputs(torch.nn.Module):
    """A part of the network with nothing but tensors in and out, for tracing."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        if len(inputs) == 1:
            return tuple(self.module(inputs[0]).values())  # the backbone
        predictions = self.module(list(inputs))
        return predictions.pred_log_scores, predictions.pred_boxes


def build(name, device="cpu"):
    """Return a model with random weights, in evaluation mode."""
    options = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", ""]
    if name.startswith(TIMM):
        timm = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME"]
        name, options = BASE, [*options, *timm, name[len(TIMM) :]]
    path = name if os.path.isfile(name) else model_zoo.get_config_file(name)
    return build_model(load_config(path, options)).eval()


def milliseconds(model, image):
    """Return the median time of backbone and head, after a first call that is not counted."""
    image = image.contiguous(memory_format=torch.channels_last)  # as TOOD does
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        features = model.backbone(image)
        model.head([features[f] for f in model.head_in_features])
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def count_parameters(model):
    """Return the number with weights and biases of frozen norms, buffers in Detectron2 only."""
    affine = ("norm.weight", "norm.bias")
    tensors = [*model.parameters()]
    tensors += [b for name, b in model.named_buffers() if name.endswith(affine)]
    return sum(x.numel() for x in tensors)


def count_deform_conv(inputs, outputs):
    """Return one product for each output and weight of its kernel."""
    kernel = inputs[1].type().sizes()[1:]
    return math.prod(kernel) * math.prod(outputs[0].type().sizes())


def multiply_adds(module, inputs):
    """
    Args:
        module: backbone or head.
        inputs: tuple of tensors, one image or its features.
    """
    for layer in module.modules():  # timm's attention as matrix products, which can be counted
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False
    count = FlopCountAnalysis(Outputs(module), inputs)
    count.set_op_handle("torchvision::deform_conv2d", count_deform_conv)
    count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, about sizes that become constants
        return sum(count.by_operator()[name] for name in COUNTED)


def padded(text):
    size = int(text)
    if size < 32 or size % 32 != 0:
        raise argparse.ArgumentTypeError(f"{size} is not a multiple of 32")
    return size


@torch.no_grad()
def main():
    parser = make_parser(__doc__)
    parser.add_argument("models", nargs="*", default=list(model_zoo.RELEASED_MODELS))
    parser.add_argument("--height", type=padded, default=800, help="a multiple of 32")
    parser.add_argument("--width", type=padded, default=1280, help="a multiple of 32")
    parser.add_argument("--time", action="store_true", help="measure on this machine's CPU as well")
    args = parser.parse_args()
    rows = [row(name, args) for name in tqdm(args.models, desc="counting")]
    head = "| model | parameters | of the head | G multiply-adds | of the head |"
    print(head + (" ms |" if args.time else ""))
    print("|---|---|---|---|---|" + ("---|" if args.time else ""))
    print("\n".join(rows))


def row(name, args):
    model = build(name)
    image = torch.zeros(1, 3, args.height, args.width)
    features = model.backbone(image)
    features = tuple(features[f] for f in model.head_in_features)
    cost = [multiply_adds(model.backbone, (image,)), multiply_adds(model.head, features)]
    parameters = count_parameters(model)
    of_head = sum(p.numel() for p in model.head.parameters())
    text = f"| `{name}` | {parameters:,} | {of_head:,} | {sum(cost) / 1e9:.2f} "
    text += f"| {cost[1] / 1e9:.2f} |"
    return f"{text} {milliseconds(model, image):.0f} |" if args.time else text


if __name__ == "__main__":
    run_main(main)
