"""The dispatcher operators ``torch.ops.involution.*``: their registrations other than the compiled kernels.

The compiled extension defines the operators and registers their CPU and CUDA kernels. Everything that lacks a
kernel, which is every device where nothing was compiled, takes the definition in plain PyTorch. Autograd,
vmap and fake (meta) implementations are registered by ``involution.autograd`` and here, so that the
operators are complete for torch.compile, torch.export and callers that use them directly.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _flops, reference
from ._build_info import build_info, load_extension, rebuild_command

NAMESPACE = "involution"

# The same text as in csrc/ops.cpp, for installations that have no compiled extension.
SCHEMAS = (
    "involution(Tensor input, Tensor weight, SymInt[] stride, SymInt[] padding, SymInt[] dilation) -> Tensor",
    "involution_transpose(Tensor input, Tensor weight, SymInt[] output_size, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation) -> Tensor",
    "local_correlation(Tensor query, Tensor key, SymInt[] kernel_size, SymInt groups, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation) -> Tensor",
)


def is_channels_last(activation: Tensor) -> bool:
    """Channels are the innermost axis in memory, as in torch.channels_last, also for sequences and slices."""
    return activation.shape[1] > 1 and activation.stride(1) == 1 and not activation.is_contiguous()


def _empty(sizes: Sequence[int], leading: int, channels_last: bool, like: Tensor) -> Tensor:
    """An uninitialised tensor whose axes 1 to ``leading`` - 1 are innermost in memory if channels_last."""
    if not channels_last:
        return like.new_empty(sizes)
    axes = range(len(sizes))
    order = [0, *axes[leading:], *axes[1:leading]]
    return like.new_empty([sizes[axis] for axis in order]).permute([order.index(axis) for axis in axes])


def _empty_result(operation: str, first: Tensor, *arguments: Any) -> Tensor:
    """What the operator returns, in shape and storage, from the arguments of its schema."""
    channels_last = is_channels_last(first)
    if operation == "local_correlation":
        _, kernel_size, groups, *_ = arguments
        sizes = [first.shape[0], groups, *kernel_size, *first.shape[2:]]
        return _empty(sizes, 2 + len(kernel_size), channels_last, first)
    if operation == "involution":
        weight, stride, *_ = arguments
        space = weight.shape[2 + len(stride) :]
    else:
        _, space, *_ = arguments
    return _empty([*first.shape[:2], *space], 2, channels_last, first)


@functools.cache
def _warn_of_reference_on_cuda() -> None:
    reason = build_info()["no_cuda_reason"]
    warnings.warn(
        f"involution runs its slow reference on a CUDA tensor, because its CUDA kernels are not built: {reason} "
        f"To build them, install a CUDA toolkit and run: INVOLUTION_BUILD=cuda {rebuild_command()}",
        stacklevel=2,
    )


def _by_reference(operation: str) -> Callable[..., Tensor]:
    function = getattr(reference, operation)

    def kernel(first: Tensor, *arguments: Any) -> Tensor:
        if first.is_cuda:
            _warn_of_reference_on_cuda()
        # The same storage format as the kernels give, whatever the formula's own.
        return _empty_result(operation, first, *arguments).copy_(function(first, *arguments))

    return kernel


def _register() -> None:
    if not load_extension():
        definition = torch.library.Library(NAMESPACE, "DEF")
        _LIBRARIES.append(definition)
        for schema in SCHEMAS:
            definition.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    implementation = torch.library.Library(NAMESPACE, "IMPL")
    _LIBRARIES.append(implementation)
    for operation in ("involution", "involution_transpose", "local_correlation"):
        implementation.impl(operation, _by_reference(operation), "CompositeExplicitAutograd")
        fake = functools.partial(_empty_result, operation)
        torch.library.register_fake(f"{NAMESPACE}::{operation}", fake, lib=implementation)


_LIBRARIES: list[torch.library.Library] = []  # a registration lives as long as its library
_register()
_flops.register()

involution = torch.ops.involution.involution.default
involution_transpose = torch.ops.involution.involution_transpose.default
local_correlation = torch.ops.involution.local_correlation.default
