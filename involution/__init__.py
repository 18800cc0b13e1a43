"""Involution for PyTorch: a kernel made from the input at every position, shared across channels.

The three operations (``involution*d``, ``involution_transpose*d``, ``local_correlation*d``), each differentiable to
any order, with CPU and CUDA kernels where they are built and plain PyTorch elsewhere; and layers made of them.
"""

from . import models, reference
from ._build_info import build_info, cmake_prefix_path, library_path
from ._fused import fused_available
from ._version import __version__
from .conversion import Conversion, ConversionReport, convert
from .functional import (
    involution1d,
    involution2d,
    involution3d,
    involution_transpose1d,
    involution_transpose2d,
    involution_transpose3d,
    local_correlation1d,
    local_correlation2d,
    local_correlation3d,
)
from .layers import (
    AttentionModule,
    Involution1d,
    Involution2d,
    Involution3d,
    InvolutionLayer,
    InvolutionTranspose1d,
    InvolutionTranspose2d,
    InvolutionTranspose3d,
    LocalAttention1d,
    LocalAttention2d,
    LocalAttention3d,
    kernel_decompose,
)

__all__ = [
    "AttentionModule",
    "Conversion",
    "ConversionReport",
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
    "__version__",
    "build_info",
    "cmake_prefix_path",
    "convert",
    "fused_available",
    "involution1d",
    "involution2d",
    "involution3d",
    "involution_transpose1d",
    "involution_transpose2d",
    "involution_transpose3d",
    "kernel_decompose",
    "library_path",
    "local_correlation1d",
    "local_correlation2d",
    "local_correlation3d",
    "models",
    "reference",
]
