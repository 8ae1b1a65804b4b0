"""The order of training images, and training that is taken up again."""

import itertools
import random
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from torch.utils.data import DataLoader

import train_net
from tood.data.loader import AugmentedDataset, GuardedLoader, TrainingBatches, TrainingLoader

GROUPS = [0, 1, 1, 0, 1, 0, 0]


def take(batches, n):
    return list(itertools.islice(iter(batches), n))


def test_batches_hold_every_image_once_an_epoch():
    keys = sum(take(TrainingBatches([0] * 7, 1, seed=3), 21), [])
    assert sorted(keys) == list(range(21))
    # As Detectron2 orders them.
    expected = itertools.islice(iter(TrainingSampler(7, seed=3)), 21)
    assert [key % 7 for key in keys] == list(expected)
    assert take(TrainingBatches([0] * 7, 1, seed=4), 21) != [[key] for key in keys]


def test_a_batch_is_of_one_group():
    for batch in take(TrainingBatches(GROUPS, 3, seed=0), 30):
        assert len(batch) == 3 and len({GROUPS[key % 7] for key in batch}) == 1


FACTORS = torch.tensor([1.0, 2.5, 1.0, 1.0, 3.0, 1.0, 1.25])


def test_repeated_images_come_as_detectron2_orders_them():
    keys = sum(take(TrainingBatches([0] * 7, 1, seed=3, repeat_factors=FACTORS), 1000), [])
    expected = itertools.islice(iter(RepeatFactorTrainingSampler(FACTORS, seed=3)), 1000)
    indices = [key % 7 for key in keys]
    assert indices == list(expected)
    shares = np.bincount(indices) / 1000
    assert np.allclose(shares, FACTORS / FACTORS.sum(), atol=0.01)
    # Every time of an image has another key, and so another augmentation.
    assert len(set(keys)) == 1000
    times = [key // 7 for key in keys if key % 7 == 4]
    assert times == list(range(len(times)))


@pytest.mark.parametrize("factors", [None, FACTORS], ids=["once", "repeated"])
@pytest.mark.parametrize("skip", [1, 2, 5, 17])
def test_skipped_batches_are_those_from_before(skip, factors):
    whole = take(TrainingBatches(GROUPS, 3, seed=0, repeat_factors=factors), 30)
    skipped = TrainingBatches(GROUPS, 3, seed=0, skip=skip, repeat_factors=factors)
    assert take(skipped, 30 - skip) == whole[skip:]


def test_processes_share_repeated_images():
    options = dict(seed=0, repeat_factors=FACTORS, world_size=2)
    shares = [sum(take(TrainingBatches([0] * 7, 2, rank=r, **options), 20), []) for r in (0, 1)]
    alone = sum(take(TrainingBatches([0] * 7, 2, seed=0, repeat_factors=FACTORS), 40), [])
    assert [key for pair in zip(*shares) for key in pair] == alone


def test_processes_share_the_images():
    shares = [take(TrainingBatches([0] * 6, 1, seed=0, rank=r, world_size=2), 3) for r in (0, 1)]
    assert sorted(sum(shares[0] + shares[1], [])) == list(range(6))


def draw(record):
    return {**record, "drawn": (np.random.rand(), random.random())}


def test_what_a_mapper_draws_follows_from_seed_and_key():
    dataset = AugmentedDataset([{"i": i} for i in range(4)], draw, seed=5)
    first = [dataset[key] for key in (1, 5, 1)]
    assert first[0] == first[2] and first[0]["i"] == first[1]["i"] == 1
    assert first[0]["drawn"] != first[1]["drawn"]  # another epoch
    assert AugmentedDataset([{"i": i} for i in range(4)], draw, seed=6)[1] != first[0]
    np.random.seed(0)
    dataset[2]
    after = np.random.rand()
    np.random.seed(0)
    assert np.random.rand() == after  # nothing else notices


def test_workers_change_nothing():
    dataset = AugmentedDataset([{"i": i} for i in range(7)], draw, seed=5)
    loaders = [TrainingLoader(dataset, TrainingBatches(GROUPS, 2, seed=1), n) for n in (0, 2)]
    assert take(loaders[0], 9) == take(loaders[1], 9)


GUARDED = """
import os, signal, subprocess, sys, time
from torch.utils.data import DataLoader
from tood.data.loader import GuardedLoader

def main(images):
    loader = GuardedLoader(DataLoader(images, num_workers=2, prefetch_factor=2))
    pids = set()
    for pid in loader:
        pids.add(pid.item())
        yield pids

class Pids:
    def __len__(self):
        return 400

    def __getitem__(self, index):
        time.sleep(0.01)
        return os.getpid()

os.setsid()
"""


@pytest.fixture
def run_guarded(warm_python):
    def run(code):
        argv = [warm_python, "-c", GUARDED + textwrap.dedent(code)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60)

    return run


def test_workers_live_on_after_signals_to_the_group(run_guarded):
    done = run_guarded(
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for count, pids in enumerate(main(Pids())):
            if count == 20:
                for name in ("INT", "TERM", "HUP"):  # from another process
                    kill = ["kill", "-" + name, "--", f"-{os.getpgrp()}"]
                    subprocess.run(kill, start_new_session=True, check=True)
        print(count, len(pids))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "399 2\n", "")


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_with_their_parent(run_guarded):
    done = run_guarded(
        """
        for count, pids in enumerate(main(Pids())):
            if count == 20:
                print(*pids, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert done.returncode == -signal.SIGKILL
    pids = done.stdout.split()
    end = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(map(is_alive, pids))


def test_a_killed_worker_is_noticed_at_a_batch_alone(run_guarded):
    """Not in the work between: PyTorch's own handler raises wherever the process happens to be."""
    done = run_guarded(
        """
        from tood.utils.errors import UserError

        try:
            for count, pids in enumerate(main(Pids())):
                if count == 20:
                    os.kill(min(pids), signal.SIGKILL)
                    time.sleep(0.5)
                    print("worked on", flush=True)
        except UserError as error:
            print(error)
        """
    )
    first, second = done.stdout.splitlines()
    assert first == "worked on" and "was killed" in second and "NUM_WORKERS" in second
    assert (done.returncode, done.stderr) == (0, "")


class Failing:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise RuntimeError("a bug")


def test_the_error_of_a_worker_is_its_own():
    with pytest.raises(RuntimeError, match="a bug"):
        list(GuardedLoader(DataLoader(Failing(), num_workers=1)))


def weights(out):
    return torch.load(out / "model_final.pth", map_location="cpu", weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [7, -1], ids=["seeded", "unseeded"])
@pytest.mark.parametrize("warmup", [6, 0], ids=["warmup", "tal"])
def test_resumed_training_ends_with_the_same_weights(command, tmp_path, monkeypatch, warmup, seed):
    out = tmp_path / "out"
    augmentations = ["mosaic", "scale_jitter"] if (warmup, seed) == (0, -1) else []
    opts = ["SOLVER.MAX_ITER", "6", "MODEL.TOOD.ATSS_ITERS", str(warmup), "SEED", str(seed)]
    opts += ["SOLVER.CHECKPOINT_PERIOD", "3", "DATASETS.TEST", "()"]
    opts += ["MODEL.TOOD.EMA_DECAY", "0.9", "INPUT.AUGMENTATIONS", str(augmentations)]
    argv = command(opts=opts)
    del argv[argv.index("--val-data") : argv.index("--val-data") + 2]
    train_net.cli(argv)
    expected = weights(out)

    # As if it had been killed in the fifth step: only the checkpoint of the third is there.
    for name in ("model_0000005.pth", "model_final.pth"):
        (out / name).unlink()
    (out / "last_checkpoint").write_text("model_0000002.pth")
    train_net.cli([argv[0], argv[1], "--resume", *argv[2:]])
    actual = weights(out)
    assert "Starting training from iteration 3" in (out / "log.txt").read_text()
    for name, weight in expected["model"].items():
        assert torch.equal(actual["model"][name], weight), name
    assert actual["ema"]["num_steps"] == 6
    for name, average in expected["ema"]["model"].items():
        assert torch.equal(actual["ema"]["model"][name], average), name
    momenta = [c["trainer"]["_trainer"]["optimizer"]["state"] for c in (expected, actual)]
    assert all(
        torch.equal(a["momentum_buffer"], momenta[1][i]["momentum_buffer"])
        for i, a in momenta[0].items()
    )
    assert expected["trainer"]["scheduler"] == actual["trainer"]["scheduler"]
