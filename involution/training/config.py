"""What a training run is told: one flat set of options, from a JSON file, the command line, or Python."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

DATA = ("digits", "cifar10", "cifar100", "folder")


class ConfigError(ValueError):
    """An option is unknown, of the wrong type, out of range, or contradicts another."""


def option(default: Any, help: str, *, kind: type, optional: bool = False, choices: tuple = ()) -> Any:
    """A field with what checking and the command line need to know about it.

    Args:
        default: its value where nothing is given.
        help: one line for ``--help``.
        kind: the type of a value: ``bool``, ``int``, ``float``, ``str``, ``list`` (of numbers) or ``dict``.
        optional: whether ``None`` is a value, too.
        choices: the values there are; empty for any.
    """
    metadata = {"help": help, "kind": kind, "optional": optional, "choices": choices}
    factory = type(default) if isinstance(default, dict | list) else None
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The options of a run; each field's ``help`` says what it means.

    The defaults train a small RedNet on the handwritten digits that ship with scikit-learn.

    Raises:
        ConfigError: when a value has the wrong type, is out of range, or contradicts another.
    """

    # Data
    data: str = option("digits", "what to train on", kind=str, choices=DATA)
    data_path: str | None = option(None, "folder of the data (not for digits)", kind=str, optional=True)
    image_size: int | None = option(
        None, "height and width for folders of images; 224 unless given", kind=int, optional=True
    )
    channels: int | None = option(
        None, "3 (colour) or 1 (grey) for folders of images; 3 unless given", kind=int, optional=True
    )
    mean: list[float] | None = option(
        None,
        "mean of each channel, of values from 0 to 1; else the data's own, of folders ImageNet's",
        kind=list,
        optional=True,
    )
    std: list[float] | None = option(
        None, "standard deviation of each channel; else as the mean", kind=list, optional=True
    )
    flip: bool | None = option(
        None, "mirror half the training images; on unless given, off for digits", kind=bool, optional=True
    )
    crop_padding: int | None = option(
        None,
        "zeros around digits and CIFAR before a random crop; 1 and 4 unless given",
        kind=int,
        optional=True,
    )
    crop_scale: float = option(
        0.08, "smallest share of an image's area that a random resized crop takes", kind=float
    )
    workers: int | None = option(
        None, "processes that load images; by default none for digits and CIFAR", kind=int, optional=True
    )
    on_bad_image: str = option(
        "stop", "what to do with an image that cannot be read", kind=str, choices=("stop", "skip")
    )

    # Model
    model: str = option("rednet_tiny", "name of the model", kind=str)
    model_arguments: dict[str, Any] = option({}, "more arguments of the model, as JSON", kind=dict)

    # Optimisation
    epochs: int = option(25, "passes over the training images", kind=int)
    batch_size: int = option(64, "images in a step, over all processes and accumulated batches", kind=int)
    accumulate: int = option(1, "batches, one after the other, whose gradients make a step", kind=int)
    optimizer: str = option("adamw", "the optimiser", kind=str, choices=("sgd", "adamw"))
    lr: float = option(6e-3, "learning rate at its peak", kind=float)
    min_lr: float = option(0.0, "learning rate at the end", kind=float)
    warmup_epochs: float = option(2.0, "epochs in which the learning rate rises to its cosine", kind=float)
    warmup_factor: float = option(0.01, "what it begins with, as a share", kind=float)
    momentum: float = option(0.9, "of SGD", kind=float)
    nesterov: bool = option(True, "Nesterov's momentum for SGD", kind=bool)
    weight_decay: float = option(0.05, "of the weights", kind=float)
    decay_all: bool = option(False, "decay the parameters of norms and the biases, too", kind=bool)
    label_smoothing: float = option(0.1, "share of each label that goes to all classes", kind=float)
    clip_grad_norm: float | None = option(
        1.0, "largest norm of the gradient; none to leave it alone", kind=float, optional=True
    )
    ema_decay: float | None = option(
        None, "evaluate a moving average of the weights with this decay", kind=float, optional=True
    )
    skip_non_finite: int = option(
        0, "steps in a row with a loss or gradient that is not finite to leave out before stopping", kind=int
    )

    # How it runs
    device: str = option("auto", "where to compute", kind=str, choices=("auto", "cpu", "cuda"))
    threads: int | None = option(
        None, "processor threads; by default 1 for digits, elsewhere torch's choice", kind=int, optional=True
    )
    precision: str = option(
        "float32", "float32, or mixed precision", kind=str, choices=("float32", "bfloat16", "float16")
    )
    channels_last: bool = option(True, "channels_last storage", kind=bool)
    compile: bool = option(False, "torch.compile the model", kind=bool)
    sync_batch_norm: bool = option(False, "batch norm over all processes (CUDA)", kind=bool)
    deterministic: bool = option(False, "repeat bit by bit on CUDA, too, where it is slower", kind=bool)
    seed: int = option(0, "of everything random", kind=int)

    # What it leaves behind
    output: str | None = option(
        None, "folder of the run; by default a new one in runs/", kind=str, optional=True
    )
    tensorboard: bool = option(False, "log for TensorBoard, too", kind=bool)
    plot: bool = option(True, "draw the curves at the end", kind=bool)

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = _checked(entry, getattr(self, entry.name))
            object.__setattr__(self, entry.name, value)
        _check_ranges(self)
        _check_together(self)

    def changed(self, **changes: Any) -> Config:
        """A copy with some options changed.

        Raises:
            ConfigError: an option is unknown or its value is not allowed.
        """
        return from_mapping({**self.as_dict(), **changes})

    def as_dict(self) -> dict[str, Any]:
        """The options as plain types, for JSON and checkpoints."""
        return dataclasses.asdict(self)


def from_mapping(options: Mapping[str, Any], source: str = "the configuration") -> Config:
    """A configuration from names and values; what is missing keeps its default.

    Args:
        options: names and values.
        source: where they come from, for messages.

    Raises:
        ConfigError: an option is unknown or its value is not allowed.
    """
    known = [entry.name for entry in dataclasses.fields(Config)]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(known)}."
            raise ConfigError(f"{source} has the unknown option {name!r}.{hint}")
    return Config(**options)


def shipped() -> list[str]:
    """Names of the configurations that come with the package."""
    folder = resources.files(__package__) / "configs"
    return sorted(entry.name[: -len(".json")] for entry in folder.iterdir() if entry.name.endswith(".json"))


def read_options(name_or_path: str | Path) -> dict[str, Any]:
    """The options in a JSON file, or in a configuration that ships with the package.

    Args:
        name_or_path: the name of a shipped configuration (see :func:`shipped`), or a file.

    Raises:
        ConfigError: there is no such file, or it does not hold a JSON object.
    """
    if str(name_or_path) in shipped():
        text = (resources.files(__package__) / "configs" / f"{name_or_path}.json").read_text("utf-8")
    else:
        try:
            text = Path(name_or_path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The configuration {str(name_or_path)!r} cannot be read: {error}. It must be a JSON file, or one of "
                f"the names that ship with the package: {', '.join(shipped())}."
            ) from error
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"The configuration {str(name_or_path)!r} is not valid JSON: {error}.") from error
    if not isinstance(options, dict):
        raise ConfigError(
            f"The configuration {str(name_or_path)!r} must be a JSON object, not {options!r:.60}."
        )
    return options


def read(name_or_path: str | Path) -> Config:
    """The configuration in a file, or one that ships with the package; arguments and errors as above."""
    return from_mapping(read_options(name_or_path), str(name_or_path))


def _checked(entry: dataclasses.Field, value: Any) -> Any:
    """The value, as its type, or an error."""
    kind, optional, choices = (entry.metadata[name] for name in ("kind", "optional", "choices"))
    if value is None and optional:
        return None
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value, fits = float(value), True
    if kind is list and isinstance(value, list | tuple):
        fits = bool(value) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        value = [float(v) for v in value] if fits else value
    if not fits:
        expected = {list: "a list of numbers", dict: "a JSON object"}.get(kind, f"of type {kind.__name__}")
        or_none = " or null" if optional else ""
        raise ConfigError(f"The option {entry.name!r} must be {expected}{or_none}, but is {value!r}.")
    if choices and value not in choices:
        raise ConfigError(f"The option {entry.name!r} must be one of {', '.join(choices)}, but is {value!r}.")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"The option {entry.name!r} must be finite, but is {value}.")
    return value


# Smallest and largest value, and whether these themselves are allowed.
_RANGES: dict[str, tuple[float, float, bool, bool]] = {
    "image_size": (1, math.inf, True, False),
    "crop_padding": (0, math.inf, True, False),
    "crop_scale": (0, 1, False, True),
    "workers": (0, math.inf, True, False),
    "threads": (1, math.inf, True, False),
    "epochs": (1, math.inf, True, False),
    "batch_size": (1, math.inf, True, False),
    "accumulate": (1, math.inf, True, False),
    "lr": (0, math.inf, False, False),
    "min_lr": (0, math.inf, True, False),
    "warmup_epochs": (0, math.inf, True, False),
    "warmup_factor": (0, 1, True, True),
    "momentum": (0, 1, True, False),
    "weight_decay": (0, math.inf, True, False),
    "label_smoothing": (0, 1, True, False),
    "clip_grad_norm": (0, math.inf, False, False),
    "ema_decay": (0, 1, False, False),
    "skip_non_finite": (0, math.inf, True, False),
    "seed": (0, 2**63, True, False),
}


def _check_ranges(config: Config) -> None:
    for name, (low, high, with_low, with_high) in _RANGES.items():
        value = getattr(config, name)
        if value is None:
            continue
        above = value >= low if with_low else value > low
        below = value <= high if with_high else value < high
        if not (above and below):
            least = f"at least {low:g}" if with_low else f"more than {low:g}"
            most = "" if high == math.inf else f" and {'at most' if with_high else 'less than'} {high:g}"
            raise ConfigError(f"The option {name!r} must be {least}{most}, but is {value}.")
    if config.channels not in (None, 1, 3):
        raise ConfigError(f"The option 'channels' must be 1 or 3, but is {config.channels}.")
    if config.std is not None and min(config.std) <= 0:
        raise ConfigError(f"The option 'std' must hold positive numbers, but is {config.std}.")


def _check_together(config: Config) -> None:
    """Options that contradict each other, so that none is ignored."""
    if config.data == "digits":
        if config.data_path is not None:
            raise ConfigError(
                f"The digits ship inside scikit-learn, so data_path ({config.data_path!r}) has no meaning for "
                "them; name other data by the option 'data'."
            )
        if config.flip:
            raise ConfigError("The option 'flip' must be off for digits: mirrored ones are no digits.")
    elif config.data_path is None:
        raise ConfigError(f"The data {config.data!r} needs the option 'data_path', the folder it is in.")
    if config.data == "folder":
        if config.crop_padding is not None:
            raise ConfigError("The option 'crop_padding' is for digits and CIFAR; folders have 'crop_scale'.")
    else:
        for name in ("image_size", "channels"):
            if getattr(config, name) is not None:
                raise ConfigError(f"The option {name!r} is for folders of images; {config.data} has its own.")
        if config.crop_scale != 0.08:
            raise ConfigError(f"The option 'crop_scale' is for folders; {config.data} has 'crop_padding'.")
    if config.min_lr > config.lr:
        raise ConfigError(f"The option 'min_lr' ({config.min_lr}) must not be more than 'lr' ({config.lr}).")
    if config.warmup_epochs > config.epochs:
        raise ConfigError(
            f"The option 'warmup_epochs' ({config.warmup_epochs:g}) must not be more than 'epochs' ({config.epochs})."
        )
    if config.nesterov and config.optimizer == "sgd" and config.momentum == 0:
        raise ConfigError("The option 'nesterov' needs a 'momentum' above 0.")
    for name in ("num_classes", "in_channels"):
        if name in config.model_arguments:
            raise ConfigError(f"The data decides {name!r}, so 'model_arguments' must leave it out.")
