"""The order of training images, and training that is taken up again."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler

import train_net
from tood.data.loader import AugmentedDataset, TrainingBatches, TrainingLoader

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


@pytest.mark.parametrize("skip", [1, 2, 5, 17])
def test_skipped_batches_are_those_from_before(skip):
    whole = take(TrainingBatches(GROUPS, 3, seed=0), 30)
    assert take(TrainingBatches(GROUPS, 3, seed=0, skip=skip), 30 - skip) == whole[skip:]


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


def weights(out):
    return torch.load(out / "model_final.pth", map_location="cpu", weights_only=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [7, -1], ids=["seeded", "unseeded"])
@pytest.mark.parametrize("warmup", [6, 0], ids=["warmup", "tal"])
def test_resumed_training_ends_with_the_same_weights(command, tmp_path, monkeypatch, warmup, seed):
    out = tmp_path / "out"
    opts = ["SOLVER.MAX_ITER", "6", "MODEL.TOOD.ATSS_ITERS", str(warmup), "SEED", str(seed)]
    opts += ["SOLVER.CHECKPOINT_PERIOD", "3", "DATASETS.TEST", "()"]
    opts += ["MODEL.TOOD.EMA_DECAY", "0.9"]
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
