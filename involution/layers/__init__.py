"""Modules made of the operations."""

from .attention import AttentionModule, kernel_decompose
from .involution import Involution1d, Involution2d, Involution3d
from .involution_layer import InvolutionLayer
from .involution_transpose import InvolutionTranspose1d, InvolutionTranspose2d, InvolutionTranspose3d
from .local_attention import LocalAttention1d, LocalAttention2d, LocalAttention3d

__all__ = [
    "AttentionModule",
    "Involution1d",
    "Involution2d",
    "Involution3d",
    "InvolutionLayer",
    "InvolutionTranspose1d",
    "InvolutionTranspose2d",
    "InvolutionTranspose3d",
    "LocalAttention1d",
    "LocalAttention2d",
    "LocalAttention3d",
    "kernel_decompose",
]
