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


def involution1d(
    input: Tensor, weight: Tensor, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1
) -> Tensor:
    """Weighs every neighbourhood of ``input`` by a kernel of its own, shared across the channels of a group.

    ``output[b, c, o] = sum_k weight[b, g, k, o] * input[b, c, o*stride - padding + k*dilation]``, where positions
    outside the input are zeros that take part in the product (Li et al., CVPR 2021, section 3).

    Args:
        input: ``(B, C, L)``.
        weight: ``(B, G, K, Lout)``, of the dtype and device of ``input``; ``C`` is divisible by ``G``.
        stride: positions from one window to the next; an integer.
        padding: zeros on both sides, an integer or one per axis; ``"same"`` keeps the size (stride 1; for an even
            kernel the extra zero goes at the end), ``"valid"`` is 0.
        dilation: positions from one kernel point to the next.

    Returns:
        ``(B, C, Lout)``, in the memory format of ``input``.

    Raises:
        ValueError: a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _involution(1, input, weight, stride, padding, dilation)


def involution2d(
    input: Tensor, weight: Tensor, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1
) -> Tensor:
    """Weighs every neighbourhood of ``input`` by a kernel of its own, shared across the channels of a group.

    ``output[b, c, o] = sum_k weight[b, g, k, o] * input[b, c, o*stride - padding + k*dilation]``, where positions
    outside the input are zeros that take part in the product (Li et al., CVPR 2021, section 3).

    Args:
        input: ``(B, C, H, W)``.
        weight: ``(B, G, KH, KW, Hout, Wout)``, of the dtype and device of ``input``; ``C`` is divisible by ``G``.
        stride: positions from one window to the next; an integer or one per axis.
        padding: zeros on both sides, an integer or one per axis; ``"same"`` keeps the size (stride 1; for an even
            kernel the extra zero goes at the end), ``"valid"`` is 0.
        dilation: positions from one kernel point to the next.

    Returns:
        ``(B, C, Hout, Wout)``, in the memory format of ``input``.

    Raises:
        ValueError: a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _involution(2, input, weight, stride, padding, dilation)


def involution3d(
    input: Tensor, weight: Tensor, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1
) -> Tensor:
    """Weighs every neighbourhood of ``input`` by a kernel of its own, shared across the channels of a group.

    ``output[b, c, o] = sum_k weight[b, g, k, o] * input[b, c, o*stride - padding + k*dilation]``, where positions
    outside the input are zeros that take part in the product (Li et al., CVPR 2021, section 3).

    Args:
        input: ``(B, C, D, H, W)``.
        weight: ``(B, G, KD, KH, KW, Dout, Hout, Wout)``, of the dtype and device of ``input``; ``C`` is divisible
            by ``G``.
        stride: positions from one window to the next; an integer or one per axis.
        padding: zeros on both sides, an integer or one per axis; ``"same"`` keeps the size (stride 1; for an even
            kernel the extra zero goes at the end), ``"valid"`` is 0.
        dilation: positions from one kernel point to the next.

    Returns:
        ``(B, C, Dout, Hout, Wout)``, in the memory format of ``input``.

    Raises:
        ValueError: a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _involution(3, input, weight, stride, padding, dilation)


def involution_transpose1d(
    input: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size | str = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Tensor:
    """Spreads every position of ``input`` over its neighbourhood by a kernel of its own: involution's transpose.

    It is to involution what conv_transpose is to convolution: its gradient with respect to the input, and a
    content-aware upsampler. ``output[b, c, i] = sum over k, o with i = o*stride - padding + k*dilation of
    weight[b, g, k, o] * input[b, c, o]`` (the adjoint of Li et al., CVPR 2021, section 3). Along each axis
    ``Out = (In - 1)*stride - 2*padding + dilation*(K - 1) + output_padding + 1``.

    Args:
        input: ``(B, C, L)``.
        weight: ``(B, G, K, L)``, one kernel for each input position, of the dtype and device of
            ``input``; ``C`` is divisible by ``G``.
        stride: output positions from one input position's window to the next.
        padding: output positions left out on both sides; ``"same"`` keeps the size (stride 1), ``"valid"`` is 0.
        output_padding: positions added at the end of each axis, fewer than the stride or the dilation.
        dilation: positions from one kernel point to the next.

    Returns:
        ``(B, C, Lout)``, in the memory format of ``input``.

    Raises:
        ValueError: a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _involution_transpose(1, input, weight, stride, padding, output_padding, dilation)


def involution_transpose2d(
    input: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size | str = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Tensor:
    """Spreads every position of ``input`` over its neighbourhood by a kernel of its own: involution's transpose.

    It is to involution what conv_transpose is to convolution: its gradient with respect to the input, and a
    content-aware upsampler. ``output[b, c, i] = sum over k, o with i = o*stride - padding + k*dilation of
    weight[b, g, k, o] * input[b, c, o]`` (the adjoint of Li et al., CVPR 2021, section 3). Along each axis
    ``Out = (In - 1)*stride - 2*padding + dilation*(K - 1) + output_padding + 1``.

    Args:
        input: ``(B, C, H, W)``.
        weight: ``(B, G, KH, KW, H, W)``, one kernel for each input position, of the dtype and device of
            ``input``; ``C`` is divisible by ``G``.
        stride: output positions from one input position's window to the next.
        padding: output positions left out on both sides; ``"same"`` keeps the size (stride 1), ``"valid"`` is 0.
        output_padding: positions added at the end of each axis, fewer than the stride or the dilation.
        dilation: positions from one kernel point to the next.

    Returns:
        ``(B, C, Hout, Wout)``, in the memory format of ``input``.

    Raises:
        ValueError: a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _involution_transpose(2, input, weight, stride, padding, output_padding, dilation)


def involution_transpose3d(
    input: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size | str = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Tensor:
    """Spreads every position of ``input`` over its neighbourhood by a kernel of its own: involution's transpose.

    It is to involution what conv_transpose is to convolution: its gradient with respect to the input, and a
    content-aware upsampler. ``output[b, c, i] = sum over k, o with i = o*stride - padding + k*dilation of
    weight[b, g, k, o] * input[b, c, o]`` (the adjoint of Li et al., CVPR 2021, section 3). Along each axis
    ``Out = (In - 1)*stride - 2*padding + dilation*(K - 1) + output_padding + 1``.

    Args:
        input: ``(B, C, D, H, W)``.
        weight: ``(B, G, KD, KH, KW, D, H, W)``, one kernel for each input position, of the dtype and device of
            ``input``; ``C`` is divisible by ``G``.
        stride: output positions from one input position's window to the next.
        padding: output positions left out on both sides; ``"same"`` keeps the size (stride 1), ``"valid"`` is 0.
        output_padding: positions added at the end of each axis, fewer than the stride or the dilation.
        dilation: positions from one kernel point to the next.

    Returns:
        ``(B, C, Dout, Hout, Wout)``, in the memory format of ``input``.

    Raises:
        ValueError: a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _involution_transpose(3, input, weight, stride, padding, output_padding, dilation)


def local_correlation1d(
    query: Tensor,
    key: Tensor,
    kernel_size: Size,
    groups: int = 1,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
) -> Tensor:
    """The product of every position with its neighbourhood, summed over the channels of a group.

    ``output[b, g, k, o] = sum over c in g of query[b, c, o] * key[b, c, o*stride - padding + k*dilation]``, where
    positions outside the key are zeros that take part in the product. It is the gradient of involution with
    respect to its weight, neighbourhood attention's q.k and a correlation layer.

    Args:
        query: ``(B, C, Lout)``, on output positions.
        key: ``(B, C, L)``, on input positions, of the dtype and device of ``query``.
        kernel_size: the neighbourhood, an integer or one per axis.
        groups: ``G``, which divides ``C``.
        stride: key positions from one query position's window to the next.
        padding: zeros on both sides of the key; ``"same"`` keeps the size (stride 1; for an even kernel the extra
            zero goes at the end), ``"valid"`` is 0.
        dilation: positions from one kernel point to the next.

    Returns:
        ``(B, G, K, Lout)``; if ``query`` is channels_last, groups and kernel points are innermost
        in memory, as a channels_last 1x1 convolution would give them.

    Raises:
        ValueError: a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _local_correlation(1, query, key, kernel_size, groups, stride, padding, dilation)


def local_correlation2d(
    query: Tensor,
    key: Tensor,
    kernel_size: Size,
    groups: int = 1,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
) -> Tensor:
    """The product of every position with its neighbourhood, summed over the channels of a group.

    ``output[b, g, k, o] = sum over c in g of query[b, c, o] * key[b, c, o*stride - padding + k*dilation]``, where
    positions outside the key are zeros that take part in the product. It is the gradient of involution with
    respect to its weight, neighbourhood attention's q.k and a correlation layer.

    Args:
        query: ``(B, C, Hout, Wout)``, on output positions.
        key: ``(B, C, H, W)``, on input positions, of the dtype and device of ``query``.
        kernel_size: the neighbourhood, an integer or one per axis.
        groups: ``G``, which divides ``C``.
        stride: key positions from one query position's window to the next.
        padding: zeros on both sides of the key; ``"same"`` keeps the size (stride 1; for an even kernel the extra
            zero goes at the end), ``"valid"`` is 0.
        dilation: positions from one kernel point to the next.

    Returns:
        ``(B, G, KH, KW, Hout, Wout)``; if ``query`` is channels_last, groups and kernel points are innermost
        in memory, as a channels_last 1x1 convolution would give them.

    Raises:
        ValueError: a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _local_correlation(2, query, key, kernel_size, groups, stride, padding, dilation)


def local_correlation3d(
    query: Tensor,
    key: Tensor,
    kernel_size: Size,
    groups: int = 1,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
) -> Tensor:
    """The product of every position with its neighbourhood, summed over the channels of a group.

    ``output[b, g, k, o] = sum over c in g of query[b, c, o] * key[b, c, o*stride - padding + k*dilation]``, where
    positions outside the key are zeros that take part in the product. It is the gradient of involution with
    respect to its weight, neighbourhood attention's q.k and a correlation layer.

    Args:
        query: ``(B, C, Dout, Hout, Wout)``, on output positions.
        key: ``(B, C, D, H, W)``, on input positions, of the dtype and device of ``query``.
        kernel_size: the neighbourhood, an integer or one per axis.
        groups: ``G``, which divides ``C``.
        stride: key positions from one query position's window to the next.
        padding: zeros on both sides of the key; ``"same"`` keeps the size (stride 1; for an even kernel the extra
            zero goes at the end), ``"valid"`` is 0.
        dilation: positions from one kernel point to the next.

    Returns:
        ``(B, G, KD, KH, KW, Dout, Hout, Wout)``; if ``query`` is channels_last, groups and kernel points are innermost
        in memory, as a channels_last 1x1 convolution would give them.

    Raises:
        ValueError: a shape, size, stride, padding, dilation or device does not fit; the message says which.
        TypeError: an argument has the wrong type, or a tensor a dtype that is not supported.
    """
    return _local_correlation(3, query, key, kernel_size, groups, stride, padding, dilation)
