"""Mixed precision: the operations, the layers and training under torch.autocast."""

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import Case
from torch import Tensor, nn

import involution
from involution import reference

EACH_OPERATION = pytest.mark.parametrize("operation", cases.OPERATIONS)
EACH_HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
CASE = Case(2, 2, 3, (5, 6), (3, 2), (2, 1), (1, 1), (1, 2), torch.float32)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def call(operation: str, case: Case, first: Tensor, second: Tensor) -> Tensor:
    return getattr(torch.ops.involution, operation).default(first, second, *case.arguments(operation))


@EACH_OPERATION
@EACH_HALF
@pytest.mark.parametrize("device", DEVICES)
def test_the_operators_run_in_the_dtype_of_autocast(operation: str, dtype: torch.dtype, device: str) -> None:
    """Bit by bit what they give on tensors cast by hand; gradients come back in the dtype of the tensors."""
    operands = [tensor.to(device).requires_grad_() for tensor in CASE.operands(operation)]
    with torch.autocast(device, dtype):
        result = call(operation, CASE, *operands)
    expected = call(operation, CASE, *(tensor.to(dtype) for tensor in operands))
    assert result.dtype == dtype
    assert torch.equal(result, expected)
    grad = torch.randn_like(result)
    grads = torch.autograd.grad(result, operands, grad)  # outside of autocast
    assert [grad.dtype for grad in grads] == [torch.float32] * 2
    torch.testing.assert_close(grads, torch.autograd.grad(expected, operands, grad), rtol=0, atol=0)


@EACH_HALF
def test_sums_are_float32(dtype: torch.dtype) -> None:
    """A sum of ones in a half type ends where one more is rounded away: at 256 in bfloat16, at 2048 in float16."""
    count = {torch.bfloat16: 300, torch.float16: 3000}[dtype]
    with torch.autocast("cpu", dtype):
        total = involution.involution1d(torch.ones(1, 1, count), torch.ones(1, 1, count, 1))
    assert total.item() == count


def outcome(function, first: Tensor, second: Tensor) -> torch.dtype | None:
    """The dtype that comes out under autocast, or None for an error."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            return function(first, second).dtype
    except (RuntimeError, TypeError):
        return None


@pytest.mark.parametrize("first", cases.DTYPES, ids=str)
@pytest.mark.parametrize("second", cases.DTYPES, ids=str)
def test_dtypes_follow_convolution(first: torch.dtype, second: torch.dtype) -> None:
    """float64 is left alone, float32 and half types meet; what autocast makes of a convolution is the oracle."""
    x = torch.randn(1, 2, 5, 5)
    expected = outcome(F.conv2d, x.to(first), torch.randn(4, 2, 3, 3).to(second))
    w = torch.randn(1, 1, 3, 3, 3, 3)
    assert outcome(involution.involution2d, x.to(first), w.to(second)) == expected
    bare = torch.ops.involution.involution.default
    assert outcome(lambda a, b: bare(a, b, (1, 1), (0, 0), (1, 1)), x.to(first), w.to(second)) == expected


def test_dtypes_that_autocast_leaves_apart_are_refused() -> None:
    x, w = torch.randn(1, 2, 5, 5, dtype=torch.float64), torch.randn(1, 1, 3, 3, 3, 3)
    with torch.autocast("cpu"), pytest.raises(TypeError, match="needs tensors of one dtype"):
        involution.involution2d(x, w)
    with pytest.raises(TypeError, match="input and weight must have one dtype"):
        involution.involution2d(x, w)


def test_autocast_that_is_switched_off_changes_nothing() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(1, 1, 3, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert torch.equal(involution.involution2d(x, w), involution.involution2d(x, w))
        assert involution.involution2d(x, w).dtype == torch.float32


def test_transforms_under_autocast() -> None:
    """The derivative of the cast, the operation and the cast back, as when they are written out."""
    x, w = torch.randn(3, 1, 2, 5, 5), torch.randn(1, 1, 3, 3, 5, 5)

    def under_autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return involution.involution2d(x, w, padding=1).float().square().sum()

    def written_out(x: Tensor) -> Tensor:
        steps = ((1, 1), (1, 1), (1, 1))
        return reference.involution(x.bfloat16(), w.bfloat16(), *steps).float().square().sum()

    result = torch.func.vmap(torch.func.grad(under_autocast))(x)
    expected = torch.stack([torch.func.grad(written_out)(sample) for sample in x])
    assert result.dtype == torch.float32
    # The reference rounds the sums of its gradient between kernel points.
    torch.testing.assert_close(result, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    tangents = torch.func.jvp(under_autocast, (x[0],), (torch.ones_like(x[0]),))[1]
    torch.testing.assert_close(
        tangents, expected[0].sum(), rtol=0.05, atol=0.05 * expected[0].abs().sum().item()
    )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_autocast_under_compile(backend: str) -> None:
    torch._dynamo.reset()

    def function(x: Tensor, w: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return involution.involution2d(x, w, padding=1)

    x, w = torch.randn(2, 4, 5, 6).requires_grad_(), torch.randn(2, 2, 3, 3, 5, 6).requires_grad_()
    expected = function(x, w)
    result = torch.compile(function, fullgraph=True, backend=backend)(x, w)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected)
    grads = (torch.autograd.grad(y.float().sum(), (x, w)) for y in (result, expected))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("outside", [False, True], ids=["within", "around"])
def test_a_layer_under_autocast_and_compile(outside: bool) -> None:
    """Its kernels come from a softmax, which autocast runs in float32: the operation gets two dtypes."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = involution.InvolutionLayer(3, 8, 3, groups=2)

    def within(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    compiled = torch.compile(layer if outside else within, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 7, 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=outside):
        result = compiled(x)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, within(x))
    result.float().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


# ---- training ----


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return involution.models.RedNet(
        (1, 1),
        widths=(16, 32),
        strides=(1, 2),
        stem="small",
        stem_channels=16,
        kernel_size=3,
        expansion=2,
        num_classes=4,
    )


def train(device: str, dtype: torch.dtype | None, steps: int = 20) -> list[float]:
    """The losses of a few steps on images whose class is the brighter channel or none, under autocast."""
    model = small_network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        labels = torch.randint(4, (32,), generator=generator)
        images = torch.randn(32, 3, 8, 8, generator=generator)
        images += 2 * F.one_hot(labels, 4)[:, :3, None, None]
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        if dtype is torch.float16:
            assert scaler.get_scale() >= 2.0**15  # no step, or one at first, was skipped
        losses.append(loss.item())
        assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any((p != b).any() for p, b in zip(model.parameters(), before, strict=True))
    return losses


@pytest.fixture(scope="module")
def exact_losses() -> list[float]:
    return train("cpu", None)


@EACH_HALF
@pytest.mark.parametrize("device", DEVICES)
def test_training_under_autocast_stays_near_float32(
    dtype: torch.dtype, device: str, exact_losses: list[float]
) -> None:
    """Within 0.02 of float32's loss at every step, while that falls from 1.4 to 0.1; float16 with a GradScaler."""
    assert exact_losses[0] > 1.3 and exact_losses[-1] < 0.1
    losses = train(device, dtype)
    assert losses != exact_losses
    assert max(abs(a - b) for a, b in zip(losses, exact_losses, strict=True)) < 0.02
