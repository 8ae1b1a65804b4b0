#!/usr/bin/env python
"""Parameters and multiply-adds of models, as Markdown::

    python tools/count_cost.py tood_R50_FPN_1x tood_R101_DCN_FPN_mstrain_2x

Multiply-adds are those of convolutions and matrix products, which the paper calls FLOPs.
"""

import argparse
import math
import warnings

from tood.utils import quiet  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
from fvcore.nn import FlopCountAnalysis
from tqdm import tqdm

from tood import model_zoo
from tood.utils.errors import run_main

COUNTED = ("conv", "bmm", "linear", "deform_conv2d")


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


def count_deform_conv(inputs, outputs):
    """For each number that comes out, one product for each weight of its kernel."""
    kernel = inputs[1].type().sizes()[1:]
    return math.prod(kernel) * math.prod(outputs[0].type().sizes())


def multiply_adds(module, inputs):
    """
    Args:
        module: backbone or head.
        inputs: tuple of tensors, one image or its features.
    """
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
    parser = argparse.ArgumentParser(description=__doc__.split("::")[0])
    parser.add_argument("configs", nargs="*", default=list(model_zoo.RELEASED_MODELS))
    parser.add_argument("--height", type=padded, default=800, help="a multiple of 32")
    parser.add_argument("--width", type=padded, default=1280, help="a multiple of 32")
    args = parser.parse_args()
    rows = []
    for name in tqdm(args.configs, desc="counting"):
        model = model_zoo.get_model(name, device="cpu")
        image = torch.zeros(1, 3, args.height, args.width)
        features = model.backbone(image)
        features = tuple(features[f] for f in model.head_in_features)
        cost = [multiply_adds(model.backbone, (image,)), multiply_adds(model.head, features)]
        parameters = sum(p.numel() for p in model.parameters())
        parameters += sum(b.numel() for n, b in model.named_buffers() if is_frozen_affine(n))
        head = sum(p.numel() for p in model.head.parameters())
        total, of_head = sum(cost) / 1e9, cost[1] / 1e9
        rows.append(f"| `{name}` | {parameters:,} | {head:,} | {total:.2f} | {of_head:.2f} |")
    print("| config | parameters | of the head | G multiply-adds | of the head |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))


def is_frozen_affine(name):
    """Weights and biases of frozen norms are buffers in Detectron2, and parameters elsewhere."""
    return name.endswith(("norm.weight", "norm.bias"))


if __name__ == "__main__":
    run_main(main)
