"""Modules made of the operations."""

from .attention import AttentionModule, kernel_decompose
from .involution_layer import InvolutionLayer

__all__ = ["AttentionModule", "InvolutionLayer", "kernel_decompose"]
