"""The training images in an order that can be taken up again: batch n is the same, augmentation and
all, in a training that ran through and in one that was stopped before it and resumed.

Detectron2's loader begins anew with every start, and what it draws depends on its workers.
"""

import copy
import itertools
import random
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import DataLoader, Dataset, Sampler

from tood.data.tiles import tile_records
from tood.utils.errors import UserError
from tood.utils.tiles import TileOptions


class AugmentedDataset(Dataset):
    """Records through a mapper. A key is ``epoch * len(records) + index``, and all random numbers
    of NumPy and of Python that the mapper draws follow from the seed and the key alone.
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
    """The batches of one process without end: lists of keys of :class:`AugmentedDataset`. Every
    epoch is shuffled anew, in the order of Detectron2's ``TrainingSampler``.
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
    ):
        """
        Args:
            groups: of each image; a batch is of one group, as Detectron2's wide and tall images.
            batch_size: images of this process.
            seed: the same in all processes.
            skip: how many batches were there before.
        """
        self.groups, self.batch_size = groups, batch_size
        self.seed, self.rank, self.world_size, self.skip = seed, rank, world_size, skip

    def __iter__(self) -> Iterator[List[int]]:
        return itertools.islice(self._all_batches(), self.skip, None)

    def _all_batches(self) -> Iterator[List[int]]:
        waiting = {group: [] for group in self.groups}
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
        for epoch in itertools.count():
            for index in torch.randperm(size, generator=generator).tolist():
                yield epoch * size + index


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
        yield from DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=self.num_workers,
            collate_fn=_as_they_are,
            worker_init_fn=_seed_worker,
        )


def build_training_loader(
    *,
    dataset: List[Dict],
    mapper: Callable[[Dict], Dict],
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    seed: Optional[int] = None,
    tiles: Optional[Mapping] = None,
) -> TrainingLoader:
    """Build Detectron2's training loader, in an order that can be continued after a stop.

    Args:
        dataset: records in Detectron2's format.
        mapper: from a record to the network's input.
        total_batch_size: images of a step, of all processes together.
        aspect_ratio_grouping: whether wide and tall images are in batches of their own.
        num_workers: of each process.
        seed: of order and augmentation; left out, it is drawn, the same in all processes.
        tiles: fields of a :class:`~tood.utils.tiles.TileOptions`, to train on tiles of the images.

    Raises:
        UserError: for a batch that the processes cannot share evenly.
    """
    if tiles and tiles["size"]:
        dataset = tile_records(dataset, TileOptions(**tiles))
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
    )
    return TrainingLoader(AugmentedDataset(dataset, mapper, seed), batches, num_workers)


def _as_they_are(batch: List[Dict]) -> List[Dict]:
    return batch


def _seed_worker(worker_id: int) -> None:
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
