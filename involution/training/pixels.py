"""Data for segmenters: images with a class for each pixel."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from .data import PHOTOGRAPHS, ImageData, v2
from .images import BadImageError, DataError, read_image
from .libraries import torchvision

tensors = torchvision.tv_tensors
IGNORED = 255  # in a map: no class, neither trained on nor tested


class PixelData(ImageData):
    """Images and their maps of classes. Tests see whole images; of a batch, smaller ones are padded.

    A kind of data has ``samples``, pairs of an image file and what :meth:`map` reads.

    Args:
        crop: height and width of training images, cut out of images that are first brought to half to twice the size
            at which they fit into twice this; all of an image where it is not given.
        mirror: mirror half of the training images.
    """

    in_memory = False
    channels = 3
    size: tuple[int, ...] = ()
    mean, std = PHOTOGRAPHS[3]

    def __init__(self, crop: tuple[int, int] | None = None, mirror: bool = True, **common: Any) -> None:
        super().__init__(**common)
        cut: list[Any] = []
        if crop:
            fill = {tensors.Image: 0, tensors.Mask: IGNORED}
            cut = [v2.ScaleJitter((2 * crop[0], 2 * crop[1]), (0.5, 2.0))]
            cut += [v2.RandomCrop(crop, pad_if_needed=True, fill=fill), v2.RandomPhotometricDistort()]
        mirrored = v2.RandomHorizontalFlip(0.5 if mirror else 0.0)
        self.changes = {"train": [self.read, *cut, mirrored], "test": [self.read]}

    @staticmethod
    def collate(pairs: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images ``(B, 3, H, W)`` and maps ``(B, H, W)``, of the largest height and width among them."""
        height, width = (max(image.shape[axis] for image, _ in pairs) for axis in (1, 2))
        images, maps = [], []
        for image, classes in pairs:
            room = (0, width - image.shape[2], 0, height - image.shape[1])
            images.append(F.pad(torch.Tensor(image), room))
            maps.append(F.pad(torch.as_tensor(classes, dtype=torch.int64), room, value=IGNORED))
        return torch.stack(images), torch.stack(maps)

    def map(self, source: Any) -> torch.Tensor:
        """The classes ``(H, W)`` uint8 of an image."""
        return read_map(source)

    def read(self, file: str, source: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The image of a file and its map, checked."""
        image, classes = read_image(file), self.map(source)
        if classes.shape != image.shape[1:]:
            sizes = f"{tuple(classes.shape)}, but {file!r} {tuple(image.shape[1:])}"
            raise BadImageError(f"The map {source!r} is {sizes}.")
        if unknown := sorted(set(classes.unique().tolist()) - {*range(len(self.classes)), IGNORED}):
            least = f"from 0 to {len(self.classes) - 1}, and {IGNORED} for none"
            raise BadImageError(f"The map {source!r} has the values {unknown}; there are classes {least}.")
        return tensors.Image(image), tensors.Mask(classes)


def read_map(file: str) -> torch.Tensor:
    """The values ``(H, W)`` uint8 of a grey or palette image: a palette's are the numbers of its colours."""
    import numpy as np
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            if image.mode not in ("L", "P"):
                raise ValueError(f"it is {image.mode}, neither grey of 8 bits nor with a palette")
            return torch.from_numpy(np.array(image))
    except Exception as error:  # pillow's decoders raise all kinds on damaged files
        raise BadImageError(f"The map {file!r} cannot be read: {error}") from error


class Pairs(PixelData):
    """Images and maps of the same names: ``images/train/*``, ``masks/train/*.png``, the same for ``val``.

    ``classes.txt`` has the names of the classes, one a line. Maps are grey or have a palette; 255 is no class.

    Args:
        path: the folder of everything.
    """

    def __init__(self, path: str, **common: Any) -> None:
        super().__init__(**common)
        self.root = Path(path)
        try:
            names = (self.root / "classes.txt").read_text().split("\n")
        except OSError as error:
            raise DataError(f"{path} has no classes.txt with the names of the classes: {error}") from error
        self.classes = [name.strip() for name in names if name.strip()]

    def samples(self, part: str) -> Any:
        part = "train" if part == "train" else "val"
        found = sorted((self.root / "images" / part).glob("[!.]*"))
        pairs = [(str(file), str(self.root / "masks" / part / f"{file.stem}.png")) for file in found]
        if not pairs:
            raise DataError(f"There are no images in {self.root / 'images' / part}.")
        for image, mask in pairs:
            if not Path(mask).exists():
                raise DataError(f"The map of the image {image} is missing: there is no {mask}.")
        return pairs


class Cityscapes(PixelData):
    """Cityscapes' fine annotations: ``leftImg8bit`` and ``gtFine``, as unpacked, with the 19 classes of its benchmark.

    Args:
        path: the folder that both are in.
    """

    def __init__(self, path: str, crop: tuple[int, int] | None = (512, 1024), **common: Any) -> None:
        super().__init__(crop, **common)
        kinds = torchvision.datasets.Cityscapes.classes
        benchmark = [kind for kind in kinds if kind.train_id not in (-1, IGNORED)]
        self.path, self.classes = path, [kind.name for kind in benchmark]
        self.numbers = torch.full((256,), IGNORED, dtype=torch.uint8)
        for kind in benchmark:
            self.numbers[kind.id] = kind.train_id

    def samples(self, part: str) -> Any:
        try:
            split = "train" if part == "train" else "val"
            files = torchvision.datasets.Cityscapes(self.path, split, target_type="semantic")
        except (OSError, RuntimeError) as error:
            raise DataError(f"Cityscapes is not in {self.path!r}: {error}") from error
        pairs = zip(files.images, files.targets, strict=True)
        return sorted((image, targets[0]) for image, targets in pairs)

    def map(self, source: Any) -> torch.Tensor:
        return self.numbers[read_map(source).long()]
