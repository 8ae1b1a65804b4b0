"""The estimate of a step's memory, against what PyTorch's allocator says."""

import json

import pytest
import torch
from conftest import CONFIG, TINY
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from estimate_memory import AFTER_WARMUP, LiveMemory, Setting, estimate_step, main, norms_of_cuda
from fake_tensors import fake_batch, fake_tensors

from tood.config.read import load_config
from tood.utils.errors import UserError

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.1", reason="storages have one object each since 2.1"
)
SIZE, OBJECTS = (96, 128), 3
VARIANTS = {
    "GN": [],
    "fixed norms": ["MODEL.RESNETS.NORM", "BN"],
    "deformable": ["MODEL.TOOD.NUM_DCN_CONVS", "1"],
    "recomputed": ["MODEL.TOOD.CHECKPOINT_BACKBONE", "True"],
}


def build(*opts):
    opts = [*TINY, "MODEL.TOOD.NUM_CLASSES", "4", *opts]
    return build_model(load_config(CONFIG, opts)).train()


def test_what_is_alive_is_counted_once():
    with LiveMemory() as memory:
        x = torch.zeros(1000)  # 4,000 bytes
        y = x.view(10, 100)
        assert memory.now == 4000
        z = x + 1
        assert memory.now == memory.peak == 8000
        del x, z
        assert (memory.now, memory.peak) == (4000, 8000)  # y is x
        del y
        assert memory.now == 0


def allocated_by_a_step(model, batch, path):
    """Return the peak of a real step above what was there before it, by PyTorch's profiler."""
    options = dict(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with EventStorage(AFTER_WARMUP), torch.profiler.profile(**options) as profile:
        sum(model(batch).values()).backward()
    profile.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    memory = [x["args"] for x in events if x["name"] == "[memory]"]
    before = memory[0]["Total Allocated"] - memory[0]["Bytes"]
    return max(x["Total Allocated"] for x in memory) - before


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_real_step_takes_as_much(variant, tmp_path, make_input):
    model = build(*VARIANTS[variant])
    batch = [make_input(*SIZE, boxes=[[8.0, 8.0, 40.0, 48.0]] * OBJECTS) for _ in range(2)]
    measured = allocated_by_a_step(model, batch, tmp_path / "trace.json")
    weights = sum(x.untyped_storage().nbytes() for x in (*model.parameters(), *model.buffers()))
    momentum = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    estimate = estimate_step(model, Setting(2, *SIZE, OBJECTS, half=False))
    assert estimate - weights - momentum == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_would_keep_as_much(precision):
    """The forward pass can be taken on a GPU that is not there as well."""
    kept = []
    for device in ("cpu", "cuda:0"):
        model = build()
        model.precision_train = precision
        with fake_tensors(model, device), norms_of_cuda(), EventStorage(AFTER_WARMUP):
            batch = fake_batch([SIZE] * 2, [OBJECTS] * 2)
            with LiveMemory() as memory:
                losses = model(batch)
                kept.append(memory.now)
        assert all(x.requires_grad for x in losses.values())
    assert kept[0] == pytest.approx(kept[1], rel=0.01)


def test_the_table(tmp_path, monkeypatch, capsys):
    config = tmp_path / "tiny.yaml"
    tiny = "MODEL: {FPN: {OUT_CHANNELS: 32}, TOOD: {CONV_DIM: 64, NUM_CONVS: 2}}"
    config.write_text(f"_BASE_: {CONFIG}\n{tiny}\n")
    size = ["--height", "256", "--width", "320", "--batch", "8"]
    monkeypatch.setattr("sys.argv", ["estimate_memory.py", str(config), *size])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | images | float32 |") and len(lines) == 3
    plain, recomputed, half, half_recomputed = map(float, lines[2].split("|")[3:7])
    assert 0 < recomputed < plain and 0 < half_recomputed < half


@pytest.mark.parametrize("flags", [["--batch", "0"], ["--width", "-1"], ["--objects", "-1"]])
def test_sizes_that_cannot_be(monkeypatch, flags):
    monkeypatch.setattr("sys.argv", ["estimate_memory.py", CONFIG, *flags])
    with pytest.raises(UserError, match="must be above 0"):
        main()
