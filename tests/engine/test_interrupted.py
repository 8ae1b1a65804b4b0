"""Training that is stopped, killed or out of disk, and resumed; weights of other classes."""

import os
import signal

import pytest
import torch
from conftest import complaint, get_error
from detectron2.modeling import build_model

import train_net
from tood.checkpoint.checkpointer import Checkpointer
from tood.engine import train as engine_train
from tood.utils.errors import UserError
from tood.utils.tensors import read_tensors

EVERY = ["SOLVER.CHECKPOINT_PERIOD", "1"]


def read_iteration(path):
    return torch.load(path, map_location="cpu", weights_only=False)["iteration"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_training_with_a_checkpoint(command, out, monkeypatch, number):
    run_step = engine_train.Trainer.run_step

    def run_step_and_signal(self):
        run_step(self)
        if self.iter == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(engine_train.Trainer, "run_step", run_step_and_signal)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as stop:
        train_net.cli(command())
    assert stop.value.code == 128 + number
    assert handlers == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    assert (out / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (out / "model_final.pth").exists()
    log = (out / "log.txt").read_text()
    assert "model_0000001.pth" in log and "Traceback" not in log

    monkeypatch.setattr(engine_train.Trainer, "run_step", run_step)
    train_net.cli(command("--resume"))
    assert "Starting training from iteration 2" in (out / "log.txt").read_text()
    assert read_iteration(out / "model_final.pth") == 3


def truncate(path):
    path.write_bytes(path.read_bytes()[:10_000])


def write_zeros(path):
    """Write them in the middle of a file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)


def make_foreign(path):
    torch.save({"model": {"weight": torch.zeros(3)}, "trainer": {}}, path)


def make_weights_only(path):
    torch.save({"model": torch.load(path, weights_only=False)["model"]}, path)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, make_foreign, make_weights_only])
def test_a_bad_last_checkpoint_is_named_and_the_one_before_it_used(command, out, damage):
    train_net.cli(command(opts=EVERY))
    os.remove(out / "model_final.pth")
    (out / "last_checkpoint").write_text("model_0000003.pth")
    damage(out / "model_0000003.pth")
    train_net.cli(command("--resume", opts=[*EVERY, "SOLVER.MAX_ITER", "5"]))
    log = (out / "log.txt").read_text()
    assert "model_0000003.pth" in log and "Trying the one before it" in log
    assert "Starting training from iteration 3" in log
    assert read_iteration(out / "model_final.pth") == 4


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, write_zeros])
def test_no_checkpoint_that_can_be_read(command, out, damage):
    train_net.cli(command())
    damage(out / "model_final.pth")
    assert "is damaged" in complaint(read_tensors, str(out / "model_final.pth"))
    message = get_error(command("--resume", opts=["SOLVER.MAX_ITER", "5"]))
    assert f"{out / 'model_final.pth'} is damaged" in message


def test_disk_full_while_saving(tmp_path, monkeypatch):
    checkpointer = Checkpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)

    def full(content, f):
        f.write(b"a part of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"model_0000002.pth cannot be written.*no space left"):
        checkpointer.save("model_0000002", iteration=2)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_fine_tuning_with_other_classes_says_one_line(tiny_cfg, tmp_path, caplog):
    model = build_model(tiny_cfg)
    Checkpointer(model, str(tmp_path)).save("four_classes")
    tiny_cfg.MODEL.TOOD.NUM_CLASSES = 7
    other = build_model(tiny_cfg)
    drawn = other.head.cls_pred.weight.clone()
    with caplog.at_level("WARNING"):
        Checkpointer(other).load(str(tmp_path / "four_classes.pth"))
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "The weights are of 4 classes, the config has 7: the class predictor (head.cls_pred) "
        "starts at random, all else from the weights."
    ]
    assert torch.equal(other.head.cls_pred.weight, drawn)
    assert torch.equal(other.head.reg_pred.weight, model.head.reg_pred.weight)
    with pytest.raises(UserError, match="lack 2 entries"):  # evaluation needs all of them
        Checkpointer(other, complete=True).load(str(tmp_path / "four_classes.pth"))
