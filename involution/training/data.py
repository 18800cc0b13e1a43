"""Data to train and to test on: the digits of scikit-learn, CIFAR, and folders of images."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch.utils.data import default_collate

from .._extras import needed_by
from .images import DataError, read_image
from .libraries import lightning, torchvision
from .loading import Loader, Order, Prepared

v2 = torchvision.transforms.v2
# Mean and standard deviation of photographs, of values from 0 to 1, by the number of channels: those of ImageNet.
PHOTOGRAPHS = {3: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), 1: ([0.449], [0.226])}


class ImageData(lightning.LightningDataModule):
    """Images to train and to test on.

    A kind of data has :meth:`samples` and the attributes below; ``changes`` has the transforms of each part's pairs of
    image and label, ``finish`` those behind them, which normalise by ``mean`` and ``std``; ``collate`` makes batches.

    Args:
        batch_size: images in a batch, over all processes together.
        workers: processes that load images; unless given, none for images in memory, else one for each core, up to 8.
        on_bad_image: stop at an image that cannot be read, or skip it; training then takes the next one instead.
        seed: seed of the order of the images and of their random changes.
    """

    in_memory: ClassVar[bool] = True
    threads: ClassVar[int | None] = None  # of the processor, unless the user names a number
    classes: list[str]  # in the order of the labels
    channels: int
    size: tuple[int, ...]  # height and width; nothing where they differ
    mean: list[float]
    std: list[float]
    collate: Callable = staticmethod(default_collate)

    def __init__(
        self,
        batch_size: int = 64,
        workers: int | None = None,
        on_bad_image: Literal["stop", "skip"] = "stop",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size, self.stop, self.seed = batch_size, on_bad_image == "stop", seed
        loading = 0 if self.in_memory else min(8, os.cpu_count() or 1)
        self.workers = loading if workers is None else workers
        self.changes: dict[str, list[Any]] = {"train": [], "test": []}
        self.state = {"taken": 0}

    def samples(self, part: str) -> Any:
        """Pairs of an image, or what ``changes`` make one of, and a label, of the part ``"train"`` or ``"test"``."""
        raise NotImplementedError

    def finish(self) -> list[Any]:
        return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]

    @property
    def description(self) -> dict[str, Any]:
        """What a task and a checkpoint have to know of the data, as plain types."""
        seen = {"channels": self.channels, "size": list(self.size), "mean": self.mean, "std": self.std}
        kind = {"name": type(self).__name__, "arguments": dict(self.hparams)}
        return {"data": kind, "classes": self.classes, "input": seen}

    def setup(self, stage: str) -> None:
        parts = ("train", "test") if stage == "fit" else ("test",)
        self.parts = {part: self.samples(part) for part in parts}

    def train_dataloader(self) -> Loader:
        self.loader = self._loader("train", self.seed)
        self.loader.load_state_dict(self.state)
        return self.loader

    def val_dataloader(self) -> Loader:
        return self._loader("test", None)

    # Lightning restores loaders by themselves only where nothing has asked for the number of steps before.
    def state_dict(self) -> dict[str, int]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.state = state

    def _loader(self, part: str, seed: int | None) -> Loader:
        transform = v2.Compose([*self.changes[part], *self.finish()])
        replace = part == "train" and not self.stop
        batches = Prepared(self.parts[part], transform, self.seed, replace, self.collate)
        processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        order = Order(len(self.parts[part]), self.batch_size, seed, *processes)
        options = {"num_workers": self.workers, "persistent_workers": self.workers > 0}
        return Loader(batches, order, self.stop, pin_memory=torch.cuda.is_available(), **options)


class Digits(ImageData):
    """The handwritten digits that ship inside scikit-learn: 1797 grey images of 8x8, a fifth of each for tests.

    The split is the same for every run. Training images are shifted by up to a pixel, and never mirrored.
    """

    threads = 1  # as fast as two on such small images, and far faster where others use the second core
    channels, size = 1, (8, 8)

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        with needed_by("The digits", "train"):
            from sklearn import datasets, model_selection
        digits = datasets.load_digits()
        images, labels = torch.from_numpy(digits.images / 16).float()[:, None], digits.target
        pairs = list(zip(images, labels.tolist(), strict=True))
        train, test = model_selection.train_test_split(pairs, test_size=0.2, random_state=0, stratify=labels)
        self.digits = {"train": train, "test": test}
        self.classes = [str(name) for name in digits.target_names]
        deviation, mean = torch.std_mean(torch.stack([image for image, _ in train]), correction=0)
        self.mean, self.std = [mean.item()], [deviation.item()]
        self.changes["train"] = [v2.RandomCrop(self.size, padding=1)]

    def samples(self, part: str) -> Any:
        return self.digits[part]


class Cifar(ImageData):
    """CIFAR-10 or CIFAR-100; training images are shifted by up to 4 pixels, and half of them mirrored.

    Args:
        path: folder that has ``cifar-10-batches-py`` or ``cifar-100-python`` in it.
        kind: CIFAR-10 or CIFAR-100, by the number of classes.
    """

    channels, size = 3, (32, 32)

    def __init__(self, path: str, kind: Literal[10, 100] = 10, **common: Any) -> None:
        super().__init__(**common)
        self.path, self.read = path, getattr(torchvision.datasets, f"CIFAR{kind}")
        self.classes = list(self.samples("test").classes)
        self.mean, self.std = PHOTOGRAPHS[3]
        self.changes["train"] = [v2.RandomCrop(self.size, padding=4), v2.RandomHorizontalFlip()]

    def samples(self, part: str) -> Any:
        try:
            return self.read(self.path, part == "train", transform=v2.ToImage())
        except RuntimeError as error:  # files are missing, or their checksums are wrong
            raise DataError(f"CIFAR is not in {self.path!r}, or is damaged. {error}") from error


class ImageFolder(ImageData):
    """Folders of images: ``train/CLASS/...`` and ``val/CLASS/...`` (or ``test``), in any format that pillow reads.

    Training images get a random resized crop, and half of them are mirrored. Tests take the middle, after the shorter
    side was resized to 256/224 of it.

    Args:
        path: folder with ``train`` and ``val`` or ``test``; where both are there, ``val`` is taken.
        image_size: height and width of what the network sees.
        channels: 3 for colour, 1 for grey; images are converted.
        crop_scale: smallest share of an image's area that a training image is.
        classes: names in the order of the labels; the folders in ``train`` unless given.
    """

    in_memory = False

    def __init__(
        self,
        path: str,
        image_size: int = 224,
        channels: Literal[1, 3] = 3,
        crop_scale: float = 0.08,
        classes: list[str] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root, self.channels, self.size = Path(path), channels, (image_size, image_size)
        self.classes = classes or class_folders(self.root / "train")
        self.mean, self.std = PHOTOGRAPHS[channels]
        crop = v2.RandomResizedCrop(image_size, (crop_scale, 1.0))
        self.changes["train"] = [self.read, crop, v2.RandomHorizontalFlip()]
        resize = v2.Resize(round(image_size * 256 / 224))
        self.changes["test"] = [self.read, resize, v2.CenterCrop(image_size)]

    def read(self, file: str, label: int) -> tuple[torch.Tensor, int]:
        """The image of a file, and its label."""
        return read_image(file, self.channels), label

    def samples(self, part: str) -> Any:
        """Files and labels; an image is read when its batch is."""
        names = ("train",) if part == "train" else ("val", "test")
        folder = next(
            (self.root / name for name in names if (self.root / name).is_dir()), self.root / names[0]
        )
        labels = {name: label for label, name in enumerate(self.classes)}
        if unknown := sorted(set(class_folders(folder)) - set(labels)):
            raise DataError(f"{folder} has the folders {unknown}, which are none of {self.classes}.")
        kinds = torchvision.datasets.folder
        try:
            return kinds.make_dataset(str(folder), labels, kinds.IMG_EXTENSIONS, allow_empty=part != "train")
        except FileNotFoundError as error:
            raise DataError(f"{folder} lacks images. {error}") from error


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, in order, without hidden ones; only of UTF-8, as exported files need it."""
    entries = list(os.scandir(folder)) if folder.is_dir() else []
    names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"There are no folders in {str(folder)!r}; it must hold one for each class.")
    for name in names:
        if name != name.encode(errors="replace").decode():
            raise DataError(
                f"{folder} has a folder whose name is not UTF-8, {os.fsencode(name)!r}: rename it."
            )
    return names
