"""The fused involution as an operator: its definition, derivatives that make the kernels again, torch's machinery."""

import math
import random
import re

import cases
import fused_cases
import pytest
import torch
import torch._dynamo.testing
from cases import Case
from fused_cases import FusedCase, assert_right, epilogue_of
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import involution
from involution import _composition, _fused_derivatives

OPERATOR = torch.ops.involution.fused_involution.default
SMALL = [
    FusedCase(Case(2, 2, 2, (4, 3), (3, 2), (1, 1), (1, 1), (1, 1)), 2),
    FusedCase(Case(3, 1, 2, (5, 4), (3, 3), (2, 2), (1, 1), (1, 1)), 1, bias=False),
    FusedCase(
        Case(2, 2, 1, (3, 4), (3, 3), (1, 2), (2, 2), (2, 1), x_layout="channels_last"),
        3,
        features_layout="channels_last",
    ),
    FusedCase(Case(1, 1, 1, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)), 2),
    FusedCase(Case(2, 2, 1, (5,), (3,), (1,), (1,), (1,)), 2),
    FusedCase(Case(1, 1, 2, (2, 1, 3), (2, 1, 2), (1, 1, 1), (1, 0, 1), (1, 1, 1)), 2),
]
EACH_SMALL = pytest.mark.parametrize("case", SMALL, ids=range(len(SMALL)))


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


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_random_problems(axes: int) -> None:
    rng = random.Random(axes)
    for seed in range(60):
        case = fused_cases.random_case(rng, axes)
        tensors = case.tensors(seed)
        epilogue = rng.choice(((), (None, None, True), epilogue_of(case), (*epilogue_of(case), True)))
        assert_right(OPERATOR(*tensors, *case.arguments, *epilogue), tensors, case.arguments, *epilogue)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_random_problems_without_the_extension(axes: int) -> None:
    """The composition in Python, which is what runs where nothing was compiled."""
    rng = random.Random(axes)
    for seed in range(20):
        case = fused_cases.random_case(rng, axes)
        tensors, epilogue = case.tensors(seed), (*epilogue_of(case), True)
        result = _composition.compose(*tensors, *case.arguments, *epilogue)
        assert_right(result, tensors, case.arguments, *epilogue)
        expected = OPERATOR(*tensors, *case.arguments, *epilogue)
        assert result.stride() == expected.stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("features_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_format_of_the_input(
    layout: str, features_layout: str, dtype: torch.dtype
) -> None:
    window = Case(2, 2, 3, (5, 6), (3, 3), (2, 1), (1, 1), (1, 1), dtype, x_layout=layout)
    case = FusedCase(window, 4, features_layout=features_layout)
    for epilogue in ((), (*epilogue_of(case), True)):
        result = OPERATOR(*case.tensors(), *case.arguments, *epilogue)
        assert result.stride() == cases.laid_out(torch.empty(result.shape), layout, 2).stride()


@pytest.mark.parametrize("empty", ["batch", "output", "input", "features"])
def test_empty_tensors(empty: str) -> None:
    x = torch.randn(0 if empty == "batch" else 2, 4, 0 if empty == "input" else 5, 6, requires_grad=True)
    out = 0 if empty == "output" else 3
    z = torch.randn(x.shape[0], 0 if empty == "features" else 3, out, 2, requires_grad=True)
    w, b = torch.randn(18, z.shape[1], requires_grad=True), torch.randn(18, requires_grad=True)
    result = OPERATOR(x, z, w, b, (3, 3), (1, 1), (1, 1), (1, 1))
    assert result.shape == (x.shape[0], 4, out, 2)
    grads = torch.autograd.grad(result.sum(), (x, z, w, b))
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in (x, z, w, b)]


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
    """The operators that run, and the largest result of any."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.namespace == "involution":
            self.names.append(function._schema.name.split("::")[1])
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


# ---- the dispatcher, torch.compile, autocast ----


@EACH_SMALL
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(case: FusedCase, requires_grad: bool) -> None:
    case = case.with_(window=case.window.with_(dtype=torch.float32))
    tensors = [None if t is None else t.requires_grad_(requires_grad) for t in case.tensors()]
    opcheck(OPERATOR, (*tensors, *case.arguments))
    opcheck(OPERATOR, (*tensors, *case.arguments, *epilogue_of(case), True))


@pytest.mark.parametrize(
    ("dynamic", "backend"), [(False, "aot_eager"), (True, "aot_eager"), (True, "inductor")]
)
def test_compile_it_and_its_backward(dynamic: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks too; compiled for every size, the batch is cut into as many parts as the example's."""
    monkeypatch.setattr(_fused_derivatives, "CHUNK_BYTES", 2 * 18 * 5 * 7 * 8)  # two of the first six images
    torch._dynamo.reset()
    compilations = torch._dynamo.testing.CompileCounterWithBackend(backend)

    def step(x: Tensor, z: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return OPERATOR(x, z, w, b, (3, 3), (1, 1), (1, 1), (1, 1)).relu().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=compilations)
    for batch, height, width in ((6, 5, 7), (8, 9, 10), (11, 12, 13)):
        tensors = [
            torch.randn(shape, dtype=torch.float64, requires_grad=True)
            for shape in ((batch, 4, height, width), (batch, 3, height, width), (18, 3), (18,))
        ]
        expected = torch.autograd.grad(step(*tensors), tensors)
        torch.testing.assert_close(torch.autograd.grad(compiled(*tensors), tensors), expected)
        if not dynamic:
            break
    assert compilations.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """Bit by bit what tensors cast by hand give; the epilogue keeps its float32, gradients their tensors' dtype."""
    case = FusedCase(Case(2, 2, 3, (5, 6), (3, 3), (2, 1), (1, 1), (1, 2), torch.float32), 4)
    tensors = [tensor.requires_grad_() for tensor in case.tensors()]
    epilogue = (*epilogue_of(case), True)
    with torch.autocast("cpu", dtype):
        result = OPERATOR(*tensors, *case.arguments, *epilogue)
        without_bias = OPERATOR(*tensors[:3], None, *case.arguments)
    expected = OPERATOR(*(tensor.to(dtype) for tensor in tensors), *case.arguments, *epilogue)
    assert result.dtype == without_bias.dtype == dtype
    assert torch.equal(result, expected)
    grad = torch.randn_like(result)
    grads = torch.autograd.grad(result, tensors, grad)
    assert [grad.dtype for grad in grads] == [torch.float32] * 4
    torch.testing.assert_close(grads, torch.autograd.grad(expected, tensors, grad), rtol=0, atol=0)


def test_flops_are_those_of_the_two_operations() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    case = FusedCase(Case(2, 2, 3, (5, 6), (3, 3), (2, 1), (1, 1), (1, 1), torch.float32), 4)
    with FlopCounterMode(display=False) as fused:
        OPERATOR(*case.tensors(), *case.arguments)
    elements = 2 * case.rows * math.prod(case.window.output)
    assert fused.get_total_flops() == 2 * elements * 4 + 2 * elements * 3


X, Z, W, B = torch.ones(2, 4, 6, 6), torch.ones(2, 3, 6, 6), torch.ones(18, 3), torch.ones(18)
WINDOW = ((3, 3), (1, 1), (1, 1), (1, 1))
BAD = [
    ((X, Z.double(), W, B, *WINDOW), TypeError, "tensors of one dtype"),
    ((X, Z, W.half(), B, *WINDOW), TypeError, "tensors of one dtype"),
    ((X, Z, W, B.half(), *WINDOW), TypeError, "tensors of one dtype"),
    ((X, Z[:1], W, B, *WINDOW), ValueError, r"batch size.*\(1, 3, 6, 6\)|batch size.*\[1, 3, 6, 6\]"),
    ((X, Z[0], W, B, *WINDOW), ValueError, "features of 4 dimensions|features"),
    ((X[0], Z[0], W, B, *WINDOW), ValueError, "4|dimensions"),
    ((X, Z, W[:, :2], B, *WINDOW), ValueError, r"\(groups \* kernel points, 3\).*18, 2"),
    ((X, Z, W[:17], B, *WINDOW), ValueError, "multiple of the 9 points.*17, 3"),
    ((X, Z, W[:0], B[:0], *WINDOW), ValueError, "multiple of the 9 points.*0, 3"),
    ((X[:, :3], Z, W, B, *WINDOW), ValueError, "3 channels of input cannot be divided into the 2 groups"),
    ((X, Z, W, B[:9], *WINDOW), ValueError, "bias of 18 numbers.*9"),
    ((X, Z, W, B, (3, 0), *WINDOW[1:]), ValueError, "kernel sizes.*at least 1.*3, 0"),
    ((X, Z, W, B, WINDOW[0], (0, 1), *WINDOW[2:]), ValueError, "strides and dilations of at least 1.*0, 1"),
    ((X, Z, W, B, (3, 3), (1,), (1, 1), (1, 1)), ValueError, "of one length"),
    ((X, Z, W, B, (9,), (1, 1), (1, 1), (1, 1)), ValueError, "of one length"),
    ((X, Z, W, B, *WINDOW, torch.ones(4)), ValueError, "together or neither, but only scale"),
    ((X, Z, W, B, *WINDOW, None, torch.ones(4)), ValueError, "together or neither, but only shift"),
    ((X, Z, W, B, *WINDOW, torch.ones(4).half(), torch.ones(4)), TypeError, "scale of float32"),
    ((X, Z, W, B, *WINDOW, torch.ones(4), torch.ones(3)), ValueError, "shift.*each of the 4 channels.*3"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("compiled", [True, False])
def test_wrong_arguments_are_explained(arguments: tuple, kind: type, message: str, compiled: bool) -> None:
    """By the extension, and by what stands in its place where nothing was compiled."""
    with pytest.raises(kind) as caught:
        OPERATOR(*arguments) if compiled else _composition.check(*arguments)
    text = str(caught.value)
    assert re.search(message, text), text
    assert text.endswith(".") and len(text.split()) > 5
