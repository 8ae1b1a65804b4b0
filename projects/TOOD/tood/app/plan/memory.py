"""The memory of a training step, and its time in each precision, measured by steps on noise."""

import contextlib
import time
from typing import Dict, NamedTuple, Optional, Sequence

import psutil
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

# Share of the free memory; the rest is for loading images, batches of other shapes and other
# programs.
USABLE_PART = 0.6
MiB, GiB = 1024**2, 1024**3
# In a step that is timed, if there is more than one image. The time of small images is not
# proportional to their number.
MOST_TIMED = 400_000  # pixels
# The quickest of some steps counts: the first one makes preparations, and other programs disturb.
TIMED_STEPS, TIMED_SECONDS = 3, 5.0
# Memory of a step on a CPU beside its weights, as a multiple of the tensors saved for the
# gradients: 1.25 to 1.51 were measured in separate processes.
BACKWARD, LEAST_BACKWARD = 1.6, 1.25
FORWARD = 0.35  # time of an evaluation, as a part of steps with as many images


class StepMemory(NamedTuple):
    """Memory of a step, in bytes."""

    fixed: int  # weights, gradients and momentum
    per_image: int
    free: int  # before the step

    def fits(self, num_images: int) -> bool:
        """Return whether a step of some images leaves enough for the rest."""
        return self.needed(num_images) <= USABLE_PART * self.free

    def largest(self) -> int:
        """Return the number of images of which a step may fit if nothing is left for the rest."""
        least = self.per_image * LEAST_BACKWARD / BACKWARD
        return max(int((self.free - self.fixed) / least), 0)

    def needed(self, num_images: int) -> int:
        """Return what a step of some images takes."""
        return self.fixed + num_images * self.per_image


def measure_step(model: nn.Module, height: int, width: int) -> StepMemory:
    """Take one step, forward and backward, with an image of noise.

    Args:
        model: a TOOD, without gradients.
        height, width: size of the image, pixels.

    Raises:
        RuntimeError: of PyTorch, if a single image does not fit.
    """
    device = model.device
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    free = _free_memory(device) + weights  # before the model was built
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    # Bytes that the forward pass keeps for its gradients, by the address of each storage; autograd
    # keeps these, so that no address comes again.
    kept = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with saved_tensors_hooks(pack, lambda x: x):
        _take_step(model, 1, height, width)
    # A CPU's process shows less, because it reuses memory.
    used = round(BACKWARD * sum(kept.values()))
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated(device) - before - weights  # those of the gradients
    return StepMemory(3 * weights, max(used, 1), free)


def time_step(model: nn.Module, num_images: int, height: int, width: int) -> float:
    """Return the seconds of a step on a CPU with images of noise, as many as ``MOST_TIMED`` allows:
    the shortest of ``TIMED_STEPS``, or of fewer that take ``TIMED_SECONDS`` together.
    """
    number = min(num_images, max(MOST_TIMED // (height * width), 1))
    seconds = []
    while len(seconds) < TIMED_STEPS and sum(seconds) < TIMED_SECONDS:
        start = time.perf_counter()
        _take_step(model, number, height, width)
        seconds.append(time.perf_counter() - start)
    return min(seconds) * num_images / number


def time_precisions(
    model: nn.Module, precisions: Sequence[str], num_images: int, height: int, width: int
) -> Dict[str, float]:
    """Return :func:`time_step` in each precision.

    Args:
        model: a TOOD on a CPU.
        precisions: values of ``MODEL.TOOD.PRECISION_TRAIN``.
    """
    before, seconds = model.precision_train, {}
    for precision in precisions:
        model.precision_train = precision
        seconds[precision] = time_step(model, num_images, height, width)
    model.precision_train = before
    return seconds


def estimate_evaluation(cfg: CfgNode, seconds: float, num_images: int) -> float:
    """Return the seconds of an evaluation during a training.

    Args:
        seconds: those of a step, for each image in it, in the precision of evaluations.
        num_images: images, or tiles, that the evaluation looks at.
    """
    tood = cfg.MODEL.TOOD
    models = 2 if tood.EMA_DECAY and not tood.EVAL_EMA_ALONE else 1
    return num_images * models * FORWARD * seconds


def list_precisions() -> Sequence[str]:
    """Return the precisions that this CPU has instructions for."""
    has_bfloat16 = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return ("float32", "bfloat16") if has_bfloat16() else ("float32",)


def _take_step(model: nn.Module, num_images: int, height: int, width: int) -> None:
    model.train()
    images = [_draw_noise(height, width) for _ in range(num_images)]
    with EventStorage():
        sum(model(images).values()).backward()
    model.zero_grad(set_to_none=True)


def _draw_noise(height: int, width: int) -> Dict:
    instances = Instances((height, width))
    boxes = [[0.0, 0.0, side, side] for side in (16.0, 64.0, height / 2, height / 1.5)]
    instances.gt_boxes = Boxes(torch.tensor(boxes))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances}


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available, left = psutil.virtual_memory().available, _read_group_limit()
    return available if left is None else min(available, left)


def _read_group_limit() -> Optional[int]:
    """Return what a container's limit leaves, or None without one."""
    values = []
    for name in ("memory.max", "memory.current"):
        with contextlib.suppress(OSError, ValueError), open(f"/sys/fs/cgroup/{name}") as f:
            values.append(int(f.read()))
    return max(values[0] - values[1], 0) if len(values) == 2 else None
