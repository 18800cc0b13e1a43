"""Semantic segmentation with RedNet: Semantic FPN and UPerNet, in plain PyTorch.

:func:`semantic_fpn` and :func:`upernet` build them on any RedNet; functions of their own build those on ``rednet26``,
``38``, ``50``, ``101`` and ``152``: ``semantic_fpn_rednet50``.
"""

from collections.abc import Callable

from .heads import FCNHead, SemanticFPNHead, UPerHead
from .models import BUILDERS, Segmenter, semantic_fpn, semantic_fpn_rednet_tiny, upernet

__all__ = [
    "FCNHead",
    "Segmenter",
    "SemanticFPNHead",
    "UPerHead",
    "semantic_fpn",
    "semantic_fpn_rednet_tiny",
    "upernet",
    *BUILDERS,
]


def __getattr__(name: str) -> Callable[..., Segmenter]:
    if name not in BUILDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return BUILDERS[name]
