"""The dispatcher operators as torch.compile and torch.export see them."""

import cases
import pytest
import torch
import torch._dynamo.testing
from cases import Case
from torch.library import opcheck

import involution

EACH_OPERATION = pytest.mark.parametrize("operation", cases.OPERATIONS)
CASES = [
    Case(2, 2, 3, (9,), (3,), (1,), (1,), (1,), torch.float32),
    Case(2, 2, 3, (5, 6), (3, 4), (2, 1), (1, 2), (1, 2), torch.float32),
    Case(1, 1, 2, (3, 4, 5), (1, 2, 3), (1, 2, 1), (0, 1, 1), (1, 1, 1), torch.float64),
    Case(2, 2, 4, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1), torch.float32, *["channels_last"] * 3),
    Case(2, 2, 4, (3, 5, 6), (3, 3, 3), (1,) * 3, (1,) * 3, (1,) * 3, torch.float16, *["channels_last"] * 3),
    Case(2, 2, 4, (7,), (3,), (1,), (1,), (1,), torch.bfloat16, *["channels_last"] * 3),
    Case(2, 2, 4, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1), torch.float32, *["sliced"] * 3),
]


@EACH_OPERATION
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(operation: str, case: Case, requires_grad: bool) -> None:
    operands = (tensor.requires_grad_(requires_grad) for tensor in case.operands(operation))
    operator = getattr(torch.ops.involution, operation).default
    opcheck(operator, (*operands, *case.arguments(operation)))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_involution_and_its_backward(dynamic: bool, backend: str) -> None:
    """One graph, forward and backward; with dynamic shapes no second compilation for another size.

    The first sizes differ from each other and from the channels: torch takes equal ones for the same symbol.
    """
    torch._dynamo.reset()
    compilations = torch._dynamo.testing.CompileCounterWithBackend(backend)

    def step(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return involution.involution2d(x, w.softmax(2), padding=1).relu().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=compilations)
    for batch, height, width in ((5, 6, 7), (8, 9, 10), (3, 11, 12)):
        x = torch.randn(batch, 4, height, width, requires_grad=True)
        w = torch.randn(batch, 2, 3, 3, height, width, requires_grad=True)
        expected = torch.autograd.grad(step(x, w), (x, w))
        result = torch.autograd.grad(compiled(x, w), (x, w))
        torch.testing.assert_close(result, expected)
        if not dynamic:
            break
    assert compilations.frame_count == 1


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_compile_all_operations(axes: int) -> None:
    torch._dynamo.reset()

    def composed(x: torch.Tensor) -> torch.Tensor:
        scores = getattr(involution, f"local_correlation{axes}d")(x, x, 3, 2, padding="same")
        spread = getattr(involution, f"involution_transpose{axes}d")(x, scores, padding=1)
        return getattr(involution, f"involution{axes}d")(spread, scores.tanh(), padding="same").sum()

    x = torch.randn(2, 4, *(6, 5, 4)[:axes], dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(composed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), composed(x))
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), torch.autograd.grad(composed(x), x))


def test_compiled_autograd() -> None:
    """The backward pass, too, as torch.compile captures it when it starts within a compiled step."""
    torch._dynamo.reset()
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    w = torch.randn(2, 2, 3, 3, 5, 6, requires_grad=True)

    def step() -> None:
        involution.involution2d(x, w, padding=1).square().sum().backward()

    step()
    expected, x.grad, w.grad = (x.grad, w.grad), None, None
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(step, backend="aot_eager")()
    torch.testing.assert_close((x.grad, w.grad), expected)


@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_symbolic_sizes_without_dynamo(operation: str) -> None:
    """make_fx calls the public functions with sizes that are symbols, of which nothing can be remembered."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if operation == "local_correlation":
            return involution.local_correlation2d(x, x, 3, 2, padding=1)
        return getattr(involution, f"{operation}2d")(x, w, padding=1)

    graph = make_fx(function, tracing_mode="symbolic")(torch.randn(2, 4, 5, 6), torch.randn(2, 2, 3, 3, 5, 6))
    for batch, height, width in ((2, 5, 6), (3, 8, 7)):
        operands = torch.randn(batch, 4, height, width), torch.randn(batch, 2, 3, 3, height, width)
        torch.testing.assert_close(graph(*operands), function(*operands))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_batch_that_depends_on_data(operation: str, layout: str) -> None:
    """Two batches that data choose: torch._check says that they are as large."""
    case = Case(5, 2, 3, (6, 7), (3, 3), (1, 1), (1, 1), (1, 1), torch.float64, *[layout] * 3)

    class Chosen(torch.nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
            first, second = first[masks[0]], second[masks[1]]
            torch._check(first.shape[0] == second.shape[0])
            if operation == "local_correlation":
                return involution.local_correlation2d(first, second, 3, 2, padding=1)
            return getattr(involution, f"{operation}2d")(first, second, padding=1)

    operands = case.operands(operation)
    masks = [torch.arange(5) < 3, torch.arange(5) >= 2]
    program = torch.export.export(Chosen(), (*operands, *masks), strict=False).module()
    for chosen in (masks, [masks[0] & False] * 2, [masks[0] | True] * 2):
        expected = Chosen()(*operands, *chosen)
        torch.testing.assert_close(program(*operands, *chosen), expected)


def test_transforms_under_compile() -> None:
    """A tangent or a functional gradient through a compiled function is right, never a silent zero."""
    torch._dynamo.reset()
    w = torch.randn(1, 1, 3, 3, 5, 5)

    def function(x: torch.Tensor) -> torch.Tensor:
        return involution.involution2d(x, w, padding=1) ** 2

    def tangent(x: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda x: function(x).sum())(x)

    x = torch.randn(1, 2, 5, 5)
    for derivative in (tangent, gradient):
        torch.testing.assert_close(torch.compile(derivative, backend="aot_eager")(x), derivative(x))


def test_bad_arguments_are_explained_under_compile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: involution.involution2d(x, w), backend="eager")
    with pytest.raises(Exception, match="weight must have shape"):
        compiled(torch.randn(1, 2, 5, 5), torch.randn(1, 1, 3, 3, 5, 5))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_meta_tensors(layout: str) -> None:
    """Shapes and strides without memory, equal to the real ones."""
    case = CASES[1].with_(x_layout=layout, w_layout=layout, y_layout=layout)
    for operation in cases.OPERATIONS:
        operator = getattr(torch.ops.involution, operation).default
        operands = case.operands(operation)
        real = operator(*operands, *case.arguments(operation))
        meta = operator(*(tensor.to("meta") for tensor in operands), *case.arguments(operation))
        assert (meta.shape, meta.stride(), meta.dtype) == (real.shape, real.stride(), real.dtype)
        assert meta.is_meta


def test_schemas_are_those_of_the_extension() -> None:
    """The text for installations without a compiled extension is the text of csrc/ops.cpp."""
    from involution._library import SCHEMAS

    operators = (torch.ops.involution.involution, torch.ops.involution.involution_transpose)
    operators += (torch.ops.involution.local_correlation, torch.ops.involution.fused_involution)
    operators += (torch.ops.involution.fused_involution_backward,)
    assert [str(operator.default._schema) for operator in operators] == [
        f"involution::{text}" for text in SCHEMAS
    ]
