"""The operator of the fused involution's gradients, and what chooses it; its kernels on a GPU, and on the host where
test_backend_on_host.py runs this."""

from __future__ import annotations

import os

import pytest
import torch
from cases import Case
from fused_cases import FusedCase
from fused_operator_cases import EACH_SMALL, OPERATOR, SMALL
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from involution import _fused, _fused_derivatives

BACKWARD = torch.ops.involution.fused_involution_backward.default
ALL = [True] * 4
SELECTIONS = [ALL, [True, False, False, False], [False, True, False, True], [False] * 4]

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
HALF_DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def arguments_of(case: FusedCase, asked: list[bool] = ALL, seed: int = 0) -> tuple:
    tensors = case.tensors(seed)
    grad = torch.randn_like(OPERATOR(*tensors, *case.arguments))
    return (grad, *tensors, *case.arguments, asked)


def assert_all_close(found: tuple, expected: tuple, **tolerance: float) -> None:
    assert [gradient is None for gradient in found] == [gradient is None for gradient in expected]
    for gradient, other in zip(found, expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradient, other, **tolerance)


# ---- the operator ----


@EACH_SMALL
@pytest.mark.parametrize("asked", SELECTIONS, ids=str)
def test_it_gives_the_gradients_that_are_asked_for(case: FusedCase, asked: list[bool]) -> None:
    grad, *tensors = arguments_of(case, asked)[:5]
    given = [tensor.requires_grad_() for tensor in tensors if tensor is not None]
    whole = OPERATOR(*tensors, *case.arguments)
    expected = iter(torch.autograd.grad(whole, given, grad))
    each = [None if tensor is None else next(expected) for tensor in tensors]
    asked = [need and tensor is not None for need, tensor in zip(asked, tensors, strict=True)]
    found = BACKWARD(grad, *(t if t is None else t.detach() for t in tensors), *case.arguments, asked)
    assert_all_close(found, tuple(one if need else None for one, need in zip(each, asked, strict=True)))


@pytest.mark.parametrize("case", (SMALL[0], SMALL[2], SMALL[4]), ids=("2D", "channels_last", "1D"))
@pytest.mark.parametrize(
    ("asked", "requires_grad"), [(ALL, False), (ALL, True), (SELECTIONS[1], False)], ids=str
)
def test_opcheck(case: FusedCase, asked: list[bool], requires_grad: bool) -> None:
    case = case.with_(window=case.window.with_(dtype=torch.float32))
    grad, x, z, w, b, *others = arguments_of(case, asked)
    tensors = [
        None if tensor is None else tensor.requires_grad_(requires_grad) for tensor in (grad, x, z, w, b)
    ]
    opcheck(BACKWARD, (*tensors, *others))


def test_its_own_derivatives() -> None:
    case = SMALL[0]
    tensors = [tensor.requires_grad_() for tensor in arguments_of(case)[:5]]

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        return BACKWARD(*given, *case.arguments, ALL)

    assert gradcheck(function, tensors, check_forward_ad=True)


def test_wrong_arguments_are_explained() -> None:
    grad, *others = arguments_of(SMALL[0])
    with pytest.raises(ValueError, match=r"a grad of shape \(2, 4, 4, 4\).*but it is \(1, 4, 4, 4\)\.$"):
        BACKWARD(grad[:1], *others)
    with pytest.raises(ValueError, match="multiple of the 6 points"):
        BACKWARD(grad, *others[:2], others[2][:-1], *others[3:])


def test_flops_are_those_of_the_composition() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    case = FusedCase(Case(2, 2, 3, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1), torch.float32), 4)
    for asked in SELECTIONS:
        arguments = arguments_of(case, asked)
        counts = []
        for function in (BACKWARD, lambda *given: _fused_derivatives.composed(given[-1], *given[:-1])):
            with FlopCounterMode(display=False) as counter:
                function(*arguments)
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1]


# ---- what chooses it ----


def window(dtype: torch.dtype = torch.float64, batch: int = 2, size: tuple[int, int] = (3, 4)) -> FusedCase:
    case = Case(batch, 2, 2, size, (7, 7), (1, 1), (3, 3), (1, 1), dtype, x_layout="channels_last")
    return FusedCase(case, 3, features_layout="channels_last")


def differentiable(case: FusedCase) -> tuple:
    """The forward operator as a function of its tensors, and these."""
    tensors = [tensor.requires_grad_() for tensor in case.tensors() if tensor is not None]
    return lambda *given: OPERATOR(*given, *case.arguments), tensors


def test_a_first_derivative_takes_them(backward_kernels_pretended: list) -> None:
    """And what they do not make is composed."""
    function, tensors = differentiable(window())
    output = function(*tensors)
    grad = torch.randn_like(output)
    found = torch.autograd.grad(function(*tensors), tensors, grad)
    assert backward_kernels_pretended == [(True,) * 4]
    assert_all_close(found, _fused_derivatives.composed(ALL, grad, *tensors, *window().arguments))
    tensors[0].requires_grad_(False), tensors[3].requires_grad_(False)
    function(*tensors).backward(grad)
    assert backward_kernels_pretended[1:] == [(False, True, True, False)]
    assert tensors[0].grad is None and tensors[1].grad is not None


def test_derivatives_of_the_gradients_do_not(backward_kernels_pretended: list) -> None:
    function, tensors = differentiable(window(batch=1, size=(1, 2)))
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, check_rev_over_rev=True)
    output = function(*tensors)
    torch.autograd.grad(output.sum(), tensors, create_graph=True)
    torch.func.grad(lambda *given: function(*given).sum())(*(tensor.detach() for tensor in tensors))
    torch.autograd.grad(
        function(*tensors), tensors, torch.randn(3, *output.shape).double(), is_grads_batched=True
    )
    assert not backward_kernels_pretended
    function(*tensors).backward(torch.ones_like(output))
    assert backward_kernels_pretended


def test_nothing_else_does(backward_kernels_pretended: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the switch off, nor other windows and strides, nor a gradient of another format."""

    def calls(case: FusedCase, grad_format: torch.memory_format = torch.channels_last) -> int:
        function, tensors = differentiable(case)
        output = function(*tensors)
        output.backward(torch.ones_like(output, memory_format=grad_format))
        return len(backward_kernels_pretended)

    assert calls(window(), torch.contiguous_format) == 0
    small = window().window.with_(kernel=(5, 5), padding=(2, 2))
    assert calls(window().with_(window=small)) == 0
    strided = window().window.with_(stride=(2, 2))
    assert calls(window().with_(window=strided)) == 0
    for value in ("0", ""):
        monkeypatch.setenv(_fused.BACKWARD_VARIABLE, value)
        assert calls(window()) == 0
    monkeypatch.delenv(_fused.BACKWARD_VARIABLE)
    assert calls(window()) == 0
    monkeypatch.setenv(_fused.BACKWARD_VARIABLE, "yes")
    with pytest.raises(ValueError, match="INVOLUTION_FUSED_BACKWARD must be 0 or 1, or unset, but is 'yes'"):
        calls(window())
    monkeypatch.setenv(_fused.BACKWARD_VARIABLE, "1")
    assert calls(window()) == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(backward_kernels_pretended: list, dynamic: bool) -> None:
    """The backward graph has the operator, which chooses when it runs."""
    torch._dynamo.reset()
    for size in ((3, 4), (5, 6)):
        function, tensors = differentiable(window(torch.float32, 2, size))
        compiled = torch.compile(
            lambda *given, function=function: function(*given).relu(),
            fullgraph=True,
            dynamic=dynamic,
            backend="aot_eager",
        )
        grad = torch.randn_like(function(*tensors))
        expected = torch.autograd.grad(function(*tensors).relu(), tensors, grad)
        backward_kernels_pretended.clear()
        assert_all_close(torch.autograd.grad(compiled(*tensors), tensors, grad), expected)
        assert backward_kernels_pretended == [(True,) * 4]


# ---- the kernels ----


@pytest.fixture
def kernels_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch; and where the host plays the device, its kernels are taken for CPU tensors."""
    monkeypatch.setenv(_fused.BACKWARD_VARIABLE, "1")
    if "INVOLUTION_BACKEND_ON_HOST" in os.environ:
        monkeypatch.setattr(_fused, "DEVICE_TYPE", "cpu")
        monkeypatch.setattr(_fused, "_why_not_on", lambda device: None)


def half_case(
    dtype: torch.dtype, reduced: int = 16, size: tuple[int, int] = (9, 11), groups: int = 2, bias: bool = True
) -> FusedCase:
    case = Case(2, groups, 16, size, (7, 7), (1, 1), (3, 3), (1, 1), dtype, x_layout="channels_last")
    return FusedCase(case, reduced, bias, features_layout="channels_last")


@DEVICES
@HALF_DTYPES
@pytest.mark.parametrize(
    ("reduced", "size", "groups", "bias"),
    [(8, (9, 11), 2, True), (24, (1, 5), 3, False), (64, (8, 16), 4, True), (128, (7, 7), 5, True)],
)
def test_gradients_are_right(
    reduced: int,
    size: tuple[int, int],
    groups: int,
    bias: bool,
    dtype: torch.dtype,
    device: str,
    kernels_on: None,
) -> None:
    """As those in float64, up to the rounding of kernels, of their gradients and of the results."""
    case = half_case(dtype, reduced, size, groups, bias)
    asked = [True, True, True, bias]
    grad, *tensors = arguments_of(case, asked)[:5]
    moved = [tensor if tensor is None else tensor.to(device) for tensor in (grad, *tensors)]
    found = BACKWARD(*moved, *case.arguments, asked)
    wide = [tensor if tensor is None else tensor.double() for tensor in (grad, *tensors)]
    expected = _fused_derivatives.composed(asked, *wide, *case.arguments)
    for gradient, right, tensor in zip(found, expected, tensors, strict=True):
        assert (gradient is None) == (right is None)
        if gradient is not None:
            assert gradient.dtype == dtype and gradient.stride() == tensor.stride()
            error = (gradient.cpu().double() - right).abs().max() / right.abs().max()
            assert error <= 4 * torch.finfo(dtype).eps


@DEVICES
def test_they_are_taken(device: str, kernels_on: None) -> None:
    """The composition correlates, which the kernels do not; but one that cannot read its operands is not taken."""
    has_kernels = device == "cuda" or "INVOLUTION_BACKEND_ON_HOST" in os.environ
    case = half_case(torch.bfloat16)
    grad, x, z, w, b, *others = (
        given.to(device) if isinstance(given, Tensor) else given for given in arguments_of(case)
    )
    with torch.profiler.profile() as profile:
        expected = BACKWARD(grad, x, z, w, b, *others)
    names = {event.name for event in profile.events()}
    assert "involution::fused_involution_backward" in names
    assert ("involution::local_correlation" not in names) == has_kernels, names
    shifted = (
        torch.empty(x.numel() + 1, dtype=x.dtype, device=device)[1:].view(2, 9, 11, 32).permute(0, 3, 1, 2)
    )
    for operands in ((grad, shifted.copy_(x), z, w, b), (grad, x, z, w.t().contiguous().t(), b)):
        assert_all_close(BACKWARD(*operands, *others), expected, rtol=0.02, atol=0.5)


@pytest.mark.gpu
def test_a_bit_for_a_bit(kernels_on: None) -> None:
    case = half_case(torch.bfloat16, 32, (28, 28), groups=8)
    arguments = [given.cuda() if isinstance(given, Tensor) else given for given in arguments_of(case)]
    first, *others = (BACKWARD(*arguments) for _ in range(3))
    assert all(torch.equal(one, two) for other in others for one, two in zip(first, other, strict=True))
