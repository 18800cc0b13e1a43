"""From a configuration to batches of images."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .cifar import load_cifar
from .config import Config, ConfigError
from .digits import load_digits
from .folder import load_folder
from .images import BadImage, BadImageError, Images, TensorImages
from .transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    ResizeAndCenterCrop,
    Transform,
)

# Of ImageNet's training images, in the order red, green, blue; the usual values for photographs.
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
GREY_MEAN, GREY_STD = [0.449], [0.226]
REPLACEMENTS = 100  # how many images in a row are tried in place of one that cannot be read

Key = tuple[int, int]  # epoch and index: what decides how an image looks


@dataclass(frozen=True)
class Data:
    """Training and test images, and how they are prepared.

    Attributes:
        train: images to train on.
        test: images to test on.
        classes: names, in the order of the labels.
        channels: of the images.
        size: height and width of what the network sees.
        mean: of each channel, of values from 0 to 1.
        std: standard deviation of each channel.
        train_transform: with everything random.
        test_transform: the plain one.
    """

    train: Images
    test: Images
    classes: list[str]
    channels: int
    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    train_transform: Transform
    test_transform: Transform

    @property
    def input(self) -> dict:
        """What somebody who feeds the network must know, as plain types."""
        return {"channels": self.channels, "size": list(self.size), "mean": self.mean, "std": self.std}


def load_data(config: Config) -> Data:
    """The data that a configuration names.

    Args:
        config: its options under "Data" are read.

    Raises:
        DataError: the data is not where it should be, or not what it should be.
        ConfigError: ``mean`` or ``std`` do not fit the channels.
        ImportError: a library is missing; the message says how to install it.
    """
    train: Images
    test: Images
    if config.data == "folder":
        channels, size = config.channels or 3, config.image_size or 224
        train, test, classes = load_folder(str(config.data_path), channels)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else (GREY_MEAN, GREY_STD)
        height = width = size
        changes: list[Transform] = [RandomResizedCrop(size, (config.crop_scale, 1.0))]
        plain: list[Transform] = [ResizeAndCenterCrop(size, round(size * 256 / 224))]
    else:
        in_memory: tuple[TensorImages, TensorImages, list[str]]
        if config.data == "digits":
            in_memory = load_digits()
        else:
            in_memory = load_cifar(config.data, str(config.data_path))
        train, test, classes = in_memory
        mean, std = in_memory[0].statistics()
        channels, height, width = in_memory[0].images.shape[1:]
        padding = config.crop_padding
        if padding is None:
            padding = 1 if config.data == "digits" else 4
        changes = [RandomCrop(padding)] if padding else []
        plain = []
    mean, std = config.mean or mean, config.std or std
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"The options 'mean' and 'std' must have one number for each of the {channels} channels, but are "
            f"{mean} and {std}."
        )
    if config.flip or (config.flip is None and config.data != "digits"):
        changes.append(RandomFlip())
    normalize = Normalize(mean, std)
    return Data(
        train,
        test,
        classes,
        channels,
        (height, width),
        mean,
        std,
        Compose([*changes, normalize]),
        Compose([*plain, normalize]),
    )


class Batch(NamedTuple):
    """Images, ``(B, C, H, W)``, their labels, ``(B,)``, and those that could not be read."""

    images: Tensor
    labels: Tensor
    bad: list[BadImage]


class PreparedImages(Dataset):
    """Images as the network sees them. An item is (image or None, label, unreadable images).

    What is random about an image follows from seed, epoch and index alone: it does not depend on how many
    workers or processes there are, or on whether the run was interrupted.

    Args:
        images: what is prepared.
        transform: how.
        seed: of what is random about it.
        replace: take the next readable image in place of one that cannot be read.
    """

    def __init__(self, images: Images, transform: Transform, seed: int, replace: bool) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.replace = replace

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Tensor | None, int, list[BadImage]]:
        epoch, index = key
        bad: list[BadImage] = []
        for _ in range(REPLACEMENTS if self.replace else 1):
            try:
                image = self.images.read(index)
            except BadImageError as error:
                bad.append(BadImage(error.name, str(error)))
                index = (index + 1) % len(self.images)
                continue
            generator = random.Random(f"{self.seed}/{epoch}/{index}")
            return self.transform(image, generator), self.images.labels[index], bad
        return None, -1, bad


def collate(items: list[tuple[Tensor | None, int, list[BadImage]]]) -> Batch:
    """A batch of what could be read."""
    images = [image for image, _, _ in items if image is not None]
    labels = [label for image, label, _ in items if image is not None]
    bad = [name for _, _, names in items for name in names]
    return Batch(
        torch.stack(images) if images else torch.empty(0), torch.tensor(labels, dtype=torch.long), bad
    )


class TrainingOrder(Sampler[list[Key]]):
    """Which images make each batch of an epoch, for one process.

    Every epoch has an order of its own, drawn from seed and epoch. Step ``s`` takes the images ``s*batch_size`` to
    ``(s + 1)*batch_size`` of it, whatever the number of processes: process ``r`` has the ``r``-th part of these,
    cut into ``accumulate`` batches. The images that fill no step are left out; they differ from epoch to epoch.

    Args:
        length: how many images there are.
        batch_size: of a step.
        accumulate: batches of a process in a step.
        rank: this process.
        processes: how many there are.
        seed: of the order.

    Attributes:
        epoch: which epoch's batches come next.
        steps: steps in an epoch.

    Raises:
        ConfigError: the images of a step cannot be shared evenly, or there are too few.
    """

    def __init__(
        self, length: int, batch_size: int, accumulate: int, rank: int, processes: int, seed: int
    ) -> None:
        if batch_size % (processes * accumulate):
            raise ConfigError(
                f"The option 'batch_size' ({batch_size}) must be a multiple of the {processes} process(es) times "
                f"'accumulate' ({accumulate})."
            )
        if length < batch_size:
            raise ConfigError(
                f"The option 'batch_size' ({batch_size}) is more than the {length} training images."
            )
        self.length = length
        self.batch_size = batch_size
        self.piece = batch_size // (processes * accumulate)
        self.accumulate = accumulate
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self.steps = length // batch_size

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        seed = random.Random(f"{self.seed}/{self.epoch}").getrandbits(63)
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(seed)).tolist()
        for step in range(self.steps):
            for part in range(self.accumulate):
                begin = step * self.batch_size + (self.rank * self.accumulate + part) * self.piece
                yield [(self.epoch, index) for index in order[begin : begin + self.piece]]


class TestOrder(Sampler[list[Key]]):
    """Batches of the test images: process ``r`` has every ``processes``-th, beginning with the ``r``-th."""

    __test__ = False  # not a test of pytest's

    def __init__(self, length: int, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.indices = range(rank, length, processes)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for begin in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[begin : begin + self.batch_size]]


def make_loader(
    images: Images,
    transform: Transform,
    order: Sampler[list[Key]],
    config: Config,
    train: bool,
    pin: bool = False,
) -> DataLoader:
    """A loader of :class:`Batch`.

    Args:
        images: what it loads.
        transform: how images are prepared.
        order: the batches' indices.
        config: ``workers``, ``seed`` and ``on_bad_image`` are read.
        train: whether a bad image that is skipped is replaced by the next.
        pin: whether to load into pinned memory, for a GPU.
    """
    workers = config.workers
    if workers is None:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = 0 if isinstance(images, TensorImages) else min(8, allowed)
    prepared = PreparedImages(images, transform, config.seed, train and config.on_bad_image == "skip")
    return DataLoader(
        prepared,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # of its own, so that loading leaves the run's random numbers alone
    )


def readable(batches: Iterable[Batch], on_bad_image: str, skipped: dict[str, str]) -> Iterator[Batch]:
    """The batches, after a look at what could not be read.

    Args:
        batches: from a loader.
        on_bad_image: ``"stop"`` or ``"skip"``.
        skipped: gets the name of each bad image, and the reason.

    Raises:
        BadImageError: there is a bad image, and they are not to be skipped.
    """
    for batch in batches:
        if batch.bad and on_bad_image == "stop":
            raise BadImageError(f"{batch.bad[0].reason} To leave out such images, give --on-bad-image skip.")
        skipped.update({bad.name: bad.reason for bad in batch.bad})
        yield batch
