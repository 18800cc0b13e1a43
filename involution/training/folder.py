"""Images in folders, one folder for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .images import BadImageError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class FolderImages:
    """The images below a folder whose subfolders are the classes.

    Args:
        root: ``root/CLASS/.../IMAGE``.
        classes: the classes in the order of their numbers.
        mode: ``"RGB"`` or ``"L"``, which every image is converted to.

    Raises:
        DataError: a class has no images.
        ImportError: pillow is not installed.
    """

    def __init__(self, root: Path, classes: list[str], mode: str = "RGB") -> None:
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "Images are read with pillow, which is not installed. Install it with: pip install -e '.[train]'"
            ) from error
        self.mode = mode
        self.files: list[str] = []
        self.labels: list[int] = []
        for label, name in enumerate(classes):
            files = sorted(_images_below(root / name))
            self.files += files
            self.labels += [label] * len(files)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Image:
        """The image, decoded.

        Raises:
            BadImageError: the file cannot be opened or decoded.
        """
        import PIL.Image

        file = self.files[index]
        try:
            with PIL.Image.open(file) as image:
                return image.convert(self.mode)
        # pillow's decoders raise all of these on damaged files
        except (
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            IndexError,
            PIL.Image.DecompressionBombError,
        ) as error:
            raise BadImageError(f"The image {file} cannot be read: {error}.", file) from error


def _images_below(folder: Path) -> list[str]:
    found = []
    for directory, _, names in os.walk(folder, followlinks=True):
        found += [os.path.join(directory, name) for name in names if name.lower().endswith(EXTENSIONS)]
    return found


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
    )


def load_folder(path: str | Path, channels: int = 3) -> tuple[FolderImages, FolderImages, list[str]]:
    """Training images, test images and the names of the classes, which are those of the folders in ``train``.

    Args:
        path: a folder with ``train`` and ``val`` or ``test``; where both are there, ``val`` is taken.
        channels: 3 for colour, 1 for grey.

    Raises:
        DataError: a folder is missing or has no images, or there are classes in one part only.
    """
    path = Path(path)
    if not (path / "train").is_dir():
        raise DataError(f"{path} must have a folder 'train' with one folder for each class.")
    test = next((path / name for name in ("val", "test") if (path / name).is_dir()), None)
    if test is None:
        raise DataError(f"{path} must have a folder 'val' or 'test', beside 'train'.")
    classes = _subfolders(path / "train")
    if not classes:
        raise DataError(f"{path / 'train'} has no folders; it must have one for each class.")
    unknown = set(_subfolders(test)) - set(classes)
    if unknown:
        raise DataError(f"{test} has classes that {path / 'train'} has not: {', '.join(sorted(unknown))}.")
    mode = "RGB" if channels == 3 else "L"
    parts = [FolderImages(part, classes, mode) for part in (path / "train", test)]
    empty = [name for label, name in enumerate(classes) if label not in set(parts[0].labels)]
    if empty:
        raise DataError(
            f"{path / 'train'} has no images ({', '.join(EXTENSIONS)}) of the classes: {', '.join(empty)}."
        )
    if not len(parts[1]):
        raise DataError(f"{test} has no images ({', '.join(EXTENSIONS)}).")
    return parts[0], parts[1], classes
