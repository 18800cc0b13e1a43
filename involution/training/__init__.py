"""What ``python -m involution.train`` and ``python -m involution.evaluate`` are made of.

Lightning runs the loop, torchvision has data sets and transforms, torchmetrics the scores. Here is what is special to
this library. To read a checkpoint (:func:`load_model`) takes torch alone; the rest needs the extra ``train``.
"""

from importlib import import_module
from typing import Any

from .checkpoint import CheckpointError, load_model, read_checkpoint
from .images import BadImageError, DataError

_MODULES = {  # imported when they are asked for, because they need the extra
    "Classification": "classification",
    **dict.fromkeys(("NonFiniteError", "Task"), "task"),
    "Detection": "detection",
    "Segmentation": "segmentation",
    **dict.fromkeys(("Cifar", "Digits", "ImageData", "ImageFolder"), "data"),
    **dict.fromkeys(("Coco", "ObjectData", "Voc"), "objects"),
    **dict.fromkeys(("Cityscapes", "Pairs", "PixelData"), "pixels"),
    **dict.fromkeys(("SceneMaps", "Scenes"), "scenes"),
}

__all__ = [
    "BadImageError",
    "CheckpointError",
    "DataError",
    "data_of",
    "load_model",
    "read_checkpoint",
    *_MODULES,
]


def data_of(info: dict[str, Any], **changes: Any) -> Any:
    """The data that a checkpoint was trained on, by what :func:`load_model` says of it, with some arguments changed.

    Raises:
        CheckpointError: it is of a kind that this library does not have.
        DataError: an argument is not one of this data, or the data is not what it should be.
    """
    name, arguments = info["data"]["name"], {**info["data"]["arguments"], **changes}
    if name not in _MODULES:
        raise CheckpointError(f"The checkpoint's data is {name!r}, which is not in involution.training.")
    if "classes" in arguments:  # so that training images need not be there
        arguments["classes"] = info["classes"]
    try:
        return __getattr__(name)(**arguments)
    except TypeError as error:
        raise DataError(f"{name} cannot be made with the arguments {arguments}: {error}") from error


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
