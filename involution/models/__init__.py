"""RedNet, the network of the paper: building, checkpoints, features."""

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
    "RedNet",
    "create_model",
    "list_models",
    "rednet26",
    "rednet38",
    "rednet50",
    "rednet101",
    "rednet152",
    "rednet_tiny",
]
