"""The three operations as plain loops over positions and kernel points: obviously right, and slow.

Arguments are complete: one integer per axis, `padding` zeros in front, sizes of both frames by the tensors.
"""

from collections.abc import Iterator, Sequence

import numpy as np


def _meetings(
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]]:
    """Every output position with every kernel point: (o, k, position in the input, whether it exists)."""
    for o in np.ndindex(*output_size):
        for k in np.ndindex(*kernel_size):
            i = tuple(
                oo * s - p + kk * d for oo, kk, s, p, d in zip(o, k, stride, padding, dilation, strict=True)
            )
            yield o, k, i, all(0 <= ii < size for ii, size in zip(i, input_size, strict=True))


def _everywhere(position: tuple[int, ...]) -> tuple:
    return (slice(None), slice(None), *position)


def _of_channels(values: np.ndarray, channels: int) -> np.ndarray:
    """(B, G) to (B, C): every channel gets its group's value."""
    return np.repeat(values, channels // values.shape[1], axis=1)


def involution(x: np.ndarray, w: np.ndarray, stride, padding, dilation) -> np.ndarray:
    axes = len(stride)
    kernel_size, output_size = w.shape[2 : 2 + axes], w.shape[2 + axes :]
    channels = x.shape[1]
    y = np.zeros((*x.shape[:2], *output_size), dtype=x.dtype)
    for o, k, i, exists in _meetings(output_size, kernel_size, x.shape[2:], stride, padding, dilation):
        value = x[_everywhere(i)] if exists else np.zeros(x.shape[:2], dtype=x.dtype)
        y[_everywhere(o)] += _of_channels(w[(slice(None), slice(None), *k, *o)], channels) * value
    return y


def involution_transpose(y: np.ndarray, w: np.ndarray, output_size, stride, padding, dilation) -> np.ndarray:
    axes = len(stride)
    kernel_size, frame = w.shape[2 : 2 + axes], w.shape[2 + axes :]
    channels = y.shape[1]
    x = np.zeros((*y.shape[:2], *output_size), dtype=y.dtype)
    for o, k, i, exists in _meetings(frame, kernel_size, output_size, stride, padding, dilation):
        if exists:
            x[_everywhere(i)] += (
                _of_channels(w[(slice(None), slice(None), *k, *o)], channels) * y[_everywhere(o)]
            )
    return x


def local_correlation(
    y: np.ndarray, x: np.ndarray, kernel_size, groups: int, stride, padding, dilation
) -> np.ndarray:
    batch, channels, *output_size = y.shape
    w = np.zeros((batch, groups, *kernel_size, *output_size), dtype=y.dtype)
    for o, k, i, exists in _meetings(output_size, kernel_size, x.shape[2:], stride, padding, dilation):
        value = x[_everywhere(i)] if exists else np.zeros(x.shape[:2], dtype=x.dtype)
        products = y[_everywhere(o)] * value
        w[(slice(None), slice(None), *k, *o)] = products.reshape(batch, groups, channels // groups).sum(2)
    return w
