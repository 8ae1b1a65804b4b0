#!/usr/bin/env python
"""Peak memory of a training step on a GPU, estimated on a machine without one, as Markdown::

    python dev/experiments/estimate_memory.py tood_R50_FPN_1x --batch 2 16

Two steps, forward, backward and optimizer, are taken on fake tensors, and what is alive is summed
up after each operation: weights, gradients, momentum, and what is kept for the gradients. What is
not counted is the CUDA context and what cuDNN's algorithms work in. Needs PyTorch 2.1 or newer.
"""

import math
import os
import weakref
from typing import NamedTuple
from unittest import mock

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from fake_tensors import fake_batch, fake_tensors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from tqdm import tqdm

from tood.config.read import load_config
from tood.config.zoo import get_config_file
from tood.modeling.backbone.recompute import recompute_blocks
from tood.utils.arguments import make_parser
from tood.utils.errors import UserError, run_main

GiB = 1024**3
AFTER_WARMUP = 10**9  # an iteration at which TAL assigns
PARALLEL_IMAGES = 32  # of torchvision's deformable convolution on a GPU, at most


class Setting(NamedTuple):
    """The step whose memory is estimated."""

    batch: int
    height: int
    width: int
    objects: int
    half: bool  # bfloat16, whose size is that of float16


class LiveMemory(TorchDispatchMode):
    """Sums up the bytes of the storages that operations have made and that are still in use."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = set()

    def add(self, tensor):
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, address, size):
        self._known.discard(address)
        self.now -= size

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for x in tree_flatten(result)[0]:
            if isinstance(x, torch.Tensor):
                self.add(x)
        workspace = WORKSPACES.get(operation.name())
        if workspace is not None:
            self.peak = max(self.peak, self.now + workspace(args))
        return result


def deform_columns(x, weight, offset):
    """Bytes of the columns that torchvision unfolds the input of a deformable convolution to."""
    N, H, W = offset.shape[0], *offset.shape[2:]
    images = max(n for n in range(1, min(N, PARALLEL_IMAGES) + 1) if N % n == 0)
    return x.shape[1] * math.prod(weight.shape[2:]) * images * H * W * x.element_size()


# By operation, what it allocates for itself.
WORKSPACES = {
    "torchvision::deform_conv2d": lambda args: deform_columns(*args[:3]),
    "torchvision::_deform_conv2d_backward": lambda args: deform_columns(*args[1:4]),
}


def use_norms_of_cuda():
    """Compute group norms in float32 under autocast, as a GPU does; a CPU computes them in half."""
    group_norm = F.group_norm
    return mock.patch.object(F, "group_norm", lambda x, *args: group_norm(x.float(), *args))


def estimate_step(model, setting):
    """
    Args:
        model: model on the CPU; its weights are removed.
        setting: a :class:`Setting`.

    Returns:
        bytes at the peak of the second step, when there is momentum.
    """
    batch_size = (setting.height, setting.width)
    memory = LiveMemory()
    # "cpu", for the backward pass of "cuda" needs a GPU even so.
    with fake_tensors(model, "cpu"), memory, EventStorage(AFTER_WARMUP), use_norms_of_cuda():
        for x in (*model.parameters(), *model.buffers()):
            memory.add(x)
        parameters = [p for p in model.train().parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)
        batch = fake_batch([batch_size] * setting.batch, [setting.objects] * setting.batch)
        model.precision_train = "bfloat16" if setting.half else "float32"
        for _ in range(2):
            take_step(model, optimizer, batch)
    return memory.peak


def take_step(model, optimizer, batch):
    """Take a training step in the order of ``tood.engine.step``."""
    optimizer.zero_grad()
    sum(model(batch).values()).backward()
    optimizer.step()


def build(name):
    """Return a model with random weights, on the CPU."""
    path = name if os.path.isfile(name) else get_config_file(name)
    return build_model(load_config(path, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]))


def row(name, batch, args):
    """A line of the table: float32 and half precision, each without and with recomputation."""
    cells = []
    for half in (False, True):
        for recompute in (False, True):
            model = build(name)
            if recompute:
                recompute_blocks(model.backbone, freeze_bn_stats=model.freeze_bn_stats)
            setting = Setting(batch, args.height, args.width, args.objects, half)
            cells.append(f"{estimate_step(model, setting) / GiB:.2f}")
    return f"| `{name}` | {batch} | {' | '.join(cells)} |"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("models", nargs="+", help="names of configs, or config files")
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 16], help="images of a step")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--objects", type=int, default=20, help="number of objects in each image")
    args = parser.parse_args()
    if torch.__version__ < "2.1":  # a storage has no separate object to watch
        raise UserError(f"This needs PyTorch 2.1 or newer, and not {torch.__version__}.")
    if min(args.height, args.width, *args.batch) < 1 or args.objects < 0:
        raise UserError("--batch, --height and --width must be above 0, --objects 0 or more.")
    cases = [(name, batch) for name in args.models for batch in args.batch]
    rows = [row(*case, args) for case in tqdm(cases, desc="estimating")]
    print("| model | images | float32 | recomputed | half precision | recomputed |")
    print("\n".join(["|---|---|---|---|---|---|", *rows]))


if __name__ == "__main__":
    run_main(main)
