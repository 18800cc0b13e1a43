"""Derivatives of the fused involution, which make the kernels again instead of keeping them.

With ``K = make_kernels(features, weight, bias)`` and ``output = involution(input, K)``, both linear in each of
their tensors::

    d_input    = involution_transpose(d_output, K)
    d_K        = local_correlation(d_output, input)
    d_features = weight^T d_K                  at every position
    d_weight   = sum over positions of d_K features^T
    d_bias     = sum over positions of d_K

``K`` and ``d_K`` are the largest tensors of an involution, so a backward pass makes them for a part of the batch at a
time and never has more of either than ``CHUNK_BYTES``, or one image's. All of it is made of differentiable
operations, so that derivatives of every order follow, and sums are in a fixed order, so that they repeat bit by bit.

A CUDA device has kernels for the same gradients that write neither of the two (``csrc/cuda/fused_*_gradient.cuh``),
behind the operator ``fused_involution_backward``. Where the gradients are differentiated themselves, it is composed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import _composition, _fused
from ._composition import make_kernels, pointwise

# Of kernels, and as much again of their gradient, that a backward pass has at once: 64 MiB. More than one image of
# any map that is that large anyway; enough positions to fill a GPU with every operation on them.
CHUNK_BYTES = 1 << 26

Size = Sequence[int]
OptionalTensors = tuple[Tensor | None, ...]


def gradients(
    asked: Sequence[bool],
    grad: Tensor,
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: Size,
    stride: Size,
    padding: Size,
    dilation: Size,
) -> OptionalTensors:
    """The gradients of input, features, weight and bias, of those that are asked for."""
    window = (kernel_size, stride, padding, dilation)
    if _fused.why_no_backward(grad, input, features, weight, *window) is not None:
        return composed(asked, grad, input, features, weight, bias, *window)
    operator = torch.ops.involution.fused_involution_backward.default
    return operator(grad, input, features, weight, bias, *window, list(asked))


def backward(
    grad: Tensor,
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: Size,
    stride: Size,
    padding: Size,
    dilation: Size,
    asked: Sequence[bool],
) -> OptionalTensors:
    """The operator ``fused_involution_backward``: by kernels as far as there are any, and the rest composed."""
    window = (kernel_size, stride, padding, dilation)
    _composition.check(input, features, weight, bias, *window)
    if grad.shape != (*input.shape[:2], *features.shape[2:]):
        raise ValueError(
            f"fused_involution_backward needs a grad of shape {(*input.shape[:2], *features.shape[2:])}, that of the "
            f"involution, but it is {tuple(grad.shape)}."
        )
    tensors = (grad, input, features, weight)
    found: OptionalTensors = (None,) * 4
    if _fused.why_no_backward(*tensors, *window) is None:
        found = torch.ops.involution._fused_backward_cuda.default(*tensors, bias, *window, asked)
    missing = [need and gradient is None for need, gradient in zip(asked, found, strict=True)]
    if not any(missing):
        return found
    rest = composed(missing, *tensors, bias, *window)
    return tuple(one if one is not None else other for one, other in zip(found, rest, strict=True))


def composed(
    asked: Sequence[bool],
    grad: Tensor,
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: Size,
    stride: Size,
    padding: Size,
    dilation: Size,
) -> OptionalTensors:
    """The same by the operations that they are made of."""
    operators = torch.ops.involution
    of_input, of_features, of_weight, of_bias = asked
    steps = (stride, padding, dilation)
    groups = weight.shape[0] // math.prod(kernel_size)
    wide = torch.promote_types(weight.dtype, torch.float32)
    inputs: list[Tensor] = []
    hidden: list[Tensor] = []
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for start, length in _chunks(features, weight):
        x, z, dy = (tensor.narrow(0, start, length) for tensor in (input, features, grad))
        if of_input:
            kernels = make_kernels(z, weight, bias, kernel_size)
            inputs.append(operators.involution_transpose.default(dy, kernels, input.shape[2:], *steps))
            del kernels  # before the next tensor of its size is made
        if of_features or of_weight or of_bias:
            correlation = operators.local_correlation.default(dy, x, kernel_size, groups, *steps)
            points = correlation.reshape(length, weight.shape[0], *features.shape[2:])
            if of_features:
                hidden.append(pointwise(points, weight.t(), None))
            positions = math.prod(features.shape[2:])
            flat = points.reshape(length, weight.shape[0], positions)
            if of_weight:
                rows = _with_ones(z.movedim(1, -1)) if of_bias else z.movedim(1, -1)
                rows = rows.reshape(length, positions, rows.shape[-1])
                columns = torch.tensordot(flat, rows, ([0, 2], [0, 1])).to(wide)
                weights.append(columns[:, : z.shape[1]].contiguous() if of_bias else columns)
                if of_bias:
                    biases.append(columns[:, z.shape[1]].clone())
            elif of_bias:
                biases.append(flat.sum((0, 2), dtype=wide))
            del correlation, points, flat
    return (
        _joined(inputs) if of_input else None,
        _joined(hidden) if of_features else None,
        _summed(weights).to(weight.dtype) if of_weight else None,
        _summed(biases).to(weight.dtype) if of_bias else None,
    )


def tangent(
    tangents: OptionalTensors,
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *window: Size,
) -> Tensor:
    """The product rule: a term for each factor that has a tangent, of which weight and bias are one together."""
    of_input, of_features, of_weight, of_bias = tangents
    operator = torch.ops.involution.fused_involution.default
    terms = []
    if of_input is not None:
        terms.append(operator(of_input, features, weight, bias, *window))
    if of_features is not None:
        terms.append(operator(input, of_features, weight, None, *window))
    if of_weight is not None or of_bias is not None:
        change = torch.zeros_like(weight) if of_weight is None else of_weight
        terms.append(operator(input, features, change, of_bias, *window))
    return sum(terms[1:], terms[0])


def _chunks(features: Tensor, weight: Tensor) -> Iterator[tuple[int, int]]:
    """First image and number of images of every part of the batch."""
    batch = features.shape[0]
    positions = math.prod(map(_as_integer, features.shape[2:]))
    image = max(1, weight.shape[0] * positions * weight.element_size())  # bytes of its kernels
    at_once = max(1, CHUNK_BYTES // image)
    count = max(1, -(-_as_integer(batch) // at_once))
    starts = [batch * part // count for part in range(count + 1)]
    for start, stop in itertools.pairwise(starts):
        yield start, stop - start


def _with_ones(features: Tensor) -> Tensor:
    """The features, and behind the last of them a one, whose product with ``d_K`` is the gradient of the bias.

    So the largest tensor of all is read once for weight and bias. There are seven zeros as well, since matrix products
    want sizes that are multiples of eight.
    """
    one = torch.eye(1, 8, dtype=features.dtype, device=features.device)
    return torch.cat((features, one.expand(*features.shape[:-1], 8)), -1)


def _as_integer(size: int) -> int:
    """A size, or for a symbol that of the example: compiled for every size, the batch is cut into as many parts."""
    if isinstance(size, torch.SymInt):
        return size.node.hint if size.node.has_hint() else 1
    return size


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _summed(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])
