"""Training of image classifiers: what ``python -m involution.train`` and ``python -m involution.evaluate`` are made of.

:func:`train` runs from a :class:`Config`, :func:`load_model` gives the trained model back; ``involution.evaluate``
has the function that tests it.
"""

from .checkpoint import CheckpointError, load_model, read_checkpoint
from .config import Config, ConfigError, from_mapping, read, shipped
from .distributed import DeviceError
from .images import BadImageError, DataError
from .runs import newest_run
from .step import NonFiniteError
from .trainer import Result, train

# What a command reports in a sentence, without a traceback.
EXPECTED_ERRORS = (
    BadImageError,
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    FloatingPointError,
    ImportError,
)

__all__ = [
    "EXPECTED_ERRORS",
    "BadImageError",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "DeviceError",
    "NonFiniteError",
    "Result",
    "from_mapping",
    "load_model",
    "newest_run",
    "read",
    "read_checkpoint",
    "shipped",
    "train",
]
