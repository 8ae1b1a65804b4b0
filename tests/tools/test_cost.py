"""Size and cost of the heads, which the paper compares by."""

import pytest
import torch
from conftest import CONFIG
from count_cost import build, main, multiply_adds
from detectron2.layers import ShapeSpec

from tood import model_zoo
from tood.modeling.backbone.deform_conv import DeformConvPack
from tood.modeling.dense_head import HEAD_REGISTRY


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, parameters, giga_multiply_adds",
    [
        ("tood_R50_FPN_1x", 4_823_790, 100.69),
        ("paper/parallel_ATSS_R50_FPN_1x", 4_918_618, 104.82),
    ],
)
def test_heads_at_1280_x_800(name, parameters, giga_multiply_adds):
    cfg = model_zoo.get_config(name)
    strides = (8, 16, 32, 64, 128)
    shapes = [ShapeSpec(channels=256, stride=s) for s in strides]
    head = HEAD_REGISTRY.get(cfg.MODEL.TOOD.HEAD)(cfg, shapes)
    assert sum(p.numel() for p in head.parameters()) == parameters
    features = tuple(torch.zeros(1, 256, -(-800 // s), -(-1280 // s)) for s in strides)
    with torch.no_grad():
        count = multiply_adds(head, features)
    assert count / 1e9 == pytest.approx(giga_multiply_adds, rel=0.005)


def test_models_by_name_by_file_and_of_timm(monkeypatch, capsys):
    pytest.importorskip("timm", reason="an extra")
    names = [CONFIG, "timm:resnet18"]
    monkeypatch.setattr("sys.argv", ["count_cost.py", *names, "--height", "64", "--width", "64"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | parameters |") and "ms" not in lines[0]
    for name, line in zip(names, lines[2:]):
        parameters = sum(p.numel() for p in build(name).parameters())
        assert line.startswith(f"| `{name}` | {parameters:,} |")


def test_attention_is_counted():
    pytest.importorskip("timm", reason="an extra")
    backbone = build("timm:vit_tiny_patch16_224").backbone.bottom_up
    image = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        count = multiply_adds(backbone, (image,))
    # 16 patches and a class token of 192 numbers in 12 blocks: query, key, value and projection,
    # two products of all pairs, a layer four times as wide and back.
    tokens, width = 17, 192
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    patches = 16 * width * 3 * 16**2
    made = 16 * width * width * 4 + 4 * width * width * 9  # C3 and C5, of C4
    assert count == 12 * block + patches + made


def test_deformable_convolutions_are_counted():
    class Dict(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pack = DeformConvPack(8, 4, num_groups=2, bias=False)

        def forward(self, x):
            return {"x": self.pack(x)}

    # 54 offsets and masks, then 4 channels, each from 8 channels of 3 x 3.
    with torch.no_grad():
        count = multiply_adds(Dict().eval(), (torch.zeros(1, 8, 5, 6),))
    assert count == (54 + 4) * 8 * 9 * 30
