"""CIFAR-10 and CIFAR-100 from their published files, of the binary version or the one for Python.

The format is described at https://www.cs.toronto.edu/~kriz/cifar.html. The version for Python is made of pickles,
which can hold code to execute; here they are read by an unpickler that knows only what these files are made of.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .images import DataError, TensorImages

PIXELS = 3 * 32 * 32  # red, green and blue planes, row by row


class Layout(NamedTuple):
    """Where things are in one of the data sets, in each version."""

    folders: dict[str, str]
    train: dict[str, tuple[str, ...]]
    test: dict[str, str]
    names: dict[str, str]
    label_bytes: int  # before the pixels, in the binary version; the last is the class
    label_key: bytes
    names_key: bytes
    classes: int


LAYOUTS = {
    "cifar10": Layout(
        folders={"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"},
        train={
            "binary": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "python": tuple(f"data_batch_{i}" for i in range(1, 6)),
        },
        test={"binary": "test_batch.bin", "python": "test_batch"},
        names={"binary": "batches.meta.txt", "python": "batches.meta"},
        label_bytes=1,
        label_key=b"labels",
        names_key=b"label_names",
        classes=10,
    ),
    "cifar100": Layout(
        folders={"binary": "cifar-100-binary", "python": "cifar-100-python"},
        train={"binary": ("train.bin",), "python": ("train",)},
        test={"binary": "test.bin", "python": "test"},
        names={"binary": "fine_label_names.txt", "python": "meta"},
        label_bytes=2,
        label_key=b"fine_labels",
        names_key=b"fine_label_names",
        classes=100,
    ),
}


def load_cifar(name: str, path: str | Path) -> tuple[TensorImages, TensorImages, list[str]]:
    """Training images, test images and the names of the classes.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        path: the unpacked folder, or the one it is in.

    Raises:
        DataError: files are missing, or do not hold what they should.
    """
    layout = LAYOUTS[name]
    folder, version = _find(layout, name, Path(path))
    read = _read_binary if version == "binary" else _read_python
    train = [read(folder / file, layout) for file in layout.train[version]]
    test = read(folder / layout.test[version], layout)
    images = torch.cat([part[0] for part in train])
    labels = [label for part in train for label in part[1]]
    return TensorImages(images, labels), TensorImages(*test), _class_names(folder, version, layout)


def _find(layout: Layout, name: str, path: Path) -> tuple[Path, str]:
    for version, folder in layout.folders.items():
        for candidate in (path, path / folder):
            needed = (*layout.train[version], layout.test[version], layout.names[version])
            if all((candidate / file).is_file() for file in needed):
                return candidate, version
    raise DataError(
        f"{path} does not hold the files of {name}: neither those of the binary version "
        f"({layout.test['binary']}, {layout.names['binary']}, ...) nor those of the version for Python "
        f"({layout.test['python']}, {layout.names['python']}, ...). Unpack the archive, and give the folder."
    )


def _read_binary(file: Path, layout: Layout) -> tuple[Tensor, list[int]]:
    data = bytearray(file.read_bytes())
    record = layout.label_bytes + PIXELS
    if not data or len(data) % record:
        raise DataError(f"{file} must hold records of {record} bytes, but has {len(data)} bytes.")
    records = torch.frombuffer(data, dtype=torch.uint8).view(-1, record)
    images = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
    return images, _checked_labels(records[:, layout.label_bytes - 1].tolist(), layout, file)


def _read_python(file: Path, layout: Layout) -> tuple[Tensor, list[int]]:
    content = load_pickle(file)
    data = content.get(b"data") if isinstance(content, dict) else None
    labels = content.get(layout.label_key) if isinstance(content, dict) else None
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise DataError(
            f"{file} must hold a dictionary with an array 'data' and a list {layout.label_key.decode()!r}."
        )
    images = data.tensor(file)
    if images.shape != (len(labels), PIXELS) or not labels:
        raise DataError(
            f"{file} must hold {PIXELS} values for each image, but has data of shape {tuple(images.shape)} "
            f"and {len(labels)} labels."
        )
    return images.reshape(-1, 3, 32, 32), _checked_labels(labels, layout, file)


def _checked_labels(labels: list, layout: Layout, file: Path) -> list[int]:
    for label in labels:
        if type(label) is not int or not 0 <= label < layout.classes:
            raise DataError(
                f"{file} has the label {label!r}, but labels are integers from 0 to {layout.classes - 1}."
            )
    return labels


def _class_names(folder: Path, version: str, layout: Layout) -> list[str]:
    file = folder / layout.names[version]
    if version == "binary":
        names = file.read_text("utf-8").split()
    else:
        content = load_pickle(file)
        found = content.get(layout.names_key) if isinstance(content, dict) else None
        names = [n.decode("utf-8") for n in found if isinstance(n, bytes)] if isinstance(found, list) else []
    if len(names) != layout.classes:
        raise DataError(f"{file} must name {layout.classes} classes, but names {len(names)}.")
    return names


# --- Pickles without code ---------------------------------------------------------------------------------


class _Type:
    """Stands for ``numpy.dtype``: remembers the name of the type."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and alignment, of no meaning for single bytes


class _Array:
    """Stands for ``numpy.ndarray``: remembers what the pickle says of it."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self, file: Path) -> Tensor:
        """The array as a tensor of ``uint8``."""
        try:
            _, shape, kind, by_columns, data = self.state
            size = torch.Size(shape)
        except (TypeError, ValueError) as error:
            raise DataError(f"{file} holds an array whose description is incomplete.") from error
        name = getattr(kind, "name", None)
        if name not in (b"u1", "u1") or not isinstance(data, bytes) or len(data) != size.numel() or not data:
            raise DataError(
                f"{file} must hold an array of uint8, with one byte for each of its {size.numel()} values."
            )
        values = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return (
            values.view(*reversed(size)).permute(*reversed(range(len(size))))
            if by_columns
            else values.view(size)
        )


# The names of NumPy that the files refer to (_core: as later versions of NumPy call it).
_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}


class _Unpickler(pickle.Unpickler):
    """Knows the few names that the files refer to, and executes nothing of NumPy for them."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, which CIFAR's files do not"
            ) from None


def load_pickle(file: Path) -> Any:
    """What a pickle of CIFAR's holds, without executing what it says.

    Args:
        file: a file of the version for Python.

    Returns:
        Dictionaries, lists, numbers and bytes; arrays as objects with a method ``tensor``.

    Raises:
        DataError: it is no pickle, is truncated, or refers to anything that these files do not.
    """
    try:
        return _Unpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{file} is not a file of CIFAR's version for Python: {error}.") from error
