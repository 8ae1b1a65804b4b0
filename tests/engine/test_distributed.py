"""Two CPU processes over gloo: the losses of a batch do not depend on how it is split."""

import pytest
import torch
from conftest import free_port
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import tood  # noqa: F401  (registers the model in the processes that are started)

PHASES = {"warmup": 0, "tal": 1}


def compute_losses(cfg, state_dict, inputs, iteration):
    model = build_model(cfg).train()
    model.load_state_dict(state_dict)
    with EventStorage(start_iter=iteration):
        losses = model(inputs)
    sum(losses.values()).backward()
    return {k: v.detach() for k, v in losses.items()}, model.head.reg_pred.weight.grad


def work(rank, port, cfg, state_dict, inputs, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    for iteration in PHASES.values():
        losses, grad = compute_losses(cfg, state_dict, [inputs[rank]], iteration)
        # What DistributedDataParallel does with the gradients.
        for x in (*losses.values(), grad):
            torch.distributed.all_reduce(x)
            x /= 2
        if rank == 0:
            results.put((iteration, {k: v.item() for k, v in losses.items()}, grad.numpy()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_batch_in_two_processes(tiny_cfg, make_input):
    """One of them has no objects."""
    tiny_cfg.MODEL.TOOD.ATSS_ITERS = 1
    # Enough objects for normalisers above 1 in each half: below, they are cut at 1 once a batch.
    many = [(4.0, 4.0, 60.0, 50.0), (20.0, 10.0, 90.0, 60.0)]
    many += [(x, y, x + 24.0, y + 24.0) for x in (6.0, 34.0, 62.0) for y in (6.0, 34.0)]
    inputs = [
        make_input(64, 96, many, classes=[0, 1, 2, 3] * 2),
        make_input(64, 96, []),
    ]
    state_dict = build_model(tiny_cfg).state_dict()
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    torch.multiprocessing.spawn(
        work, (free_port(), tiny_cfg, state_dict, inputs, results), nprocs=2, join=True
    )
    for _ in PHASES:
        iteration, split, split_grad = results.get()
        whole, grad = compute_losses(tiny_cfg, state_dict, inputs, iteration)
        assert whole["loss_box_reg"] > 0
        for name in whole:
            assert split[name] == pytest.approx(whole[name].item(), rel=1e-4), name
        torch.testing.assert_close(torch.from_numpy(split_grad), grad, atol=1e-5, rtol=1e-3)
