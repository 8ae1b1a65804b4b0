"""The processes of a training: one, those that Detectron2 starts, or those that torchrun or SLURM
has started already and describes in the environment.
"""

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import socket
from typing import Callable, Iterator, List, Mapping, NamedTuple, Optional

import torch
import torch.distributed as dist
from detectron2 import engine
from detectron2.utils import comm

from tood.utils.errors import UserError
from tood.utils.signals import Stopped

# What gloo and NCCL say when the process at the other end of a connection has ended.
_LOST_PEER = re.compile("(closed|reset) by peer|Broken pipe|remote process exited")


class Place(NamedTuple):
    """The rank of this process, and the address where the first process waits for the others."""

    rank: int
    world_size: int
    local_rank: int  # among the processes of this machine
    master_addr: str
    master_port: int


def launch(main: Callable, args):
    """Call ``main(args)`` in all processes of a training: in this one, as one of those that
    torchrun or SLURM has started, if they did, and otherwise by Detectron2's ``launch``.

    Args:
        args: namespace with "num_gpus", "num_machines", "machine_rank" and "dist_url".

    Returns:
        what ``main`` returns, unless Detectron2 starts other processes.

    Raises:
        UserError: in the remaining processes when one of them has ended.
    """
    main = functools.partial(_call, main)
    place = place_from_environment(os.environ)
    if place is None and args.num_gpus * args.num_machines <= 1:
        return main(args)
    if place is None:
        with _passing_signals_on():
            return engine.launch(
                main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    _join(place)
    result = main(args)
    dist.destroy_process_group()
    return result


@contextlib.contextmanager
def _passing_signals_on() -> Iterator[None]:
    """Stop the processes that this one has started, and wait for their checkpoint."""
    try:
        yield
    except (KeyboardInterrupt, Stopped) as error:
        for process in multiprocessing.active_children():
            os.kill(process.pid, getattr(error, "number", signal.SIGINT))
            process.join()
        raise


def _call(main: Callable, args):
    try:
        return main(args)
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise UserError(
            "Another process of this training has ended; its output says why (if it says nothing, "
            "it was killed, perhaps for lack of memory). Continue from the last checkpoint with "
            "--resume."
        ) from error


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error says that another process of the training has ended."""
    return isinstance(error, RuntimeError) and bool(_LOST_PEER.search(str(error)))


def place_from_environment(environ: Mapping[str, str]) -> Optional[Place]:
    """Return this process's place; None for a single one, or a SLURM script outside of ``srun``.

    Raises:
        UserError: if torchrun's or SLURM's variables are incomplete or not numbers.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        keys, nodes = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), ""
    elif _integer(environ, "SLURM_STEP_NUM_TASKS", default=1) > 1:  # srun alone sets it
        keys = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    else:
        return None
    rank, world_size, local_rank = (_integer(environ, key) for key in keys)
    if world_size == 1:
        return None
    master_addr = environ.get("MASTER_ADDR") or first_host(nodes)
    # Jobs that share a machine must not share a port.
    port = 20000 + _integer(environ, "SLURM_JOB_ID", default=9500) % 20000
    port = _integer(environ, "MASTER_PORT", default=port)
    return Place(rank, world_size, local_rank, master_addr, port)


def first_host(node_list: str) -> str:
    """Return the host of rank 0: "node07" for SLURM's "node[07-09,12],other3"."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", node_list)
    if match is None:
        return "127.0.0.1"
    name, number, suffix = match.groups(default="")
    return name + number + suffix


def _integer(environ: Mapping[str, str], key: str, default: Optional[int] = None) -> int:
    value = environ.get(key)
    if value is None and default is not None:
        return default
    if value is None or not value.isdecimal():
        raise UserError(
            f"The environment variable {key} is {value!r}, but it must be a number; start "
            "all processes by torchrun or srun, or unset RANK, WORLD_SIZE and SLURM_STEP_NUM_TASKS."
        )
    return int(value)


def _join(place: Place) -> None:
    """Join the process group, and set Detectron2's group of the processes on this machine."""
    on_gpu, num_gpus = torch.cuda.is_available(), torch.cuda.device_count()
    # A process that sees only one GPU uses it alone: SLURM's --gpus-per-task 1.
    device = place.local_rank if num_gpus > 1 else 0
    if on_gpu and device >= num_gpus:
        raise UserError(
            f"This is process {place.local_rank} on a machine with {num_gpus} GPUs, counted from "
            "0; start as many processes on a machine as it has GPUs."
        )
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        # torchrun's agent listens at the address already; env:// knows how to join it.
        init_method="env://"
        if "TORCHELASTIC_RUN_ID" in os.environ
        else f"tcp://{place.master_addr}:{place.master_port}",
        rank=place.rank,
        world_size=place.world_size,
    )
    if on_gpu:
        torch.cuda.set_device(device)
    # As Detectron2's launch does; v0.6 has no function for it.
    hosts: List[str] = [""] * place.world_size
    dist.all_gather_object(hosts, socket.gethostname())
    for host in dict.fromkeys(hosts):
        group = dist.new_group([rank for rank, other in enumerate(hosts) if other == host])
        if host == socket.gethostname():
            comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()
