"""Exported files that lie, or that would run code: each ends in one sentence, and nothing runs."""

import contextlib
import io
import json
import os
import pickle
import random
import re
import zipfile
from typing import Tuple

import numpy as np
import pytest
import torch
from conftest import ROOT, complaint, skip_without_graphs
from detectron2.utils.env import TORCH_VERSION
from torch import nn

from tood.deploy.module import (
    DETECTIONS,
    METADATA_FILE,
    keep_by_nms,
    save_program,
    save_torchscript,
)
from tood.inference.exported import ExportedFile
from tood.inference.scripts import check_code
from tood.modeling.postprocess import Candidates

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
detect_onnx = pytest.importorskip("detect_onnx")
MODEL, SAMPLE = "archive/models/model.json", "archive/data/sample_inputs/model.pt"
# Each weight is a record of its own; before, all were in a pickle.
IS_RECORDED = TORCH_VERSION >= (2, 9)
OLD_PICKLES = {f"archive/data/{x}/model.pt" for x in ("weights", "constants")}
METADATA = {
    "model": "TOOD",
    "classes": ["a", "b"],
    "outputs": list(DETECTIONS),
    "input_format": "RGB",
    "preprocessing": "inside",
    "pixel_mean": [0.0] * 3,
    "pixel_std": [1.0] * 3,
    "strides": [32],
    "size_divisibility": 32,
    "min_size": 160,
    "max_size": 400,
    "score_threshold": 0.05,
    "candidates_per_level": 5,
    "nms_threshold": 0.6,
    "max_detections": 5,
    "tiles": [0, 0],
    "class_agnostic_nms": False,
}


class Five(nn.Module):
    """Finds the pixels above 0 in the first channel, five at most."""

    output_names = DETECTIONS

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, images):
        scores, index = self.conv(images[:, :1]).flatten(1).topk(5, dim=1)
        scores = torch.where(scores > 0, scores, -1.0)
        boxes = torch.stack([index, index, index + 1, index + 1], dim=2).float()
        candidates = Candidates((scores > 0).sum(1), scores, boxes, torch.zeros_like(index))
        kept = keep_by_nms(candidates, 2, 0.6)
        return kept.sum(1), boxes, scores, candidates.classes


def draw(number):
    images = np.zeros((1, 3, 160, 192), np.float32)
    images[0, 0, 0, :number] = 0.5
    return images


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    skip_without_graphs()
    path = tmp_path_factory.mktemp("program") / "a.pt2"
    save_program(Five(), str(path), METADATA)
    return path


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "a.ts"
    save_torchscript(Five(), str(path), METADATA)
    return path


def read_records(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_records(path, records, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return str(path)


def change_json(records, name, change):
    content = json.loads(records[name])
    change(content)
    return {**records, name: json.dumps(content)}


def save_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists()


def test_a_program_is_written_without_samples_and_paths(program):
    records = read_records(program)
    pickles = {x for x in records if x.endswith((".pt", ".pkl"))}
    assert records[SAMPLE] == b"" and pickles - {SAMPLE} == (set() if IS_RECORDED else OLD_PICKLES)
    assert str(ROOT).encode() not in b"".join(records.values())
    outputs = ExportedFile(str(program))(draw(3))
    assert outputs["num_detections"].tolist() == [3] and outputs["boxes"].shape == (1, 5, 4)


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_any_number_of_objects_is_found(program, script, number):
    for path in (program, script):
        assert len(ExportedFile(str(path)).detect(draw(number)[0])["scores"]) == number


PICKLES = {
    "samples": SAMPLE,
    "weights": "archive/data/weights/model.pt",
    "constants": "archive/data/constants/model.pt",
    "an object": "archive/data/constants/custom_obj_0",
    "an opaque object": "archive/data/constants/opaque_obj_0",
    "another model": "archive/data/sample_inputs/other.pt",
    "a library": "archive/data/aotinductor/model/a.so",
    "a weight": "archive/data/weights/weight_0",
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_in_a_program_are_not_read(program, tmp_path, mark, kind, legacy):
    payload = pickle.dumps(Payload(mark)) if legacy else save_bytes(Payload(mark))
    records = {**read_records(program), PICKLES[kind]: payload}
    if kind == "a weight":
        if not IS_RECORDED:
            pytest.skip("its weights are in a pickle")
        config = "archive/data/weights/model_weights_config.json"
        entry = {"use_pickle": True, "path_name": "weight_0"}
        records = change_json(
            records, config, lambda x: next(iter(x["config"].values())).update(entry)
        )
    sentence = complaint(ExportedFile, write_records(tmp_path / "b.pt2", records))
    assert re.search("a.pt2|b.pt2 cannot be read by exported", sentence)
    assert re.search(
        "pickle that could run code|not a tensor, which could|is not one of a model", sentence
    )


def test_programs_of_other_versions_of_pytorch_are_read(program, tmp_path):
    """Samples are pickled without this exporter, and weights were before PyTorch 2.9."""
    records = read_records(program)
    samples = save_bytes(((torch.zeros(2, 3, 8, 8),), {}))
    path = write_records(tmp_path / "b.pt2", {**records, SAMPLE: samples})
    expected = ExportedFile(str(program))(draw(3))
    assert (ExportedFile(path)(draw(3))["scores"] == expected["scores"]).all()
    records = {
        name: content
        for name, content in records.items()
        if not name.startswith(("archive/data/weights/", "archive/data/constants/"))
    }
    state = torch.export.load(str(program)).state_dict
    records["archive/data/weights/model.pt"] = save_bytes(dict(state))
    records["archive/data/constants/model.pt"] = save_bytes({})
    path = write_records(tmp_path / "c.pt2", records)
    assert (ExportedFile(path)(draw(3))["scores"] == expected["scores"]).all()


def first_node(content):
    return content["graph_module"]["graph"]["nodes"][0]


def set_graph(key, value):
    return lambda content: first_node(content).update({key: value})


def set_spec(content):
    tree = '[1, {"type": "os.system", "context": "null", "children_spec": []}]'
    content["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = tree


CODE = "a\n    __import__('os').mkdir('x')\n    b"
GRAPHS = {
    "load": (set_graph("target", "torch.load"), "target 'torch.load'"),
    "save": (set_graph("target", "torch.ops.aten.save.default"), "target"),
    "from_file": (set_graph("target", "torch.ops.aten.from_file.default"), "target"),
    "private": (set_graph("target", "torch.ops.aten.add.__init__"), "target"),
    "extension": (set_graph("target", "#os.system"), "target '#os.system'"),
    "attrgetter": (set_graph("target", "_operator.attrgetter"), "target"),
    "expression": (
        set_graph("extra", {"expr_str": "__import__('os').mkdir('x')"}),
        "expr_str \"__import__\\('os",
    ),
    "call": (set_graph("extra", {"expr_str": "Symbol.mro()"}), "expr_str 'Symbol.mro"),
    "power": (set_graph("extra", {"expr_str": "9**9**9"}), "expr_str '9\\*\\*9\\*\\*9'"),
    "name": (set_graph("name", CODE), "name ['\"]a"),
    "output": (set_graph("outputs", [{"as_tensor": {"name": CODE}}]), "name ['\"]a"),
    "attribute": (set_graph("outputs", [{"as_sym_int": {"as_name": "torch.x"}}]), "as_name"),
    "key": (set_graph("a b", 1), "key 'a b'"),
    "object": (set_graph("inputs", [{"arg": {"as_custom_obj": {}}}]), "key 'as_custom_obj'"),
    "import": (set_spec, "in_spec"),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_call_known_operators_only(program, tmp_path, kind):
    change, says = GRAPHS[kind]
    records = change_json(read_records(program), MODEL, change)
    sentence = complaint(ExportedFile, write_records(tmp_path / "b.pt2", records))
    assert re.search(f"its graph has the {says}.*which is not known", sentence)


def test_notes_in_a_graph_are_not_read(program, tmp_path, mark):
    code = f"__import__('os').mkdir('{mark}') or True"

    def change(content):
        if "guards_code" in content:
            content["guards_code"] = [code]
        notes = {"source_fn_stack": "a,torch.load", "stack_trace": code, "custom": "no JSON"}
        for node in content["graph_module"]["graph"]["nodes"]:
            node["metadata"] = notes

    path = write_records(tmp_path / "b.pt2", change_json(read_records(program), MODEL, change))
    assert ExportedFile(path)(draw(3))["num_detections"].tolist() == [3]


WEIGHTS = "archive/data/weights/model_weights_config.json"
VULKAN = {"type": "vulkan", "index": 0}
recorded = pytest.mark.skipif(not IS_RECORDED, reason="its weights are in a pickle")


def set_tensor(key, value):
    return lambda content: next(iter(content["config"].values()))["tensor_meta"].update(
        {key: value}
    )


@pytest.mark.parametrize(
    "name, change, says",
    [
        (MODEL, set_graph("inputs", []), "are not a program"),
        *(
            pytest.param(*values, marks=recorded)
            for values in (
                (WEIGHTS, set_tensor("storage_offset", {"as_int": 10**9}), "are not a program"),
                (WEIGHTS, set_tensor("sizes", [{"as_int": 10**9}]), "are not a program"),
                (WEIGHTS, set_tensor("device", VULKAN), "are not a program"),
                ("archive/data/weights/weight_0", None, "record data/weights/weight_0 is empty"),
            )
        ),
    ],
)
def test_a_program_that_does_not_fit_its_tensors(program, tmp_path, capfd, name, change, says):
    records = read_records(program)
    records = change_json(records, name, change) if change else {**records, name: b""}
    assert says in complaint(ExportedFile, write_records(tmp_path / "b.pt2", records))
    assert "Traceback" not in capfd.readouterr().err


class Writing(nn.Module):
    def __init__(self, mark):
        super().__init__()
        self.mark: str = str(mark)

    def forward(self, images: torch.Tensor):
        return torch.from_file(self.mark, True, 4, dtype=torch.uint8).fill_(65)


class WritingWhenRead(nn.Module):
    def __init__(self, mark):
        super().__init__()
        self.mark: str = str(mark)

    @torch.jit.export
    def __getstate__(self):
        return (self.mark, self.training)

    @torch.jit.export
    def __setstate__(self, state: Tuple[str, bool]):
        self.mark, self.training = state
        torch.from_file(self.mark, True, 4, dtype=torch.uint8).fill_(65)

    def forward(self, images: torch.Tensor):
        return images


@pytest.mark.parametrize("kind", [Writing, WritingWhenRead])
def test_scripts_call_known_operators_only(tmp_path, mark, kind):
    path, extra = str(tmp_path / "a.ts"), {METADATA_FILE: json.dumps(METADATA)}
    torch.jit.save(torch.jit.script(kind(mark)), path, _extra_files=extra)
    assert "a.ts cannot be read by torchscript (its code " in complaint(ExportedFile, path)


FUNCTION = "class A(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    "


@pytest.mark.parametrize(
    "code",
    [
        "return torch.save(x, 'a')",
        "return torch.from_file('a')",
        "return (torch).save(x, 'a')",
        "return x.save('a')",
        "return (x).add(1)",
        "relu = torch.save\n    return relu(x)",
        "int = x.save\n    return int('a')",
        "torch = ops.aten\n    return torch.relu(x)",
        "return ops.aten.save(x, 'a')",
        "return ops.prim.Print(x)",
        "return (x)(x)",
        "return getattr(x, 'save')('a')",
        "return print(x)",
        "return torch.relu(x) if True else x",
        "return torch.relu(x) # x",
        "return torch.relu(r'a')",
        "return torch.relu('\\'')",
        "import os\n    return x",
        "return ｔorch.relu(x)",
        "return torch.relu(x)\n  def __setstate__(self, x: Tensor) -> Tensor:\n    return x",
    ],
)
def test_code_of_scripts(code):
    check_code(f"{FUNCTION}y = int(x)\n    return torch.relu(getattr(self, '0').forward(x, ))\n")
    with pytest.raises(ValueError, match="its code"):
        check_code(f"{FUNCTION}{code}\n")


def test_archives_that_are_larger_than_they_look(program, script, tmp_path):
    records = read_records(program)
    path = write_records(tmp_path / "b.pt2", records, zipfile.ZIP_DEFLATED)
    assert "is compressed" in complaint(ExportedFile, path)
    records = {**read_records(script), "archive/data/0": b"0" * 2**20}
    path = write_records(tmp_path / "b.ts", records, zipfile.ZIP_DEFLATED)
    assert "its record archive/" in complaint(ExportedFile, path)
    for name in ("c.pt2", "c.ts", "c.onnx"):
        os.mkfifo(tmp_path / name)
        sentence = complaint(ExportedFile, str(tmp_path / name))
        assert sentence == f"{tmp_path / name} is not a regular file; name a file."


def write_onnx(path, outputs=None, metadata=METADATA, location=""):
    """Write a file that returns constants, one of which may be in another file."""
    found = {
        "num_detections": np.array([1]),
        "boxes": np.zeros((1, 5, 4), np.float32),
        "scores": np.zeros((1, 5), np.float32),
        "classes": np.zeros((1, 5), np.int64),
    }
    make, graph = onnx.helper, onnx.GraphProto(name="g")
    graph.input.append(make.make_tensor_value_info("images", 1, ["n", 3, "h", "w"]))
    for name, x in {**found, **(outputs or {})}.items():
        tensor = onnx.numpy_helper.from_array(x, f"t_{name}")
        if location and name == "boxes":
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=location)
        graph.node.append(make.make_node("Constant", [], [name], value=tensor))
        graph.output.append(make.make_tensor_value_info(name, tensor.data_type, x.shape))
    proto = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    make.set_model_props(proto, {k: json.dumps(v).strip('"') for k, v in metadata.items()})
    path.write_bytes(proto.SerializeToString())
    return str(path)


@pytest.mark.parametrize("location", ["a.bin", "../a.bin", "/dev/zero", "b/../../a.bin", "fifo"])
def test_onnx_files_need_no_other_files(tmp_path, location):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "a.bin").write_bytes(bytes(80))
    path = write_onnx(tmp_path / "a.onnx", location=location)
    sentence = complaint(ExportedFile, path)
    assert f"its tensor t_boxes is in another file, {location!r}" in sentence
    with pytest.raises(detect_onnx.Error, match="cannot be read by ONNX Runtime"):
        detect_onnx.Detector(path)
    (tmp_path / "b").mkdir()
    path = write_onnx(tmp_path / "b" / "a.onnx")
    assert ExportedFile(path)(draw(3))["num_detections"].tolist() == [1]


FLOATS = np.zeros((1, 5), np.float32)
OUTPUTS = {
    "boxes of 3": ({"boxes": np.zeros((1, 5, 3), np.float32)}, "boxes has the shape (1, 5, 3)"),
    "a number": ({"boxes": np.zeros((), np.float32)}, "boxes has the shape ()"),
    "two images": ({"num_detections": np.array([1, 1])}, "num_detections has the shape (2,)"),
    "fewer scores": ({"scores": FLOATS[:, :4]}, "scores has the shape (1, 4), not (1, 5)"),
    "classes of floats": ({"classes": FLOATS}, "classes is float32"),
    "scores of integers": ({"scores": np.zeros((1, 5), np.int64)}, "scores is int64"),
    "nan": ({"scores": FLOATS * np.nan}, "scores contains NaN or infinity"),
    "unknown class": ({"classes": np.full((1, 5), 2)}, "classes has values outside of -1 to 1"),
    "too many": ({"num_detections": np.array([6])}, "num_detections has values outside of 0 to 5"),
    "negative": ({"num_detections": np.array([-1])}, "num_detections has values outside"),
    "one more": ({"extra": FLOATS}, "it has 5 outputs for the names num_detections"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_that_are_not_of_a_detector(tmp_path, kind):
    outputs, says = OUTPUTS[kind]
    file = ExportedFile(write_onnx(tmp_path / "a.onnx", outputs))
    sentence = complaint(file.detect, draw(3)[0])
    assert f"a.onnx does not compute what its metadata say: {says}" in sentence
    detector = detect_onnx.Detector(file.path)
    with contextlib.suppress(detect_onnx.Error):
        boxes, scores, classes = detector(np.zeros((160, 192, 3), np.uint8))
        assert len(boxes) == len(scores) == len(classes) and np.isfinite(scores).all()


INVALID = {
    "classes": [[], ["a", 1], "ab", None, {"a": 1}],
    "outputs": [["boxes"], ["scores", "scores", "boxes"], ["num_detections", "boxes"], "boxes"],
    "input_format": ["YUV", ["RGB"]],
    "preprocessing": ["none", {}],
    "pixel_mean": [[0, 0], [0, 0, "0"], [0, 0, 1e400], [0, 0, 10**400]],
    "pixel_std": [[1, 1, 0]],
    "strides": [[0], [True], [8.5], []],
    "size_divisibility": [0, True, 1.5],
    "min_size": [-1, True, 10**30],
    "score_threshold": [True, "0.3", -1],
    "max_detections": [-1, None],
    "tiles": [[1], [10, 11], [-1, 0], "x"],
    "class_agnostic_nms": [1, "no"],
}


@pytest.mark.parametrize("key", INVALID)
def test_metadata_that_are_not_of_a_detector(script, tmp_path, key):
    records = read_records(script)
    for value in INVALID[key]:
        records[f"archive/extra/{METADATA_FILE}"] = json.dumps({**METADATA, key: value})
        path = write_records(tmp_path / "a.ts", records)
        assert f"a.ts have no valid {key!r}" in complaint(ExportedFile, path)
    for content in (b"[]", b"null", b"{", b"\xff", b"[" * 10**5):
        records[f"archive/extra/{METADATA_FILE}"] = content
        complaint(ExportedFile, write_records(tmp_path / "a.ts", records))


def test_a_script_with_other_outputs(tmp_path):
    for i, wrong in enumerate((lambda x: x, lambda x: (x, x), lambda x: [x])):
        module = torch.jit.trace(wrong, torch.zeros(1, 3, 8, 8), strict=False)
        path = str(tmp_path / f"{i}.ts")
        torch.jit.save(module, path, _extra_files={METADATA_FILE: json.dumps(METADATA)})
        sentence = complaint(ExportedFile(path), draw(3))
        assert "does not compute what its metadata say" in sentence or "refuses images" in sentence


@pytest.mark.parametrize("suffix", ["pt2", "ts", "onnx"])
def test_other_bytes_of_exported_files(program, script, tmp_path, suffix):
    """Bytes of valid files are changed at random: detections, or one sentence."""
    source = {"pt2": program, "ts": script, "onnx": tmp_path / "valid.onnx"}[suffix]
    if suffix == "onnx":
        write_onnx(source)
    content, random_ = source.read_bytes(), random.Random(0)
    path, refused = tmp_path / f"a.{suffix}", 0
    for _ in range(12 if suffix == "pt2" else 40):
        changed = bytearray(content)
        for _ in range(random_.choice((1, 3, 30))):
            changed[random_.randrange(len(changed))] = random_.randrange(256)
        path.write_bytes(changed[: random_.choice((len(changed), len(changed) // 2))])
        try:
            ExportedFile(str(path)).detect(draw(3)[0])
        except Exception as error:
            refused += 1
            assert str(path) in complaint(_raise, error)
    assert refused > 3


def _raise(error):
    raise error
