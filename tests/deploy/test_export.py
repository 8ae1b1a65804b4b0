"""Exported files: what they compute, what they say of themselves, and the tools around them."""

import json
import os
import re
import subprocess
import sys

import compare_exports
import cv2
import detect_onnx
import numpy as np
import pytest
import torch
import torchvision
from conftest import (
    CONFIG,
    ROOT,
    TINY,
    assert_from_their_locations,
    load_extension,
    needs_graphs,
    skip_without_graphs,
)
from detectron2.layers import FrozenBatchNorm2d, batched_nms
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import DeformBottleneckBlock
from PIL import Image

import tood
from tood.app import export as export_module
from tood.app.export import describe_file, export
from tood.config.read import load_config
from tood.data.images import read_image
from tood.deploy.lower import lower
from tood.deploy.module import (
    DETECTIONS,
    ExportableTOOD,
    describe,
    keep_by_nms,
    save_program,
    save_torchscript,
)
from tood.deploy.onnx import deform_conv2d_by_grid_sample, exportable_to_onnx, save_checked
from tood.deploy.precision import to_float16, to_int8
from tood.inference.exported import ExportedDetector, ExportedFile, compare_detections
from tood.inference.predictor import Predictor
from tood.inference.tiles import seen_whole_elsewhere
from tood.modeling.backbone.deform_conv import PortableDeformConv
from tood.modeling.backbone.fixed_norm import FixedNormConv2d, fold_fixed_norms
from tood.modeling.postprocess import Candidates
from tood.utils.errors import UserError
from tood.utils.tiles import make_tiles

for name in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(name)
import onnx  # noqa: E402

CLASSES = ["square", "disc", "ring", "cross"]
load_extension("head")
# With one more output than the released head. Two levels, one of which is a single location for
# small images: exporting takes time by level, by layer, and by every norm that cannot be folded.
SMALL = [
    *TINY,
    *("MODEL.TOOD.HEAD", "UncertainHead"),
    *("MODEL.RESNETS.DEPTH", "18"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "64"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.RESNETS.NORM", "BN"),
    *("MODEL.TOOD.NUM_CONVS", "1"),
    *("MODEL.TOOD.NUM_CLASSES", "4"),
    *("MODEL.TOOD.IN_FEATURES", "['p3','p6']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[64],[512]]"),
    *("INPUT.MIN_SIZE_TEST", "64"),
    *("MODEL.TOOD.TOPK_CANDIDATES_TEST", "60"),
]
ONE_LEVEL = ["MODEL.TOOD.IN_FEATURES", "['p5']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[64]]"]
# A model of timm that pads as TensorFlow does, by the size of each map.
TENSORFLOWS = [
    *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"),
    *("MODEL.TIMM.NAME", "tf_mobilenetv3_small_minimal_100"),
]
# Sizes that are multiples of the divisibility and are not, batches of one and of more.
INPUTS = [(1, 3, 64, 96), (3, 3, 70, 130), (1, 3, 200, 150), (2, 3, 33, 20)]


def save_random(folder, *opts):
    """Checkpoint of a model of random weights, whose scores lie far enough from each other."""
    cfg = load_config(CONFIG, [*SMALL, *opts])
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.head.cls_pred.weight, std=0.5)
    torch.nn.init.normal_(model.head.reg_pred.weight, std=0.05)
    if model.head.reg_align is not None:
        torch.nn.init.normal_(model.head.reg_align[-1].weight, std=0.3)
    path = str(folder / "weights.pth")
    torch.save({"model": model.state_dict(), "class_names": CLASSES}, path)
    return path


def write_file(path, output, *, opts=(), **arguments):
    options = [*SMALL, *opts]
    written = export(path, output=str(output), config=CONFIG, options=options, **arguments)
    assert written.path == str(output) and written.num_bytes > 1000 and written.num_images >= 1
    return str(output)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def predictor(weights):
    return Predictor(CONFIG, weights, opts=SMALL, score_threshold="from-config")


@pytest.fixture(scope="module")
def onnx_file(weights, tmp_path_factory):
    """A file that is made without the decompositions of the exporter, its slowest step."""
    skip_without_graphs()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(torch.export.ExportedProgram, "run_decompositions")
        return write_file(weights, tmp_path_factory.mktemp("onnx") / "a.onnx")


def to_arrays(instances):
    return {
        "boxes": instances.pred_boxes.tensor.numpy(),
        "scores": instances.scores.numpy(),
        "classes": instances.pred_classes.numpy(),
    }


def draw_images(shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(256, shape, generator=generator).float()


def run(module, images):
    with torch.no_grad():
        return dict(zip(module.output_names, (x.numpy() for x in module(images))))


def assert_same_detections(actual, expected, score_atol=1e-4, box_atol=1e-2):
    assert actual["num_detections"].tolist() == expected["num_detections"].tolist()
    for i, count in enumerate(expected["num_detections"]):
        a, e = ({k: x[k][i, :count] for k in DETECTIONS[1:]} for x in (actual, expected))
        same = compare_detections(e, a)
        assert same.matched == count and same.unmatched == 0
        assert same.score_difference < score_atol and same.box_difference < box_atol
        rest = actual["scores"][i, count:], actual["classes"][i, count:], actual["boxes"][i, count:]
        assert (rest[0] == 0).all() and (rest[1] == -1).all() and (rest[2] == 0).all()


# --- the parts -------------------------------------------------------------------------------


@pytest.mark.slow
def test_exportable_is_the_model(predictor):
    module = ExportableTOOD(predictor.model, channels_last=True).eval()
    before = {name: x.clone() for name, x in predictor.model.state_dict().items()}
    images = draw_images((3, 3, 70, 130))
    found = run(module, images)
    with torch.no_grad():
        expected = predictor.model([{"image": x} for x in images])
    for i, output in enumerate(expected):
        instances = output["instances"]
        count = found["num_detections"][i]
        assert 10 < len(instances) <= count
        # Detectron2 clips boxes and removes those that are outside; nothing else is done.
        boxes = torch.from_numpy(found["boxes"][i, :count])
        limit = torch.tensor([130.0, 70.0] * 2)
        boxes = boxes.clamp(min=torch.zeros(4)).minimum(limit)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        torch.testing.assert_close(boxes[inside], instances.pred_boxes.tensor)
        scores = torch.from_numpy(found["scores"][i, :count])[inside]
        torch.testing.assert_close(scores, instances.scores)
    assert all(torch.equal(x, before[name]) for name, x in predictor.model.state_dict().items())


def test_keep_by_nms_is_detectron2s():
    N, T, K = 3, 60, 4
    points = torch.rand(N, T, 2) * 40 - 10
    boxes = torch.cat([points, points + 5 + torch.rand(N, T, 2) * 20], dim=2)
    scores = torch.rand(N, T).sort(dim=1, descending=True).values
    scores[1, 20:] = -1  # these do not count
    scores[2] = -1
    candidates = Candidates((scores >= 0).sum(1), scores, boxes, torch.randint(K, (N, T)))
    kept = keep_by_nms(candidates, K, 0.3)
    for i, count in enumerate([60, 20, 0]):
        parts = (x[i, :count] for x in (candidates.boxes, candidates.scores, candidates.classes))
        keep = batched_nms(*parts, 0.3)
        assert kept[i].nonzero().squeeze(1).tolist() == sorted(keep.tolist())
    assert 5 < kept[0].sum() < 60


@pytest.mark.parametrize(
    "offset_groups, weight_groups, stride, padding, dilation, kernel",
    [
        (1, 1, 1, 1, 1, 3),
        (4, 1, 1, 1, 1, 3),
        (2, 2, 2, 1, 1, 3),
        (4, 4, 1, 0, 1, 1),
        (1, 1, 1, 2, 2, 3),
    ],
)
def test_deform_conv2d_by_grid_sample(
    offset_groups, weight_groups, stride, padding, dilation, kernel
):
    x, taps = torch.randn(2, 8, 9, 11), kernel * kernel
    weight, bias = torch.randn(12, 8 // weight_groups, kernel, kernel), torch.randn(12)
    size = [(s + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for s in (9, 11)]
    offset = torch.randn(2, 2 * offset_groups * taps, *size) * 4  # many of them outside
    mask = torch.rand(2, offset_groups * taps, *size)
    options = (weight, bias, (stride,) * 2, (padding,) * 2, (dilation,) * 2, mask)
    expected = torchvision.ops.deform_conv2d(x, offset, *options)
    actual = deform_conv2d_by_grid_sample(x, offset, *options)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_fold_fixed_norms():
    def norm():
        norm = FrozenBatchNorm2d(6)
        for buffer in norm.buffers():
            buffer.copy_(torch.rand(6) + 0.5)
        return norm

    plain = FixedNormConv2d(4, 6, 3, bias=True, norm=norm()).eval()
    deformable = PortableDeformConv(4, 6, 3, bias=False, norm=norm()).eval()
    both = torch.nn.ModuleList([plain, deformable])
    x, offset, mask = torch.randn(2, 4, 8, 8), torch.randn(2, 18, 6, 6), torch.rand(2, 9, 6, 6)
    before = plain(x), deformable(x, offset, mask)
    fold_fixed_norms(both)
    assert plain.norm is None and deformable.norm is None
    for a, b in zip((plain(x), deformable(x, offset, mask)), before):
        torch.testing.assert_close(a, b)


def test_compare_detections():
    def found(*rows):
        columns = list(zip(*rows)) if rows else [(), (), ()]
        return {
            "boxes": np.array(columns[0], float).reshape(-1, 4),
            "scores": np.array(columns[1]),
            "classes": np.array(columns[2]),
        }

    one, other = ([0, 0, 10, 10], 0.9, 0), ([0, 0, 100, 10], 0.5, 1)
    assert compare_detections(found(one, other), found(other, one)) == (2, 0, 0, 0)
    moved = ([0, 0, 100, 11.5], 0.25, 1)
    assert compare_detections(found(one, other), found(moved)) == (1, 1, 0.25, 1.5)
    assert compare_detections(found(one), found(([0, 0, 10, 10], 0.9, 1))) == (0, 2, 0, 0)
    assert compare_detections(found(), found(one)) == (0, 1, 0, 0)


# --- the formats -----------------------------------------------------------------------------


@pytest.mark.slow
def test_onnx(onnx_file, predictor):
    file = ExportedFile(onnx_file)
    module = ExportableTOOD(predictor.model).eval()
    for shape in INPUTS:
        images = draw_images(shape)
        assert_same_detections(file(images.numpy()), run(module, images))
    proto = onnx.load(onnx_file)
    onnx.checker.check_model(proto, full_check=True)
    assert [(x.domain, x.version) for x in proto.opset_import if x.domain == ""] == [("", 18)]
    # Standard operators only, and nothing of the machine it was made on.
    assert {node.domain for node in proto.graph.node} == {""}
    assert str(ROOT).encode() not in proto.SerializeToString()
    assert file.metadata["classes"] == CLASSES and file.metadata["opset"] == 18
    assert file.metadata["tood_version"] == tood.__version__
    about = {"input_format": "RGB", "min_size": 64, "max_size": 320, "strides": [8, 64]}
    about["score_thresholds"] = [0.3] * 4  # without a report
    about.update(score_threshold=0.05, nms_threshold=0.6, max_detections=100, precision="float32")
    assert {key: file.metadata[key] for key in about} == about


@pytest.mark.slow
def test_one_more_output(onnx_file, predictor, make_input):
    image = make_input(64, 96)
    (output,) = ExportedDetector(ExportedFile(onnx_file))([image])
    assert_from_their_locations(predictor.model, image, output["instances"])


@pytest.mark.slow
@pytest.mark.parametrize("nms", [True, False])
def test_one_more_output_of_torchscript(predictor, make_input, tmp_path, nms):
    image, path = make_input(64, 96), str(tmp_path / "a.ts")
    module = ExportableTOOD(predictor.model, nms=nms)
    save_torchscript(module, path, describe(module, CLASSES, min_size=64, max_size=96))
    (output,) = ExportedDetector(ExportedFile(path))([image])
    assert_from_their_locations(predictor.model, image, output["instances"])


@pytest.mark.slow
def test_reduced_precision(onnx_file, predictor, tmp_path):
    images = [draw_images((1, 3, 64, 96)), draw_images((1, 3, 90, 64))]
    half, static, dynamic = (str(tmp_path / f"{n}.onnx") for n in ("half", "static", "dynamic"))
    to_float16(onnx_file, half)
    to_int8(onnx_file, static, [x.numpy() for x in images])
    to_int8(onnx_file, dynamic)
    expected = ExportedFile(onnx_file)(images[0].numpy())
    for path, precision, share, pixels, tolerance in (
        (half, "float16", 0.55, 0.5, 0.01),
        (static, "int8", 0.4, 5, 0.1),
        (dynamic, "int8", 0.4, 5, 0.1),
    ):
        file = ExportedFile(path)
        assert file.metadata["precision"] == precision and file.metadata["classes"] == CLASSES
        actual = file(images[0].numpy())
        for box, score, label in zip(*(expected[k][0, :3] for k in ("boxes", "scores", "classes"))):
            distances = np.abs(actual["boxes"][0] - box).max(axis=1)
            distances[actual["classes"][0] != label] = np.inf
            assert distances.min() < pixels
            assert actual["scores"][0][distances.argmin()] == pytest.approx(score, abs=tolerance)
        assert not np.array_equal(actual["scores"][0], expected["scores"][0])
        assert os.path.getsize(path) < share * os.path.getsize(onnx_file)
    graph = onnx.load(half).graph
    types = {w.name: w.data_type for w in graph.initializer}
    assert types["model.head.cls_pred.weight.float16"] == onnx.TensorProto.FLOAT16
    # Pixels and coordinates are not rounded.
    assert types["model.pixel_mean"] == onnx.TensorProto.FLOAT
    weights = {w.name: w.data_type for w in onnx.load(static).graph.initializer}
    assert weights["model.head.cls_pred.weight"] == onnx.TensorProto.FLOAT
    assert weights["model.head.inter_convs.0.0.weight_quantized"] == onnx.TensorProto.INT8


def test_what_is_for_int8(tmp_path):
    """Not what predicts, nor what makes offsets, as Detectron2's deformable blocks name theirs."""
    block = DeformBottleneckBlock(32, 32, bottleneck_channels=32, deform_modulated=True)
    assert hasattr(block, "conv2_offset")
    names = ["stem.conv1", "res2.0.conv2_offset", "head.0.conv_offset", "head.attention.0", "pred"]
    values = ["x", *"abcde"]
    weight = np.ones((1, 1, 1, 1), np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(
                "Conv", [values[i], f"model.{name}.weight"], [values[i + 1]], name
            )
            for i, name in enumerate(names)
        ],
        "chain",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 4, 4])],
        [onnx.helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, [1, 1, 4, 4])],
        [onnx.numpy_helper.from_array(weight, f"model.{name}.weight") for name in names],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), str(tmp_path / "chain.onnx"))
    to_int8(str(tmp_path / "chain.onnx"), str(tmp_path / "int8.onnx"))
    weights = {w.name for w in onnx.load(str(tmp_path / "int8.onnx")).graph.initializer}
    assert "model.stem.conv1.weight_quantized" in weights
    assert {f"model.{name}.weight" for name in names[1:]} <= weights


@pytest.mark.slow
@needs_graphs
def test_operators_of_onnx_in_an_anchor_based_model_with_deformable_convolutions(tmp_path):
    opts = ["MODEL.TOOD.ANCHOR_TYPE", "anchor_based", "MODEL.TOOD.NUM_DCN_CONVS", "1"]
    model = Predictor(CONFIG, save_random(tmp_path, *opts), opts=[*SMALL, *opts]).model
    module = exportable_to_onnx(model).eval()
    for shape in INPUTS:
        images = draw_images(shape)
        expected = run(ExportableTOOD(model).eval(), images)
        assert_same_detections(run(module, images), expected)


class InPlace(torch.nn.Module):
    def __init__(self, maker):
        super().__init__()
        self.maker = maker

    def forward(self, x):
        made = self.maker(x)
        return made.relu_() + x


@needs_graphs
@pytest.mark.parametrize(
    "maker, possible",
    [
        (lambda x: x * 2, True),
        (lambda x: x.view(-1), False),  # x would be changed as well
        (lambda x: torch.where(x > 0, x, x - 1).transpose(0, 0), False),
    ],
)
def test_in_place_operators_become_plain_if_nothing_else_reads_their_input(maker, possible):
    x = torch.tensor([-1.0, 3.0])
    with torch.no_grad():
        program = torch.export.export(InPlace(maker), (x.clone(),), strict=False)
    assert lower(program) is possible
    if possible:
        assert program.run_decompositions() is program
        assert not any("relu_" in str(node.target) for node in program.graph.nodes)
        assert program.module()(x).tolist() == [-1, 9]


@pytest.mark.slow
def test_raw_outputs_of_normalized_images(tmp_path):
    opts = ["MODEL.TOOD.ANCHOR_TYPE", "anchor_based", "MODEL.TOOD.NUM_DCN_CONVS", "1"]
    path = save_random(tmp_path, *opts)
    arguments = dict(format="torchscript", raw=True, preprocessing="outside", opts=opts)
    file = ExportedFile(write_file(path, tmp_path / "a.ts", **arguments))
    model = Predictor(CONFIG, path, opts=[*SMALL, *opts]).model
    for shape in INPUTS:
        images = draw_images(shape)
        outputs = file(((images - model.pixel_mean) / model.pixel_std).numpy())
        with torch.no_grad():
            scores, boxes, _ = model.predict_dense([{"image": x} for x in images])
        np.testing.assert_allclose(outputs["scores"], scores, atol=1e-4)
        np.testing.assert_allclose(outputs["boxes"], boxes, atol=1e-2)
    # What the file leaves to others is done when it is used like a model.
    image = {"image": draw_images((3, 70, 130)).byte(), "height": 140, "width": 260}
    with torch.no_grad():
        expected = model([image])[0]["instances"]
    (actual,) = ExportedDetector(file)([image])
    torch.testing.assert_close(actual["instances"].scores, expected.scores, atol=1e-4, rtol=0)
    a, e = (x.pred_boxes.tensor for x in (actual["instances"], expected))
    torch.testing.assert_close(a, e, atol=1e-2, rtol=0)


@pytest.mark.parametrize("text", ["nan", "inf", "-0.1", "1.1", "a"])
def test_thresholds_of_the_program_are_numbers_from_0_to_1(text, capsys):
    argv = ["a.onnx", "--input", "a.jpg", f"--score-thresh={text}"]
    with pytest.raises(SystemExit) as error:
        detect_onnx.parse_args(argv)
    assert error.value.code == 2 and "--score-thresh: invalid" in capsys.readouterr().err


@pytest.mark.slow
def test_raw_onnx_is_not_for_the_program_without_this_project(onnx_file, tmp_path):
    proto = onnx.load(onnx_file)
    save_checked(proto, str(tmp_path / "raw.onnx"), outputs=["scores", "boxes"])
    with pytest.raises(detect_onnx.Error, match="makes no detections"):
        detect_onnx.Detector(str(tmp_path / "raw.onnx"))


@pytest.mark.slow
def test_torchscript(weights, predictor, tmp_path, capsys):
    path = str(tmp_path / "a.ts")
    options = [*SMALL, "MODEL.WEIGHTS", weights]
    written = export(weights, output=path, format="torchscript", config=CONFIG, options=options)
    assert "Checked against PyTorch on 2 images" in str(written) and "a.ts: " in str(written)
    assert str(written).endswith("Its metadata say to use detections of at least 0.3.")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Exporting {weights} to {path}: a few seconds on a CPU")
    for line, title in zip(lines[1:], ("Tracing and writing the network", "Comparing 2 images")):
        assert re.fullmatch(rf"{title} \.\.\. \d+ s", line)
    assert len(lines) == 3
    file = ExportedFile(path)
    assert file.metadata["classes"] == CLASSES
    module = ExportableTOOD(predictor.model).eval()
    for shape in INPUTS:
        images = draw_images(shape)
        assert_same_detections(file(images.numpy()), run(module, images))


@needs_graphs
@pytest.mark.slow
def test_exported_program(tmp_path):
    """That of the ResNet is on the way to the file of ``test_onnx``."""
    pytest.importorskip("timm", reason="an extra")
    opts = [*ONE_LEVEL, *TENSORFLOWS]
    predictor = Predictor(CONFIG, save_random(tmp_path, *opts), opts=[*SMALL, *opts])
    module = ExportableTOOD(predictor.model).eval()
    path = str(tmp_path / "a.pt2")
    save_program(module, path, describe(module, CLASSES, min_size=64, max_size=400))
    file = ExportedFile(path)
    for shape in ((1, 3, 140, 170), (3, 3, 256, 192)):
        images = draw_images(shape)
        assert_same_detections(file(images.numpy()), run(module, images))


@pytest.mark.slow
@needs_graphs
def test_kernels_of_a_timm_model_and_depthwise_ones_are_in_the_file(tmp_path):
    """If timm's model computed norms separately, int8 would not change the convolutions."""
    pytest.importorskip("timm", reason="an extra")
    opts = [*ONE_LEVEL, *TENSORFLOWS, "MODEL.TOOD.CONV_TYPE", "depthwise"]
    path = save_random(tmp_path, *opts)
    file = ExportedFile(write_file(path, tmp_path / "a.onnx", opts=opts))
    module = ExportableTOOD(Predictor(CONFIG, path, opts=[*SMALL, *opts]).model).eval()
    images = draw_images((2, 3, 140, 170))
    assert_same_detections(file(images.numpy()), run(module, images))
    to_int8(str(tmp_path / "a.onnx"), str(tmp_path / "int8.onnx"), [images.numpy()])
    weights = {w.name for w in onnx.load(str(tmp_path / "int8.onnx")).graph.initializer}
    features = [name for name in module.state_dict() if "backbone" in name]
    kernels = {name for name in features if module.state_dict()[name].dim() == 4}
    assert len(kernels) > 30
    assert {f"{name}_quantized" for name in kernels if ".fpn_" not in name} <= weights
    depthwise = ("inter_convs.0.0.depthwise", "inter_convs.0.0", "cls_pred.depthwise")
    assert {f"model.head.{name}.weight_quantized" for name in depthwise} <= weights
    assert "model.head.cls_pred.weight" in weights


# --- the tools -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sides", [[], ["64", "40"]])
def test_a_file_is_the_model_to_detectron2(onnx_file, weights, shapes, capsys, sides):
    data = ["DATASETS.TEST", f"('{shapes}/annotations.json:{shapes}/images',)"]
    argv = ["--config-file", CONFIG, onnx_file, *(["--sides", *sides] if sides else [])]
    argv += ["--images", "1", *SMALL, *data]
    compare_exports.main(compare_exports.parse_args([*argv, "MODEL.WEIGHTS", weights]))
    rows = [r.split("|")[1:-1] for r in capsys.readouterr().out.splitlines() if r[:1] == "|"]
    titles = [f" ms at {side} x {side} " for side in sides] or [" ms an image "]
    assert rows[0][4:-1] == titles and {len(row) for row in rows} == {5 + len(titles)}
    rows = rows[2:]
    assert len(rows) == 2 and rows[0][1:4] == rows[1][1:4]
    assert "PyTorch" in rows[0][0] and "onnxruntime" in rows[1][0]
    assert float(rows[1][-1]) == pytest.approx(os.path.getsize(onnx_file) / 1e6, abs=0.06)


@pytest.mark.slow
def test_program_without_this_project(onnx_file, predictor, shapes, tmp_path):
    """The same detections as the predictor's, where other packages cannot be imported."""
    found = tmp_path / "found.json"
    code = (
        "import sys, runpy\n"
        "for name in ('torch', 'torchvision', 'detectron2', 'fvcore', 'tood', 'cv2'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    flags = ["--input", str(shapes / "images"), "--output", str(tmp_path), "--json", str(found)]
    flags.append("--all")
    command = [sys.executable, "-c", code, str(ROOT / "demo" / "detect_onnx.py"), onnx_file, *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads(found.read_text())
    paths = [x["file_name"] for x in content["images"]]
    assert [x["name"] for x in content["categories"]] == CLASSES
    assert paths == [str(p) for p in sorted((shapes / "images").iterdir())]
    for x, instances in zip(content["images"], predictor(paths)):
        assert len(instances) > 10
        expected = to_arrays(instances)
        mine = [a for a in content["annotations"] if a["image_id"] == x["id"]]
        xywh = np.array([a["bbox"] for a in mine])
        actual = {
            "boxes": np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            "scores": np.array([a["score"] for a in mine]),
            "classes": np.array([a["category_id"] - 1 for a in mine]),
        }
        same = compare_detections(expected, actual)
        assert same.matched == len(instances) and same.unmatched == 0
        assert same.score_difference < 1e-4 and same.box_difference < 1e-2
    drawn = cv2.imread(str(tmp_path / os.path.basename(paths[0])))
    assert drawn.shape == cv2.imread(paths[0]).shape
    # Nothing is written over unasked.
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1 and "already exists; name another --output" in again.stderr


def test_an_exported_file_names_its_thresholds(trained):
    predictor = Predictor(trained)
    summary = json.loads((trained / "report" / "report.json").read_text())
    metadata = describe_file(ExportableTOOD(predictor.model), predictor)
    assert metadata["score_thresholds"] == [x["threshold"] for x in summary["classes"]]
    assert metadata["classes"] == [x["name"] for x in summary["classes"]]
    assert metadata["bit_depth"] == 16


@pytest.mark.slow
def test_program_uses_the_thresholds_of_the_file(onnx_file, shapes, tmp_path, capsys):
    path, image = str(tmp_path / "a.onnx"), str(shapes / "images" / "00000.jpg")
    save_checked(onnx.load(onnx_file), path)

    def run(*flags):
        argv = [path, "--input", image, "--json", str(tmp_path / "a.json"), "--overwrite", *flags]
        detect_onnx.main(detect_onnx.parse_args(argv))
        found = json.loads((tmp_path / "a.json").read_text())["annotations"]
        first, last = capsys.readouterr().out.splitlines()
        return [(x["score"], x["category_id"] - 1) for x in found], int(first.split()[-1]), last

    everything, count, text = run("--all")
    assert count == 0 and text.startswith("1 images, 0 detections of at least 0.3, ")
    limits = [everything[i][0] for i in (10, 20, 30, 40)]
    save_checked(onnx.load(onnx_file), path, score_thresholds=limits)
    expected = [x for x in everything if x[0] >= np.float32(limits[x[1]])]
    found, count, text = run()
    assert found == expected and 0 < count == len(expected) < len(everything)
    listed = ", ".join(f"{x:.2f} {name}" for x, name in zip(limits, CLASSES))
    words = f"detections at the thresholds of their classes ({listed}), "
    assert text.startswith(f"1 images, {count} {words}")
    found, count, text = run("--score-thresh", "0.07")
    assert found == [x for x in everything if x[0] >= 0.07] and 0 < count == len(found)
    assert text.startswith(f"1 images, {count} detections of at least 0.07, ")
    words = "of at least 0.07, guaranteed to miss at most 10 %"
    save_checked(onnx.load(onnx_file), path, score_thresholds=[0.07] * 4, guarantee=words)
    assert run()[0] == found and f"detections {words}, " in run()[2]
    assert "guaranteed" not in run("--score-thresh", "0.08")[2]
    to_float16(path, str(tmp_path / "half.onnx"))
    assert not detect_onnx.Detector(str(tmp_path / "half.onnx")).guarantee
    for wrong in ([0.5], [0.5, 0.5, 0.5, 2], "high"):
        save_checked(onnx.load(onnx_file), path, score_thresholds=wrong)
        with pytest.raises(detect_onnx.Error, match="export it again"):
            detect_onnx.Detector(path)


@pytest.mark.slow
def test_a_file_of_a_model_that_sees_tiles(onnx_file, weights, shapes, tmp_path):
    path = str(tmp_path / "tiled.onnx")
    save_checked(onnx.load(onnx_file), path, tiles=[40, 16])
    opts = [*SMALL, "INPUT.TILES.SIZE", "40", "INPUT.TILES.OVERLAP", "16"]
    predictor = Predictor(CONFIG, weights, opts=opts, score_threshold="from-config")
    file = ExportedFile(path)
    assert file.metadata["tiles"] == [40, 16]
    assert describe_file(exportable_to_onnx(predictor.model), predictor)["tiles"] == [40, 16]
    program, detector = detect_onnx.Detector(path), ExportedDetector(file)
    for photo in sorted((shapes / "images").iterdir())[:3]:
        image = cv2.imread(str(photo))
        order = image[:, :, ::-1] if predictor.options.input_format == "RGB" else image
        pixels = torch.from_numpy(np.ascontiguousarray(order.transpose(2, 0, 1)))
        (found,) = detector([{"image": pixels}])
        expected = to_arrays(found["instances"])
        actual = dict(zip(("boxes", "scores", "classes"), program(image[:, :, ::-1])))
        same = compare_detections(expected, actual)
        assert same.unmatched == 0 and same.matched == len(expected["scores"]) > 20
        # The file has suppressed within each tile already; the model suppresses all at once.
        own = to_arrays(predictor(photo))
        assert compare_detections(own, actual).matched > 0.9 * len(own["scores"])


@pytest.mark.parametrize("depth", [8, 12, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a"])
def test_the_program_reads_images_as_the_predictor_does(tmp_path, depth, name):
    pixels = np.random.default_rng(0).integers(2**depth, size=(6, 9))
    path = str(tmp_path / name)
    image = Image.fromarray(pixels.astype(np.uint8 if depth == 8 else np.uint16))
    image.save(path, "TIFF" if name == "a.tif" else "PNG")
    expected = read_image(path, "RGB", depth)
    assert (np.asarray(detect_onnx.read_image(path, depth)) == expected).all()
    assert detect_onnx.name_drawing(path) == ("a.png" if name == "a" else name)


def test_flags_of_the_program_without_an_effect(onnx_file, shapes):
    args = detect_onnx.parse_args([onnx_file, "--input", str(shapes / "images"), "--all"])
    with pytest.raises(detect_onnx.Error, match="--all is about the file of --json"):
        detect_onnx.main(args)


def test_nms_of_the_program_is_torchvisions():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 80, size=(200, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 40, size=(200, 2))], axis=1)
    boxes, scores = boxes.astype(np.float32), rng.random(200).astype(np.float32)
    groups = rng.integers(3, size=200)
    found = detect_onnx.nms(boxes, scores, groups, 0.5)
    arrays = (torch.from_numpy(x) for x in (boxes, scores, groups))
    assert found.tolist() == batched_nms(*arrays, 0.5).tolist()
    for width, height, size, overlap in ((100, 60, 60, 20), (301, 200, 50, 7), (30, 30, 60, 0)):
        tiles = [
            (t.x, t.y, t.x + t.width, t.y + t.height)
            for t in make_tiles(width, height, size, overlap)
        ]
        assert detect_onnx.make_tiles(width, height, size, overlap) == tiles
        theirs = torch.from_numpy(boxes)
        for tile, other in zip(make_tiles(width, height, size, overlap), tiles):
            expected = seen_whole_elsewhere(
                theirs, tile, make_tiles(width, height, size, overlap), (width, height)
            )
            found = detect_onnx.seen_whole_elsewhere(boxes, other, tiles, width, height)
            assert found.tolist() == expected.tolist()


def test_size_of_shorter_edge():
    assert detect_onnx.compute_size(480, 640, 800, 1333) == (800, 1067)
    assert detect_onnx.compute_size(1000, 300, 800, 1333) == (1333, 400)
    assert detect_onnx.compute_size(5, 7, 0, 1333) == (5, 7)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (dict(output="a.pt"), "must end in .onnx, for --format onnx"),
        (dict(output="there.onnx"), "already exists"),
        (dict(output="a.ts", format="torchscript", precision="int8"), "onnx only"),
        (dict(output="a.ts", format="tflite"), "must be one of onnx, torchscript, exported"),
        (dict(output="a.onnx", precision="int4"), "--precision is 'int4'"),
        (dict(output="a.onnx", preprocessing="no"), "--preprocessing is 'no'"),
        (dict(output="a.onnx", calibrate="x"), "--precision int8 only"),
        (dict(output="a.onnx", precision="int8", calibrate="x"), "no images in x"),
        (dict(output="a.onnx", calibration_images=0), "must be above 0"),
    ],
)
def test_export_refuses(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").write_text("precious")
    with pytest.raises(UserError, match=says):
        export("w.pth", config=CONFIG, **arguments)
    assert (tmp_path / "there.onnx").read_text() == "precious"


@pytest.mark.slow
def test_export_without_what_it_needs(weights, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="64 pixels .INPUT.MIN_SIZE_TEST., but PyTorch exports"):
        write_file(weights, tmp_path / "a.pt2", format="exported")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnxscript is missing: pip install -e .\[export\]"):
        write_file(weights, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_raw_outputs_of_a_model_with_centerness(tiny_cfg):
    tood = tiny_cfg.MODEL.TOOD
    tood.HEAD, tood.ASSIGNER, tood.CENTERNESS = "parallel", "atss", True
    with pytest.raises(UserError, match="MODEL.TOOD.CENTERNESS"):
        ExportableTOOD(build_model(tiny_cfg), nms=False)


@pytest.mark.slow
def test_a_file_that_finds_something_else_is_reported(weights, tmp_path, monkeypatch):
    def wrong(module, path, metadata):
        module.model.head.scales[0].data *= 1.5
        save(module, path, metadata)

    save = export_module.save_torchscript
    monkeypatch.setattr(export_module, "save_torchscript", wrong)
    with pytest.raises(UserError, match="does not find what the model finds: .* in one only"):
        write_file(weights, tmp_path / "a.ts", format="torchscript")


@pytest.mark.slow
def test_comparison_refuses(onnx_file, weights, shapes):
    argv = ["--config-file", CONFIG, onnx_file]
    with pytest.raises(UserError, match="a.onnx is named twice"):
        compare_exports.parse_args([*argv, onnx_file])
    with pytest.raises(UserError, match="--images is 0"):
        compare_exports.parse_args([*argv, "--images", "0"])
    with pytest.raises(UserError, match="--sides has 0"):
        compare_exports.parse_args([*argv, onnx_file, "--sides", "320", "0"])
    data = ["DATASETS.TEST", f"('{shapes}/annotations.json:{shapes}/images',)"]
    other = [*argv, *SMALL, *data, "INPUT.FORMAT", "BGR", "MODEL.WEIGHTS", weights]
    with pytest.raises(UserError, match="its input_format is RGB, not BGR"):
        compare_exports.main(compare_exports.parse_args(other))
    assert compare_exports.split_runtime("a@b/c.onnx@openvino") == ("a@b/c.onnx", "openvino")
    assert compare_exports.split_runtime("a@b/c.onnx") == ("a@b/c.onnx", "")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_images_that_are_not_whole(tmp_path, name):
    image = np.random.default_rng(0).integers(256, size=(64, 48, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / name)
    assert detect_onnx.read_image(tmp_path / name).size == (48, 64)
    content = (tmp_path / name).read_bytes()
    for cut in (content[: len(content) * 3 // 4], b""):
        (tmp_path / name).write_bytes(cut)
        with pytest.raises(detect_onnx.IMAGE_ERRORS):
            detect_onnx.read_image(tmp_path / name)


def test_files_that_cannot_be_used(tmp_path):
    broken = tmp_path / "a.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read by onnxruntime"):
        ExportedFile(str(broken))
    with pytest.raises(UserError, match="does not exist"):
        ExportedFile(str(tmp_path / "b.ts"))
    with pytest.raises(UserError, match="cannot be read by openvino.*exported reads .pt2"):
        ExportedFile(str(tmp_path / "b.ts"), "openvino")
    with pytest.raises(detect_onnx.Error, match="cannot be read by ONNX Runtime"):
        detect_onnx.Detector(str(broken))
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), str(tmp_path / "c.ts"))
    with pytest.raises(UserError, match="c.ts (was not written by|cannot be read)"):
        ExportedFile(str(tmp_path / "c.ts"))


def _round(proto):
    (weight, *_) = (x for x in proto.graph.initializer if len(x.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).astype(np.float16).astype(np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def _lower(proto):
    (entry,) = (x for x in proto.metadata_props if x.key == "score_thresholds")
    entry.value = "[0.5, 0.5, 0.5, 0.5]"


@pytest.mark.slow
@pytest.mark.parametrize("change", [_round, _lower])
def test_a_guarantee_is_of_the_file_as_it_was_exported(onnx_file, tmp_path, change):
    path = str(tmp_path / "a.onnx")
    save_checked(onnx.load(onnx_file), path, score_thresholds=[0.07] * 4, guarantee="guaranteed")
    same = onnx.load(path)
    onnx.save(same, path)  # another program has read and written it
    assert detect_onnx.Detector(path).guarantee == "guaranteed"
    change(same)
    onnx.save(same, path)
    says = "a.onnx is not as tood export writes it: it was changed since.*export it again"
    with pytest.raises(UserError, match=says):
        ExportedFile(path)
    with pytest.raises(detect_onnx.Error, match=says):
        detect_onnx.Detector(path)
    proto = onnx.load(path)
    save_checked(proto, path, guarantee="")  # it promises nothing
    onnx.save(proto, path)
    ExportedFile(path), detect_onnx.Detector(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key, value", [("classes", 3), ("outputs", None), ("min_size", "wide"), ("pixel_mean", "x")]
)
def test_malformed_metadata(onnx_file, tmp_path, key, value):
    proto, path = onnx.load(onnx_file), str(tmp_path / "a.onnx")
    save_checked(proto, path, **{key: value})
    with pytest.raises(UserError, match=f"no valid '{key}'; export the model again"):
        ExportedFile(path)
    if key != "pixel_mean":  # which is not used: the file normalizes
        with pytest.raises(detect_onnx.Error, match="export it again|makes no detections"):
            detect_onnx.Detector(path)
