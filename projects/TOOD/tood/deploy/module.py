"""Turn a detector into a module of tensors in and tensors out, and that into a file that runs
without this project: TorchScript and PyTorch's exported program here, ONNX in ``onnx``.

Shapes: N images, R locations of all levels, K classes, T candidates and D detections of an image.
Boxes are XYXY pixels of the images that are given.
"""

import contextlib
import copy
import io
import json
import warnings
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
import torchvision
from detectron2.utils.env import TORCH_VERSION
from torch import Tensor, nn

import tood
from tood.modeling.backbone.deform_conv import PortableDeformConv
from tood.modeling.backbone.fixed_norm import fold_fixed_norms
from tood.modeling.backbone.timm_convs import fold_convs
from tood.modeling.backbone.timm_fpn import constant_same_padding
from tood.modeling.dense_head import DenseHead
from tood.modeling.detector import TOOD
from tood.modeling.postprocess import Candidates, gather_rows
from tood.utils.errors import UserError
from tood.utils.files import write_whole

RAW_OUTPUTS = ("scores", "boxes")
DETECTIONS = ("num_detections", "boxes", "scores", "classes")
METADATA_FILE = "tood.json"  # in the archives that PyTorch writes
# Two images, of which no map of any level has a side of one location: those are special.
SAMPLE_SIZE = (384, 640)
# PyTorch's exporter wants two locations a side in the coarsest map.
SMALLEST_SIDE_OF_PROGRAM = 129


class ExportableTOOD(nn.Module):
    """A copy of a detector for tracing: on the CPU, in float32, fixed norms folded into kernels.
    Images of any size are padded inside.
    """

    def __init__(
        self,
        model: TOOD,
        *,
        preprocess: bool = True,
        nms: bool = True,
        keep: Optional[Callable[[Candidates, int, float], Tensor]] = None,
        deform_conv2d: Optional[Callable] = None,
        channels_last: bool = False,
    ):
        """
        Args:
            model: is not changed.
            preprocess: normalize inside: images are then pixel values, 0 to 255, in the channels'
                order of ``model.input_format``; otherwise they are normalized already.
            nms: whether outputs are ``DETECTIONS`` or ``RAW_OUTPUTS``.
            keep: replaces :func:`keep_by_nms`.
            deform_conv2d: replaces torchvision's operator.
            channels_last: memory order of the maps, the quicker one in PyTorch on a CPU.

        Raises:
            UserError: for raw outputs of a head with centerness, because the scores that its
                threshold is for are not among them.
        """
        if not nms and getattr(model.head, "centerness", None) is not None:
            raise UserError(
                "Raw outputs are not available with centerness (MODEL.TOOD.CENTERNESS): "
                "its threshold is for another score than that of detections; export it with NMS."
            )
        super().__init__()
        self.model = _copy_for_export(model, deform_conv2d)
        self.preprocess, self.nms, self.channels_last = preprocess, nms, channels_last
        self.keep = keep or keep_by_nms
        self.size_divisibility = max(1, self.model.size_divisibility)
        extras = tuple(_list_extras(self.model))
        self.output_names = (*(DETECTIONS if nms else RAW_OUTPUTS), *extras)

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        """
        Args:
            images: (N, 3, H, W) float32.

        Returns:
            - ``RAW_OUTPUTS``: the scores (N, R, K) and boxes (N, R, 4) of every location, of the
              images as they were padded;
            - or ``DETECTIONS``: how many there are of each image (N,) int64, and their boxes
              (N, D, 4), scores (N, D) in descending order and classes (N, D) int64, padded with
              the score 0, the class -1 and boxes of zeros. D is ``max_detections_per_image``, or
              the number of candidates if that is less;
            - then the head's extras, (N, R, X) or (N, D, X) each.
        """
        model = self.model
        if self.preprocess:
            images = (images - model.pixel_mean) / model.pixel_std
        images = self._pad(images)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        features = model.backbone(images)
        predictions = model.head([features[f] for f in model.head_in_features])
        if not self.nms:
            return predictions.pred_scores, predictions.pred_boxes, *predictions.extras.values()
        candidates = model.select(predictions)
        groups, num_groups = candidates, model.num_classes
        if model.class_agnostic_nms:
            groups = candidates._replace(classes=torch.zeros_like(candidates.classes))
            num_groups = 1
        kept = self.keep(groups, num_groups, model.nms_thresh_test)
        return _best(candidates, kept, model.max_detections_per_image)

    def _pad(self, images: Tensor) -> Tensor:
        H, W = images.shape[-2:]
        d = self.size_divisibility
        # In this form a symbolic size is known to be a multiple of d.
        bottom, right = (H + d - 1) // d * d - H, (W + d - 1) // d * d - W
        return F.pad(images, (0, right, 0, bottom))


def _copy_for_export(model: TOOD, deform_conv2d: Optional[Callable]) -> TOOD:
    watcher, model.watcher = model.watcher, None
    try:
        model = copy.deepcopy(model).cpu().float().eval()
    finally:
        model.watcher = watcher
    fold_fixed_norms(model)
    fold_convs(model)
    model.requires_grad_(False)
    if deform_conv2d is not None:
        for module in model.modules():
            if isinstance(module, (DenseHead, PortableDeformConv)):
                module.deform_conv2d = deform_conv2d
    return model


def _list_extras(model: TOOD) -> List[str]:
    """Return the names of the head's extras, found by running it on maps of one location."""
    shapes = model.backbone.output_shape()
    with torch.no_grad():
        maps = [torch.zeros(1, shapes[f].channels, 1, 1) for f in model.head_in_features]
        return list(model.head(maps).extras)


def keep_by_nms(candidates: Candidates, num_classes: int, iou_threshold: float) -> Tensor:
    """NMS of a batch, each image and class apart, in operators that every tracer can follow.

    Returns:
        (N, T) bool, which candidates stay.
    """
    N, T = candidates.scores.shape
    # With two empty boxes, which no box overlaps: in exported programs, NMS must keep two or more.
    scores = F.pad(candidates.scores.flatten(), (0, 2))
    index = (scores >= 0).nonzero().squeeze(1)
    boxes = F.pad(candidates.boxes.flatten(0, 1), (0, 0, 0, 2))[index]
    classes = F.pad(candidates.classes.flatten(), (0, 2))[index]
    images = torch.div(index, T, rounding_mode="floor")
    # Groups are moved apart, in float64: so far away, float32 would round the boxes.
    boxes = boxes.double()
    extent = F.pad(boxes.abs().flatten(), (0, 1)).max() * 2 + 1
    groups = images * num_classes + classes
    stay = torchvision.ops.nms(
        boxes + (groups * extent).unsqueeze(1), scores[index].double(), iou_threshold
    )
    kept = torch.zeros_like(scores).index_fill(0, index[stay], 1.0) > 0
    return kept[: N * T].view(N, T)


def _best(candidates: Candidates, kept: Tensor, max_detections: int) -> Tuple[Tensor, ...]:
    scores = torch.where(kept, candidates.scores, 0.0)
    scores, order = scores.topk(min(max_detections, scores.shape[1]), dim=1)
    found = scores > 0
    boxes, *extras = (
        torch.where(found.unsqueeze(2), gather_rows(x, order), 0.0)
        for x in (candidates.boxes, *candidates.extras.values())
    )
    classes = torch.where(found, candidates.classes.gather(1, order), -1)
    return found.sum(dim=1), boxes, scores, classes, *extras


# --- metadata --------------------------------------------------------------


def describe(
    module: ExportableTOOD,
    class_names: Sequence[str],
    *,
    min_size: int,
    max_size: int,
    **more: Any,
) -> Dict[str, Any]:
    """Return the metadata of an exported file, which a program needs to use it, as plain values.

    Args:
        min_size, max_size: shorter side that images are resized to, and limit of the longer one.
        more: further entries.
    """
    model = module.model
    return {
        "model": "TOOD",
        "classes": list(class_names),
        "input_format": model.input_format,
        "preprocessing": "inside" if module.preprocess else "outside",
        "pixel_mean": model.pixel_mean.flatten().tolist(),
        "pixel_std": model.pixel_std.flatten().tolist(),
        "size_divisibility": module.size_divisibility,
        "min_size": min_size,
        "max_size": max_size,
        "outputs": list(module.output_names),
        "strides": list(model.strides),
        "score_threshold": model.score_thresh_test,
        "candidates_per_level": model.topk_candidates_test,
        "nms_threshold": model.nms_thresh_test,
        "class_agnostic_nms": model.class_agnostic_nms,
        "max_detections": model.max_detections_per_image,
        "pytorch": torch.__version__,
        "tood_version": tood.__version__,
        **more,
    }


# --- PyTorch's own formats -------------------------------------------------------------------


def save_torchscript(module: ExportableTOOD, path: str, metadata: Dict[str, Any]) -> None:
    """Trace, and write a file for ``torch.jit.load``, with ``METADATA_FILE`` in it."""
    with torch.no_grad(), quiet(), constant_same_padding():
        traced = torch.jit.trace(module, _sample(), check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={METADATA_FILE: json.dumps(metadata)})
    write_whole(path, buffer.getvalue())


def save_program(module: ExportableTOOD, path: str, metadata: Dict[str, Any]) -> None:
    """Export, and write a file for ``torch.export.load``, with ``METADATA_FILE`` in it."""
    program, buffer = export_program(module), io.BytesIO()
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # with the paths of this machine
    program.example_inputs = None  # they would be pickled
    with quiet():
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    write_whole(path, buffer.getvalue())


def export_program(module: ExportableTOOD) -> "torch.export.ExportedProgram":
    """Export a program of PyTorch, for any number of images and sides from
    ``SMALLEST_SIDE_OF_PROGRAM`` pixels on.

    Raises:
        UserError: if PyTorch is too old.
    """
    if TORCH_VERSION < (2, 8):
        raise UserError(
            f"This PyTorch, {torch.__version__}, cannot export graphs of any size; use 2.8 or a "
            "newer one, or --format torchscript."
        )
    from torch.fx.experimental import _config as fx_config

    dimensions = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    # Without it, the exporter tests whether each size is 1, and makes the result a constant.
    any_size = fx_config.patch(backed_size_oblivious=True)
    patches = (any_size, _without_cache(), constant_same_padding(), _without_autocast())
    with torch.no_grad(), quiet(), contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        return torch.export.export(module, (_sample(),), dynamic_shapes=(dimensions,), strict=False)


def _without_cache() -> contextlib.AbstractContextManager:
    """Turn off PyTorch's cache of fake tensors, if it has one, which takes a fifth of the time: no
    two maps have the same symbolic size.
    """
    from torch._dynamo import config

    name = "fake_tensor_cache_enabled"
    return config.patch(name, False) if hasattr(config, name) else contextlib.nullcontext()


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    """Make ``torch.autocast`` do nothing: a model in float32 only turns it off, and the exporter
    would put what is inside into a graph apart.
    """
    original, torch.autocast = torch.autocast, lambda *args, **kwargs: contextlib.nullcontext()
    try:
        yield
    finally:
        torch.autocast = original


def _sample() -> Tensor:
    return torch.rand(2, 3, *SAMPLE_SIZE) * 255


@contextlib.contextmanager
def quiet():
    """Silence the exporters' warnings; the outputs of the files are compared instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
