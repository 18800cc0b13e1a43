"""Every wrong argument is explained in a sentence with its values, before anything is computed."""

import re

import numpy as np
import pytest
import torch

import involution
from involution import (
    involution1d,
    involution2d,
    involution3d,
    involution_transpose1d,
    involution_transpose2d,
    involution_transpose3d,
    local_correlation1d,
    local_correlation2d,
    local_correlation3d,
)


def tensors(
    batch: int = 2, channels: int = 4, groups: int = 2, size: int = 6, kernel: int = 3, out: int = 6
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(batch, channels, size, size), torch.ones(batch, groups, kernel, kernel, out, out)


X, W = tensors()
Q = X

BAD = [
    # wrong number of dimensions
    (involution2d, (X[0], W), {}, ValueError, r"input must be \(batch, channels, height, width\) with 4 dimensions, but its shape is \(4, 6, 6\)"),
    (involution2d, (X, W[0]), {}, ValueError, r"weight must be .* with 6 dimensions, but its shape is \(2, 3, 3, 6, 6\)"),
    (involution1d, (X, W), {}, ValueError, r"input must be \(batch, channels, length\) with 3 dimensions"),
    (involution3d, (X, W), {}, ValueError, r"input must be \(batch, channels, depth, height, width\) with 5 dimensions"),
    (involution_transpose2d, (X[0], W), {}, ValueError, "input must be .* with 4 dimensions"),
    (involution_transpose1d, (X[0], W), {}, ValueError, "weight must be .* with 4 dimensions"),
    (involution_transpose3d, (X, W), {}, ValueError, "input must be .* with 5 dimensions"),
    (local_correlation2d, (Q, X[0], 3), {}, ValueError, "key must be .* with 4 dimensions"),
    (local_correlation1d, (Q, X, 3), {}, ValueError, "query must be .* with 3 dimensions"),
    (local_correlation3d, (Q, X, 3), {}, ValueError, "query must be .* with 5 dimensions"),
    # channels and groups
    (involution2d, (X, torch.ones(2, 3, 3, 3, 6, 6)), {"padding": 1}, ValueError, "The 4 channels of input cannot be divided into 3 groups"),
    (involution_transpose2d, (X, torch.ones(2, 3, 3, 3, 6, 6)), {}, ValueError, "The 4 channels of input cannot be divided into 3 groups"),
    (local_correlation2d, (Q, X, 3, 3), {"padding": 1}, ValueError, "The 4 channels of query cannot be divided into 3 groups"),
    (local_correlation2d, (Q, X, 3, 0), {"padding": 1}, ValueError, "groups must be at least 1, not 0"),
    (local_correlation2d, (Q, X, 3, -2), {"padding": 1}, ValueError, "groups must be at least 1, not -2"),
    (local_correlation2d, (Q, X, 3, 1.0), {"padding": 1}, TypeError, "groups must be an integer, not 1.0"),
    (local_correlation2d, (Q, X[:, :2], 3), {"padding": 1}, ValueError, "query has 4 and key 2"),
    (involution2d, (X, W[:, :0]), {"padding": 1}, ValueError, "groups must be at least 1, not 0"),
    # batch and sizes
    (involution2d, (X, W[:1]), {"padding": 1}, ValueError, r"one batch size, but it is 2 in input of shape \(2, 4, 6, 6\) and 1 in weight"),
    (involution_transpose2d, (X[:1], W), {}, ValueError, "one batch size, but it is 1 in input .* and 2 in weight"),
    (local_correlation2d, (Q[:1], X, 3), {"padding": 1}, ValueError, "one batch size, but it is 1 in query .* and 2 in key"),
    (involution2d, (X, W), {}, ValueError, r"weight must have shape \(2, 2, 3, 3, 4, 4\), .* but its shape is \(2, 2, 3, 3, 6, 6\)"),
    (involution2d, (X, W), {"padding": 1, "stride": 2}, ValueError, r"weight must have shape \(2, 2, 3, 3, 3, 3\)"),
    (involution_transpose2d, (X, W[..., :5]), {}, ValueError, r"weight must have shape \(2, 2, 3, 3, 6, 6\), .* but its shape is \(2, 2, 3, 3, 6, 5\)"),
    (local_correlation2d, (Q, X, 3), {}, ValueError, r"query must have shape \(2, 4, 4, 4\), .* but its shape is \(2, 4, 6, 6\)"),
    # kernels that do not fit
    (involution2d, (X[..., :2, :], W), {}, ValueError, r"kernel of size \(3, 3\) .* is larger than the padded input: it spans 3 along axis 0, where input has 2 positions and padding 0 \+ 0"),
    (involution2d, (X, W), {"padding": 1, "dilation": 4}, ValueError, "it spans 9 along axis 0, where input has 6"),
    (local_correlation2d, (Q, X, 7), {}, ValueError, "larger than the padded key: it spans 7"),
    (involution2d, (X, W[:, :, :0]), {"padding": 1}, ValueError, r"kernel size must be at least 1 along every axis, but weight gives \(0, 3\)"),
    (local_correlation2d, (Q, X, 0), {"padding": 1}, ValueError, "kernel_size must be at least 1 along every axis, not 0"),
    (involution_transpose2d, (X[..., :1], W[..., :1]), {"padding": (0, 2)}, ValueError, "gives an output of size -1 along axis 1"),
    # stride, padding, dilation
    (involution2d, (X, W), {"stride": 0}, ValueError, "stride must be at least 1 along every axis, not 0"),
    (involution2d, (X, W), {"stride": (1, -1)}, ValueError, r"stride must be at least 1 along every axis, not \(1, -1\)"),
    (involution2d, (X, W), {"dilation": 0}, ValueError, "dilation must be at least 1 along every axis, not 0"),
    (involution2d, (X, W), {"dilation": (-2, 1)}, ValueError, r"dilation must be at least 1 .* not \(-2, 1\)"),
    (involution2d, (X, W), {"padding": -1}, ValueError, "padding must be at least 0 along every axis, not -1"),
    (involution_transpose2d, (X, W), {"stride": 0}, ValueError, "stride must be at least 1"),
    (involution_transpose2d, (X, W), {"padding": -1}, ValueError, "padding must be at least 0"),
    (local_correlation2d, (Q, X, 3), {"dilation": 0}, ValueError, "dilation must be at least 1"),
    (involution2d, (X, W), {"stride": (1, 1, 1)}, ValueError, r"stride must be one integer or 2, .* but \(1, 1, 1\) has 3"),
    (involution2d, (X, W), {"padding": ()}, ValueError, r"padding must be one integer or 2, .* but \(\) has 0"),
    (involution2d, (X, W), {"dilation": [1, 1, 1]}, ValueError, r"dilation must be one integer or 2, .* has 3"),
    (local_correlation2d, (Q, X, (3, 3, 3)), {}, ValueError, r"kernel_size must be one integer or 2, .* has 3"),
    (involution_transpose2d, (X, W), {"output_padding": (0, 0, 0)}, ValueError, "output_padding must be one integer or 2"),
    (involution2d, (X, W), {"stride": 1.0}, TypeError, "stride must be an integer or a sequence of 2 integers, not 1.0 of type float"),
    (involution2d, (X, W), {"stride": (1, 1.5)}, TypeError, r"stride must hold integers, but \(1, 1.5\) holds 1.5"),
    (involution2d, (X, W), {"stride": True}, TypeError, "stride must be an integer .* not True of type bool"),
    (involution2d, (X, W), {"padding": None}, TypeError, "padding must be an integer .* not None"),
    (involution2d, (X, W), {"stride": np.bool_(True)}, TypeError, "stride must be an integer .* of type bool"),
    (involution2d, (X, W), {"stride": torch.tensor(True)}, TypeError, "stride must be an integer .* of type Tensor"),
    (involution2d, (X, W), {"stride": (np.float64(1), 1)}, TypeError, "stride must hold integers"),
    (involution2d, (X, W), {"padding": np.int64(-1)}, ValueError, "padding must be at least 0"),
    (involution2d, (X, W), {"stride": np.array([1, 1])}, TypeError, "stride must be an integer .* of type ndarray"),
    (local_correlation2d, (Q, X, 3, np.bool_(True)), {"padding": 1}, TypeError, "groups must be an integer"),
    (local_correlation2d, (Q, X, 3, np.int32(3)), {"padding": 1}, ValueError, "divided into 3 groups"),
    # same, valid
    (involution2d, (X, W), {"padding": "same", "stride": 2}, ValueError, 'padding="same" needs a stride of 1, but stride is 2'),
    (local_correlation2d, (Q, X, 3), {"padding": "same", "stride": (1, 2)}, ValueError, r'padding="same" needs a stride of 1, but stride is \(1, 2\)'),
    (involution2d, (X, W), {"padding": "full"}, ValueError, "padding must be integers, \"same\" or \"valid\", not 'full'"),
    # output padding
    (involution_transpose2d, (X, W), {"output_padding": 1}, ValueError, "output_padding must be smaller than the stride or the dilation, but along axis 0 it is 1 with stride 1 and dilation 1"),
    (involution_transpose2d, (X, W), {"stride": 2, "output_padding": (1, 2)}, ValueError, "along axis 1 it is 2 with stride 2 and dilation 1"),
    (involution_transpose2d, (X, W), {"stride": 2, "output_padding": -1}, ValueError, "output_padding must be at least 0"),
    # dtypes, devices, types
    (involution2d, (X, W.double()), {"padding": 1}, TypeError, "input and weight must have one dtype, but they are torch.float32 and torch.float64"),
    (involution2d, (X.half(), W.bfloat16()), {"padding": 1}, TypeError, "one dtype, but they are torch.float16 and torch.bfloat16"),
    (local_correlation2d, (Q, X.double(), 3), {"padding": 1}, TypeError, "query and key must have one dtype"),
    (involution2d, (X.int(), W.int()), {"padding": 1}, TypeError, "must be float64, float32, float16 or bfloat16, not torch.int32"),
    (involution2d, (X.cfloat(), W.cfloat()), {"padding": 1}, TypeError, "must be float64, float32, float16 or bfloat16, not torch.complex64"),
    (involution2d, (X, W.to("meta")), {"padding": 1}, ValueError, "must be on one device, but they are on cpu and meta"),
    (involution2d, (X.numpy(), W), {"padding": 1}, TypeError, "input must be a tensor, not ndarray"),
    (involution_transpose2d, (X, None), {}, TypeError, "weight must be a tensor, not NoneType"),
    (local_correlation2d, (Q, 3, 3), {}, TypeError, "key must be a tensor, not int"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "options", "kind", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(function, arguments, options, kind, message) -> None:
    before = [a.clone() for a in arguments if isinstance(a, torch.Tensor) and not a.is_meta]
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    text = str(caught.value)
    assert re.search(message, text), text
    assert text.endswith(".") and len(text.split()) > 5  # a sentence
    after = [a for a in arguments if isinstance(a, torch.Tensor) and not a.is_meta]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_one_integer_in_a_sequence_serves_every_axis() -> None:
    torch.testing.assert_close(involution2d(X, W, padding=(1,)), involution2d(X, W, padding=1))
    torch.testing.assert_close(involution2d(X, W, padding=[1, 1]), involution2d(X, W, padding=1))


class Two:
    """An integer of one's own."""

    def __index__(self) -> int:
        return 2


@pytest.mark.parametrize(
    "two", [np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), Two()], ids=lambda two: type(two).__name__
)
def test_whatever_has_an_index_is_an_integer(two) -> None:
    x, w = torch.randn(2, 4, 7, 6), torch.randn(2, 2, 3, 3, 4, 3)
    for sizes in (two, (two, 2), [two]):
        options = {"stride": sizes, "padding": sizes, "dilation": sizes}
        plain = {"stride": 2, "padding": 2, "dilation": 2}
        assert torch.equal(involution2d(x, w, **options), involution2d(x, w, **plain))
        query = torch.randn(2, 4, 5, 4)
        found = local_correlation2d(query, x, sizes, two, **options)
        assert torch.equal(found, local_correlation2d(query, x, 2, 2, **plain))
        small = torch.randn(2, 4, 4, 3)
        wide = {"stride": 3, "dilation": 3}
        found = involution_transpose2d(small, w, **wide, padding=sizes, output_padding=sizes)
        assert torch.equal(found, involution_transpose2d(small, w, **wide, padding=2, output_padding=2))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": True},
        {"stride": (1, True)},
        {"stride": (1, 1.0)},
        {"dilation": (True, 1)},
        {"padding": [1.0]},
    ],
)
def test_what_is_remembered_of_right_arguments_excuses_no_wrong_ones(options) -> None:
    """True and 1.0 equal 1, with which the same call has just been answered."""
    for sizes in (1, (1, 1)):
        involution2d(X, W, stride=sizes, padding=sizes, dilation=sizes)
    with pytest.raises(TypeError, match=r"must (hold|be an) integer"):
        involution2d(X, W, **{"padding": 1, **options})


def test_answers_belong_to_their_shapes() -> None:
    """The same arguments are right for one pair of shapes and wrong for another, in either order."""
    for _ in range(2):
        assert involution2d(X, W, padding=1).shape == X.shape
        with pytest.raises(ValueError, match="weight must have shape"):
            involution2d(X[..., :5], W, padding=1)
        assert local_correlation2d(Q, X, 3, 2, padding=1).shape == (2, 2, 3, 3, 6, 6)
        with pytest.raises(ValueError, match="divided into 3 groups"):
            local_correlation2d(Q, X, 3, 3, padding=1)


def test_every_public_function_is_here() -> None:
    tested = {function.__name__ for function, *_ in BAD}
    assert tested == set(involution.functional.__all__)
