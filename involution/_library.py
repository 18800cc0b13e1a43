"""The dispatcher operators ``torch.ops.involution.*``: their registrations other than the compiled kernels.

The compiled extension defines the operators and registers their CPU and CUDA kernels, their derivatives and what
they do under autocast. Everything that lacks a kernel, which is every device where nothing was compiled, takes the
definition in plain PyTorch; without the extension, derivatives and autocast come from ``involution.autograd`` and
``involution._autocast``. The derivatives of the fused involution do in either case, and the vmap and fake (meta)
implementations are registered here in either case, so that the operators are complete for torch.compile, torch.export
and callers that use them directly.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _autocast, _composition, _flops, _fused_derivatives, _vmap, autograd, reference
from ._build_info import build_info, load_extension, rebuild_command
from ._composition import is_channels_last

NAMESPACE = "involution"
OPERATIONS = ("involution", "involution_transpose", "local_correlation")

# The same text as in csrc/ops.cpp, for installations that have no compiled extension.
SCHEMAS = (
    "involution(Tensor input, Tensor weight, SymInt[] stride, SymInt[] padding, SymInt[] dilation) -> Tensor",
    "involution_transpose(Tensor input, Tensor weight, SymInt[] output_size, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation) -> Tensor",
    "local_correlation(Tensor query, Tensor key, SymInt[] kernel_size, SymInt groups, SymInt[] stride, "
    "SymInt[] padding, SymInt[] dilation) -> Tensor",
    "fused_involution(Tensor input, Tensor features, Tensor weight, Tensor? bias, SymInt[] kernel_size, "
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, Tensor? scale=None, Tensor? shift=None, "
    "bool relu=False) -> Tensor",
    "fused_involution_backward(Tensor grad, Tensor input, Tensor features, Tensor weight, Tensor? bias, "
    "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool[4] asked) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
)


def _empty(sizes: Sequence[int], leading: int, channels_last: bool, like: Tensor) -> Tensor:
    """An uninitialised tensor whose axes 1 to ``leading`` - 1 are innermost in memory if channels_last."""
    if not channels_last:
        return like.new_empty(sizes)
    strides = [0] * len(sizes)
    stride = 1
    for axis in (*range(leading - 1, 0, -1), *range(len(sizes) - 1, leading - 1, -1), 0):
        strides[axis] = stride
        stride *= torch.sym_max(1, sizes[axis])
    return like.new_empty_strided(sizes, strides)


def _empty_result(operation: str, first: Tensor, *arguments: Any) -> Tensor:
    """What the operator returns, in shape and storage, from the arguments of its schema."""
    if torch.onnx.is_in_onnx_export():
        _hint_at_translations()
    channels_last = is_channels_last(first)
    if operation == "local_correlation":
        _, kernel_size, groups, *_ = arguments
        sizes = [first.shape[0], groups, *kernel_size, *first.shape[2:]]
        return _empty(sizes, 2 + len(kernel_size), channels_last, first)
    if operation == "involution":
        weight, stride, *_ = arguments
        space = weight.shape[2 + len(stride) :]
    elif operation == "fused_involution":
        features, *_ = arguments
        space = features.shape[2:]
    else:
        _, space, *_ = arguments
    return _empty([*first.shape[:2], *space], 2, channels_last, first)


# Set by those who know; see involution.export.onnx.
onnx_translations_are_known = False


def _hint_at_translations() -> None:
    """torch.onnx.export says only that it has no function for an operator; it traces with fake tensors first."""
    if not onnx_translations_are_known:
        warnings.warn(
            "torch.onnx.export needs the translations of involution's operators: "
            "custom_translation_table=involution.export.onnx.translation_table(). involution.export.onnx.export gives "
            "them itself, and leaves batch and size open.",
            stacklevel=2,
        )


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

    def kernel(first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        if first.dtype != second.dtype:
            raise TypeError(
                f"{operation} needs tensors of one dtype, but they are {first.dtype} and {second.dtype}."
            )
        if first.is_cuda:
            _warn_of_reference_on_cuda()
        # The same storage format as the kernels give, whatever the formula's own.
        result = _empty_result(operation, first, second, *arguments)
        return result.copy_(function(first, second, *arguments))

    return kernel


def _composed(*arguments: Any) -> Tensor:
    """The fused involution without its extension."""
    _composition.check(*arguments[:10])
    return _composition.compose(*arguments)


def _empty_gradients(*arguments: Any) -> tuple[Tensor | None, ...]:
    """Kernels give what the composition gives, in shape and storage."""
    *others, asked = arguments
    return _fused_derivatives.composed(asked, *others)


def _register() -> None:
    compiled = load_extension()
    if not compiled:
        definition = torch.library.Library(NAMESPACE, "DEF")
        _LIBRARIES.append(definition)
        for schema in SCHEMAS:
            definition.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    implementation = torch.library.Library(NAMESPACE, "IMPL")
    _LIBRARIES.append(implementation)
    for operation in OPERATIONS:
        name = f"{NAMESPACE}::{operation}"
        implementation.impl(operation, _by_reference(operation), "CompositeExplicitAutograd")
        torch.library.register_fake(name, functools.partial(_empty_result, operation), lib=implementation)
        operator = getattr(torch.ops.involution, operation).default
        torch.library.register_vmap(name, _vmap.rule(operator), lib=implementation)
    name = f"{NAMESPACE}::fused_involution"
    torch.library.register_fake(
        name, functools.partial(_empty_result, "fused_involution"), lib=implementation
    )
    torch.library.register_vmap(name, _vmap.fused_rule, lib=implementation)
    implementation.impl("fused_involution_backward", _fused_derivatives.backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{name}_backward", _empty_gradients, lib=implementation)
    autograd.register(implementation, ["fused_involution"])
    if not compiled:
        implementation.impl("fused_involution", _composed, "CompositeExplicitAutograd")
        autograd.register(implementation, OPERATIONS)
        _autocast.register(implementation)


_LIBRARIES: list[torch.library.Library] = []  # a registration lives as long as its library
_register()
_flops.register()

involution = torch.ops.involution.involution.default
involution_transpose = torch.ops.involution.involution_transpose.default
local_correlation = torch.ops.involution.local_correlation.default
fused_involution = torch.ops.involution.fused_involution.default
