"""Derivatives of the three operations, made of the three operations.

All three are partial contractions of one trilinear form ``T(x, w, y)`` (see ``involution.reference``), so the
gradient of each is made of the other two, and the set is closed under differentiation to any order:

=========================  ==========================================  =====================================
operation                  gradient with respect to its first tensor    with respect to its second
=========================  ==========================================  =====================================
involution(x, w)           involution_transpose(grad, w)                local_correlation(grad, x)
involution_transpose(y, w) involution(grad, w)                          local_correlation(y, grad)
local_correlation(y, x)    involution(x, grad)                          involution_transpose(y, grad)
=========================  ==========================================  =====================================

``involve``, ``transpose`` and ``correlate`` take complete per-axis arguments and are what the public functions
and the derivatives themselves call. Each picks the cheapest way that is right: the bare operator where no
derivative can be asked for; a Python autograd Function in eager mode; the same Function in the form that
composes with torch.func under a transform or forward-mode AD; and under torch.compile the operator itself,
whose derivative is registered with the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _library

Size = Sequence[int]

__all__ = ["Correlate", "Involve", "Transpose", "correlate", "involve", "transpose"]


class _Bilinear(torch.autograd.Function):
    """An operation that is linear in its first two arguments, which are tensors; composes with torch.func.

    A subclass names the dispatcher operator and the two gradients. Methods are class methods where autograd
    expects static ones, so that the three operations share them.
    """

    operator: Callable[..., Tensor]

    @classmethod
    def forward(cls, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        return cls.operator(first, second, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        first, second, *arguments = inputs
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)
        ctx.arguments = tuple(arguments)

    @classmethod
    def evaluate(cls, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        """The operation with whatever derivatives may still be asked for."""
        return _dispatch(cls.operator, cls, _EAGER[cls], first, second, *arguments)

    @staticmethod
    def first_gradient(grad: Tensor, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def second_gradient(grad: Tensor, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        raise NotImplementedError

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            cls.first_gradient(grad, first, second, *ctx.arguments) if needs[0] else None,
            cls.second_gradient(grad, first, second, *ctx.arguments) if needs[1] else None,
            *(None for _ in ctx.arguments),
        )

    @classmethod
    def jvp(cls, ctx: Any, first_tangent: Tensor | None, second_tangent: Tensor | None, *_: None) -> Tensor:
        """The product rule."""
        first, second = ctx.saved_tensors
        terms = []
        if first_tangent is not None:
            terms.append(cls.evaluate(first_tangent, second, *ctx.arguments))
        if second_tangent is not None:
            terms.append(cls.evaluate(first, second_tangent, *ctx.arguments))
        return sum(terms[1:], terms[0])

    @classmethod
    def vmap(
        cls, info: Any, in_dims: tuple, first: Tensor, second: Tensor, *arguments: Any
    ) -> tuple[Tensor, int]:
        """The mapped axis joins the batch, over which the operations are maps anyway."""
        size = info.batch_size
        folded = (_fold(first, in_dims[0], size), _fold(second, in_dims[1], size))
        result = cls.evaluate(*folded, *arguments)
        return result.reshape(size, result.shape[0] // size, *result.shape[1:]), 0


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Moves a mapped axis to the front and merges it with the batch; an unmapped tensor is repeated."""
    mapped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return mapped.reshape(size * mapped.shape[1], *mapped.shape[2:])


class _Eager:
    """The faster form of a Function, for eager mode only: the context is filled while forward runs."""

    setup_context = staticmethod(
        torch.autograd.Function.setup_context
    )  # not overridden, says this to autograd

    @classmethod
    def forward(cls, ctx: Any, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        ctx.save_for_backward(first, second)
        ctx.arguments = arguments
        return _below_autograd(cls.operator, first, second, *arguments)  # type: ignore[attr-defined]


class Involve(_Bilinear):
    """``involution(x, w)``; arguments are stride, padding and dilation."""

    operator = _library.involution

    @staticmethod
    def first_gradient(  # noqa: D102
        grad: Tensor, input: Tensor, weight: Tensor, stride: Size, padding: Size, dilation: Size
    ) -> Tensor:
        return transpose(grad, weight, input.shape[2:], stride, padding, dilation)

    @staticmethod
    def second_gradient(  # noqa: D102
        grad: Tensor, input: Tensor, weight: Tensor, stride: Size, padding: Size, dilation: Size
    ) -> Tensor:
        kernel_size = weight.shape[2 : 2 + len(stride)]
        return correlate(grad, input, kernel_size, weight.shape[1], stride, padding, dilation)


class Transpose(_Bilinear):
    """``involution_transpose(y, w)``; arguments are output_size, stride, padding and dilation."""

    operator = _library.involution_transpose

    @staticmethod
    def first_gradient(  # noqa: D102
        grad: Tensor,
        input: Tensor,
        weight: Tensor,
        output_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
    ) -> Tensor:
        return involve(grad, weight, stride, padding, dilation)

    @staticmethod
    def second_gradient(  # noqa: D102
        grad: Tensor,
        input: Tensor,
        weight: Tensor,
        output_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
    ) -> Tensor:
        kernel_size = weight.shape[2 : 2 + len(stride)]
        return correlate(input, grad, kernel_size, weight.shape[1], stride, padding, dilation)


class Correlate(_Bilinear):
    """``local_correlation(y, x)``; arguments are kernel_size, groups, stride, padding and dilation."""

    operator = _library.local_correlation

    @staticmethod
    def first_gradient(  # noqa: D102
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        kernel_size: Size,
        groups: int,
        stride: Size,
        padding: Size,
        dilation: Size,
    ) -> Tensor:
        return involve(key, grad, stride, padding, dilation)

    @staticmethod
    def second_gradient(  # noqa: D102
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        kernel_size: Size,
        groups: int,
        stride: Size,
        padding: Size,
        dilation: Size,
    ) -> Tensor:
        return transpose(query, grad, key.shape[2:], stride, padding, dilation)


class EagerInvolve(_Eager, Involve):  # type: ignore[misc]
    """``Involve`` for eager mode."""


class EagerTranspose(_Eager, Transpose):  # type: ignore[misc]
    """``Transpose`` for eager mode."""


class EagerCorrelate(_Eager, Correlate):  # type: ignore[misc]
    """``Correlate`` for eager mode."""


_EAGER: dict[type[_Bilinear], Any] = {
    Involve: EagerInvolve,
    Transpose: EagerTranspose,
    Correlate: EagerCorrelate,
}


def _dispatch(
    operator: Callable[..., Tensor],
    composable: Any,
    eager: Any,
    first: Tensor,
    second: Tensor,
    *arguments: Any,
) -> Tensor:
    """The cheapest way to compute an operation that keeps every derivative that can be asked for."""
    if torch.compiler.is_compiling():
        return operator(first, second, *arguments)
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return composable.apply(first, second, *arguments)
    if torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
        return eager.apply(first, second, *arguments)
    return _below_autograd(operator, first, second, *arguments)


def _below_autograd(operator: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The bare operator, past the derivative that is registered for it, which costs time on every call."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def involve(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """``dT/dy`` with complete per-axis arguments; see :func:`involution.reference.involution`."""
    return _dispatch(_library.involution, Involve, EagerInvolve, input, weight, stride, padding, dilation)


def transpose(
    input: Tensor,
    weight: Tensor,
    output_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``dT/dx`` with complete per-axis arguments; see :func:`involution.reference.involution_transpose`."""
    arguments = (output_size, stride, padding, dilation)
    return _dispatch(_library.involution_transpose, Transpose, EagerTranspose, input, weight, *arguments)


def correlate(
    query: Tensor,
    key: Tensor,
    kernel_size: Sequence[int],
    groups: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``dT/dw`` with complete per-axis arguments; see :func:`involution.reference.local_correlation`."""
    arguments = (kernel_size, groups, stride, padding, dilation)
    return _dispatch(_library.local_correlation, Correlate, EagerCorrelate, query, key, *arguments)


def _register_with_dispatcher() -> None:
    """Derivatives and vmap of the bare operators, for torch.compile and for callers that use them directly."""
    for function in (Involve, Transpose, Correlate):
        name = function.operator._schema.name

        def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
            first, second, *arguments = inputs
            ctx.save_for_backward(first, second)
            ctx.arguments = tuple(arguments)

        torch.library.register_autograd(name, function.backward, setup_context=setup_context)
        torch.library.register_vmap(name, function.vmap)


_register_with_dispatcher()
