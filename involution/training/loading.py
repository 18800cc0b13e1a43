"""Batches that are a function of seed, epoch and position, so that a run resumes exactly, also within an epoch.

They depend neither on the number of workers or processes nor on an interruption. Nothing here knows a task.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .images import BadImageError, DataError

REPLACEMENTS = 100  # how many images in a row are tried in place of one that cannot be read


class Batch(NamedTuple):
    """Images ``(B, C, H, W)``, what is known of them (labels ``(B,)``), and why others could not be read."""

    images: Any
    targets: Any
    skipped: list[str]


class Prepared(Dataset):
    """Batches as the network sees them, by the epochs and indices of their samples.

    Samples are pairs of an image and a target. The transform takes and returns both, or raises ``BadImageError``; then
    the next readable sample takes the place, where ``replace`` is set. It draws from torch's generator, which ``seed``,
    epoch and index set anew for each sample. ``collate`` makes a batch of a list of pairs.
    """

    def __init__(
        self, samples: Sequence, transform: Callable, seed: int, replace: bool, collate: Callable
    ) -> None:
        self.samples, self.transform, self.seed, self.collate = samples, transform, seed, collate
        self.tries = REPLACEMENTS if replace else 1

    def __getitem__(self, keys: list[tuple[int, int]]) -> Batch:
        pairs, skipped = [], []
        for epoch, first in keys:
            for index in range(first, first + self.tries):
                with torch.random.fork_rng(devices=[]):
                    seed = random.Random(f"{self.seed}/{epoch}/{index}").getrandbits(63)
                    torch.default_generator.manual_seed(seed)
                    try:
                        pairs.append(self.transform(*self.samples[index % len(self.samples)]))
                        break
                    except BadImageError as error:
                        skipped.append(str(error))
        images, targets = self.collate(pairs) if pairs else (torch.empty(0), [])
        return Batch(images, targets, skipped)


class Order(Sampler[list[tuple[int, int]]]):
    """The epochs and indices of each batch, for one process.

    Batch ``s`` has the samples ``s*batch_size`` to ``(s + 1)*batch_size`` of the epoch's order, whatever the number of
    processes: process ``rank`` has its part of these. With a seed, each epoch has an order of its own, and samples that
    fill no batch are left out. ``start`` batches of the ``epoch`` that comes next are left out, too.

    Raises:
        DataError: the samples of a batch cannot be shared evenly, or there are too few.
    """

    def __init__(self, length: int, batch_size: int, seed: int | None, rank: int = 0, processes: int = 1):
        if batch_size < 1 or batch_size % processes:
            raise DataError(f"The batch size ({batch_size}) must be a multiple of {processes} processes.")
        if seed is not None and length < batch_size:
            raise DataError(f"The batch size ({batch_size}) is more than the {length} training images.")
        self.length, self.batch_size, self.seed, self.rank = length, batch_size, seed, rank
        self.piece, self.epoch, self.start = batch_size // processes, 0, 0

    def __len__(self) -> int:
        return self.length // self.batch_size if self.seed is not None else -(-self.length // self.batch_size)

    def set_epoch(self, epoch: int) -> None:  # Lightning calls it
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        keys = [(self.epoch, index) for index in range(self.length)]
        if self.seed is not None:
            random.Random(f"{self.seed}/{self.epoch}").shuffle(keys)
        start, self.start = self.start, 0  # the next epoch has all of its batches
        for batch in range(start, len(self)):
            mine = batch * self.batch_size + self.rank * self.piece
            yield keys[mine : mine + self.piece]


class Loader(DataLoader):
    """Loads the batches of an :class:`Order`, and counts those of the epoch that were taken, from where a run goes on.

    Raises:
        BadImageError: while loading, where ``stop`` is set or no image of a training batch can be read.
    """

    def __init__(self, batches: Prepared, order: Order, stop: bool, **options: Any) -> None:
        self.order, self.stop, self.taken = order, stop, 0
        # The order's items are batches already. The generator is the loader's own, so that loading draws nothing else.
        super().__init__(batches, None, sampler=order, generator=torch.Generator(), **options)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.taken = self.order.start
        for batch in super().__iter__():
            if batch.skipped and (self.stop or (self.order.seed is not None and not len(batch.targets))):
                hint = "To leave out such images, give --data.on_bad_image skip."
                raise BadImageError(f"{batch.skipped[0]} {hint}")
            self.taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.order.start = state["taken"]
