"""RedNet, the network of the paper: building, checkpoints, features."""

from .fusion import fuse
from .official import from_official, to_official
from .pretrained import CheckpointError, LoadReport, from_checkpoint, load_checkpoint, save_official
from .pyramid import FeaturePyramid
from .rednet import RedNet
from .registry import (
    create_model,
    list_models,
    rednet26,
    rednet38,
    rednet50,
    rednet101,
    rednet152,
    rednet_tiny,
)

__all__ = [
    "CheckpointError",
    "FeaturePyramid",
    "LoadReport",
    "RedNet",
    "create_model",
    "from_checkpoint",
    "from_official",
    "fuse",
    "list_models",
    "load_checkpoint",
    "rednet26",
    "rednet38",
    "rednet50",
    "rednet101",
    "rednet152",
    "rednet_tiny",
    "save_official",
    "to_official",
]
