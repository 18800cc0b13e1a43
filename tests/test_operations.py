"""The three operations against the float64 oracle, through the dispatcher and the public functions."""

import random
import warnings

import cases
import oracle
import pytest
import torch
from cases import Case, assert_right
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import involution
from involution import _library, reference

EACH_OPERATION = pytest.mark.parametrize("operation", cases.OPERATIONS)
EACH_AXES = pytest.mark.parametrize("axes", [1, 2, 3])


def operator(operation: str):
    return getattr(torch.ops.involution, operation).default


def public(operation: str, axes: int):
    return getattr(involution, f"{operation}{axes}d")


def call_public(operation: str, case: Case, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The public function, with the output padding that gives the case's input size back."""
    function = public(operation, case.axes)
    if operation == "involution":
        return function(first, second, case.stride, case.padding, case.dilation)
    if operation == "local_correlation":
        return function(first, second, case.kernel, case.groups, case.stride, case.padding, case.dilation)
    natural = (
        (o - 1) * s - 2 * p + d * (k - 1) + 1
        for o, s, p, d, k in zip(
            case.output, case.stride, case.padding, case.dilation, case.kernel, strict=True
        )
    )
    output_padding = tuple(i - n for i, n in zip(case.input, natural, strict=True))
    return function(first, second, case.stride, case.padding, output_padding, case.dilation)


@EACH_OPERATION
@EACH_AXES
def test_random_problems(operation: str, axes: int) -> None:
    rng = random.Random(f"{operation} {axes}")
    for seed in range(0, 180, cases.ONE_IN):
        case = cases.random_case(rng, axes)
        first, second = case.operands(operation, seed)
        result = call_public(operation, case, first, second)
        assert_right(result, operation, first, second, case.arguments(operation))


@st.composite
def problems(draw: st.DrawFn) -> Case:
    axes = draw(st.integers(1, 3))
    largest = {1: 30, 2: 9, 3: 4}[axes]

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel, dilation = per_axis(1, 4), per_axis(1, 3)
    input = per_axis(1, largest)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [max(0, -(-(r - i) // 2)) for r, i in zip(reach, input, strict=True)]
    return Case(
        batch=draw(st.integers(0, 2)),
        groups=draw(st.integers(1, 3)),
        channels_per_group=draw(st.integers(1, 4)),
        input=input,
        kernel=kernel,
        stride=per_axis(1, 4),
        padding=tuple(p + draw(st.integers(0, 2)) for p in least),
        dilation=dilation,
        dtype=draw(st.sampled_from(cases.DTYPES)),
        x_layout=draw(st.sampled_from(("contiguous", "channels_last", "sliced", "misaligned"))),
        w_layout=draw(st.sampled_from(("contiguous", "channels_last", "sliced", "misaligned"))),
        y_layout=draw(st.sampled_from(("contiguous", "channels_last", "sliced", "misaligned"))),
    )


@settings(max_examples=150 // cases.ONE_IN, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=problems(), seed=st.integers(0, 1 << 16))
def test_any_problem(case: Case, seed: int) -> None:
    for operation in cases.OPERATIONS:
        first, second = case.operands(operation, seed)
        result = call_public(operation, case, first, second)
        assert_right(result, operation, first, second, case.arguments(operation))


@EACH_OPERATION
@EACH_AXES
def test_frames_are_independent(operation: str, axes: int) -> None:
    """The dispatcher operators take any two frames: windows may begin and end outside of the input."""
    rng = random.Random(f"frames {operation} {axes}")
    for seed in range(0, 40, cases.ONE_IN):
        case = cases.random_case(rng, axes, dtypes=(torch.float64,))
        output = tuple(rng.randint(1, size + 3) for size in case.output)
        padding = tuple(rng.randint(-3, 5) for _ in range(axes))
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((case.batch, case.channels, *case.input), dtype=torch.float64, generator=generator)
        y = torch.randn((case.batch, case.channels, *output), dtype=torch.float64, generator=generator)
        shape = (case.batch, case.groups, *case.kernel, *output)
        w = torch.randn(shape, dtype=torch.float64, generator=generator)
        arguments = case.with_(padding=padding).arguments(operation)
        operands = {"involution": (x, w), "involution_transpose": (y, w), "local_correlation": (y, x)}[
            operation
        ]
        assert_right(operator(operation)(*operands, *arguments), operation, *operands, arguments)


@EACH_OPERATION
@EACH_AXES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_result_has_the_format_of_the_first_tensor(operation: str, axes: int, layout: str) -> None:
    size = (4, 5, 6)[-axes:]
    case = Case(
        2, 2, 3, size, (3,) * axes, (1,) * axes, (1,) * axes, (1,) * axes, torch.float32, *[layout] * 3
    )
    first, second = case.operands(operation)
    result = call_public(operation, case, first, second)
    leading = 2 + axes if operation == "local_correlation" else 2
    assert result.stride() == cases.laid_out(torch.empty(result.shape), layout, leading).stride()
    if axes > 1 and operation != "local_correlation":
        channels_last = {2: torch.channels_last, 3: torch.channels_last_3d}[axes]
        assert result.is_contiguous(memory_format=channels_last) == (layout == "channels_last")


@EACH_AXES
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_is_that_of_convolution(axes: int, kernel: int, dilation: int) -> None:
    """With one kernel everywhere and one channel a group, involution is a depthwise convolution."""
    size = {1: (13,), 2: (7, 9), 3: (5, 4, 6)}[axes]
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    taps = torch.randn(3, *(kernel,) * axes, dtype=torch.float64)
    weight = taps.reshape(1, 3, *taps.shape[1:], *(1,) * axes).expand(2, 3, *taps.shape[1:], *size)
    convolution = getattr(torch.nn.functional, f"conv{axes}d")
    expected = convolution(x, taps.unsqueeze(1), padding="same", dilation=dilation, groups=3)
    result = public("involution", axes)(x, weight, padding="same", dilation=dilation)
    torch.testing.assert_close(result, expected)


@EACH_AXES
def test_transpose_is_that_of_convolution(axes: int) -> None:
    rng = random.Random(axes)
    for _ in range(20):
        size = tuple(rng.randint(1, 5) for _ in range(axes))
        kernel = tuple(rng.randint(1, 4) for _ in range(axes))
        stride, dilation = rng.randint(1, 3), rng.randint(1, 3)
        extra = rng.randrange(max(stride, dilation))
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        taps = torch.randn(3, *kernel, dtype=torch.float64)
        weight = taps.reshape(1, 3, *kernel, *(1,) * axes).expand(2, 3, *kernel, *size)
        convolution = getattr(torch.nn.functional, f"conv_transpose{axes}d")
        expected = convolution(
            x, taps.unsqueeze(1), stride=stride, output_padding=extra, groups=3, dilation=dilation
        )
        result = public("involution_transpose", axes)(
            x, weight, stride=stride, output_padding=extra, dilation=dilation
        )
        torch.testing.assert_close(result, expected)


@EACH_OPERATION
def test_valid_padding_is_none(operation: str) -> None:
    case = Case(1, 1, 2, (6, 7), (3, 2), (1, 1), (0, 0), (1, 1))
    first, second = case.operands(operation)
    extra = (case.kernel,) if operation == "local_correlation" else ()
    function = public(operation, 2)
    assert torch.equal(
        function(first, second, *extra, padding="valid"), function(first, second, *extra, padding=0)
    )


@EACH_OPERATION
@EACH_AXES
def test_transpose_and_correlation_undo_the_window(operation: str, axes: int) -> None:
    """The three operations contract one trilinear form: <y, inv(x, w)> is the same number three times."""
    case = cases.random_case(random.Random(axes), axes, dtypes=(torch.float64,))
    x, w, y = case.tensors()
    form = (y * operator("involution")(x, w, *case.arguments("involution"))).sum()
    third = {"involution": y, "involution_transpose": x, "local_correlation": w}[operation]
    contracted = operator(operation)(*case.operands(operation), *case.arguments(operation))
    torch.testing.assert_close((contracted * third).sum(), form)


@pytest.mark.parametrize("operation", cases.OPERATIONS)
@pytest.mark.parametrize("empty", ["batch", "channels", "output", "input"])
def test_empty_tensors(operation: str, empty: str) -> None:
    """An empty sum is zero and an empty result is empty, in the bare operators' independent frames."""
    batch = 0 if empty == "batch" else 2
    channels = 0 if empty == "channels" else 4
    input = (0, 5) if empty == "input" else (4, 5)
    output = (0, 5) if empty == "output" else (4, 5)
    x, y = torch.randn(batch, channels, *input), torch.randn(batch, channels, *output)
    w = torch.randn(batch, 2, 3, 3, *output)
    operands = {"involution": (x, w), "involution_transpose": (y, w), "local_correlation": (y, x)}[operation]
    window = ((1, 1), (1, 1), (1, 1))
    arguments = {
        "involution": window,
        "involution_transpose": (input, *window),
        "local_correlation": ((3, 3), 2, *window),
    }[operation]
    result = operator(operation)(*operands, *arguments)
    third = {"involution": y, "involution_transpose": x, "local_correlation": w}[operation]
    assert result.shape == third.shape
    if empty != "batch":
        assert not result.any()


def test_empty_batch_through_the_public_functions() -> None:
    x, w = torch.randn(0, 4, 5, 5, requires_grad=True), torch.randn(0, 2, 3, 3, 5, 5, requires_grad=True)
    y = involution.involution2d(x, w, padding=1)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad is not None and x.grad.shape == x.shape
    assert w.grad is not None and w.grad.shape == w.shape


@EACH_OPERATION
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_reach_what_their_window_holds(operation: str, value: float) -> None:
    """As in the oracle, where padding is zeros that take part in the product: none is lost, none spreads."""
    rng = random.Random(operation)
    for seed in range(25):
        case = cases.random_case(rng, 2, dtypes=(torch.float64,)).with_(
            x_layout="contiguous", w_layout="contiguous", y_layout="contiguous"
        )
        first, second = case.operands(operation, seed)
        for tensor in (first, second):
            spoiled = tensor.view(-1)
            for _ in range(2):
                spoiled[rng.randrange(spoiled.numel())] = value
        arguments = case.arguments(operation)
        result = call_public(operation, case, first, second)
        expected = torch.from_numpy(cases.exact(operation, first, second, arguments))
        torch.testing.assert_close(result, expected, equal_nan=True)


@EACH_OPERATION
def test_inputs_are_left_alone(operation: str) -> None:
    case = Case(2, 2, 3, (5, 6), (3, 3), (2, 1), (1, 2), (1, 1))
    first, second = case.operands(operation)
    before = first.clone(), second.clone()
    call_public(operation, case, first, second)
    assert torch.equal(first, before[0]) and torch.equal(second, before[1])


@EACH_OPERATION
@EACH_AXES
def test_the_reference_differentiates_by_itself(operation: str, axes: int) -> None:
    """The definition is made of differentiable operations, and agrees with the loops before and after."""
    case = cases.random_case(random.Random(f"reference {axes}"), axes, dtypes=(torch.float64,))
    first, second = (tensor.contiguous().requires_grad_() for tensor in case.operands(operation))
    arguments = case.arguments(operation)
    result = getattr(reference, operation)(first, second, *arguments)
    assert_right(result, operation, first, second, arguments)
    grad = torch.randn_like(result)
    ours = torch.autograd.grad(operator(operation)(first, second, *arguments), (first, second), grad)
    torch.testing.assert_close(torch.autograd.grad(result, (first, second), grad), ours)


def test_the_oracle_counts_by_hand() -> None:
    """Two windows of a sequence, on paper: the oracle itself is checked against numbers."""
    x = torch.tensor([[[1.0, 2.0, 3.0]]]).numpy()
    w = torch.tensor([[[[1.0, 10.0], [2.0, 20.0]]]]).numpy()  # (B, G, K, Out)
    window = ((2,), (1,), (1,))
    # o=0 sees (0, 1) with (1, 2); o=1 sees (2, 3) with (10, 20).
    assert oracle.involution(x, w, *window).tolist() == [[[2.0, 80.0]]]
    y = torch.tensor([[[5.0, 7.0]]]).numpy()
    assert oracle.involution_transpose(y, w, (3,), *window).tolist() == [[[10.0, 70.0, 140.0]]]
    assert oracle.local_correlation(y, x, (2,), 1, *window).tolist() == [[[[0.0, 14.0], [5.0, 21.0]]]]


@EACH_OPERATION
@pytest.mark.parametrize("far_axis", ["batch", "channel"])
def test_offsets_beyond_32_bits(operation: str, far_axis: str) -> None:
    """Strides of more than 2^31 elements; of the memory between only the pages that are read exist."""
    case = Case(2, 1, 2, (6, 9), (3, 3), (1, 1), (1, 1), (1, 1), torch.bfloat16)
    operands = []
    for tensor in case.operands(operation):
        far = 2**31 + 11
        strides = list(tensor.stride())
        axis = 0 if far_axis == "batch" else 1
        strides[axis] = far if tensor.shape[axis] > 1 else strides[axis]
        strides[0] = strides[0] if far_axis == "batch" else 64 * 64
        span = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True)) + 1
        operands.append(torch.empty(span, dtype=tensor.dtype).as_strided(tensor.shape, strides).copy_(tensor))
    result = operator(operation)(*operands, *case.arguments(operation))
    assert_right(result, operation, *operands, case.arguments(operation))


def test_reference_on_cuda_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA tensor where no kernels are built is served, slowly, and says how to mend that."""

    class OnCuda(torch.Tensor):
        is_cuda = True

    reason = "The package was built without them."
    monkeypatch.setattr(_library, "build_info", lambda: {"no_cuda_reason": reason})
    _library._warn_of_reference_on_cuda.cache_clear()
    case = Case(1, 1, 1, (3, 3), (3, 3), (1, 1), (1, 1), (1, 1))
    first, second = case.operands("involution")
    kernel = _library._by_reference("involution")
    with pytest.warns(
        UserWarning, match=f"slow reference on a CUDA tensor.*{reason}.*INVOLUTION_BUILD=cuda .*pip"
    ):
        kernel(first.as_subclass(OnCuda), second, *case.arguments("involution"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel(first.as_subclass(OnCuda), second, *case.arguments("involution"))
