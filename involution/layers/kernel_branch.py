"""The branch that makes a kernel for every position from the features there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import _arguments
from .._composition import is_channels_last, pointwise
from .._tracing import shape
from ._shared import (
    CONVOLUTIONS,
    ActivationLayer,
    NormLayer,
    NotScriptable,
    check_count,
    choose_groups,
    has_hooks,
    initialise_convolutions,
    is_plain_convolution,
    make_activation,
    make_norm,
    per_axis_text,
    softmax_over_points,
)
from .convolution_relu import convolution_relu

KernelNormalizer = Callable[[Tensor], Tensor] | str | None


class KernelBranch(NotScriptable, nn.Module):
    """What the layers that make their kernels from their input have in common.

    ``kernels(hidden(z)) = normalise(span(activation(norm(reduce(z)))))``, viewed as ``(B, G, *K, *space)``.
    ``reduce`` and ``span`` are 1x1 convolutions, to ``channels // reduction_ratio`` channels and to ``prod(K) * G``
    (Li et al., CVPR 2021, section 3 and figure 1). A subclass names its number of axes.

    Attributes:
        reduce: the first 1x1 convolution; without a bias where a normalisation follows, which would take it out.
        norm: the normalisation, or None.
        activation: the activation, or None.
        span: the second 1x1 convolution, ``(group, *kernel point)`` row-major in its output channels.
        project: 1x1 convolution of the values that the kernels weigh, or None where ``out_channels`` is
            ``channels``.
    """

    axes: int
    reduce: Any  # a convolution, whose type follows from the number of axes
    span: Any
    norm: nn.Module | None
    activation: nn.Module | None
    project: nn.Module | None
    kernel_normalizer: KernelNormalizer

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int],
        group_channels: int | None,
        reduction_ratio: int,
        groups: int | None,
        out_channels: int | None,
        norm_layer: NormLayer,
        activation_layer: ActivationLayer,
        kernel_normalizer: KernelNormalizer,
        bias: bool,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        self.channels = channels = check_count(channels, "channels")
        self.out_channels = channels if out_channels is None else check_count(out_channels, "out_channels")
        self.kernel_size = _arguments.per_axis(kernel_size, self.axes, "kernel_size", 1)
        self.groups = choose_groups(self.out_channels, groups, group_channels)
        reduced = max(1, channels // check_count(reduction_ratio, "reduction_ratio"))
        if isinstance(kernel_normalizer, str) and kernel_normalizer != "softmax":
            raise ValueError(
                f'kernel_normalizer must be None, "softmax" or a callable, not {kernel_normalizer!r}.'
            )
        if isinstance(kernel_normalizer, type):
            raise TypeError(
                'kernel_normalizer must be None, "softmax" or a callable that normalises a tensor, not the class '
                f"{kernel_normalizer.__name__}; give an instance of it."
            )
        if not (
            kernel_normalizer is None or isinstance(kernel_normalizer, str) or callable(kernel_normalizer)
        ):
            raise TypeError(
                f'kernel_normalizer must be None, "softmax" or a callable, not {kernel_normalizer!r}.'
            )

        convolution: Any = CONVOLUTIONS[self.axes]
        points = math.prod(self.kernel_size)
        self.reduce = convolution(channels, reduced, 1, bias=norm_layer is None, **factory)
        self.norm = make_norm(norm_layer, self.axes, reduced, factory)
        self.activation = make_activation(activation_layer)
        self.span = convolution(reduced, points * self.groups, 1, bias=bias, **factory)
        self.project = None
        if self.out_channels != channels:
            self.project = convolution(channels, self.out_channels, 1, bias=False, **factory)
        self.kernel_normalizer = kernel_normalizer
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts anew: convolutions from Kaiming's normal distribution over the fan-out, biases zero."""
        initialise_convolutions(self.reduce, self.span, self.project)
        reset = getattr(self.norm, "reset_parameters", None)
        if callable(reset):
            reset()

    def hidden(self, features: Tensor, pool: nn.Module | None = None) -> Tensor:
        """``(B, R, *space)``: what the kernels are made from, of ``features`` ``(B, channels, *In)``.

        With ``pool`` the features are averaged by it first. An average and a 1x1 convolution commute, and where
        pooling is slow for what it does, it gets the narrower map.
        """
        if pool is None and _on_cuda(features) and self._reduces_to_relu():
            return convolution_relu(self.reduce, features)
        if pool is None:
            hidden = self.reduce(features)
        elif _on_cuda(features) and self.reduce.out_channels < self.channels and _is_pointwise(self.reduce):
            hidden = pool(self.reduce(features))
        else:
            hidden = self.reduce(pool(features))
        if self.norm is not None:
            hidden = self.norm(hidden)
        return hidden if self.activation is None else self.activation(hidden)

    def _reduces_to_relu(self) -> bool:
        """Whether nothing but a ReLU is behind ``reduce``: so it is where ``fuse`` has folded the norm."""
        if type(self.activation) is not nn.ReLU or has_hooks(self.activation):
            return False
        return self.norm is None or (type(self.norm) is nn.Identity and not has_hooks(self.norm))

    def kernels(self, hidden: Tensor) -> Tensor:
        """``(B, G, *K, *space)``: the kernel of every position, made from what :meth:`hidden` gives."""
        if _on_cuda(hidden) and is_channels_last(hidden) and _is_pointwise(self.span):
            # As a matrix product: cuDNN would add the bias in a pass of its own over a layer's largest tensor.
            spanned = pointwise(hidden, self.span.weight.flatten(1), self.span.bias)
        else:
            spanned = self.span(hidden)
        if self.kernel_normalizer is None:
            return spanned.unflatten(1, (self.groups, *self.kernel_size))
        points = spanned.unflatten(1, (self.groups, math.prod(self.kernel_size)))
        normalised = self._normalise(points)
        _check_kept(points, normalised)
        return normalised.unflatten(2, self.kernel_size)

    def _why_kernels_are_not_a_product(self) -> str | None:
        """Why the kernels are not just ``span``'s weight times the features plus its bias, or None where they are."""
        if self.kernel_normalizer is not None:
            return "The fused kernel does not normalise kernels, but the layer has a kernel_normalizer."
        if not _is_pointwise(self.span):
            return (
                "The fused kernel takes the place of a plain 1x1 convolution, but span is a "
                f"{type(self.span).__name__} that is replaced, parametrised or has hooks."
            )
        return None

    def _normalise(self, points: Tensor) -> Tensor:
        if isinstance(self.kernel_normalizer, str):
            return softmax_over_points(points)
        assert self.kernel_normalizer is not None
        return self.kernel_normalizer(points)

    def values(self, input: Tensor) -> Tensor:
        """``(B, out_channels, *In)``: what the kernels weigh."""
        return input if self.project is None else self.project(input)

    def _repr_parts(self) -> list[str]:
        parts = [str(self.channels)]
        if self.out_channels != self.channels:
            parts.append(f"out_channels={self.out_channels}")
        parts += [f"kernel_size={per_axis_text(self.kernel_size)}", f"groups={self.groups}"]
        # A normaliser that is a module is printed as one.
        if self.kernel_normalizer is not None and not isinstance(self.kernel_normalizer, nn.Module):
            name = getattr(self.kernel_normalizer, "__name__", repr(self.kernel_normalizer))
            parts.append(f"kernel_normalizer={name}")
        return parts


@fx.wrap
def _check_kept(points: Tensor, normalised: Tensor) -> None:
    if shape(normalised) != shape(points):
        raise ValueError(
            f"kernel_normalizer must keep the shape of its argument, {tuple(shape(points))}, but it returned "
            f"{tuple(shape(normalised))}."
        )


def factory_arguments(device: torch.device | str | None, dtype: torch.dtype | None) -> dict[str, Any]:
    """Where and of what type parameters are made."""
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, not {dtype}.")
    return {"device": device, "dtype": dtype}


def _on_cuda(features: Tensor) -> bool:
    """Whether a tensor is on a CUDA device; what torch.fx records is on none."""
    return isinstance(features, Tensor) and features.device.type == "cuda"


def _is_pointwise(convolution: Any) -> bool:
    """Whether a module is a 1x1 convolution and nothing else."""
    return (
        is_plain_convolution(convolution)
        and max(*convolution.kernel_size, *convolution.stride, convolution.groups) == 1
        and convolution.padding == (0,) * len(convolution.kernel_size)
    )
