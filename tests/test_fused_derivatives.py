"""Derivatives of the fused involution: by numbers, of higher order, in chunks, by torch.func."""

import pytest
import torch
import torch._dynamo.testing
from cases import Case
from fused_cases import FusedCase, epilogue_of
from fused_operator_cases import EACH_SMALL, OPERATOR, SMALL
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import involution
from involution import _fused_derivatives


@pytest.fixture(params=["whole", "chunked"])
def chunking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Backward passes over the whole batch at once, and over one image after the other."""
    if request.param == "chunked":
        monkeypatch.setattr(_fused_derivatives, "CHUNK_BYTES", 1)
    return request.param


def differentiable(case: FusedCase) -> tuple:
    """The operator as a function of its tensors, and these."""
    tensors = [tensor.requires_grad_() for tensor in case.tensors() if tensor is not None]

    def function(*given: Tensor) -> Tensor:
        return OPERATOR(*given, *(() if case.bias else (None,)), *case.arguments)

    return function, tensors


def defined(case: FusedCase, *given: Tensor) -> Tensor:
    """The same by its definition, which torch differentiates by itself and which keeps the kernels."""
    x, z, w, *bias = given
    kernels = torch.einsum("pr,br...->bp...", w, z)
    if bias:
        kernels = kernels + bias[0].view(-1, *(1,) * (x.dim() - 2))
    shaped = kernels.unflatten(1, (case.window.groups, *case.window.kernel))
    return involution.reference.involution(x, shaped, *case.arguments[1:])


# ---- derivatives ----


@EACH_SMALL
def test_gradcheck(case: FusedCase, chunking: str) -> None:
    function, tensors = differentiable(case)
    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)


@EACH_SMALL
def test_gradgradcheck(case: FusedCase, chunking: str) -> None:
    function, tensors = differentiable(case)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 33)])
@pytest.mark.parametrize("reduced", [1, 8, 24])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_the_definition(
    stride: int, size: tuple[int, int], reduced: int, bias: bool, chunking: str
) -> None:
    """In float64: odd maps, one position, more than a tile; kernels made again and kernels kept."""
    window = Case(3, 2, 16, size, (3, 3), (stride,) * 2, (1, 1), (1, 1), torch.float64, "channels_last")
    case = FusedCase(window, reduced, bias, "channels_last")
    function, tensors = differentiable(case)
    output = function(*tensors)
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(defined(case, *tensors), tensors, grad)
    torch.testing.assert_close(torch.autograd.grad(output, tensors, grad), expected, rtol=1e-11, atol=1e-11)


def test_third_order() -> None:
    function, tensors = differentiable(FusedCase(Case(1, 1, 1, (3,), (2,), (1,), (1,), (1,)), 1))

    def second_order(*given: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad((function(*given) ** 3).sum(), given[1], create_graph=True)
        (grad,) = torch.autograd.grad((grad**2).sum(), given[2], create_graph=True)
        return grad

    assert gradcheck(second_order, tensors)


@EACH_SMALL
def test_the_kernels_are_not_kept(case: FusedCase) -> None:
    """Autograd keeps the four tensors themselves, and nothing that the operator made."""
    function, tensors = differentiable(case)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        function(*tensors)
    assert {tensor.data_ptr() for tensor in kept} <= {tensor.data_ptr() for tensor in tensors}


class Sizes(TorchDispatchMode):
    """The operators that run, the largest result of any, and the most numbers that a sum read."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0
        self.summed = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.namespace == "involution":
            self.names.append(function._schema.name.split("::")[1])
        if function.overloadpacket is torch.ops.aten.sum:
            self.summed = max(self.summed, args[0].numel())
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel() * result.element_size())
        return result


def test_chunks_bound_what_a_backward_pass_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many images as fit, one at least, in parts of about one size."""
    case = FusedCase(Case(7, 2, 2, (9, 9), (5, 5), (1, 1), (2, 2), (1, 1), torch.float32), 3)
    image = case.rows * 81 * 4
    for limit, parts in ((1, 7), (3 * image, 3), (6 * image + 1, 2), (7 * image, 1)):
        monkeypatch.setattr(_fused_derivatives, "CHUNK_BYTES", limit)
        function, tensors = differentiable(case)
        output = function(*tensors)
        with Sizes() as sizes:
            output.backward(torch.ones_like(output))
        assert sizes.names == ["involution_transpose", "local_correlation"] * parts
        assert sizes.largest <= max(limit, image)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_bias_comes_with_the_weight(layout: str) -> None:
    """The gradient of the kernels, the largest tensor, is not read once more for the bias's alone."""
    window = Case(2, 2, 2, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1), torch.float32, x_layout=layout)
    case = FusedCase(window, 3, features_layout=layout)
    for asked, summed in (((2, 3), 0), ((3,), 2 * case.rows * 20)):
        function, tensors = differentiable(case)
        for index, tensor in enumerate(tensors):
            tensor.requires_grad_(index in asked)
        output = function(*tensors)
        with Sizes() as sizes:
            output.backward(torch.ones_like(output))
        assert sizes.summed == summed


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((0,), ["involution_transpose"]),
        ((1,), ["local_correlation"]),
        ((2, 3), ["local_correlation"]),
        ((0, 2), ["involution_transpose", "local_correlation"]),
        ((), None),
    ],
)
def test_only_the_gradients_that_are_asked_for(asked: tuple[int, ...], expected: list[str] | None) -> None:
    function, tensors = differentiable(SMALL[0])
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index in asked)
    output = function(*tensors)
    assert output.requires_grad == bool(asked)
    if expected is None:
        return
    with Sizes() as sizes:
        output.sum().backward()
    assert sizes.names == expected
    assert [tensor.grad is not None for tensor in tensors] == [index in asked for index in range(4)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_over_chunks_are_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ones: a sum in a half type would stop at 256 or 2048, where one more is rounded away."""
    monkeypatch.setattr(_fused_derivatives, "CHUNK_BYTES", 1)
    batch = {torch.bfloat16: 300, torch.float16: 3000}[dtype]
    x, z = torch.ones(batch, 1, 1, dtype=dtype), torch.ones(batch, 1, 1, dtype=dtype)
    w, b = (torch.ones(shape, dtype=dtype, requires_grad=True) for shape in ((1, 1), (1,)))
    OPERATOR(x, z, w, b, (1,), (1,), (0,), (1,)).sum().backward()
    assert w.grad.item() == b.grad.item() == batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_repeat_bit_by_bit_and_keep_dtype_and_format(dtype: torch.dtype, chunking: str) -> None:
    window = Case(3, 2, 8, (9, 7), (5, 5), (2, 2), (2, 2), (1, 1), dtype, "channels_last")
    case = FusedCase(window, 8, features_layout="channels_last")
    function, tensors = differentiable(case)
    output = function(*tensors)
    grad = torch.randn_like(output)
    first, second = (torch.autograd.grad(function(*tensors), tensors, grad) for _ in range(2))
    for one, other, tensor in zip(first, second, tensors, strict=True):
        assert torch.equal(one, other)
        assert (one.dtype, one.stride()) == (tensor.dtype, tensor.stride())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_can_be_changed_in_place(layout: str) -> None:
    """As by `torch.nn.ReLU(inplace=True)`."""
    window = Case(2, 2, 4, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1), x_layout=layout)
    function, tensors = differentiable(FusedCase(window, 3, features_layout=layout))
    expected = torch.autograd.grad(function(*tensors).relu().sum(), tensors)
    torch.testing.assert_close(torch.autograd.grad(function(*tensors).relu_().sum(), tensors), expected)


def test_expanded_gradients() -> None:
    """`.sum()` sends back one number expanded to the whole output."""
    function, tensors = differentiable(SMALL[2])
    dense = torch.autograd.grad(function(*tensors), tensors, torch.ones_like(function(*tensors)).contiguous())
    torch.testing.assert_close(torch.autograd.grad(function(*tensors).sum(), tensors), dense)


def test_the_epilogue_is_differentiated() -> None:
    """By scale and shift too, wherever a gradient is asked for."""
    case = FusedCase(Case(2, 2, 2, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1), torch.float32), 3)
    tensors = [tensor.requires_grad_() for tensor in case.tensors()]
    scale, shift = (factor.requires_grad_() for factor in epilogue_of(case))
    result = OPERATOR(*tensors, *case.arguments, scale, shift, True)
    expected = defined(case, *tensors) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    grad = torch.randn_like(result)
    everything = (*tensors, scale, shift)
    torch.testing.assert_close(
        torch.autograd.grad(result, everything, grad),
        torch.autograd.grad(expected.relu(), everything, grad),
        rtol=1e-4,
        atol=1e-4,
    )
    alone = OPERATOR(*(tensor.detach() for tensor in tensors), *case.arguments, scale, shift)
    assert torch.autograd.grad(alone.sum(), shift)[0].tolist() == [40.0] * 4


def test_no_graph_without_gradients() -> None:
    function, tensors = differentiable(SMALL[0])
    with torch.no_grad():
        assert function(*tensors).grad_fn is None
    with torch.inference_mode():
        assert function(*tensors).is_inference()


def test_forward_mode_is_never_a_silent_zero() -> None:
    function, tensors = differentiable(SMALL[0])
    tensors = [tensor.detach() for tensor in tensors]
    tangents = [torch.randn_like(tensor) for tensor in tensors]
    expected = torch.func.jvp(lambda *given: defined(SMALL[0], *given), tuple(tensors), tuple(tangents))[1]
    with torch.no_grad(), forward_ad.dual_level():
        dual = function(*map(forward_ad.make_dual, tensors, tangents))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)


# ---- torch.func ----


@pytest.mark.parametrize(
    "dims",
    [
        (0, 0, None, None, None, None),
        (1, None, None, None, None, None),
        (0, 0, 0, None, None, None),
        (None, None, None, 0, None, None),
        (None, -1, 1, 0, 0, None),
        (None, None, None, None, 0, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_vmap(dims: tuple, layout: str) -> None:
    window = Case(2, 2, 2, (4, 3), (3, 2), (1, 1), (1, 1), (1, 1), x_layout=layout)
    case = FusedCase(window, 2, features_layout=layout)
    singles = [(*case.tensors(seed), *epilogue_of(case, seed)) for seed in range(3)]
    stacks = [
        singles[0][index] if dim is None else torch.stack([single[index] for single in singles], dim)
        for index, dim in enumerate(dims)
    ]

    def function(*given: Tensor) -> Tensor:
        return OPERATOR(*given[:4], *case.arguments, *given[4:], True)

    expected = [
        function(*(singles[0 if dim is None else number][index] for index, dim in enumerate(dims)))
        for number in range(3)
    ]
    torch.testing.assert_close(torch.func.vmap(function, dims)(*stacks), torch.stack(expected))


def test_per_sample_gradients_and_nested_transforms() -> None:
    case = SMALL[0]
    function, tensors = differentiable(case)
    x, z, w, b = (tensor.detach() for tensor in tensors)

    def loss(w: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return (function(x[None], z[None], w, b) ** 2).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(w, x, z)
    expected = torch.stack([torch.func.grad(loss)(w, *sample) for sample in zip(x, z, strict=True)])
    torch.testing.assert_close(per_sample, expected)

    def by_definition(z: Tensor) -> Tensor:
        return (defined(case, x, z, w, b) ** 3).sum()

    hessian = torch.autograd.functional.hessian(by_definition, z)
    for outer in (torch.func.jacfwd, torch.func.jacrev):
        for inner in (torch.func.jacfwd, torch.func.jacrev):
            result = outer(inner(lambda z: (function(x, z, w, b) ** 3).sum()))(z)
            torch.testing.assert_close(result, hessian, rtol=1e-6, atol=1e-7)
