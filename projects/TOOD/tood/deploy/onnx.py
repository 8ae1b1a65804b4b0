"""ONNX files of a detector, by PyTorch's exporter: standard operators only, checked, with metadata.

Shapes: N images, K classes, T candidates of an image, H x W locations of a map.
"""

import functools
import hashlib
import io
import json
import logging
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, Callable, ContextManager, Dict, Iterator, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair

from tood.deploy.lower import lower, make_translations
from tood.deploy.module import ExportableTOOD, export_program, keep_by_nms, quiet
from tood.modeling.detector import TOOD
from tood.modeling.postprocess import Candidates
from tood.utils.errors import UserError
from tood.utils.files import write_whole
from tood.utils.logs import at_level

OPSET = 18
INPUT = "images"
SEAL = "sha256"  # the last entry of the metadata: a hash of the file before it
SEAL_BYTES = 76


def exportable_to_onnx(model: TOOD, **options) -> ExportableTOOD:
    """Copy a detector so that every operator has an ONNX equivalent.

    Args:
        options: options of :class:`ExportableTOOD`.
    """
    return ExportableTOOD(
        model, keep=_keep_by_operator, deform_conv2d=deform_conv2d_by_grid_sample, **options
    )


def save_onnx(
    module: ExportableTOOD,
    path: str,
    metadata: Dict[str, Any],
    stage: Callable[[str], ContextManager] = nullcontext,
) -> None:
    """
    Args:
        module: module of :func:`exportable_to_onnx`.
        stage: entered with the title of each stage.

    Raises:
        UserError: if packages are missing, or PyTorch is too old.
    """
    import_onnx()
    with stage("Tracing the network"):
        program = export_program(module)
    with stage("Writing ONNX"):
        exported = _translate(program, module) if lower(program) else None
        if exported is None:  # another model or PyTorch may have other operators
            exported = _translate(export_program(module), module, last=True)
        proto = exported.model_proto
        _forget_its_making(proto)
        _name_dimensions(proto, module.output_names)
        save_checked(proto, path, **metadata, opset=OPSET)


def _translate(program, module: ExportableTOOD, last: bool = False):
    """Return a program of PyTorch in ONNX; None if that failed, unless it is the ``last`` try."""
    table = {torch.ops.aten.sort.stable: _translate_sort}
    if module.nms:
        table[torch.ops.tood.keep_by_nms.default] = _translate_keep_by_nms
    if not last:
        table.update(make_translations())
    # Its output is of no use here, and warnings of constants are for models that train.
    with (
        torch.no_grad(),
        quiet(),
        redirect_stdout(io.StringIO()),
        at_level("torch.onnx", logging.ERROR),
        _without_slow_rules(),
    ):
        try:
            return torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(module.output_names),
                custom_translation_table=table,
            )
        except torch.onnx.OnnxExporterError:
            if last:
                raise
            return None


@contextmanager
def _without_slow_rules() -> Iterator[None]:
    """Turn off the rule of onnxscript, if it has it, that makes one operator of two slices: it
    lists all nodes for each node, which took a third of an export, and finds no such slices here.
    """
    from onnxscript import rewriter

    name = "_DEFAULT_REWRITE_RULES"
    rules = getattr(rewriter, name, None)
    if rules is not None:
        setattr(rewriter, name, tuple(x for x in rules if x.name != "SlicesSplit"))
    try:
        yield
    finally:
        if rules is not None:
            setattr(rewriter, name, rules)


def import_onnx():
    """Return the package onnx; a UserError names it or another of the exporter if missing."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"For ONNX, the package {error.name} is missing: pip install -e .[export]"
        ) from error
    return onnx


def save_checked(proto, path: str, **metadata: Any) -> None:
    """Check a model, and write it, sealed: programs that convert it keep its metadata, which may
    promise what the converted one does not do.

    Args:
        metadata: added to its properties: strings as they are, other values as JSON.
    """
    onnx = import_onnx()
    replaced = {SEAL, *metadata}
    for entry in [entry for entry in proto.metadata_props if entry.key in replaced]:
        proto.metadata_props.remove(entry)
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        proto.metadata_props.add(key=key, value=text)
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString()
    entry = {"key": SEAL, "value": hashlib.sha256(content).hexdigest()}
    # Of two messages, one after the other, protobuf reads the entries of both.
    write_whole(path, content + onnx.ModelProto(metadata_props=[entry]).SerializeToString())


def is_sealed(content: bytes) -> bool:
    """Return whether a file's content is still what :func:`save_checked` wrote."""
    seal = hashlib.sha256(content[:-SEAL_BYTES]).hexdigest()
    return content.endswith(seal.encode())


def _forget_its_making(proto) -> None:
    """Remove the exporter's stack traces of all nodes, with paths of this machine."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for initializer in graph.initializer:
        initializer.ClearField("metadata_props")


def _name_dimensions(proto, outputs) -> None:
    """Replace the exporter's symbols for dimensions by readable names."""
    rows = {0: "batch"} if "num_detections" in outputs else {0: "batch", 1: "locations"}
    names = {INPUT: {0: "batch", 2: "height", 3: "width"}, **dict.fromkeys(outputs, rows)}
    for value in (*proto.graph.input, *proto.graph.output):
        for i, name in names[value.name].items():
            value.type.tensor_type.shape.dim[i].dim_param = name


# --- NMS -------------------------------------------------------------------------------------


def _keep_by_operator(candidates: Candidates, num_classes: int, iou_threshold: float) -> Tensor:
    """:func:`keep_by_nms` as one operator, which becomes ONNX's ``NonMaxSuppression``, which
    knows batches and classes, and takes a score of every candidate for every class.
    """
    classes = torch.arange(num_classes, device=candidates.classes.device).view(1, -1, 1)
    of_class = candidates.classes.unsqueeze(1) == classes
    class_scores = torch.where(of_class, candidates.scores.unsqueeze(1), -1.0)
    return _nms_operator()(candidates.boxes, class_scores, iou_threshold)


@functools.cache
def _nms_operator():
    """``tood::keep_by_nms``: boxes (N, T, 4) and class scores (N, K, T) to (N, T) bool."""

    @torch.library.custom_op("tood::keep_by_nms", mutates_args=())
    def operator(boxes: Tensor, class_scores: Tensor, iou_threshold: float) -> Tensor:
        scores, classes = class_scores.max(dim=1)
        candidates = Candidates((scores >= 0).sum(dim=1), scores, boxes, classes)
        return keep_by_nms(candidates, class_scores.shape[1], iou_threshold)

    @operator.register_fake
    def _(boxes, class_scores, iou_threshold):
        N, _, T = class_scores.shape
        return class_scores.new_empty((N, T), dtype=torch.bool)

    return operator


def _translate_keep_by_nms(boxes, class_scores, iou_threshold: float):
    import onnx_ir as ir
    from onnxscript import opset18 as op

    # A class keeps at most all candidates; -1 is below the threshold of 0.
    most = op.Shape(class_scores, start=2, end=3)
    selected = op.NonMaxSuppression(boxes, class_scores, most, iou_threshold, 0.0)
    image_and_candidate = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
    shape = op.Gather(op.Shape(class_scores), op.Constant(value_ints=[0, 2]))
    nothing = op.Expand(0.0, shape)
    ones = op.Expand(1.0, op.Shape(image_and_candidate, start=0, end=1))
    return op.Cast(op.ScatterND(nothing, image_and_candidate, ones), to=ir.DataType.BOOL)


def _translate_sort(x, *, stable: bool = True, dim: int = -1, descending: bool = False):
    from onnxscript import opset18 as op

    # Of equal values, TopK has the lower index first, as a stable sort.
    size = op.Shape(x, start=dim, end=dim + 1)
    return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)


# --- deformable convolution ------------------------------------------------------------------


def deform_conv2d_by_grid_sample(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    stride: Union[int, Tuple[int, int]] = 1,
    padding: Union[int, Tuple[int, int]] = 0,
    dilation: Union[int, Tuple[int, int]] = 1,
    mask: Optional[Tensor] = None,
) -> Tensor:
    """torchvision's ``deform_conv2d``, by ONNX's ``GridSample`` and a convolution: ``DeformConv``,
    which came with opset 19, is missing from many runtimes.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 * groups * taps, H', W'), (dy, dx) of each tap, in pixels of ``x``.
        weight: (C', C or fewer, h, w), with h * w taps; fewer channels mean a grouped convolution.
        bias: (C',).
        mask: (N, groups * taps, H', W').

    Returns:
        (N, C', H', W').
    """
    N, C, H, W = x.shape
    C_out, C_in, h, w = weight.shape
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    taps, (H_out, W_out) = h * w, offset.shape[2:]
    groups = offset.shape[1] // (2 * taps)

    dy, dx = offset.reshape(N * groups, taps, 2, H_out, W_out).unbind(dim=2)
    tap = torch.arange(taps, device=x.device)
    rows = torch.arange(H_out, device=x.device) * stride[0] - padding[0]
    columns = torch.arange(W_out, device=x.device) * stride[1] - padding[1]
    y = dy + (tap // w * dilation[0]).view(-1, 1, 1) + rows.view(-1, 1)
    x_ = dx + (tap % w * dilation[1]).view(-1, 1, 1) + columns
    # From the centres of pixels to a grid that has -1 and 1 at the outer edges of the map.
    grid = torch.stack([(2 * x_ + 1) / W - 1, (2 * y + 1) / H - 1], dim=4).flatten(1, 2)
    maps = x.reshape(N * groups, C // groups, H, W)
    sampled = F.grid_sample(maps, grid, align_corners=False)  # (N * groups, .., taps * H', W')
    if mask is not None:
        sampled = sampled * mask.reshape(N * groups, 1, taps * H_out, W_out)
    sampled = sampled.reshape(N, C * taps, H_out, W_out)
    weight = weight.reshape(C_out, C_in * taps, 1, 1)
    return F.conv2d(sampled, weight, bias, groups=C // C_in)
