"""Semantic segmentation with RedNet: Semantic FPN and UPerNet, in plain PyTorch."""

from .heads import FCNHead, SemanticFPNHead, UPerHead
from .models import (
    Segmenter,
    semantic_fpn,
    semantic_fpn_rednet26,
    semantic_fpn_rednet38,
    semantic_fpn_rednet50,
    semantic_fpn_rednet101,
    semantic_fpn_rednet152,
    semantic_fpn_rednet_tiny,
    upernet,
    upernet_rednet26,
    upernet_rednet38,
    upernet_rednet50,
    upernet_rednet101,
    upernet_rednet152,
)

__all__ = [
    "FCNHead",
    "Segmenter",
    "SemanticFPNHead",
    "UPerHead",
    "semantic_fpn",
    "semantic_fpn_rednet26",
    "semantic_fpn_rednet38",
    "semantic_fpn_rednet50",
    "semantic_fpn_rednet101",
    "semantic_fpn_rednet152",
    "semantic_fpn_rednet_tiny",
    "upernet",
    "upernet_rednet26",
    "upernet_rednet38",
    "upernet_rednet50",
    "upernet_rednet101",
    "upernet_rednet152",
]
