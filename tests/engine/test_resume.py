"""Trainings that were stopped anywhere, and resumed: with other values, or after their end."""

import json
import os

import pytest
import torch
from conftest import get_error

import train_net
from tood.engine import train as engine_train
from tood.engine.loop import TrainingLoop
from tood.evaluation.coco import CleanCOCOEvaluator
from tood.utils.errors import UserError
from tood.utils.files import written_whole
from tood.utils.lock import locked

EVERY = ["SOLVER.CHECKPOINT_PERIOD", "1", "TEST.EVAL_PERIOD", "0"]
NO_EVALUATION = ["TEST.EVAL_PERIOD", "0"]


def read_log(out):
    return (out / "log.txt").read_text()


def read_groups(path):
    trainer = torch.load(path, weights_only=True)["trainer"]
    return trainer["_trainer"]["optimizer"]["param_groups"], trainer["scheduler"]


@pytest.mark.slow
def test_typed_values_hold_in_a_resumed_training(command, out):
    train_net.cli(command(opts=EVERY))
    rate = read_groups(out / "model_final.pth")[0][0]["initial_lr"]
    opts = [*EVERY, "SOLVER.MAX_ITER", "6", "SOLVER.BASE_LR", str(rate / 10)]
    opts += ["SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0"]
    train_net.cli(command("--resume", opts=[*opts, "SOLVER.IMS_PER_BATCH", "1"]))
    groups, scheduler = read_groups(out / "model_final.pth")
    assert groups[0]["lr"] == pytest.approx(rate / 10) == groups[0]["initial_lr"]
    assert scheduler["base_lrs"][0] == pytest.approx(rate / 10)
    assert 0.5 in {group["weight_decay"] for group in groups}
    (line,) = [x for x in read_log(out).splitlines() if "Resumed with other values" in x]
    assert f"lr {rate} -> {rate / 10}" in line and "-> 0.5" in line
    assert "images per step 2 -> 1" in line


@pytest.mark.slow
def test_a_resumed_training_keeps_its_seed_and_says_so(command, out):
    train_net.cli(command(opts=[*EVERY, "SEED", "3"]))
    train_net.cli(command("--resume", opts=[*EVERY, "SEED", "4", "SOLVER.MAX_ITER", "5"]))
    assert "The seed 4 is not used" in read_log(out) and "of seed 3" in read_log(out)
    assert "Resumed with other values" not in read_log(out)


@pytest.mark.slow
@pytest.mark.parametrize("average", [[], ["MODEL.TOOD.EMA_DECAY", "0.9"]])
def test_a_finished_training_leaves_all_its_files(command, out, average):
    opts = ["SOLVER.CHECKPOINT_PERIOD", "4", *average]
    train_net.cli(command(opts=opts))
    files = {path.name for path in out.glob("*.pth")}
    assert "model_0000003.pth" in files and ("model_final_ema.pth" in files) == bool(average)
    whole = torch.load(out / "model_final.pth", weights_only=True)["model"]
    # As if it was killed while model_final.pth was written.
    for name in files - {"model_0000003.pth"}:
        os.remove(out / name)
    (out / "last_checkpoint").write_text("model_0000003.pth")
    (out / "model_final.pth.0123abcd.part").write_bytes(b"half of it")
    (out / "last_checkpoint.0123abcd.part").write_text("model_fi")
    (out / "inference" / "coco_instances_results.json").unlink()
    train_net.cli(command("--resume", opts=opts))
    assert {path.name for path in out.glob("*.pth*")} == files and not list(out.glob("*.part"))
    assert (out / "inference" / "coco_instances_results.json").exists()
    again = torch.load(out / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(x, again[name]) for name, x in whole.items())


@pytest.mark.slow
def test_an_end_before_the_checkpoint(command, out):
    train_net.cli(command(opts=EVERY))
    message = get_error(command("--resume", opts=[*EVERY, "SOLVER.MAX_ITER", "2"]))
    assert "is of iteration 3, but the training has 2 iterations" in message


def test_one_training_at_a_time(command, out):
    out.mkdir()
    with locked(str(out)):
        message = get_error(command())
        assert f"Another training writes to {out} (process {os.getpid()})" in message
        assert sorted(p.name for p in out.iterdir()) == [".lock"]
    (out / "left.pth.0123abcd.part").write_text("of a dead process")
    (out / "mine.zip.part").write_text("of another program")
    train_net.cli(command(opts=NO_EVALUATION))
    assert [x.name for x in out.glob("*.part")] == ["mine.zip.part"]


def read_best(out):
    best = torch.load(out / "model_best.pth", weights_only=True)
    return best["AP"], best["iteration"], best["model"]["head.reg_pred.bias"]


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_is_made_up(command, tmp_path, monkeypatch):
    """The same best weights as those of a training that was left alone."""
    opts = ["SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2", "SOLVER.MAX_ITER", "5"]
    # The rate lets the first of three evaluations be the best.
    opts += ["SOLVER.BASE_LR", "0.000001", "SEED", "1"]
    train_net.cli(command(opts=[*opts, "OUTPUT_DIR", str(tmp_path / "whole")]))
    evaluate, stops = CleanCOCOEvaluator.evaluate, [True]

    def stop_once(self, *args):
        if stops.pop() if stops else False:
            raise KeyboardInterrupt
        return evaluate(self, *args)

    monkeypatch.setattr(CleanCOCOEvaluator, "evaluate", stop_once)
    stopped = [*opts, "OUTPUT_DIR", str(tmp_path / "stopped")]
    with pytest.raises(SystemExit) as stop:
        train_net.cli(command(opts=stopped))
    assert stop.value.code == 130
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (tmp_path / "stopped" / "model_best.pth").exists()
    train_net.cli(command("--resume", opts=stopped))
    (AP, iteration, bias), other = read_best(tmp_path / "whole"), read_best(tmp_path / "stopped")
    assert (AP, iteration) == other[:2] and torch.equal(bias, other[2])
    done = json.loads((tmp_path / "stopped" / "last_evaluation.json").read_text())
    assert done["iteration"] == 4


@pytest.mark.slow
def test_the_checkpoint_that_is_advised_is_sound(command, out, monkeypatch):
    run_step = TrainingLoop.run_step

    def poison(self):
        run_step(self)
        if self.iter == 2:  # the step itself went wrong: the next loss is not finite
            next(self.experiment.model.head.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(TrainingLoop, "run_step", poison)
    message = get_error(command(opts=EVERY))
    assert "Training stopped at iteration 3" in message
    assert "--resume continues from model_0000001.pth" in message
    monkeypatch.setattr(TrainingLoop, "run_step", run_step)
    train_net.cli(command("--resume", opts=EVERY))
    assert "Starting training from iteration 2" in read_log(out)
    assert (out / "model_final.pth").exists()


def test_ctrl_c_while_setting_up(command, out, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine_train, "prepare_datasets", interrupt)
    with pytest.raises(SystemExit) as stop:
        train_net.cli(command())
    assert stop.value.code == 130 and not out.exists()
    assert capsys.readouterr().err.splitlines()[-2] == "error: stopped by SIGINT; continue with"


@pytest.mark.slow
def test_a_worker_that_was_killed(command, out, monkeypatch):
    def killed(self):
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
        yield

    workers = ["DATALOADER.NUM_WORKERS", "1"]
    train_net.cli(command(opts=[*workers, *EVERY]))
    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", killed)
    message = get_error(command("--resume", opts=[*workers, *EVERY, "SOLVER.MAX_ITER", "5"]))
    assert "Training stopped at iteration 4. A process that loads images for" in message
    assert "NUM_WORKERS" in message and message.endswith("continues from model_final.pth.")


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."),
    ],
)
def test_memory_that_does_not_suffice(command, out, monkeypatch, capsys, error):
    run_step = TrainingLoop.run_step

    def fail(self):
        if self.iter == 2:
            raise error
        run_step(self)

    monkeypatch.setattr(TrainingLoop, "run_step", fail)
    message = get_error(command(opts=EVERY))
    assert "Training stopped at iteration 2. There is not enough memory" in message
    assert "SOLVER.IMS_PER_BATCH" in message
    assert message.endswith("--resume continues from model_0000001.pth.")
    assert "Traceback" not in read_log(out) + capsys.readouterr().out
    monkeypatch.setattr(TrainingLoop, "run_step", run_step)
    train_net.cli(command("--resume", opts=EVERY))
    assert (out / "model_final.pth").exists()


@pytest.mark.slow
def test_a_damaged_state_of_the_trainer(command, out):
    train_net.cli(command(opts=EVERY))
    os.remove(out / "model_final.pth")
    path = out / "model_0000003.pth"
    content = torch.load(path, weights_only=True)
    content["trainer"]["_trainer"]["optimizer"]["param_groups"] = []
    torch.save(content, path)
    (out / "last_checkpoint").write_text(path.name)
    train_net.cli(command("--resume", opts=EVERY))
    assert "Starting training from iteration 3" in read_log(out)
    assert f"{path} cannot be loaded" in read_log(out)


@pytest.mark.parametrize("cause, error", [(KeyboardInterrupt(), KeyboardInterrupt), (None, None)])
def test_a_writer_that_was_interrupted(tmp_path, cause, error):
    """PyTorch's writer raises another error when it is closed."""
    path = tmp_path / "a.pth"
    path.write_text("before")
    with pytest.raises(error or UserError) as caught, written_whole(str(path)) as f:
        f.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] unexpected pos") from cause
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a.pth"]
    if error is None:
        assert "cannot be written" in caught.value.sentence()


def test_two_writers_of_one_file(tmp_path):
    path = tmp_path / "kept.pth"
    with written_whole(str(path)) as first:
        first.write(b"first, ")
        with written_whole(str(path)) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"and longer")
    assert path.read_bytes() == b"first, and longer"
    assert list(tmp_path.iterdir()) == [path]


def test_left_parts_are_removed_after_a_day(tmp_path):
    path = tmp_path / "a.pth"
    old, new = (tmp_path / f"a.pth.0123abc{i}.part" for i in range(2))
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    with written_whole(str(path)) as f:
        f.write(b"whole")
    assert sorted(tmp_path.iterdir()) == [path, new]
