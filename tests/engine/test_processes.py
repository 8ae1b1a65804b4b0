"""Processes that torchrun or SLURM starts: what the environment says, and whole trainings."""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest
import torch
from conftest import EXTENSIONS, ROOT, complaint, free_port
from detectron2.modeling import build_model

import train_net
from tood.engine.launch import Place, first_host, launch, place_from_environment
from tood.engine.step import check_gradients
from tood.utils.errors import UserError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
TORCHRUN.update(MASTER_ADDR="a", MASTER_PORT="5")
SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def test_torchrun():
    assert place_from_environment(TORCHRUN) == Place(3, 8, 1, "a", 5)


def test_slurm():
    assert place_from_environment(SLURM) == Place(3, 8, 1, "gpu07", 23456)
    own = {**SLURM, "MASTER_ADDR": "here", "MASTER_PORT": "99"}
    assert place_from_environment(own) == Place(3, 8, 1, "here", 99)
    assert place_from_environment({**SLURM, **TORCHRUN}) == Place(3, 8, 1, "a", 5)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"},
        # The script of a job, before srun: one process, for any number that the job asked for.
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_one_process(environ):
    assert place_from_environment(environ) is None


@pytest.mark.parametrize(
    "key, value", [("LOCAL_RANK", None), ("WORLD_SIZE", "many"), ("RANK", "-1")]
)
def test_environment_that_cannot_be(key, value):
    environ = {k: v for k, v in {**TORCHRUN, key: value}.items() if v is not None}
    with pytest.raises(UserError, match=f"{key} is {value!r}"):
        place_from_environment(environ)


@pytest.mark.parametrize(
    "node_list, host",
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-09,12],other3", "gpu07"),
        ("gpu[4,7]", "gpu4"),
        ("rack[1-2]-ib", "rack1-ib"),
        ("", "127.0.0.1"),
    ],
)
def test_first_host(node_list, host):
    assert first_host(node_list) == host


@pytest.mark.parametrize(
    "text",
    [
        "[../gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4",
        "[Rank 0] op=BARRIER ... Read error [127.0.0.1]:5: Connection reset by peer. GLHF!",
        "NCCL error in: remote process exited or there was a network error",
    ],
)
def test_another_process_has_ended(text):
    args = SimpleNamespace(num_gpus=0, num_machines=1, machine_rank=0, dist_url="auto")

    def main(args):
        raise RuntimeError(text)

    with pytest.raises(UserError, match="Another process .* has ended; .* --resume"):
        launch(main, args)
    with pytest.raises(RuntimeError, match="a bug"):
        text = "a bug"
        launch(main, args)


@pytest.fixture
def half_empty(shapes, tmp_path):
    """The shapes, of which every other image has no objects."""
    content = json.loads((shapes / "annotations.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] % 2]
    (tmp_path / "half.json").write_text(json.dumps(content))
    return f"{tmp_path}/half.json:{shapes}/images"


@pytest.mark.slow
def test_two_processes_train_as_one_does(command, half_empty, tmp_path, tiny_cfg, warm_python):
    """Batches of two images, one in each process, some without an object."""
    start = build_model(tiny_cfg).state_dict()
    torch.save({"model": start}, tmp_path / "start.pth")
    opts = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "TEST.EVAL_PERIOD", "2"]
    opts += ["MODEL.TOOD.EMA_DECAY", "0.9", "MODEL.TOOD.VAL_LOSS", "True", "VIS_PERIOD", "2"]
    opts += ["MODEL.TOOD.EARLY_STOP_PATIENCE", "9", "MODEL.TOOD.EVAL_ALIGNMENT", "True"]
    opts += ["MODEL.WEIGHTS", str(tmp_path / "start.pth"), "SOLVER.WARMUP_ITERS", "0"]
    # Rounding is compared with the way of the weights, which clipping would shorten.
    opts += ["SOLVER.CLIP_GRADIENTS.ENABLED", "False"]
    outs = {name: tmp_path / name for name in ("one", "torchrun", "srun")}
    argv = {
        name: command(train=half_empty, val=half_empty, opts=[*opts, "OUTPUT_DIR", str(out)])
        for name, out in outs.items()
    }
    train_net.cli(argv["one"])
    script = str(ROOT / "train_net.py")
    quiet = dict(os.environ, OMP_NUM_THREADS="1")
    torchrun = [warm_python, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-port", str(free_port()), script, *argv["torchrun"]]
    started = [subprocess.Popen(torchrun, env=quiet, stdout=subprocess.DEVNULL)]
    slurm = {**quiet, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in "01":
        slurm.update(SLURM_STEP_NUM_TASKS="2", SLURM_PROCID=rank, SLURM_LOCALID=rank)
        words = [warm_python, script, *argv["srun"]]
        started.append(subprocess.Popen(words, env=slurm, stdout=subprocess.DEVNULL))
    assert [process.wait(timeout=240) for process in started] == [0, 0, 0]

    one, *others = (torch.load(out / "model_final.pth", weights_only=True) for out in outs.values())
    for other in others:
        assert other["iteration"] == one["iteration"] == 3
        way = sum((x - start[name]).double().norm() ** 2 for name, x in one["model"].items())
        apart = sum(
            (x - other["model"][name]).double().norm() ** 2 for name, x in one["model"].items()
        )
        assert 0 < apart.sqrt() < 0.01 * way.sqrt()
    metrics = [(out / "metrics.json").read_text().splitlines()[-1] for out in outs.values()]
    one, *others = (json.loads(line) for line in metrics)
    compared = ["val_loss/loss_cls", "val_loss/loss_box_reg", "alignment/IoU", "alignment/objects"]
    for other in others:
        assert {k: other[k] for k in compared} == pytest.approx(
            {k: one[k] for k in compared}, rel=0.05
        )


def test_parameters_that_no_loss_trains(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    model[2].requires_grad_(False)
    model[0](torch.ones(1, 1)).sum().backward()
    check_gradients(model)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    assert "depends on 1.weight, 1.bias, which several" in complaint(check_gradients, model)
    wrapped = torch.nn.ModuleDict({"module": model})  # as PyTorch's wrapper names them
    assert "depends on 1.weight, 1.bias, which several" in complaint(check_gradients, wrapped)
    model[2].requires_grad_(True)
    assert "1.weight, 1.bias, 2.weight and 1 more, which" in complaint(check_gradients, model)
    sum(p.sum() for p in model.parameters()).backward()
    check_gradients(model)


@pytest.mark.slow
def test_an_extra_without_a_loss_ends_all_processes(command, tmp_path, warm_python):
    """The head of docs/extending.md without the loss that it shows."""
    script = tmp_path / "train_mine.py"
    paths = [str(ROOT), str(EXTENSIONS)]
    script.write_text(
        f"import sys\nsys.path[:0] = {paths}\nimport head, train_net\ntrain_net.cli()\n"
    )
    torchrun = [warm_python, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-port", str(free_port()), str(script)]
    torchrun += command(opts=["MODEL.TOOD.HEAD", "UncertainHead"])
    done = subprocess.run(torchrun, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    says = "error: No loss depends on head.uncertainty.weight, head.uncertainty.bias, which several"
    assert says in done.stderr
    output = done.stdout + (tmp_path / "out" / "log.txt").read_text()
    assert "Expected to have finished" not in output + done.stderr and "Traceback" not in output


@pytest.mark.slow
def test_a_mistake_ends_all_processes(command, shapes, tmp_path, warm_python):
    argv = command(train=f"{shapes}/annotations.json:{tmp_path}")  # no images there
    torchrun = [warm_python, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-port", str(free_port()), str(ROOT / "train_net.py"), *argv]
    done = subprocess.run(torchrun, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    # Both say it, though one has looked, and nothing is written.
    assert done.stderr.count("error: ") >= 2 and "8 images that are not there" in done.stderr
    assert "Connection" not in done.stderr and not (tmp_path / "out").exists()
