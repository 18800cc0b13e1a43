"""Derivatives of the operators, made of the operators.

All three are partial contractions of one trilinear form ``T(x, w, y)`` (see ``involution.reference``), so the
gradient of each is made of the other two, and the set is closed under differentiation to any order:

=========================  ==========================================  =====================================
operation                  gradient with respect to its first tensor    with respect to its second
=========================  ==========================================  =====================================
involution(x, w)           involution_transpose(grad, w)                local_correlation(grad, x)
involution_transpose(y, w) involution(grad, w)                          local_correlation(y, grad)
local_correlation(y, x)    involution(x, grad)                          involution_transpose(y, grad)
=========================  ==========================================  =====================================

The compiled extension brings the same rules in C++ (``csrc/autograd.cpp``); those of the fused involution
(``involution._fused_derivatives``) are in Python alone. ``register`` gives rules to the dispatcher: torch comes by once
for each level of differentiation, be it of ``backward``, of ``torch.func`` or of forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import _fused_derivatives
from ._composition import apply_epilogue

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


class Rule(NamedTuple):
    """The derivative of an operator whose first arguments are the tensors that it is differentiated by.

    ``gradients(asked, grad, *arguments)`` is a gradient, or None, for each of these tensors; ``tangent(tangents,
    *arguments)`` is that of the result, for which one of theirs at least is not None.
    """

    tensors: int
    gradients: Callable[..., tuple[Tensor | None, ...]]
    tangent: Callable[..., Tensor]


def _bilinear(name: str, both: Callable[..., Gradients]) -> Rule:
    """The rule of an operator that is linear in each of two tensors."""

    def gradients(asked: Sequence[bool], grad: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
        pairs = zip(both(grad, *arguments), asked, strict=True)
        return tuple(gradient() if need else None for gradient, need in pairs)

    def tangent(tangents: tuple, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        terms = []
        if tangents[0] is not None:
            terms.append(_operator(name)(tangents[0], second, *arguments))
        if tangents[1] is not None:
            terms.append(_operator(name)(first, tangents[1], *arguments))
        return sum(terms[1:], terms[0])

    return Rule(2, gradients, tangent)


_RULES = {
    "involution": _bilinear("involution", _involution_gradients),
    "involution_transpose": _bilinear("involution_transpose", _transpose_gradients),
    "local_correlation": _bilinear("local_correlation", _correlation_gradients),
    "fused_involution": Rule(4, _fused_derivatives.gradients, _fused_derivatives.tangent),
}


def _below_autograd(operator: Callable[..., Any], *arguments: Any) -> Any:
    """The operator's own kernel, past the derivative that is registered for it."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _is_differentiated(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a gradient is recorded, or a tangent goes along, be it by forward_ad or by torch.func.jvp."""
    present = [tensor for tensor in tensors if tensor is not None]
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in present)
    return recorded or any(torch._VF._unpack_dual(tensor, level=0)[1] is not None for tensor in present)


def _autograd_kernel(name: str) -> Operator:
    """What the dispatcher runs where autograd may have to do with a tensor: once for each level of torch.func."""
    operator, rule = _operator(name), _RULES[name]

    class SingleLevel(_SingleLevelFunction):
        """The operation for one level alone, in the form that torch asks for under its transforms."""

        @staticmethod
        def forward(*arguments: Any) -> Tensor:
            # A Function's forward switches differentiation off, but the levels outside of this one go on.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return _below_autograd(operator, *arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
            tensors = inputs[: rule.tensors]
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*tensors)
            ctx.arguments = inputs[rule.tensors :]

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            """Only the gradients that are asked for."""
            asked = ctx.needs_input_grad[: rule.tensors]
            found = rule.gradients(asked, grad, *ctx.saved_tensors, *ctx.arguments)
            return *found, *(None for _ in ctx.arguments)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
            return rule.tangent(tangents[: rule.tensors], *ctx.saved_tensors, *ctx.arguments)

    def kernel(*arguments: Any) -> Tensor:
        if _is_differentiated(arguments[: rule.tensors]):
            with enable_single_level_autograd_function():
                return SingleLevel.apply(*arguments)  # type: ignore[attr-defined]
        return _below_autograd(operator, *arguments)

    return kernel


def _with_epilogue(kernel: Operator) -> Operator:
    """The kernel of an operator that ends in an epilogue, of which torch's operations make the derivatives."""
    operator = _operator("fused_involution")

    def whole(
        input: Tensor,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        arguments = (input, features, weight, bias, kernel_size, stride, padding, dilation)
        epilogue = (scale, shift, relu)
        if _is_differentiated((input, features, weight, bias, scale, shift)):
            return apply_epilogue(kernel(*arguments), *epilogue)
        return _below_autograd(operator, *arguments, *epilogue)

    return whole


def _backward_kernel() -> Callable[..., tuple[Tensor | None, ...]]:
    """The gradients of the fused involution, composed where they are differentiated themselves."""
    operator = _operator("fused_involution_backward")

    def whole(*arguments: Any) -> tuple[Tensor | None, ...]:
        *others, asked = arguments
        if _is_differentiated(others[:5]):  # the tensors
            return _fused_derivatives.composed(asked, *others)
        return _below_autograd(operator, *arguments)

    return whole


def register(library: torch.library.Library, names: Iterable[str]) -> None:
    """Registers the derivatives of operators.

    Args:
        library: one for the namespace of the operators, of kind ``"IMPL"``; it keeps the registrations alive.
        names: the operators.
    """
    for name in names:
        kernel = _autograd_kernel(name)
        if name == "fused_involution":
            kernel = _with_epilogue(kernel)
            library.impl("fused_involution_backward", _backward_kernel(), "Autograd")
        library.impl(name, kernel, "Autograd")
