"""The libraries that training stands on, or an error that says what is missing."""

from .._extras import needed_by

with needed_by("Training", "train"):
    import jsonargparse
    import lightning.pytorch as lightning
    import pycocotools.mask
    import torchmetrics
    import torchvision.transforms.v2
    from lightning.pytorch.cli import LightningCLI
    from matplotlib.figure import Figure  # needed at the end of a run, so that it should fail now

__all__ = [
    "Figure",
    "LightningCLI",
    "jsonargparse",
    "lightning",
    "pycocotools",
    "torchmetrics",
    "torchvision",
]
