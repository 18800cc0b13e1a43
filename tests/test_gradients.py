"""Derivatives: numerical checks of first and second order, only what is asked for, and torch.func."""

import random

import cases
import pytest
import torch
from cases import Case
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import involution
from involution import reference

EACH_OPERATION = pytest.mark.parametrize("operation", cases.OPERATIONS)
EACH_AXES = pytest.mark.parametrize("axes", [1, 2, 3])
FUNCTIONS = {name: getattr(torch.ops.involution, name).default for name in cases.OPERATIONS}


def small_cases(axes: int) -> list[Case]:
    """Stride, dilation, even and odd kernels, and a kernel larger than the map, small enough for differences."""
    input, kernel = {1: ((7,), (3,)), 2: ((4, 3), (3, 2)), 3: ((2, 1, 3), (2, 1, 2))}[axes]
    return [
        Case(2, 2, 2, input, kernel, (1,) * axes, (1,) * axes, (1,) * axes),
        Case(1, 1, 2, input, kernel, (2,) * axes, (2,) * axes, (1,) * axes),
        Case(1, 2, 1, input, kernel, (1,) * axes, (2,) * axes, (2,) * axes, x_layout="channels_last"),
        Case(1, 1, 1, (1,) * axes, (3,) * axes, (1,) * axes, (1,) * axes, (1,) * axes),
    ]


def differentiable(operation: str, case: Case) -> tuple:
    """The operation as a function of its two tensors, and these."""
    first, second = (tensor.requires_grad_() for tensor in case.operands(operation))
    arguments = case.arguments(operation)
    return (lambda a, b: FUNCTIONS[operation](a, b, *arguments)), (first, second)


def defined(operation: str, case: Case):
    """The same function by its definition, of which torch makes the derivatives."""
    definition = getattr(reference, operation)
    return lambda first, second: definition(first, second, *case.arguments(operation))


@EACH_OPERATION
@EACH_AXES
def test_gradcheck(operation: str, axes: int) -> None:
    for case in small_cases(axes):
        function, operands = differentiable(operation, case)
        assert gradcheck(function, operands, check_forward_ad=True, check_batched_grad=True)


@EACH_OPERATION
@EACH_AXES
def test_gradgradcheck(operation: str, axes: int) -> None:
    for case in small_cases(axes):
        function, operands = differentiable(operation, case)
        assert gradgradcheck(function, operands, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_gradcheck_of_the_public_functions(axes: int) -> None:
    """With the arguments that users write: same padding, output padding, numbers for all axes."""
    size = {1: (5,), 2: (4, 3), 3: (2, 3, 2)}[axes]
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1, 2, *(2,) * axes, *size, dtype=torch.float64, requires_grad=True)
    functions = (
        lambda x, w: getattr(involution, f"involution{axes}d")(x, w, padding="same", dilation=3),
        lambda x, w: getattr(involution, f"involution_transpose{axes}d")(x, w, 2, 1, 1),
        lambda x, w: getattr(involution, f"involution_transpose{axes}d")(x, w, 1, 1, 2, dilation=3),
        lambda x, w: getattr(involution, f"local_correlation{axes}d")(x, x * x, 3, 2, padding="same"),
    )
    for function in functions:
        assert gradcheck(function, (x, w))
        assert gradgradcheck(function, (x, w))


@EACH_OPERATION
def test_third_order(operation: str) -> None:
    """The set is closed: a gradient of a gradient of a gradient is right, too."""
    case = Case(1, 1, 1, (3,), (2,), (1,), (1,), (1,))
    function, operands = differentiable(operation, case)

    def second_order(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        output = (function(first, second) ** 3).sum()
        (grad,) = torch.autograd.grad(output, first, create_graph=True)
        (grad,) = torch.autograd.grad((grad**2).sum(), second, create_graph=True)
        return grad

    assert gradcheck(second_order, operands)


class Calls(TorchDispatchMode):
    """The names of the operators that run, other than torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "involution":
            self.names.append(function._schema.name.split("::")[1])
        return function(*args, **(kwargs or {}))


@EACH_OPERATION
@pytest.mark.parametrize("asked", ["first", "second", "neither"])
def test_only_the_gradients_that_are_asked_for(operation: str, asked: str) -> None:
    function, (first, second) = differentiable(operation, small_cases(2)[0])
    first.requires_grad_(asked == "first")
    second.requires_grad_(asked == "second")
    output = function(first, second)
    assert output.requires_grad == (asked != "neither")
    if asked == "neither":
        return
    with Calls() as calls:
        output.sum().backward()
    expected = {
        "involution": {"first": "involution_transpose", "second": "local_correlation"},
        "involution_transpose": {"first": "involution", "second": "local_correlation"},
        "local_correlation": {"first": "involution", "second": "involution_transpose"},
    }[operation][asked]
    assert calls.names == [expected]
    assert (first.grad is None) == (asked != "first")
    assert (second.grad is None) == (asked != "second")


@EACH_OPERATION
@pytest.mark.skipif(involution.build_info()["extension"] is None, reason="the reference keeps both tensors")
def test_only_what_a_gradient_needs_is_kept(operation: str) -> None:
    """A tensor is kept for the other one's gradient: a kernel tensor is large."""
    function, (first, second) = differentiable(operation, small_cases(2)[0])
    for asked, needed in ((first, second), (second, first)):
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            output = function(*(tensor if tensor is asked else tensor.detach() for tensor in (first, second)))
        assert [tensor.data_ptr() for tensor in kept] == [needed.data_ptr()]
        (gradient,) = torch.autograd.grad(output.sum(), asked)
        assert torch.equal(gradient, torch.autograd.grad(function(first, second).sum(), asked)[0])


@EACH_OPERATION
def test_no_graph_without_gradients(operation: str) -> None:
    function, (first, second) = differentiable(operation, small_cases(2)[0])
    with torch.no_grad():
        assert function(first, second).grad_fn is None
    with torch.inference_mode():
        assert function(first, second).is_inference()


@EACH_OPERATION
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_gradients_keep_dtype_and_take_expanded_gradients(operation: str, dtype: torch.dtype) -> None:
    """`.sum()` sends back one number expanded to the whole output."""
    function, (first, second) = differentiable(operation, small_cases(2)[0].with_(dtype=dtype))
    function(first, second).sum().backward()
    assert first.grad.dtype == second.grad.dtype == dtype
    output = function(first, second)
    dense = torch.autograd.grad(output, (first, second), torch.ones_like(output).contiguous())
    torch.testing.assert_close((first.grad, second.grad), dense)


@EACH_OPERATION
def test_gradients_keep_the_memory_format(operation: str) -> None:
    case = Case(2, 2, 4, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1), torch.float32, *["channels_last"] * 3)
    function, (first, second) = differentiable(operation, case)
    output = function(first, second)
    grads = torch.autograd.grad(output, (first, second), torch.randn_like(output))
    assert [grad.stride() for grad in grads] == [first.stride(), second.stride()]


@EACH_OPERATION
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_can_be_changed_in_place(operation: str, layout: str) -> None:
    """As by `torch.nn.ReLU(inplace=True)`; autograd refuses that to a custom operator's view."""
    case = Case(2, 2, 4, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1), torch.float64, *[layout] * 3)
    function, operands = differentiable(operation, case)
    expected = torch.autograd.grad(function(*operands).relu().sum(), operands)
    assert not function(*operands)._is_view()
    torch.testing.assert_close(torch.autograd.grad(function(*operands).relu_().sum(), operands), expected)


def test_saved_tensors_are_checked_for_changes() -> None:
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    w = torch.randn(1, 1, 3, 3, 3, 3, requires_grad=True)
    output = involution.involution2d(x, w, padding=1)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


# ---- torch.func and forward mode ----


@EACH_OPERATION
def test_forward_mode_is_never_a_silent_zero(operation: str) -> None:
    """A tangent counts even where no tensor requires a gradient."""
    case = small_cases(2)[0]
    first, second = case.operands(operation)
    function = FUNCTIONS[operation]
    tangents = torch.randn_like(first), torch.randn_like(second)
    arguments = case.arguments(operation)
    expected = function(tangents[0], second, *arguments) + function(first, tangents[1], *arguments)
    with torch.no_grad(), forward_ad.dual_level():
        dual = function(
            forward_ad.make_dual(first, tangents[0]), forward_ad.make_dual(second, tangents[1]), *arguments
        )
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)


@EACH_OPERATION
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, 2), (-1, 0)])
def test_vmap(operation: str, in_dims: tuple) -> None:
    case = small_cases(2)[0]
    arguments = case.arguments(operation)
    stacks, singles = [], []
    for index, dim in enumerate(in_dims):
        tensors = [case.operands(operation, seed)[index] for seed in range(3)]
        if dim is None:
            stacks.append(tensors[0])
            singles.append([tensors[0]] * 3)
        else:
            stacks.append(torch.stack(tensors, dim))
            singles.append(tensors)
    function = FUNCTIONS[operation]
    result = torch.func.vmap(lambda a, b: function(a, b, *arguments), in_dims)(*stacks)
    expected = torch.stack([function(a, b, *arguments) for a, b in zip(*singles, strict=True)])
    torch.testing.assert_close(result, expected)


@EACH_OPERATION
def test_functional_derivatives(operation: str) -> None:
    function, (first, second) = differentiable(operation, small_cases(2)[0])
    first, second = first.detach(), second.detach()

    def scalar(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (function(a, b) ** 2).sum()

    a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
    expected = torch.autograd.grad(scalar(a, b), (a, b))
    torch.testing.assert_close(torch.func.grad(scalar, argnums=(0, 1))(first, second), expected)

    jacobians = torch.func.jacrev(function, argnums=(0, 1))(first, second)
    torch.testing.assert_close(torch.func.jacfwd(function, argnums=(0, 1))(first, second), jacobians)
    hessian = torch.func.hessian(scalar, argnums=(0, 1))(first, second)
    torch.testing.assert_close(
        hessian, torch.autograd.functional.hessian(scalar, (first, second)), rtol=1e-6, atol=1e-8
    )


def test_per_sample_gradients() -> None:
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    w = torch.randn(1, 3, 3, 5, 5, dtype=torch.float64)

    def loss(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (involution.involution2d(x[None], w[None], padding=1) ** 2).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x)
    expected = torch.stack([torch.func.grad(loss)(w, sample) for sample in x])
    torch.testing.assert_close(per_sample, expected)


# ---- compared with the reference, which torch differentiates by itself ----


@EACH_OPERATION
def test_gradients_are_those_of_the_reference(operation: str) -> None:
    case = cases.random_case(random.Random(operation), 2, dtypes=(torch.float64,))
    function, operands = differentiable(operation, case)
    output = function(*operands)
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(defined(operation, case)(*operands), operands, grad)
    torch.testing.assert_close(torch.autograd.grad(output, operands, grad), expected)


@EACH_OPERATION
def test_nested_transforms(operation: str) -> None:
    """As right as the public functions, at any nesting: torch comes by once for each level."""
    case = small_cases(2)[0]
    function, (first, second) = differentiable(operation, case)
    first, second = first.detach(), second.detach()

    def scalar(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (function(a, b) ** 3).sum()

    by_definition = defined(operation, case)
    hessian = torch.autograd.functional.hessian(lambda a: (by_definition(a, second) ** 3).sum(), first)
    for outer in (torch.func.jacfwd, torch.func.jacrev):
        for inner in (torch.func.jacfwd, torch.func.jacrev):
            nested = torch.func.vmap(outer(inner(scalar)), in_dims=(None, 0))
            result = nested(first, torch.stack([second, second]))
            torch.testing.assert_close(result, torch.stack([hessian, hessian]), rtol=1e-6, atol=1e-8)
