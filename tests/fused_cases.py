"""Problems of the fused involution, and its definition in float64: a product at every position, then the oracle."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import cases
import numpy as np
import oracle
import torch
from cases import Case
from torch import Tensor


@dataclass(frozen=True)
class FusedCase:
    """An involution's sizes, and what its kernels are made from; `frame` is the dispatcher's independent Out."""

    window: Case
    reduced: int
    bias: bool = True
    features_layout: str = "contiguous"

    def with_(self, **changes: object) -> FusedCase:
        return replace(self, **changes)

    @property
    def rows(self) -> int:
        return self.window.groups * math.prod(self.window.kernel)

    @property
    def arguments(self) -> tuple:
        """The operator's arguments after the tensors."""
        window = self.window
        return (window.kernel, window.stride, window.padding, window.dilation)

    def tensors(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """input, features, weight and bias, with random values."""
        window = self.window
        generator = torch.Generator().manual_seed(seed)

        def values(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(window.dtype)

        return (
            cases.laid_out(values(window.batch, window.channels, *window.input), window.x_layout, 2),
            cases.laid_out(values(window.batch, self.reduced, *window.output), self.features_layout, 2),
            values(self.rows, self.reduced),
            values(self.rows) if self.bias else None,
        )


def random_case(rng: random.Random, axes: int) -> FusedCase:
    """Any geometry, dtype and storage, with any number of features, odd and 1 among them."""
    window = cases.random_case(rng, axes, largest={1: 20, 2: 7, 3: 3}[axes])
    return FusedCase(window, rng.choice((1, 2, 3, 5, 8)), rng.random() < 0.7, rng.choice(cases.LAYOUTS))


def epilogue_of(case: FusedCase, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A scale and a shift for each channel."""
    generator = torch.Generator().manual_seed(seed)
    scale, shift = torch.randn(2, case.window.channels, generator=generator)
    return scale, shift


def exact(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    arguments: tuple,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> np.ndarray:
    """The definition, in the longest type there is."""
    x, z, w, b = (
        None if tensor is None else tensor.detach().double().numpy().astype(np.longdouble)
        for tensor in tensors
    )
    kernel_size, *window = arguments
    kernels = np.einsum("pr,br...->bp...", w, z)
    if b is not None:
        kernels = kernels + b.reshape(-1, *(1,) * (x.ndim - 2))
    groups = w.shape[0] // math.prod(kernel_size)
    output = oracle.involution(x, kernels.reshape(x.shape[0], groups, *kernel_size, *z.shape[2:]), *window)
    if scale is not None:
        channels = (-1, *(1,) * (x.ndim - 2))
        output = output * scale.double().numpy().reshape(channels) + shift.double().numpy().reshape(channels)
    return (np.maximum(output, 0) if relu else output).astype(np.float64)


def plain(tensors: tuple[Tensor, Tensor, Tensor, Tensor | None], arguments: tuple) -> Tensor:
    """The plain PyTorch formula in the tensors' own dtype, kernels rounded to it."""
    x, z, w, b = tensors
    kernel_size, *window = arguments
    kernels = torch.einsum("pr,br...->bp...", w, z)
    if b is not None:
        kernels = kernels + b.view(-1, *(1,) * (x.dim() - 2))
    groups = w.shape[0] // math.prod(kernel_size)
    return cases.plain("involution", x, kernels.unflatten(1, (groups, *kernel_size)), tuple(window))


def assert_right(result: Tensor, tensors: tuple, arguments: tuple, *epilogue: object) -> None:
    """At most twice the error of plain PyTorch in the same dtype, one unit of rounding, and under a ceiling."""
    expected = exact(tensors, arguments, *epilogue)
    assert tuple(result.shape) == expected.shape
    assert result.dtype == tensors[0].dtype
    if expected.size == 0:
        return
    scale, shift, *_ = (*epilogue, None, None)
    by_hand = plain(tensors, arguments).detach().double()
    if scale is not None:
        channels = (-1, *(1,) * (by_hand.dim() - 2))
        by_hand = by_hand * scale.double().view(channels) + shift.double().view(channels)
    if len(epilogue) > 2 and epilogue[2]:
        by_hand = by_hand.clamp(min=0)
    largest = max(np.abs(expected).max(), 1.0)
    error = np.abs(result.detach().double().numpy() - expected).max()
    plain_error = np.abs(by_hand.numpy() - expected).max()
    bound = 2 * plain_error + 4 * torch.finfo(result.dtype).eps * largest
    assert error <= bound, f"error {error:.3g} exceeds {bound:.3g}, plain PyTorch's is {plain_error:.3g}"
    assert error <= 2 * cases.CEILING[result.dtype] * largest, f"error {error:.3g} of {largest:.3g}"
