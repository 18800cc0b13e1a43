"""The public operations on tensors, in one, two and three dimensions.

Notation: batch ``B``, channels ``C``, groups ``G`` (``g`` is the group of channel ``c``: ``c // (C / G)``), kernel
size ``K`` per axis, ``In`` and ``Out`` the spatial sizes of input and output. Kernel points are in row-major
order and cross-correlation orientation, as in ``torch.nn.functional.unfold``. Along each axis

    Out = floor((In + 2*padding - dilation*(K - 1) - 1) / stride) + 1

The operation is that of Li et al., "Involution: Inverting the Inherence of Convolution for Visual
Recognition", CVPR 2021, section 3.

All take float64, float32, float16 and bfloat16 (the half types are summed in float32), any strides and memory
format, and return their result in the memory format of the first tensor. All are differentiable to any order.

Under ``torch.autocast`` both tensors are cast to its dtype, in which the result comes back, as for convolutions:
float64 is left alone, and so is a tensor on another device than autocast's.

NaN and infinity are never lost. In float16 and bfloat16 on CUDA, one in the input of an involution or of its
transpose can also make NaN of results that do not read it: of the same channel, in rows that do, with windows
within 21 positions of it along the last axis, where tensor cores multiply it by zero. All else is as in the
definition.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from . import _arguments, _library, _tracing
from ._docstrings import like_2d
from ._tracing import numbers, shape

__all__ = [
    "involution1d",
    "involution2d",
    "involution3d",
    "involution_transpose1d",
    "involution_transpose2d",
    "involution_transpose3d",
    "local_correlation1d",
    "local_correlation2d",
    "local_correlation3d",
]

Size = int | Sequence[int]


# torch.fx takes each of these for one node, because their checks need the sizes.
@fx.wrap
def _involution(
    axes: int, input: Tensor, weight: Tensor, stride: Size, padding: Size | str, dilation: Size
) -> Tensor:
    _arguments.check_tensors(input, "input", weight, "weight")
    stride, padding, dilation = numbers(stride, padding, dilation)
    window = _arguments.involution_window(axes, shape(input), shape(weight), stride, padding, dilation)
    return _library.involution(input, weight, window.stride, window.padding, window.dilation)


@fx.wrap
def _involution_transpose(
    axes: int,
    input: Tensor,
    weight: Tensor,
    stride: Size,
    padding: Size | str,
    output_padding: Size,
    dilation: Size,
) -> Tensor:
    _arguments.check_tensors(input, "input", weight, "weight")
    stride, padding, output_padding, dilation = numbers(stride, padding, output_padding, dilation)
    window, size = _arguments.transpose_window(
        axes, shape(input), shape(weight), stride, padding, output_padding, dilation
    )
    return _tracing.involution_transpose(input, weight, size, window.stride, window.padding, window.dilation)


@fx.wrap
def _local_correlation(
    axes: int,
    query: Tensor,
    key: Tensor,
    kernel_size: Size,
    groups: int,
    stride: Size,
    padding: Size | str,
    dilation: Size,
) -> Tensor:
    _arguments.check_tensors(query, "query", key, "key")
    kernel_size, groups, stride, padding, dilation = numbers(kernel_size, groups, stride, padding, dilation)
    groups = _arguments.integer(groups, "groups")
    window = _arguments.correlation_window(
        axes, shape(query), shape(key), kernel_size, groups, stride, padding, dilation
    )
    return _library.local_correlation(
        query, key, window.kernel_size, groups, window.stride, window.padding, window.dilation
    )


def involution2d(
    input: Tensor, weight: Tensor, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1
) -> Tensor:
    """Applies a 2D involution to an input: a convolution whose kernel differs from position to position.

    The kernels are given, one for each output position and group of channels, and the channels of a group share it::

        output[b, c, o] = sum over k of weight[b, g, k, o] * input[b, c, o*stride - padding + k*dilation]

    Positions outside the input are zeros that take part in the product (Li et al., CVPR 2021, section 3).

    Args:
        input (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(B, G, KH, KW, Hout, Wout)``, of the dtype and device of ``input``. ``G`` divides ``C``.
        stride (int or tuple of int): Step from one window to the next. Default: 1
        padding (int, tuple of int or str): Zeros on both sides. ``"same"`` keeps the size, for a stride of 1; with an
            even kernel the extra zero goes at the end. ``"valid"`` is 0. Default: 0
        dilation (int or tuple of int): Step from one kernel point to the next. Default: 1

    Returns:
        Tensor: ``(B, C, Hout, Wout)``, in the memory format of ``input``.

    Raises:
        ValueError: If a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: If an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _involution(2, input, weight, stride, padding, dilation)


@like_2d(involution2d)
def involution1d(
    input: Tensor, weight: Tensor, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1
) -> Tensor:
    """Applies a 1D involution; :func:`involution2d` with one axis."""
    return _involution(1, input, weight, stride, padding, dilation)


@like_2d(involution2d)
def involution3d(
    input: Tensor, weight: Tensor, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1
) -> Tensor:
    """Applies a 3D involution; :func:`involution2d` with three axes."""
    return _involution(3, input, weight, stride, padding, dilation)


def involution_transpose2d(
    input: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size | str = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Tensor:
    """Applies a 2D transposed involution to an input, as conv_transpose is to a convolution.

    It is the gradient of an involution with respect to its input, and a content-aware upsampling: each position is
    multiplied by its own kernel, and the products are added where the kernel's points lie::

        output[b, c, i] = sum over k, o with i = o*stride - padding + k*dilation of weight[b, g, k, o] * input[b, c, o]

    (the adjoint of Li et al., CVPR 2021, section 3). Along each axis
    ``Out = (In - 1)*stride - 2*padding + dilation*(K - 1) + output_padding + 1``.

    Args:
        input (Tensor): ``(B, C, H, W)``.
        weight (Tensor): ``(B, G, KH, KW, H, W)``, a kernel for each input position, of the dtype and device of
            ``input``. ``G`` divides ``C``.
        stride (int or tuple of int): Output positions from one input position's window to the next. Default: 1
        padding (int, tuple of int or str): Output positions that are cut off on both sides. ``"same"`` keeps the size,
            for a stride of 1; ``"valid"`` is 0. Default: 0
        output_padding (int or tuple of int): Output positions that are added at the end of each axis, fewer than the
            stride or the dilation. Default: 0
        dilation (int or tuple of int): Step from one kernel point to the next. Default: 1

    Returns:
        Tensor: ``(B, C, Hout, Wout)``, in the memory format of ``input``.

    Raises:
        ValueError: If a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: If an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _involution_transpose(2, input, weight, stride, padding, output_padding, dilation)


@like_2d(involution_transpose2d)
def involution_transpose1d(
    input: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size | str = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Tensor:
    """Applies a 1D transposed involution; :func:`involution_transpose2d` with one axis."""
    return _involution_transpose(1, input, weight, stride, padding, output_padding, dilation)


@like_2d(involution_transpose2d)
def involution_transpose3d(
    input: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size | str = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Tensor:
    """Applies a 3D transposed involution; :func:`involution_transpose2d` with three axes."""
    return _involution_transpose(3, input, weight, stride, padding, output_padding, dilation)


def local_correlation2d(
    query: Tensor,
    key: Tensor,
    kernel_size: Size,
    groups: int = 1,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
) -> Tensor:
    """Computes a 2D local correlation: the products of each query with the keys in its window.

    It is the gradient of an involution with respect to its weight, the scores of neighbourhood attention, and a
    correlation layer. Products are summed over the channels of a group::

        output[b, g, k, o] = sum over c in g of query[b, c, o] * key[b, c, o*stride - padding + k*dilation]

    Positions outside the key are zeros that take part in the product.

    Args:
        query (Tensor): ``(B, C, Hout, Wout)``.
        key (Tensor): ``(B, C, H, W)``, of the dtype and device of ``query``.
        kernel_size (int or tuple of int): Size of the window.
        groups (int): ``G``, which divides ``C``. Default: 1
        stride (int or tuple of int): Key positions from one query's window to the next. Default: 1
        padding (int, tuple of int or str): Zeros on both sides of the key. ``"same"`` keeps the size, for a stride
            of 1; with an even kernel the extra zero goes at the end. ``"valid"`` is 0. Default: 0
        dilation (int or tuple of int): Step from one point of the window to the next. Default: 1

    Returns:
        Tensor: ``(B, G, KH, KW, Hout, Wout)``. If ``query`` is channels_last, groups and kernel points are innermost in
        memory, as a channels_last 1x1 convolution would give them.

    Raises:
        ValueError: If a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: If an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _local_correlation(2, query, key, kernel_size, groups, stride, padding, dilation)


@like_2d(local_correlation2d)
def local_correlation1d(
    query: Tensor,
    key: Tensor,
    kernel_size: Size,
    groups: int = 1,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
) -> Tensor:
    """Computes a 1D local correlation; :func:`local_correlation2d` with one axis."""
    return _local_correlation(1, query, key, kernel_size, groups, stride, padding, dilation)


@like_2d(local_correlation2d)
def local_correlation3d(
    query: Tensor,
    key: Tensor,
    kernel_size: Size,
    groups: int = 1,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
) -> Tensor:
    """Computes a 3D local correlation; :func:`local_correlation2d` with three axes."""
    return _local_correlation(3, query, key, kernel_size, groups, stride, padding, dilation)
