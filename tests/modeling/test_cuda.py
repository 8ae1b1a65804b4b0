"""Tests that need a GPU; skipped without one."""

import copy
import warnings

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from tood.modeling import postprocess

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PHASES = {"warmup": 0, "tal": 1}


@pytest.fixture
def models(tiny_cfg):
    """The same model on the CPU and on the GPU."""
    tiny_cfg.MODEL.TOOD.ATSS_ITERS = 1
    model = build_model(tiny_cfg)
    return model, copy.deepcopy(model).cuda()


@pytest.fixture
def inputs(make_input):
    # Of no symmetry to the grid: devices break ties between locations differently.
    objects = [(8.3, 7.1, 41.9, 49.7), (30.2, 5.4, 89.1, 60.6)]
    return [make_input(64, 96, objects), make_input(128, 128, objects[:1])]


@pytest.fixture
def exact_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def on_gpu(inputs):
    return [
        {**x, "image": x["image"].cuda(), "instances": x["instances"].to("cuda")} for x in inputs
    ]


def train_losses(model, inputs, phase):
    model.train()
    with EventStorage(start_iter=PHASES[phase]):
        return model(inputs)


@pytest.mark.parametrize("phase", PHASES)
def test_losses_and_gradients_equal_the_cpus(models, inputs, phase, exact_float32):
    cpu, gpu = (train_losses(m, x, phase) for m, x in zip(models, (inputs, on_gpu(inputs))))
    for name, loss in cpu.items():
        assert gpu[name].item() == pytest.approx(loss.item(), rel=1e-3)
    sum(cpu.values()).backward()
    sum(gpu.values()).backward()
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        if a.grad is not None:
            assert b.grad.norm().item() == pytest.approx(a.grad.norm().item(), rel=0.02, abs=1e-5)


def test_predictions_equal_the_cpus(models, inputs, exact_float32):
    with torch.no_grad():
        cpu, gpu = (m.eval().predict_dense(x) for m, x in zip(models, (inputs, on_gpu(inputs))))
    torch.testing.assert_close(gpu[0].cpu(), cpu[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(gpu[1].cpu(), cpu[1], atol=0.05, rtol=1e-3)


@pytest.mark.parametrize("phase", PHASES)
def test_a_training_step_never_waits_for_the_gpu(models, inputs, phase):
    _, model = models
    inputs = on_gpu(inputs)
    sum(train_losses(model, inputs, phase).values()).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(train_losses(model, inputs, phase).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_inference_waits_once_before_nms(models, inputs, monkeypatch):
    _, model = models
    inputs = on_gpu(inputs)
    model.eval()
    model.score_thresh_test = 0.0
    none = torch.zeros(0, dtype=torch.int64, device="cuda")
    monkeypatch.setattr(postprocess, "batched_nms", lambda *_: none)
    with torch.no_grad():
        images = model.preprocess_image(inputs)
        for _ in range(2):  # the first time makes the kernels
            features = model.backbone(images.tensor)
            features = [features[f] for f in model.head_in_features]
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    model.forward_inference(images, features, model.head(features))
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(w.message) for w in caught) <= 1


@pytest.mark.parametrize("phase", PHASES)
def test_mixed_precision_training(models, inputs, phase):
    _, model = models
    plain = train_losses(model, on_gpu(inputs), phase)
    scaler = torch.cuda.amp.GradScaler()
    with torch.autocast("cuda", torch.float16):
        losses = train_losses(model, on_gpu(inputs), phase)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(plain[name].item(), rel=0.1)
    scaler.scale(sum(losses.values())).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
