"""``train_net.py`` as its users call it: small real runs, and mistakes."""

import json
import re
import subprocess

import pytest
import torch
from conftest import CONFIG, ROOT, complaint, get_error, setup_run
from detectron2.utils.events import EventStorage
from PIL import Image

import train_net
from tood.engine import train as engine_train
from tood.engine.optimizer import clipped_sgd


@pytest.mark.slow
def test_train_and_evaluate(command, tmp_path):
    train_net.cli(command())
    out = tmp_path / "out"
    assert "AP50" in (out / "log.txt").read_text()
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert {"loss_cls", "loss_box_reg", "bbox/AP"} <= set().union(*metrics)

    # The checkpoint alone detects what the model did at the end of training.
    weights = ["MODEL.WEIGHTS", str(out / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "eval")]
    train_net.cli(command("--eval-only", opts=weights))
    results = "inference/coco_instances_results.json"
    detections = json.loads((out / results).read_text())
    assert len(detections) > 100
    assert detections == json.loads((tmp_path / "eval" / results).read_text())


@pytest.mark.slow
def test_resume_goes_on_with_optimizer_and_schedule(command, tmp_path):
    out = tmp_path / "out"
    train_net.cli(command())
    trained = torch.load(out / "model_final.pth", map_location="cpu")
    args = train_net.parse_args(command("--resume", opts=["SOLVER.MAX_ITER", "6"]))
    trainer = engine_train.Trainer(setup_run(args))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4
    assert trainer.scheduler.last_epoch == 4
    for name, value in trainer._trainer.model.state_dict().items():
        assert torch.equal(value, trained["model"][name])
    saved = trained["trainer"]["_trainer"]["optimizer"]["state"]
    loaded = trainer._trainer.optimizer.state_dict()["state"]
    assert len(loaded) == len(saved) > 50
    assert any(state["momentum_buffer"].abs().sum() > 0 for state in saved.values())
    for i, state in saved.items():
        assert torch.equal(state["momentum_buffer"], loaded[i]["momentum_buffer"])

    del trained["trainer"]["_trainer"]  # as Detectron2 v0.6 writes it
    torch.save(trained, out / "model_final.pth")
    train_net.cli(command("--resume", opts=["SOLVER.MAX_ITER", "5"]))
    log = (out / "log.txt").read_text()
    assert "Starting training from iteration 4" in log
    assert "its momentum starts from zero" in log


# Of gradients of norm 100 and 10, with a bound of 2.
CLIPPED = {"full_model": 2.0, "norm": 8**0.5, "value": 10100**0.5}


@pytest.mark.parametrize("clip_type", CLIPPED)
def test_gradient_clipping(tiny_cfg, clip_type):
    tiny_cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    tiny_cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 2.0
    tiny_cfg.SOLVER.WEIGHT_DECAY = tiny_cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    tiny_cfg.SOLVER.BASE_LR, tiny_cfg.SOLVER.MOMENTUM = 1.0, 0.0
    model = torch.nn.Linear(100, 100)
    optimizer = engine_train.Trainer.build_optimizer(tiny_cfg, model)
    assert measure_step(model, optimizer) == pytest.approx(CLIPPED[clip_type], rel=1e-3)


@pytest.mark.parametrize("each, clip_type", [(False, "full_model"), (True, "norm")])
def test_gradient_clipping_of_configs_in_python(each, clip_type):
    model = torch.nn.Linear(100, 100)
    optimizer = clipped_sgd(model.parameters(), lr=1.0, max_norm=2.0, each=each)
    assert measure_step(model, optimizer) == pytest.approx(CLIPPED[clip_type], rel=1e-3)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, "inf"])
def test_each_gradient_is_clipped_as_by_pytorch(norm_type):
    ours, theirs = (torch.nn.ParameterList(torch.zeros(n) for n in (1, 7, 90)) for _ in range(2))
    optimizer = clipped_sgd(ours, lr=1.0, max_norm=2.0, norm_type=norm_type, each=True)
    optimizer.step()  # without gradients
    assert not any(p.any() for p in ours)
    for x, y in zip(ours[1:], theirs[1:]):  # the first one has none
        x.grad = torch.randn(len(x), generator=torch.Generator().manual_seed(len(x)))
        y.grad = x.grad.clone()
        torch.nn.utils.clip_grad_norm_(y, 2.0, norm_type)
    optimizer.step()
    assert not ours[0].any()
    for x, y in zip(ours[1:], theirs[1:]):
        torch.testing.assert_close(-x.detach(), y.grad)


def measure_step(model, optimizer):
    """Return how far a step by gradients of ones moves the parameters."""
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return (torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm().item()


def test_objects_without_size_do_not_count_in_evaluation(shapes, tmp_path):
    content = json.loads((shapes / "annotations.json").read_text())
    empty = dict(content["annotations"][0], id=10**6, bbox=[3, 3, 0, 5], area=0)
    content["annotations"].append(empty)
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    entry = f"{path}:{shapes}/images"
    cfg = engine_train.load_config(CONFIG, ["MODEL.TOOD.NUM_CLASSES", "4"], val_data=[entry])
    engine_train.prepare_datasets(engine_train.run_options(cfg).data, training=False)
    evaluator = engine_train.Trainer.build_evaluator(cfg, entry)
    assert len(evaluator._coco_api.anns) == len(content["annotations"]) - 1


@pytest.mark.slow
def test_same_seed_same_weights(command, tmp_path):
    states = []
    for run in ("a", "b"):
        out = tmp_path / run
        train_net.cli(command(opts=["OUTPUT_DIR", str(out), "TEST.EVAL_PERIOD", "0"]))
        states.append(torch.load(out / "model_final.pth", map_location="cpu")["model"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_warnings_of_a_short_training(command, out):
    opts = ["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "MODEL.TOOD.ATSS_ITERS", "9"]
    train_net.cli(command("--resume", opts=opts))
    log = (out / "log.txt").read_text()
    assert "--resume: no checkpoint in" in log and "training from the start" in log
    assert "The 9 iterations of ATSS (MODEL.TOOD.ATSS_ITERS)" in log


def test_no_gpu_is_said_and_the_cpu_is_used(command, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level("WARNING", logger="tood"):
        cfg = engine_train.load_config(CONFIG)
    assert cfg.MODEL.DEVICE == "cpu"
    assert "No GPU found" in caplog.text


URL = "tcp://10.0.0.1:29500"
ONE, TWO = ["--num-machines", "1"], ["--num-machines", "2"]


@pytest.mark.parametrize("eval_only", [False, True])
@pytest.mark.parametrize(
    "flags, says",
    [
        ([*TWO, "--num-gpus", "0"], "--num-machines is 2, but --num-gpus is 0; several machines"),
        ([*TWO, "--dist-url", URL], "--num-machines is 2, but PyTorch finds no GPU here; several"),
        (["--num-machines", "0"], "--num-machines is 0; it must be at least 1."),
        (["--machine-rank", "5"], "less than --num-machines, which is 1."),
        ([*TWO, "--machine-rank", "2"], "--machine-rank is 2; it must be at least 0 and less than"),
        (["--machine-rank", "-1"], "--machine-rank is -1; it must be at least 0 and less than"),
        (["--dist-url", "foo"], "--dist-url is 'foo'; it must be an address like tcp://HOST:PORT."),
        (["--dist-url", URL], f"--dist-url is {URL}, but this run has one process, which connects"),
    ],
)
def test_flags_of_processes_that_do_not_start(command, out, monkeypatch, flags, says, eval_only):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = get_error(command(*flags, *(["--eval-only"] if eval_only else [])))
    assert says in message and not out.exists()


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--num-gpus", "2"], None),
        (["--num-gpus", "2", "--dist-url", URL], None),
        ([*TWO, "--machine-rank", "1", "--dist-url", URL], None),
        ([*ONE, "--dist-url", "auto"], None),
        (TWO, "address of the first machine on all of them with --dist-url tcp://HOST:PORT."),
        ([*TWO, "--dist-url", "10.0.0.1"], "--dist-url is '10.0.0.1'; it must be an address"),
        ([*TWO, "--num-gpus", "0", "--dist-url", URL], "2, but --num-gpus is 0; several machines"),
        (["--dist-url", URL], "but this run has one process"),
    ],
)
def test_flags_of_processes_on_gpus(monkeypatch, flags, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run = train_net.parse_args(flags)
    if says is None:
        engine_train.check_machines(run)
    else:
        assert says in complaint(engine_train.check_machines, run)


def test_eval_only_needs_weights(command, tmp_path):
    assert "--eval-only needs weights" in get_error(command("--eval-only"))
    assert "--eval-only needs weights" in get_error(command("--eval-only", "--resume"))
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_there(command):
    message = get_error(command(opts=["MODEL.WEIGHTS", "no/such.pth"]))
    assert "no/such.pth" in message and "MODEL.WEIGHTS" in message


@pytest.mark.parametrize(
    "content, says",
    [
        ({"model": {"fc.weight": torch.zeros(2, 2)}}, "do not fit the config"),
        ({"model": {"backbone.bottom_up.stem.conv1.weight": torch.ones(64, 3, 7, 7)}}, "lack"),
        ([1, 2], "other.pth"),
    ],
)
def test_weights_of_another_kind_are_not_evaluated(command, tmp_path, content, says):
    torch.save(content, tmp_path / "other.pth")
    message = get_error(command("--eval-only", opts=["MODEL.WEIGHTS", f"{tmp_path}/other.pth"]))
    assert says in message and ("fit the config" in message or content == [1, 2])


def test_damaged_weights(command, tmp_path):
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"PK\x03\x04 and nothing more")
    message = get_error(command(opts=["MODEL.WEIGHTS", str(damaged)]))
    assert "damaged.pth is damaged" in message
    out = tmp_path / "out"
    (out / "last_checkpoint").write_text("model_gone.pth")
    assert "model_gone.pth cannot be loaded" in get_error(command("--resume"))


def test_missing_config_file(tmp_path):
    assert "no/such.yaml does not exist" in get_error(["--config-file", "no/such.yaml"])
    assert "META_ARCHITECTURE is GeneralizedRCNN, not TOOD" in get_error([])
    broken = tmp_path / "broken.yaml"
    for text, says in (
        ("MODEL: [", "cannot be read: while parsing"),
        ("_BASE_: gone.yaml", "gone.yaml (_BASE_), which does not exist"),
        ("MODEL: 3", "broken.yaml or an option after it is wrong"),
    ):
        broken.write_text(text)
        assert says in get_error(["--config-file", str(broken)])


@pytest.mark.parametrize(
    "opts, says",
    [
        (["MODEL.TOOD.NUM_CLASES", "3"], "MODEL.TOOD.NUM_CLASES"),
        (["SOLVER.MAX_ITERS", "3"], "did you mean"),
        (["SOLVER.MAX_ITER", "many"], "many"),
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER"),
        (["MODEL.TOOD.NUM_CLASSES.X", "3"], "wrong"),
    ],
)
def test_wrong_option(opts, says):
    assert says in get_error(["--config-file", CONFIG, *opts])


@pytest.mark.parametrize(
    "data, says",
    [
        ("no/missing.json", "missing.json cannot be read"),
        ("coco_2017_trian", "did you mean coco_2017_train"),
    ],
)
def test_wrong_data_leaves_no_output(command, out, data, says):
    message = get_error(command(train=data))
    assert says in message and data in message and not out.exists()


@pytest.mark.slow
def test_exit_status_and_message_of_the_command(shapes, tmp_path, command, warm_python):
    # Images that look whole, but that a worker process cannot read.
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (shapes / "images").iterdir():
        Image.open(path).save(broken / path.name, format="PNG")
        png = (broken / path.name).read_bytes()
        (broken / path.name).write_bytes(png[:200] + bytes(200) + png[400:])
    argv = command(
        train=f"{shapes}/annotations.json:{broken}", opts=["DATALOADER.NUM_WORKERS", "1"]
    )
    words = [warm_python, str(ROOT / "train_net.py"), *argv]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: The image ") and "cannot be used" in last
    assert str(broken) in last


@pytest.mark.parametrize("key", ["MODEL.TOOD.PRECISION_TRAIN bfloat16", "SOLVER.AMP.ENABLED True"])
def test_training_in_half_precision(command, key):
    args = train_net.parse_args(command(opts=key.split()))
    trainer = engine_train.Trainer(setup_run(args))
    dtypes = set()
    trainer.model.head.reg_pred.register_forward_hook(lambda *x: dtypes.add(x[-1].dtype))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    for trainer.iter in range(2):
        with EventStorage(trainer.iter) as storage:
            trainer.run_step()
        assert storage.latest()["grad_norm"][0] > 0
    assert dtypes == {torch.bfloat16}
    for parameter in trainer.model.parameters():
        assert parameter.dtype == torch.float32
        assert torch.isfinite(parameter).all()
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())


def test_precision_that_cannot_be_had(command):
    message = get_error(command(opts=["MODEL.TOOD.PRECISION_TEST", "half"]))
    assert "PRECISION_TEST is 'half'" in message and "bfloat16" in message
    message = get_error(command(opts=["MODEL.TOOD.PRECISION_TRAIN", "float16"]))
    assert "float16 needs a GPU" in message


def test_divergence_stops_training(command, tmp_path):
    diverge = ["SOLVER.BASE_LR", "1e12", "SOLVER.WARMUP_ITERS", "0", "SOLVER.MAX_ITER", "30"]
    diverge += ["SOLVER.CLIP_GRADIENTS.ENABLED", "False", "SOLVER.CHECKPOINT_PERIOD", "1"]
    message = get_error(command(opts=diverge))
    iteration = int(re.search(r"stopped at iteration (\d+), before the optimizer step", message)[1])
    assert iteration < 30
    assert "largest gradient is that of" in message and re.search(r"/\d{5}\.jpg", message)
    # The last checkpoint is of the step before, and sound.
    out = tmp_path / "out"
    if iteration > 0:
        last = (out / "last_checkpoint").read_text()
        assert last == f"model_{iteration - 1:07d}.pth"
        weights = torch.load(out / last, map_location="cpu")["model"]
        assert all(torch.isfinite(w).all() for w in weights.values() if w.is_floating_point())
    assert not (out / "model_final.pth").exists()
