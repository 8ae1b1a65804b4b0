"""The runtime OpenVINO, in its place a program by ONNX Runtime where it is not installed."""

import gzip
import sys
import types

import numpy as np
import pytest
from conftest import ROOT

from tood.deploy.onnx import save_checked
from tood.inference import exported
from tood.inference.exported import ExportedFile
from tood.utils.errors import UserError

onnx = pytest.importorskip("onnx", reason="an extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="an extra")
SIZES = [(64, 96), (64, 64), (48, 64)]


class Model:
    def __init__(self, path):
        self.path, self.shape = path, None

    def clone(self):
        return Model(self.path)

    def reshape(self, shape):
        self.shape = shape


class Program:
    """What ``compile_model`` returns, and a request of it."""

    def __init__(self, path, shape, made):
        self.session, self.shape = onnxruntime.InferenceSession(path), shape
        made.append(shape)

    def create_infer_request(self):
        return self

    def infer(self, inputs):
        assert self.shape in (None, inputs[0].shape)
        names = [x.name for x in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, {"images": inputs[0]})))


@pytest.fixture
def made(monkeypatch):
    """The shapes for which a program was compiled, None for any."""
    shapes = []

    class Core:
        read = False

        def read_model(self, path):
            assert not self.read
            self.read = True
            return Model(path)

        def compile_model(self, model, device, options):
            assert (device, options["INFERENCE_PRECISION_HINT"]) == ("CPU", "f32")
            return Program(model.path, model.shape, shapes)

    monkeypatch.setitem(sys.modules, "openvino", types.SimpleNamespace(Core=Core))
    return shapes


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("openvino") / "model.onnx"
    packed = ROOT / "tests" / "fixtures" / "version_0_1" / "model.onnx.gz"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return str(path)


def draw_images(number):
    rng = np.random.default_rng(0)
    sizes = [SIZES[i % 2] for i in range(number)] + [SIZES[2]] * number
    return [rng.integers(256, size=(3, *size)).astype(np.float32) for size in sizes]


def test_a_frequent_size_has_its_own_program(path, made, monkeypatch):
    monkeypatch.setattr(exported, "FREQUENT", 3)
    monkeypatch.setattr(exported, "MOST_FIXED", 2)
    file, other = ExportedFile(path, "openvino"), ExportedFile(path)
    assert made == [None]
    for image in draw_images(7):
        expected = other.detect(image)
        for name, values in file.detect(image).items():
            np.testing.assert_array_equal(values, expected[name])
    # The third size is one too many.
    assert made == [None, (1, 3, *SIZES[0]), (1, 3, *SIZES[1])]


def test_a_guarantee_is_of_the_file_that_was_exported(path, made, tmp_path):
    proto, changed = onnx.load(path), str(tmp_path / "a.onnx")
    save_checked(proto, changed, guarantee="guaranteed")
    assert ExportedFile(changed, "openvino").metadata["guarantee"] == "guaranteed"
    onnx.save(proto, changed)  # without the seal
    with pytest.raises(UserError, match="a.onnx is not as tood export writes it"):
        ExportedFile(changed, "openvino")


def test_openvino_itself(path, monkeypatch):
    pytest.importorskip("openvino", reason="is not needed for anything else")
    monkeypatch.setattr(exported, "FREQUENT", 2)
    file, other = ExportedFile(path, "openvino"), ExportedFile(path)
    for image in draw_images(4):
        expected, found = other.detect(image), file.detect(image)
        np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-2)
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
