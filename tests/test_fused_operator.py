"""The fused involution as an operator: results, the dispatcher, torch.compile, autocast, wrong arguments."""

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
from fused_operator_cases import EACH_SMALL, OPERATOR
from torch import Tensor
from torch.library import opcheck

from involution import _composition, _fused_derivatives


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
