"""Conversion of released checkpoints: names, whole files, and what cannot be converted."""

import subprocess
from collections import OrderedDict

import convert_checkpoint as convert_checkpoint_tool
import pytest
import torch
from conftest import ROOT, complaint
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from reference import Reference

from tood import TOOD, Predictor, model_zoo
from tood.checkpoint.checkpointer import Checkpointer
from tood.checkpoint.convert import (
    convert_backbone,
    convert_checkpoint,
    identify,
    is_backbone,
    read_checkpoint,
    to_detectron2,
)
from tood.checkpoint.names import detectron2_name, mmdet_name
from tood.utils.errors import UserError
from tood.utils.tensors import read_tensors

TOOL = str(ROOT / "tools" / "convert_checkpoint.py")


@pytest.fixture(scope="module")
def reference():
    return Reference(ROOT / "tests" / "fixtures" / "reference_r18_anchor_free.npz")


@pytest.fixture
def released(reference, tmp_path):
    """Writes a checkpoint as it is published, with changes."""

    def write(state_dict=None, meta=None, wrap=True, name="tood_r18_fpn_1x_coco_20211210.pth"):
        state_dict = reference.state_dict() if state_dict is None else state_dict
        meta = {"CLASSES": ("a", "b", "c"), "epoch": 12} if meta is None else meta
        path = tmp_path / name
        torch.save({"meta": meta, "state_dict": state_dict} if wrap else state_dict, path)
        return str(path)

    return write


def to_mmdet(state_dict):
    """MMDetection's names; it has counters of batches for frozen norms as well."""
    counters = {
        n.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for n in state_dict
    }
    return {mmdet_name(n): v for n, v in {**counters, **state_dict}.items()}


def build_on_meta(name, *options):
    with torch.device("meta"):
        return TOOD(model_zoo.get_config(name, [*options, "MODEL.DEVICE", "meta"]))


@pytest.mark.parametrize(
    "mmdet, detectron2",
    [
        ("backbone.conv1.weight", "backbone.bottom_up.stem.conv1.weight"),
        ("backbone.bn1.running_var", "backbone.bottom_up.stem.conv1.norm.running_var"),
        ("backbone.layer3.22.conv2.weight", "backbone.bottom_up.res4.22.conv2.weight"),
        ("backbone.layer3.22.bn2.bias", "backbone.bottom_up.res4.22.conv2.norm.bias"),
        ("backbone.layer1.0.downsample.1.weight", "backbone.bottom_up.res2.0.shortcut.norm.weight"),
        ("backbone.layer4.2.conv2.conv_offset.bias", "backbone.bottom_up.res5.2.conv2_offset.bias"),
        ("neck.lateral_convs.2.conv.bias", "backbone.fpn_lateral5.bias"),
        ("neck.fpn_convs.0.conv.weight", "backbone.fpn_output3.weight"),
        ("neck.fpn_convs.4.conv.weight", "backbone.top_block.p7.weight"),
        ("bbox_head.inter_convs.5.gn.weight", "head.inter_convs.5.1.weight"),
        (
            "bbox_head.inter_convs.1.conv.conv_offset.weight",
            "head.inter_convs.1.0.conv_offset.weight",
        ),
        ("bbox_head.reg_decomp.layer_attention.2.bias", "head.reg_decomp.attention.2.bias"),
        ("bbox_head.scales.4.scale", "head.scales.4"),
    ],
)
def test_names_there_and_back(mmdet, detectron2):
    assert detectron2_name(mmdet) == detectron2
    assert mmdet_name(detectron2) == mmdet


@pytest.mark.parametrize(
    "authors, mmdet",
    [
        ("bbox_head.cls_decomp.la_conv1.weight", "bbox_head.cls_decomp.layer_attention.0.weight"),
        ("bbox_head.reg_decomp.la_conv2.bias", "bbox_head.reg_decomp.layer_attention.2.bias"),
        ("bbox_head.cls_prob_conv2.bias", "bbox_head.cls_prob_module.2.bias"),
        ("bbox_head.reg_offset_conv1.weight", "bbox_head.reg_offset_module.0.weight"),
    ],
)
def test_names_of_the_authors(authors, mmdet):
    assert detectron2_name(authors) == detectron2_name(mmdet)


@pytest.mark.parametrize("name", model_zoo.RELEASED_MODELS)
def test_every_released_model_is_found_from_its_names(name):
    """Each config's own model, in MMDetection's names, leads back to the config."""
    expected = build_on_meta(name).state_dict()
    state_dict = to_mmdet(expected)
    checkpoint = model_zoo.RELEASED_MODELS[name].checkpoint
    description = identify(state_dict, file_name=f"{checkpoint}_20211210.pth")
    assert description.config == name
    assert description.options == []
    assert set(to_detectron2(state_dict, expected)) == set(expected)


def test_numbers_of_classes_and_depths_are_read():
    name = "tood_R101_FPN_mstrain_2x"
    for depth, channels in ((18, 64), (34, 64), (50, 256), (152, 256)):
        size = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", channels]
        expected = build_on_meta(name, *size, "MODEL.TOOD.NUM_CLASSES", 7).state_dict()
        description = identify(to_mmdet(expected), file_name="tood_2x_anchor_free.pth")
        found = build_on_meta(description.config, *description.options).state_dict()
        assert set(to_detectron2(to_mmdet(expected), found)) == set(expected)


@pytest.mark.parametrize(
    "name, option, value, says",
    [
        ("R50_FPN_1x", "TOOD.CONV_DIM", 128, "bbox_head.inter_convs.0.conv.weight is 128x256x3x3"),
        ("R50_FPN_1x", "TOOD.NUM_CONVS", 5, "missing bbox_head.inter_convs.5.conv.weight"),
        ("R50_FPN_1x", "FPN.OUT_CHANNELS", 128, "instead of 256x2048x1x1"),
        ("X101_64x4d_FPN_mstrain_2x", "RESNETS.NUM_GROUPS", 32, "is 128x4x3x3 instead of"),
    ],
)
def test_other_models_of_tood_are_refused(name, option, value, says, tmp_path):
    model = build_on_meta(f"tood_{name}", f"MODEL.{option}", value)
    # Storages of one number each.
    state_dict = {
        n: torch.zeros(()).expand(x.shape) for n, x in to_mmdet(model.state_dict()).items()
    }
    torch.save(state_dict, tmp_path / f"tood_{name}.pth")
    sentence = complaint(
        convert_checkpoint, str(tmp_path / f"tood_{name}.pth"), f"{tmp_path}/t.pth"
    )
    assert says in sentence and "the nearest of the released models" in sentence


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_are_bit_exact(reference, released, tmp_path, wrap, dtype):
    original = OrderedDict(
        (n, v.to(dtype) if v.is_floating_point() else v + 7)
        for n, v in reference.state_dict().items()
    )
    target = str(tmp_path / "t.pth")
    description = convert_checkpoint(released(original, wrap=wrap), target)
    assert description.config == "tood_R50_FPN_1x"
    content = read_tensors(target)
    counters = {n for n in original if n.endswith(".num_batches_tracked")}
    assert {mmdet_name(n) for n in content["model"]} >= set(original) - counters
    for name, value in content["model"].items():
        assert value.dtype == original[mmdet_name(name)].dtype
        assert torch.equal(value, original[mmdet_name(name)]), name
    assert content["class_names"] == (["a", "b", "c"] if wrap else None)


def test_converted_checkpoint_loads_and_knows_its_classes(reference, released, tmp_path):
    target = str(tmp_path / "converted.pth")
    description = convert_checkpoint(released(), target)
    assert torch.load(target, weights_only=True)["class_names"] == ["a", "b", "c"]
    cfg = description.make_config()
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(target)
    with torch.no_grad():
        scores, _, _ = model.predict_dense(reference.batched_inputs())
    torch.testing.assert_close(scores, reference.flat_levels("cls_score"), atol=1e-5, rtol=0)


def test_authors_checkpoint_equals_mmdetections(reference, released, tmp_path):
    names = {"layer_attention.": "la_conv", "_module.": "_conv"}
    authors = OrderedDict()
    for name, value in reference.state_dict().items():
        for mmdet, own in names.items():
            for old, new in (("0", "1"), ("2", "2")):
                name = name.replace(f"{mmdet}{old}.", f"{own}{new}.")
        authors[name] = value
    assert "bbox_head.cls_prob_conv1.weight" in authors
    a, b = str(tmp_path / "a.pth"), str(tmp_path / "b.pth")
    convert_checkpoint(released(authors), a)
    convert_checkpoint(released(), b)
    a, b = read_tensors(a)["model"], read_tensors(b)["model"]
    assert set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


def test_averaged_duplicates_and_prefixes_are_taken_off(reference, released, tmp_path):
    state_dict = OrderedDict((f"module.{n}", v) for n, v in reference.state_dict().items())
    for name, value in reference.state_dict().items():
        state_dict["ema_" + name.replace(".", "_")] = value + 1
    target = str(tmp_path / "t.pth")
    convert_checkpoint(released(state_dict), target)
    model = read_tensors(target)["model"]
    expected = reference.state_dict()["bbox_head.tood_cls.weight"]
    assert torch.equal(model["head.cls_pred.weight"], expected)


@pytest.mark.parametrize(
    "meta, name, expected, notes",
    [
        ({"config": "... anchor_type='anchor_based', ..."}, "x.pth", "anchor_based", 0),
        ({}, "tood_r50_fpn_anchor_based_1x_coco.pth", "anchor_based", 0),
        ({"config": "anchor_type='anchor_free'"}, "x.pth", "anchor_free", 0),
        ({"cfg": 'anchor_type = "anchor_based"'}, "x.pth", "anchor_based", 0),
        ({"experiment_name": "tood_r50_fpn_anchor-based_1x_coco"}, "x.pth", "anchor_based", 0),
        (
            {"config": "load_from='anchor_based.pth', anchor_type='anchor_free'"},
            "anchor_based.pth",
            "anchor_free",
            0,
        ),
        ({}, "x.pth", "anchor_free", 1),
    ],
)
def test_anchor_type(reference, meta, name, expected, notes):
    meta = {"CLASSES": ("a", "b", "c"), **meta}
    description = identify(reference.state_dict(), meta, name)
    assert description.make_config().MODEL.TOOD.ANCHOR_TYPE == expected
    assert len(description.notes) == notes
    other = identify(reference.state_dict(), meta, name, anchor_type="anchor_based")
    assert other.make_config().MODEL.TOOD.ANCHOR_TYPE == "anchor_based"


@pytest.mark.parametrize(
    "meta, name, config",
    [
        ({}, "tood_r50_fpn_mstrain_2x_coco_2021.pth", "tood_R50_FPN_mstrain_2x"),
        ({}, "tood_r50_fpn_1x_coco_2021.pth", "tood_R50_FPN_1x"),
        ({"config": "max_epochs=24"}, "x.pth", "tood_R50_FPN_mstrain_2x"),
        ({"config": "x101_32x4d max_epochs = 12"}, "x.pth", "tood_R50_FPN_1x"),
    ],
)
def test_schedule(reference, meta, name, config):
    assert identify(reference.state_dict(), meta, name).config == config


@pytest.mark.parametrize("classes, expected", [("abc", None), (("a", "b"), None), (5, None)])
def test_class_names_that_do_not_fit(reference, classes, expected):
    meta = {"CLASSES": classes} if classes != 5 else {"dataset_meta": 5}
    description = identify(reference.state_dict(), meta, "anchor_free.pth")
    assert description.class_names is expected and len(description.notes) == 1


def test_other_deformable_convolutions_and_styles_are_refused(reference, released, tmp_path):
    state_dict = reference.state_dict()
    assert "Caffe" in complaint(identify, state_dict, {"config": "style='caffe'"})
    state_dict["backbone.layer2.0.conv2.conv_offset.weight"] = torch.ones(18, 128, 3, 3)
    assert "conv_offset" in complaint(
        convert_checkpoint, released(state_dict), str(tmp_path / "t.pth")
    )


RELEASED_CONFIG = """img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(data_preprocessor=dict(bgr_to_rgb=True), bbox_head=dict(
    anchor_type='anchor_free', init_cfg=dict(type='Normal', std=0.01),
    anchor_generator=dict(ratios=[1.0], octave_base_scale=8, strides=[8, 16, 32, 64, 128]),
    bbox_coder=dict(target_means=[.0, .0, .0, .0], target_stds=[.1, .1, 0.2, 0.2])))
"""


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("mean=[123.675, 116.28, 103.53]", "mean=[0, 0, 0]", r"mean \[0, 0, 0\]"),
        ("58.395, 57.12, 57.375", "255., 255., 255.", "std "),
        (" to_rgb=True", " to_rgb=False", "trained with to_rgb False"),
        ("bgr_to_rgb=True", "'bgr_to_rgb': False", "bgr_to_rgb False"),
        ("octave_base_scale=8", "octave_base_scale=4", "octave_base_scale 4"),
        ("target_stds=[.1, .1, 0.2, 0.2]", "target_stds=[1., 1., 1., 1.]", "target_stds"),
    ],
)
def test_pixels_and_anchors_of_others_are_refused(reference, old, new, says):
    """They leave no trace in the entries."""
    state_dict = reference.state_dict()
    identify(state_dict, {"config": RELEASED_CONFIG})
    assert old in RELEASED_CONFIG
    with pytest.raises(UserError, match=f"a.pth was .*{says}"):
        identify(state_dict, {"cfg": RELEASED_CONFIG.replace(old, new)}, "a.pth")


def test_a_converted_file_under_the_other_anchor_type_is_refused(released, tmp_path, caplog):
    target = str(tmp_path / "a.pth")
    convert_checkpoint(released(), target, "anchor_based")
    options = read_tensors(target)["options"]
    right = model_zoo.get_model("tood_R50_FPN_anchor_based_1x", target)
    assert right.head.anchor_type == "anchor_based"
    options = [*options, "MODEL.TOOD.ANCHOR_TYPE", "anchor_free"]
    sentence = complaint(Predictor, "tood_R50_FPN_1x", target, opts=options)
    assert "The weights are anchor_based, as their file says" in sentence
    options += ["MODEL.DEVICE", "cpu"]
    model = build_model(model_zoo.get_config("tood_R50_FPN_1x", options))
    with caplog.at_level("WARNING"):
        Checkpointer(model).load(target)  # to start a training from
    assert "the config is anchor_free: boxes are predicted in another way" in caplog.text


def test_entries_twice(reference, released, tmp_path):
    state_dict = reference.state_dict()
    state_dict["module.bbox_head.tood_cls.bias"] = torch.zeros(3)
    assert "tood_cls.bias twice" in complaint(read_checkpoint, released(state_dict))
    state_dict = reference.state_dict()
    state_dict["bbox_head.cls_prob_conv1.bias"] = state_dict["bbox_head.cls_prob_module.0.bias"]
    target = str(tmp_path / "t.pth")
    assert "twice, under two names" in complaint(convert_checkpoint, released(state_dict), target)


def test_counters_may_be_missing(reference, released, tmp_path):
    state_dict = {n: v for n, v in reference.state_dict().items() if "num_batches" not in n}
    target = str(tmp_path / "t.pth")
    convert_checkpoint(released(state_dict), target)
    model = read_tensors(target)["model"]
    assert model["backbone.bottom_up.res3.0.conv1.norm.num_batches_tracked"] == 0


def test_what_does_not_fit_is_listed_and_nothing_is_written(reference, released, tmp_path):
    target = tmp_path / "t.pth"
    target.write_text("from before")
    for change, says in [
        (lambda s: s.pop("bbox_head.tood_reg.bias"), "missing bbox_head.tood_reg.bias"),
        (lambda s: s.pop("bbox_head.tood_cls.weight"), "missing bbox_head.tood_cls.weight"),
        (
            lambda s: s.pop("backbone.layer1.0.conv2.weight"),
            "missing backbone.layer1.0.conv2.weight",
        ),
        (
            lambda s: [s.pop(n) for n in list(s) if n.startswith("backbone.layer3.1.")],
            "missing backbone.layer3.1.conv1.weight",
        ),
        (lambda s: s.pop("backbone.layer2.0.bn1.bias"), "missing backbone.layer2.0.bn1.bias"),
        (
            lambda s: s.pop("bbox_head.inter_convs.0.conv.weight"),
            "missing bbox_head.inter_convs.0.conv.weight",
        ),
        (lambda s: s.update({"bbox_head.more": torch.ones(2)}), "unknown bbox_head.more"),
        (
            lambda s: s.update({"bbox_head.tood_reg.bias": torch.ones(5)}),
            "bbox_head.tood_reg.bias is 5 instead of 4",
        ),
    ]:
        state_dict = reference.state_dict()
        change(state_dict)
        assert says in complaint(convert_checkpoint, released(state_dict), str(target))
    assert target.read_text() == "from before"
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".pth", ".pth"]


@pytest.mark.parametrize(
    "entry, says",
    [
        ("bbox_head.atss_cls.weight", "ATSS"),
        ("bbox_head.retina_cls.weight", "RetinaNet"),
        ("roi_head.bbox_head.fc_cls.weight", "two-stage"),
        ("encoder.weight", "no detector at all (its first entry is encoder.weight)"),
        ("backbone.bottom_up.stem.conv1.weight", "Detectron2's names already"),
    ],
)
def test_other_models_are_named(released, tmp_path, entry, says):
    path = released({entry: torch.ones(1)})
    sentence = complaint(convert_checkpoint, path, str(tmp_path / "t.pth"))
    assert "is not TOOD's" in sentence and says in sentence


def test_files_that_cannot_be_read(released, tmp_path):
    whole = tmp_path / released().rsplit("/", 1)[1]
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:1000])
    empty = tmp_path / "empty.pth"
    empty.write_bytes(b"")
    noise = tmp_path / "noise.pth"
    noise.write_bytes(bytes(range(256)) * 10)
    for path in (cut, empty, noise):
        assert "is damaged, or is not a checkpoint" in complaint(read_checkpoint, str(path))
    assert "does not exist" in complaint(read_checkpoint, str(tmp_path / "none.pth"))

    code = tmp_path / "code.pth"
    torch.save({"state_dict": {}, "meta": subprocess.Popen}, code)
    sentence = complaint(read_checkpoint, str(code))
    assert "is refused" in sentence and "Popen" in sentence

    torch.save({"state_dict": {"a": 3}}, code)
    assert "'a' that is not a tensor" in complaint(read_checkpoint, str(code))


def test_target_that_cannot_be_written(released):
    sentence = complaint(convert_checkpoint, released(), "/proc/none/t.pth")
    assert "/proc/none/t.pth cannot be written" in sentence
    assert "must end in .pth" in complaint(convert_checkpoint, released(), "t.pkl")


def test_imagenet_backbone_of_torchvision(tmp_path):
    from torchvision.models import resnet18

    source = resnet18(weights=None)
    converted = convert_backbone(source.state_dict())
    assert is_backbone(source.state_dict())
    cfg = model_zoo.get_config("tood_R50_FPN_1x")
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    torch.save({"model": converted}, tmp_path / "resnet18.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "resnet18.pth"))
    resnet = model.backbone.bottom_up
    assert {n[len("backbone.bottom_up.") :] for n in converted} >= set(resnet.state_dict())
    # The same features, which is what the names are for.
    source.fc = source.avgpool = torch.nn.Identity()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.eval()(image)
        actual = resnet.eval()(image)["res5"].flatten(1)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert "missing backbone" in complaint(convert_backbone, {"conv1.weight": torch.ones(1)})
    state_dict = resnet18(weights=None).state_dict()
    del state_dict["layer2.0.bn1.bias"]
    assert "missing backbone.layer2.0.bn1.bias" in complaint(convert_backbone, state_dict)


@pytest.mark.slow
def test_imagenet_weights_by_name(tmp_path, monkeypatch):
    from detectron2.utils.file_io import PathManager
    from torchvision.models import resnet18

    from tood.checkpoint import weights

    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18-f37072fd.pth")
    asked = []
    original = PathManager.get_local_path

    def fetch(path, *args, **kwargs):
        if path.startswith("https://"):
            asked.append(path)
            return str(tmp_path / path.rsplit("/", 1)[1])
        return original(path, *args, **kwargs)

    monkeypatch.setattr(PathManager, "get_local_path", fetch)
    complaint_of_hash = complaint(PathManager.get_local_path, "torchvision://resnet18")
    assert "not f37072fd; it was removed" in complaint_of_hash
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18-f37072fd.pth")
    monkeypatch.setattr(weights, "_check_hash", lambda path: None)
    local = PathManager.get_local_path("torchvision://resnet18")
    assert len(asked) == 2 and asked[0].endswith("/resnet18-f37072fd.pth")
    assert "backbone.bottom_up.stem.conv1.weight" in read_tensors(local)["model"]
    assert "There are no weights torchvision://resnet17" in complaint(
        PathManager.get_local_path, "torchvision://resnet17"
    )
    assert set(weights.OPEN_MMLAB) == {"resnext101_64x4d"}


def test_model_zoo_takes_a_converted_checkpoint(released, tmp_path):
    target = str(tmp_path / "t.pth")
    convert_checkpoint(released(), target)
    model = model_zoo.get_model("tood_R50_FPN_1x", target, device="cpu")
    assert model.num_classes == 3  # and a ResNet-18, as the file says
    content = read_tensors(target)
    torch.save({"model": content["model"]}, target)  # and now it does not
    sentence = complaint(model_zoo.get_model, "tood_R50_FPN_1x", target, device="cpu")
    assert "do not fit the config" in sentence


def test_model_zoo(released, tmp_path):
    assert "tood_R50_FPN_1x" in complaint(model_zoo.get_config, "tood_r50")
    model = model_zoo.get_model("demo_shapes", device="cpu")
    assert not model.training
    torch.save({"model": model.state_dict()}, tmp_path / "demo.pth")
    again = model_zoo.get_model("demo_shapes", str(tmp_path / "demo.pth"), device="cpu")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.slow
def test_command(released, tmp_path, capsys, warm_python):
    source, target = released(), str(tmp_path / "t.pth")
    convert_checkpoint_tool.main(convert_checkpoint_tool.parse_args([source, target]))
    output = capsys.readouterr().out
    assert "configs/tood_R50_FPN_1x.yaml --eval-only MODEL.WEIGHTS" in output
    assert "MODEL.RESNETS.DEPTH 18" in output and "NUM_CLASSES 3" in output
    with pytest.raises(UserError, match="is the source itself"):
        convert_checkpoint_tool.main(convert_checkpoint_tool.parse_args([source, source]))
    argv = [warm_python, TOOL, str(tmp_path / "none.pth"), target]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: The checkpoint")
