"""ONNX files in float16, and in int8 by ONNX Runtime's own tools: the network alone. The
normalization of the images, the grids that deformable convolutions and boxes are read at, scores,
boxes and NMS stay float32.
"""

import logging
import os
import tempfile
from typing import Dict, Iterable, List, Optional, Set

import numpy as np

from tood.deploy.onnx import INPUT, import_onnx, save_checked
from tood.utils.logs import silenced

OTHER = {"guarantee": ""}  # metadata of a file that finds other detections


def to_float16(source: str, target: str) -> None:
    """
    Args:
        source: an ONNX file in float32.
        target: file to write, with the same inputs and outputs.
    """
    onnx = import_onnx()
    proto = onnx.shape_inference.infer_shapes(onnx.load(source))
    _HalfNodes(onnx, proto, _Graph(proto).network()).apply()
    save_checked(proto, target, **OTHER, precision="float16")


def to_int8(source: str, target: str, images: Optional[Iterable[np.ndarray]] = None) -> None:
    """Quantize convolutions, except for those that predict or compute weights and offsets.

    Args:
        source: an ONNX file in float32.
        target: file to write, with the same inputs and outputs.
        images: inputs of the file, to find the range of every map; without any, ranges are computed
            for each image when the file runs.
    """
    onnx = import_onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    options = dict(nodes_to_quantize=_Graph(onnx.load(source)).roomy_convs(), per_channel=True)
    with tempfile.TemporaryDirectory() as folder, silenced("", _is_advice):
        part = os.path.join(folder, "int8.onnx")
        if images is None:
            # Runtimes before 1.20 know convolutions of unsigned weights only.
            quantize_dynamic(source, part, weight_type=QuantType.QUInt8, **options)
        else:
            # ONNX Runtime takes a quarter to a third more time for signed maps.
            options["activation_type"] = QuantType.QUInt8
            quantize_static(source, part, _Reader(images), **options)
        save_checked(onnx.load(part), target, **OTHER, precision="int8")


class _Graph:
    """Producers and consumers of each value of an ONNX graph."""

    def __init__(self, proto):
        self.nodes = {node.name: node for node in proto.graph.node}
        self.maker = {out: node.name for node in proto.graph.node for out in node.output}
        self.makers: Dict[str, List[str]] = {name: [] for name in self.nodes}
        self.users: Dict[str, List[str]] = {name: [] for name in self.nodes}
        for name, node in self.nodes.items():
            for value in node.input:
                if value in self.maker:
                    self.makers[name].append(self.maker[value])
                    self.users[self.maker[value]].append(name)
        weights = {w.name for w in proto.graph.initializer if w.name.startswith("model.")}
        # A convolution without such a weight is one of those that sample boxes.
        self.convs = {
            name: node.input[1]
            for name, node in self.nodes.items()
            if node.op_type == "Conv" and node.input[1] in weights
        }

    def network(self) -> Set[str]:
        """Return the names of the nodes from the first convolution to the last ones."""
        inside = self._reach(self.convs, self.users) & self._reach(self.convs, self.makers)
        return inside - self._positions()

    def roomy_convs(self) -> List[str]:
        """Return the names of the convolutions whose outputs are features, robust to rounding."""
        before_others = set()
        for name in self.convs:
            before_others |= self._reach(self.makers[name], self.makers)
        # The last is what Detectron2's deformable blocks call theirs.
        delicate = (".attention.", ".conv_offset.", ".conv2_offset.")
        return [
            name
            for name, weight in self.convs.items()
            if name in before_others and not any(part in weight for part in delicate)
        ]

    def _positions(self) -> Set[str]:
        """Return the nodes that compute sampling positions, and those that sample."""
        samplers = [name for name, node in self.nodes.items() if node.op_type == "GridSample"]
        grids = [self.maker[self.nodes[name].input[1]] for name in samplers]
        return {*samplers, *self._reach(grids, self.makers, stop=self.convs)}

    @staticmethod
    def _reach(start: Iterable[str], next_: Dict[str, List[str]], stop=()) -> Set[str]:
        """Return ``start`` and all nodes reachable from there without passing ``stop``."""
        found, waiting = set(), list(start)
        while waiting:
            name = waiting.pop()
            if name not in found and name not in stop:
                found.add(name)
                waiting += next_[name]
        return found


class _HalfNodes:
    """Make some nodes of a model compute in float16, with casts at the borders.

    The converters of onnxconverter-common 1.16 and ONNX Runtime 1.32 write invalid models here:
    they also round constants that are shared with the other nodes.
    """

    def __init__(self, onnx, proto, inside: Set[str]):
        """
        Args:
            proto: a model with the types of all values; :meth:`apply` changes it.
            inside: names of the nodes.
        """
        self.onnx, self.graph, self.inside = onnx, proto.graph, inside
        float32 = onnx.TensorProto.FLOAT
        values = (*self.graph.value_info, *self.graph.input)
        self.floats = {v.name for v in values if v.type.tensor_type.elem_type == float32}
        self.weights = {w.name: w for w in self.graph.initializer if w.data_type == float32}
        self.used_outside = {v.name for v in self.graph.output}
        for node in self.graph.node:
            if node.name not in inside:
                self.used_outside.update(node.input)
        self.halves: Dict[str, str] = {}  # name of a float32 value -> of the same in float16

    def apply(self) -> None:
        nodes = []
        for node in self.graph.node:
            if node.name in self.inside:
                nodes += [*self._halve_inputs(node), node, *self._halve_outputs(node)]
            else:
                nodes.append(node)
        for i, node in enumerate(nodes):
            node.name = node.name or f"cast_{i}"
        weights = [
            w
            for w in self.graph.initializer
            if w.name not in self.halves or w.name in self.used_outside
        ]
        for field, content in ((self.graph.node, nodes), (self.graph.initializer, weights)):
            content = [type(x).FromString(x.SerializeToString()) for x in content]
            del field[:]
            field.extend(content)
        del self.graph.value_info[:]  # of values that do not exist any more

    def _halve_inputs(self, node) -> List:
        """Return the casts that precede a node."""
        casts = []
        # The scales of Resize are float32 always.
        number = 1 if node.op_type == "Resize" else len(node.input)
        for i, value in enumerate(node.input[:number]):
            if value in self.weights and value not in self.halves:
                self._add_half_weight(value)
            elif value in self.floats and value not in self.halves:
                casts.append(self._cast(value, self._half(value), "FLOAT16"))
            node.input[i] = self.halves.get(value, value)
        return casts

    def _halve_outputs(self, node) -> List:
        """Return the casts that follow a node."""
        casts = []
        for i, value in enumerate(node.output):
            if value in self.floats:
                node.output[i] = self._half(value)
                if value in self.used_outside:
                    casts.append(self._cast(node.output[i], value, "FLOAT"))
        return casts

    def _add_half_weight(self, name: str) -> None:
        numpy_helper = self.onnx.numpy_helper
        array = numpy_helper.to_array(self.weights[name]).astype(np.float16)
        self.graph.initializer.append(numpy_helper.from_array(array, self._half(name)))

    def _half(self, value: str) -> str:
        return self.halves.setdefault(value, f"{value}.float16")

    def _cast(self, source: str, target: str, dtype: str):
        to = getattr(self.onnx.TensorProto, dtype)
        return self.onnx.helper.make_node("Cast", [source], [target], to=to)


class _Reader:
    """A ``CalibrationDataReader`` of ONNX Runtime."""

    def __init__(self, images: Iterable[np.ndarray]):
        self.images = iter(images)

    def get_next(self) -> Optional[Dict[str, np.ndarray]]:
        image = next(self.images, None)
        return None if image is None else {INPUT: image}


def _is_advice(record: logging.LogRecord) -> bool:
    """Return whether a record of the root logger is ONNX Runtime's advice."""
    return record.levelno <= logging.WARNING
