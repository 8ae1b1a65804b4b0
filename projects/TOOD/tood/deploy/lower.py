"""Prepare an exported program for PyTorch's ONNX exporter without the exporter's decompositions,
which trace it twice again with symbolic sizes, and take more than half of the time. Few operators
have no translation to ONNX without them; this module replaces or translates those.
"""

from typing import Any, Callable, Dict

import torch
from torch.fx import Node

# Operators whose output is a new tensor, not a view. An in-place operator that alone reads it may
# become a plain one.
NEW_TENSOR = {"add", "batch_norm", "bmm", "conv2d", "group_norm", "hardtanh", "mul", "relu", "sub"}
RENAMED = {"__and__": "bitwise_and", "__or__": "bitwise_or"}


def lower(program: "torch.export.ExportedProgram") -> bool:
    """Replace operators, and make ``run_decompositions`` return the program as it is.

    Args:
        program: is changed, even if the result is False.

    Returns:
        whether all operators that change their inputs or contain others could be replaced.
    """
    for node in list(program.graph.nodes):
        if node.op == "call_function" and not _lower_node(node):
            return False
    program.run_decompositions = lambda *args, **kwargs: program
    return True


def make_translations() -> Dict[Any, Callable]:
    """Return a ``custom_translation_table`` for the operators that the exporter decomposes."""
    aten = torch.ops.aten
    return {
        aten.batch_norm.default: _translate_batch_norm,
        aten.nan_to_num.default: _translate_nan_to_num,
    }


def _lower_node(node: Node) -> bool:
    aten, target = torch.ops.aten, node.target
    if not hasattr(target, "_schema"):
        return not isinstance(target, torch._ops.HigherOrderOperator)  # which contains a graph
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    if target._schema.is_mutable:
        return _make_functional(node, name, overload)
    if name in RENAMED:
        node.target = getattr(getattr(aten, RENAMED[name]), overload)
    elif name in ("flatten", "unflatten"):
        _reshape_to_constant(node)
    elif target is aten.to.dtype:
        return _lower_cast(node)
    elif target is aten.to.device and node.meta["val"].dtype == node.args[0].meta["val"].dtype:
        return _remove(node)  # all is on the CPU
    elif target is aten.batch_norm.default:
        return None not in node.args[1:5] and not node.args[5]  # fixed statistics
    elif target is aten.nan_to_num.default:
        return len(node.args) == 1 and not node.kwargs
    return True


def _make_functional(node: Node, name: str, overload: str) -> bool:
    changed = node.args[0]
    maker = str(changed.target).removeprefix("aten.").partition(".")[0]
    plain = getattr(getattr(torch.ops.aten, name.rstrip("_"), None), overload, None)
    if plain is None or maker not in NEW_TENSOR or len(changed.users) > 1:
        return False
    node.target = plain
    return True


def _reshape_to_constant(node: Node) -> None:
    """Avoid the shapes of weights in the file: the optimizer does not write their constants."""
    shape = node.meta["val"].shape
    if all(isinstance(size, int) for size in shape):
        node.target, node.kwargs = torch.ops.aten.reshape.default, {}
        node.args = (node.args[0], list(shape))


def _lower_cast(node: Node) -> bool:
    if len(node.args) < 2:
        return False
    if node.args[0].meta["val"].dtype == node.args[1]:
        return _remove(node)
    node.target = torch.ops.prims.convert_element_type.default
    node.args, node.kwargs = node.args[:2], {}
    return True


def _remove(node: Node) -> bool:
    if any(user.op == "output" for user in node.users):  # known by the name of the node
        return False
    node.replace_all_uses_with(node.args[0])
    node.graph.erase_node(node)
    return True


def _translate_batch_norm(
    x, weight, bias, mean, var, training: bool, momentum: float, eps: float, cudnn_enabled: bool
):
    from onnxscript import opset18 as op

    return op.BatchNormalization(x, weight, bias, mean, var, epsilon=eps)


def _translate_nan_to_num(x):
    from onnxscript import opset18 as op

    largest = torch.finfo(torch.float32).max
    return op.Clip(op.Where(op.IsNaN(x), 0.0, x), -largest, largest)
