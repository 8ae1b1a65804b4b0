"""A model on a device that is not there: fake tensors have shapes and devices, and no values.

On "cuda:0" two things are errors, on any machine: operations between devices, and Python's asking
for a value, for which a CPU would have to wait for a GPU. What is allocated can be counted on any
device (``estimate_memory.py``).
"""

from tood.utils import logs  # isort: skip  # noqa: F401  (first: libraries warn)

import contextlib
from unittest import mock

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# What moves values from one device to another.
MOVES = {"_to_copy", "copy_"}


class OneDevice(TorchDispatchMode):
    """Operations between devices raise RuntimeError. Fake tensors do so by themselves only in some
    versions of PyTorch: a convolution of 2.11 takes a weight from another device.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        # Numbers may be anywhere.
        devices = {str(x.device) for x in found if x.dim() > 0}
        if len(devices) > 1 and func.overloadpacket.__name__ not in MOVES:
            raise RuntimeError(f"{func} has tensors on devices {sorted(devices)}.")
        return func(*args, **kwargs)


@contextlib.contextmanager
def fake_tensors(model, device):
    """Make all tensors of a model fake, and its weights pretend to be on a device, in place."""
    pads = mock.patch.object(ImageList, "from_tensors", pad_to_one_size)
    # Or autocast would turn itself off.
    amp = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    bfloat16 = mock.patch("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    with FakeTensorMode(), OneDevice(), pads, amp, bfloat16:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                fakes = {k: fake_like(x, device) for k, x in tensors.items() if x is not None}
                tensors.update(fakes)
        yield model


def fake_like(x, device):
    """Return a tensor, or a parameter, of the same shape."""
    fake = torch.empty(x.shape, dtype=x.dtype, device=device)
    is_parameter = isinstance(x, nn.Parameter)
    return nn.Parameter(fake, requires_grad=x.requires_grad) if is_parameter else fake


def pad_to_one_size(tensors, size_divisibility=0, pad_value=0.0, padding_constraints=None):
    """Detectron2's function on plain integers, where its own computes sizes by tensors on the CPU,
    whose values are fake as well.
    """
    sizes = [tuple(x.shape[-2:]) for x in tensors]
    divisor = max(size_divisibility, 1)
    H, W = (-(-max(side) // divisor) * divisor for side in zip(*sizes))
    padded = [F.pad(x, (0, W - w, 0, H - h), value=pad_value) for x, (h, w) in zip(tensors, sizes)]
    return ImageList(torch.stack(padded), sizes)


def fake_batch(sizes, counts):
    """Images on the CPU, as a loader gives them, with so many objects each."""
    batch = []
    for (height, width), count in zip(sizes, counts):
        gt = Instances((height, width))
        gt.gt_boxes = Boxes(torch.empty(count, 4))
        gt.gt_classes = torch.empty(count, dtype=torch.int64)
        image = torch.empty(3, height, width, dtype=torch.uint8)
        batch.append({"image": image, "instances": gt, "height": height, "width": width})
    return batch
