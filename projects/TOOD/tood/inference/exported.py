"""Exported files in use: a common interface for all formats and runtimes, and a detector on top of
it for Detectron2's evaluation. (``demo/detect_onnx.py`` does not need this package.)

Shapes: N images; outputs as in :class:`tood.deploy.module.ExportableTOOD`.
"""

import contextlib
import json
import math
import os
import sys
from collections import Counter
from typing import Any, Callable, Dict, List, NamedTuple

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances

from tood.deploy.module import DETECTIONS, RAW_OUTPUTS
from tood.deploy.onnx import is_sealed
from tood.inference.programs import read_onnx, read_program
from tood.inference.scripts import read_torchscript
from tood.inference.tiles import ResizedTOOD, TiledTOOD
from tood.modeling.postprocess import select_candidates, suppress_non_maxima
from tood.utils.errors import UserError, format_reason
from tood.utils.reading import parse_number
from tood.utils.suggest import suggest_path
from tood.utils.tiles import TileOptions

# OpenVINO is half as quick with images of any size, and compiles a model for one in a second.
FREQUENT = 20  # images of a size for which that is done
MOST_FIXED = 4  # sizes

# Output -> field of the Instances, where their names differ.
FIELDS = {"boxes": "pred_boxes", "classes": "pred_classes"}


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(value, (int, float)) and parse_number(value, low, high) is not None
    return False


def _is_integer(value: Any, low: int = 0) -> bool:
    return type(value) is int and low <= value < 2**63


def _is_list(value: Any, is_valid: Callable[[Any], bool], number: int = 0) -> bool:
    sizes = (number,) if number else range(1, 2**20)
    return isinstance(value, list) and len(value) in sizes and all(map(is_valid, value))


def _are_texts(value: Any) -> bool:
    return _is_list(value, lambda x: isinstance(x, str))


def _are_outputs(value: Any) -> bool:
    names = set(value) if _are_texts(value) else set()
    needed = DETECTIONS if "num_detections" in names else RAW_OUTPUTS
    return len(names) == len(value or ()) and names.issuperset(needed)


def _are_tiles(value: Any) -> bool:
    return value is None or (_is_list(value, _is_integer, 2) and value[1] <= value[0])


# Metadata, and whether a value of them is valid; it is None if they lack it.
METADATA: Dict[str, Callable[[Any], bool]] = {
    "classes": _are_texts,
    "outputs": _are_outputs,
    "input_format": lambda x: x in ("RGB", "BGR"),
    "preprocessing": lambda x: x in ("inside", "outside"),
    "pixel_mean": lambda x: _is_list(x, _is_number, 3),
    "pixel_std": lambda x: _is_list(x, lambda y: _is_number(y) and y != 0, 3),
    "strides": lambda x: _is_list(x, lambda y: _is_integer(y, 1)),
    "size_divisibility": lambda x: _is_integer(x, 1),
    "min_size": _is_integer,
    "max_size": _is_integer,
    "score_threshold": lambda x: _is_number(x, 0, 1),
    "candidates_per_level": lambda x: _is_integer(x, 1),
    "nms_threshold": lambda x: _is_number(x, 0, 1),
    "max_detections": _is_integer,
    "tiles": _are_tiles,
    "guarantee": lambda x: x is None or isinstance(x, str),
    "class_agnostic_nms": lambda x: x in (None, True, False) and type(x) is not int,
}


class ExportedFile:
    """A network in a file: arrays in, arrays out."""

    def __init__(self, path: str, runtime: str = ""):
        """
        Args:
            path: file written by ``tood export``.
            runtime: one of ``RUNTIMES``; default: the first that reads such files.

        Raises:
            UserError: for a file that cannot be used, or a runtime that is not installed.
        """
        suffix = os.path.splitext(path)[1]
        known = [name for name, (suffixes, _) in RUNTIMES.items() if suffix in suffixes]
        if not known or (runtime and runtime not in known):
            raise UserError(
                f"{path} cannot be read by {runtime or 'any runtime'}: "
                + ", ".join(f"{name} reads {'/'.join(s)}" for name, (s, _) in RUNTIMES.items())
                + "."
            )
        if not os.path.exists(path):
            raise UserError(f"The file {path} does not exist{suggest_path(path) or '.'}")
        self.path, self.runtime = path, runtime or known[0]
        try:
            self._run, self.metadata = RUNTIMES[self.runtime][1](path)
        except UserError:
            raise
        except ImportError as error:
            raise UserError(
                f"For {path}, the package {error.name} is missing: pip install {error.name}"
            ) from error
        except Exception as error:  # each runtime raises others
            raise UserError(
                f"{path} cannot be read by {self.runtime} ({format_reason(error)})."
            ) from error
        if not isinstance(self.metadata, dict) or self.metadata.get("model") != "TOOD":
            raise UserError(
                f"{path} was not written by tood export: it does not name TOOD; export it again."
            )
        for key, is_valid in METADATA.items():
            if not is_valid(self.metadata.get(key)):
                raise UserError(
                    f"The metadata of {path} have no valid {key!r}; export the model again."
                )

    def __call__(self, images: np.ndarray) -> Dict[str, np.ndarray]:
        """
        Args:
            images: (N, 3, H, W) float32, pixel values or normalized, by the file's metadata.

        Raises:
            UserError: for a size that the file does not support.
        """
        try:
            results = list(self._run(images))
        except Exception as error:  # each runtime raises others
            raise UserError(
                f"{self.path} refuses images of the shape {images.shape}: {format_reason(error)}."
            ) from error
        try:
            return self._check_outputs(results, len(images))
        except ValueError as error:
            raise UserError(
                f"{self.path} does not compute what its metadata say: {error}; export the model "
                "again."
            ) from error

    def _check_outputs(self, results: List[np.ndarray], N: int) -> Dict[str, np.ndarray]:
        """Return outputs by their names; raise ValueError if their shapes, types or values cannot
        be those of a detector.
        """
        names, K = self.metadata["outputs"], len(self.metadata["classes"])
        if len(results) != len(names):
            raise ValueError(f"it has {len(results)} outputs for the names {', '.join(names)}")
        outputs = dict(zip(names, results))
        rows = outputs["boxes"].shape[1:2]
        is_raw = "num_detections" not in outputs
        shapes = {"boxes": (N, *rows, 4), "classes": (N, *rows), "num_detections": (N,)}
        shapes["scores"] = (N, *rows, K) if is_raw else (N, *rows)
        for name, x in outputs.items():
            expected = shapes.get(name, (N, *rows, *x.shape[2:]))
            if x.shape != expected:
                raise ValueError(f"{name} has the shape {x.shape}, not {expected}")
            if x.dtype.kind != ("i" if name in ("classes", "num_detections") else "f"):
                raise ValueError(f"{name} is {x.dtype}")
            if not np.isfinite(x).all():
                raise ValueError(f"{name} contains NaN or infinity")
        for name, low, high in (("num_detections", 0, sum(rows)), ("classes", -1, K - 1)):
            x = outputs.get(name, np.zeros(0))
            if ((x < low) | (x > high)).any():
                raise ValueError(f"{name} has values outside of {low} to {high}")
        return outputs

    def detect(self, pixels: np.ndarray) -> Dict[str, np.ndarray]:
        """Return the detections of one image, for any inputs and outputs of the file.

        Args:
            pixels: (3, H, W), values from 0 to 255.

        Returns:
            "boxes" (D, 4) in pixels of the image, "scores" (D,) in descending order, "classes"
            (D,), and the head's extras (D, X).
        """
        images = pixels[None].astype(np.float32)
        if self.metadata["preprocessing"] == "outside":
            mean, std = (
                np.array(self.metadata[key], np.float32).reshape(3, 1, 1)
                for key in ("pixel_mean", "pixel_std")
            )
            images = (images - mean) / std
        outputs = self(images)
        if "num_detections" not in outputs:
            return self._select(outputs, images.shape[-2:])
        count = int(outputs.pop("num_detections")[0])
        return {name: x[0, :count] for name, x in outputs.items()}

    def _select(self, outputs: Dict[str, np.ndarray], size) -> Dict[str, np.ndarray]:
        d = self.metadata["size_divisibility"]
        H, W = (-(-side // d) * d for side in size)
        level_sizes = [-(-H // stride) * -(-W // stride) for stride in self.metadata["strides"]]
        extras = {name: torch.from_numpy(x) for name, x in outputs.items()}
        candidates = select_candidates(
            extras.pop("scores"),
            extras.pop("boxes"),
            level_sizes,
            self.metadata["score_threshold"],
            self.metadata["candidates_per_level"],
            extras,
        )
        found = self.suppress(candidates.to_instances([tuple(size)])[0])
        found.pred_boxes = found.pred_boxes.tensor
        names = {field: name for name, field in FIELDS.items()}
        return {names.get(k, k): x.numpy() for k, x in found.get_fields().items()}

    def suppress(self, candidates: Instances) -> Instances:
        """Return the best candidates of an image without overlap."""
        limits = (self.metadata[key] for key in ("nms_threshold", "max_detections"))
        return suppress_non_maxima(
            candidates, *limits, self.metadata.get("class_agnostic_nms", False)
        )


class ExportedDetector:
    """Callable like a model of Detectron2 in evaluation mode, one image after the other. Images
    for a model with tiles are given in their original size.
    """

    def __init__(self, file: ExportedFile):
        self.file, self.suppress, self._tiled = file, file.suppress, None
        size, overlap = file.metadata.get("tiles") or (0, 0)
        if size:
            min_size, max_size = (file.metadata[key] for key in ("min_size", "max_size"))
            finder = ResizedTOOD(self, T.ResizeShortestEdge([min_size] * 2, max_size))
            self._tiled = TiledTOOD(self, TileOptions(size, overlap), finder)

    def __call__(self, batched_inputs: List[Dict]) -> List[Dict[str, Instances]]:
        if self._tiled is not None:
            return self._tiled(batched_inputs)
        return [{"instances": self._detect(x)} for x in batched_inputs]

    def _detect(self, image: Dict) -> Instances:
        size = image["image"].shape[1:]
        height, width = (image.get(k, s) for k, s in zip(("height", "width"), size))
        (instances,) = self.find_candidates([image])
        return detector_postprocess(instances, height, width)

    def find_candidates(self, batched_inputs: List[Dict]) -> List[Instances]:
        """Return the detections of each image in its pixels."""
        results = []
        for x in batched_inputs:
            found = self.file.detect(x["image"].numpy())
            fields = {FIELDS.get(name, name): torch.from_numpy(v) for name, v in found.items()}
            fields["pred_boxes"] = Boxes(fields["pred_boxes"])
            results.append(Instances(tuple(x["image"].shape[1:]), **fields))
        return results


class Comparison(NamedTuple):
    """Two lists of detections of one image."""

    matched: int  # detections in both
    unmatched: int  # detections in one of them only
    score_difference: float  # the largest among the matched
    box_difference: float  # the same, of one side, in pixels


def compare_detections(
    expected: Dict[str, np.ndarray], actual: Dict[str, np.ndarray]
) -> Comparison:
    """
    Args:
        expected, actual: as :meth:`ExportedFile.detect` returns them. Two detections match that
            have one class and boxes within a hundredth of their longer side and a pixel of each
            other.
    """
    free = set(range(len(actual["scores"])))
    score_difference = box_difference = 0.0
    matched = 0
    for box, score, label in zip(*(expected[key] for key in ("boxes", "scores", "classes"))):
        distances = {
            i: np.abs(actual["boxes"][i] - box).max() for i in free if actual["classes"][i] == label
        }
        nearest = min(distances, key=distances.get, default=None)
        side = max(box[2] - box[0], box[3] - box[1])
        if nearest is None or distances[nearest] > 1 + 0.01 * side:
            continue
        free.remove(nearest)
        matched += 1
        box_difference = max(box_difference, float(distances[nearest]))
        score_difference = max(score_difference, abs(float(actual["scores"][nearest] - score)))
    unmatched = len(expected["scores"]) - matched + len(free)
    return Comparison(matched, unmatched, score_difference, box_difference)


# --- the runtimes: a path to a function of arrays, and the file's metadata ---------------------


def _onnxruntime(path: str):
    import onnxruntime

    content, proto = read_onnx(path)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (name,) = (x.name for x in session.get_inputs())
    return lambda images: session.run(None, {name: images}), _read_metadata(path, content, proto)


def _openvino(path: str):
    # With this package, which comes with it, it reports each model that it reads to a server.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    content, proto = read_onnx(path)
    core = openvino.Core()
    # On a CPU with bfloat16, OpenVINO would compute float32 in it, and detections would differ.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    of_file = core.read_model(path)  # once: the file may change
    seen: Counter = Counter()
    fixed = {}  # shape -> a request for images of this shape alone

    def compile_for(*shape):
        model = of_file.clone()
        if shape:
            model.reshape(shape)
        return core.compile_model(model, "CPU", options).create_infer_request()

    of_any_size = compile_for()

    def run(images):
        seen[images.shape] += 1
        if seen[images.shape] == FREQUENT and len(fixed) < MOST_FIXED:
            fixed[images.shape] = compile_for(*images.shape)
        results = fixed.get(images.shape, of_any_size).infer([images])
        return [x.copy() for x in results.values()]

    return run, _read_metadata(path, content, proto)


def _read_metadata(path: str, content: bytes, proto: Any) -> Dict[str, Any]:
    """Return the metadata of an ONNX file, whose guarantee is of the file as it was exported."""
    metadata = _parse({entry.key: entry.value for entry in proto.metadata_props})
    if metadata.get("guarantee") and not is_sealed(content):
        raise UserError(
            f"{path} is not as tood export writes it: it was changed since, or is of an "
            "earlier version; the guarantee of its score threshold is of the file as it was; "
            "export it again."
        )
    return metadata


def _torchscript(path: str):
    module, metadata = read_torchscript(path)
    return _run_torch(module), json.loads(metadata)


def _program(path: str):
    program, metadata = read_program(path)
    try:
        # They require two images, although the graph does not.
        module = program.module(check_guards=False)
    except TypeError:  # this PyTorch has no guards
        module = program.module()
    return _run_torch(module), metadata


def _run_torch(module: Callable) -> Callable[[np.ndarray], List[np.ndarray]]:
    @torch.no_grad()
    def run(images):
        return [x.numpy() for x in module(torch.from_numpy(images))]

    return run


def _parse(texts: Dict[str, str]) -> Dict[str, Any]:
    metadata = {}
    for key, text in texts.items():
        try:
            metadata[key] = json.loads(text)
        except ValueError:
            metadata[key] = text
    return metadata


# Name -> the endings of the files it reads, and how.
RUNTIMES = {
    "onnxruntime": ((".onnx",), _onnxruntime),
    "openvino": ((".onnx",), _openvino),
    "torchscript": ((".ts",), _torchscript),
    "exported": ((".pt2",), _program),
}
