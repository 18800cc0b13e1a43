"""HostRunner keeps tensors apart, passes failures on, and survives them."""

from collections.abc import Iterator

import host_build
import host_runner
import pytest
import torch
from host_runner import HostRunner, KernelError

pytestmark = pytest.mark.skipif(
    host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
)

GEOMETRY = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 2}
X_SHAPE = (2, 16, 9, 11)  # 8 channels a group, which every dtype but float64 has a marching kernel for
W_SHAPE = (2, 2, 3, 3, 9, 11)


@pytest.fixture(scope="module")
def runner() -> Iterator[HostRunner]:
    with HostRunner() as runner:
        yield runner


def copies_x(runner: HostRunner, x: torch.Tensor, out: torch.Tensor, **options: object) -> None:
    """Runs involution with a kernel that is 1 in its middle, which gives x again, bit for bit."""
    w = torch.zeros(W_SHAPE, dtype=x.dtype)
    w[:, :, 1, 1] = 1
    y, _ = runner.run("involution", x, w, out, **GEOMETRY, **options)
    assert y.stride() == out.stride()
    assert torch.equal(y, x)


@pytest.mark.parametrize("dtype", host_runner.DTYPES, ids=str)
@pytest.mark.parametrize("force_generic", [False, True])
def test_values_make_the_journey(runner: HostRunner, dtype: torch.dtype, force_generic: bool) -> None:
    x = torch.randn(X_SHAPE).to(dtype)
    copies_x(runner, x, torch.empty_like(x), force_generic=force_generic)


def test_strides_and_offsets_make_the_journey(runner: HostRunner) -> None:
    x = torch.randn(2, 9, 13, 19).permute(0, 3, 1, 2)[:, 1:17, :, 2:]
    out = torch.empty(2, 9, 16, 30)[..., 3:25:2].permute(0, 2, 1, 3)
    copies_x(runner, x, out)
    copies_x(runner, torch.randn(16, 1, 1).expand(X_SHAPE), out)


def test_plan_is_told(runner: HostRunner) -> None:
    x, w = torch.randn(X_SHAPE), torch.randn(W_SHAPE)
    _, plan = runner.run("involution", x, w, torch.empty_like(x), **GEOMETRY)
    assert plan.startswith("fma "), plan
    _, plan = runner.run("involution", x, w, torch.empty_like(x), **GEOMETRY, force_generic=True)
    assert plan.startswith("generic"), plan


@pytest.mark.parametrize("operand", ["a", "b"])
@pytest.mark.parametrize("force_generic", [False, True])
def test_reading_past_the_end_is_reported(
    runner: HostRunner, monkeypatch: pytest.MonkeyPatch, operand: str, force_generic: bool
) -> None:
    x, w = torch.randn(X_SHAPE), torch.randn(W_SHAPE)
    exchange = runner._exchange

    def with_a_short_operand(request: bytes) -> tuple[int, str, bytes]:
        numbers = list(host_runner.REQUEST.unpack_from(request))
        data = request[host_runner.REQUEST.size :]
        a_bytes, b_bytes = numbers[5], numbers[7]
        a, b = data[:a_bytes], data[a_bytes : a_bytes + b_bytes]
        if operand == "a":
            a, numbers[5] = a[:-4], a_bytes - 4
        else:
            b, numbers[7] = b[:-4], b_bytes - 4
        return exchange(host_runner.REQUEST.pack(*numbers) + a + b)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_exchange", with_a_short_operand)
        with pytest.raises(KernelError, match="heap-buffer-overflow"):
            runner.run("involution", x, w, torch.empty_like(x), **GEOMETRY, force_generic=force_generic)
    copies_x(runner, x, torch.empty_like(x))  # the next request finds a new program


def test_endless_kernel_is_ended() -> None:
    with HostRunner(timeout=0.0) as impatient:
        x, w = torch.randn(X_SHAPE), torch.randn(W_SHAPE)
        with pytest.raises(KernelError, match="no answer within 0 s"):
            impatient.run("involution", x, w, torch.empty_like(x), **GEOMETRY)


def test_shapes_and_dtypes_are_checked(runner: HostRunner) -> None:
    x, w = torch.randn(X_SHAPE), torch.randn(W_SHAPE)
    with pytest.raises(ValueError, match="shapes do not fit"):
        runner.run("involution", x, w[..., 1:], torch.empty_like(x), **GEOMETRY)
    with pytest.raises(ValueError, match="different dtypes"):
        runner.run("involution", x, w.double(), torch.empty_like(x), **GEOMETRY)
    with pytest.raises(ValueError, match="empty tensor"):
        empty = dict(GEOMETRY, padding=(0, 0))
        runner.run("involution", x[:0], w[:0], torch.empty_like(x[:0]), **empty)
