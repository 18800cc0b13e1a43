"""kernel_decompose: the weight of a convolution as one matrix for each kernel point."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from involution import kernel_decompose


@pytest.mark.parametrize("kernel_size", [(3,), (2, 3), (2, 1, 3)])
def test_kernel_decompose(kernel_size):
    weight = torch.randn(4, 3, *kernel_size, dtype=torch.float64, requires_grad=True)
    points = kernel_decompose(weight)
    assert points.shape == (math.prod(kernel_size), 4, 3)
    for k, index in enumerate(itertools.product(*map(range, kernel_size))):
        assert torch.equal(points[k], weight[(slice(None), slice(None), *index)])
    assert points.data_ptr() == weight.data_ptr()
    assert torch.autograd.gradcheck(kernel_decompose, (weight,))


def test_kernel_decompose_of_channels_last_is_a_view():
    weight = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    assert kernel_decompose(weight).data_ptr() == weight.data_ptr()


def test_kernel_decompose_makes_a_convolution():
    x, weight = torch.randn(1, 3, 7, 6, dtype=torch.float64), torch.randn(4, 3, 2, 3, dtype=torch.float64)
    points = kernel_decompose(weight)
    shifted = [x[:, :, i : i + 6, j : j + 4] for i in range(2) for j in range(3)]
    total = sum(torch.einsum("oi,bihw->bohw", *pair) for pair in zip(points, shifted, strict=True))
    torch.testing.assert_close(total, F.conv2d(x, weight))


def test_kernel_decompose_refuses():
    with pytest.raises(ValueError, match=r"with one, two or three kernel axes, but its shape is \(4, 3\)."):
        kernel_decompose(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"but its shape is \(1, 1, 1, 1, 1, 1\)."):
        kernel_decompose(torch.randn(1, 1, 1, 1, 1, 1))
    with pytest.raises(TypeError, match=r"weight must be a tensor, not int\."):
        kernel_decompose(3)
