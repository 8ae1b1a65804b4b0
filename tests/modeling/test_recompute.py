"""Blocks that are computed twice: the same numbers, of less memory."""

import copy

import pytest
import torch
from conftest import CONFIG, TINY
from detectron2.modeling import build_model
from detectron2.utils.env import TORCH_VERSION
from detectron2.utils.events import EventStorage
from estimate_memory import LiveMemory

from tood.config.read import load_config
from tood.modeling.backbone.recompute import RecomputedBlocks, recompute_blocks
from tood.utils.errors import UserError

RECOMPUTED = ["MODEL.TOOD.CHECKPOINT_BACKBONE", "True"]
NORMS = {
    "fixed statistics": ["MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "2"],
    "counted statistics": ["MODEL.RESNETS.NORM", "BN", "MODEL.TOOD.FREEZE_BN_STATS", "False"],
    "synchronized": ["MODEL.RESNETS.NORM", "naiveSyncBN", "MODEL.TOOD.FREEZE_BN_STATS", "False"],
    "GN": ["MODEL.RESNETS.NORM", "GN"],
    "bfloat16": ["MODEL.RESNETS.NORM", "GN", "MODEL.TOOD.PRECISION_TRAIN", "bfloat16"],
    "bottlenecks": ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.DEFORM_MODULATED", "True"]
    + ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, False, True, True]"]
    + ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"],
}


def build(*opts):
    torch.manual_seed(0)
    return build_model(load_config(CONFIG, [*TINY, "MODEL.TOOD.NUM_CLASSES", "4", *opts])).train()


def step(model, batch):
    """Return losses, and the bytes that are kept for their gradients."""
    with EventStorage(10**6), LiveMemory() as memory:
        losses = model(batch)
        kept = memory.now
    sum(losses.values()).backward()
    return losses, kept


@pytest.mark.slow
@pytest.mark.parametrize("norm", list(NORMS))
def test_the_same_step(norm, make_input):
    plain, recomputed = build(*NORMS[norm]), build(*NORMS[norm], *RECOMPUTED)
    assert isinstance(recomputed.backbone.bottom_up.res4, RecomputedBlocks)
    recomputed.load_state_dict(plain.state_dict())  # of the same names
    batch = [make_input(), make_input(height=96, width=64)]
    for _ in range(2):
        losses, kept = step(plain, batch)
        again, kept_less = step(recomputed, batch)
        assert all(torch.equal(losses[k], again[k]) for k in losses)
    # LiveMemory counts each view of PyTorch 2.0 as memory of its own.
    assert TORCH_VERSION < (2, 1) or kept_less < 0.9 * kept
    others = dict(recomputed.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, others[name].grad, rtol=0, atol=0)
    buffers = dict(recomputed.named_buffers())
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_inference_and_copies(make_input):
    plain, recomputed = build(), build(*RECOMPUTED)
    recomputed.load_state_dict(plain.state_dict())
    batch = [{"image": make_input()["image"]}]
    with torch.no_grad():
        expected = plain.eval()(batch)[0]["instances"]
        for model in (recomputed, copy.deepcopy(recomputed)):
            found = model.eval()(batch)[0]["instances"]
            assert torch.equal(found.scores, expected.scores)
    # A copy has separate blocks.
    clone = copy.deepcopy(recomputed).train()
    step(clone, [make_input()])
    assert all(p.grad is None for p in recomputed.parameters())
    assert any(p.grad is not None for p in clone.backbone.bottom_up.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_models_of_timm(name, make_input):
    pytest.importorskip("timm", reason="an extra")
    opts = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", name]
    opts += ["MODEL.TIMM.PRETRAINED", "False"]
    plain, recomputed = build(*opts), build(*opts, *RECOMPUTED)
    recomputed.load_state_dict(plain.state_dict())
    batch = [make_input()]
    (losses, kept), (again, kept_less) = step(plain, batch), step(recomputed, batch)
    assert all(torch.equal(losses[k], again[k]) for k in losses)
    assert TORCH_VERSION < (2, 1) or kept_less < 0.9 * kept  # as above
    others = dict(recomputed.named_parameters())
    for key, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, others[key].grad)


def test_what_cannot_be_recomputed():
    with pytest.raises(UserError, match="not for Linear; set it to False"):
        recompute_blocks(torch.nn.Linear(1, 1))
    pytest.importorskip("timm", reason="an extra")
    opts = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet18"]
    opts += ["MODEL.TOOD.FREEZE_BN_STATS", "False", *RECOMPUTED]
    with pytest.raises(UserError, match="count each batch twice"):
        build(*opts, "MODEL.TIMM.PRETRAINED", "False")
