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
and the derivatives themselves call. In eager mode they take the shortest way that is right: the bare operator
where no derivative can be asked for, a Python autograd Function where one can. Under torch.compile, torch.func
and forward-mode differentiation they call the operator through the whole dispatcher, in which the same Function
is registered: torch then comes by once for each level of differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import _library

Size = Sequence[int]

__all__ = ["Correlate", "Involve", "Transpose", "correlate", "involve", "transpose"]


class _Bilinear(torch.autograd.Function):
    """An operation that is linear in its first two arguments, which are tensors.

    A subclass names the dispatcher operator and the two gradients. Methods are class methods where autograd
    expects static ones, so that the three operations share them.
    """

    operator: Callable[..., Tensor]

    @classmethod
    def forward(cls, ctx: Any, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        """The bare operator; its tensors and arguments are kept."""
        cls.keep(ctx, first, second, *arguments)
        return _below_autograd(cls.operator, first, second, *arguments)

    @staticmethod
    def keep(ctx: Any, first: Tensor, second: Tensor, *arguments: Any) -> None:
        """Puts into the context what the derivatives need."""
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)
        ctx.arguments = arguments

    @staticmethod
    def first_gradient(grad: Tensor, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        """The gradient with respect to the first tensor."""
        raise NotImplementedError

    @staticmethod
    def second_gradient(grad: Tensor, first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        """The gradient with respect to the second tensor."""
        raise NotImplementedError

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Only the gradients that are asked for."""
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
            terms.append(cls.operator(first_tangent, second, *ctx.arguments))
        if second_tangent is not None:
            terms.append(cls.operator(first, second_tangent, *ctx.arguments))
        return sum(terms[1:], terms[0])


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


def _dispatch(function: type[_Bilinear], operator: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The shortest way to compute an operation that keeps every derivative that can be asked for."""
    if (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    ):
        return operator(*arguments)
    if torch.is_grad_enabled() and (arguments[0].requires_grad or arguments[1].requires_grad):
        return function.apply(*arguments)
    return _below_autograd(operator, *arguments)


def _below_autograd(operator: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The bare operator, past the derivative that is registered for it."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def involve(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """``dT/dy`` with complete per-axis arguments; see :func:`involution.reference.involution`."""
    return _dispatch(Involve, _library.involution, input, weight, stride, padding, dilation)


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
    return _dispatch(Transpose, _library.involution_transpose, input, weight, *arguments)


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
    return _dispatch(Correlate, _library.local_correlation, query, key, *arguments)


# ---- the bare operators' own derivatives ----


def _autograd_kernel(function: type[_Bilinear]) -> Callable[..., Tensor]:
    """What the dispatcher runs where autograd may have to do with a tensor: once for each level of torch.func."""

    class SingleLevel(_SingleLevelFunction):
        """The same Function, for this level alone, in the form that torch asks for under its transforms."""

        backward = function.backward
        jvp = function.jvp

        @staticmethod
        def forward(*arguments: Any) -> Tensor:
            # A Function's forward switches differentiation off, but the levels outside of this one go on.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return _below_autograd(function.operator, *arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
            function.keep(ctx, *inputs)

    def kernel(first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        recorded = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
        if recorded or _has_tangent(first) or _has_tangent(second):
            with enable_single_level_autograd_function():
                return SingleLevel.apply(first, second, *arguments)  # type: ignore[attr-defined]
        return _below_autograd(function.operator, first, second, *arguments)

    return kernel


def _has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation goes through a tensor, be it by forward_ad or by torch.func.jvp."""
    return torch._VF._unpack_dual(tensor, level=0)[1] is not None


def _vmap_rule(function: type[_Bilinear]) -> Callable[..., tuple[Tensor, int]]:
    """The mapped axis joins the batch, over which the operations are maps anyway."""

    def fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
        mapped = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return mapped.reshape(size * mapped.shape[1], *mapped.shape[2:])

    def rule(info: Any, in_dims: tuple, first: Tensor, second: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        folded = (fold(first, in_dims[0], size), fold(second, in_dims[1], size))
        result = function.operator(*folded, *arguments)
        return result.reshape(size, result.shape[0] // size, *result.shape[1:]), 0

    return rule


def _register_with_dispatcher() -> torch.library.Library:
    library = torch.library.Library(_library.NAMESPACE, "IMPL")
    for function in (Involve, Transpose, Correlate):
        name = function.operator._schema.name
        library.impl(name.split("::")[1], _autograd_kernel(function), "Autograd")
        torch.library.register_vmap(name, _vmap_rule(function), lib=library)
    return library


_LIBRARY = _register_with_dispatcher()  # a registration lives as long as its library
