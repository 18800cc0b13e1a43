"""Modules made of the operations."""

from .attention import AttentionModule, kernel_decompose
from .involution import Involution1d, Involution2d, Involution3d
from .involution_layer import InvolutionLayer

__all__ = [
    "AttentionModule",
    "Involution1d",
    "Involution2d",
    "Involution3d",
    "InvolutionLayer",
    "kernel_decompose",
]
