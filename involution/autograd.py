"""Derivatives of the three operations, made of the three operations: for installations without the extension.

All three are partial contractions of one trilinear form ``T(x, w, y)`` (see ``involution.reference``), so the
gradient of each is made of the other two, and the set is closed under differentiation to any order:

=========================  ==========================================  =====================================
operation                  gradient with respect to its first tensor    with respect to its second
=========================  ==========================================  =====================================
involution(x, w)           involution_transpose(grad, w)                local_correlation(grad, x)
involution_transpose(y, w) involution(grad, w)                          local_correlation(y, grad)
local_correlation(y, x)    involution(x, grad)                          involution_transpose(y, grad)
=========================  ==========================================  =====================================

The compiled extension brings the same rules in C++ (``csrc/autograd.cpp``). Where it is missing, ``register``
gives them to the dispatcher: torch comes by once for each level of differentiation, be it of ``backward``, of
``torch.func`` or of forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

__all__ = ["register"]

Size = Sequence[int]
Operator = Callable[..., Tensor]
Gradients = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def _operator(name: str) -> Operator:
    return getattr(torch.ops.involution, name).default


def _involution_gradients(
    grad: Tensor, input: Tensor, weight: Tensor, stride: Size, padding: Size, dilation: Size
) -> Gradients:
    steps = (stride, padding, dilation)
    kernel_size = weight.shape[2 : 2 + len(stride)]
    return (
        lambda: _operator("involution_transpose")(grad, weight, input.shape[2:], *steps),
        lambda: _operator("local_correlation")(grad, input, kernel_size, weight.shape[1], *steps),
    )


def _transpose_gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    output_size: Size,
    stride: Size,
    padding: Size,
    dilation: Size,
) -> Gradients:
    steps = (stride, padding, dilation)
    kernel_size = weight.shape[2 : 2 + len(stride)]
    return (
        lambda: _operator("involution")(grad, weight, *steps),
        lambda: _operator("local_correlation")(input, grad, kernel_size, weight.shape[1], *steps),
    )


def _correlation_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    kernel_size: Size,
    groups: int,
    stride: Size,
    padding: Size,
    dilation: Size,
) -> Gradients:
    steps = (stride, padding, dilation)
    return (
        lambda: _operator("involution")(key, grad, *steps),
        lambda: _operator("involution_transpose")(query, grad, key.shape[2:], *steps),
    )


_GRADIENTS: dict[str, Callable[..., Gradients]] = {
    "involution": _involution_gradients,
    "involution_transpose": _transpose_gradients,
    "local_correlation": _correlation_gradients,
}


def _below_autograd(operator: Operator, *arguments: Any) -> Tensor:
    """The operator's own kernel, past the derivative that is registered for it."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation goes through a tensor, be it by forward_ad or by torch.func.jvp."""
    return torch._VF._unpack_dual(tensor, level=0)[1] is not None


def _autograd_kernel(name: str) -> Operator:
    """What the dispatcher runs where autograd may have to do with a tensor: once for each level of torch.func."""
    operator, gradients = _operator(name), _GRADIENTS[name]

    class SingleLevel(_SingleLevelFunction):
        """The operation for one level alone, in the form that torch asks for under its transforms."""

        @staticmethod
        def forward(*arguments: Any) -> Tensor:
            # A Function's forward switches differentiation off, but the levels outside of this one go on.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return _below_autograd(operator, *arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
            first, second, *arguments = inputs
            ctx.save_for_backward(first, second)
            ctx.save_for_forward(first, second)
            ctx.arguments = arguments

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            """Only the gradients that are asked for."""
            both = gradients(grad, *ctx.saved_tensors, *ctx.arguments)
            asked = zip(both, ctx.needs_input_grad[:2], strict=True)
            return *(gradient() if need else None for gradient, need in asked), *(None for _ in ctx.arguments)

        @staticmethod
        def jvp(ctx: Any, first_tangent: Tensor | None, second_tangent: Tensor | None, *_: None) -> Tensor:
            """The product rule: the operation is linear in each of its tensors."""
            first, second = ctx.saved_tensors
            terms = []
            if first_tangent is not None:
                terms.append(operator(first_tangent, second, *ctx.arguments))
            if second_tangent is not None:
                terms.append(operator(first, second_tangent, *ctx.arguments))
            return sum(terms[1:], terms[0])

    def kernel(first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        recorded = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
        if recorded or _has_tangent(first) or _has_tangent(second):
            with enable_single_level_autograd_function():
                return SingleLevel.apply(first, second, *arguments)  # type: ignore[attr-defined]
        return _below_autograd(operator, first, second, *arguments)

    return kernel


def register(library: torch.library.Library) -> None:
    """Registers the derivatives of the operators.

    Args:
        library: one for the namespace of the operators, of kind ``"IMPL"``; it keeps the registrations alive.
    """
    for name in _GRADIENTS:
        library.impl(name, _autograd_kernel(name), "Autograd")
