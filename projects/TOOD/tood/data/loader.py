"""Training images in an order that can be resumed: batch n, with its augmentation, is the same in a
training that ran through and in one that was stopped and resumed before it. The random numbers of
Detectron2's loader depend on its start and its workers.
"""

import contextlib
import copy
import functools
import itertools
import random
import re
import signal
import traceback
from typing import Callable, Dict, Iterator, List, Optional, Sequence

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from tood.utils.errors import UserError
from tood.utils.signals import end_with_parent, is_main_thread


class AugmentedDataset(Dataset):
    """Records through a mapper. A key is ``time * len(records) + index``, where the time counts how
    often the image came before, and all random numbers of NumPy and of Python that the mapper draws
    follow from the seed and the key alone.
    """

    def __init__(self, records: List[Dict], mapper: Callable[[Dict], Dict], seed: int):
        self.records = DatasetFromList(records)  # in a form that workers share
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int) -> Dict:
        states = random.getstate(), np.random.get_state()
        for_python, for_numpy = np.random.SeedSequence([self.seed, key]).generate_state(2)
        random.seed(int(for_python))
        np.random.seed(for_numpy)
        try:
            return self.mapper(self.records[key % len(self)])
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class TrainingBatches(Sampler):
    """Endless batches of one process: lists of keys of :class:`AugmentedDataset`. Every epoch is
    shuffled, in the order of Detectron2's ``TrainingSampler``, or of its
    ``RepeatFactorTrainingSampler`` if images are repeated.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        skip: int = 0,
        repeat_factors: Optional[torch.Tensor] = None,
    ):
        """
        Args:
            groups: group of each image; a batch is of one group, as Detectron2's wide and tall
                images.
            batch_size: number of images per batch of this process.
            seed: seed of the order, the same in all processes.
            skip: number of earlier batches.
            repeat_factors: float32, mean number of times that each image comes in an epoch, at
                least 1; default: once.
        """
        self.groups, self.batch_size, self.repeat_factors = groups, batch_size, repeat_factors
        self.seed, self.rank, self.world_size, self.skip = seed, rank, world_size, skip

    def __iter__(self) -> Iterator[List[int]]:
        return itertools.islice(self._all_batches(), self.skip, None)

    def _all_batches(self) -> Iterator[List[int]]:
        waiting: Dict[int, List[int]] = {group: [] for group in self.groups}
        for key in itertools.islice(self._all_keys(), self.rank, None, self.world_size):
            group = self.groups[key % len(self.groups)]
            waiting[group].append(key)
            if len(waiting[group]) == self.batch_size:
                yield waiting[group]
                waiting[group] = []

    def _all_keys(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        size = len(self.groups)
        times = [0] * size
        while True:
            indices = self._make_epoch(generator)
            for index in indices[torch.randperm(len(indices), generator=generator)].tolist():
                yield times[index] * size + index
                times[index] += 1

    def _make_epoch(self, generator: torch.Generator) -> torch.Tensor:
        """Return the images of an epoch in order; a part of a repetition comes by chance."""
        indices = torch.arange(len(self.groups))
        if self.repeat_factors is None:
            return indices
        chances = torch.rand(len(indices), generator=generator)
        whole = self.repeat_factors.trunc()
        return indices.repeat_interleave((whole + (chances < self.repeat_factors - whole)).long())


class TrainingLoader:
    """Lists of mapped images, batch by batch. Its workers start with the first batch."""

    def __init__(self, dataset: AugmentedDataset, batches: TrainingBatches, num_workers: int):
        self.dataset, self.batches, self.num_workers = dataset, batches, num_workers

    def restart(self, seed: int, skip: int) -> "TrainingLoader":
        """Return a loader of the same images with another seed, after ``skip`` batches."""
        dataset, batches = copy.copy(self.dataset), copy.copy(self.batches)
        dataset.seed = batches.seed = seed
        batches.skip = skip
        return TrainingLoader(dataset, batches, self.num_workers)

    def __iter__(self) -> Iterator[List[Dict]]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=worker_init_reset_seed,
        )
        return iter(GuardedLoader(loader))


class WorkersEnded(UserError):
    """A process that loads images was killed."""


class GuardedLoader:
    """A loader whose workers end with this process, and by no signal to the whole group; if one of
    them is killed, the next batch raises the error, and nothing else does.
    """

    def __init__(self, loader: DataLoader, purpose: str = "training"):
        """
        Args:
            purpose: purpose of the images, for the error.
        """
        self.loader, self.dataset, self.purpose = loader, loader.dataset, purpose
        loader.worker_init_fn = functools.partial(_init_worker, loader.worker_init_fn)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        with _sigchld_kept():
            batches = iter(self.loader)
        try:
            yield from batches
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # of the iterator, to end its workers
            if not (self.loader.num_workers and _is_lost_worker(error)):
                raise
            raise WorkersEnded(
                f"A process that loads images for the {self.purpose} was killed, perhaps for lack "
                "of memory, or of shared memory (/dev/shm); lower DATALOADER.NUM_WORKERS."
            ) from error
        finally:
            del batches


def _is_lost_worker(error: Exception) -> bool:
    """Return whether a loader lacks a worker, not whether that has raised an error."""
    # These: a batch cannot be fetched from it.
    if isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
        return "Caught " not in str(error)
    ended = r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)"
    return isinstance(error, RuntimeError) and bool(re.search(ended, str(error)))


def _init_worker(init: Optional[Callable[[int], None]], worker_id: int) -> None:
    end_with_parent()
    if init is not None:
        init(worker_id)


@contextlib.contextmanager
def _sigchld_kept() -> Iterator[None]:
    """Take away PyTorch's handler of SIGCHLD, which raises the death of a worker anywhere: during
    the backward pass, in the middle of a file, where it looks like an error of other code. The
    loader finds it as well when it waits for a batch.
    """
    if not hasattr(signal, "SIGCHLD") or not is_main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None:  # not of Python
            signal.signal(signal.SIGCHLD, before)


def build_training_loader(
    *,
    dataset: List[Dict],
    mapper: Callable[[Dict], Dict],
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    seed: Optional[int] = None,
    repeat_factors: Optional[torch.Tensor] = None,
) -> TrainingLoader:
    """Build Detectron2's ``build_detection_train_loader`` in an order that can be resumed.

    Args:
        dataset: records in Detectron2's format.
        mapper: maps a record to the network's input.
        total_batch_size: number of images per step, of all processes together.
        aspect_ratio_grouping: whether wide and tall images are in separate batches.
        num_workers: number of loading processes per process.
        seed: seed of order and augmentation; default: drawn, the same in all processes.
        repeat_factors: argument of :class:`TrainingBatches`.

    Raises:
        UserError: for a batch that the processes cannot share evenly.
    """
    batch_size, rest = divmod(total_batch_size, comm.get_world_size())
    if rest or not batch_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {total_batch_size}; it must be a multiple of "
            f"the number of processes, {comm.get_world_size()}."
        )
    if seed is None:
        seed = comm.shared_random_seed()
    batches = TrainingBatches(
        [int(aspect_ratio_grouping and r["width"] > r["height"]) for r in dataset],
        batch_size,
        seed=seed,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        repeat_factors=repeat_factors,
    )
    return TrainingLoader(AugmentedDataset(dataset, mapper, seed), batches, num_workers)
