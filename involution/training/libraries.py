"""The libraries that training stands on, or an error that says what is missing."""

import importlib.metadata

import torch

try:
    import jsonargparse
    import lightning.pytorch as lightning
    import matplotlib  # noqa: F401  needed at the end of a run, so that it should fail now
    import torchmetrics
    import torchvision.transforms.v2
    from lightning.pytorch.cli import LightningCLI
except ImportError as error:
    hint = "which is not installed. Install it with: pip install -e '.[train]'"
    raise ImportError(f"Training needs {error.name}, {hint}") from error
except RuntimeError as error:  # the operators of torchvision were compiled for another torch
    raise ImportError(
        f"torchvision {importlib.metadata.version('torchvision')} does not work with torch {torch.__version__} "
        f"({error}). Install a pair that belongs together, from one index: pip install --upgrade torch torchvision"
    ) from error

__all__ = ["LightningCLI", "jsonargparse", "lightning", "torchmetrics", "torchvision"]
